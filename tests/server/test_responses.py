"""What `POST /v1/responses` does over real sockets, beyond what `test_openai_python.py` asks of both formats."""

import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from tests.server.kitchen import PRIVATE

WEATHER = {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"location": {"type": "string"}}},
}


class Place(BaseModel):
    """Where the user is."""

    location: str


@pytest.fixture
def chat(site):
    settings = {"base_url": f"{site.url}/v1", "api_key": site.keys["web"], "max_retries": 0}
    return ChatOpenAI(model="ads", use_responses_api=True, **settings)


def test_items_of_a_parsed_response_can_be_sent_back(client):
    question = [{"role": "user", "content": "What is for breakfast?"}]
    tool = {"type": "function", "strict": True, **WEATHER}
    with client.responses.stream(model="ads", input=question, tools=[tool]) as stream:
        (call,) = stream.get_final_response().output
    assert call.parsed_arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    for item in (call, call.model_dump()):
        answer = client.responses.create(model="ads", input=[*question, item, result], tools=[tool])
        assert answer.output_text.startswith("The kitchen says: sun")


def test_an_auction_that_fails_within_a_stream_ends_it_without_private_words(client, gate):
    with client.responses.create(model="ads", input="Please wait, then fail.", stream=True) as stream:
        first = next(stream)
        gate.open()
        *_, last = stream
    assert (first.type, last.type) == ("response.created", "response.failed")
    assert last.response.error.code == "server_error"
    assert PRIVATE not in last.response.error.message


def test_langchain_draws_streams_and_counts(chat):
    reply = chat.invoke("What is for breakfast?")
    assert reply.text.startswith("Today we have ")
    assert reply.usage_metadata["output_tokens"] == 16  # of all candidates
    assert "".join(chunk.text for chunk in chat.stream("What is for breakfast?")).startswith("Today we have ")
    assert chat.invoke([HumanMessage("Hi"), reply, HumanMessage("repeat")]).text.count(reply.text) == 1


def test_langchain_calls_tools_and_parses(chat):
    with_tools = chat.bind_tools([{"type": "function", "function": WEATHER}])
    reply = with_tools.invoke("Weather?")
    (call,) = reply.tool_calls
    assert (call["name"], call["args"].keys()) == ("get_weather", {"location"})
    result = ToolMessage("sun", tool_call_id=call["id"])
    assert with_tools.invoke([HumanMessage("Weather?"), reply, result]).text.startswith("The kitchen says: sun")
    assert chat.with_structured_output(Place).invoke("Hi").location in ("eggs", "oats")
