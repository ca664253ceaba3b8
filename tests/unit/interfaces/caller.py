"""A scripted chat model that takes tools, and listeners for what an auction over it says."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field

from llm_auction_chain import Agent

READ, WRITTEN = 3, 2  # tokens of every prompt, and of every reply
COST = READ + WRITTEN


def numbered(messages, number):
    return AIMessage(f"reply {number}")


def calling(number, tool="note", **args):
    """Return a call of a tool, under an id that no other call has."""
    return AIMessage("", tool_calls=[{"name": tool, "args": args or {"text": f"call {number}"}, "id": f"id-{number}"}])


class Caller(BaseChatModel):
    """Replies with `say(messages, number of the call)`; keeps the keywords of every call in `asked`."""

    say: Callable[[Any, int], AIMessage] = numbered
    temperature: float = 1.0
    asked: Any = Field(default_factory=list)  # Any: copies of the model share it
    numbers: Any = Field(default_factory=lambda: itertools.count(1))

    def bind_tools(self, tools, *, tool_choice=None, **kwargs):
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        number = next(self.numbers)
        self.asked.append({"stop": stop, "temperature": self.temperature, **kwargs})
        usage = {"input_tokens": READ, "output_tokens": WRITTEN, "total_tokens": COST}
        told = {"usage_metadata": usage, "response_metadata": {"model_name": "caller"}}
        message = self.say(messages, number).model_copy(update=told)
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
        await asyncio.sleep(0)
        return self._generate(messages, stop, run_manager, **kwargs)

    @property
    def _llm_type(self):
        return "caller"


class Plain(BaseChatModel):
    """A model that can be written down."""

    said: str = "x"

    @classmethod
    def is_lc_serializable(cls):
        return True

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        return ChatResult(generations=[ChatGeneration(message=AIMessage(self.said))])

    @property
    def _llm_type(self):
        return "plain"


class Spy:
    """An agent's reward that keeps what it is shown, and pays `worth(reply)` for it."""

    def __init__(self, worth=lambda reply: 1.0):
        self.worth, self.shown = worth, []

    def score(self, prompt, replies):
        self.shown.append(list(replies))
        return [self.worth(reply) for reply in replies]

    def agent(self, name="spy"):
        return Agent(name, self)


class Replies(BaseCallbackHandler):
    """Keeps the metadata of every auction whose reply a run ended with, in order, each once."""

    def __init__(self):
        self.auctions, self.messages = {}, {}

    def heard(self, message):
        if isinstance(message, AIMessage) and (held := message.response_metadata.get("auction")):
            self.auctions.setdefault(held["auction_id"], held)
            self.messages.setdefault(held["auction_id"], message)

    def on_chain_end(self, outputs, **kwargs):
        self.heard(outputs)

    def on_llm_end(self, response, **kwargs):
        self.heard(response.generations[0][0].message)

    @property
    def only(self):
        """Return the metadata of the one auction, and its reply."""
        ((key, held),) = self.auctions.items()
        return held, self.messages[key]


async def both(runnable, given="Hi", config=None, **kwargs):
    """Return what the sync and the async call reply."""
    return runnable.invoke(given, config, **kwargs), await runnable.ainvoke(given, config, **kwargs)
