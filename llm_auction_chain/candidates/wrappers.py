"""A chat model inside what users wrap around it: bindings, retries, fallbacks, sequences, alternatives."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSequence
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import ensure_config, patch_config
from langchain_core.runnables.configurable import (
    DynamicRunnable,
    RunnableConfigurableAlternatives,
    RunnableConfigurableFields,
)
from langchain_core.runnables.fallbacks import RunnableWithFallbacks
from typing_extensions import override

from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.turns import messages_of

__all__ = [
    "Untraced",
    "asks_for_a_shape",
    "chat_model_of",
    "chat_models_in",
    "hidden",
    "innermost",
    "inside",
    "name_of",
    "offers_tools",
    "settings_of",
]

_HIDDEN = "nostream"  # LangGraph's own tag
_TOLD_TRACERS = frozenset({"ls_structured_output_format", "structured_output_format"})
_MADE_BY_CALL = ("langchain.chat_models.base", "_ConfigurableModel")  # by name: langchain is optional
_SHOWS_STREAMS = "tap_output_iter"  # what every handler has that feeds astream_events, astream_log or LangGraph


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
    if isinstance(model, RunnableWithFallbacks):
        first, *rest = [inside(one, change, config) for one in (model.runnable, *model.fallbacks)]
        return model.model_copy(update={"runnable": first, "fallbacks": rest})
    if isinstance(model, RunnableSequence):
        return RunnableSequence(*(inside(step, change, config) for step in model.steps), name=model.name)
    if isinstance(model, RunnableBindingBase):
        copied: Runnable[Any, Any] = model.model_copy(update={"bound": inside(model.bound, change, config)})
        return copied
    return model


def _is_chosen_by_call(model: Runnable[Any, Any]) -> bool:
    """Whether a call's config says which model it is: what `configurable_fields` and `init_chat_model` return."""
    return isinstance(model, DynamicRunnable) or (type(model).__module__, type(model).__name__) == _MADE_BY_CALL


def _choice(model: Any, config: RunnableConfig | None) -> Runnable[Any, Any]:
    chosen: Runnable[Any, Any] = (
        model.prepare(config)[0] if isinstance(model, DynamicRunnable) else model._model(config)  # noqa: SLF001
    )
    return chosen


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
    if isinstance(model, RunnableBindingBase):
        return _is_given(names, model.bound, config, {**model.kwargs, **kwargs})
    if isinstance(model, RunnableWithFallbacks):
        return any(_is_given(names, one, config, kwargs) for one in (model.runnable, *model.fallbacks))
    if isinstance(model, RunnableSequence):
        first, *rest = model.steps
        return _is_given(names, first, config, kwargs) or any(_is_given(names, step, config, {}) for step in rest)
    return any(kwargs.get(name) for name in names)


class Untraced(Runnable[LanguageModelInput, BaseMessage]):
    """A chat model whose calls are nobody's runs: no callback hears of them, so nobody counts them twice.

    Cache, rate limiter and output version are the model's own.
    """

    def __init__(self, model: BaseChatModel) -> None:
        self.model = model

    @override
    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> BaseMessage:
        return self.generate(messages_of(input), kwargs)[0].message

    @override
    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> BaseMessage:
        return (await self.agenerate(messages_of(input), kwargs))[0].message

    # LangChain's one way to a model without a run: `generate(callbacks=[])` would still be heard by configure hooks
    def generate(self, messages: list[BaseMessage], kwargs: Mapping[str, Any]) -> list[ChatGeneration]:
        """Return all replies of one request."""
        return self.model._generate_with_cache(messages, **_for_the_model(kwargs)).generations  # noqa: SLF001

    async def agenerate(self, messages: list[BaseMessage], kwargs: Mapping[str, Any]) -> list[ChatGeneration]:
        """Do as `generate`, awaiting."""
        drawn = await self.model._agenerate_with_cache(messages, **_for_the_model(kwargs))  # noqa: SLF001
        return drawn.generations


def _for_the_model(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of a call without those that LangChain keeps for tracers, and from the model."""
    return {name: value for name, value in kwargs.items() if name not in _TOLD_TRACERS}


def hidden(config: RunnableConfig | None) -> RunnableConfig:
    """Return the config for child calls, whose replies may lose: no stream shows them; tracers hear of them still.

    LangGraph and `astream_events` listen by handlers; those are left out, as are those that no child inherits.
    LangGraph's own tag stands beside.
    """
    config = ensure_config(config)
    child = patch_config(config)
    child["tags"] = [*(tag for tag in config.get("tags", []) if tag != _HIDDEN), _HIDDEN]
    heard = config.get("callbacks")
    if isinstance(heard, BaseCallbackManager):
        quiet = heard.copy()
        inherited = [handler for handler in heard.inheritable_handlers if not hasattr(handler, _SHOWS_STREAMS)]
        quiet.set_handlers(inherited, inherit=True)
        child["callbacks"] = quiet
    elif heard is not None:
        child["callbacks"] = [handler for handler in heard if not hasattr(handler, _SHOWS_STREAMS)]
    return child
