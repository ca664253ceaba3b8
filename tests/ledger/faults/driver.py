"""The client of `worker.py`, and what must be true of a ledger after any fault."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from llm_auction_chain.ledger import Ledger
from tests.ledger.faults.worker import CURRENCY, OWNERS

FAR = datetime(2100, 1, 1, tzinfo=UTC)
DEPOSIT = Decimal(100_000)
ALL = DEPOSIT * (len(OWNERS) - 1)  # one has no account


class Ended(NamedTuple):
    """How a task's children ended.

    Attributes:
        codes: exit code of each, or its signal, negative.
        seconds: from the first fork to the last end.
        steps: names of the steps that were passed, where they were asked for.
        failed: what raised.
    """

    codes: list
    seconds: float
    steps: list
    failed: list

    @property
    def killed(self):
        return sum(code == -9 for code in self.codes)


class Client:
    """Has auctions held by a worker process, on one ledger; with `crowd`, each booking shares its transaction."""

    def __init__(self, url, folder, crowd):
        self.url, self.delivered, self._crowd = url, folder / "delivered", crowd
        self._failed, self._steps = folder / "failed", folder / "steps"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        program = [sys.executable, str(Path(__file__).with_name("worker.py"))]
        self._worker = subprocess.Popen(  # noqa: S603 - this project's own program
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        with Ledger(url) as ledger:
            for owner in OWNERS[:-1]:
                ledger.deposit(owner, DEPOSIT, currency=CURRENCY, key=f"first {owner}")
        assert self._worker.stdout.readline() == "{}\n"

    def begin(self, keys, *, steps=False, **task):
        """Send a task, as `worker.py` reads it, without waiting for its end."""
        for path in (self._failed, self._steps):
            path.unlink(missing_ok=True)
        task |= {"url": self.url, "delivered": str(self.delivered), "failed": str(self._failed), "keys": keys}
        task["crowd"] = self._crowd
        if steps:
            task["steps"] = str(self._steps)
        self._worker.stdin.write(json.dumps(task) + "\n")
        self._worker.stdin.flush()

    def end(self):
        """Wait for the task's end."""
        told = json.loads(self._worker.stdout.readline())
        failed = self._failed.read_text(encoding="utf-8").splitlines() if self._failed.exists() else []
        steps = json.loads(self._steps.read_text(encoding="utf-8")) if self._steps.exists() else []
        assert not any(code > 0 for code in told["ends"]), "\n".join(failed)
        return Ended(told["ends"], told["seconds"], steps, failed)

    def run(self, keys, **task):
        self.begin(keys, **task)
        return self.end()

    def left(self, keys):
        """Return the keys whose auction was not delivered: a client asks for them again."""
        done = {key for key, _, _ in deliveries(self.delivered)}
        return [key for key in keys if key not in done]

    def close(self):
        self._worker.stdin.close()
        self._worker.wait()
        self._worker.stdout.close()


def deliveries(path):
    """Return (key, auction id, revenue or None where nobody was charged) of every auction that was delivered."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [(key, auction, None if paid == "-" else Decimal(paid)) for key, auction, paid in map(str.split, lines)]


@dataclass
class Found:
    """What is booked, beside what was delivered.

    Attributes:
        delivered: auctions of which a reply was returned, sponsored or not.
        charged: auctions that are charged and not reversed.
        reversed: auctions whose charge was taken back.
        differences: in words; none where all is right.
    """

    delivered: int = 0
    charged: int = 0
    reversed: int = 0
    differences: list = field(default_factory=list)


def compare(url, delivered, deposited=ALL):
    """Return how the ledger and the deliveries differ; releases the holds that nobody came back for."""
    with Ledger(url) as ledger:
        ledger.expire_holds(now=FAR)
        audit, accounts, totals = ledger.verify(), ledger.accounts(), ledger.totals()
        bookings = _bookings_of(ledger)
    replies = defaultdict(set)
    for key, auction, revenue in delivered:
        replies[auction].add((key, revenue))
    found = Found(delivered=len(replies), differences=list(audit.differences))
    for auction in {*replies, *bookings}:
        found.differences += _differences_of(auction, replies[auction], bookings[auction], found)
    found.differences += [f"{account.owner} has {account.held} held" for account in accounts if account.held]
    due = sum((revenue for each in replies.values() for _, revenue in each if revenue is not None), Decimal(0))
    for total in totals:
        if total.cash != total.revenue + total.balances or total.cash != deposited or total.revenue != due:
            found.differences.append(f"{total}, and {due} was delivered of {deposited}")
    return found


def _bookings_of(ledger):
    """Return the charges and the reversals of every auction, each by its booking."""
    bookings = defaultdict(lambda: {"charge": defaultdict(Decimal), "reversal": defaultdict(Decimal)})
    for entry in ledger.entries():
        if entry.kind in ("charge", "reversal"):
            bookings[entry.auction_id][entry.kind][entry.seq] -= entry.amount
    return bookings


def _differences_of(auction, replies, bookings, found):
    charges, reversals = bookings["charge"], bookings["reversal"]
    net = sum((*charges.values(), *reversals.values()), Decimal(0))
    standing = len(charges) - len(reversals)
    found.charged += standing
    found.reversed += len(reversals)
    revenues = {revenue for _, revenue in replies if revenue is not None}
    if len(replies) > 1:
        yield f"{auction} was delivered as {replies}"
    if (standing, net) != ((1, *revenues) if revenues else (0, 0)):
        yield f"{auction} was delivered as {replies or 'nothing'} and has {dict(charges)} less {dict(reversals)}"
