"""A reward for structured output: what the object in a reply is worth."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.json import parse_json_markdown
from pydantic import BaseModel
from typing_extensions import override

from llm_auction_chain.rewards.base import Prompt, Replies, Reward
from llm_auction_chain.validators import refuse, takes

__all__ = ["ParsedReward"]


@dataclass(frozen=True)
class ParsedReward(Reward):
    """Worth what a function says of the object that a reply holds, as `with_structured_output` parses it.

    The object is in a call of the schema or in a text of JSON, whichever way the model gives it. A reply that holds no
    such object is worth 0.

    Attributes:
        schema: as for `with_structured_output`: a Pydantic class, a TypedDict, or a JSON schema with a title.
        worth: `(prompt, parsed) -> float`, money. What is parsed is an instance of a Pydantic class, otherwise a dict.

    Raises:
        ConfigurationError: the schema is none of these, or `worth` cannot be called with (prompt, parsed).

    >>> class Lesson(BaseModel):
    ...     '''A guitar lesson.'''
    ...     school: str
    ...     price: float
    >>> reward = ParsedReward(Lesson, lambda prompt, lesson: 2.0 if lesson.school == "TuneTown" else 0.0)
    >>> reward.score([], [AIMessage('{"school": "TuneTown", "price": 20}'), AIMessage('{"school": "TuneTown"}')])
    [2.0, 0.0]
    """

    schema: type | dict[str, Any]
    worth: Callable[[list[BaseMessage], Any], float]

    def __post_init__(self) -> None:
        """Check the settings."""
        try:
            _ = self._name
        except Exception as error:
            expected = "a Pydantic class, a TypedDict, or a JSON schema with a title"
            raise refuse("ParsedReward.schema", expected, self.schema) from error
        if not callable(self.worth):
            raise refuse("ParsedReward.worth", "a function (prompt, parsed)", self.worth)
        takes("ParsedReward.worth", self.worth, "(prompt, parsed)")

    @cached_property
    def _name(self) -> str:
        """The name under which a model calls the schema."""
        return str(convert_to_openai_tool(self.schema)["function"]["name"])

    @override
    def score(self, prompt: Prompt, replies: Replies) -> list[float]:
        parsed = [self._parsed(reply) for reply in replies]
        return [0.0 if one is None else self.worth(list(prompt), one) for one in parsed]

    def _parsed(self, reply: AIMessage) -> Any:
        """Return the object in a reply; None where there is none."""
        calls = [call["args"] for call in reply.tool_calls if call["name"] == self._name]
        try:
            data = calls[0] if calls else parse_json_markdown(reply.text)
            if isinstance(self.schema, type) and issubclass(self.schema, BaseModel):
                return self.schema.model_validate(data)
        except ValueError:
            return None
        return data if isinstance(data, dict) else None
