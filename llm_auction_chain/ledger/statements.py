"""What every booking reads and writes, straight on the driver: SQLAlchemy would take longer than SQLite itself.

PostgreSQL gets all reads of a transaction in one round trip (its pipeline mode), and all writes as one statement,
however many rows they are.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.exc import DBAPIError

from llm_auction_chain.ledger import tables

Statement = Mapping[str, str]  # its text by dialect
Rows = Sequence[tuple[Any, ...]]
_spelled = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _names(table: Table) -> str:
    return ", ".join(f'"{column.name}"' for column in table.columns)


def _rows_of(table: Table, where: str) -> Statement:
    """Return a query that takes several keys; `$` stands for a part of the key."""
    text = f"SELECT {_names(table)} FROM {table.name} WHERE {where}"  # noqa: S608 - texts of this module
    return {"sqlite": text.replace("$", "= ?"), "postgresql": text.replace("$", "= ANY(%s)")}


def _insert(table: Table, *, replace: bool = False) -> Statement:
    """Return the statement that inserts rows, or replaces those of the same key."""
    names, rows = _names(table), f"json_populate_recordset(NULL::{table.name}, %s::json)"
    clause = ""
    if replace:
        key = ", ".join(column.name for column in table.primary_key)
        new = ", ".join(f'"{one.name}" = excluded."{one.name}"' for one in table.columns if not one.primary_key)
        clause = f" ON CONFLICT ({key}) DO UPDATE SET {new}"
    values = ", ".join("?" for _ in table.columns)
    return {
        "sqlite": f"INSERT INTO {table.name} ({names}) VALUES ({values}){clause}",  # noqa: S608
        "postgresql": f"INSERT INTO {table.name} ({names}) SELECT {names} FROM {rows}{clause}",  # noqa: S608
    }


_HEAD = f"SELECT {_names(tables.head)} FROM head WHERE id = 1"  # noqa: S608
HEAD: Statement = {"sqlite": _HEAD, "postgresql": f"{_HEAD} FOR UPDATE"}  # SQLite locks as a transaction begins
AUCTIONS = _rows_of(tables.auctions, "auction_id $")
ACCOUNTS = _rows_of(tables.accounts, "owner $ AND currency $")
HELD = _rows_of(tables.entries, "seq IN (SELECT hold_seq FROM auctions WHERE auction_id $) ORDER BY seq, line")
INSERTS = {table: _insert(table) for table in (tables.bookings, tables.entries, tables.receipts)} | {
    table: _insert(table, replace=True) for table in (tables.accounts, tables.auctions, tables.currencies, tables.head)
}


def fetch(connection: Connection, *reads: tuple[Statement, Rows]) -> list[list[Any]]:
    """Return the rows that each query finds for its keys; PostgreSQL may add rows of mixed keys."""
    with _on_driver(connection) as driver:
        if connection.dialect.name == "sqlite":
            return [[row for key in keys for row in driver.execute(text["sqlite"], key)] for text, keys in reads]
        with driver.pipeline():
            cursors = [
                driver.execute(text["postgresql"], [list(part) for part in zip(*keys, strict=True)]) if keys else None
                for text, keys in reads
            ]
        return [[] if cursor is None else cursor.fetchall() for cursor in cursors]


def store(connection: Connection, rows: Mapping[Table, Rows]) -> None:
    """Write rows, in the order of each table's columns."""
    written = {table: values for table, values in rows.items() if values}
    with _on_driver(connection) as driver:
        if connection.dialect.name == "sqlite":
            for table, values in written.items():
                driver.executemany(INSERTS[table]["sqlite"], values)
        else:
            records = [
                _spelled([dict(zip(table.columns.keys(), row, strict=True)) for row in values])
                for table, values in written.items()
            ]
            driver.execute(_insert_all(*written), records)


@cache
def _insert_all(*inserted: Table) -> str:
    """Return the one statement of PostgreSQL that writes to several tables."""
    *parts, last = (INSERTS[table]["postgresql"] for table in inserted)
    return f"WITH {', '.join(f'part_{n} AS ({part})' for n, part in enumerate(parts))} {last}"


@contextmanager
def _on_driver(connection: Connection) -> Iterator[Any]:
    """Yield the driver's connection, and raise its errors as SQLAlchemy's. One that is interrupted is closed."""
    driver: Any = connection.connection.driver_connection
    kind: Any = connection.dialect.loaded_dbapi.Error
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
            connection.invalidate()  # interrupted within a pipeline, it could neither go on nor roll back
        raise
