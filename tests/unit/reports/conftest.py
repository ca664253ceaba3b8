"""Ways to ask agents that all tests of reports share."""

import asyncio
import threading

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from llm_auction_chain.reports import Terms, collect
from llm_auction_chain.waiting import AWAITING, BLOCKING, run

REPLIES = (AIMessage("a"), AIMessage("b"))


@pytest.fixture(params=["blocking", "awaiting"])
def ask(request):
    """Ask agents, as a caller that blocks and as one that awaits. Only what hangs reaches the deadline."""

    def ask(*agents, replies=REPLIES, progress=None, config=None, timeout=60.0, **terms):
        settings = (agents, [HumanMessage("x")], replies, Terms(timeout=timeout, **terms))
        options = {"progress": progress, "config": config}
        if request.param == "blocking":
            return run(collect(*settings, **options, waiter=BLOCKING))
        return asyncio.run(collect(*settings, **options, waiter=AWAITING))

    return ask


@pytest.fixture
def gate():
    """What hanging callbacks wait for. It opens after the test, so that their threads end."""
    gate = threading.Event()
    yield gate
    gate.set()
