"""Tools and schemas: the model's own bindings, with the auction in the model's place."""

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig, RunnableParallel, RunnableSequence
from langchain_core.runnables.base import RunnableBindingBase
from typing_extensions import override

from llm_auction_chain.auction.result import AuctionResult
from llm_auction_chain.candidates import chat_model_of, innermost, inside
from llm_auction_chain.errors import ConfigurationError

__all__ = ["AuctionBinding", "with_schema", "with_tools"]

AnyRunnable = Runnable[Any, Any]


class AuctionBinding(RunnableBinding[LanguageModelInput, AIMessage]):  # type: ignore[no-redef]  # LangChain's own
    """An auction with keywords and a config bound to it, which `run` and `arun` are given as all calls are."""

    @classmethod
    @override
    def get_lc_namespace(cls) -> list[str]:
        return cls.__module__.split(".")

    def run(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AuctionResult:
        """Hold an auction and return all of it."""
        auction: Any = self.bound
        result: AuctionResult = auction.run(input, self._merge_configs(config), **{**self.kwargs, **kwargs})
        return result

    async def arun(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AuctionResult:
        """Do as `run`, awaiting."""
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
    """Return the model's own pipeline from prompt to parsed value, with the auction in the model's place.

    A reply of a schema's shape runs nothing, so it is auctioned though it may come as a call. It is parsed, so nothing
    is put into its text.
    """
    disclosure = auction.disclosure.model_copy(update={"place": "metadata"})
    auction = auction.model_copy(update={"on_tool_calls": "auction", "disclosure": disclosure})
    _, put = _split(chat_model_of(auction.model), schema, kwargs)
    return put(_over(auction, lambda chat: _split(chat, schema, kwargs)[0]))


def _over(auction: Any, bind: Callable[[BaseChatModel], AnyRunnable]) -> AnyRunnable:
    """Return the auction over a model that was bound further.

    Where there is one chat model, what it would be bound to is bound to the auction: tracers then see it in its run.
    """
    chat = innermost(auction.model)
    bound = bind(chat) if isinstance(chat, BaseChatModel) else None
    if isinstance(bound, RunnableBindingBase) and bound.bound is chat:
        over: AnyRunnable = auction.bind(**bound.kwargs)
    else:
        over = auction.model_copy(update={"model": inside(auction.model, bind)})
    return over


def _split(
    chat: BaseChatModel, schema: Any, kwargs: dict[str, Any]
) -> tuple[AnyRunnable, Callable[[AnyRunnable], AnyRunnable]]:
    """Return what stands at the head of a model's pipeline, and what puts something else there."""
    try:
        pipeline = chat.with_structured_output(schema, **kwargs)
    except NotImplementedError as error:
        raise NotImplementedError(f"{type(chat).__name__} has no structured output.") from error
    found = _headed(pipeline, chat)
    if found is None:
        raise ConfigurationError(
            f"The structured output of {type(chat).__name__} does not begin with the model, so no auction can take its "
            "place. Bind the format yourself, and put the parser after the auction: auction | parser."
        )
    return found


def _headed(
    pipeline: AnyRunnable, chat: BaseChatModel
) -> tuple[AnyRunnable, Callable[[AnyRunnable], AnyRunnable]] | None:
    if innermost(pipeline) is chat:
        return pipeline, lambda new: new
    if isinstance(pipeline, RunnableSequence) and (found := _headed(pipeline.first, chat)):
        head, put = found
        rest = [*pipeline.middle, pipeline.last]
        return head, lambda new: RunnableSequence(put(new), *rest, name=pipeline.name)
    if isinstance(pipeline, RunnableParallel):
        steps = dict(pipeline.steps__)
        for name, step in steps.items():
            if found := _headed(step, chat):
                head, put = found
                return head, lambda new, name=name, put=put: RunnableParallel({**steps, name: put(new)})
    return None
