"""Times and periods as they are typed."""

from typing import TYPE_CHECKING

from llm_auction_chain.errors import ConfigurationError

if TYPE_CHECKING:
    import argparse
    from datetime import datetime

__all__ = ["period_of", "read_time"]


def read_time(text: str, option: str) -> "datetime":
    """Return an ISO date, which is its first moment, or time; in UTC where no zone is said.

    Args:
        text: as typed.
        option: where, for the message.

    Raises:
        ConfigurationError: it is neither.

    >>> read_time("2026-11-02", "--since").isoformat(), read_time("2026-11-02T01:00+02:00", "--since").isoformat()
    ('2026-11-02T00:00:00+00:00', '2026-11-01T23:00:00+00:00')
    """
    from datetime import UTC, datetime

    try:
        read = datetime.fromisoformat(text.strip())
        return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ConfigurationError(
            f"{option} is {text!r}; give a date such as 2026-11-01, or a time such as 2026-11-01T12:00+01:00."
        ) from error


def period_of(options: "argparse.Namespace") -> "tuple[datetime | None, datetime | None]":
    """Return the first moment of a period, and the first one after it; None is open.

    Args:
        options: with `since`, `until` and `month`, each as typed, or None.

    Raises:
        ConfigurationError: they are no times, or no period.
    """
    if options.month is not None:
        if options.since is not None or options.until is not None:
            raise ConfigurationError("--month is a period of its own; leave out --since and --until.")
        return _month(options.month)
    since = None if options.since is None else read_time(options.since, "--since")
    until = None if options.until is None else read_time(options.until, "--until")
    if since is not None and until is not None and since > until:
        raise ConfigurationError(f"--since {options.since} is after --until {options.until}; swap them.")
    return since, until


def _month(text: str) -> "tuple[datetime, datetime]":
    from datetime import UTC, datetime

    try:
        since = datetime.strptime(text.strip(), "%Y-%m").replace(tzinfo=UTC)
        years, month = divmod(since.month, 12)
        return since, since.replace(year=since.year + years, month=month + 1)
    except ValueError as error:
        raise ConfigurationError(f"--month is {text!r}; give a year and a month, such as 2026-11.") from error
