"""What the ledger tells: frozen, in decimals of the currency, in UTC."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

__all__ = [
    "Account",
    "Audit",
    "Booking",
    "Charge",
    "ChargeLine",
    "Entry",
    "Head",
    "Hold",
    "Statement",
    "Totals",
]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What one booking did to one account.

    Attributes:
        seq: number of the booking.
        line: number of the entry within it, from 0.
        kind: of the booking: `deposit`, `withdrawal`, `hold`, `charge`, `void`, `expiry`, `cancellation`, `reversal`;
            `repeat`, another call delivers on a charge, too; `failure`, one of those did not.
        auction_id: the auction it is about; None for money that came or went.
        owner: whose account.
        currency: of the account.
        at: when it was booked.
        amount: change of the balance; a charge is negative.
        held: change of what is held.
        residual: what rounding to the currency's decimals left out of `amount`; the two are the exact change.
        note: why.
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
    """A link of the chain, never changed.

    Attributes:
        seq: its number, from 1, without gaps.
        key: unique; what makes it happen once.
        kind: as in `Entry`.
        auction_id: the auction it is about, or None.
        currency: of all its entries.
        at: when it was booked, never before the one before it.
        note: why.
        entries: what it did to accounts.
        hash: of itself and of all before it.
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
class Hold:
    """Cover that is kept for an auction until it is charged, voided or expired.

    Attributes:
        auction_id: the auction.
        currency: of the amounts.
        seq: number of the booking.
        hash: of the booking.
        at: when it was booked.
        expires_at: from when on `expire_holds` may release it.
        amounts: what is held, by owner.
        without_cover: owners whose account does not cover what was asked; nothing of theirs is held.
        nonce: 64 random hexadecimal digits, the same whenever this auction is held: what is to be as in the first try,
            such as a seed, is made of them. Whoever knows them can foresee it.
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


@dataclass(frozen=True, kw_only=True)
class ChargeLine:
    """What one owner was charged.

    Attributes:
        owner: who pays.
        amount: in whole units of the currency; negative where the platform pays.
        residual: what rounding left out; `amount + residual` is the exact charge.
    """

    owner: str
    amount: Decimal
    residual: Decimal


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What an auction was charged, once.

    Attributes:
        auction_id: the auction.
        currency: of the amounts.
        seq: number of the booking.
        hash: of the booking.
        at: when it was booked.
        lines: one per owner that was charged or held, zeros included.
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
    """How an owner stands in one currency.

    Attributes:
        owner: who.
        currency: in what.
        balance: what was paid in and not charged; negative where the owner owes.
        held: what is kept for auctions under way.
        available: `balance - held + credit`, what a new hold may take.
    """

    owner: str
    currency: str
    balance: Decimal
    held: Decimal
    available: Decimal


@dataclass(frozen=True, kw_only=True)
class Statement:
    """An account over a time: `opening + deposited - charged == closing`.

    Attributes:
        owner: who.
        currency: in what.
        since: from when, inclusive; None is the beginning.
        until: till when, exclusive; None is now.
        opening: balance before it.
        entries: all in it, in order.
        closing: balance after it.
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
    """All of one currency: `cash == revenue + balances`, to the last unit.

    Attributes:
        currency: which.
        cash: deposits less withdrawals.
        revenue: charges less reversals.
        balances: of all accounts.
        held: of all accounts.
        residual: what rounding left out of the revenue; the two are the exact charges.
    """

    currency: str
    cash: Decimal
    revenue: Decimal
    balances: Decimal
    held: Decimal
    residual: Decimal


@dataclass(frozen=True, kw_only=True)
class Head:
    """The end of the chain. Noted elsewhere, it proves later that nothing before it was changed.

    Attributes:
        seq: number of the last booking; 0 where there is none.
        hash: of the last booking; empty where there is none.
    """

    seq: int
    hash: str


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What a verification found.

    Attributes:
        ok: whether nothing differs.
        differences: what differs, in words, with the number of the booking.
        bookings: how many were read.
        head: hash of the last one; empty where there is none.
    """

    ok: bool
    differences: list[str]
    bookings: int
    head: str
