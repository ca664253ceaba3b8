"""Both databases: a file, and a real PostgreSQL server that lives as long as the run; each test has its own."""

import uuid
from datetime import UTC, datetime, timedelta
from shutil import copy

import pytest
from sqlalchemy import create_engine, make_url, text

from llm_auction_chain.ledger import Ledger
from llm_auction_chain.ledger.tables import METADATA
from tests.ledger.faults.worker import Crowded
from tests.ledger.servers import started


class Clock:
    """A time that stands until it is moved."""

    def __init__(self):
        self.now = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self):
        return self.now

    def move(self, **by):
        self.now += timedelta(**by)


@pytest.fixture(scope="session")
def server():
    with started() as running:
        yield make_url(running.get_uri()).set(drivername="postgresql+psycopg")


@pytest.fixture(scope="session")
def administer(server):
    engine = create_engine(server, isolation_level="AUTOCOMMIT")

    def run(statement):
        with engine.connect() as connection:
            connection.execute(text(statement))

    for setting in ("fsync", "full_page_writes", "synchronous_commit"):
        run(f"ALTER SYSTEM SET {setting} = off")
    run("SELECT pg_reload_conf()")
    yield run
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def new_url(request, tmp_path):
    """A database that nobody has opened."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'new.db'}"
        return
    administer, server = request.getfixturevalue("administer"), request.getfixturevalue("server")
    name = f"ledger_{uuid.uuid4().hex}"
    administer(f"CREATE DATABASE {name}")
    yield server.set(database=name).render_as_string(hide_password=False)
    administer(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def empty_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("sqlite") / "empty.db"
    with Ledger(f"sqlite:///{path}") as ledger:
        ledger.head()
    return path


@pytest.fixture(scope="session")
def emptied(server, administer):
    """A database with the schema; called, it empties it."""
    administer("CREATE DATABASE emptied")
    url = server.set(database="emptied").render_as_string(hide_password=False)
    with Ledger(url) as ledger:
        ledger.head()
    engine = create_engine(url, pool_pre_ping=True)
    names = ", ".join(table.name for table in METADATA.sorted_tables)

    def empty():
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            connection.execute(text(f"TRUNCATE {names}"))
            connection.execute(text("INSERT INTO head (id, seq, hash, at) VALUES (1, 0, '', '')"))
        return url

    yield empty
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """An empty ledger of its own."""
    if request.param == "postgresql":
        return request.getfixturevalue("emptied")()
    copy(request.getfixturevalue("empty_file"), tmp_path / "ledger.db")
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=[Ledger, Crowded], ids=["alone", "together"])
def ledger(request, url, clock):
    """A ledger; and one whose every booking has neighbours in its transaction."""
    with request.param(url, scales={"EUR": 2, "JPY": 0}, clock=clock) as made:
        yield made


@pytest.fixture
def funded(ledger):
    for owner in ("A", "B", "C"):
        ledger.deposit(owner, 100, key=f"bank-{owner}")
    return ledger


@pytest.fixture
def edit(url):
    """Run a statement behind the ledger's back, past its triggers; return its rows, or how many it changed."""
    engine = create_engine(url)

    def run(statement, **values):
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL session_replication_role = replica"))
            else:
                found = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars()
                for trigger in found.all():
                    connection.execute(text(f"DROP TRIGGER {trigger}"))
            done = connection.execute(text(statement), values)
            return [dict(row) for row in done.mappings()] if done.returns_rows else done.rowcount

    yield run
    engine.dispose()
