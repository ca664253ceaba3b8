"""Messages: from a chain's input, for a chat template, copied for each agent; and the sum of their token counts."""

import json
import math
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, TypeVar, cast

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, convert_to_messages
from langchain_core.messages.ai import UsageMetadata
from langchain_core.prompt_values import PromptValue
from pydantic_core import to_jsonable_python

from llm_auction_chain.errors import ConfigurationError, PromptError

__all__ = [
    "ENDS",
    "as_turns",
    "calls_of",
    "copies_of",
    "json_of",
    "messages_of",
    "parsed",
    "public_reply",
    "shown_to_agents",
    "total_counts",
    "total_usage",
    "usage_by_model",
]

M = TypeVar("M", bound=BaseMessage)

_NOTHING: dict[str, Any] = {  # what LangChain counts in whole numbers
    "input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "input_token_details": {}, "output_token_details": {},
}  # fmt: skip
ENDS = ("finish_reason", "stop_reason", "stopReason", "done_reason", "status", "incomplete_details")
"""The metadata that say how a reply ended, in the words of OpenAI, Anthropic, Bedrock, Ollama and the Responses API."""
_CALLS = frozenset({"function_call", "tool_call", "tool_use"})  # types of content blocks
_SHOWN = frozenset({"model_name", *ENDS})
_PUBLIC = ("sponsored", "disclosure")  # what a user may know of an auction
_ROLES = ((HumanMessage, "user"), (AIMessage, "assistant"), (SystemMessage, "system"))


def messages_of(value: LanguageModelInput) -> list[BaseMessage]:
    """Return the input as messages: a string, messages in any spelling, or a PromptValue.

    Raises:
        PromptError: it is none of these.

    >>> messages_of("Hi")[0].text
    'Hi'
    """
    if isinstance(value, PromptValue):
        return value.to_messages()
    if isinstance(value, str):
        return convert_to_messages([("human", value)])
    if isinstance(value, Sequence):
        try:
            return convert_to_messages(value)
        except (NotImplementedError, TypeError, ValueError) as error:
            raise PromptError(f"The input holds something that is no message: {error}") from error
    raise PromptError(f"The input is {type(value).__name__}; give a string, a list of messages or a PromptValue.")


def as_turns(messages: Sequence[BaseMessage], reader: str) -> list[dict[str, str]]:
    """Return mappings with "role" and "content". Nothing is dropped silently.

    Args:
        messages: system, human and AI messages with text.
        reader: the class that will read them, for error messages.

    Raises:
        PromptError: there is no message.
        ConfigurationError: there is a tool's message, a call of tools, or a picture.

    >>> as_turns([SystemMessage("Be brief."), HumanMessage("Hi")], "ChatTransformers")
    [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Hi'}]
    """
    if not messages:
        raise PromptError("There is nothing to reply to; give at least one message.")
    return [{"role": _role(message, reader), "content": _content(message, reader)} for message in messages]


def calls_of(message: AIMessage) -> list[tuple[str, Any]]:
    """Return name and arguments of every call of a tool or a function, valid or not.

    >>> calls_of(AIMessage("", additional_kwargs={"function_call": {"name": "add", "arguments": '{"a": 1}'}}))
    [('add', {'a': 1})]
    """
    calls = [(str(call["name"]), call["args"]) for call in (*message.tool_calls, *message.invalid_tool_calls)]
    legacy = message.additional_kwargs.get("function_call")
    if not calls and isinstance(legacy, dict):  # beside other calls it repeats one of them
        calls = [(str(legacy.get("name")), parsed(legacy.get("arguments")))]
    blocks = () if calls or isinstance(message.content, str) else message.content
    for block in blocks:  # of a provider's package that leaves them there
        if not isinstance(block, dict) or block.get("type") not in _CALLS:
            continue
        arguments = next((block[name] for name in ("input", "args", "arguments") if name in block), None)
        calls.append((str(block.get("name")), parsed(arguments)))
    return calls


def parsed(arguments: Any) -> Any:
    """Return the arguments of a call by name, where a provider left them as JSON; others as they are."""
    try:
        values = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        return arguments
    return values if isinstance(values, dict) else arguments


def json_of(value: Any) -> str:
    """Return arguments of a call as JSON, with dates, decimals, bytes and sets as pydantic spells them.

    >>> json_of({"price": 1.5}), json_of({"tags": {"a"}, "data": b"a"})
    ('{"price": 1.5}', '{"tags": ["a"], "data": "YQ=="}')
    """
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return json.dumps(to_jsonable_python(value, bytes_mode="base64", serialize_unknown=True))


def shown_to_agents(message: M) -> M:
    """Return a message as agents see it: role, content, calls of tools, tokens, and how a reply ended.

    Other metadata tell of other agents: those of an earlier reply have its auction, and token counts and
    log-probabilities depend on the descriptions in the prompt that a reply was drawn from.

    >>> shown_to_agents(AIMessage("Hi", response_metadata={"finish_reason": "stop", "auction": {}})).response_metadata
    {'finish_reason': 'stop'}
    """
    metadata = {name: value for name, value in message.response_metadata.items() if name in _SHOWN}
    tokens = message.response_metadata.get("logprobs")
    if isinstance(tokens, dict) and isinstance(ids := tokens.get("token_ids"), list):  # what log-ratios are of
        figures = {"token_logprobs": [-math.inf] * len(ids), "condition_totals": []}
        metadata["logprobs"] = {**tokens, **figures}
    private = {"usage_metadata": None, "artifact": None}
    kept = {name: value for name, value in private.items() if vars(message).get(name) is not None}
    return message.model_copy(update={"response_metadata": metadata, **kept})


def public_reply(reply: M) -> M:
    """Return a copy of an auction's reply that may leave the platform, for a user or another service.

    It has the reply's content, calls of tools and id, the model's name and how the reply ended. Of the auction it has
    whether the reply is sponsored, and the disclosure. Payments, agents, seeds, log-probabilities and the tokens of
    hidden calls stay behind, and so does all metadata that is not named here. A message without an auction is treated
    alike.

    >>> auction = {"sponsored": True, "disclosure": "Ad: B.", "seed": 7, "payments": [{"agent": "B", "amount": 1.5}]}
    >>> public_reply(AIMessage("Hi", response_metadata={"model_name": "m", "auction": auction})).response_metadata
    {'model_name': 'm', 'auction': {'sponsored': True, 'disclosure': 'Ad: B.'}}
    """
    metadata = {name: value for name, value in reply.response_metadata.items() if name in _SHOWN}
    if isinstance(auction := reply.response_metadata.get("auction"), Mapping):
        metadata["auction"] = {name: auction[name] for name in _PUBLIC if name in auction}
    usage = {"usage_metadata": None} if getattr(reply, "usage_metadata", None) is not None else {}
    return reply.model_copy(update={"response_metadata": metadata, **usage})


def copies_of(
    prompt: Sequence[BaseMessage], replies: Sequence[AIMessage]
) -> Callable[[], tuple[list[BaseMessage], list[AIMessage]]]:
    """Return a function that makes deep copies of a prompt and its replies, for one agent at each call.

    They are read from a pickle, which is five times as fast as `deepcopy`. Messages that cannot be pickled are deep
    copies, and a message that cannot be copied either, such as one with a provider's connection, is shared.

    >>> copies = copies_of([], [AIMessage("Hi", additional_kwargs={"a": [1]})])
    >>> (_, (mine,)), (_, (yours,)) = copies(), copies()
    >>> mine.additional_kwargs["a"].append(2)
    >>> yours.additional_kwargs
    {'a': [1]}
    """
    try:
        pickled = pickle.dumps((list(prompt), list(replies)))
        first = [pickle.loads(pickled)]  # noqa: S301 - this process wrote it
    except Exception:  # noqa: BLE001 - a class that cannot be pickled may raise anything
        return lambda: ([*map(_deep_copy, prompt)], [*map(_deep_copy, replies)])

    def copies() -> Any:
        try:
            return first.pop()
        except IndexError:
            return pickle.loads(pickled)  # noqa: S301

    return copies


def total_usage(usages: Iterable[UsageMetadata | None]) -> UsageMetadata | None:
    """Return the sum of the token counts that are there, in whole numbers; None where none is.

    LangChain's `add_usage` raises an error for a null and for a float.

    >>> usage = UsageMetadata(input_tokens=1, output_tokens=2, total_tokens=3)
    >>> total_usage([usage, None, {**usage, "output_tokens": None, "output_token_details": {"reasoning": 4}}])
    {'input_tokens': 2, 'output_tokens': 2, 'total_tokens': 6, 'output_token_details': {'reasoning': 4}}
    """
    if not (there := [usage for usage in usages if isinstance(usage, Mapping)]):
        return None
    total = total_counts([_NOTHING, *there])
    total |= {name: _in_whole_numbers(total[name]) for name in _NOTHING}
    unused = {name for name in _NOTHING if total[name] == {} and not any(name in usage for usage in there)}
    return cast("UsageMetadata", {name: count for name, count in total.items() if name not in unused})


def _in_whole_numbers(count: Any) -> Any:
    if isinstance(count, Mapping):
        return {name: _in_whole_numbers(inner) for name, inner in count.items()}
    return int(count)


def usage_by_model(replies: Iterable[AIMessage]) -> dict[str, UsageMetadata]:
    """Return the usage of each model that made some of the replies, by its name."""
    usages: dict[str, list[UsageMetadata | None]] = {}
    for reply in replies:
        usages.setdefault(str(reply.response_metadata.get("model_name", "")), []).append(reply.usage_metadata)
    totals = ((name, total_usage(counts)) for name, counts in usages.items())
    return {name: total for name, total in totals if total is not None}


def total_counts(counts: Iterable[Any]) -> dict[str, Any]:
    """Return the sum of mappings, name by name and as deep as they go. What is no finite number does not count.

    >>> total_counts([{"a": 1, "of": None}, {"a": 0.5, "of": {"b": 2}}, None])
    {'a': 1.5, 'of': {'b': 2}}
    """
    total: dict[str, Any] = {}
    for name, value in ((name, value) for one in counts if isinstance(one, Mapping) for name, value in one.items()):
        before = total.get(name)
        if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
            if not isinstance(before, dict):
                total[name] = (before or 0) + value
        elif isinstance(value, Mapping) and (before is None or isinstance(before, dict)):
            total[name] = total_counts([before, value])
    return total


def _deep_copy(message: M) -> M:
    try:
        return deepcopy(message)
    except Exception:  # noqa: BLE001 - as above
        return message.model_copy()


def _content(message: BaseMessage, reader: str) -> str:
    """Return the text of a message, without the reasoning of an AI message."""
    blocks = [block for block in message.content if isinstance(block, dict)]
    strange = {str(block.get("type")) for block in blocks} - {"text"}
    if strange and not isinstance(message, AIMessage):
        kinds = ", ".join(sorted(strange))
        raise ConfigurationError(f"{reader} reads text only, and a {message.type} message has {kinds}.")
    return str(message.text)


def _role(message: BaseMessage, reader: str) -> str:
    if isinstance(message, AIMessage) and message.tool_calls:
        raise ConfigurationError(f"an AI message that calls tools; {reader} reads and draws text, without tools")
    for kind, role in _ROLES:
        if isinstance(message, kind):
            return role
    raise ConfigurationError(f"a {message.type} message; {reader} reads system, human and AI messages")
