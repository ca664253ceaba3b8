"""The schema: created in an empty database; an older one waits for `llm-auction ledger migrate`."""

from pathlib import Path
from threading import Lock

from sqlalchemy import Connection, inspect, text

from llm_auction_chain.errors import LedgerError
from llm_auction_chain.ledger import tables

FOLDER = Path(__file__).parent
_ADVISORY_LOCK = 0x6C65646765  # of PostgreSQL, for one migration at a time: b"ledge"
_ALEMBIC = Lock()  # its context is one for the whole process


def is_current(connection: Connection) -> bool:
    """Return whether the schema is the newest; False where there is none. An older or a newer one is an error."""
    revision = _revision(connection)
    if revision in (None, tables.REVISION):
        return revision is not None
    if _is_known(revision):
        raise LedgerError(
            f"The ledger's schema is revision {revision}, and this version of the library needs {tables.REVISION}. "
            "Back the database up, then run `llm-auction ledger migrate`."
        )
    raise LedgerError(
        f"The ledger's schema is revision {revision}, which this version of the library does not know. "
        "Upgrade llm-auction-chain."
    )


def upgrade(connection: Connection, *, only_empty: bool = False) -> None:
    """Upgrade the schema to the newest revision, within the connection's transaction; one process at a time."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ADVISORY_LOCK})
    revision = _revision(connection)
    if revision == tables.REVISION or (only_empty and revision is not None):
        return
    if revision is not None and not _is_known(revision):
        is_current(connection)

    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with _ALEMBIC:
        command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(tables.VERSIONS):
        return None
    revision: str | None = connection.execute(text(f"SELECT version_num FROM {tables.VERSIONS}")).scalar()  # noqa: S608
    return revision


def _is_known(revision: str | None) -> bool:
    from alembic.script import ScriptDirectory

    return any(script.revision == revision for script in ScriptDirectory(str(FOLDER)).walk_revisions())
