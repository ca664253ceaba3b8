"""A chat model inside what users wrap around it: bindings, retries, fallbacks, sequences, alternatives."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import (
    RouterRunnable,
    Runnable,
    RunnableBranch,
    RunnableConfig,
    RunnableLambda,
    RunnableSequence,
)
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.configurable import (
    DynamicRunnable,
    RunnableConfigurableAlternatives,
    RunnableConfigurableFields,
)
from langchain_core.runnables.fallbacks import RunnableWithFallbacks
from langchain_core.tools import BaseTool
from typing_extensions import override

from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.messages import messages_of
from llm_auction_chain.waiting import AWAITING, BLOCKING, Waiter, run

__all__ = [
    "Untraced",
    "all_in",
    "asks_for_a_shape",
    "chat_model_of",
    "chat_models_in",
    "innermost",
    "inside",
    "name_of",
    "offers_tools",
    "settings_of",
]

_TOLD_TRACERS = frozenset({"ls_structured_output_format", "structured_output_format"})
_MADE_BY_CALL = ("langchain.chat_models.base", "_ConfigurableModel")  # by name: langchain is optional


def inside(
    model: Runnable[Any, Any],
    change: Callable[[BaseChatModel], Runnable[Any, Any]],
    config: RunnableConfig | None = None,
) -> Runnable[Any, Any]:
    """Return the model with every chat model in it changed; what is wrapped around them stays.

    Args:
        model: any Runnable. What is no chat model, and holds none, is returned as it is.
        change: from a chat model to what takes its place.
        config: chooses among configurable fields and alternatives; None leaves the choice to later calls.
    """
    if _is_chosen_by_call(model):
        return _choosing(model, change) if config is None else inside(_choice(model, config), change, config)
    if isinstance(model, BaseChatModel):
        return change(model)
    return _each_part(model, lambda part: inside(part, change, config))


def _each_part(
    model: Runnable[Any, Any], change: Callable[[Runnable[Any, Any]], Runnable[Any, Any]]
) -> Runnable[Any, Any]:
    """Return the model with every part changed that may make its reply."""
    if isinstance(model, RunnableWithFallbacks):
        first, *rest = map(change, (model.runnable, *model.fallbacks))
        return model.model_copy(update={"runnable": first, "fallbacks": rest})
    if isinstance(model, RunnableBranch):
        branches = [(condition, change(one)) for condition, one in model.branches]
        return model.model_copy(update={"branches": branches, "default": change(model.default)})
    if isinstance(model, RouterRunnable):
        return RouterRunnable({name: change(one) for name, one in model.runnables.items()})
    if isinstance(model, RunnableSequence):
        return RunnableSequence(*map(change, model.steps), name=model.name)
    if isinstance(model, RunnableBindingBase):
        copied: Runnable[Any, Any] = model.model_copy(update={"bound": change(model.bound)})
        return copied
    return model


def _is_chosen_by_call(model: Runnable[Any, Any]) -> bool:
    """Whether a call's config says which model it is: what `configurable_fields` and `init_chat_model` return."""
    return isinstance(model, DynamicRunnable) or (type(model).__module__, type(model).__name__) == _MADE_BY_CALL


def _choice(model: Any, config: RunnableConfig | None) -> Runnable[Any, Any]:
    try:
        chosen: Runnable[Any, Any] = (
            model.prepare(config)[0] if isinstance(model, DynamicRunnable) else model._model(config)  # noqa: SLF001
        )
    except Exception:
        if config is not None:
            raise
        return ChosenByCall(chooser=model)
    return chosen


class ChosenByCall(BaseChatModel):
    """Stands for the chat model that a call's config has to choose: before, nothing of it is known.

    Attributes:
        chooser: the model that the calls are made to.
    """

    chooser: Any

    @property
    def _llm_type(self) -> str:
        return "chosen-by-the-call"

    @override
    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return LangSmithParams(ls_model_type="chat")

    @override
    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.chooser.bind_tools(tools, **kwargs)

    @override
    def _generate(self, *_: Any, **__: Any) -> ChatResult:
        raise ConfigurationError("The config of a call chooses the model, and this one is no call's.")


def _choosing(model: Runnable[Any, Any], change: Callable[[BaseChatModel], Runnable[Any, Any]]) -> Runnable[Any, Any]:
    """Return the model with every chat model in it changed, among which calls choose as before."""
    default = model.default if isinstance(model, DynamicRunnable) else _choice(model, None)
    changed = inside(default, change)
    if isinstance(model, RunnableConfigurableAlternatives):
        others = {name: _chosen(one, change) for name, one in model.alternatives.items()}
        return model.model_copy(update={"default": changed, "alternatives": others})
    if isinstance(changed, RunnableBindingBase) and changed.bound is default:
        bound: Runnable[Any, Any] = changed.model_copy(update={"bound": model})
        return bound
    if isinstance(model, DynamicRunnable) and type(changed) is type(default):
        return model.model_copy(update={"default": changed})
    return changed  # what could be chosen is gone


def _chosen(alternative: Any, change: Callable[[BaseChatModel], Runnable[Any, Any]]) -> Any:
    if isinstance(alternative, Runnable):
        return inside(alternative, change)
    return lambda: inside(alternative(), change)


def innermost(model: Runnable[Any, Any]) -> Runnable[Any, Any]:
    """Return what bindings, retries and configurable fields are wrapped around; a chat model, where there is one."""
    while isinstance(model, RunnableBindingBase | RunnableConfigurableFields):
        model = model.bound if isinstance(model, RunnableBindingBase) else model.default
    return model


def chat_models_in(model: Runnable[Any, Any], config: RunnableConfig | None = None) -> list[BaseChatModel]:
    """Return the chat models inside, the one that is asked first in front; a config chooses among alternatives."""
    found: list[BaseChatModel] = []

    def note(chat: BaseChatModel) -> BaseChatModel:
        found.append(chat)
        return chat

    inside(model, note, config)
    return found


def all_in(model: Runnable[Any, Any]) -> Iterator[Runnable[Any, Any]]:
    """Yield the model and all that it is made of, as its attributes and its functions' variables show it; no tools."""
    left: list[Any] = [model]
    seen: set[int] = set()
    while left:
        one = left.pop()
        if not isinstance(one, Runnable | Mapping | list | tuple) or isinstance(one, BaseTool) or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, list | tuple):
            left += one
        elif isinstance(one, Mapping):
            left += one.values()
        else:
            yield one
            left += one.deps if isinstance(one, RunnableLambda) else vars(one).values()


def name_of(model: Runnable[Any, Any], config: RunnableConfig | None = None) -> str:
    """Return what a receipt calls a model: provider and name of each chat model inside, the first asked in front."""
    names: dict[str, None] = {}
    for chat in chat_models_in(model, config):
        told = chat._get_ls_params()  # noqa: SLF001 - LangChain's one way to a model's name
        name = told.get("ls_model_name") or chat._llm_type  # noqa: SLF001
        names[f"{told.get('ls_provider', type(chat).__name__)}/{name}"] = None
    return ", ".join(names) or type(innermost(model)).__name__


def chat_model_of(model: Runnable[Any, Any]) -> BaseChatModel:
    """Return the chat model inside that is asked first.

    Raises:
        ConfigurationError: there is none.
    """
    found = chat_models_in(model)
    if not found:
        raise ConfigurationError(
            f"There is no chat model in {type(model).__name__}, nor in what it wraps. Give a LangChain chat model."
        )
    return found[0]


def settings_of(model: Runnable[Any, Any]) -> dict[str, Any]:
    """Return the keywords that bindings around a model add to every call; the outer one wins."""
    settings: dict[str, Any] = {}
    while isinstance(model, RunnableBindingBase):
        settings = {**model.kwargs, **settings}
        model = model.bound
    return settings


def offers_tools(model: Runnable[Any, Any], config: RunnableConfig | None, kwargs: Mapping[str, Any]) -> bool:
    """Whether a call with these keywords lets the model call tools, bound anywhere in it; the outer keyword wins."""
    return _is_given(("tools", "functions"), model, config, kwargs)


def asks_for_a_shape(model: Runnable[Any, Any], config: RunnableConfig | None, kwargs: Mapping[str, Any]) -> bool:
    """Whether a call with these keywords asks for a reply that is parsed, in a format bound anywhere in the model."""
    return _is_given(("response_format", *_TOLD_TRACERS), model, config, kwargs)


def _is_given(
    names: Sequence[str], model: Runnable[Any, Any], config: RunnableConfig | None, kwargs: Mapping[str, Any]
) -> bool:
    """Whether a call with these keywords hands the model one of these names; the outer keyword wins."""
    if _is_chosen_by_call(model):
        return _is_given(names, _choice(model, config), config, kwargs)
    handed = _handed(model, kwargs)
    if not handed:
        return any(kwargs.get(name) for name in names)
    return any(_is_given(names, part, config, keywords) for part, keywords in handed)


def _handed(model: Runnable[Any, Any], kwargs: Mapping[str, Any]) -> list[tuple[Runnable[Any, Any], Mapping[str, Any]]]:
    """Return the parts that may make a model's reply, each with the keywords that a call with these hands it."""
    if isinstance(model, RunnableWithFallbacks):
        return [(part, kwargs) for part in (model.runnable, *model.fallbacks)]
    if isinstance(model, RunnableBranch):
        return [(part, kwargs) for part in (*(part for _, part in model.branches), model.default)]
    if isinstance(model, RouterRunnable):
        return [(part, {}) for part in model.runnables.values()]
    if isinstance(model, RunnableSequence):
        return [(part, {} if place else kwargs) for place, part in enumerate(model.steps)]
    if isinstance(model, RunnableBindingBase):
        return [(model.bound, {**model.kwargs, **kwargs})]
    return []


class Untraced(Runnable[LanguageModelInput, BaseMessage]):
    """A chat model whose calls are nobody's runs: no callback hears of them, so nobody counts them twice.

    Cache, rate limiter and output version are the model's own.
    """

    def __init__(self, model: BaseChatModel) -> None:
        self.model = model

    @override
    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> BaseMessage:
        return run(self.generate(messages_of(input), kwargs, BLOCKING))[0].message

    @override
    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> BaseMessage:
        return (await self.generate(messages_of(input), kwargs, AWAITING))[0].message

    async def generate(
        self, messages: list[BaseMessage], kwargs: Mapping[str, Any], waiter: Waiter
    ) -> list[ChatGeneration]:
        """Return all replies of one request."""
        # LangChain's one way to a model without a run: `generate(callbacks=[])` would still be heard by configure hooks
        keywords = _for_the_model(kwargs)
        result = await waiter.either(
            lambda: self.model._generate_with_cache(messages, **keywords),  # noqa: SLF001
            lambda: self.model._agenerate_with_cache(messages, **keywords),  # noqa: SLF001
        )
        return result.generations


def _for_the_model(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of a call without those that LangChain keeps for tracers, and from the model."""
    return {name: value for name, value in kwargs.items() if name not in _TOLD_TRACERS}
