"""The schema at opening: an empty database gets it, an older one waits for its owner, a newer one is refused."""

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from llm_auction_chain.errors import LedgerError
from llm_auction_chain.ledger import tables

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = ["is_ready", "upgrade"]

MIGRATIONS = Path(__file__).with_name("migrations")
_LOCK = 0x6C65646765  # PostgreSQL's advisory lock of all that migrate: b"ledge"


def is_ready(connection: Connection) -> bool:
    """Return whether the schema is the newest; False where there is none.

    Raises:
        LedgerError: it is an older or a newer one.
    """
    found = _revision(connection)
    if found in (None, tables.REVISION):
        return found is not None
    if _known(found):
        raise LedgerError(
            f"The ledger's schema is revision {found}, and this version of the library needs {tables.REVISION}. "
            "Back the database up, then run `llm-auction ledger migrate`."
        )
    raise LedgerError(
        f"The ledger's schema is revision {found}, which this version of the library does not know. "
        "Upgrade llm-auction-chain."
    )


def upgrade(connection: Connection, *, only_empty: bool = False) -> None:
    """Bring the schema to the newest revision, within the connection's transaction; one process at a time."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    found = _revision(connection)
    if found == tables.REVISION or (only_empty and found is not None):
        return
    if found is not None and not _known(found):
        is_ready(connection)

    from alembic import command

    command.upgrade(_config(connection), "head")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(tables.VERSIONS):
        return None
    found: str | None = connection.execute(text(f"SELECT version_num FROM {tables.VERSIONS}")).scalar()  # noqa: S608
    return found


def _config(connection: Connection | None = None) -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _known(revision: str) -> bool:
    from alembic.script import ScriptDirectory

    return any(script.revision == revision for script in ScriptDirectory.from_config(_config()).walk_revisions())
