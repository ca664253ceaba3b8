"""A model whose replies a test can foresee, the agents that bid for them, and a server on the loopback."""

import asyncio
import contextlib
import json
import socket
import threading
from typing import ClassVar

import uvicorn
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_openai_tool

from llm_auction_chain import Agent
from llm_auction_chain.rewards import MentionReward

LONG = 30  # seconds after which something is broken
PRIVATE = "an upstream error with a private text"
QUESTION = [{"role": "user", "content": "What is for breakfast?"}]


class Gate:
    """Where the model waits until a test, in another thread, lets it go on."""

    def __init__(self):
        self.reached, self.left = threading.Event(), threading.Event()
        self._places, self._is_open = [], False

    async def wait(self):
        place = asyncio.get_running_loop(), asyncio.Event()
        self._places.append(place)
        self.reached.set()
        try:
            if not self._is_open:
                await place[1].wait()
        finally:
            self.left.set()

    def open(self, *, for_good=False):
        """Let go on who waits, and `for_good` who comes later, too."""
        self._is_open = for_good
        for loop, event in self._places:
            loop.call_soon_threadsafe(event.set)

    def reset(self):
        self.__init__()


class Kitchen(BaseChatModel):
    """A model that speaks of breakfast, calls the tools that it has, and waits or fails where its user asks for that.

    A seed repeats its replies.
    """

    native_n: ClassVar = True
    gate: object

    @property
    def _llm_type(self):
        return "kitchen"

    def bind_tools(self, tools, **kwargs):
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def with_structured_output(self, schema=None, *, method="function_calling", **kwargs):
        if method != "json_mode":
            return super().with_structured_output(schema, **kwargs)
        model = self.bind(response_format={"type": "json_object"})
        raw = RunnablePassthrough.assign(parsed=lambda both: json.loads(both["raw"].text))
        return {"raw": model} | raw

    def _generate(self, *_, **__):
        raise NotImplementedError

    async def _agenerate(self, messages, stop=None, run_manager=None, *, n=1, seed=0, tools=(), **kwargs):
        if "wait" in messages[-1].text:
            await self.gate.wait()
        if "fail" in messages[-1].text:
            raise ConnectionError(PRIVATE)
        replies = [self._reply(messages, stop or (), (seed or 0) + place, tools, kwargs) for place in range(n)]
        return ChatResult(generations=[ChatGeneration(message=reply) for reply in replies])

    def _reply(self, messages, stop, number, tools, kwargs):
        usage = {"input_tokens": sum(len(message.text.split()) for message in messages), "output_tokens": 4}
        usage["total_tokens"] = sum(usage.values())
        usage |= {"input_token_details": {"cache_read": 1}, "output_token_details": {"reasoning": 2}}
        fields = {"usage_metadata": usage, "response_metadata": {"finish_reason": "stop"}}
        if tools and messages[-1].type != "tool":
            function = tools[0]["function"]
            arguments = {name: _value(schema, number) for name, schema in function["parameters"]["properties"].items()}
            call = {"name": function["name"], "args": arguments, "id": f"call_{number}"}
            return AIMessage("", tool_calls=[call], **fields)
        text = f"Today we have {'eggs' if number % 2 else 'oats'}, number {number}."
        if messages[-1].type == "tool":
            text = f"The kitchen says: {messages[-1].text}, and {'oats' if number % 2 else 'eggs'}."
        if "repeat" in messages[-1].text:
            text = json.dumps(
                {"number": number, "heard": [[message.type, message.content] for message in messages], "kwargs": kwargs}
            )
        if "response_format" in kwargs:
            text = json.dumps({"dish": _value({}, number)})
        for end in stop:
            text = text.partition(end)[0]
        if kwargs.get("max_tokens") is not None and kwargs["max_tokens"] < 4:
            text, fields["response_metadata"] = str(number), {"finish_reason": "length"}
        return AIMessage(text, **fields)


def _value(schema, number):
    return number if schema.get("type") == "integer" else "eggs" if number % 2 else "oats"


def agents():
    return [
        Agent("EggCo", MentionReward(["eggs"], value=4.0), owner="egg-group", report_cap=8.0),
        Agent("OatCo", MentionReward(["oats"], value=3.0), owner="oat-group", report_cap=8.0),
    ]


@contextlib.contextmanager
def serving(app):
    """Serve an application over real sockets, in a thread, and yield its address."""
    # From here on connections are accepted, though they wait until the application has started.
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(LONG)
        listener.close()
