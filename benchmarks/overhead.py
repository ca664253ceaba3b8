"""What an auction costs beside its model calls: against `model.batch` and the bare callbacks, in one run, alternated.

The model answers at once, so all that is measured is LangChain's work and ours. Traced calls have a
callback handler, for which LangChain works in the batch and in the auction alike.
"""

import asyncio
import gc
import sys
import time
from collections.abc import Callable
from itertools import count
from statistics import median
from typing import Any

from front import Options, benchmark, take_turns
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableConfig

from llm_auction_chain import Agent, AuctionRunnable, ChatAuction

CANDIDATES, AGENTS = 16, 8
WARM_UP = 5  # rounds that do not count
PROMPT: list[BaseMessage] = [HumanMessage("How do I learn the guitar?")]
NUMBERS = count()


class Instant(BaseChatModel):
    """Replies with a new text, at once."""

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        usage = {"input_tokens": 8, "output_tokens": 4, "total_tokens": 12}
        message = AIMessage(f"Practise chord {next(NUMBERS)}.", usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return self._generate(messages)

    @property
    def _llm_type(self) -> str:
        return "instant"


class Listener(BaseCallbackHandler):
    """Handles every run by doing nothing, in the loop as LangSmith's tracer."""

    run_inline = True


def likes(k: int) -> Callable[[Any, Any], float]:
    """Return a callback that takes no time to speak of."""
    return lambda prompt, reply: float(sum(reply.content.encode()) % (k + 2))


async def alikes(prompt: Any, reply: Any) -> float:
    """Report without waiting for anything."""
    return float(sum(reply.content.encode()) % 3)


def bare(replies: list[AIMessage], callbacks: list[Callable[[Any, Any], float]]) -> None:
    """Ask every callback of every reply, as a loop would."""
    for callback in callbacks:
        for reply in replies:
            callback(PROMPT, reply)


def speed(repeats: int, clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """Print the milliseconds of each call style, and return its ratio to a plain batch, sync or async."""
    model = Instant()
    callbacks = [likes(k) for k in range(AGENTS)]
    settings: dict[str, Any] = {"model": model, "n_candidates": CANDIDATES, "seed": 1}
    agents = [Agent(f"agent {k}", callback) for k, callback in enumerate(callbacks)]
    runnable, chat = AuctionRunnable(agents=agents, **settings), ChatAuction(agents=agents, **settings)
    awaited = AuctionRunnable(agents=[Agent(f"agent {k}", alikes) for k in range(AGENTS)], **settings)
    loop = asyncio.new_event_loop()

    traced: RunnableConfig = {"callbacks": [Listener()]}

    async def abatch(config: RunnableConfig | None = None) -> None:
        replies = await model.abatch([PROMPT] * CANDIDATES, config)
        for _ in range(AGENTS):
            for reply in replies:
                await alikes(PROMPT, reply)

    turns = take_turns(
        {
            "batch + callbacks": lambda: bare(model.batch([PROMPT] * CANDIDATES), callbacks),
            "AuctionRunnable": lambda: runnable.invoke(PROMPT),
            "ChatAuction": lambda: chat.invoke(PROMPT),
            "abatch + callbacks": lambda: loop.run_until_complete(abatch()),
            "AuctionRunnable, async": lambda: loop.run_until_complete(awaited.ainvoke(PROMPT)),
            "traced: batch": lambda: bare(model.batch([PROMPT] * CANDIDATES, traced), callbacks),
            "traced: AuctionRunnable": lambda: runnable.invoke(PROMPT, traced),
            "traced: abatch": lambda: loop.run_until_complete(abatch(traced)),
            "traced: async": lambda: loop.run_until_complete(awaited.ainvoke(PROMPT, traced)),
        },
        repeats,
        warm_up=WARM_UP,
        clock=clock,
    )
    loop.close()
    taken = {name: median(seconds) for name, seconds in turns.items()}
    print(f"{CANDIDATES} candidates, {AGENTS} agents: ms")
    for name, seconds in taken.items():
        print(f"{name:24} {seconds * 1e3:8.2f}")
    sync, awaiting = taken["batch + callbacks"], taken["abatch + callbacks"]
    return {
        "overhead_vs_batch": taken["AuctionRunnable"] / sync,
        "chat_auction_vs_batch": taken["ChatAuction"] / sync,
        "async_vs_abatch": taken["AuctionRunnable, async"] / awaiting,
        "traced_vs_batch": taken["traced: AuctionRunnable"] / taken["traced: batch"],
        "traced_async_vs_abatch": taken["traced: async"] / taken["traced: abatch"],
    }


def memory(auctions: int) -> float:
    """Print how many memory blocks Python holds, and return how many an auction never gives back."""
    agents = [Agent(f"agent {k}", likes(k)) for k in range(AGENTS)]
    runnable = AuctionRunnable(model=Instant(), agents=agents, n_candidates=CANDIDATES)
    step = auctions // 10
    for _ in range(step):  # caches of LangChain and pydantic fill up
        runnable.invoke(PROMPT)
    held = []
    for _ in range(10):
        for _ in range(step):
            runnable.invoke(PROMPT)
        gc.collect()
        held.append(sys.getallocatedblocks())
    print(f"\nauctions   blocks held ({step} before)")
    for k, blocks in enumerate(held, 1):
        print(f"{k * step:8d} {blocks:12,d}")
    return (held[-1] - held[0]) / (step * 9)


def measure(options: Options) -> dict[str, float]:
    """Print the tables and return the ratios."""
    ratios = speed(50 if options.quick else 300, time.process_time if options.processor else time.perf_counter)
    return ratios | {"blocks_kept_per_auction": memory(1000 if options.quick else 10_000)}


if __name__ == "__main__":
    benchmark(
        "overhead",
        __doc__,
        measure,
        quick="fewer repetitions",
        add_options=lambda parser: parser.add_argument(
            "--processor", action="store_true", help="count the processor's time, on a machine that others use too"
        ),
    )
