"""The clients of `server.py`'s first part: each sends its next request when it has the answer to the last."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from server_workers import Settings, as_json

_STOP_AFTER = 30  # seconds that a request may take
_BODY = {"model": "auction", "messages": [{"role": "user", "content": "How do I learn the violin?"}]}
_SPREAD = 0.25  # seconds within which the clients begin


@dataclass
class Server:
    """A server in processes of its own.

    Attributes:
        url: of chat completions.
        headers: of each request.
        process: the parent of the workers.
        kills: number of workers that were killed, by signal; empty until the server has ended.
    """

    url: str
    headers: dict[str, str]
    process: psutil.Process
    kills: dict[str, int] = field(default_factory=dict)

    def processor_seconds(self) -> float:
        """Return what the workers that run now have used."""
        return sum(sum(worker.cpu_times()[:2]) for worker in self.process.children())

    def memory(self) -> float:
        """Return the resident memory of the workers, MiB."""
        return float(sum(worker.memory_info().rss for worker in self.process.children())) / 2**20


@contextmanager
def serving(settings: Settings, **changes: Any) -> Iterator[Server]:
    """Start a server, yield it, and wait for its end."""
    program = [sys.executable, str(Path(__file__).with_name("server_workers.py")), as_json(settings, **changes)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:  # noqa: S603
        assert running.stdin and running.stdout  # noqa: S101, PT018 - for the type checker
        start = json.loads(running.stdout.readline())
        url = f"http://127.0.0.1:{start['port']}/v1/chat/completions"
        server = Server(url, {"Authorization": f"Bearer {start['token']}"}, psutil.Process(running.pid))
        yield server
        running.stdin.close()
        server.kills = json.loads(running.stdout.readline())


@dataclass
class Measurement:
    """What clients of one server saw, over all of its turns.

    Attributes:
        seconds: of each answer.
        errors: answers with another status than 200, and requests without an answer.
        wall: seconds of all turns.
        processor: seconds that the server's process used.
    """

    seconds: list[float] = field(default_factory=list)
    errors: int = 0
    wall: float = 0.0
    processor: float = 0.0

    def percentile(self, share: float) -> float:
        """Return the seconds within which a share of the answers came."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def load(server: Server, clients: int, seconds: float, measurement: Measurement) -> None:
    """Let clients send requests for a while, and add what they see."""
    timeout = aiohttp.ClientTimeout(total=_STOP_AFTER)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=server.headers, timeout=timeout) as session:
        used, start = server.processor_seconds(), time.perf_counter()

        async def client(place: int) -> None:
            await asyncio.sleep(_SPREAD * place / clients)  # else all would ask at the same moments, for ever
            while (sent := time.perf_counter()) < start + seconds:
                try:
                    async with session.post(server.url, json=_BODY) as answer:
                        await answer.read()
                        measurement.errors += answer.status != HTTPStatus.OK
                except (aiohttp.ClientError, TimeoutError):
                    measurement.errors += 1
                measurement.seconds.append(time.perf_counter() - sent)

        await asyncio.gather(*(client(place) for place in range(clients)))
        measurement.wall += time.perf_counter() - start
        measurement.processor += server.processor_seconds() - used


async def hang(server: Server, streams: int) -> int:
    """Open streams, leave them once they have begun, and return how many were refused."""
    body = {**_BODY, "stream": True}
    timeout = aiohttp.ClientTimeout(total=_STOP_AFTER)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=server.headers, timeout=timeout) as session:
        answers = await asyncio.gather(*(session.post(server.url, json=body) for _ in range(streams)))
        for answer in answers:
            answer.close()
    return sum(answer.status != HTTPStatus.OK for answer in answers)
