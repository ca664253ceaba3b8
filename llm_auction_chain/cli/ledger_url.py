"""The ledger that a command works on: where it is, and that it is there."""

import os
from typing import TYPE_CHECKING, Any

from llm_auction_chain.errors import ConfigurationError

if TYPE_CHECKING:
    import argparse

    from sqlalchemy import URL

    from llm_auction_chain.ledger import Ledger

__all__ = ["DEFAULT_URL", "VARIABLE", "open_ledger"]

VARIABLE = "LLM_AUCTION_LEDGER"
DEFAULT_URL = "sqlite:///llm_auction.db"


def open_ledger(options: "argparse.Namespace", *, creates: bool = False, **settings: Any) -> "Ledger":
    """Return the ledger of `--url`, else of the environment, else of the file `llm_auction.db`.

    Args:
        options: with `url`, or None.
        creates: whether the command may begin a ledger; all others refuse a path that was mistyped.
        **settings: of the ledger.

    Raises:
        ConfigurationError: the URL is none, or there is no ledger.
        MissingDependencyError: the ledger, or the database, needs an extra.
    """
    from llm_auction_chain.ledger import Ledger

    url = _read_url(options)
    ledger = Ledger(url, **settings)
    if not creates:
        _check_there(url)
    return ledger


def _read_url(options: "argparse.Namespace") -> "URL":
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    typed, where = options.url, "--url"
    if typed is None:
        typed, where = os.environ.get(VARIABLE, "") or DEFAULT_URL, VARIABLE
    try:
        url = make_url(typed)
    except (ArgumentError, ValueError):  # the error is not chained and the text not repeated: it may hold a password
        raise ConfigurationError(
            f"{where} is no URL of a database; give sqlite:///file.db or postgresql+psycopg://user@host/database."
        ) from None
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise ConfigurationError(f"{where} is a database in memory, which ends with the command; name a file.")
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if isinstance(password := url.query.get("password"), str):  # libpq's other place for it, which is shown in messages
        url = url.difference_update_query(["password"]).set(password=password)
    return url


def _check_there(url: "URL") -> None:
    """Raise `ConfigurationError` where there is no ledger; reading one would begin it."""
    from pathlib import Path

    from sqlalchemy import NullPool, create_engine, inspect
    from sqlalchemy.exc import ArgumentError, DBAPIError

    from llm_auction_chain.ledger.tables import VERSIONS

    start = "`llm-auction ledger deposit` or `migrate` begins one"
    if url.get_backend_name() == "sqlite":
        path = str(url.database)
        path = path.removeprefix("file:").partition("?")[0] if "uri" in url.query else path
        if not Path(path).exists():
            raise ConfigurationError(f"There is no ledger at {path}. See that the path is right; {start}.")
    try:
        with create_engine(url, poolclass=NullPool).connect() as connection:
            found = inspect(connection).has_table(VERSIONS)
    except (DBAPIError, ArgumentError, ImportError, TypeError, ValueError):
        return  # the ledger itself says what is wrong, and what to do
    if not found:
        raise ConfigurationError(f"There is no ledger in {url!r}. See that the URL is right; {start}.")
