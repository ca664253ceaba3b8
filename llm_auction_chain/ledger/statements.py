"""What every booking reads and writes, straight on the driver: SQLAlchemy would take longer than SQLite itself.

PostgreSQL gets the lock and all reads of a transaction in one message, and all writes and the commit in another. The
values are in their texts: that takes both sides less long than parameters, prepared statements or rows as JSON.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.exc import DBAPIError

from llm_auction_chain.ledger import tables

Statement = Mapping[str, str]  # its text by dialect
Rows = Sequence[tuple[Any, ...]]
_spelled = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _names(table: Table) -> str:
    return ", ".join(f'"{column.name}"' for column in table.columns)


def _rows_of(table: Table, **where: str) -> Statement:
    """Return a query for several keys; each `$` is a set of what one part of the keys may be."""
    keys = {"sqlite": "(SELECT value FROM json_each(?))", "postgresql": "(%s)"}
    query = f"SELECT {_names(table)} FROM {table.name} WHERE"  # noqa: S608
    return {name: f"{query} {where.get(name, where['sqlite']).replace('$', keys[name])}" for name in keys}


def _insert(table: Table, *, replace: bool = False) -> Statement:
    """Return the statement that inserts rows, or replaces those of the same key."""
    clause = ""
    if replace:
        key = ", ".join(column.name for column in table.primary_key)
        new = ", ".join(f'"{one.name}" = excluded."{one.name}"' for one in table.columns if not one.primary_key)
        clause = f" ON CONFLICT ({key}) DO UPDATE SET {new}"
    rows = {"sqlite": f"({', '.join('?' for _ in table.columns)})", "postgresql": "%s"}
    return {name: f"INSERT INTO {table.name} ({_names(table)}) VALUES {row}{clause}" for name, row in rows.items()}  # noqa: S608


_HEAD = f"SELECT {_names(tables.head)} FROM head WHERE id = 1"  # noqa: S608
_LOCK = f"BEGIN ISOLATION LEVEL READ COMMITTED; {_HEAD} FOR UPDATE; "  # what follows sees what this waits for
_HOLDS = "SELECT hold_seq FROM auctions WHERE auction_id IN $"
_IN_ORDER = " ORDER BY seq, line"
AUCTIONS = _rows_of(tables.auctions, sqlite="auction_id IN $")
ACCOUNTS = _rows_of(tables.accounts, sqlite="owner IN $ AND currency IN $")
HELD = _rows_of(
    tables.entries,
    sqlite=f"seq IN ({_HOLDS}){_IN_ORDER}",
    postgresql=f"seq = ANY(ARRAY({_HOLDS})){_IN_ORDER}",  # else it may read the whole table
)
INSERTS = {table: _insert(table) for table in (tables.bookings, tables.entries, tables.receipts)} | {
    table: _insert(table, replace=True) for table in (tables.accounts, tables.auctions, tables.currencies, tables.head)
}


def lock(connection: Connection, *reads: tuple[Statement, Rows]) -> tuple[Any, list[Rows]]:
    """Lock all other writers out, and return the row of `head`, None where it is lost, and what `fetch` returns."""
    with on_driver(connection) as driver:
        if connection.dialect.name == "sqlite":  # it locks as a transaction begins
            return driver.execute(_HEAD).fetchone(), _fetch(driver, reads)
        _, head, *rows = _send(driver, _LOCK + _queries(driver, reads))
    return head[0] if head else None, _in_place(rows, reads)


def fetch(connection: Connection, *reads: tuple[Statement, Rows]) -> list[Rows]:
    """Return the rows that each query finds for its keys, and perhaps rows of mixed keys."""
    with on_driver(connection) as driver:
        if connection.dialect.name == "sqlite":
            return _fetch(driver, reads)
        return _in_place(_send(driver, _queries(driver, reads)), reads)


def store(connection: Connection, rows: Mapping[Table, Rows], *, last: bool) -> None:
    """Write rows, in the order of each table's columns. PostgreSQL commits with the last ones."""
    written = {table: values for table, values in rows.items() if values}
    with on_driver(connection) as driver:
        if connection.dialect.name == "sqlite":
            for table, values in written.items():
                driver.executemany(INSERTS[table]["sqlite"], values)
            return
        spelled = _literals(driver)
        texts = [
            INSERTS[table]["postgresql"] % ", ".join(f"({', '.join(map(spelled, row))})" for row in values)
            for table, values in written.items()
        ]
        _send(driver, "; ".join([*texts, "COMMIT"] if last else texts))


def _parts(keys: Rows) -> list[list[Any]]:
    """Return what each part of the keys may be."""
    return [list(dict.fromkeys(part)) for part in zip(*keys, strict=True)]


def _fetch(driver: Any, reads: Sequence[tuple[Statement, Rows]]) -> list[Rows]:
    return [
        driver.execute(text["sqlite"], [_spelled(part) for part in _parts(keys)]).fetchall() if keys else []
        for text, keys in reads
    ]


def _queries(driver: Any, reads: Sequence[tuple[Statement, Rows]]) -> str:
    """Return the queries that have keys, in PostgreSQL."""
    spelled = _literals(driver)
    asked = ((text["postgresql"], _parts(keys)) for text, keys in reads if keys)
    return "; ".join(text % tuple(", ".join(map(spelled, part)) for part in parts) for text, parts in asked)


def _in_place(results: Sequence[Rows], reads: Sequence[tuple[Statement, Rows]]) -> list[Rows]:
    """Return the rows of each query, none for those that have no keys."""
    rows = iter(results)
    return [next(rows) if keys else [] for _, keys in reads]


def _literals(driver: Any) -> Callable[[Any], str]:
    """Return what writes a value into a statement of PostgreSQL."""
    from psycopg.pq import Escaping

    escaped = Escaping(driver.pgconn).escape_literal

    def literal(value: str | int | None) -> str:
        if isinstance(value, str):
            return bytes(escaped(value.encode())).decode()
        return "NULL" if value is None else str(value)

    return literal


def _send(driver: Any, text: str) -> list[Rows]:
    """Send statements to PostgreSQL in one message, and return the rows of each."""
    from psycopg import errors, generators
    from psycopg.adapt import Transformer
    from psycopg.pq import ExecStatus

    driver.pgconn.send_query(text.encode())
    found: list[Rows] = []
    for result in driver.wait(generators.execute(driver.pgconn)):
        if result.status == ExecStatus.FATAL_ERROR:
            raise errors.error_from_result(result)
        loader = Transformer(driver)
        loader.set_pgresult(result)
        found.append(loader.load_rows(0, result.ntuples, tuple))
    return found


@contextmanager
def on_driver(connection: Connection) -> Iterator[Any]:
    """Yield the driver's connection, and raise its errors as SQLAlchemy's. Interrupted, it is closed."""
    driver: Any = connection.connection.driver_connection
    dbapi: Any = connection.dialect.loaded_dbapi
    kind = dbapi.Error
    try:
        yield driver
    except kind as error:
        lost = bool(getattr(driver, "broken", False))
        if lost:
            connection.invalidate(error)
            connection.engine.dispose()  # other idle connections to that server are lost, too
        raise DBAPIError.instance(
            "a booking", None, error, kind, connection_invalidated=lost, dialect=connection.dialect
        ) from error
    except BaseException:
        if connection.dialect.name == "postgresql":
            connection.invalidate()  # interrupted within a statement, it could neither go on nor roll back
        raise
