"""The ledger: what agents owe, and what became of every auction."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any, Self

from llm_auction_chain.ledger.records import Account, Audit, Booking, Charge, Entry, Head, Hold, Statement, Totals
from llm_auction_chain.ledger.sync import SyncLedger
from llm_auction_chain.threads import in_thread

__all__ = ["Ledger"]


class Ledger(SyncLedger):
    """What agents owe, to the last unit: durable, booked once however often it is asked, and never changed.

    Bookings are only ever appended, each with a hash of itself and of all before it; a correction is a reversal. Every
    operation is one transaction, writers come one after another, and what may help is tried again. Amounts are whole
    units of the currency; what rounding leaves out of a charge is kept beside it. The ids of auctions and the keys of
    deposits are the caller's, so that asking again with the same is safe. Every method has an async twin: `ahold`.

    A ledger copies and pickles by its settings; a copy, a thread and a forked process may use it at the same time.

    Args:
        url: `sqlite:///file.db`, `sqlite://` (in memory, gone when it is closed, its copies are empty), or
            `postgresql+psycopg://user@host/database`.
        scales: decimals by currency, 0 to 6; 6 where nothing is said. The first booking of a currency sets them.
        credit: by how much a balance may fall below zero for holds and charges, in units of its own currency.
        hold_for: how long a hold stands before `expire_holds` releases it.
        keep_receipts: whether receipts are stored; their digests always are.
        clock: returns the time, in UTC.

    Raises:
        ConfigurationError: a setting that no ledger can have.
        MissingDependencyError: a URL of PostgreSQL, and psycopg is not installed.

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

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await self.aclose()

    async def ahold(self, auction_id: str, most: Mapping[str, Decimal], *, currency: str = "") -> Hold:
        """Do as `hold`, awaiting."""
        held: Hold = await in_thread(partial(self.hold, auction_id, most, currency=currency))
        return held

    async def acharge(
        self,
        auction_id: str,
        amounts: Mapping[str, Decimal],
        *,
        currency: str = "",
        reply: str = "",
        receipt: Mapping[str, Any] | None = None,
    ) -> Charge:
        """Do as `charge`, awaiting."""
        asked = partial(self.charge, auction_id, amounts, currency=currency, reply=reply, receipt=receipt)
        charged: Charge = await in_thread(asked)
        return charged

    async def avoid(self, auction_id: str, *, reason: str = "") -> None:
        """Do as `void`, awaiting."""
        await in_thread(partial(self.void, auction_id, reason=reason))

    async def acancel(self, auction_id: str, *, reason: str = "", receipt: str | None = None) -> None:
        """Do as `cancel`, awaiting."""
        await in_thread(partial(self.cancel, auction_id, reason=reason, receipt=receipt))

    async def areverse(self, auction_id: str, *, owner: str | None = None, reason: str = "") -> Booking:
        """Do as `reverse`, awaiting."""
        made: Booking = await in_thread(partial(self.reverse, auction_id, owner=owner, reason=reason))
        return made

    async def adeposit(
        self, owner: str, amount: Decimal | int | str, *, currency: str = "", key: str | None = None, note: str = ""
    ) -> Booking:
        """Do as `deposit`, awaiting."""
        made: Booking = await in_thread(partial(self.deposit, owner, amount, currency=currency, key=key, note=note))
        return made

    async def awithdraw(
        self, owner: str, amount: Decimal | int | str, *, currency: str = "", key: str | None = None, note: str = ""
    ) -> Booking:
        """Do as `withdraw`, awaiting."""
        made: Booking = await in_thread(partial(self.withdraw, owner, amount, currency=currency, key=key, note=note))
        return made

    async def aexpire_holds(self, *, now: datetime | None = None) -> list[str]:
        """Do as `expire_holds`, awaiting."""
        expired: list[str] = await in_thread(partial(self.expire_holds, now=now))
        return expired

    async def aerase_receipts(self, before: datetime) -> int:
        """Do as `erase_receipts`, awaiting."""
        erased: int = await in_thread(partial(self.erase_receipts, before))
        return erased

    async def abalance(self, owner: str, *, currency: str = "") -> Account:
        """Do as `balance`, awaiting."""
        account: Account = await in_thread(partial(self.balance, owner, currency=currency))
        return account

    async def aaccounts(self) -> list[Account]:
        """Do as `accounts`, awaiting."""
        accounts: list[Account] = await in_thread(self.accounts)
        return accounts

    async def aentries(
        self,
        *,
        owner: str | None = None,
        currency: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[Entry]:
        """Do as `entries`, awaiting, all at once."""
        chosen = partial(self.entries, owner=owner, currency=currency, since=since, until=until)
        entries: list[Entry] = await in_thread(lambda: list(chosen()))
        return entries

    async def astatement(
        self, owner: str, *, currency: str = "", since: datetime | None = None, until: datetime | None = None
    ) -> Statement:
        """Do as `statement`, awaiting."""
        told: Statement = await in_thread(partial(self.statement, owner, currency=currency, since=since, until=until))
        return told

    async def acharge_of(self, auction_id: str) -> Charge | None:
        """Do as `charge_of`, awaiting."""
        charged: Charge | None = await in_thread(partial(self.charge_of, auction_id))
        return charged

    async def areceipt_of(self, auction_id: str) -> dict[str, Any] | None:
        """Do as `receipt_of`, awaiting."""
        receipt: dict[str, Any] | None = await in_thread(partial(self.receipt_of, auction_id))
        return receipt

    async def atotals(self) -> list[Totals]:
        """Do as `totals`, awaiting."""
        totals: list[Totals] = await in_thread(self.totals)
        return totals

    async def ahead(self) -> Head:
        """Do as `head`, awaiting."""
        head: Head = await in_thread(self.head)
        return head

    async def averify(self, *, head: str | None = None) -> Audit:
        """Do as `verify`, awaiting."""
        audit: Audit = await in_thread(partial(self.verify, head=head))
        return audit

    async def amigrate(self) -> None:
        """Do as `migrate`, awaiting."""
        await in_thread(self.migrate)

    async def aclose(self) -> None:
        """Do as `close`, awaiting."""
        await in_thread(self.close)
