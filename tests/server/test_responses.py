"""`POST /v1/responses` as real clients see it: the official Python client, and LangChain's class over it."""

import threading

import openai
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from llm_auction_chain import Agent, AuctionRunnable
from llm_auction_chain.server import Limits, create_app
from tests.server.serving import Seer, served

PICTURE = "data:image/png;base64,iVBORw0KGgo="
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"location": {"type": "string"}}},
}


class Place(BaseModel):
    """Where the user is."""

    location: str


class Failing(Seer):
    """A model that fails once it may."""

    may_fail: threading.Event

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self.may_fail.wait()
        raise RuntimeError("my private words")


def auction(model):
    return AuctionRunnable(model=model, agents=[Agent("B", lambda prompt, reply: 1.0)], n_candidates=2, seed=7)


@pytest.fixture(scope="module")
def url():
    with served(create_app({"ads": auction(Seer())})) as address:
        yield f"{address}/v1"


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=url, api_key="unused", max_retries=0) as official:
        yield official


@pytest.fixture
def chat(url):
    return ChatOpenAI(model="ads", base_url=url, api_key="unused", max_retries=0, use_responses_api=True)


def test_a_text_comes_with_the_usage_and_the_auction(client):
    response = client.responses.create(model="ads", input="Hi", instructions="Be brief.", metadata={"chat": "7"})
    assert response.output_text == "I see 0 pictures."
    assert response.usage.total_tokens == 16  # of both candidates
    assert response.metadata == {"chat": "7"}
    assert response.auction["sponsored"] is False


async def test_an_async_stream_gathers_the_whole_response(url):
    async with (
        openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0) as official,
        official.responses.stream(model="ads", input="Hi") as stream,
    ):
        kinds = [event.type async for event in stream]
        response = await stream.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert (response.output_text, response.usage.total_tokens) == ("I see 0 pictures.", 16)


def test_a_picture_reaches_the_model(client):
    parts = [{"type": "input_text", "text": "What is this?"}, {"type": "input_image", "image_url": PICTURE}]
    response = client.responses.create(model="ads", input=[{"role": "user", "content": parts}])
    assert response.output_text == "I see 1 pictures."


def test_a_tool_is_called_and_its_output_read(client):
    asked = [{"role": "user", "content": "Weather?"}]
    with client.responses.stream(model="ads", input=asked, tools=[WEATHER], tool_choice="required") as stream:
        (call,) = stream.get_final_response().output
    assert (call.name, call.arguments) == ("get_weather", '{"location": "Bern"}')
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    for sent_back in (call, call.model_dump(exclude={"parsed_arguments"})):
        response = client.responses.create(model="ads", input=[*asked, sent_back, result], tools=[WEATHER])
        assert response.output_text == "The tool says sun."


def test_a_text_is_parsed_by_its_schema(client):
    assert client.responses.parse(model="ads", input="Hi", text_format=Place).output_parsed == Place(location="Bern")


def test_an_error_names_the_field(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="ads", input="Hi", previous_response_id="resp_1")
    assert (caught.value.param, caught.value.code) == ("previous_response_id", "unsupported_parameter")
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="other", input="Hi")


def test_an_auction_that_fails_within_a_stream_ends_it_without_private_words():
    model = Failing(may_fail=threading.Event())
    with (
        served(create_app({"ads": auction(model)}, limits=Limits(keep_alive=0.01))) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0) as official,
        official.responses.create(model="ads", input="Hi", stream=True) as stream,
    ):
        first = next(stream)
        model.may_fail.set()
        *_, last = stream
    assert (first.type, last.type) == ("response.created", "response.failed")
    assert last.response.error.code == "server_error"
    assert "private" not in last.response.error.message


def test_langchain_draws_streams_and_counts(chat):
    reply = chat.invoke("Hi")
    assert (reply.text, reply.usage_metadata["total_tokens"]) == ("I see 0 pictures.", 16)
    assert "".join(chunk.text for chunk in chat.stream("Hi")) == reply.text
    again = [HumanMessage("Hi"), reply, HumanMessage([{"type": "image_url", "image_url": {"url": PICTURE}}])]
    assert chat.invoke(again).text == "I see 1 pictures."


def test_langchain_calls_tools_and_parses(chat):
    with_tools = chat.bind_tools([{"type": "function", "function": {k: WEATHER[k] for k in ("name", "parameters")}}])
    reply = with_tools.invoke("Weather?")
    assert [(call["name"], call["args"]) for call in reply.tool_calls] == [("get_weather", {"location": "Bern"})]
    result = ToolMessage("sun", tool_call_id=reply.tool_calls[0]["id"])
    assert with_tools.invoke([HumanMessage("Weather?"), reply, result]).text == "The tool says sun."
    assert chat.with_structured_output(Place).invoke("Hi") == Place(location="Bern")
