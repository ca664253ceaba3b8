"""The database: one engine, transactions that are repeated where that may help, and errors that say what to do."""

import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import URL, Connection, Engine, NullPool, Pool, QueuePool, create_engine, event, inspect, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from llm_auction_chain.errors import ConfigurationError, LedgerError, LedgerUnavailableError, MissingDependencyError
from llm_auction_chain.ledger.groups import Groups
from llm_auction_chain.ledger.migrations import is_current, upgrade
from llm_auction_chain.ledger.statements import BEGIN, Transaction, transaction
from llm_auction_chain.ledger.tables import VERSIONS

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C")  # a connection, or a transaction on one
_WRITES = {BEGIN: "BEGIN IMMEDIATE"}
_LOCK_TIMEOUT = 30  # seconds to wait for other writers
_LOG_PAGES = 4000  # of 4 KiB: SQLite moves its log into the file when it is that long, at a commit
_CONNECT_TIMEOUT = 10  # seconds to reach a PostgreSQL server
# PostgreSQL's codes for connection lost, transaction rolled back, too many connections, lock timeout, shutdown
_TRANSIENT = ("08", "40", "53300", "55P03", "57P")
_OTHER_TABLES = ("42P01", "42P07", "42703")  # PostgreSQL's codes for no such table, table exists, no such column
_SQLITE_ADVICE = {
    "SQLITE_BUSY": "is locked by another process for long. End it, or wait, and ask again.",
    "SQLITE_CANTOPEN": "cannot be opened. Make its folder, and let this process write there.",
    "SQLITE_READONLY": "is read-only. Let this process write to the file and its folder.",
    "SQLITE_FULL": "is on a disk that is full. Make room and ask again.",
    "SQLITE_IOERR": "cannot be read or written: its disk is full, over a limit or gone. Repair that and ask again.",
    "SQLITE_NOTADB": "is not a SQLite database. Give another path, or restore the file.",
    "SQLITE_CORRUPT": "is damaged. Restore it from a backup.",
    "SQLITE_ERROR": "holds another application's tables, or has lost its own. Use a database of its own, or a backup.",
}


@contextmanager
def reading() -> Iterator[None]:
    """Raise LedgerError for what code of ours raises over a row that it has not written so."""
    try:
        yield
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise LedgerError(
            f"The ledger holds a value that it never writes ({type(error).__name__}: {error!s:.200}). Run verify, and "
            "restore a backup."
        ) from error


class Database:
    """Runs units of work, each in one transaction. Its first use creates the schema in an empty database."""

    def __init__(self, url: str | URL) -> None:
        self.url = _checked(url)
        self.scales: dict[str, int] = {}  # decimals of the currencies that transactions have read
        self.groups: Groups[Any] = Groups()  # of those that write
        self._engine = _engine(self.url)
        self._opened: tuple[Engine, Engine] | None = None
        weakref.finalize(self, self._engine.dispose)
        _DATABASES.add(self)

    def __reduce__(self) -> tuple[type["Database"], tuple[str]]:
        """Copy and pickle the URL; a copy has connections of its own."""
        return Database, (self.url.render_as_string(hide_password=False),)

    def __str__(self) -> str:
        """Return the URL without passwords."""
        query = {name: "***" if "password" in name else value for name, value in self.url.query.items()}
        return self.url.set(query=query).render_as_string()

    def has_ledger(self) -> bool:
        """Return whether there is a ledger. Unlike other methods, it creates none, and no file."""
        path = str(self.url.database)
        if "uri" in self.url.query:
            path = path.removeprefix("file:").partition("?")[0]
        if self._engine.dialect.name == "sqlite" and not Path(path).exists():
            return False
        engine = create_engine(self.url, poolclass=NullPool)
        return self._repeat(lambda: engine, Engine.begin, lambda begun: bool(inspect(begun).has_table(VERSIONS)))

    def read(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **more: P.kwargs) -> T:
        """Return what work returns; it sees one state of the database."""
        return self._repeat(
            lambda: self._engines()[0], Engine.begin, lambda connection: work(connection, *args, **more)
        )

    def write(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **more: P.kwargs) -> T:
        """Return what work returns; all that it writes is stored, or nothing."""
        return self._repeat(
            lambda: self._engines()[1], Engine.begin, lambda connection: work(connection, *args, **more)
        )

    def book(self, work: Callable[[Transaction], T]) -> T:
        """Return what work returns in a transaction straight on the driver."""
        return self._repeat(lambda: self._engines()[1], transaction, work)

    def migrate(self) -> None:
        """Upgrade the schema to the newest revision."""
        self._repeat(lambda: self._engine.execution_options(**_WRITES), Engine.begin, upgrade)

    def close(self, *, inherited: bool = False) -> None:
        """Close the connections, or leave those that a fork inherited to its parent; the next use opens new ones."""
        if inherited:
            _INHERITED.append(self._engine.pool)
            self.groups = Groups()  # the threads of the others are the parent's
        self._engine.dispose(close=not inherited)
        self._opened, self.scales = None, {}

    def _repeat(
        self, engine: Callable[[], Engine], begin: Callable[[Engine], AbstractContextManager[C]], work: Callable[[C], T]
    ) -> T:
        """Return what work returns in a transaction, which is repeated where that may help."""

        def once() -> T:
            with reading(), begin(engine()) as connection:
                return work(connection)

        def again() -> T:
            if first:
                raise first.pop()
            return once()

        first: list[DBAPIError] = []
        try:
            try:
                return once()
            except DBAPIError as error:
                first.append(error)
            return _RETRYING.copy()(again)  # which would take as long as a booking
        except IntegrityError as error:
            raise LedgerError(
                f"The database refused the booking, and nothing was booked. Run verify. Its message: {_message(error)}"
            ) from error
        except (DBAPIError, PoolTimeout) as error:
            advice, message = _advice(error), _message(error)
            raise LedgerUnavailableError(f"The ledger {self} {advice} The database's message: {message}") from error

    def _engines(self) -> tuple[Engine, Engine]:
        """Return the engines of readers and of writers, once the schema is there."""
        if self._opened is not None:
            return self._opened
        reads: dict[str, Any] = {}
        if self._engine.dialect.name == "postgresql":
            reads = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        readers, writers = self._engine.execution_options(**reads), self._engine.execution_options(**_WRITES)
        with readers.begin() as connection:
            current = is_current(connection)
        if not current:
            with writers.begin() as connection:
                upgrade(connection, only_empty=True)
                is_current(connection)
        self._opened = readers, writers
        return self._opened


_DATABASES: "weakref.WeakSet[Database]" = weakref.WeakSet()
_INHERITED: list[Pool] = []  # kept, because SQLite forbids a forked process even to close its parent's connections


def _after_fork() -> None:
    for database in list(_DATABASES):
        database.close(inherited=True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _checked(url: str | URL) -> URL:
    parsed: URL | None
    try:
        parsed = make_url(url)
        parsed.render_as_string().encode()  # some URLs can be parsed but not written
    except (ArgumentError, ValueError):  # its message would show the password
        parsed = None
    if parsed is None or "\0" in (parsed.database or ""):
        raise ConfigurationError(
            "url is not a database URL: give 'sqlite:///file.db' or 'postgresql+psycopg://user@host/database'."
        )
    if "@" in (parsed.host or ""):
        raise ConfigurationError("url has a second @: in a password write @ as %40, : as %3A and / as %2F.")
    if parsed.drivername == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise ConfigurationError(f"url must begin with 'sqlite' or 'postgresql+psycopg', not {parsed.drivername!r}.")
    if parsed.get_backend_name() == "sqlite" and not in_memory(parsed) and "uri" not in parsed.query:
        return parsed.set(database=str(Path(str(parsed.database)).absolute()))  # the process may change its folder
    return parsed


def in_memory(url: URL) -> bool:
    """Return whether a URL is of a SQLite database in memory."""
    empty = not url.database or ":memory:" in url.database or url.query.get("mode") == "memory"
    return empty and url.get_backend_name() == "sqlite"


def _engine(url: URL) -> Engine:
    try:
        return _postgresql(url) if url.get_backend_name() == "postgresql" else _sqlite(url)
    except (ArgumentError, TypeError, ValueError) as error:  # its message may show the password
        raise ConfigurationError(
            f"url has a part that its database does not accept ({type(error).__name__}). Check the port, the path and "
            "what follows the question mark."
        ) from None


def _sqlite(url: URL) -> Engine:
    pool: dict[str, Any] = {"pool_size": 1, "max_overflow": 0} if in_memory(url) else {}
    engine = create_engine(
        url, poolclass=QueuePool, connect_args={"isolation_level": None, "check_same_thread": False}, **pool
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_in_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.execute(f"PRAGMA busy_timeout={_LOCK_TIMEOUT * 1000}")
    if connection.execute("PRAGMA journal_mode").fetchone() not in (("wal",), ("memory",)):
        connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")


def _begin_in_sqlite(connection: Connection) -> None:
    if begin := connection.get_execution_options().get(BEGIN, "BEGIN"):
        connection.exec_driver_sql(begin)


def _postgresql(url: URL) -> Engine:
    # a process that hangs or is stopped within a transaction must not block all other writers for ever
    limits = f"-c lock_timeout={_LOCK_TIMEOUT}s -c idle_in_transaction_session_timeout={2 * _LOCK_TIMEOUT}s"
    options = " ".join(filter(None, (limits, str(url.query.get("options", "")))))
    settings: dict[str, Any] = {"options": options, "client_encoding": "utf8"}
    if "connect_timeout" not in url.query:
        settings["connect_timeout"] = _CONNECT_TIMEOUT
    try:
        # after waiting for another writer, a writer must see what that one wrote
        return create_engine(url, connect_args=settings, isolation_level="READ COMMITTED")
    except ImportError as error:
        raise MissingDependencyError(
            "A ledger in PostgreSQL needs psycopg: pip install 'llm-auction-chain[postgresql]'"
        ) from error


def _is_transient(error: BaseException) -> bool:
    """Return whether repeating the transaction may help."""
    if not isinstance(error, DBAPIError):
        return False
    if name := getattr(error.orig, "sqlite_errorname", ""):
        return str(name).startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        return isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated
    return str(state).startswith(_TRANSIENT)


def is_outage(error: BaseException | None) -> bool:
    """Return whether an error is of the database as a whole, so that no other transaction would have fared better."""
    return isinstance(error, PoolTimeout) or (error is not None and _is_transient(error))


_RETRYING = Retrying(
    stop=stop_after_attempt(3),
    wait=wait_random_exponential(multiplier=0.05, max=1),  # at random, so that two writers do not collide again
    retry=retry_if_exception(_is_transient),
    reraise=True,
)


def _advice(error: Exception) -> str:
    original = getattr(error, "orig", None)
    name = str(getattr(original, "sqlite_errorname", ""))
    for code, advice in _SQLITE_ADVICE.items():
        if name.startswith(code):
            return advice
    if getattr(original, "sqlstate", None) in _OTHER_TABLES:
        return _SQLITE_ADVICE["SQLITE_ERROR"]
    return (
        "cannot be used. See that the server runs, that the URL is right and lets you write; asking again is safe: it "
        "books once."
    )


def _message(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip()
