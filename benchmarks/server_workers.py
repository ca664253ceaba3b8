"""Serves a chat model in worker processes that share one socket: bare, or behind auctions.

`server.py` starts it with settings as JSON. It prints the port and a key as JSON, ends when its standard input is
closed, and then prints how often it has killed a worker.
"""

import asyncio
import json
import logging
import os
import random
import select
import signal
import socket
import sys
import time
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from http import HTTPStatus
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from llm_auction_chain import Agent, AuctionRunnable, AuctionWarning, Billing, Ledger
from llm_auction_chain.rewards import MentionReward
from llm_auction_chain.server import Key, Limits, create_app

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

OWNERS = ("TuneTown", "Violin House", "City Choir")
REPLIES = (
    "Take lessons at TuneTown.",
    "Rent a violin from Violin House.",
    "Join the City Choir on Tuesdays.",
    "TuneTown and the City Choir both welcome beginners.",
    "Practise a little every day.",
)
HOLD_FOR = timedelta(minutes=2)
_TICK = 0.05  # seconds between two looks at the workers
_DRAIN = 10  # seconds in which a worker that is asked to stop may finish its requests


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to serve, and how.

    Attributes:
        app: the model itself behind an endpoint of FastAPI, or this package's server.
        latency: seconds that a model call takes.
        candidates: of an auction.
        agents: of an auction; each is paid for mentions.
        ledger: its URL; empty for none.
        workers: processes.
        kill_every: mean seconds between two kills of a worker; 0 for none.
        seed: of the kills.
        log: file that notes the beginning and end of each request, and each reply that an open connection took.
        keep_alive: seconds after which a stream begins though the auction still runs.
    """

    app: Literal["bare", "auction"] = "auction"
    latency: float = 0.0
    candidates: int = 1
    agents: int = 0
    ledger: str = ""
    workers: int = 1
    kill_every: float = 0.0
    seed: int = 0
    log: str = ""
    keep_alive: float = 10.0


class SlowModel(BaseChatModel):
    """Replies after a fixed time with a random text that begins with the last word of the prompt."""

    latency: float

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        await asyncio.sleep(self.latency)
        return self._generate(messages)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        text = f"{messages[-1].text.split()[-1]}: {random.choice(REPLIES)}"  # noqa: S311
        usage = {"input_tokens": 8, "output_tokens": 8, "total_tokens": 16}
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text, usage_metadata=usage))])

    @property
    def _llm_type(self) -> str:
        return "slow"


def bare(model: BaseChatModel) -> FastAPI:
    """Return the least that answers a chat completion."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def complete(body: dict[str, Any]) -> dict[str, Any]:
        reply = await model.ainvoke([(message["role"], message["content"]) for message in body["messages"]])
        message = {"role": "assistant", "content": reply.text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"id": reply.id, "object": "chat.completion", "model": body["model"], "choices": [choice]}

    return app


def auctions(settings: Settings, model: BaseChatModel, key: Key) -> FastAPI:
    """Return this package's server. It takes all requests at once, as the bare endpoint does."""
    agents = [Agent(owner, MentionReward([owner], value=2.0), report_cap=2.0) for owner in OWNERS[: settings.agents]]
    ledger = Ledger(settings.ledger, hold_for=HOLD_FOR, keep_replies=True) if settings.ledger else None
    billing = Billing(ledger=ledger)
    auction = AuctionRunnable(model=model, agents=agents, n_candidates=settings.candidates, billing=billing)
    return create_app(
        {"auction": auction}, keys=[key], limits=Limits(auctions=512, queue=512, keep_alive=settings.keep_alive)
    )


def logged(app: App, path: str) -> App:
    """Return an app that notes what happens to each request: `begin`, `handed` and `end`, with its idempotency key.

    A reply is handed over once uvicorn has written its last byte to a connection that is open as far as it knows.
    """
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    async def call(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        key = dict(scope.get("headers", ())).get(b"idempotency-key", b"").decode()
        if scope["type"] != "http" or not key:
            await app(scope, receive, send)
            return
        cycle: Any = send.__self__  # type: ignore[attr-defined] # uvicorn's own, which knows whether the client is there
        status = 0

        async def watch(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            body, is_open = message.get("body", b""), not cycle.disconnected
            await send(message)
            is_last = b"data: [DONE]" in body or (body and not message.get("more_body"))
            if status == HTTPStatus.OK and is_open and is_last:
                note("handed")

        def note(step: str) -> None:
            os.write(file, f"{step} {key}\n".encode())

        note("begin")
        try:
            await app(scope, receive, watch)
        finally:
            note("end")

    return call


def work(settings: Settings, listener: socket.socket, key: Key) -> None:
    """Serve until a signal comes."""
    warnings.simplefilter("ignore", AuctionWarning)  # of equal replies, which this model has often
    logging.getLogger("llm_auction_chain").setLevel(logging.ERROR)  # each key without a charge is counted
    model = SlowModel(latency=settings.latency)
    app: App = bare(model) if settings.app == "bare" else auctions(settings, model, key)
    if settings.log:
        app = logged(app, settings.log)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=_DRAIN)
    uvicorn.Server(config).run(sockets=[listener])


class Workers:
    """Worker processes that are replaced where they end."""

    def __init__(self, settings: Settings, listener: socket.socket, key: Key) -> None:
        self._settings, self._listener, self._key = settings, listener, key
        self._running: set[int] = set()
        self._signals: dict[int, signal.Signals] = {}
        self.ends: Counter[str] = Counter()

    def fill(self) -> None:
        """Count the workers that have ended, and start others in their place."""
        for pid in list(self._running):
            if os.waitpid(pid, os.WNOHANG) != (0, 0):
                self._running.discard(pid)
                sent = self._signals.pop(pid, None)
                self.ends[sent.name if sent else "unexpected"] += 1
        while len(self._running) < self._settings.workers:
            pid = os.fork()
            if pid == 0:
                self._child()
            self._running.add(pid)

    def _child(self) -> None:
        try:
            work(self._settings, self._listener, self._key)
        finally:
            os._exit(0)

    def kill(self, rng: random.Random) -> None:
        """Send SIGKILL or SIGTERM to a worker."""
        if free := sorted(self._running - self._signals.keys()):
            self._send(rng.choice(free), rng.choice((signal.SIGKILL, signal.SIGTERM)))

    def _send(self, pid: int, number: signal.Signals) -> None:
        self._signals[pid] = number
        os.kill(pid, number)

    def stop(self) -> None:
        """Ask all workers to finish, and wait for them."""
        for pid in self._running:
            os.kill(pid, signal.SIGTERM)
        for pid in self._running:
            os.waitpid(pid, 0)


def serve(settings: Settings) -> None:
    """Keep workers running, and kill one now and then, until standard input is closed."""
    token, key = Key.new("operator", name="benchmark")
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:  # else asyncio leaves Nagle's algorithm on: 40 ms
        listener.bind(("127.0.0.1", 0))
        listener.listen(2048)
        workers, rng = Workers(settings, listener, key), random.Random(settings.seed)  # noqa: S311
        workers.fill()
        print(json.dumps({"port": listener.getsockname()[1], "token": token}), flush=True)

        def next_kill() -> float:
            return time.monotonic() + rng.expovariate(1 / settings.kill_every) if settings.kill_every else float("inf")

        due = next_kill()
        while not select.select([sys.stdin], [], [], _TICK)[0]:
            workers.fill()
            if time.monotonic() >= due:
                workers.kill(rng)
                due = next_kill()
        workers.stop()
    print(json.dumps(workers.ends))


def as_json(settings: Settings, **changes: Any) -> str:
    """Return settings as `serve` reads them."""
    return json.dumps(asdict(replace(settings, **changes)))


if __name__ == "__main__":
    serve(Settings(**json.loads(sys.argv[1])))
