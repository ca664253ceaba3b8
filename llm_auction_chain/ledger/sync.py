"""The ledger, for callers that wait: every operation is one transaction."""

import copy
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Self, TypeVar
from uuid import uuid4

from sqlalchemy import URL, Connection

from llm_auction_chain.errors import ConfigurationError, LedgerError, LedgerUnavailableError
from llm_auction_chain.ledger import audit, operations, queries
from llm_auction_chain.ledger import checks as check
from llm_auction_chain.ledger.chain import spell_time
from llm_auction_chain.ledger.database import Database
from llm_auction_chain.ledger.records import (
    Account,
    Audit,
    Booking,
    Charge,
    Entry,
    Head,
    Hold,
    Statement,
    Totals,
)
from llm_auction_chain.ledger.transaction import Writer
from llm_auction_chain.money import from_units, negated, plus

__all__ = ["SyncLedger"]

T = TypeVar("T")
_logger = logging.getLogger(__name__)


def _now() -> datetime:
    return datetime.now(UTC)


class SyncLedger:
    """What `Ledger` does, without the async twins."""

    def __init__(
        self,
        url: str | URL = "sqlite:///llm_auction.db",
        *,
        scales: Mapping[str, int] | None = None,
        credit: Decimal | int | str = 0,
        hold_for: timedelta = timedelta(minutes=15),
        keep_receipts: bool = True,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        if not callable(clock):
            raise ConfigurationError(f"clock is {clock!r}; give a function that returns the time in UTC.")
        self._database = Database(url)
        self._scales = check.checked_scales(scales)
        self._credit = check.checked_amount(credit, "credit")
        self._hold_for = check.checked_hold_for(hold_for)
        self._keep_receipts = keep_receipts
        self._clock = clock
        self._undelivered: dict[tuple[str, str | None], str] = {}

    @property
    def hold_for(self) -> timedelta:
        """How long a hold stands."""
        return self._hold_for

    def __repr__(self) -> str:
        """Return where it is, without the password."""
        return f"{type(self).__name__}('{self._database}')"

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the settings; a copy has connections of its own."""
        url = self._database.url.render_as_string(hide_password=False)
        settings = {name: copy.copy(value) for name, value in vars(self).items() if name != "_database"}
        return _restored, (type(self), url, settings)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def hold(self, auction_id: str, most: Mapping[str, Decimal], *, currency: str = "") -> Hold:
        """Hold what each owner may be charged at most; who lacks cover is told, and nothing of theirs is held.

        The same again returns the first hold, also after the charge, and holds afresh what was voided or has expired.

        Args:
            auction_id: the caller's own, one per auction.
            most: at least 0, by owner.
            currency: of the amounts.

        Raises:
            ConfigurationError: an argument that cannot be booked.
            ChargeConflictError: the id stands for something else, or is closed.
            LedgerUnavailableError: the database cannot be used; asking again is safe.
        """
        auction_id, currency = _named(auction_id, currency)
        checked = check.checked_amounts(most, "most")
        self._cancel_undelivered()
        made, nonce = self._write(lambda writer: operations.hold(writer, auction_id, checked, currency, self._hold_for))
        return queries.hold_record(made, nonce, checked)

    def charge(
        self,
        auction_id: str,
        amounts: Mapping[str, Decimal],
        *,
        currency: str = "",
        reply: str = "",
        receipt: Mapping[str, Any] | None = None,
    ) -> Charge:
        """Charge an auction once, all of it or nothing; the same again returns the first charge.

        With a hold, nobody pays more than what is held, and all that is held is released; after it expired, accounts
        must cover it anew. Without one they must cover the charge. Auctions that were voided, cancelled or reversed are
        not charged. The same is what has the same amounts for the same reply; the receipt of the first stays.

        Args:
            auction_id: the caller's own, one per auction.
            amounts: by owner; negative where the platform pays.
            currency: of the amounts.
            reply: digest of what is charged for.
            receipt: JSON with a text `digest`, which the chain keeps.

        Raises:
            ConfigurationError: an argument that cannot be booked.
            ChargeConflictError: the id was charged or closed with something else.
            CoverError: a hold or an account does not cover it; nothing is booked.
            LedgerUnavailableError: the database cannot be used; asking again is safe.
        """
        auction_id, currency = _named(auction_id, currency)
        checked = check.checked_amounts(amounts, "amounts", negative=True)
        body = ("", "") if receipt is None else _receipt(receipt, keep=self._keep_receipts)
        reply = check.checked_text(reply, "reply")
        made = self._write(lambda writer: operations.charge(writer, auction_id, checked, currency, reply, body))
        return queries.charge_record(made)

    def void(self, auction_id: str, *, reason: str = "") -> None:
        """Close an auction without a charge: its hold is released, and a late charge refused. Twice is once.

        Raises:
            ChargeConflictError: it was charged; reverse it.
        """
        auction_id, _ = _named(auction_id, "")
        reason = check.checked_text(reason, "reason")
        self._write(lambda writer: operations.void(writer, auction_id, reason))

    def cancel(self, auction_id: str, *, reason: str = "", receipt: str | None = None) -> None:
        """Close an auction for good, whatever became of it: a hold is released, a charge reversed. Twice is once.

        Args:
            auction_id: which.
            reason: kept with it.
            receipt: digest of the receipt of the call that failed; the charge stands as long as another call under the
                same id delivers on it. None: whoever does.

        Raises:
            LedgerUnavailableError: the database cannot be used; this ledger cancels it before its next hold.
        """
        auction_id, _ = _named(auction_id, "")
        reason = check.checked_text(reason, "reason")
        if receipt is not None:
            receipt = check.checked_text(receipt, "receipt")
        self._undelivered[auction_id, receipt] = reason
        try:
            self._write(lambda writer: operations.cancel(writer, auction_id, reason, receipt))
        except LedgerUnavailableError:
            raise
        except LedgerError:
            self._undelivered.pop((auction_id, receipt), None)
            raise
        self._undelivered.pop((auction_id, receipt), None)

    def _cancel_undelivered(self) -> None:
        """Cancel what could not be cancelled when it had to be."""
        for (auction_id, receipt), reason in list(self._undelivered.items()):
            try:
                self.cancel(auction_id, reason=reason, receipt=receipt)
            except LedgerUnavailableError:
                raise
            except LedgerError as error:
                _logger.warning("Auction %s, which was not delivered, could not be cancelled: %s", auction_id, error)

    def reverse(self, auction_id: str, *, owner: str | None = None, reason: str = "") -> Booking:
        """Give back what an auction was charged, or one owner's line of it; each line once, again is the first time.

        Raises:
            ChargeConflictError: it was not charged, or not to this owner.
        """
        auction_id, _ = _named(auction_id, "")
        reason = check.checked_text(reason, "reason")
        if owner is not None:
            owner = check.checked_name(owner, "owner")
        return queries.booking_of(self._write(lambda writer: operations.reverse(writer, auction_id, owner, reason)))

    def deposit(
        self, owner: str, amount: Decimal | int | str, *, currency: str = "", key: str | None = None, note: str = ""
    ) -> Booking:
        """Book money that came, once per key.

        Args:
            owner: whose account.
            amount: at least 0, of no more decimals than the currency has.
            currency: of the amount.
            key: what makes it happen once, such as the bank's reference; None books it each time it is called.
            note: kept with it.

        Raises:
            ConfigurationError: an argument that cannot be booked.
            ChargeConflictError: the key was used with something else.
        """
        return self._move("deposit", owner, amount, currency, key, note)

    def withdraw(
        self, owner: str, amount: Decimal | int | str, *, currency: str = "", key: str | None = None, note: str = ""
    ) -> Booking:
        """Book money that went, once per key; credit is no cover for it.

        Raises:
            CoverError: the balance less what is held does not cover it.
        """
        return self._move("withdrawal", owner, amount, currency, key, note)

    def _move(self, kind: str, owner: str, amount: Any, currency: str, key: str | None, note: str) -> Booking:
        owner, currency = check.checked_name(owner, "owner"), check.checked_name(currency, "currency", empty=True)
        moved, note = check.checked_amount(amount, "amount"), check.checked_text(note, "note")
        once = str(uuid4()) if key is None else check.checked_name(key, "key")
        try:
            made = self._write(lambda writer: operations.move_cash(writer, kind, owner, moved, currency, once, note))
        except LedgerUnavailableError as error:
            raise LedgerUnavailableError(
                f"{error} Whether the {kind} was booked is not known: with the key {once!r} it is booked once."
            ) from error
        return queries.booking_of(made)

    def expire_holds(self, *, now: datetime | None = None) -> list[str]:
        """Release the holds whose time is over and return their auctions; run it from time to time."""
        until = spell_time(self._clock() if now is None else now, "now")
        expired: list[str] = []
        while page := self._write(lambda writer: operations.expire(writer, queries.due(writer.connection, until))):
            expired += page
        return expired

    def erase_receipts(self, before: datetime) -> int:
        """Delete stored receipts of charges before a time, and what opens their digests; return how many.

        The chain keeps the digests, which then say nothing about anybody.
        """
        spelled = spell_time(before, "before")
        return self._database.write(lambda connection: queries.erase_receipts(connection, spelled))

    def balance(self, owner: str, *, currency: str = "") -> Account:
        """Return how an account stands; nothing was booked on it: all zero but the credit."""
        owner, currency = check.checked_name(owner, "owner"), check.checked_name(currency, "currency", empty=True)
        found = self._database.read(lambda connection: queries.accounts(connection, self._credit, owner, currency))
        zero = from_units(0, 0)
        empty = Account(owner=owner, currency=currency, balance=zero, held=zero, available=self._credit)
        return found[0] if found else empty

    def accounts(self) -> list[Account]:
        """Return how every account stands, by owner and currency."""
        return self._database.read(lambda connection: queries.accounts(connection, self._credit))

    def entries(
        self,
        *,
        owner: str | None = None,
        currency: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Iterator[Entry]:
        """Yield what was booked when it is first asked, in order, a page at a time.

        Args:
            owner: of the account; None is all.
            currency: of the account; None is all.
            since: inclusive.
            until: exclusive.
        """
        return self._paged(
            {
                "owner": None if owner is None else check.checked_name(owner, "owner"),
                "currency": None if currency is None else check.checked_name(currency, "currency", empty=True),
                "since": _spelled(since, "since"),
                "until": _spelled(until, "until"),
            }
        )

    def _paged(self, chosen: dict[str, str | None]) -> Iterator[Entry]:
        last, place = self.head().seq, (0, -1)

        def page(connection: Connection) -> list[Entry]:
            return queries.entries_after(connection, place, last, **chosen)

        while found := self._database.read(page):
            yield from found
            place = (found[-1].seq, found[-1].line)

    def statement(
        self, owner: str, *, currency: str = "", since: datetime | None = None, until: datetime | None = None
    ) -> Statement:
        """Return an account over a time.

        Whatever the clock does, nothing is booked before what was booked already: a time is closed by the first booking
        after it.

        Args:
            owner: of the account.
            currency: of the account.
            since: inclusive; None is the beginning.
            until: exclusive; None is now.
        """
        owner, currency = check.checked_name(owner, "owner"), check.checked_name(currency, "currency", empty=True)
        start, end = _spelled(since, "since"), _spelled(until, "until")
        if start is not None and end is not None and start > end:
            raise ConfigurationError(f"since, {since}, is after until, {until}; give an earlier time.")
        found = tuple(self.entries(owner=owner, currency=currency, since=since, until=until))
        zero, opening = self._database.read(lambda connection: queries.opening(connection, owner, currency, start))
        charged = plus(zero, *(negated(entry.amount) for entry in found if entry.kind in ("charge", "reversal")))
        deposited = plus(zero, *(entry.amount for entry in found if entry.kind in ("deposit", "withdrawal")))
        return Statement(
            owner=owner,
            currency=currency,
            since=since,
            until=until,
            opening=opening,
            entries=found,
            closing=plus(opening, deposited, negated(charged)),
            charged=charged,
            deposited=deposited,
        )

    def charge_of(self, auction_id: str) -> Charge | None:
        """Return what an auction was charged, reversed or not; None where it was not."""
        auction_id, _ = _named(auction_id, "")
        return self._database.read(lambda connection: queries.charge_of(connection, auction_id))

    def receipt_of(self, auction_id: str) -> dict[str, Any] | None:
        """Return the stored receipt of an auction; None where there is none, or it was erased."""
        auction_id, _ = _named(auction_id, "")
        return self._database.read(lambda connection: queries.receipt_of(connection, auction_id))

    def totals(self) -> list[Totals]:
        """Return cash, revenue and balances of each currency: `cash == revenue + balances`, exact."""
        return self._database.read(queries.totals)

    def head(self) -> Head:
        """Return the end of the chain; noted elsewhere, it proves later that nothing before it was changed."""
        return self._database.read(queries.head)

    def verify(self, *, head: str | None = None) -> Audit:
        """Recompute the whole chain and all that follows from it, and say in words what differs.

        Args:
            head: a hash that `head` returned at some time; it must be in the chain.
        """
        return self._database.read(lambda connection: audit.verify(connection, head=head))

    def migrate(self) -> None:
        """Bring the database's schema to the newest revision. Back it up before."""
        self._database.migrate()

    def close(self) -> None:
        """Close the connections; the next use opens new ones."""
        self._database.close()

    def _write(self, move: Callable[[Writer], T]) -> T:
        def work(connection: Connection) -> T:
            writer = Writer(
                connection, scales=self._scales, credit=self._credit, now=self._clock(), known=self._database.scales
            )
            moved = move(writer)
            writer.flush()
            return moved

        return self._database.write(work)


def _restored(kind: type[SyncLedger], url: str, settings: dict[str, Any]) -> SyncLedger:
    made = kind(url)
    vars(made).update(settings)
    return made


def _named(auction_id: Any, currency: Any) -> tuple[str, str]:
    return check.checked_name(auction_id, "auction_id"), check.checked_name(currency, "currency", empty=True)


def _spelled(moment: datetime | None, name: str) -> str | None:
    return None if moment is None else spell_time(moment, name)


def _receipt(receipt: Any, *, keep: bool) -> tuple[str, str]:
    """Return a receipt's digest, and its text, empty where it is not kept."""
    if not isinstance(receipt, Mapping) or not isinstance(receipt.get("digest"), str) or not receipt["digest"]:
        raise ConfigurationError("receipt needs a text `digest` of what it says; give a mapping that has one.")
    try:
        text = json.dumps(dict(receipt), allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"receipt is not JSON: {error}. Give texts, flags and finite numbers.") from error
    return check.checked_text(receipt["digest"], "receipt['digest']"), text if keep else ""
