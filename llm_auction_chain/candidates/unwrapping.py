"""The chat models inside the wrappers of LangChain, such as bindings, retries and fallbacks, and what they send."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

from langchain_core.callbacks import AsyncCallbackManager, CallbackManager
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import (
    RouterRunnable,
    Runnable,
    RunnableBranch,
    RunnableConfig,
    RunnableParallel,
    RunnableSequence,
)
from langchain_core.runnables.base import RunnableBinding, RunnableBindingBase
from langchain_core.runnables.config import ensure_config, merge_configs
from langchain_core.runnables.configurable import (
    DynamicRunnable,
    RunnableConfigurableAlternatives,
)
from langchain_core.runnables.fallbacks import RunnableWithFallbacks
from typing_extensions import override

from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.messages import messages_of
from llm_auction_chain.waiting import AWAITING, BLOCKING, Waiter, run

__all__ = [
    "COPIES",
    "SEEDS",
    "SETTINGS",
    "ChosenLater",
    "Untraced",
    "asks_for_format",
    "chat_model_of",
    "chat_models_in",
    "innermost",
    "inside",
    "is_chosen_later",
    "name_of",
    "of_one_draw",
    "offers_tools",
    "runnables_in",
    "runs_without_handlers",
    "settings_of",
]

COPIES = ("n", "candidate_count")
"""Settings of how many replies a request makes, all of which are billed."""
SEEDS = ("seed", "random_seed")
SETTINGS = ("model_kwargs", "extra_body", "generation_config", "options")
"""Fields and keywords that hold settings of a request."""
_Change = Callable[[Runnable[Any, Any], Mapping[str, Any]], Runnable[Any, Any]]
_FOR_TRACERS = frozenset({"ls_structured_output_format", "structured_output_format"})
_UNCHOSEN = "The config of a call chooses this model. Call it with such a config."
_TOOLS = frozenset({"tools", "functions"})
# Providers' words for a format, and for what may hold one or tools. Without underscores: some have both spellings.
_FORMATS = frozenset({
    "ebnf", "format", "grammar", "guidedchoice", "guidedgrammar", "guidedjson", "guidedregex", "jsonmode",
    "jsonschema", "lsstructuredoutputformat", "outputformat", "regex", "responseformat", "responsejsonschema",
    "responsemimetype", "responseschema", "structuraltag", "structuredoutputformat", "structuredoutputs", "textformat",
})  # fmt: skip
_WITH_FORMAT = frozenset(
    {"additionalmodelrequestfields", "generationconfig", "nvext", "options", "outputconfig", "params", "text"}
)
_WITH_TOOLS = frozenset({"additionalmodelrequestfields", "toolconfig"})
_NO_FORMAT: tuple[Any, ...] = (None, False, "", "text", "text/plain", {}, {"type": "text"})
_CALLS = ("invoke", "ainvoke", "generate_prompt", "agenerate_prompt", "generate", "agenerate", "_convert_input")
_REFUSED = frozenset(
    {"callbacks", "tags", "metadata", "run_name", "run_id"}
)  # keywords that these take from the config
_INIT_CHAT_MODEL = ("langchain.chat_models.base", "_ConfigurableModel")  # by name: langchain is optional


def inside(
    model: Runnable[Any, Any],
    change: Callable[[BaseChatModel], Runnable[Any, Any]],
    config: RunnableConfig | None = None,
    rebind: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
) -> Runnable[Any, Any]:
    """Return the model with every chat model in it changed and the wrappers kept.

    Args:
        model: any Runnable. Parts without a chat model are returned as they are.
        change: from a chat model to its replacement.
        config: chooses among configurable fields and alternatives; None leaves the choice to later calls, which change
            what they choose.
        rebind: from the keywords of a binding to those that replace them.
    """
    if _is_configurable(model):
        if config is not None:
            return inside(_choice(model, config), change, config, rebind)
        return ChosenLater(default=model, choose=lambda config: inside(_choice(model, config), change, config, rebind))
    if isinstance(model, BaseChatModel):
        return change(model)
    below = _config_below(model, config)
    changed = _with_parts(model, {}, lambda part, _: inside(part, change, below, rebind))
    if isinstance(changed, RunnableBindingBase):
        bound: Runnable[Any, Any] = changed.model_copy(update={"kwargs": rebind(changed.kwargs)})
        return bound
    return changed


def _with_parts(model: Runnable[Any, Any], kwargs: Mapping[str, Any], change: _Change) -> Runnable[Any, Any]:
    """Return the model with every part changed that may make its reply.

    `change` takes the part, and the keywords that a call of the model with `kwargs` gives it.
    """
    if isinstance(model, RunnableWithFallbacks):
        first, *rest = (change(part, kwargs) for part in (model.runnable, *model.fallbacks))
        return model.model_copy(update={"runnable": first, "fallbacks": rest})
    if isinstance(model, RunnableBranch):
        branches = [(condition, change(part, kwargs)) for condition, part in model.branches]
        return model.model_copy(update={"branches": branches, "default": change(model.default, kwargs)})
    if isinstance(model, RouterRunnable):
        return RouterRunnable({name: change(part, {}) for name, part in model.runnables.items()})
    if isinstance(model, RunnableSequence):
        steps = [change(part, {} if place else kwargs) for place, part in enumerate(model.steps)]
        return RunnableSequence(*steps, name=model.name)
    if isinstance(model, RunnableBindingBase):
        copied: Runnable[Any, Any] = model.model_copy(update={"bound": change(model.bound, {**model.kwargs, **kwargs})})
        return copied
    return model


def _parts(model: Runnable[Any, Any], kwargs: Mapping[str, Any]) -> list[tuple[Runnable[Any, Any], Mapping[str, Any]]]:
    """Return the parts that may make a model's reply, each with the keywords that a call with `kwargs` gives it."""
    parts: list[tuple[Runnable[Any, Any], Mapping[str, Any]]] = []

    def collect(part: Runnable[Any, Any], keywords: Mapping[str, Any]) -> Runnable[Any, Any]:
        parts.append((part, keywords))
        return part

    _with_parts(model, kwargs, collect)
    return parts


def _config_below(model: Runnable[Any, Any], config: RunnableConfig | None) -> RunnableConfig | None:
    """Return the config of a model's parts in a call with a config: a binding adds its own."""
    if isinstance(model, RunnableBindingBase) and config is not None:
        return merge_configs(model.config, config)
    return config


class ChosenLater(DynamicRunnable[Any, Any]):
    """What the config of a call chooses.

    Attributes:
        default: stands for it where there is no call.
        choose: from the config of a call to what is called.
    """

    default: Any
    choose: Callable[[RunnableConfig], Runnable[Any, Any]]

    @override
    def _prepare(self, config: RunnableConfig | None = None) -> tuple[Runnable[Any, Any], RunnableConfig]:
        config = ensure_config(config)
        return self.choose(config), config


def is_chosen_later(model: Runnable[Any, Any]) -> bool:
    """Whether the config of a call chooses any of the chat models inside."""
    return any(map(_is_configurable, runnables_in(model)))


def _is_configurable(model: Runnable[Any, Any]) -> bool:
    """Whether the config of a call chooses the model: what `configurable_fields` and `init_chat_model` return."""
    return isinstance(model, DynamicRunnable) or (type(model).__module__, type(model).__name__) == _INIT_CHAT_MODEL


def _choice(model: Any, config: RunnableConfig | None) -> Runnable[Any, Any]:
    try:
        chosen: Runnable[Any, Any] = (
            model.prepare(config)[0] if isinstance(model, DynamicRunnable) else model._model(config)  # noqa: SLF001
        )
    except Exception as error:
        if config is None:
            return _Unchosen(chooser=model)
        if isinstance(error, TypeError) and "argument: 'model'" in str(error):  # LangChain's own function lacks it
            raise ConfigurationError(_UNCHOSEN) from error
        raise
    return chosen


class _Unchosen(BaseChatModel):
    """Stands for a chat model that only the config of a call can choose.

    Attributes:
        chooser: the configurable model.
    """

    chooser: Any

    @property
    def _llm_type(self) -> str:
        return "chosen-by-the-call"

    @override
    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return LangSmithParams(ls_model_type="chat")

    @override
    def _generate(self, *_: Any, **__: Any) -> ChatResult:
        raise ConfigurationError(_UNCHOSEN)


def innermost(model: Runnable[Any, Any]) -> Runnable[Any, Any]:
    """Return the Runnable inside bindings and retries: a chat model, if there is one."""
    while isinstance(model, RunnableBindingBase):
        model = model.bound
    return model


def chat_models_in(model: Runnable[Any, Any], config: RunnableConfig | None = None) -> list[BaseChatModel]:
    """Return the chat models inside, in the order of their calls; a config chooses among alternatives."""
    if _is_configurable(model):
        return chat_models_in(_choice(model, config), config)
    if isinstance(model, BaseChatModel):
        return [model]
    below = _config_below(model, config)
    return [chat for part, _ in _parts(model, {}) for chat in chat_models_in(part, below)]


def runnables_in(model: Runnable[Any, Any]) -> Iterator[Runnable[Any, Any]]:
    """Yield the model and everything in its wrappers. Attributes and functions of other Runnables are not searched."""
    yield model
    parts: list[Any] = [part for part, _ in _parts(model, {})]
    if isinstance(model, DynamicRunnable):
        parts.append(model.default)
    if isinstance(model, RunnableConfigurableAlternatives):
        parts += model.alternatives.values()
    if isinstance(model, RunnableParallel):
        parts += model.steps__.values()
    for part in parts:
        if isinstance(part, Runnable):
            yield from runnables_in(part)


def name_of(model: Runnable[Any, Any], config: RunnableConfig | None = None) -> str:
    """Return the name of a model in receipts: provider and name of each chat model inside, in the order of calls."""
    names: dict[str, None] = {}
    for chat in chat_models_in(model, config):
        params = chat._get_ls_params()  # noqa: SLF001 - LangChain's one way to a model's name
        name = params.get("ls_model_name") or chat._llm_type  # noqa: SLF001
        names[f"{params.get('ls_provider', type(chat).__name__)}/{name}"] = None
    return ", ".join(names) or type(innermost(model)).__name__


def chat_model_of(model: Runnable[Any, Any]) -> BaseChatModel:
    """Return the chat model inside that is called first.

    Raises:
        ConfigurationError: there is none.
    """
    chats = chat_models_in(model)
    if not chats:
        raise ConfigurationError(
            f"There is no chat model in {type(model).__name__}, nor in what it wraps. Give a LangChain chat model."
        )
    return chats[0]


def settings_of(model: Runnable[Any, Any]) -> dict[str, Any]:
    """Return the keywords that bindings around a model add to every call; the outer one wins."""
    settings: dict[str, Any] = {}
    while isinstance(model, RunnableBindingBase):
        settings = {**model.kwargs, **settings}
        model = model.bound
    return settings


def offers_tools(model: Runnable[Any, Any], config: RunnableConfig | None, kwargs: Mapping[str, Any]) -> bool:
    """Whether a request of a call with these keywords offers tools, bound or set anywhere in the model."""
    return any(map(_has_tools, _requests(model, config, kwargs)))


def _has_tools(settings: Mapping[str, Any]) -> bool:
    within = (_as_mapping(value) for name, value in settings.items() if _word(name) in _WITH_TOOLS)
    return any(settings.get(name) for name in _TOOLS) or any(map(_has_tools, within))


def asks_for_format(model: Runnable[Any, Any], config: RunnableConfig | None, kwargs: Mapping[str, Any]) -> bool:
    """Whether a request of a call with these keywords asks for a format, in any provider's words."""
    return any(map(_has_format, _requests(model, config, kwargs)))


def _has_format(settings: Mapping[str, Any]) -> bool:
    for name, value in settings.items():
        word = _word(name)
        if word in _FORMATS and value not in _NO_FORMAT:
            return True
        if word in _WITH_FORMAT and _has_format(_as_mapping(value)):
            return True
    return False


def _word(name: str) -> str:
    return str(name).replace("_", "").lower()


def _requests(
    model: Runnable[Any, Any], config: RunnableConfig | None, kwargs: Mapping[str, Any]
) -> Iterator[Mapping[str, Any]]:
    """Yield the settings of each request that a call with these keywords may make; the outer keyword wins."""
    if _is_configurable(model):
        yield from _requests(_choice(model, config), config, kwargs)
    elif parts := _parts(model, kwargs):
        for part, keywords in parts:
            yield from _requests(part, _config_below(model, config), keywords)
    else:
        fields = vars(model) if isinstance(model, BaseChatModel) else {}
        request = {**fields, **_as_mapping(fields.get("model_kwargs")), **kwargs}
        if own := _as_mapping(fields.get("output_config")):
            request["output_config"] = {**own, **_as_mapping(request["output_config"])}  # as langchain-anthropic does
        yield {**request, **_as_mapping(request.get("extra_body"))}


def of_one_draw(settings: Mapping[str, Any], k: int) -> dict[str, Any]:
    """Return settings for a request whose first draw is the k-th: one reply of it, and seeds of its own.

    >>> of_one_draw({"n": 3, "extra_body": {"seed": 5, "n": 3}}, 2)
    {'extra_body': {'seed': 7}}
    """
    changed = {name: value for name, value in settings.items() if name not in COPIES}
    for name, value in changed.items():
        if name in SEEDS and isinstance(value, int):
            changed[name] = value + k
        elif name in SETTINGS and isinstance(value, Mapping):
            changed[name] = of_one_draw(value, k)
    return changed


def _as_mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


class Untraced(Runnable[LanguageModelInput, BaseMessage]):
    """A chat model whose calls are no runs: no callback counts them a second time.

    Cache, rate limiter and output version are the model's own.
    """

    def __init__(self, model: BaseChatModel) -> None:
        self.model = model

    @cached_property
    def _with_signatures(self) -> Any:
        whole = [(one._generate_with_cache, one._agenerate_with_cache) for one in (type(self.model), _WithSignatures)]  # noqa: SLF001
        return _WithSignatures(self.model) if whole[0] == whole[1] else self.model

    @override
    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> BaseMessage:
        return run(self.generate(messages_of(input), kwargs, BLOCKING))[0].message

    @override
    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> BaseMessage:
        return (await self.generate(messages_of(input), kwargs, AWAITING))[0].message

    async def generate(
        self, messages: list[BaseMessage], kwargs: Mapping[str, Any], waiter: Waiter, run_manager: Any = None
    ) -> list[ChatGeneration]:
        """Return all replies of one request, which has a run if it is one of `runs_without_handlers`."""
        # LangChain keeps these for tracers, and from the model.
        keywords = {name: value for name, value in kwargs.items() if name not in _FOR_TRACERS}
        # Not `generate(callbacks=[])`: its run would still reach the callbacks of configure hooks.
        result = await waiter.either(
            lambda: self._with_signatures._generate_with_cache(messages, run_manager=run_manager, **keywords),  # noqa: SLF001
            lambda: self._with_signatures._agenerate_with_cache(messages, run_manager=run_manager, **keywords),  # noqa: SLF001
        )
        generations: list[ChatGeneration] = result.generations
        return generations


class _WithSignatures:
    """A chat model as two methods of LangChain's see it, with the signatures of its own methods read once.

    LangChain reads them in every call, which takes longer than the rest of these methods.
    """

    _generate_with_cache = BaseChatModel._generate_with_cache  # noqa: SLF001
    _agenerate_with_cache = BaseChatModel._agenerate_with_cache  # noqa: SLF001

    def __init__(self, model: BaseChatModel) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @cached_property
    def _generate(self) -> Callable[..., Any]:
        return _with_signature(self._model._generate)  # noqa: SLF001

    @cached_property
    def _agenerate(self) -> Callable[..., Any]:
        return _with_signature(self._model._agenerate)  # noqa: SLF001


def _with_signature(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does what a method does, and that tells its signature at once; or the method."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    try:
        call.__signature__ = inspect.signature(method)  # type: ignore[attr-defined]
    except NameError:  # from Python 3.14 on, for annotations that only type checkers know
        return method
    return call


async def runs_without_handlers(
    model: Runnable[Any, Any], prompts: list[list[BaseMessage]], config: RunnableConfig, waiter: Waiter
) -> list[Any]:
    """Return a run of the model for each prompt if no callback handles it, else an empty list.

    LangChain prepares the arguments of callbacks even if there are none, which takes longer than a fast model does.
    With these runs, `Untraced` returns what the model itself would return, without that work.
    """
    if not _is_plain(model) or not all(isinstance(one.content, str) for prompt in prompts for one in prompt):
        return []
    chat: Any = innermost(model)
    metadata = {**config.get("metadata", {}), **chat._get_ls_params(**settings_of(model))}  # noqa: SLF001 - as above
    tags = config.get("tags"), chat.tags

    def manager(kind: Any) -> Any:
        return kind.configure(config.get("callbacks"), chat.callbacks, chat.verbose, *tags, metadata, chat.metadata)

    def begin() -> list[Any]:
        callbacks = manager(CallbackManager)
        return [] if callbacks.handlers else callbacks.on_chat_model_start({}, prompts)

    async def abegin() -> list[Any]:
        callbacks = manager(AsyncCallbackManager)
        return [] if callbacks.handlers else await callbacks.on_chat_model_start({}, prompts)

    return await waiter.either(begin, abegin)


def _is_plain(model: Runnable[Any, Any]) -> bool:
    """Whether a call does what LangChain's chat model does: only keywords are bound, and no method is overridden."""
    if settings_of(model).keys() & _REFUSED:
        return False
    while isinstance(model, RunnableBindingBase):
        if model.config or model.config_factories or not _inherits(model, RunnableBinding, ("invoke", "ainvoke")):
            return False
        model = model.bound
    return _inherits(model, BaseChatModel, _CALLS)


def _inherits(model: Any, ancestor: type, methods: tuple[str, ...]) -> bool:
    own = type(model)
    return issubclass(own, ancestor) and all(getattr(own, name) is getattr(ancestor, name) for name in methods)
