"""OpenAI's Python client finds at our address what it finds at OpenAI's."""

import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import openai
import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel

from llm_auction_chain import AuctionRunnable
from llm_auction_chain.server import Limits, create_app
from tests.server.kitchen import LONG, PRIVATE, QUESTION, Gate, Kitchen, agents, serving

ORDER = {
    "type": "function",
    "function": {
        "name": "order",
        "description": "Orders dishes.",
        "parameters": {
            "type": "object",
            "properties": {"dish": {"type": "string"}, "number": {"type": "integer"}},
            "required": ["dish", "number"],
        },
    },
}
WAIT = [{"role": "user", "content": "Please wait."}]
PICTURE = "data:image/png;base64,iVBORw0KGgo="


class Order(BaseModel):
    dish: str
    number: int
    kind: Literal["eggs", "oats"]


def check_order(order):
    assert isinstance(order, Order)
    assert order.dish == order.kind


def complete(client, messages=QUESTION, model="ads", **settings):
    return client.chat.completions.create(model=model, messages=messages, **settings)


def test_a_completion_has_its_reply_its_usage_and_its_auction(client):
    answer = complete(client)
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content.startswith("Today we have ")
    assert (choice.finish_reason, choice.message.tool_calls, choice.message.refusal) == ("stop", None, None)
    assert (answer.object, answer.model) == ("chat.completion", "ads")
    assert answer.id.startswith("chatcmpl-")
    assert answer.auction.keys() == {"id", "sponsored", "sponsors", "disclosure"}
    assert answer.auction["sponsors"] == [{"eggs": "EggCo", "oats": "OatCo"}[choice.message.content.split()[3][:-1]]]


def test_usage_is_that_of_all_candidates_of_the_auction(client):
    usage = complete(client).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (16, 16, 32)
    assert usage.prompt_tokens_details.cached_tokens == 4
    assert usage.completion_tokens_details.reasoning_tokens == 8


async def test_an_async_completion_is_the_same(client, async_client):
    answer = await complete(async_client, seed=3)
    assert answer.choices == complete(client, seed=3).choices


def test_a_completion_in_process_needs_no_socket(site, client):
    key = site.keys["web"]
    with openai.OpenAI(base_url="http://testserver/v1", api_key=key, http_client=TestClient(site.app)) as inside:
        answer = complete(inside, seed=3)
        chunks = list(complete(inside, seed=3, stream=True))
    assert answer.choices == complete(client, seed=3).choices
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.choices[0].message.content


def check_stream(chunks, *, usage):
    first, *middle, last = chunks[:-1] if usage else chunks
    assert first.choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content for chunk in middle).startswith("Today we have ")
    assert [chunk.choices[0].finish_reason for chunk in (first, *middle, last)] == [None] * (1 + len(middle)) + ["stop"]
    assert last.choices[0].delta.content is None
    assert last.auction["sponsored"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    if usage:
        assert chunks[-1].choices == []
        assert chunks[-1].usage.total_tokens == 32
    assert all(chunk.usage is None for chunk in (first, *middle, last))


@pytest.mark.parametrize("usage", [False, True])
def test_a_stream_has_a_role_a_text_an_end_and_its_usage_where_that_is_wanted(client, usage):
    settings = {"stream_options": {"include_usage": True}} if usage else {}
    with complete(client, stream=True, **settings) as stream:
        check_stream(list(stream), usage=usage)


async def test_an_async_stream_is_the_same(async_client):
    async with await complete(async_client, stream=True, stream_options={"include_usage": True}) as stream:
        check_stream([chunk async for chunk in stream], usage=True)


def test_the_stream_helper_joins_a_stream_into_a_completion(client):
    with client.chat.completions.stream(model="ads", messages=QUESTION, seed=4) as stream:
        kinds = {event.type for event in stream}
        whole = stream.get_final_completion()
    assert {"content.delta", "content.done"} <= kinds
    assert whole.choices[0].message.content == complete(client, seed=4).choices[0].message.content


@pytest.mark.parametrize("model", ["ads", "ads/tools"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_is_answered(client, model, stream):
    messages = list(QUESTION)
    if stream:
        with client.chat.completions.stream(model=model, messages=messages, tools=[ORDER]) as events:
            choice = events.until_done().get_final_completion().choices[0]
    else:
        choice = complete(client, messages, model, tools=[ORDER]).choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert (call.type, call.function.name) == ("function", "order")
    assert json.loads(call.function.arguments).keys() == {"dish", "number"}
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "2 eggs"}]
    answer = complete(client, messages, model, tools=[ORDER])
    assert answer.choices[0].message.content.startswith("The kitchen says: 2 eggs")


@pytest.mark.parametrize(("model", "sold"), [("ads", False), ("ads/tools", True)])
def test_calls_of_tools_are_auctioned_where_the_server_says_so(site, model, sold):
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key=site.keys["ops"], max_retries=0) as operator:
        answer = complete(operator, model=model, tools=[ORDER])
    assert (answer.auction["diagnostics"]["candidates"] > 1) == sold
    assert bool(answer.auction["payments"]) == sold


@pytest.mark.parametrize("choice", ["auto", "required", "none", {"type": "function", "function": {"name": "order"}}])
def test_a_tool_choice_is_kept(client, choice):
    message = complete(client, tools=[ORDER], tool_choice=choice).choices[0].message
    assert bool(message.tool_calls) == (choice != "none")


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_is_an_object_of_json_where_that_is_wanted(client, stream):
    answer = complete(client, response_format={"type": "json_object"}, stream=stream)
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    else:
        text = answer.choices[0].message.content
    assert json.loads(text)["dish"] in ("eggs", "oats")


def test_a_reply_is_parsed_into_a_pydantic_model(client):
    answer = client.chat.completions.parse(model="ads", messages=QUESTION, response_format=Order)
    check_order(answer.choices[0].message.parsed)


def test_a_streamed_reply_is_parsed_into_a_pydantic_model(client):
    with client.chat.completions.stream(model="ads", messages=QUESTION, response_format=Order) as stream:
        answer = stream.get_final_completion()
    check_order(answer.choices[0].message.parsed)


def test_arguments_of_a_tool_are_parsed_into_a_pydantic_model(client):
    tool = openai.pydantic_function_tool(Order)
    answer = client.chat.completions.parse(model="ads", messages=QUESTION, tools=[tool])
    (call,) = answer.choices[0].message.tool_calls
    check_order(call.function.parsed_arguments)


def test_messages_of_all_roles_and_parts_reach_the_model(client):
    call = {"id": "c1", "type": "function", "function": {"name": "order", "arguments": '{"dish": "eggs"}'}}
    picture = {"type": "image_url", "image_url": {"url": PICTURE}}
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": "Order."},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
        {"role": "user", "content": [{"type": "text", "text": "Please repeat."}, picture]},
    ]
    text = complete(client, messages, temperature=0.5, top_p=0.9, max_tokens=9).choices[0].message.content
    heard = json.loads(text)
    assert [kind for kind, _ in heard["heard"]] == ["system", "system", "human", "ai", "tool", "human"]
    assert [content for _, content in heard["heard"][:5]] == ["Be kind.", "Be brief.", "Order.", "", "done"]
    assert heard["heard"][5][1][0] == {"type": "text", "text": "Please repeat."}
    assert heard["heard"][5][1][1]["image_url"]["url"] == PICTURE
    assert {name: heard["kwargs"][name] for name in ("temperature", "top_p", "max_tokens")} == {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 9,
    }


def test_a_reply_that_is_cut_off_says_so(client):
    for name in ("max_tokens", "max_completion_tokens"):
        assert complete(client, **{name: 1}).choices[0].finish_reason == "length"


def test_a_stop_ends_the_reply(client):
    for stop in (",", [",", "zebra"]):
        assert complete(client, stop=stop).choices[0].message.content in ("Today we have eggs", "Today we have oats")


def test_a_seed_repeats_the_reply(client):
    texts = [complete(client, seed=seed).choices[0].message.content for seed in (1, 1, 2, 3, 4)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_several_replies_are_auctions_of_their_own(client):
    answer = complete(client, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.auction["id"] for choice in answer.choices}) == 3
    assert answer.usage.total_tokens == 3 * 32
    assert not hasattr(answer, "auction")


def test_several_streamed_replies_are_told_apart_by_their_index(client):
    with complete(client, n=2, stream=True, seed=1) as stream:
        texts = {0: "", 1: ""}
        for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    assert list(texts.values()) == [choice.message.content for choice in complete(client, n=2, seed=1).choices]


def test_models_are_listed_and_retrieved(client):
    assert [model.id for model in client.models.list()] == ["ads", "ads/charged", "ads/strict", "ads/tools"]
    assert client.models.retrieve("ads/charged").id == "ads/charged"


def test_a_request_has_an_id(client):
    answers = [complete(client), client.models.list()]
    assert all(answer._request_id.startswith("req_") for answer in answers)
    with pytest.raises(openai.NotFoundError) as caught:
        complete(client, model="none")
    assert caught.value.request_id.startswith("req_")


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"logprobs": True}, "logprobs"),
        ({"temperature": 3}, "temperature"),
        ({"messages": []}, "messages"),
        ({"max_tokens": 101}, "max_tokens"),
        ({"n": 4}, "n"),
        ({"extra_body": {"colour": "red"}}, "colour"),
    ],
)
def test_a_request_that_cannot_be_is_a_bad_request_that_names_the_field(client, settings, param):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, **settings)
    assert (caught.value.status_code, caught.value.param) == (400, param)
    assert caught.value.type == "invalid_request_error"
    assert param in caught.value.message


def test_a_wrong_key_is_an_authentication_error(site, client):
    with pytest.raises(openai.AuthenticationError) as caught:
        complete(client.with_options(api_key="guess"))
    assert "guess" not in str(caught.value)


def test_an_owners_key_has_no_permission_to_ask(site, client):
    with pytest.raises(openai.PermissionDeniedError):
        complete(client.with_options(api_key=site.keys["eggs"]))
    with pytest.raises(openai.PermissionDeniedError) as caught:
        complete(client, extra_body={"auction": {"agents": []}})
    assert caught.value.param == "auction"


def test_an_operator_may_say_who_bids(site, client):
    bids = [{"name": "JamCo", "reward": {"mention": {"phrases": ["today"], "value": 1.0}}}]
    operator = client.with_options(api_key=site.keys["ops"])
    auction = complete(operator, extra_body={"auction": {"agents": bids}}).auction
    assert [payment["agent"] for payment in auction["payments"]] == ["JamCo"]


def test_a_model_that_there_is_not_is_not_found(client):
    for ask in (lambda: complete(client, model="none"), lambda: client.models.retrieve("none")):
        with pytest.raises(openai.NotFoundError) as caught:
            ask()
        assert caught.value.code == "model_not_found"


def test_a_body_that_is_too_large_is_an_error_with_its_status(client):
    with pytest.raises(openai.APIStatusError) as caught:
        complete(client, [{"role": "user", "content": "x" * 200_000}])
    assert caught.value.status_code == 413


def test_a_model_that_fails_is_an_internal_server_error_without_its_text(client):
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as caught:
            list(complete(client, [{"role": "user", "content": "Please fail."}], stream=stream))
        assert PRIVATE not in str(caught.value)
        assert caught.value.status_code == 503
    assert complete(client).choices


def test_an_error_within_a_stream_is_raised_by_the_client(client, gate):
    with complete(client, [{"role": "user", "content": "Please wait, then fail."}], stream=True) as stream:
        assert gate.reached.wait(LONG)  # the role has come, so the status is 200
        gate.open()
        with pytest.raises(openai.APIError) as caught:
            list(stream)
    assert PRIVATE not in str(caught.value)


def test_a_full_queue_is_a_rate_limit_that_a_client_waits_for(monkeypatch):
    gate = Gate()
    auction = AuctionRunnable(model=Kitchen(gate=gate), agents=agents(), reward_timeout=10.0)
    app = create_app(auction, limits=Limits(auctions=1, queue=0))
    waits = []

    def sleep(seconds):
        """Stand for the client's wait: the auction before ends in the meantime."""
        waits.append(seconds)
        gate.open()
        first.join(LONG)

    with serving(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="-", timeout=LONG) as client:
        first = threading.Thread(
            target=lambda: complete(client, [{"role": "user", "content": "wait"}], "llm-auction"), daemon=True
        )
        first.start()
        assert gate.reached.wait(LONG)
        with pytest.raises(openai.RateLimitError) as caught:
            complete(client.with_options(max_retries=0), model="llm-auction")
        retry_after = int(caught.value.response.headers["retry-after"])
        assert retry_after >= 1
        monkeypatch.setattr("openai._base_client.time.sleep", sleep)
        assert complete(client.with_options(max_retries=1), model="llm-auction").choices
    assert waits == [pytest.approx(retry_after, rel=0.3)]


def charges(ledger):
    return [entry.auction_id for entry in ledger.entries() if entry.kind == "charge"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_is_repeated_with_its_key_is_charged_once_and_answered_alike(site, client, stream):
    key = {"Idempotency-Key": f"breakfast-{stream}"}

    def ask(extra_headers=key):
        answer = complete(client, model="ads/charged", extra_headers=extra_headers, stream=stream)
        if not stream:
            return answer.id, answer.choices[0].message.content, answer.auction["id"]
        chunks = list(answer)
        return chunks[0].id, "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    before = len(set(charges(site.ledger)))
    assert ask() == ask()
    assert len(set(charges(site.ledger))) == before + 1
    assert ask({"Idempotency-Key": f"lunch-{stream}"})[0] != ask()[0]


def test_a_key_with_another_conversation_or_model_is_another_auction(client):
    key = {"Idempotency-Key": "several"}
    first = complete(client, model="ads/charged", extra_headers=key)
    second = complete(client, [{"role": "user", "content": "And for lunch?"}], "ads/charged", extra_headers=key)
    third = complete(client, extra_headers=key)
    assert len({answer.auction["id"] for answer in (first, second, third)}) == 3
    assert first.id != third.id


def test_a_key_whose_charge_was_taken_back_is_a_conflict_that_no_client_repeats(site, client):
    key, sent = {"Idempotency-Key": "reversed"}, []
    auction = complete(client, model="ads/strict", extra_headers=key).auction["id"]
    site.ledger.reverse(auction, reason="a complaint")
    with openai.DefaultHttpxClient(event_hooks={"request": [sent.append]}) as http_client:
        retrying = client.with_options(max_retries=3, http_client=http_client)
        with pytest.raises(openai.ConflictError) as caught:
            complete(retrying, model="ads/strict", extra_headers=key)
    assert caught.value.code == "idempotency_key_in_use"
    assert len(sent) == 1


def test_requests_with_one_key_at_once_are_charged_once_and_answered_alike(site, client, gate):
    before, key = len(set(charges(site.ledger))), {"Idempotency-Key": "at once"}
    with ThreadPoolExecutor(2) as pool:
        requests = [pool.submit(complete, client, WAIT, "ads/charged", extra_headers=key) for _ in range(2)]
        assert gate.reached.wait(LONG)
        gate.open(for_good=True)
        first, second = (request.result(LONG) for request in requests)
    assert (first.id, first.choices, first.auction) == (second.id, second.choices, second.auction)
    assert len(set(charges(site.ledger))) == before + 1


def test_a_request_repeated_after_a_time_limit_is_charged_once(site, client, gate):
    before, key = len(set(charges(site.ledger))), {"Idempotency-Key": "late"}
    with pytest.raises(openai.APITimeoutError):
        complete(client.with_options(timeout=0.5), WAIT, "ads/charged", extra_headers=key)
    assert gate.left.wait(LONG)
    gate.open(for_good=True)
    assert complete(client, WAIT, "ads/charged", extra_headers=key).choices
    assert len(set(charges(site.ledger))) == before + 1


def test_a_client_whose_time_is_over_is_not_charged(site, client, gate):
    before = site.money()
    with pytest.raises(openai.APITimeoutError):
        complete(client.with_options(timeout=0.5), WAIT, "ads/charged")
    assert gate.left.wait(LONG)
    site.settled(before)


def test_a_stream_that_is_closed_early_is_not_charged(site, client, gate):
    before = site.money()
    with complete(client, WAIT, "ads/charged", stream=True) as stream:
        assert next(stream).choices[0].delta.role == "assistant"
        assert gate.reached.wait(LONG)
        assert site.money()[0] > before[0]
    assert gate.left.wait(LONG)
    site.settled(before)


def test_the_events_of_a_response_are_numbered(client):
    with client.responses.create(model="ads", input="Hi", stream=True) as stream:
        numbers = [event.sequence_number for event in stream]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 5


def test_a_response_that_fails_is_raised_by_the_client(client):
    with pytest.raises(openai.InternalServerError):
        client.responses.create(model="ads", input="Please fail.")


def test_a_response_that_is_repeated_with_its_key_is_charged_once(site, client):
    key, before = {"Idempotency-Key": "response"}, len(set(charges(site.ledger)))
    answers = [
        client.responses.create(model="ads/charged", input="Hi", extra_headers=key) for _ in itertools.repeat(None, 2)
    ]
    assert answers[0].output_text == answers[1].output_text
    assert answers[0].auction["id"] == answers[1].auction["id"]
    assert len(set(charges(site.ledger))) == before + 1
