"""The ledger: what agents owe, in SQLite or PostgreSQL."""

from llm_auction_chain.errors import MissingDependencyError

try:
    from llm_auction_chain.ledger.ledger import Ledger
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("alembic", "sqlalchemy", "tenacity"):
        raise
    raise MissingDependencyError("The ledger needs SQLAlchemy: pip install 'llm-auction-chain[ledger]'") from error
from llm_auction_chain.ledger.records import (
    Account,
    Audit,
    Booking,
    Charge,
    ChargeLine,
    Entry,
    Head,
    Hold,
    Statement,
    Totals,
)

__all__ = [
    "Account",
    "Audit",
    "Booking",
    "Charge",
    "ChargeLine",
    "Entry",
    "Head",
    "Hold",
    "Ledger",
    "Statement",
    "Totals",
]
