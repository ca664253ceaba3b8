"""Messages as a model's chat template reads them: text, by system, human and AI."""

from collections.abc import Sequence

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from llm_auction_chain.errors import ConfigurationError, PromptError

__all__ = ["as_turns"]

_ROLES = ((HumanMessage, "user"), (AIMessage, "assistant"), (SystemMessage, "system"))


def as_turns(messages: Sequence[BaseMessage], reader: str) -> list[dict[str, str]]:
    """Return mappings with "role" and "content", or say what `reader` cannot read: nothing is dropped silently.

    Raises:
        PromptError: there is no message.
        ConfigurationError: a tool's message, a call of tools, or a picture.

    >>> as_turns([SystemMessage("Be brief."), HumanMessage("Hi")], "ChatTransformers")
    [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Hi'}]
    """
    if not messages:
        raise PromptError("There is nothing to reply to; give at least one message.")
    return [{"role": _role(message, reader), "content": _content(message, reader)} for message in messages]


def _content(message: BaseMessage, reader: str) -> str:
    """Return the text of a message; of an AI message that also reasoned, what it said."""
    blocks = [block for block in message.content if isinstance(block, dict)]
    strange = {str(block.get("type")) for block in blocks} - {"text"}
    if strange and not isinstance(message, AIMessage):
        raise ConfigurationError(f"a {message.type} message with {', '.join(sorted(strange))}; {reader} reads text")
    return str(message.text)


def _role(message: BaseMessage, reader: str) -> str:
    if isinstance(message, AIMessage) and message.tool_calls:
        raise ConfigurationError(f"an AI message that calls tools; {reader} reads and draws text, without tools")
    for kind, role in _ROLES:
        if isinstance(message, kind):
            return role
    raise ConfigurationError(f"a {message.type} message; {reader} reads system, human and AI messages")
