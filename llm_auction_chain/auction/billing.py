"""What one auction has on the ledger: held before anybody is asked, charged when settled, given up if it ends early."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, Self

from llm_auction_chain.agents import Agent, cap_of
from llm_auction_chain.errors import ChargeConflictError, ConfigurationError, LedgerError
from llm_auction_chain.money import FINEST, as_decimal, from_units, plus
from llm_auction_chain.threads import in_thread

if TYPE_CHECKING:
    from llm_auction_chain.auction.result import AuctionResult
    from llm_auction_chain.ledger import Charge, Ledger
    from llm_auction_chain.receipts import Receipt

__all__ = ["Delivery", "OnLedgerError", "Tab", "check_ledger", "most_owed"]

OnLedgerError = Literal["reference", "raise"]
_logger = logging.getLogger(__name__)


def most_owed(agents: Sequence[Agent], report_cap: float | None, *, negative: bool) -> dict[str, Decimal]:
    """Return the most each owner can owe for one auction: the range of its agents' capped reports.

    No rule charges more than `max_j r_ij - min_j r_ij`.

    Args:
        agents: those that pay and those that never do.
        report_cap: the auction's cap; an agent's own counts where it is less.
        negative: whether reports may be below 0, so that their range is twice the cap.

    Raises:
        ConfigurationError: an agent that pays has no cap: there is no most.

    >>> most_owed([Agent("A", len, report_cap=2.0), Agent("B", len, owner="A")], 0.5, negative=True)
    {'A': Decimal('2.000001')}
    """
    ranges: dict[str, list[Decimal]] = {}
    for agent in agents:
        if not agent.pays:
            continue
        cap = cap_of(agent, report_cap)
        if cap is None:
            raise ConfigurationError(
                f"What {agent.name!r} may owe has no limit, so nothing can be held for it. With a ledger set the "
                "auction's report_cap, or each agent's."
            )
        ranges.setdefault(agent.payer, []).append(as_decimal(2.0 * cap if negative else cap))
    # each agent's share of its owner's payment is rounded by itself
    return {owner: plus(*each, from_units(len(each) - 1, FINEST)) for owner, each in ranges.items()}


class Tab:
    """One auction's dealings with the ledger; without one it holds and charges nothing.

    A hold that fails leaves every agent out, and a charge that fails leaves the reply without sponsors, unless
    `on_error` is `raise`: no sponsored reply goes out uncharged.

    Attributes:
        auction_id: under which everything is booked.
        without_cover: owners whose accounts do not cover the most they may owe.
        nonce: from which the auction's seed and salt are made, the same in every try under one id; None without a hold.
        failure: why the ledger did not do what it was asked.
    """

    def __init__(
        self, ledger: "Ledger | None", on_error: OnLedgerError, auction_id: str, currency: str, most: dict[str, Decimal]
    ) -> None:
        self._ledger = ledger if most else None
        self._on_error, self._currency, self._most = on_error, currency, most
        self._step: Literal["none", "hold", "charge", "over"] = "none"
        self._receipt = ""
        self._lock = Lock()  # steps are taken in threads, and a cancelled auction gives up while one is under way
        self.auction_id = auction_id
        self.without_cover: frozenset[str] = frozenset()
        self.nonce: str | None = None
        self.failure: LedgerError | None = None

    def hold(self) -> None:
        """Hold the most that every owner may owe.

        Raises:
            LedgerError: the ledger refuses or is unavailable, and `on_error` is `raise`.
        """
        if self._ledger is None:
            return
        with self._lock:
            if self._step == "over":
                return
            self._step = "hold"
            try:
                held = self._ledger.hold(self.auction_id, self._most, currency=self._currency)
            except LedgerError as error:
                if isinstance(error, ChargeConflictError):
                    self._step = "over"  # what stands under the id is another call's
                self._fail(error)
                self.without_cover = frozenset(self._most)
            else:
                self.without_cover, self.nonce = frozenset(held.without_cover), held.nonce or None

    def charge(self, result: "AuctionResult") -> "Charge | None":
        """Charge what every owner owes, and return the charge; None where there is nothing to charge, or it failed.

        Who pays per click owes nothing yet; an auction that comes to nothing is charged nothing, and closed by that.

        Raises:
            LedgerError: the ledger refuses or is unavailable, and `on_error` is `raise`.
        """
        amounts: dict[str, Decimal] = {}
        for agent, amount, report in zip(result.agents, result.charges, result.reports, strict=True):
            if agent.pays and report.click_through is None:
                amounts[agent.payer] = plus(amounts.get(agent.payer, Decimal(0)), amount)
        with self._lock:
            if self._ledger is None or self._step == "over":
                return None
            if self.failure is not None:
                self._give_up(self._ledger, "the hold failed")
                return None
            self._step = "charge"
            try:
                return self._charge(self._ledger, amounts, result.receipt)
            except LedgerError as error:
                self._fail(error)
                self._give_up(self._ledger, "the charge failed, so the reply was not sponsored")
                return None

    def _charge(self, ledger: "Ledger", amounts: dict[str, Decimal], receipt: "Receipt") -> "Charge":
        self._receipt = receipt.digest
        reply, told = receipt.candidates[receipt.winner].reply, receipt.as_dict()
        try:
            return ledger.charge(self.auction_id, amounts, currency=self._currency, reply=reply, receipt=told)
        except ChargeConflictError:
            # another call under the same id may have given up, and released what both held
            ledger.hold(self.auction_id, self._most, currency=self._currency)
            return ledger.charge(self.auction_id, amounts, currency=self._currency, reply=reply, receipt=told)

    def give_up(self, reason: str) -> None:
        """Release what is held, and take back what this auction charged: its reply is not delivered."""
        with self._lock:  # a charge under way in another thread comes to its end before
            if self._ledger is not None:
                self._give_up(self._ledger, reason)

    def _give_up(self, ledger: "Ledger", reason: str) -> None:
        step, self._step = self._step, "over"
        try:
            if step == "hold":
                ledger.void(self.auction_id, reason=reason)
            elif step == "charge":
                ledger.cancel(self.auction_id, reason=reason, receipt=self._receipt)
        except ChargeConflictError:
            pass  # another call under the same id has charged it, and delivered
        except LedgerError as error:
            _logger.warning("What auction %s holds or has charged could not be given up: %s", self.auction_id, error)

    async def apart(self, step: Callable[..., Any], *given: Any) -> Any:
        """Take a step in a thread, for the event loop waits for no database; without a ledger at once."""
        if self._ledger is None:
            return step(*given)
        waiting: Awaitable[Any] = in_thread(lambda: step(*given))
        return await waiting

    def _fail(self, error: LedgerError) -> None:
        if self._on_error == "raise":
            raise error
        # whose accounts fall short, and where the ledger is, are nothing for the reply's metadata
        _logger.warning("Auction %s has no sponsors: %s", self.auction_id, error)
        self.failure = error


class Delivery:
    """The last steps of replies to their caller: where they fail, what was charged for them is taken back.

    Args:
        ledger: where it was charged; None where nothing is.
        onward: hears of the auctions once they are delivered: a list, or the delivery of a call around this one.
    """

    def __init__(self, ledger: "Ledger | None", onward: Any = None) -> None:
        self._ledger, self._onward = ledger, onward
        self._results: list[AuctionResult] = []
        self._failed = ""

    def append(self, result: "AuctionResult") -> None:
        """Note an auction whose reply is under way; where its caller has failed already, take its charge back."""
        self._results.append(result)
        if self._failed:
            self._take_back()

    def made(self) -> None:
        """Say that the caller has what was under way."""
        for result in self._results:
            if self._onward is not None:
                self._onward.append(result)
        self._results = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.made()
        else:
            self._failed = kind.__name__
            self._take_back()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        late = isinstance(self._onward, Delivery) and bool(self._onward._failed)  # noqa: SLF001 - its own kind
        if self._ledger is None or (kind is None and not late):
            self.__exit__(kind)
        else:
            await asyncio.shield(in_thread(lambda: self.__exit__(kind)))

    def _take_back(self) -> None:
        results, self._results = self._results, []
        for result in results:
            if self._ledger is not None and result.charge:
                reason = f"not delivered: {self._failed}"
                try:
                    self._ledger.cancel(result.auction_id, reason=reason, receipt=result.receipt.digest)
                except LedgerError as error:
                    _logger.warning("The charge of auction %s was not taken back: %s", result.auction_id, error)


def check_ledger(ledger: Any, reward_timeout: float | None) -> None:
    """Raise `ConfigurationError` unless it is a ledger whose holds outlast the asking of agents, or None."""
    missing = [verb for verb in ("hold", "charge", "void", "cancel") if not callable(getattr(ledger, verb, None))]
    if ledger is not None and missing:
        raise ConfigurationError(f"ledger is {ledger!r}; give a Ledger, as in Ledger('sqlite:///llm_auction.db').")
    longest = getattr(ledger, "hold_for", None)
    if longest is not None and (reward_timeout is None or reward_timeout >= longest.total_seconds()):
        raise ConfigurationError(
            f"reward_timeout is {reward_timeout!r}, and the ledger holds for {longest.total_seconds():g} s: an agent "
            "could let the hold expire. Give a shorter reward_timeout, or Ledger(hold_for=...) a longer one."
        )
