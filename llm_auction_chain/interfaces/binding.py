"""Bindings of an auction: keywords, tools and schemas, with the auction in the place of its model."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.runnables import (
    Runnable,
    RunnableBinding,
    RunnableConfig,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
    RunnableSequence,
)
from langchain_core.runnables.base import RunnableBindingBase
from typing_extensions import override

from llm_auction_chain.auction.result import AuctionResult
from llm_auction_chain.candidates import ChosenLater, chat_model_of, chat_models_in, innermost, inside, is_chosen_later
from llm_auction_chain.errors import ConfigurationError

__all__ = ["AuctionBinding", "with_schema", "with_tools"]

AnyRunnable = Runnable[Any, Any]

_MADE_BY = "llm_auction_chain.made_by"  # in a reply's metadata until it is parsed


class AuctionBinding(RunnableBinding[LanguageModelInput, AIMessage]):  # type: ignore[no-redef]  # LangChain's own
    """An auction with bound keywords and a bound config. They apply to `run` and `arun` as to every other call."""

    @classmethod
    @override
    def get_lc_namespace(cls) -> list[str]:
        return cls.__module__.split(".")

    def run(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AuctionResult:
        """Hold an auction and return the whole result."""
        auction: Any = self.bound
        result: AuctionResult = auction.run(input, self._merge_configs(config), **{**self.kwargs, **kwargs})
        return result

    async def arun(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AuctionResult:
        """Do what `run` does, in an event loop."""
        auction: Any = self.bound
        result: AuctionResult = await auction.arun(input, self._merge_configs(config), **{**self.kwargs, **kwargs})
        return result


def with_tools(auction: Any, tools: Sequence[Any], **kwargs: Any) -> AnyRunnable:
    """Return the auction over a model that may call tools."""

    def bind(chat: BaseChatModel) -> AnyRunnable:
        try:
            return chat.bind_tools(tools, **kwargs)
        except NotImplementedError as error:
            raise NotImplementedError(
                f"{type(chat).__name__} has no tools; give a model that can call them."
            ) from error

    return _over(auction, bind)


def with_schema(auction: Any, schema: Any, **kwargs: Any) -> AnyRunnable:
    """Return the model's own pipeline from prompt to parsed value, with the auction in the place of the model.

    A reply of the schema's shape runs no tool, so it is auctioned even where it is a tool call. It is parsed, so no
    disclosure is put into its text.
    """
    disclosure = auction.disclosure.model_copy(update={"place": "metadata"})
    auction = auction.model_copy(update={"on_tool_calls": "auction", "disclosure": disclosure})
    if is_chosen_later(auction.model):
        return ChosenLater(
            default=auction, choose=lambda config: _pipeline(_with_choice(auction, config), schema, kwargs)
        )
    return _pipeline(auction, schema, kwargs)


def _with_choice(auction: Any, config: RunnableConfig) -> Any:
    return auction.model_copy(update={"model": inside(auction.model, lambda chat: chat, config)})


def _pipeline(auction: Any, schema: Any, kwargs: dict[str, Any]) -> AnyRunnable:
    """Return the pipeline of the auction's model; of several models, each parses the replies that it made."""
    if len(chat_models_in(auction.model)) < 2:  # noqa: PLR2004 - several
        _, put = _split(chat_model_of(auction.model), schema, kwargs)
        return put(_over(auction, lambda chat: _split(chat, schema, kwargs)[0]))
    parsers: list[AnyRunnable] = []

    def bind(chat: BaseChatModel) -> AnyRunnable:
        head, put = _split(chat, schema, kwargs)
        parsers.append(put(RunnablePassthrough()))
        return RunnableSequence(head, RunnableLambda(partial(_with_maker, len(parsers) - 1)))

    def parser(reply: AIMessage) -> AnyRunnable:
        place: int = reply.response_metadata.pop(_MADE_BY, 0)
        return parsers[place]

    return RunnableSequence(_over(auction, bind), RunnableLambda(parser))


def _with_maker(place: int, reply: AIMessage) -> AIMessage:
    """Return the reply with the place of the model that made it."""
    return reply.model_copy(update={"response_metadata": {**reply.response_metadata, _MADE_BY: place}})


def _over(auction: Any, bind: Callable[[BaseChatModel], AnyRunnable]) -> AnyRunnable:
    """Return the auction over the model with a further binding.

    Where there is only one chat model, its keywords are bound to the auction instead, so that tracers see them in the
    auction's run.
    """
    chat = innermost(auction.model)
    bound = bind(chat) if isinstance(chat, BaseChatModel) else None
    if isinstance(bound, RunnableBindingBase) and bound.bound is chat:
        over: AnyRunnable = auction.bind(**bound.kwargs)
    else:
        over = auction.model_copy(update={"model": _bound_anew(auction.model, bind)})
    return over


def _bound_anew(model: AnyRunnable, bind: Callable[[BaseChatModel], AnyRunnable]) -> AnyRunnable:
    """Return the model with every chat model in it bound, in place of what earlier bindings give the same keywords."""
    fresh: set[str] = set()

    def change(chat: BaseChatModel) -> AnyRunnable:
        bound = bind(chat)
        fresh.update(bound.kwargs if isinstance(bound, RunnableBindingBase) else ())
        return bound

    return inside(model, change, rebind=lambda earlier: {key: earlier[key] for key in earlier if key not in fresh})


def _split(
    chat: BaseChatModel, schema: Any, kwargs: dict[str, Any]
) -> tuple[AnyRunnable, Callable[[AnyRunnable], AnyRunnable]]:
    """Return the head of a model's pipeline, and a function that replaces the head."""
    try:
        pipeline = chat.with_structured_output(schema, **kwargs)
    except NotImplementedError as error:
        raise NotImplementedError(f"{type(chat).__name__} has no structured output; give a model that has.") from error
    split = _split_at_head(pipeline, chat)
    if split is None:
        raise ConfigurationError(
            f"The structured output of {type(chat).__name__} must begin with the model, whose place the auction takes. "
            "Bind the format yourself, and put the parser after the auction: auction | parser."
        )
    return split


def _split_at_head(
    pipeline: AnyRunnable, chat: BaseChatModel
) -> tuple[AnyRunnable, Callable[[AnyRunnable], AnyRunnable]] | None:
    if innermost(pipeline) is chat:
        return pipeline, lambda new: new
    if isinstance(pipeline, RunnableSequence) and (split := _split_at_head(pipeline.first, chat)):
        head, put = split
        rest = [*pipeline.middle, pipeline.last]
        return head, lambda new: RunnableSequence(put(new), *rest, name=pipeline.name)
    if isinstance(pipeline, RunnableParallel):
        steps = dict(pipeline.steps__)
        for name, step in steps.items():
            if split := _split_at_head(step, chat):
                head, put = split
                return head, lambda new, name=name, put=put: RunnableParallel({**steps, name: put(new)})
    return None
