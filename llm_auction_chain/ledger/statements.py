"""What every booking reads and writes, straight on the driver: SQLAlchemy would take longer than SQLite itself.

PostgreSQL gets the lock and all reads of a transaction in one round trip, and all writes and the commit in another,
however many rows they are. Rows travel as JSON: the driver takes long over arrays and over many results.
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


def _rows_of(table: Table, where: str, order: str = "") -> Statement:
    """Return a query for several keys; each `$` is a parameter, a JSON list of what one part of the keys may be."""
    names, rest = _names(table), f"FROM {table.name} WHERE {where}"
    keys = "= ANY(ARRAY(SELECT json_array_elements_text(%s::json)))"
    return {
        "sqlite": f"SELECT {names} {rest}{order}".replace("$", "IN (SELECT value FROM json_each(?))"),
        "postgresql": f"SELECT json_agg(json_build_array({names}){order}) {rest}".replace("$", keys),
    }


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
_LOCK = {"sqlite": _HEAD, "postgresql": f"{_HEAD} FOR UPDATE"}  # SQLite locks as a transaction begins
AUCTIONS = _rows_of(tables.auctions, "auction_id $")
ACCOUNTS = _rows_of(tables.accounts, "owner $ AND currency $")
HELD = _rows_of(tables.entries, "seq IN (SELECT hold_seq FROM auctions WHERE auction_id $)", " ORDER BY seq, line")
_COLUMNS = {table: tuple(table.columns.keys()) for table in tables.METADATA.sorted_tables}
INSERTS = {table: _insert(table) for table in (tables.bookings, tables.entries, tables.receipts)} | {
    table: _insert(table, replace=True) for table in (tables.accounts, tables.auctions, tables.currencies, tables.head)
}


def lock(connection: Connection, *reads: tuple[Statement, Rows]) -> tuple[Any, list[list[Any]]]:
    """Lock all other writers out, and return the row of `head`, None where it is lost, and what `fetch` returns."""
    if connection.dialect.name == "sqlite":
        with _on_driver(connection) as driver:
            head = driver.execute(_LOCK["sqlite"]).fetchone()
        return head, fetch(connection, *reads)
    query, parts = _together(reads)
    with _on_driver(connection) as cursor:
        # two statements, because the one that waits does not see what it has waited for
        cursor.execute(f"{_LOCK['postgresql']}; {query}", parts)
        head = cursor.fetchone()
        cursor.nextset()
        return head, _rows(cursor, reads)


def fetch(connection: Connection, *reads: tuple[Statement, Rows]) -> list[list[Any]]:
    """Return the rows that each query finds for its keys, and perhaps rows of mixed keys."""
    with _on_driver(connection) as driver:
        if connection.dialect.name == "sqlite":
            return [driver.execute(text["sqlite"], _parts(keys)).fetchall() if keys else [] for text, keys in reads]
        driver.execute(*_together(reads))
        return _rows(driver, reads)


def _together(reads: Sequence[tuple[Statement, Rows]]) -> tuple[str, list[str]]:
    """Return one statement of PostgreSQL for all queries that have keys, a column each, and its parameters."""
    queries = ", ".join(f"({text['postgresql']})" for text, keys in reads if keys)
    return f"SELECT {queries}", [part for _, keys in reads for part in _parts(keys)]


def _parts(keys: Rows) -> list[str]:
    return [_spelled(part) for part in zip(*keys, strict=True)]


def _rows(cursor: Any, reads: Sequence[tuple[Statement, Rows]]) -> list[list[Any]]:
    columns = iter(cursor.fetchone())
    return [next(columns) or [] if keys else [] for _, keys in reads]


def store(connection: Connection, rows: Mapping[Table, Rows], *, last: bool) -> None:
    """Write rows, in the order of each table's columns. PostgreSQL commits with the last ones."""
    written = {table: values for table, values in rows.items() if values}
    with _on_driver(connection) as driver:
        if connection.dialect.name == "sqlite":
            for table, values in written.items():
                driver.executemany(INSERTS[table]["sqlite"], values)
        else:
            records = [
                _spelled([dict(zip(_COLUMNS[table], row, strict=True)) for row in values])
                for table, values in written.items()
            ]
            driver.execute(_insert_all(*written) + "; COMMIT" * last, records)


@cache
def _insert_all(*inserted: Table) -> str:
    """Return the one statement of PostgreSQL that writes to several tables."""
    *parts, last = (INSERTS[table]["postgresql"] for table in inserted)
    return f"WITH {', '.join(f'part_{n} AS ({part})' for n, part in enumerate(parts))} {last}"


@contextmanager
def _on_driver(connection: Connection) -> Iterator[Any]:
    """Yield what executes statements on the driver, and raise its errors as SQLAlchemy's. Interrupted, it is closed."""
    driver: Any = connection.connection.driver_connection
    dbapi: Any = connection.dialect.loaded_dbapi
    kind = dbapi.Error
    try:
        # a cursor that spells parameters out is twice as fast, and may send several statements at once
        yield driver if connection.dialect.name == "sqlite" else dbapi.ClientCursor(driver)
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
