"""LangChain's class for OpenAI's servers, with our address: alone, with tools and schemas, and inside an agent."""

import openai
import pytest
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from tests.server.kitchen import LONG

QUESTION = "What is for breakfast?"


class Order(BaseModel):
    """An order of dishes."""

    dish: str
    number: int


def order(dish: str, number: int) -> str:
    """Order dishes."""
    return f"{dish} for table {number}"


@pytest.fixture(params=[False, True], ids=["chat", "responses"])
async def chat(site, request):
    async with openai.DefaultAsyncHttpxClient() as http_client:  # else one client is kept, for an event loop that ends
        yield ChatOpenAI(
            model="ads",
            base_url=f"{site.url}/v1",
            api_key=site.keys["web"],
            http_async_client=http_client,
            max_retries=0,
            stream_usage=True,
            timeout=LONG,
            use_responses_api=request.param,
        )


def test_a_reply_has_its_text_and_its_usage(chat):
    reply = chat.invoke(QUESTION)
    assert reply.text.startswith("Today we have ")
    usage = reply.usage_metadata
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (16, 16, 32)
    assert usage["input_token_details"]["cache_read"] == 4
    assert usage["output_token_details"]["reasoning"] == 8
    assert reply.response_metadata["model_name"] == "ads"


async def test_async_calls_reply_too(chat):
    assert (await chat.ainvoke(QUESTION)).text.startswith("Today we have ")
    assert "".join([chunk.text async for chunk in chat.astream(QUESTION)]).startswith("Today we have ")


def test_a_stream_joins_into_a_reply_with_its_usage(chat):
    chunks = list(chat.stream(QUESTION))
    whole = sum(chunks[1:], chunks[0])
    assert whole.text.startswith("Today we have ")
    assert whole.usage_metadata["total_tokens"] == 32


def test_a_batch_replies_to_each_prompt(chat):
    assert [reply.text[:13] for reply in chat.batch([QUESTION] * 3)] == ["Today we have"] * 3


def test_a_tool_is_called_and_its_result_is_answered(chat):
    model = chat.bind_tools([order])
    reply = model.invoke(QUESTION)
    (call,) = reply.tool_calls
    assert (call["name"], call["args"].keys()) == ("order", {"dish", "number"})
    answer = model.invoke([HumanMessage(QUESTION), reply, ToolMessage("2 eggs", tool_call_id=call["id"])])
    assert answer.text.startswith("The kitchen says: 2 eggs")


def test_a_streamed_call_of_a_tool_joins(chat):
    chunks = list(chat.bind_tools([order]).stream(QUESTION))
    (call,) = sum(chunks[1:], chunks[0]).tool_calls
    assert call["args"].keys() == {"dish", "number"}


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("strict", [None, True])
def test_a_reply_keeps_to_a_schema(chat, method, strict):
    assert isinstance(chat.with_structured_output(Order, method=method, strict=strict).invoke(QUESTION), Order)


@pytest.mark.parametrize("stream", [False, True])
def test_an_agent_calls_its_tool_and_answers(chat, stream):
    agent = create_agent(chat, [order])
    call = {"messages": [HumanMessage(QUESTION)]}
    if stream:
        *_, state = agent.stream(call, stream_mode="values")
    else:
        state = agent.invoke(call)
    kinds = [message.type for message in state["messages"]]
    assert kinds == ["human", "ai", "tool", "ai"]
    assert state["messages"][-1].text.startswith(f"The kitchen says: {state['messages'][2].text}")


def test_an_agent_answers_in_its_schema(chat):
    assert isinstance(
        create_agent(chat, response_format=Order).invoke({"messages": [HumanMessage(QUESTION)]})["structured_response"],
        Order,
    )
