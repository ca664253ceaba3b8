"""The way of a reply from its auction to the caller, on which a charge can still be taken back."""

import logging
from typing import TYPE_CHECKING, Self

from llm_auction_chain.errors import LedgerError
from llm_auction_chain.ledger import AuctionLedger
from llm_auction_chain.waiting import AWAITING, BLOCKING, Waiter, run

if TYPE_CHECKING:
    from llm_auction_chain.auction.result import AuctionResult

__all__ = ["Delivery"]

_logger = logging.getLogger(__name__)


class Delivery:
    """The last steps of replies to their caller: where they fail, the charges for the replies are taken back.

    Args:
        ledger: where the auctions are charged; None where they are not.
        outer: the delivery of a call around this one, which goes on with the auctions that this one delivered.

    Attributes:
        results: the auctions of this call.
    """

    def __init__(self, ledger: AuctionLedger | None, outer: "Delivery | None" = None) -> None:
        self._ledger, self._outer = ledger, outer
        self._pending: list[AuctionResult] = []
        self._failed = ""
        self.results: list[AuctionResult] = []

    def add(self, result: "AuctionResult") -> None:
        """Add an auction whose reply is under way; where its caller has failed already, take its charge back."""
        self.results.append(result)
        self._pending.append(result)
        if self._failed:
            self._take_back()

    def complete(self) -> None:
        """Note that the caller has the replies that were under way."""
        pending, self._pending = self._pending, []
        if self._outer is not None:
            for result in pending:
                self._outer.add(result)

    async def close(self, error: type[BaseException] | None, waiter: Waiter) -> None:
        """Complete the delivery, or take the charges back where the call ended with an error."""
        outer_failed = self._outer is not None and bool(self._outer._failed)  # noqa: SLF001 - its own kind
        if self._ledger is None or (error is None and not outer_failed):
            self._close(error)
        else:
            await waiter.in_thread(lambda: self._close(error), shield=True)

    def _close(self, error: type[BaseException] | None) -> None:
        if error is None:
            self.complete()
        else:
            self._failed = error.__name__
            self._take_back()

    def _take_back(self) -> None:
        pending, self._pending = self._pending, []
        for result in pending:
            if self._ledger is not None and result.charge:
                reason = f"not delivered: {self._failed}"
                try:
                    self._ledger.cancel(result.auction_id, reason=reason, receipt=result.receipt.digest)
                except LedgerError as error:
                    _logger.warning("The charge of auction %s was not taken back: %s", result.auction_id, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        run(self.close(kind, BLOCKING))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.close(kind, AWAITING)
