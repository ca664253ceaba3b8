"""Statements whose answers nobody waits for one by one, where the driver can do that."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

__all__ = ["in_one_go"]


@contextmanager
def in_one_go(connection: Connection) -> Iterator[None]:
    """Send what is executed within without waiting for each answer; errors come at the end, as SQLAlchemy's own.

    PostgreSQL answers a booking's five or six statements in one round trip instead of as many.
    """
    if connection.dialect.name != "postgresql":
        yield
        return
    from psycopg import Error

    driver = connection.connection.driver_connection
    try:
        with driver.pipeline():  # type: ignore[union-attr]
            yield
    except Error as error:
        lost = bool(getattr(driver, "broken", False))
        if lost:
            connection.invalidate(error)
        raise DBAPIError.instance(
            "a booking", None, error, Error, connection_invalidated=lost, dialect=connection.dialect
        ) from error
