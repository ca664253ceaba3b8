"""A chat model that says, turn by turn, one of the replies that a test lists."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, SkipValidation
from typing_extensions import override

from llm_auction_chain.checked_model import CheckedModel
from llm_auction_chain.validators import Check, refuse

__all__ = ["ScriptedChatModel"]


def _turns(name: str, value: Any) -> Any:
    if isinstance(value, str) or not value or not all(value) or any(isinstance(turn, str) for turn in value):
        raise refuse(name, "a list of turns, each a list of at least one reply", value)
    return value


class ScriptedChatModel(CheckedModel, BaseChatModel):
    """Draw each turn's reply from a list of possible replies, all equally likely.

    It stands for a provider's model in tests of chains and agents: it takes tools, and with them structured output. It
    keeps no state: the turn is the number of replies that the prompt already has, and the last turn repeats.

    Attributes:
        turns: for each turn at least one reply, a text or a message, which may call tools.

    Raises:
        ConfigurationError: there is no turn, or a turn has no reply.

    >>> model = ScriptedChatModel(turns=[["Hello!", "Good morning!"], ["Goodbye."]])
    >>> model.invoke("Hi", seed=1).text, model.invoke([("human", "Hi"), ("ai", "Hello!"), ("human", "Bye")]).text
    ('Hello!', 'Goodbye.')
    """

    model_config = ConfigDict(extra="ignore", strict=False)

    native_n: ClassVar[bool] = True
    checks: ClassVar[Mapping[str, Check]] = {"turns": _turns}

    turns: SkipValidation[Sequence[Sequence[AIMessage | str]]]

    @override
    def bind_tools(
        self, tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool], **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return the model with the tools bound. What it replies does not depend on them."""
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,  # noqa: ARG002
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        *,
        n: int = 1,
        seed: int | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> ChatResult:
        turn = sum(isinstance(message, AIMessage) for message in messages)
        replies = self.turns[min(turn, len(self.turns) - 1)]
        rng = np.random.default_rng(secrets.randbits(53) if seed is None else seed)
        drawn = [replies[k] for k in rng.integers(len(replies), size=n)]
        return ChatResult(
            generations=[
                ChatGeneration(message=AIMessage(reply) if isinstance(reply, str) else reply.model_copy())
                for reply in drawn
            ]
        )

    @property
    def _llm_type(self) -> str:
        return "scripted"
