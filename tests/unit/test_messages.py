"""Inputs of a chain become messages, chat templates read text alone, and copies share nothing that can change."""

import itertools
import threading

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolCall, ToolMessage
from langchain_core.messages.ai import add_usage
from langchain_core.prompt_values import StringPromptValue

from llm_auction_chain import ConfigurationError, PromptError
from llm_auction_chain.messages import (
    as_turns,
    copies_of,
    messages_of,
    public_reply,
    shown_to_agents,
    total_counts,
    total_usage,
)

RICH = AIMessage(
    [{"type": "text", "text": "a"}],
    tool_calls=[ToolCall(name="buy", args={"items": ["pick"]}, id="1")],
    response_metadata={"deep": {"list": [{"x": 1}]}, "tokens": [1, 2]},
    usage_metadata={"input_tokens": 1, "output_tokens": 1, "total_tokens": 2},
)


class Odd(AIMessage):
    """A message with a field that is no JSON."""

    where: set = set()  # noqa: RUF012 - pydantic copies it


def local(**fields):
    """Return a message of a class that cannot be pickled."""

    class Local(AIMessage):
        pass

    return Local(**fields)


@pytest.mark.parametrize("given", [
    "Hi", StringPromptValue(text="Hi"), [HumanMessage("Hi")], [("human", "Hi")], [{"role": "user", "content": "Hi"}],
])  # fmt: skip
def test_an_input_in_any_spelling_becomes_messages(given):
    assert messages_of(given) == [HumanMessage("Hi")]


@pytest.mark.parametrize("given", [None, 7, {"text": "Hi"}, [7], [("nobody", "Hi")]])
def test_an_input_that_is_no_prompt_is_refused(given):
    with pytest.raises(PromptError):
        messages_of(given)


@pytest.mark.parametrize("message", [
    AIMessage("", tool_calls=[{"name": "buy", "args": {}, "id": "1"}]),
    HumanMessage([{"type": "image", "url": "https://pictures.example/1"}]),
])  # fmt: skip
def test_a_chat_template_is_given_text_alone(message):
    with pytest.raises(ConfigurationError, match="Reader"):
        as_turns([message], "Reader")
    with pytest.raises(PromptError):
        as_turns([], "Reader")


def test_what_a_model_thought_is_no_text_of_its_turn():
    thought = AIMessage([{"type": "reasoning", "reasoning": "Hm"}, {"type": "text", "text": "Hi"}])
    assert as_turns([SystemMessage("Be brief."), thought], "Reader")[1] == {"role": "assistant", "content": "Hi"}


def spoil(value):
    """Change every dict and list within."""
    if isinstance(value, dict):
        for inner in list(value.values()):
            spoil(inner)
        value["spoilt"] = True
    if isinstance(value, list):
        for inner in list(value):
            spoil(inner)
        value.append("spoilt")


@pytest.mark.parametrize("message", [
    RICH, HumanMessage("x", id="1", name="n"), Odd("a", where={1}), AIMessage("a", extra={"more": [1]}),
    AIMessage("a", additional_kwargs={"t": (1, [2])}), local(content="a", response_metadata={"deep": [{}]}),
])  # fmt: skip
def test_copies_are_equal_of_the_same_kind_and_share_nothing_mutable(message):
    copies = copies_of([], [message])
    (_, (first,)), (_, (second,)) = copies(), copies()
    assert type(first) is type(message)
    assert first == second == message
    assert first.model_fields_set == message.model_fields_set
    assert first.model_dump() == message.model_dump()
    first.content = "other"
    for value in {**first.__dict__, **(first.__pydantic_extra__ or {})}.values():
        spoil(value)
    first.another = 1
    assert second == message
    assert second.model_fields_set == message.model_fields_set


def test_a_message_that_cannot_be_copied_is_shared_and_one_that_holds_itself_is_copied():
    lock = threading.Lock()
    cyclic = AIMessage("b")
    cyclic.response_metadata["self"] = cyclic.response_metadata
    _, (shared, copied) = copies_of([], [AIMessage("a", response_metadata={"raw": lock}), cyclic])()
    assert shared.response_metadata["raw"] is lock
    assert copied.response_metadata["self"] is copied.response_metadata is not cyclic.response_metadata


USAGE = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}


def test_token_counts_add_up_where_they_are_there():
    assert total_usage([]) is total_usage([None]) is None
    assert total_usage([None, USAGE, USAGE]) == {"input_tokens": 2, "output_tokens": 4, "total_tokens": 6}
    assert total_usage([{}]) == {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    assert total_usage([7, {"input_tokens": 3}])["input_tokens"] == 3  # a provider may put anything there


@pytest.mark.parametrize("odd", [
    {"output_token_details": {"reasoning": None}}, {"output_token_details": None}, {"output_tokens": None},
    {"output_tokens": 2.0, "output_token_details": {"reasoning": 1.0}}, {"output_token_details": 3},
    {"output_token_details": {"reasoning": 1.5}},
    {"output_token_details": {"reasoning": {"deep": 1}}}, {"output_tokens": {"text": 2}}, {"output_tokens": "2"},
    {"total_tokens": float("nan")}, {"output_tokens": float("inf")}, {"output_token_details": {"reasoning": [1]}},
    {"cost": 10**400},
])  # fmt: skip
def test_token_counts_of_any_shape_add_up_in_any_order(odd):
    details = {"reasoning": 1, "audio": 0}
    for usages in itertools.permutations([USAGE, {**USAGE, "output_token_details": details}, {**USAGE, **odd}]):
        total = total_usage(usages)
        assert total["input_tokens"] == 3
        assert all(isinstance(total[name], int) for name in USAGE)
        assert set(total) <= {*USAGE, "output_token_details", "cost"}
        assert add_usage(total, total)["input_tokens"] == 6  # LangChain's, of whole numbers alone


def test_numbers_add_up_as_deep_as_they_are_and_nothing_else_counts():
    deep = {"a": 1, "of": {"b": 0.5, "c": {"d": 2}}, "e": None}
    assert total_counts([None, deep, {"of": {"c": {"d": 1.5}}}, "x", {"e": 4}]) == {
        "a": 1, "of": {"b": 0.5, "c": {"d": 3.5}}, "e": 4,
    }  # fmt: skip


def test_agents_see_content_and_calls_and_nothing_of_other_auctions():
    call = {"name": "buy", "args": {"n": 1}, "id": "1", "type": "tool_call"}
    metadata = {"auction": {"seed": 7}, "logprobs": {"content": [{"logprob": -1.0}]}, "token_usage": {"prompt": 9},
                "finish_reason": "length", "model_name": "m"}  # fmt: skip
    reply = AIMessage("a", tool_calls=[call], name="n", id="i", response_metadata=metadata, usage_metadata=USAGE,
                      additional_kwargs={"refusal": "no"})  # fmt: skip
    seen = shown_to_agents(reply)
    bare = AIMessage("a", tool_calls=[call], name="n", id="i", additional_kwargs={"refusal": "no"})
    assert seen == bare.model_copy(update={"response_metadata": {"finish_reason": "length", "model_name": "m"}})
    assert reply.response_metadata == metadata
    tool = ToolMessage("42", tool_call_id="1", artifact={"private": 1}, status="error")
    assert shown_to_agents(tool) == ToolMessage("42", tool_call_id="1", status="error")
    human = HumanMessage("x", response_metadata={"auction": {}})
    assert shown_to_agents(human) == HumanMessage("x")


@pytest.mark.parametrize("tokens", [[1, 2], None, 3])
def test_agents_see_the_tokens_of_a_reply_and_not_how_likely_each_prompt_makes_it(tokens):
    figures = {"token_logprobs": [-1.0, -2.0], "condition_totals": [-3.0, -4.0], "basis": "sampler", "complete": True}
    reply = AIMessage("a", response_metadata={"logprobs": {**figures, "token_ids": tokens}})
    seen = shown_to_agents(reply).response_metadata.get("logprobs", {})
    assert seen.get("token_ids") == (tokens if isinstance(tokens, list) else None)
    assert not {-1.0, -2.0, -3.0, -4.0} & {*seen.get("token_logprobs", ()), *seen.get("condition_totals", ())}


def test_a_public_reply_has_what_the_user_may_know_and_nothing_else():
    call = ToolCall(name="buy", args={"items": ["pick"]}, id="1")
    auction = {"schema": "s", "sponsored": True, "sponsors": ["B"], "disclosure": "Ad: B.", "payments": [1], "seed": 7}
    reply = AIMessage(
        [{"type": "text", "text": "a"}],
        id="run-1",
        tool_calls=[call],
        response_metadata={
            "model_name": "m", "finish_reason": "stop", "token_usage": {"total_tokens": 9}, "logprobs": {"content": []},
            "auction": auction,
        },
        usage_metadata={"input_tokens": 1, "output_tokens": 1, "total_tokens": 2},
    )  # fmt: skip
    public = public_reply(reply)
    assert (public.content, public.id, public.tool_calls) == (reply.content, "run-1", reply.tool_calls)
    assert public.response_metadata == {
        "model_name": "m", "finish_reason": "stop", "auction": {"sponsored": True, "disclosure": "Ad: B."}
    }  # fmt: skip
    assert public.usage_metadata is None
    assert reply.response_metadata["auction"] is auction  # the platform's own message keeps all
    assert reply.usage_metadata is not None
    assert public_reply(public) == public


def test_a_public_reply_of_no_auction_has_none():
    assert public_reply(AIMessage("Hi", response_metadata={"x": 1})) == AIMessage("Hi")
    assert public_reply(AIMessage("Hi", response_metadata={"auction": "x"})).response_metadata == {}
    assert public_reply(HumanMessage("Hi")) == HumanMessage("Hi")
