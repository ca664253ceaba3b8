"""Money when things break: workers are killed and clients hang up, then the ledger is compared with what arrived.

Each key is one request of one client. The client repeats it, also after it has hung up itself, until it has the whole
reply or gives up for good. What must be true at the end, of every key and of the ledger:

- A reply that arrived and says that it was charged has exactly one standing charge: of the same auction, amounts,
  booking, receipt and text.
- A reply that arrived and says that it was not charged has none.
- A key whose reply never arrived has no standing charge, unless a worker had handed the whole reply to a connection
  that was open as far as it knew, or was killed before it could take the charge back. Both are counted.
- No key has two standing charges.
- The holds of killed workers go as they expire, the chain verifies, and the totals balance.
"""

import asyncio
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
from ledger import postgresql
from server_load import Server, serving
from server_workers import OWNERS, Settings
from sqlalchemy import create_engine, select

from llm_auction_chain import Ledger
from llm_auction_chain.ledger import Charge, tables

CLIENTS = 48
LATENCY = 0.1  # seconds of a model call
KILL_EVERY = 1.2  # mean seconds
HANGS_UP, LEAVES_STREAM, GIVES_UP = 0.3, 0.3, 0.2  # shares of attempts, of streams among the others, and of clients
DEPOSIT = Decimal(1_000_000)
_FAR = datetime(2100, 1, 1, tzinfo=UTC)
_PAUSE = 0.05  # seconds before a request is repeated
_PATIENCE = 60  # seconds that an attempt may take


@dataclass
class Answers:
    """What the clients received.

    Attributes:
        delivered: key to the text and the auction of its reply.
        attempts: how each attempt ended.
    """

    delivered: dict[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)


class Client:
    """Sends one request until it has the reply, or gives up."""

    def __init__(self, session: aiohttp.ClientSession, server: Server, number: int, answers: Answers) -> None:
        self._session, self._server, self._answers = session, server, answers
        self._rng = random.Random(number)  # noqa: S311
        self._key = f"request-{number}"
        self._attempts = self._rng.choice((1, 2, 3)) if self._rng.random() < GIVES_UP else None
        self._streams = self._rng.random() < 0.5  # noqa: PLR2004

    async def run(self) -> None:
        """Ask until the reply has arrived, or no attempt is left."""
        while self._attempts is None or self._attempts > 0:
            end = await self._attempt()
            self._answers.attempts[end] += 1
            if end == "delivered":
                return
            if self._attempts is not None and end != "refused":
                self._attempts -= 1
            await asyncio.sleep(_PAUSE)

    async def _attempt(self) -> str:
        impatient = self._attempts is not None or self._rng.random() < HANGS_UP
        wait = self._rng.uniform(0, 3 * LATENCY) if impatient else _PATIENCE
        try:
            async with asyncio.timeout(wait):
                return await self._ask()
        except TimeoutError:
            return "hung up while waiting" if impatient else "no answer"
        except aiohttp.ClientError:
            return "connection lost"

    async def _ask(self) -> str:
        headers = {**self._server.headers, "Idempotency-Key": self._key}
        messages = [{"role": "user", "content": f"How do I learn the violin? {self._key}"}]
        body = {"model": "auction", "messages": messages, "stream": self._streams}
        async with self._session.post(self._server.url, json=body, headers=headers) as answer:
            if answer.status != HTTPStatus.OK:
                await answer.read()
                return "refused"
            if not self._streams:
                whole = await answer.json()
                self._answers.delivered[self._key] = whole["choices"][0]["message"]["content"], whole["auction"]
                return "delivered"
            return await self._read_stream(answer)

    async def _read_stream(self, answer: aiohttp.ClientResponse) -> str:
        events = self._rng.choice((1, 2, 3)) if self._rng.random() < LEAVES_STREAM else 0
        text = ""
        auction: Mapping[str, Any] = {}
        async for line in answer.content:
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                self._answers.delivered[self._key] = text, auction
                return "delivered"
            chunk = json.loads(line.removeprefix(b"data: "))
            if "error" in chunk:
                return "refused"
            auction = chunk.get("auction") or auction
            text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            events -= 1
            if events == 0:
                answer.close()
                return "hung up in the stream"
        return "stream cut"


async def ask_all(server: Server, requests: int) -> Answers:
    """Send all requests, a number of them at once."""
    answers, numbers = Answers(), iter(range(requests))
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:

        async def one_by_one() -> None:
            for number in numbers:
                await Client(session, server, number, answers).run()

        await asyncio.gather(*(one_by_one() for _ in range(CLIENTS)))
    return answers


@dataclass
class Books:
    """What the ledger says at the end.

    Attributes:
        standing: auction to its charge, without those that were reversed.
        texts: auction to the text of its kept reply.
        bookings: auction to the kinds of its bookings, in their order.
        revenue: all charges less reversals.
        differences: of the ledger with itself.
    """

    standing: dict[str, Charge]
    texts: dict[str, str]
    bookings: dict[str, list[str]]
    revenue: Decimal
    differences: list[str]

    def delivering(self, auction: str) -> int:
        """Return the number of attempts that deliver on a charge and have not failed."""
        kinds = self.bookings[auction]
        return 1 + kinds.count("repeat") - kinds.count("failure")

    def count(self, kind: str) -> int:
        """Return the number of bookings of a kind."""
        return sum(kinds.count(kind) for kinds in self.bookings.values())


def read_books(url: str) -> Books:
    """Release the holds that have expired, verify the ledger and read its charges."""
    bookings = defaultdict(list)
    with Ledger(url) as ledger:
        ledger.expire_holds(now=_FAR)
        differences = list(ledger.verify().differences)
        differences += [
            f"{account.owner} still has {account.held} held" for account in ledger.accounts() if account.held
        ]
        (total,) = ledger.totals()
        if total.cash != total.revenue + total.balances or total.cash != DEPOSIT * len(OWNERS):
            differences.append(f"the totals do not balance: {total}")
        engine, columns, receipts = create_engine(url), tables.bookings.c, tables.receipts.c
        with engine.connect() as connection:
            for auction, kind in connection.execute(select(columns.auction_id, columns.kind).order_by(columns.seq)):
                bookings[str(auction)].append(str(kind))
            replies = connection.execute(select(receipts.auction_id, receipts.reply)).all()
        engine.dispose()
        charges = {
            auction: ledger.charge_of(auction)
            for auction, kinds in bookings.items()
            if "charge" in kinds and "reversal" not in kinds
        }
    standing = {auction: charge for auction, charge in charges.items() if charge is not None}
    texts = {auction: str(json.loads(reply)["content"]) for auction, reply in replies}
    return Books(standing, texts, bookings, total.revenue, differences)


def differences_of(answers: Answers, books: Books, log: Counter[str]) -> tuple[list[str], Counter[str]]:
    """Return what is wrong, in words, and the number of keys of each kind.

    Args:
        answers: what the clients received.
        books: what the ledger says.
        log: what the workers noted: the number of lines such as `handed request-7`.
    """
    kinds: Counter[str] = Counter()
    wrong = list(books.differences)
    of_key = defaultdict(list)
    for auction in books.standing:
        of_key[books.texts[auction].partition(":")[0]].append(auction)
    wrong += [f"{key} is charged as {auctions}" for key, auctions in of_key.items() if len(auctions) > 1]
    for key, (text, shown) in answers.delivered.items():
        charge = books.standing.get(shown["auction_id"])
        kinds["delivered, charged" if shown["charge"] else "delivered, not charged"] += 1
        if shown["charge"] is None:
            wrong += [f"{key} arrived without a charge and has {of_key[key]}"] if of_key[key] else []
        elif charge is None or of_key[key] != [shown["auction_id"]]:
            wrong.append(f"{key} arrived as charged auction {shown['auction_id']}, and the ledger has {of_key[key]}")
        else:
            wrong += [f"{key} differs in {part}" for part in _parts_that_differ(text, shown, charge, books)]
    for key, auctions in of_key.items():
        if key in answers.delivered:
            continue
        if log[f"handed {key}"]:
            kinds["charged, whole reply handed to a connection that its client left"] += 1
        elif max(map(books.delivering, auctions)) <= log[f"begin {key}"] - log[f"end {key}"]:
            kinds["charged, worker killed before it could hand over or take back"] += 1
        else:
            histories = {auction: books.bookings[auction] for auction in auctions}
            wrong.append(f"{key} never arrived and is charged: {histories}")
    if books.revenue != (due := sum((charge.total for charge in books.standing.values()), Decimal(0))):
        wrong.append(f"the revenue is {books.revenue}, and the standing charges are {due}")
    return wrong, kinds


def _parts_that_differ(text: str, shown: Mapping[str, Any], charge: Charge, books: Books) -> Iterator[str]:
    amounts: defaultdict[str, Decimal] = defaultdict(Decimal)
    for payment in shown["payments"]:
        amounts[payment["owner"]] += Decimal(payment["amount_decimal"])
    booked = {"seq": charge.seq, "hash": charge.hash, "receipt": charge.receipt}
    pairs = {
        "amounts": (amounts, {line.owner: line.amount for line in charge.lines}),
        "revenue": (Decimal(shown["revenue_decimal"]), charge.total),
        "booking": (shown["charge"], booked),
        "text": (text, books.texts[charge.auction_id]),
    }
    for name, (arrived, kept) in pairs.items():
        if arrived != kept:
            yield f"{name}: {arrived} arrived, {kept} is booked"


def faults(folder: Path, requests: int) -> dict[str, float]:
    """Send requests while workers are killed and clients hang up; print what happened and return what is wrong."""
    log = folder / "log"
    with postgresql(folder) as database:
        url = database("faults")
        with Ledger(url) as ledger:
            for owner in OWNERS:
                ledger.deposit(owner, DEPOSIT)
        settings = Settings(
            latency=LATENCY, candidates=4, agents=len(OWNERS), ledger=url, workers=3, keep_alive=LATENCY / 2
        )
        began = time.perf_counter()
        with serving(settings, kill_every=KILL_EVERY, log=str(log)) as server:
            answers = asyncio.run(ask_all(server, requests))
        books = read_books(url)
    wrong, kinds = differences_of(answers, books, Counter(log.read_text(encoding="utf-8").splitlines()))
    if unexpected := server.kills.get("unexpected"):
        wrong.append(f"{unexpected} workers ended by themselves")
    print(f"\n{requests} requests in {time.perf_counter() - began:.0f} s, workers ended by {server.kills}")
    print(f"attempts: {dict(answers.attempts)}")
    kinds["charges taken back"], kinds["expired holds released"] = books.count("reversal"), books.count("expiry")
    for kind, count in sorted(kinds.items()):
        print(f"{count:6d}  {kind}")
    for difference in wrong:
        print(difference)
    return {"lost_or_double_charged": len(wrong)}
