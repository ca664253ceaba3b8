"""The database: one engine per process, whole transactions, tried again where trying again may help."""

import os
import random
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from llm_auction_chain.errors import (
    ConfigurationError,
    LedgerError,
    LedgerUnavailableError,
    MissingDependencyError,
)
from llm_auction_chain.ledger.migrate import is_ready, upgrade

__all__ = ["Database"]

T = TypeVar("T")
_WRITES = "ledger_writes"
_BUSY = 30  # seconds to wait for other writers
_REACH = 10  # seconds to reach a PostgreSQL server
_TRIES = 3
_PAUSE = 0.05  # seconds
_PASSING = ("08", "40", "53300", "55P03", "57P")  # of PostgreSQL: connection, rollback, too many, lock, shutdown
_OTHER_TABLES = ("42P01", "42P07", "42703")  # of PostgreSQL: no such table, already there, no such column
_IN_SQLITE = {
    "SQLITE_BUSY": "is locked by another process for long. End it, or wait, and ask again.",
    "SQLITE_CANTOPEN": "cannot be opened. Make its folder, and let this process write there.",
    "SQLITE_READONLY": "is read-only. Let this process write to the file and its folder.",
    "SQLITE_FULL": "is on a disk that is full. Make room and ask again.",
    "SQLITE_IOERR": "cannot be read or written: its disk is full, over a limit or gone. Mend that and ask again.",
    "SQLITE_NOTADB": "is not a SQLite database. Give another path, or restore the file.",
    "SQLITE_CORRUPT": "is damaged. Restore it from a backup.",
    "SQLITE_ERROR": "holds another application's tables, or has lost its own. Give a database of its own, or a backup.",
}


class Database:
    """Runs pieces of work, each one transaction; makes the engine and the schema on first use, in each process anew.

    Attributes:
        url: where it is.
        scales: decimals of the currencies that were seen there.
    """

    def __init__(self, url: str | URL) -> None:
        self.url = _checked(url)
        self._forget()
        _DATABASES.add(self)

    def _forget(self) -> None:
        """Begin anew, without closing: in a forked process the connections are still the parent's."""
        self._lock = threading.RLock()
        self._engine: Engine | None = None
        self._opened: tuple[Engine, Engine] | None = None
        self.scales: dict[str, int] = {}

    def __str__(self) -> str:
        """Return where it is, without passwords."""
        query = {name: "***" if "password" in name else value for name, value in self.url.query.items()}
        return self.url.set(query=query).render_as_string()

    def read(self, work: Callable[[Connection], T]) -> T:
        """Return what work returns; it sees one state of the database."""
        return self._tried(lambda: self._once(work, writes=False))

    def write(self, work: Callable[[Connection], T]) -> T:
        """Return what work returns; all that it wrote is kept, or nothing."""
        return self._tried(lambda: self._once(work, writes=True))

    def migrate(self) -> None:
        """Bring the schema to the newest revision."""

        def work() -> None:
            with self._made().execution_options(**{_WRITES: True}).begin() as connection:
                upgrade(connection)

        self._tried(work)

    def close(self) -> None:
        """Close the connections; the next use opens new ones."""
        with self._lock:
            if self._engine is not None:
                self._engine.dispose()
            self._engine = self._opened = None
            self.scales = {}

    def _tried(self, work: Callable[[], T]) -> T:
        try:
            try:
                return work()
            except DBAPIError as error:
                if not _passes(error):
                    raise
            time.sleep(random.uniform(0, _PAUSE))  # noqa: S311 - so that writers who met do not meet again
            return _AGAIN.copy()(work)
        except IntegrityError as error:
            raise LedgerError(
                f"The database refused the booking, and nothing was booked. Run verify. It said: {_said(error)}"
            ) from error
        except (DBAPIError, PoolTimeout) as error:
            raise LedgerUnavailableError(f"The ledger {self} {_advice(error)} It said: {_said(error)}") from error

    def _once(self, work: Callable[[Connection], T], *, writes: bool) -> T:
        opened = self._opened
        readers, writers = self._open() if opened is None else opened
        with (writers if writes else readers).begin() as connection:
            return work(connection)

    def _open(self) -> tuple[Engine, Engine]:
        """Return the engines of readers and of writers."""
        with self._lock:
            engine = self._made()
            reads: dict[str, Any] = {}
            writes: dict[str, Any] = {_WRITES: True}
            if engine.dialect.name == "postgresql":
                reads = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
                # a writer waits for the one before it, and must then see what that one wrote
                writes = {"isolation_level": "READ COMMITTED"}
            readers, writers = engine.execution_options(**reads), engine.execution_options(**writes)
            with readers.begin() as connection:
                ready = is_ready(connection)
            if not ready:
                with writers.begin() as connection:
                    upgrade(connection, only_empty=True)
                    is_ready(connection)
            self._opened = readers, writers
            return self._opened

    def _made(self) -> Engine:
        with self._lock:
            if self._engine is None:
                try:
                    engine = _engine(self.url)
                    engine.connect().close()
                except (ArgumentError, TypeError, ValueError) as error:  # of drivers, whose words may tell a password
                    raise ConfigurationError(
                        f"The URL {self} has a part that its database cannot take ({type(error).__name__}). See its "
                        "port, its path and what follows the question mark."
                    ) from None
                weakref.finalize(self, _dispose, engine, os.getpid())
                self._engine = engine
            return self._engine


_DATABASES: "weakref.WeakSet[Database]" = weakref.WeakSet()
_PARENTS: list[Any] = []  # engines of a parent process: were they collected here, their connections would be closed


def _after_fork() -> None:
    for database in list(_DATABASES):
        _PARENTS.append(database._engine)  # noqa: SLF001
        database._forget()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _dispose(engine: Engine, process: int) -> None:
    if os.getpid() == process:
        engine.dispose()


def _checked(url: str | URL) -> URL:
    try:
        made = make_url(url)
        made.render_as_string()  # not all that can be read can be spelled
    except (ArgumentError, ValueError):  # its message would tell the password
        raise ConfigurationError(
            "url is none of a database; give 'sqlite:///file.db' or 'postgresql+psycopg://user@host/database'."
        ) from None
    if "@" in (made.host or ""):
        raise ConfigurationError("url has a second @; in a password, write @ as %40, : as %3A and / as %2F.")
    if made.drivername == "postgresql":
        return made.set(drivername="postgresql+psycopg")
    if made.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise ConfigurationError(
            f"url begins with {made.drivername!r}; the ledger knows 'sqlite' and 'postgresql+psycopg'."
        )
    if made.get_backend_name() == "sqlite" and not _in_memory(made) and "uri" not in made.query:
        return made.set(database=str(Path(str(made.database)).absolute()))  # wherever the process goes
    return made


def _in_memory(url: URL) -> bool:
    return not url.database or ":memory:" in url.database or url.query.get("mode") == "memory"


def _engine(url: URL) -> Engine:
    if url.get_backend_name() == "postgresql":
        return _postgresql(url)
    pool: dict[str, Any] = {"pool_size": 1, "max_overflow": 0} if _in_memory(url) else {}
    engine = create_engine(
        url, poolclass=QueuePool, connect_args={"isolation_level": None, "check_same_thread": False}, **pool
    )
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _postgresql(url: URL) -> Engine:
    # who hangs within a transaction, or is stopped there, must not hold up all other writers for ever
    limits = f"-c lock_timeout={_BUSY}s -c idle_in_transaction_session_timeout={2 * _BUSY}s"
    given: dict[str, Any] = {"options": " ".join(filter(None, (limits, str(url.query.get("options", "")))))}
    if "connect_timeout" not in url.query:
        given["connect_timeout"] = _REACH
    try:
        return create_engine(url, connect_args=given)
    except ImportError as error:
        raise MissingDependencyError(
            "A ledger in PostgreSQL needs psycopg: pip install 'llm-auction-chain[postgresql]'"
        ) from error


def _prepare(connection: Any, _: Any) -> None:
    connection.execute(f"PRAGMA busy_timeout={_BUSY * 1000}")
    if connection.execute("PRAGMA journal_mode").fetchone() not in (("wal",), ("memory",)):
        connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _passes(error: BaseException) -> bool:
    """Return whether trying again may help."""
    if not isinstance(error, DBAPIError):
        return False
    if name := getattr(error.orig, "sqlite_errorname", ""):
        return str(name).startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        return isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated
    return str(state).startswith(_PASSING)


def _advice(error: Exception) -> str:
    said = getattr(error, "orig", None)
    name = str(getattr(said, "sqlite_errorname", ""))
    for code, advice in _IN_SQLITE.items():
        if name.startswith(code):
            return advice
    if getattr(said, "sqlstate", None) in _OTHER_TABLES:
        return _IN_SQLITE["SQLITE_ERROR"]
    return (
        "cannot be used. See that the server runs, that the URL is right and lets you write; asking again with the "
        "same id or key is safe."
    )


def _said(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip()


_AGAIN = Retrying(
    stop=stop_after_attempt(_TRIES - 1),
    wait=wait_random_exponential(multiplier=_PAUSE, max=1),
    retry=retry_if_exception(_passes),
    reraise=True,
)
