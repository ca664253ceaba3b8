"""The frozen records that a ledger returns, and what an auction needs of a ledger. Nothing here imports SQLAlchemy.

Amounts are decimals in the currency's units; times are in UTC.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The change that one booking made to the account of `owner` in `currency`.

    Attributes:
        seq: number of the booking.
        line: number of the entry within the booking, from 0.
        kind: of the booking: `deposit`, `withdrawal`, `hold`, `charge`, `void`, `expiry`, `cancellation`, `reversal`;
            `repeat`: another call delivers a reply on the same charge; `failure`: such a call failed.
        auction_id: None for deposits and withdrawals.
        at: time of the booking.
        amount: change of the balance; negative for a charge.
        held: change of the amount on hold.
        residual: what rounding to the currency's decimals removed; `amount + residual` is the exact change.
        note: the reason.
    """

    seq: int
    line: int
    kind: str
    auction_id: str | None
    owner: str
    currency: str
    at: datetime
    amount: Decimal
    held: Decimal
    residual: Decimal
    note: str


@dataclass(frozen=True, kw_only=True)
class Booking:
    """One link of the chain. It never changes. `kind`, `auction_id` and `note` are as in `Entry`.

    Attributes:
        seq: its number, from 1, without gaps.
        key: unique in the ledger; a repeated request has the same key.
        currency: of all its entries.
        at: its time, never before that of the previous booking.
        entries: the changes to accounts.
        hash: of this booking and, through the previous hash, of all before it.
    """

    seq: int
    key: str
    kind: str
    auction_id: str | None
    currency: str
    at: datetime
    note: str
    entries: tuple[Entry, ...]
    hash: str


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """What an auction delivered, kept for a call that asks for it again.

    Attributes:
        charge: of the auction.
        reply: the message, JSON.
        receipt: under which the repeated call delivers it, for `cancel`.
    """

    charge: "Charge"
    reply: str
    receipt: str


@dataclass(frozen=True, kw_only=True)
class Hold:
    """Money that is set aside for an auction until the auction is charged or voided, or the hold expires.

    `seq`, `hash` and `at` are those of its booking.

    Attributes:
        expires_at: time from which `expire_holds` releases it.
        amounts: held amount by owner, for owners with enough cover.
        without_cover: owners whose accounts do not cover their amount; nothing of theirs is held.
        nonce: a secret of the auction, the same for all its holds; the auction's seed is derived from it.
        delivered: the outcome, where the auction is charged already and its reply is kept; else None.
    """

    auction_id: str
    currency: str
    seq: int
    hash: str
    at: datetime
    expires_at: datetime
    amounts: Mapping[str, Decimal]
    without_cover: tuple[str, ...]
    nonce: str = field(repr=False)
    delivered: Delivered | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class ChargeLine:
    """The charge of one owner.

    Attributes:
        owner: pays the amount.
        amount: rounded to the currency's decimals; negative where the platform pays.
        residual: what rounding removed; `amount + residual` is the exact charge.
    """

    owner: str
    amount: Decimal
    residual: Decimal


@dataclass(frozen=True, kw_only=True)
class Charge:
    """The one charge of an auction. `seq`, `hash` and `at` are those of its booking.

    Attributes:
        lines: one for each owner with a charge or a hold, zeros included.
        total: the sum of their amounts.
        receipt: digest of the receipt, or empty.
    """

    auction_id: str
    currency: str
    seq: int
    hash: str
    at: datetime
    lines: tuple[ChargeLine, ...]
    total: Decimal
    receipt: str


@dataclass(frozen=True, kw_only=True)
class Account:
    """The state of one owner's account in one currency.

    Attributes:
        balance: deposits less withdrawals and charges; negative where the owner owes money.
        held: set aside for auctions in progress.
        available: `balance - held + credit`, the most that a new hold may take.
    """

    owner: str
    currency: str
    balance: Decimal
    held: Decimal
    available: Decimal


@dataclass(frozen=True, kw_only=True)
class Statement:
    """An account over a period: `opening + deposited - charged == closing`.

    Attributes:
        since: start of the period, inclusive; None is the beginning.
        until: end of the period, exclusive; None is now.
        opening: balance before the period.
        entries: all of the period, in order.
        closing: balance after the period.
        charged: charges less reversals.
        deposited: deposits less withdrawals.
    """

    owner: str
    currency: str
    since: datetime | None
    until: datetime | None
    opening: Decimal
    entries: tuple[Entry, ...]
    closing: Decimal
    charged: Decimal
    deposited: Decimal


@dataclass(frozen=True, kw_only=True)
class Totals:
    """The sums of one currency over all accounts: `cash == revenue + balances`, exactly.

    Attributes:
        cash: deposits less withdrawals.
        revenue: charges less reversals.
        balances: of all accounts.
        held: of all accounts.
        residual: what rounding removed from the revenue; `revenue + residual` is the sum of the exact charges.
    """

    currency: str
    cash: Decimal
    revenue: Decimal
    balances: Decimal
    held: Decimal
    residual: Decimal


@dataclass(frozen=True, kw_only=True)
class Head:
    """The end of the chain. A copy kept elsewhere later proves that nothing before it was changed.

    Attributes:
        seq: number of the last booking; 0 in an empty ledger.
        hash: of the last booking; empty in an empty ledger.
    """

    seq: int
    hash: str


@dataclass(frozen=True, kw_only=True)
class Links:
    """How a booking is linked to a later one. It shows hashes, and nothing of any booking.

    Attributes:
        previous: hash of the booking before it.
        rest: digest of what it contains but for the Merkle root over the views.
        later: for each booking after it, the hash of what it contains.
        head: the booking that the links end at.
    """

    previous: str
    rest: str
    later: tuple[str, ...]
    head: Head


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The result of `Ledger.verify`.

    Attributes:
        ok: whether there are no differences.
        differences: sentences that name the booking, account or auction that is wrong.
        bookings: number of bookings in the chain.
        head: hash of the last one; empty in an empty ledger.
    """

    ok: bool
    differences: list[str]
    bookings: int
    head: str


@runtime_checkable
class AuctionLedger(Protocol):  # pragma: no mutate block
    """What an auction needs of a ledger. `Ledger` has it; `testing.LedgerConformance` checks one of your own.

    Every method may be repeated with the same arguments: it books once. All raise `LedgerError` where they fail. A hold
    or a charge of something else than an auction was charged with raises `DeliveredError`.
    """

    @property
    def hold_for(self) -> timedelta:
        """How long a hold lasts."""

    def hold(self, auction_id: str, most: Mapping[str, Decimal], *, currency: str = "") -> Hold:
        """Set aside the most that each owner may be charged."""

    def charge(
        self,
        auction_id: str,
        amounts: Mapping[str, Decimal],
        *,
        currency: str = "",
        reply: str = "",
        receipt: Mapping[str, Any] | None = None,
    ) -> Charge:
        """Charge all owners of an auction once, and release its hold.

        A ledger whose `keep_replies` is true also gets `message`, the reply as JSON, and returns it in a later hold, as
        `delivered`. One whose `binds_views` is true also gets `views`, the leaves of the owners' views.
        """

    def void(self, auction_id: str, *, reason: str = "") -> None:
        """Close an auction that was not charged, and release its hold."""

    def cancel(self, auction_id: str, *, reason: str = "", receipt: str | None = None) -> None:
        """Close an auction for good: release its hold, or reverse its charge."""
