"""The database beneath: opened by many at once, moved between processes, unreachable, older or newer."""

import asyncio
import copy
import pickle
import shutil
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import OperationalError

from llm_auction_chain.errors import (
    ConfigurationError,
    LedgerError,
    LedgerUnavailableError,
    MissingDependencyError,
)
from llm_auction_chain.ledger import Ledger, migrations, tables
from llm_auction_chain.ledger.database import Database
from llm_auction_chain.ledger.statements import Transaction
from llm_auction_chain.ledger.transaction import Writer


def test_the_migrations_make_exactly_the_tables(new_url):
    with Ledger(new_url) as ledger:
        assert ledger.head().seq == 0
    engine = create_engine(new_url)
    with engine.connect() as connection:
        found = MigrationContext.configure(connection, opts={"version_table": tables.VERSIONS, "compare_type": True})
        assert compare_metadata(found, tables.METADATA) == []
    engine.dispose()


OPENS = """
import sys
from llm_auction_chain.ledger import Ledger
with Ledger(sys.argv[1]) as ledger:
    ledger.deposit("A", 1, key=sys.argv[2])
"""


def test_eight_processes_open_a_new_database_at_once(new_url):
    running = [subprocess.Popen([sys.executable, "-c", OPENS, new_url, str(number)]) for number in range(8)]  # noqa: S603
    assert [process.wait() for process in running] == [0] * 8
    with Ledger(new_url) as ledger:
        assert ledger.balance("A").balance == 8
        assert ledger.verify().ok


def test_four_threads_book_one_after_the_other(ledger):
    ledger.deposit("A", 100)

    def work(thread):
        for number in range(6):
            name = f"{thread}-{number}"
            ledger.hold(name, {"A": 2, f"owner {thread}": 0})
            ledger.charge(name, {"A": 1})
            ledger.charge("one", {"A": 1})
            ledger.deposit("B", 1, key=str(number))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert (ledger.balance("A").balance, ledger.balance("A").held) == (75, 0)
    assert ledger.balance("B").balance == 6
    assert ledger.verify().bookings == 1 + 24 + 24 + 1 + 6
    assert ledger.verify().ok


async def test_an_event_loop_calls_it_in_threads(ledger):
    ledger.deposit("A", 10)
    await asyncio.gather(*(asyncio.to_thread(ledger.deposit, "A", 1) for _ in range(4)))
    assert (await asyncio.to_thread(ledger.balance, "A")).balance == 14


def test_a_copy_and_a_pickle_keep_the_settings_and_have_connections_of_their_own(url):
    with Ledger(url, scales={"EUR": 2}, credit=7, keep_receipts=False) as ledger:
        ledger.deposit("A", 1, currency="EUR")
        for made in (pickle.loads(pickle.dumps(ledger)), copy.copy(ledger), copy.deepcopy(ledger)):  # noqa: S301
            with made:
                assert made.balance("A", currency="EUR") == ledger.balance("A", currency="EUR")
                assert made._keep_receipts is False
                assert made._database is not ledger._database
                made.deposit("B", 1)
        assert ledger.balance("B").balance == 3


def test_a_closed_ledger_opens_again(ledger):
    ledger.deposit("A", 1)
    ledger.close()
    assert ledger.balance("A").balance == 1


def test_the_password_is_not_shown():
    assert "secret" not in repr(Ledger("postgresql+psycopg://user:secret@host/database"))


FORKS = """
import os, sys
from llm_auction_chain.ledger import Ledger
ledger = Ledger(sys.argv[1])
ledger.deposit("A", 1)
child = os.fork()
if not child:
    ledger.deposit("A", 2)
    os._exit(0)
ledger.deposit("A", 4)
assert os.waitpid(child, 0)[1] == 0
assert ledger.balance("A").balance == 7
assert ledger.verify().ok
ledger.close()
"""


def test_a_fork_opens_connections_of_its_own(url):
    subprocess.run([sys.executable, "-W", "error", "-c", FORKS, url], check=True)  # noqa: S603


def test_lost_connections_are_opened_again_and_nothing_is_booked_twice(emptied, server, administer):
    with Ledger(emptied()) as ledger:
        ledger.deposit("A", 10)
        administer("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'emptied'")
        ledger.charge("x", {"A": 1})
        assert ledger.balance("A").balance == 9


def test_a_commit_whose_answer_is_lost_is_not_booked_twice(funded, monkeypatch):
    commit, lost = Transaction.commit, []
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorname = "SQLITE_BUSY"

    def lose(transaction):
        commit(transaction)
        if not lost:
            lost.append(True)
            raise OperationalError("COMMIT", {}, error)

    monkeypatch.setattr(Transaction, "commit", lose)
    for operation in (
        lambda: funded.deposit("A", 1),
        lambda: funded.hold("x", {"A": 5}),
        lambda: funded.charge("x", {"A": 5}),
        lambda: funded.reverse("x"),
        lambda: funded.void("y"),
        lambda: funded.withdraw("A", 1),
    ):
        before = funded.head().seq
        lost.clear()
        operation()
        assert lost
        assert funded.head().seq == before + 1
    assert funded.balance("A").balance == 100


def test_an_unreachable_server_is_named_with_what_to_do():
    with Ledger("postgresql+psycopg://user:secret@127.0.0.1:1/none") as ledger:
        with pytest.raises(LedgerUnavailableError, match="See that the server runs") as caught:
            ledger.deposit("A", 1)
        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is not None


def test_a_missing_folder_is_said(tmp_path):
    ledger = Ledger(f"sqlite:///{tmp_path / 'missing' / 'x.db'}")
    with pytest.raises(LedgerUnavailableError, match="Make its folder"):
        ledger.head()


def test_a_file_that_is_no_database_is_said(tmp_path):
    (tmp_path / "x.db").write_text("no database " * 100)
    with pytest.raises(LedgerUnavailableError, match="not a SQLite database"):
        Ledger(f"sqlite:///{tmp_path / 'x.db'}").head()


def test_a_database_of_another_application_is_said_and_left_alone(new_url):
    engine = create_engine(new_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE bookings (hotel TEXT)"))
    with Ledger(new_url) as ledger, pytest.raises(LedgerUnavailableError, match="another application's tables"):
        ledger.deposit("A", 1)
    with engine.begin() as connection:
        assert inspect(connection).get_table_names() == ["bookings"]
    engine.dispose()


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///{}/x.db?timeout=abc",
        "sqlite:///{}/x.db?uri=maybe",
        "sqlite:///{}/%00",
        "sqlite:///{}/\ud800.db",
        "sqlite://host/x.db",
        "postgresql://me:secret@127.0.0.1/x?port=x",
    ],
)
def test_a_url_that_the_driver_cannot_take_is_said_without_its_password(url, tmp_path):
    with pytest.raises(ConfigurationError, match=r"URL|url") as told:
        Ledger(url.format(tmp_path)).head()
    assert "secret" not in str(told.value) + repr(told.value.__cause__)


def test_a_relative_path_stays_where_it_was_given(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with Ledger("sqlite:///x.db") as ledger:
        ledger.deposit("A", 5)
        monkeypatch.chdir(tmp_path / "elsewhere")
        ledger.close()
        assert ledger.balance("A").balance == pickle.loads(pickle.dumps(ledger)).balance("A").balance == 5  # noqa: S301
    assert list(tmp_path.glob("elsewhere/*")) == []


def test_a_read_only_file_is_said(empty_file, tmp_path):
    shutil.copy(empty_file, tmp_path / "x.db")
    with Ledger(f"sqlite:///file:{tmp_path / 'x.db'}?mode=ro&uri=true") as ledger:
        with pytest.raises(LedgerUnavailableError, match="read-only"):
            ledger.deposit("A", 1)
        assert ledger.head().seq == 0


def test_a_full_disk_is_said_and_nothing_is_booked(empty_file, tmp_path):
    shutil.copy(empty_file, tmp_path / "x.db")
    with Ledger(f"sqlite:///{tmp_path / 'x.db'}") as ledger:
        ledger.deposit("A", 1)
        with ledger._database._engine.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
            connection.rollback()
        with pytest.raises(LedgerUnavailableError, match="Make room"):
            ledger.charge("x", {"A": 1}, receipt={"digest": "d", "body": "x" * 10_000})
        assert ledger.head().seq == 1
        assert ledger.verify().ok


def test_a_locked_file_is_waited_for_and_then_said(empty_file, tmp_path, monkeypatch):
    monkeypatch.setattr("llm_auction_chain.ledger.database._LOCK_TIMEOUT", 0)
    shutil.copy(empty_file, tmp_path / "x.db")
    with Ledger(f"sqlite:///{tmp_path / 'x.db'}") as ledger:
        ledger.head()
        with closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(LedgerUnavailableError, match="locked by another process"):
                ledger.deposit("A", 1)
            assert ledger.head().seq == 0
            other.execute("ROLLBACK")
        assert ledger.deposit("A", 1).seq == 1


NEXT = """
import sqlalchemy as sa
from alembic import op
revision = "0003"
down_revision = "0002"
def upgrade():
    op.create_table("later", sa.Column("id", sa.Integer, primary_key=True))
"""


def test_an_older_schema_waits_for_migrate_and_a_newer_one_for_the_library(new_url, tmp_path, monkeypatch):
    with Ledger(new_url) as ledger:
        ledger.deposit("A", 1)
    with monkeypatch.context() as later:
        folder = shutil.copytree(migrations.FOLDER, tmp_path / "migrations")
        (folder / "versions" / "0003_later.py").write_text(NEXT)
        later.setattr(migrations, "FOLDER", folder)
        later.setattr(tables, "REVISION", "0003")
        with Ledger(new_url) as ledger:
            with pytest.raises(LedgerError, match="llm-auction ledger migrate"):
                ledger.deposit("A", 1)
            ledger.migrate()
            ledger.migrate()
            assert ledger.deposit("A", 1).seq == 2
    with Ledger(new_url) as ledger:
        for operation in (ledger.head, ledger.migrate):
            with pytest.raises(LedgerError, match="Upgrade llm-auction-chain"):
                operation()


def test_a_ledger_from_before_there_were_roots_of_views_is_migrated_and_still_verifies(new_url, monkeypatch):
    append = Writer.append
    with Ledger(new_url) as ledger:
        ledger.head()
        with monkeypatch.context() as before:
            before.setattr(Writer, "append", lambda self, row, lines: append(self, row._replace(views=None), lines))
            ledger.deposit("A", 10)
            ledger.hold("x", {"A": 2})
            ledger.charge("x", {"A": 1})
        old = ledger.head()
    engine = create_engine(new_url)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE bookings DROP COLUMN views"))
        connection.execute(text("UPDATE ledger_version SET version_num = '0001'"))
    engine.dispose()
    with Ledger(new_url) as ledger:
        with pytest.raises(LedgerError, match="llm-auction ledger migrate"):
            ledger.deposit("A", 1)
        ledger.migrate()
        assert ledger.head() == old
        with pytest.raises(LedgerError, match="no root of views"):
            ledger.links("x")
        ledger.charge("y", {"A": 1}, views=["a leaf"])
        assert ledger.verify(head=old.hash).differences == []
        assert ledger.links("y").previous == old.hash
        assert ledger.links("z") is None


def test_the_revision_is_that_of_the_newest_migration():
    from alembic.script import ScriptDirectory

    assert ScriptDirectory(str(migrations.FOLDER)).get_current_head() == tables.REVISION


def test_a_ledger_without_its_head_is_not_written(ledger, edit):
    edit("DELETE FROM head")
    with pytest.raises(LedgerUnavailableError, match="verify"):
        ledger.deposit("A", 1)
    assert ledger.head().hash == ""


@pytest.mark.parametrize("memory", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"])
def test_a_ledger_in_memory_lives_until_it_is_closed(memory):
    with Ledger(memory) as ledger, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: ledger.deposit("A", 1, key=str(key)), range(8)))
        stream = ledger.entries()
        next(stream)
        ledger.deposit("A", 1)
        assert len(list(stream)) == 7
    assert ledger.balance("A").balance == 0
    ledger.close()


HIDES = """
import sys
import llm_auction_chain
assert not any(name in sys.modules for name in ("sqlalchemy", "alembic", "psycopg"))
sys.modules[sys.argv[1]] = None
try:
    from llm_auction_chain import Ledger
    Ledger("postgresql+psycopg://host/database").head()
except llm_auction_chain.MissingDependencyError as error:
    assert f"pip install 'llm-auction-chain[{sys.argv[2]}]'" in str(error), error
else:
    raise AssertionError
"""


@pytest.mark.parametrize(
    ("module", "extra"), [("sqlalchemy", "ledger"), ("tenacity", "ledger"), ("psycopg", "postgresql")]
)
def test_what_is_missing_is_named_with_its_command(module, extra):
    subprocess.run([sys.executable, "-c", HIDES, module, extra], check=True)  # noqa: S603
    assert issubclass(MissingDependencyError, ImportError)


def test_rows_of_a_shared_database_are_left_alone(new_url):
    engine = create_engine(new_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('theirs')"))
    with Ledger(new_url) as ledger:
        ledger.deposit("A", 1)
    with engine.begin() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == ["theirs"]
    engine.dispose()


@pytest.mark.parametrize("form", ["sqlite:///{}", "sqlite:///file:{}?uri=true"])
def test_to_ask_whether_there_is_a_ledger_makes_no_file(form, tmp_path):
    path = tmp_path / "ledger.db"
    database = Database(form.format(path))
    assert (database.has_ledger(), path.exists()) == (False, False)
    with Ledger(form.format(path)) as ledger:
        ledger.deposit("A", 1)
    assert database.has_ledger()
