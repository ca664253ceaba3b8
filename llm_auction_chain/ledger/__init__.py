"""The ledger: what agents owe, in SQLite or PostgreSQL. Only `Ledger` itself needs SQLAlchemy."""

from typing import TYPE_CHECKING, Any

from llm_auction_chain.errors import MissingDependencyError
from llm_auction_chain.ledger.records import (
    Account,
    AuctionLedger,
    Audit,
    Booking,
    Charge,
    ChargeLine,
    Entry,
    Head,
    Hold,
    Links,
    Statement,
    Totals,
)

if TYPE_CHECKING:
    from llm_auction_chain.ledger.ledger import Ledger

__all__ = [
    "Account",
    "AuctionLedger",
    "Audit",
    "Booking",
    "Charge",
    "ChargeLine",
    "Entry",
    "Head",
    "Hold",
    "Ledger",
    "Links",
    "Statement",
    "Totals",
]


def __getattr__(name: str) -> Any:
    if name != "Ledger":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from llm_auction_chain.ledger.ledger import Ledger
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("alembic", "sqlalchemy", "tenacity"):
            raise
        raise MissingDependencyError("The ledger needs SQLAlchemy: pip install 'llm-auction-chain[ledger]'") from error
    return Ledger
