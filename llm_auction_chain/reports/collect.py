"""One round in which all agents are asked at once, until all have answered or time is up."""

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig

from llm_auction_chain.agents import Agent
from llm_auction_chain.reports.ask import Pending, is_async, raised
from llm_auction_chain.reports.report import Report, Round, Terms
from llm_auction_chain.threads import finished, hearing
from llm_auction_chain.waiting import Waiter

__all__ = ["collect"]

_AT_ONCE = 1 << 10  # replies copied for agents in one turn of an event loop


async def collect(
    agents: Sequence[Agent],
    prompt: Sequence[BaseMessage],
    replies: Sequence[AIMessage],
    terms: Terms | None = None,
    *,
    config: RunnableConfig | None = None,
    progress: Callable[[int], None] | None = None,
    waiter: Waiter,
) -> list[Report]:
    """Ask every agent at once and return their reports, in the agents' order, when all have answered or time is up.

    A caller that blocks asks each agent in a thread. A caller that awaits asks async callbacks and Runnables in its
    own loop: one that blocks instead of awaiting holds up that loop, deadline included.

    Args:
        agents: the agents to ask.
        prompt: the user's messages.
        replies: the candidates.
        terms: deadline, caps and the like; None is `Terms()`.
        config: traces Runnable rewards.
        progress: called with the number of agents that have answered or were late.
        waiter: how the caller waits.

    Raises:
        RewardError: an agent failed and `on_agent_error` is `raise`.
    """
    terms = terms or Terms()
    asked = Round(agents, prompt, replies, terms, config)
    heard = _Heard(len(agents), progress)
    try:
        await waiter.either(
            lambda: _in_threads(asked, heard, agents, terms),
            lambda: _in_loop(asked, heard, agents, terms, max(1, _AT_ONCE // max(1, len(replies)))),
        )
    finally:
        asked.stop()
    return asked.reports(heard.close())


def _in_threads(asked: Round, heard: "_Heard", agents: Sequence[Agent], terms: Terms) -> None:
    for place, outcome in finished([asked.call(k) for k in range(len(agents))], terms.timeout):
        if heard.hear(place, outcome):
            break


async def _in_loop(asked: Round, heard: "_Heard", agents: Sequence[Agent], terms: Terms, at_once: int) -> None:
    here = _Here(asked, heard)
    threaded = [k for k, agent in enumerate(agents) if not _in_this_loop(agent)]
    calls = [asked.call(k, awaiting=True) for k in threaded]
    try:
        async with hearing(calls, lambda place, outcome: here.hear(threaded[place], outcome)):
            if agents:
                awaited = set(range(len(agents))).difference(threaded)
                await here.everybody(awaited, terms.timeout, at_once=at_once)
    finally:
        late = here.close()
    if late:
        await asyncio.sleep(0)  # so that they hear of it before this loop may close


def _in_this_loop(agent: Agent) -> bool:
    try:
        return is_async(agent.reward)
    except BaseException:  # noqa: BLE001 - its attributes may be the agent's own code; a thread will find out
        return False


_ABANDONED: set["asyncio.Task[Any]"] = set()  # a loop keeps no task alive, and these may still be cleaning up


class _Here:
    """A round's part that is awaited in the caller's loop."""

    def __init__(self, asked: Round, heard: "_Heard") -> None:
        self._asked, self._heard = asked, heard
        self._all_are_there = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, k: int, awaitable: Any = None) -> None:
        """Ask an agent here, or await what its call in a thread returned."""
        task = asyncio.create_task(self._asked.aask(k, awaitable), context=self._asked.contexts[k])
        self._tasks.add(task)
        # a task that an agent's code cancelled came to nothing
        task.add_done_callback(
            lambda task: self.hear(k, raised(asyncio.CancelledError()) if task.cancelled() else task.result())
        )

    def hear(self, k: int, outcome: Any) -> None:
        """Note an outcome, or await what it leaves to be awaited."""
        if type(outcome) is not Pending:
            if self._heard.hear(k, outcome):
                self._all_are_there.set()
        elif self._heard.open:
            self.begin(k, outcome.awaitable)
        elif inspect.iscoroutine(outcome.awaitable):
            outcome.awaitable.close()  # too late to begin

    async def everybody(self, awaited: Iterable[int], timeout: float | None, *, at_once: int) -> None:  # noqa: ASYNC109 - late is no error here
        """Ask so many at once until all are asked; return when there is nothing left to wait for, or time is up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                for place, k in enumerate(awaited, 1):
                    if self._all_are_there.is_set():  # the progress hook raised
                        return
                    self.begin(k)
                    if place % at_once == 0:
                        await asyncio.sleep(0)  # others have a turn: every agent gets its own copy of all replies
                await self._all_are_there.wait()

    def close(self) -> bool:
        """Hear no more, cancel what is not done and wait for none of it; return whether there was any."""
        self._heard.open = False
        late = [task for task in self._tasks if not task.done()]
        _ABANDONED.difference_update([task for task in _ABANDONED if task.get_loop().is_closed()])
        for task in late:
            _ABANDONED.add(task)
            task.add_done_callback(_ABANDONED.discard)
            task.cancel()
        return bool(late)


class _Heard:
    """The outcomes that came in so far; once closed, it hears no more."""

    def __init__(self, n: int, progress: Callable[[int], None] | None) -> None:
        self.outcomes: list[Any] = [None] * n
        self.open = True
        self._done, self._progress = 0, progress
        self._error: BaseException | None = None

    def hear(self, k: int, outcome: Any) -> bool:
        """Note an outcome; return whether there is nothing left to wait for."""
        if self.open:
            self.outcomes[k] = outcome
            self._done += 1
            self._tell(self._done)
        return self._done == len(self.outcomes) or self._error is not None

    def close(self) -> list[Any]:
        """Return the outcomes, None for those that were late; raise what the progress hook raised."""
        self.open = False
        if self._error is None and self._done < len(self.outcomes):
            self._tell(len(self.outcomes))
        if self._error is not None:
            raise self._error
        return self.outcomes

    def _tell(self, done: int) -> None:
        try:
            if self._progress:
                self._progress(done)
        except BaseException as error:  # noqa: BLE001 - it is raised where somebody can catch it
            self._error = error
