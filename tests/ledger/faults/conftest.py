"""Both databases, and the table of faults that is printed at the end."""

import uuid

import pytest
from sqlalchemy import create_engine, make_url, text

from tests.ledger.faults.driver import Client, compare, deliveries
from tests.ledger.servers import started

ROWS = pytest.StashKey[list]()
HEADER = ("fault", "database", "times", "delivered", "charged", "reversed", "differences")


@pytest.fixture(scope="session")
def server():
    """With all that makes it durable, which the server of other tests does without."""
    with started() as running:
        yield running


@pytest.fixture
def administer(server):
    engine = create_engine(
        make_url(server.get_uri()).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )

    def run(statement, **values):
        with engine.connect() as connection:
            found = connection.execute(text(statement), values)
            return found.scalars().all() if found.returns_rows else None

    yield run
    engine.dispose()


@pytest.fixture
def postgresql(server, administer):
    name = f"ledger_{uuid.uuid4().hex}"
    administer(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY file_copy")
    url = make_url(server.get_uri()).set(drivername="postgresql+psycopg", database=name)
    yield url.render_as_string(hide_password=False)
    administer(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def sqlite(tmp_path):
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=[False, True], ids=["alone", "together"])
def client_of(request, tmp_path):
    clients = []

    def make(url):
        clients.append(Client(url, tmp_path, crowd=request.param))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(url, client_of):
    return client_of(url)


@pytest.fixture
def settle(request, tmp_path):
    """Compare the ledger with what was delivered, write a row of the table, and return what was found."""

    def run(fault, url, times, delivered=None, **compared):
        found = compare(url, deliveries(tmp_path / "delivered") if delivered is None else delivered, **compared)
        database = make_url(url).get_backend_name()
        row = (fault, database, times, found.delivered, found.charged, found.reversed, len(found.differences))
        request.config.stash.setdefault(ROWS, []).append(row)
        assert found.differences == []
        return found

    return run


def pytest_terminal_summary(terminalreporter, config):
    rows = [HEADER, *config.stash.get(ROWS, [])]
    if len(rows) == 1:
        return
    wide = [max(len(str(row[column])) for row in rows) for column in range(len(HEADER))]
    terminalreporter.section("faults and what was charged")
    for row in rows:
        texts = [
            str(cell).ljust(w) if n < 2 else str(cell).rjust(w)
            for n, (cell, w) in enumerate(zip(row, wide, strict=True))
        ]
        terminalreporter.write_line("  ".join(texts))
