"""A program that holds auctions in forked children, and lets them die, lose their database or their disk on the way.

It imports everything once, then reads tasks from standard input, one JSON object a line, forks children for each, which
hold auctions while they have keys, and answers with how they ended. What a child has returned it appends to a file. In
place of a key there may be a list of keys, whose auctions are held at the same time.
"""

import gc
import json
import logging
import os
import resource
import signal
import sys
import threading
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

from sqlalchemy import Engine, event, make_url

from llm_auction_chain import Agent, AuctionRunnable, AuctionWarning, Billing
from llm_auction_chain.errors import CoverError, LedgerError
from llm_auction_chain.ledger import Ledger, operations, statements
from llm_auction_chain.ledger.transaction import Operation
from llm_auction_chain.testing import MarkovChatModel

OWNERS = "ABCDEFGH"  # H has no account
CURRENCY = "EUR"
BACKENDS = """
SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


def agents_of(key):
    """Return 3 to 8 agents, the same for the same key."""
    many = 3 + sha256(key.encode()).digest()[0] % 6
    return [Agent(f"agent {owner}", likes("abc"[n % 3], n), owner=owner) for n, owner in enumerate(OWNERS[:many])]


def likes(letter, n):
    return lambda prompt, reply: (0.5 + 0.25 * n) * reply.text.count(letter)


def auction_of(key, ledger, on_error="reference", **settings):
    made = {"model": MarkovChatModel(), "agents": agents_of(key), "n_candidates": 4, "report_cap": 3.0}
    billing = Billing(ledger=ledger, currency=CURRENCY, on_error=on_error)
    return AuctionRunnable(**made, billing=billing, **settings)


def config_of(key):
    return {"configurable": {"idempotency_key": key}}


def delivery_of(key, reply):
    """Return the key, the auction and its revenue, None where nothing was charged, of a reply."""
    metadata = reply.response_metadata["auction"]
    return key, metadata["auction_id"], Decimal(metadata["revenue_decimal"]) if metadata["charge"] else None


class Fault:
    """Counts the steps of an auction and does something at one of them.

    Attributes:
        names: of the steps that were passed.
    """

    def __init__(self, task):
        self.names = []
        self.at, self.act = task.get("at"), task.get("act")
        self.lasting = bool(task.get("lasting"))
        self._url = task["url"]
        self._outside = None
        if self.act == "cut":
            import psycopg

            url = make_url(self._url).set(drivername="postgresql").render_as_string(hide_password=False)
            self._outside = psycopg.connect(url, autocommit=True)

    def step(self, name):
        self.names.append(name)
        if self.at is None or (len(self.names) < self.at if self.lasting else len(self.names) != self.at):
            return
        if self.act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.act == "cut":
            self._outside.execute(BACKENDS)

    def end(self):
        self.at = None


class Crowded(Ledger):
    """A ledger whose every operation shares its transaction with three others: two are refused, one is its repetition.

    Attributes:
        crowd: whether it does.
    """

    crowd = True
    _within = False  # a transaction that failed is tried again without the others

    def _book(self, group):
        if not self.crowd or self._within:
            return super()._book(group)
        self._within = True
        try:
            refused = Operation(operations.move_cash, ("withdrawal", "Nobody", Decimal(1), "", uuid4().hex, ""), {})
            repeated = [operation for operation in group if operation.verb is not operations.expire]  # of one page
            outcomes = super()._book([refused, *group, *repeated, refused])
        finally:
            self._within = False
        own, again = outcomes[1 : len(group) + 1], iter(outcomes[len(group) + 1 : -1])
        for operation, (value, error) in zip(group, own, strict=True):
            same, refusal = next(again) if operation in repeated else (value, error)
            assert (same, type(refusal)) == (value, type(error))
        others = {type(error) for _, error in (outcomes[0], outcomes[-1])}
        assert others == {CoverError} or others == {type(error) for _, error in own}
        return own


class Watched(Crowded):
    """A ledger whose every verb is two steps: before, and after."""

    fault = None

    def hold(self, *args, **keywords):
        return self._between("hold", super().hold, args, keywords)

    def charge(self, *args, **keywords):
        return self._between("charge", super().charge, args, keywords)

    def void(self, *args, **keywords):
        return self._between("void", super().void, args, keywords)

    def cancel(self, *args, **keywords):
        return self._between("cancel", super().cancel, args, keywords)

    def _between(self, verb, call, args, keywords):
        self.fault.step(f"before {verb}")
        done = call(*args, **keywords)
        self.fault.step(f"after {verb}")
        return done


def watched(call, name, fault):
    def steps(*args, **more):
        fault.step(f"before {name}")
        done = call(*args, **more)
        fault.step(f"after {name}")
        return done

    return steps


def watch_statements(fault):
    """Make every statement and every commit of this process a step before it and one after it."""
    for kind in statements.Transaction.__subclasses__():
        kind.commit = watched(kind.commit, "COMMIT", fault)
        for name in ("lock", "fetch", "store"):
            setattr(kind, name, watched(getattr(kind, name), name, fault))

    @event.listens_for(Engine, "before_cursor_execute")
    def before(connection, cursor, statement, *_):
        fault.step(f"before {' '.join(statement.split()[:3])}")

    @event.listens_for(Engine, "after_cursor_execute")
    def after(connection, cursor, statement, *_):
        fault.step(f"after {' '.join(statement.split()[:3])}")


def hold_auctions(task):
    """Hold an auction for each key, and note each that was returned."""
    fault = Fault(task)
    watch_statements(fault)
    if "pages" in task:
        limit_pages(task)
    ledger = Watched(task["url"])
    ledger.fault = fault
    ledger.crowd = task["crowd"]
    if "bytes" in task:
        limit_files(task)
    for key in task["keys"]:
        if isinstance(key, list):
            with ThreadPoolExecutor(len(key)) as pool:
                list(pool.map(lambda one: deliver(task, one, ledger, fault), key))
        else:
            deliver(task, key, ledger, fault)
        fault.end()
        make_room(task)
    last = 0
    while task.get("last") and not deliver(task, f"{task['keys'][-1]}-last-{last}", ledger, fault):
        last += 1
    if "steps" in task:
        Path(task["steps"]).write_text(json.dumps(fault.names), encoding="utf-8")


def deliver(task, key, ledger, fault):
    """Hold one auction, and return whether it was charged and delivered."""

    def on_event(told):
        fault.step(told.name)
        if told.name == task.get("fails_at") and fault.at is not None:
            raise OSError("a listener")

    how = {"on_error": task.get("on_ledger_error", "reference"), "on_event": on_event}
    try:
        reply = auction_of(key, ledger, **how).invoke("Say something", config_of(key))
    except (LedgerError, OSError) as error:
        note(task["failed"], f"{key} {type(error).__name__}")
        return False
    _, auction_id, revenue = delivery_of(key, reply)
    fault.step("reply returned")
    note(task["delivered"], f"{key} {auction_id} {'-' if revenue is None else revenue}")
    fault.step("reply delivered")
    return revenue is not None


def note(path, line):
    """Append a line for good: whole, or not at all."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, f"{line}\n".encode())
    os.fsync(file)
    os.close(file)


def limit_files(task):
    """Let no file grow beyond what the database's log has and a little more; the system refuses to write more."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    log = Path(f"{make_url(task['url']).database}-wal")
    most = max(1 << 14, log.stat().st_size if log.exists() else 0) + task["bytes"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


def limit_pages(task):
    """Let the database have no more pages than now and a few more."""

    @event.listens_for(Engine, "connect")
    def limit(connection, _):
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages + task['pages']}")

    @event.listens_for(Engine, "checkout")
    def unlimit(connection, *_):
        if "room" in task:
            connection.execute("PRAGMA max_page_count=1000000")


def make_room(task):
    task["room"] = True
    if "bytes" in task:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def child(task):
    code = 1
    try:
        warnings.simplefilter("ignore", AuctionWarning)
        logging.getLogger("llm_auction_chain").addHandler(logging.NullHandler())
        hold_auctions(task)
        code = 0
    except BaseException:  # noqa: BLE001 - told where it is read, and a fork must not go on as its parent
        note(task["failed"], f"- {traceback.format_exc()}")
    finally:
        os._exit(code)


def run(task):
    """Fork a child for each list of keys, kill them after a while if asked to, and return how they ended."""
    shares = task.pop("shares", None) or [task["keys"]]
    begun = time.perf_counter()
    children = [os.fork() or child({**task, "keys": keys}) for keys in shares]
    if task.get("kill_after") is not None:
        time.sleep(task["kill_after"])
        for one in children:
            os.kill(one, signal.SIGKILL)
    ends = [os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]) for one in children]
    return {"ends": ends, "seconds": time.perf_counter() - begun}


def warm_up():
    """Import and compile what an auction needs, before the first fork."""
    with Ledger("sqlite://") as ledger:
        ledger.deposit("A", 100, currency=CURRENCY)
        for key in ("x", str(uuid4())):
            auction_of(key, ledger).invoke("Say something", config_of(key))
    import psycopg  # noqa: F401

    while threading.active_count() > 1:
        time.sleep(0.001)
    gc.collect()
    gc.freeze()  # a child that looks for garbage here would copy all of it


if __name__ == "__main__":
    warm_up()
    print("{}", flush=True)  # noqa: T201 - ready
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)  # noqa: T201 - the answer
