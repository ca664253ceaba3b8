"""What must follow from the chain: accounts, auctions, currencies and sums, booking by booking."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from llm_auction_chain.ledger.chain import BookingRow, Line
from llm_auction_chain.ledger.transaction import AuctionRow

__all__ = ["Replay"]

_CLOSES = {"charge": "charged", "void": "voided", "expiry": "expired", "cancellation": "cancelled"}
_SETS_SCALE = ("deposit", "withdrawal", "hold", "charge")
_MOVES = ("deposit", "withdrawal", "charge", "reversal")
_HOLDS = ("hold", "charge", "void", "expiry", "cancellation")


class Replay:
    """Books again what was booked.

    Args:
        tell: hears what no ledger would have booked.

    Attributes:
        accounts: balance and held by owner and currency.
        auctions: how each stands, with the digest of its nonce in the nonce's place.
        scales: decimals by currency.
        sums: cash and revenue by currency.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self.accounts: dict[tuple[str, str], tuple[int, int]] = {}
        self.auctions: dict[str, AuctionRow] = {}
        self.scales: dict[str, int] = {}
        self.sums: dict[str, tuple[int, int]] = {}
        self._charged: dict[str, int] = {}

    def book(self, row: BookingRow, lines: Sequence[Line]) -> None:
        """Book one more."""
        if row.kind in _SETS_SCALE and self.scales.setdefault(row.currency, row.scale) != row.scale:
            self._tell(f"Booking {row.seq} has {row.scale} decimals, the currency {self.scales[row.currency]}.")
        for line in lines:
            balance, held = self.accounts.get((line.owner, row.currency), (0, 0))
            self.accounts[line.owner, row.currency] = balance + line.amount, held + line.held
            if held + line.held < 0:
                self._tell(f"Booking {row.seq} releases more of {line.owner!r} than was held.")
            if (line.amount and row.kind not in _MOVES) or (line.held and row.kind not in _HOLDS):
                self._tell(f"Booking {row.seq} moves what a {row.kind} does not move.")
        moved = sum(line.amount for line in lines)
        cash, revenue = self.sums.get(row.currency, (0, 0))
        if row.kind in ("deposit", "withdrawal"):
            self.sums[row.currency] = cash + moved, revenue
        elif lines:
            self.sums[row.currency] = cash, revenue - moved
        if row.auction_id is not None:
            self._stand(row, row.auction_id, len(lines))

    def _stand(self, row: BookingRow, auction_id: str, lines: int) -> None:
        empty = AuctionRow(auction_id=auction_id, currency=row.currency, state="")
        auction = self.auctions.get(auction_id, empty)
        if row.kind == "hold":
            auction = replace(
                auction,
                currency=row.currency,
                state="held",
                expires_at=row.note,
                hold_seq=row.seq,
                close_seq=None,
                holds=auction.holds + 1,
                nonce=row.evidence,
            )
        elif row.kind in _CLOSES:
            auction = replace(auction, state=_CLOSES[row.kind], close_seq=row.seq)
        if row.kind == "charge":
            self._charged[auction_id] = lines
        elif row.kind == "reversal":
            self._charged[auction_id] = self._charged.get(auction_id, 0) - lines
            if self._charged[auction_id] == 0:
                auction = replace(auction, state="reversed")
        self.auctions[auction_id] = auction
