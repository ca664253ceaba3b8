"""What every booking reads and writes, straight on the driver: SQLAlchemy would take longer than SQLite itself.

PostgreSQL gets the lock and all reads of a transaction in one message, and all writes and the commit in another. The
values are in their texts: that takes both sides less long than rows as JSON.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from sqlalchemy import Connection, Engine, Table
from sqlalchemy.exc import DBAPIError

from llm_auction_chain.ledger import tables

Statement = Mapping[str, str]  # its text by dialect
Rows = Sequence[tuple[Any, ...]]
Reads = Sequence[tuple[Statement, Rows]]  # queries, each with its keys
BEGIN = "ledger_begin"  # the option of a connection with which its transaction begins; empty where it has begun
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
_LOCK = f"BEGIN ISOLATION LEVEL READ COMMITTED; {_HEAD} FOR UPDATE"  # what follows sees what this waits for
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


class Transaction(ABC):
    """A transaction that writes, on one of the pool's connections. `lock` begins it."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._pooled = engine, engine.raw_connection()
        self._driver: Any = self._pooled.driver_connection
        self.errors: type[Exception] = errors_of(engine)

    @cached_property
    def connection(self) -> Connection:
        """The transaction, for queries of SQLAlchemy."""
        return Connection(self._engine, self._pooled).execution_options(**{BEGIN: ""})

    def commit(self) -> None:
        """Commit, unless `store` did."""
        self._driver.commit()

    def end(self, error: Exception | None) -> bool:
        """Give the connection back, after an error of the driver's perhaps; return whether it was lost.

        The pool rolls back what is not committed.
        """
        lost = self._is_lost()
        if lost and self._pooled.is_valid:  # else SQLAlchemy has met it
            self._pooled.invalidate(error)
        if error is not None and lost:
            self._engine.dispose()  # other idle connections to that server are lost, too
        self._pooled.close()
        return lost

    def _is_lost(self) -> bool:
        return False

    @abstractmethod
    def lock(self, *reads: tuple[Statement, Rows]) -> tuple[Any, list[Rows]]:
        """Lock all other writers out, and return the row of `head`, None where it is lost, and what `fetch` returns."""

    @abstractmethod
    def fetch(self, *reads: tuple[Statement, Rows]) -> list[Rows]:
        """Return the rows that each query finds for its keys, and perhaps rows of mixed keys."""

    @abstractmethod
    def store(self, rows: Mapping[Table, Rows], *, last: bool) -> None:
        """Write rows, in the order of each table's columns. PostgreSQL commits with the last ones."""


class _InSQLite(Transaction):
    def lock(self, *reads: tuple[Statement, Rows]) -> tuple[Any, list[Rows]]:
        self._driver.execute("BEGIN IMMEDIATE")
        return self._driver.execute(_HEAD).fetchone(), self.fetch(*reads)

    def fetch(self, *reads: tuple[Statement, Rows]) -> list[Rows]:
        execute = self._driver.execute
        return [
            execute(text["sqlite"], [_spelled(part) for part in _parts(keys)]).fetchall() if keys else []
            for text, keys in reads
        ]

    def store(self, rows: Mapping[Table, Rows], *, last: bool) -> None:  # noqa: ARG002
        for table, values in rows.items():
            if values:
                self._driver.executemany(INSERTS[table]["sqlite"], values)


class _InPostgreSQL(Transaction):
    def lock(self, *reads: tuple[Statement, Rows]) -> tuple[Any, list[Rows]]:
        _, head, *rows = self._send(_LOCK, *self._queries(reads))
        return head[0] if head else None, _in_place(rows, reads)

    def fetch(self, *reads: tuple[Statement, Rows]) -> list[Rows]:
        return _in_place(self._send(*self._queries(reads)), reads)

    def store(self, rows: Mapping[Table, Rows], *, last: bool) -> None:
        texts = [
            INSERTS[table]["postgresql"] % ", ".join(f"({', '.join(map(self._literal, row))})" for row in values)
            for table, values in rows.items()
            if values
        ]
        self._send(*texts, *["COMMIT"] * last)

    def _is_lost(self) -> bool:
        """Return whether the connection is broken, or was interrupted within a statement: it cannot roll back then."""
        from psycopg.pq import TransactionStatus

        return bool(self._driver.broken) or self._driver.pgconn.transaction_status == TransactionStatus.ACTIVE

    def _queries(self, reads: Reads) -> Iterator[str]:
        for text, keys in reads:
            if keys:
                yield text["postgresql"] % tuple(", ".join(map(self._literal, part)) for part in _parts(keys))

    def _literal(self, value: str | int | None) -> str:
        if isinstance(value, str):
            return bytes(self._escaped(value.encode())).decode()
        return "NULL" if value is None else str(value)

    @cached_property
    def _escaped(self) -> Any:
        from psycopg.pq import Escaping

        return Escaping(self._driver.pgconn).escape_literal

    def _send(self, *texts: str) -> list[Rows]:
        """Send statements in one message, and return the rows of each."""
        from psycopg import errors, generators
        from psycopg.adapt import Transformer
        from psycopg.pq import ExecStatus

        self._driver.pgconn.send_query("; ".join(texts).encode())
        rows: list[Rows] = []
        for result in self._driver.wait(generators.execute(self._driver.pgconn)):
            if result.status == ExecStatus.FATAL_ERROR:
                raise errors.error_from_result(result)
            loader = Transformer(self._driver)
            loader.set_pgresult(result)
            rows.append(loader.load_rows(0, result.ntuples, tuple))
        return rows


def _parts(keys: Rows) -> list[list[Any]]:
    """Return what each part of the keys may be."""
    return [list(dict.fromkeys(part)) for part in zip(*keys, strict=True)]


def _in_place(results: Sequence[Rows], reads: Reads) -> list[Rows]:
    """Return the rows of each query, none for those that have no keys."""
    rows = iter(results)
    return [next(rows) if keys else [] for _, keys in reads]


def errors_of(engine: Engine) -> type[Exception]:
    """Return what the driver raises."""
    dbapi: Any = engine.dialect.loaded_dbapi
    kind: type[Exception] = dbapi.Error
    return kind


@contextmanager
def transaction(engine: Engine) -> Iterator[Transaction]:
    """Yield a transaction that is committed in the end, and raise the driver's errors as SQLAlchemy's."""
    errors = errors_of(engine)
    begun, raised = None, None
    try:
        begun = _InSQLite(engine) if engine.dialect.name == "sqlite" else _InPostgreSQL(engine)
        yield begun
        begun.commit()
    except errors as error:
        raised = error
    finally:
        lost = begun is not None and begun.end(raised)
    if raised is not None:
        raise DBAPIError.instance(
            "a booking", None, raised, errors, connection_invalidated=lost, dialect=engine.dialect
        ) from raised
