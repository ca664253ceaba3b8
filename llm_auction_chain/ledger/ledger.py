"""The ledger: what agents owe, and the state of every auction."""

import json
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, Concatenate, ParamSpec, Self, TypeVar
from uuid import uuid4

from sqlalchemy import URL

from llm_auction_chain import merkle
from llm_auction_chain.errors import LedgerError, LedgerUnavailableError
from llm_auction_chain.ledger import arguments as check
from llm_auction_chain.ledger import audit, operations, queries
from llm_auction_chain.ledger.chain import key_of
from llm_auction_chain.ledger.database import Database, in_memory, is_outage
from llm_auction_chain.ledger.groups import Outcome
from llm_auction_chain.ledger.records import (
    Account,
    Audit,
    Booking,
    Charge,
    Entry,
    Head,
    Hold,
    Links,
    Statement,
    Totals,
)
from llm_auction_chain.ledger.statements import Transaction
from llm_auction_chain.ledger.transaction import Operation, Writer, by_key
from llm_auction_chain.money import from_units, negated, plus
from llm_auction_chain.validators import name_of_account, refuse

P = ParamSpec("P")
T = TypeVar("T")
_logger = logging.getLogger(__name__)
_now = partial(datetime.now, UTC)  # can be pickled


class Ledger:
    """Records what agents owe: durably, exactly, and once however often a request is repeated.

    Bookings are only appended, each with a hash of itself and of all before it; a correction is a reversal. Every
    operation is one transaction. Writers come one after another, and a transaction is repeated where that may help.
    Amounts are whole units of the currency; what rounding removes from a charge is kept beside it. The caller chooses
    the ids of auctions and the keys of deposits, so it is safe to repeat a request with the same id or key.

    Methods block. In async code call them in a thread: `await asyncio.to_thread(ledger.balance, "A")`. Threads and
    forked processes may share a ledger; with SQLite, fork while no thread books. A copied or unpickled ledger has the
    same settings and its own connections.

    Args:
        url: `sqlite:///file.db`, `sqlite://` (in memory: it is lost on `close`, and copies are empty), or
            `postgresql+psycopg://user@host/database`.
        scales: decimals by currency, 0 to 6; the default is 6. The first booking of a currency fixes them.
        credit: how far holds and charges may take a balance below zero, in the units of each currency.
        hold_for: how long a hold lasts before `expire_holds` releases it.
        keep_receipts: whether receipts are stored; their digests always are.
        keep_replies: whether delivered replies are stored, so that a repeated call returns the first one.
        clock: returns the time, in UTC.

    Raises:
        ConfigurationError: a setting is invalid.
        MissingDependencyError: the URL is of PostgreSQL, and psycopg is not installed.

    >>> ledger = Ledger("sqlite://", scales={"EUR": 2})
    >>> ledger.deposit("TuneTown", "10", currency="EUR", key="bank-1").seq
    1
    >>> ledger.hold("auction-1", {"TuneTown": Decimal("2.50"), "Nobody": Decimal(1)}, currency="EUR").without_cover
    ('Nobody',)
    >>> ledger.charge("auction-1", {"TuneTown": Decimal("0.125")}, currency="EUR").lines[0]
    ChargeLine(owner='TuneTown', amount=Decimal('0.12'), residual=Decimal('0.005000'))
    >>> ledger.balance("TuneTown", currency="EUR").balance, ledger.verify().ok
    (Decimal('9.88'), True)
    >>> ledger.close()
    """

    binds_views = True  # an auction gives its charge the leaves of its views

    def __init__(
        self,
        url: str | URL = "sqlite:///llm_auction.db",
        *,
        scales: Mapping[str, int] | None = None,
        credit: Decimal | int | str = 0,
        hold_for: timedelta = timedelta(minutes=15),
        keep_receipts: bool = True,
        keep_replies: bool = False,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        if not callable(clock):
            raise refuse("clock", "a function that returns the time in UTC", clock)
        self._database = Database(url)
        self._scales = check.checked_scales(scales)
        self._credit = check.checked_amount("credit", credit)
        self._hold_for = check.checked_hold_for(hold_for)
        self._keep_receipts = keep_receipts
        self.keep_replies = keep_replies
        self._clock = clock
        self._uncancelled: dict[tuple[str, str | None], str] = {}

    @property
    def hold_for(self) -> timedelta:
        """How long a hold lasts."""
        return self._hold_for

    def __repr__(self) -> str:
        """Return the URL without its password."""
        return f"{type(self).__name__}('{self._database}')"

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle the settings; a copy has connections of its own."""
        own = {"_database": Database(self._database.url), "_uncancelled": dict(self._uncancelled)}
        return {**vars(self), **own}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def hold(self, auction_id: str, most: Mapping[str, Decimal], *, currency: str = "") -> Hold:
        """Set aside the most that each owner may be charged. Owners without enough cover are left out.

        Repeated, it returns the first hold, even after the charge. An auction that was voided or has expired is held
        again.

        Args:
            auction_id: the caller's own, one per auction.
            most: at least 0, by owner.
            currency: of the amounts.

        Raises:
            ConfigurationError: an argument is invalid.
            ChargeConflictError: the id belongs to another request, or the auction is closed.
            LedgerUnavailableError: the database cannot be used; it is safe to repeat the call.
        """
        auction_id, currency = check.checked_name("auction_id", auction_id), _currency(currency)
        amounts = check.checked_amounts("most", most)
        self._cancel_undelivered()
        repeat = f"{operations.REPEAT}{secrets.token_hex(16)}"
        try:
            booking, nonce, delivered = self._write(
                operations.hold, auction_id, amounts, currency, self._hold_for, repeat
            )
        except LedgerUnavailableError:
            self._uncancelled[auction_id, repeat] = "not delivered: the answer of the ledger was lost"
            raise
        return queries.hold_record(booking, nonce, amounts, delivered)

    def charge(
        self,
        auction_id: str,
        amounts: Mapping[str, Decimal],
        *,
        currency: str = "",
        reply: str = "",
        receipt: Mapping[str, Any] | None = None,
        message: str = "",
        views: Sequence[str] = (),
    ) -> Charge:
        """Charge all owners of an auction, once. Repeated for the same reply and amounts, it returns the first charge.

        Each owner pays at most what is held, and the whole hold is released. Where the hold has expired, the accounts
        must cover all of it again; without a hold they must cover the charge. An auction that was voided, cancelled or
        reversed cannot be charged. The receipt of the first charge is the one that is kept.

        Args:
            auction_id: the caller's own, one per auction.
            amounts: by owner; negative where the platform pays.
            currency: of the amounts.
            reply: digest of the reply.
            receipt: JSON with a text `digest`, which becomes part of the chain.
            message: the reply as JSON, stored where `keep_replies` is set.
            views: leaves of the owners' views, as `Receipt.leaves` returns them; their Merkle root becomes part of the
                chain.

        Raises:
            ConfigurationError: an argument is invalid.
            DeliveredError: the auction was charged with another outcome.
            ChargeConflictError: the auction was closed.
            CoverError: a hold or an account does not cover the charge; nothing is booked.
            LedgerUnavailableError: the database cannot be used; it is safe to repeat the call.
        """
        auction_id, currency = check.checked_name("auction_id", auction_id), _currency(currency)
        checked = check.checked_amounts("amounts", amounts, negative=True)
        stored = ("", "") if receipt is None else _digest_and_body(receipt, keep=self._keep_receipts)
        reply = check.checked_text("reply", reply)
        kept = check.checked_text("message", message) if self.keep_replies else ""
        tree = merkle.root([check.checked_text("views", leaf, empty=False) for leaf in views])
        charged = self._write(operations.charge, auction_id, checked, currency, reply, stored, kept, tree)
        return queries.charge_record(charged)

    def void(self, auction_id: str, *, reason: str = "") -> None:
        """Close an auction that was not charged: release its hold, and refuse a late charge.

        Raises:
            ChargeConflictError: it was charged; reverse it.
        """
        auction_id, reason = check.checked_name("auction_id", auction_id), check.checked_text("reason", reason)
        self._write(operations.void, auction_id, reason)

    def cancel(self, auction_id: str, *, reason: str = "", receipt: str | None = None) -> None:
        """Close an auction for good, whatever its state: release its hold, or reverse its charge.

        Args:
            auction_id: of the auction.
            reason: kept with the booking.
            receipt: digest of the receipt of the call that failed. The charge stands as long as another call under the
                same id delivers its reply. None reverses it in any case.

        Raises:
            LedgerUnavailableError: the database cannot be used; this ledger cancels the auction before its next hold.
        """
        auction_id, reason = check.checked_name("auction_id", auction_id), check.checked_text("reason", reason)
        receipt = None if receipt is None else check.checked_text("receipt", receipt)
        self._uncancelled[auction_id, receipt] = reason
        try:
            self._write(operations.cancel, auction_id, reason, receipt)
        except LedgerError as error:
            if not isinstance(error, LedgerUnavailableError):
                self._uncancelled.pop((auction_id, receipt), None)
            raise
        self._uncancelled.pop((auction_id, receipt), None)

    def _cancel_undelivered(self) -> None:
        """Cancel the auctions that could not be cancelled in time."""
        for (auction_id, receipt), reason in list(self._uncancelled.items()):
            try:
                self.cancel(auction_id, reason=reason, receipt=receipt)
            except LedgerUnavailableError:
                raise
            except LedgerError as error:
                _logger.warning("Auction %s, which was not delivered, could not be cancelled: %s", auction_id, error)

    def reverse(self, auction_id: str, *, owner: str | None = None, reason: str = "") -> Booking:
        """Give back the charge of an auction, or one owner's line of it. Repeated, it returns the first reversal.

        Raises:
            ChargeConflictError: the auction was not charged, or not to this owner.
        """
        auction_id, reason = check.checked_name("auction_id", auction_id), check.checked_text("reason", reason)
        owner = None if owner is None else name_of_account("owner", owner)
        return queries.booking_record(self._write(operations.reverse, auction_id, owner, reason))

    def deposit(
        self, owner: str, amount: Decimal | int | str, *, currency: str = "", key: str | None = None, note: str = ""
    ) -> Booking:
        """Book money that an owner has paid in, once per key.

        Args:
            owner: of the account.
            amount: at least 0, with no more decimals than the currency has.
            currency: of the amount.
            key: a reference such as the bank's; a repeated key books nothing. None books each call.
            note: kept with the booking.

        Raises:
            ConfigurationError: an argument is invalid.
            ChargeConflictError: the key belongs to another deposit.
        """
        return self._move("deposit", owner, amount, currency, key, note)

    def withdraw(
        self, owner: str, amount: Decimal | int | str, *, currency: str = "", key: str | None = None, note: str = ""
    ) -> Booking:
        """Book money that is paid out to an owner, once per key. Credit does not cover it.

        Raises:
            CoverError: the balance less the holds does not cover it.
        """
        return self._move("withdrawal", owner, amount, currency, key, note)

    def has_booked(self, kind: str, key: str) -> bool:
        """Whether a `deposit` or a `withdrawal` of this key is booked."""
        return self._database.read(by_key, key_of(kind, check.checked_name("key", key))) is not None

    def _move(self, kind: str, owner: str, amount: Any, currency: str, key: str | None, note: str) -> Booking:
        owner, currency = name_of_account("owner", owner), _currency(currency)
        exact, note = check.checked_amount("amount", amount), check.checked_text("note", note)
        once = str(uuid4()) if key is None else check.checked_name("key", key)
        try:
            return queries.booking_record(self._write(operations.move_cash, kind, owner, exact, currency, once, note))
        except LedgerUnavailableError as error:
            raise LedgerUnavailableError(
                f"{error} Whether the {kind} was booked is not known: with the key {once!r} it is booked once."
            ) from error

    def expire_holds(self, *, now: datetime | None = None) -> list[str]:
        """Release the holds that have expired, and return their auctions. Call it regularly."""
        until = check.checked_time("now", self._clock() if now is None else now)
        expired: list[str] = []
        while page := self._write(operations.expire, until):
            expired += page
        return expired

    def erase_receipts(self, before: datetime) -> int:
        """Delete stored receipts of charges before a time, with their salts, and return the number of receipts.

        The chain keeps the digests, which then reveal nothing.
        """
        until = check.checked_time("before", before)
        return self._database.write(queries.erase_receipts, until)

    def balance(self, owner: str, *, currency: str = "") -> Account:
        """Return an account. One without bookings has only the credit."""
        owner, currency = name_of_account("owner", owner), _currency(currency)
        accounts = self._database.read(queries.accounts, self._credit, owner, currency)
        zero = from_units(0, 0)
        empty = Account(owner=owner, currency=currency, balance=zero, held=zero, available=self._credit)
        return accounts[0] if accounts else empty

    def accounts(self) -> list[Account]:
        """Return all accounts, by owner and currency."""
        return self._database.read(queries.accounts, self._credit)

    def entries(
        self,
        *,
        owner: str | None = None,
        currency: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Iterator[Entry]:
        """Yield the entries up to the last booking at the first `next`, in order.

        Args:
            owner: of the account; None is all.
            currency: of the account; None is all.
            since: inclusive.
            until: exclusive.
        """
        chosen = queries.conditions(
            None if owner is None else name_of_account("owner", owner),
            None if currency is None else _currency(currency),
            None if since is None else check.checked_time("since", since),
            None if until is None else check.checked_time("until", until),
        )
        return self._pages(chosen)

    def _pages(self, chosen: queries.Conditions) -> Iterator[Entry]:
        last, place = self.head().seq, (0, -1)
        while page := self._database.read(queries.entries_after, place, last, chosen):
            yield from page
            place = (page[-1].seq, page[-1].line)

    def statement(
        self, owner: str, *, currency: str = "", since: datetime | None = None, until: datetime | None = None
    ) -> Statement:
        """Return an account over a period.

        No booking is dated before an earlier one, whatever the clock does, so the first booking after a period closes
        it.

        Args:
            owner: of the account.
            currency: of the account.
            since: inclusive; None is the beginning.
            until: exclusive; None is now.
        """
        owner, currency = name_of_account("owner", owner), _currency(currency)
        stream = self.entries(owner=owner, currency=currency, since=since, until=until)
        start = None if since is None else check.checked_time("since", since)
        if start is not None and until is not None and start > check.checked_time("until", until):
            raise refuse("since", f"a time that is not after until, {until}", since)
        entries = tuple(stream)
        zero, opening = self._database.read(queries.opening, owner, currency, start)
        charged = plus(zero, *(negated(entry.amount) for entry in entries if entry.kind in ("charge", "reversal")))
        deposited = plus(zero, *(entry.amount for entry in entries if entry.kind in ("deposit", "withdrawal")))
        return Statement(
            owner=owner,
            currency=currency,
            since=since,
            until=until,
            opening=opening,
            entries=entries,
            closing=plus(opening, deposited, negated(charged)),
            charged=charged,
            deposited=deposited,
        )

    def charge_of(self, auction_id: str) -> Charge | None:
        """Return the charge of an auction, reversed or not; None where there is none."""
        key = key_of("charge", check.checked_name("auction_id", auction_id))
        booking = self._database.read(by_key, key)
        return None if booking is None else queries.charge_record(booking)

    def receipt_of(self, auction_id: str) -> dict[str, Any] | None:
        """Return the stored receipt of an auction; None where there is none, or it was erased."""
        auction_id = check.checked_name("auction_id", auction_id)
        return self._database.read(queries.receipt_of, auction_id)

    def links(self, auction_id: str, *, head: str | None = None) -> Links | None:
        """Return how the charge of an auction is linked to the end of the chain; None where there is none.

        Args:
            auction_id: of the auction.
            head: hash of the booking to end at; None is the last one.

        Raises:
            LedgerError: the charge has no root of views, or no later booking has that hash.
        """
        return self._database.read(queries.links, check.checked_name("auction_id", auction_id), head)

    def totals(self) -> list[Totals]:
        """Return cash, revenue and balances of each currency: `cash == revenue + balances`, exactly."""
        return self._database.read(queries.totals)

    def head(self) -> Head:
        """Return the end of the chain. A copy kept elsewhere later proves that nothing before it was changed."""
        return self._database.read(queries.head)

    def verify(self, *, head: str | None = None) -> Audit:
        """Recompute the whole chain and all that follows from it, and return the differences.

        Args:
            head: a hash that `head` returned at some time; it must be in the chain.
        """
        return self._database.read(audit.verify, head=head)

    def exists(self) -> bool:
        """Return whether there is a ledger in the database. Unlike other methods, it creates none, and no file."""
        return in_memory(self._database.url) or self._database.has_ledger()

    def migrate(self) -> None:
        """Upgrade the database's schema to the newest revision. Make a backup first."""
        self._database.migrate()

    def close(self) -> None:
        """Close the connections; the next use opens new ones."""
        self._database.close()

    def _write(self, operation: Callable[Concatenate[Writer, P], T], *args: P.args, **more: P.kwargs) -> T:
        """Return what an operation returns. Those that threads ask for at the same time share a transaction."""
        booked: T = self._database.groups.call(self._book, Operation(operation, args, more))
        return booked

    def _book(self, group: Sequence[Operation]) -> list[Outcome]:
        """Return the outcomes of operations that share a transaction. A fault of the database is the outcome of all."""
        try:
            return self._database.book(lambda transaction: self._book_on(transaction, group))
        except Exception as error:  # noqa: BLE001 - raised where the caller waits
            if len(group) == 1:
                return [(None, error)]
            if is_outage(error.__cause__):
                return [(None, _copied(error)) for _ in group]
        return [outcome for operation in group for outcome in self._book([operation])]  # one of them may be to blame

    def _book_on(self, transaction: Transaction, group: Sequence[Operation]) -> list[Outcome]:
        known, reads = self._database.scales, operations.reads(group)
        writer = Writer(transaction, self._scales, self._credit, self._clock(), known, reads)
        outcomes = [writer.run(operation) for operation in group]
        writer.flush(last=True)
        return outcomes


def _copied(error: Exception) -> Exception:
    """Return an error for one of several callers: each adds its own traceback."""
    copied = type(error)(*error.args)
    copied.__cause__ = error.__cause__
    return copied


def _currency(currency: Any) -> str:
    return name_of_account("currency", currency, empty=True)


def _digest_and_body(receipt: Any, *, keep: bool) -> tuple[str, str]:
    """Return a receipt's digest, and its text, empty where it is not kept."""
    if not isinstance(receipt, Mapping):
        raise refuse("receipt", "a mapping with a text `digest`", receipt)
    digest = check.checked_text("receipt['digest']", receipt.get("digest"), empty=False)
    try:
        body = json.dumps(dict(receipt), allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise refuse("receipt", "JSON of texts, booleans and finite numbers", type(receipt), f"{error}.") from error
    return digest, body if keep else ""
