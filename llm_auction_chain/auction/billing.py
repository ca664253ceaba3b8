"""Bookings on the ledger: a hold before agents are asked, a charge for the result, taken back if no reply arrives."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from langchain_core.messages import AIMessage

from llm_auction_chain.agents import Agent
from llm_auction_chain.errors import ChargeConflictError, DeliveredError, LedgerError, LedgerUnavailableError
from llm_auction_chain.ledger import AuctionLedger
from llm_auction_chain.mechanism.payments import PaymentRule, most_charged, span_within
from llm_auction_chain.messages import json_of
from llm_auction_chain.money import FINEST, as_decimal, from_units, plus
from llm_auction_chain.reports import bounds_of
from llm_auction_chain.validators import refuse
from llm_auction_chain.waiting import AWAITING, Waiter

if TYPE_CHECKING:
    from llm_auction_chain.auction.metadata import ChargeMetadata
    from llm_auction_chain.auction.result import AuctionResult
    from llm_auction_chain.ledger import Charge, Hold

__all__ = ["Delivery", "OnLedgerError", "Tab", "check_ledger", "most_owed"]

OnLedgerError = Literal["reference", "raise"]
T = TypeVar("T")
_logger = logging.getLogger(__name__)
_LARGEST = 1e12  # money; a ledger counts amounts of six decimals in 64 bits
_ROUNDING = 1.0 + 1e-12  # of sums over an owner's agents; with a millionth, more than a charge is rounded by


def most_owed(
    agents: Sequence[Agent], report_cap: float | None, rule: PaymentRule, tau: float
) -> tuple[dict[str, Decimal], frozenset[str]]:
    """Return the most that each owner can owe for one auction, proven from its agents' caps and bounds alone.

    Args:
        agents: those that pay and those that never do.
        report_cap: the auction's cap; an agent's own counts where it is less.
        rule: the payment rule.
        tau: above 0.

    Returns:
        The amounts by owner, and the owners for whom no ledger can hold that much: without a cap, or with a huge one.

    >>> most_owed([Agent("A", max, report_cap=2.0), Agent("B", max, owner="A")], 0.5, "pivot", 1.0)
    ({'A': Decimal('2.000001')}, frozenset())
    """
    spans: dict[str, float] = {}
    for agent in agents:
        if agent.pays:
            span = span_within(*bounds_of(agent, report_cap), rule)
            spans[agent.payer] = spans.get(agent.payer, 0.0) + span
    most = {owner: most_charged(rule, span, tau) for owner, span in spans.items()}
    held = {
        owner: plus(as_decimal(amount * _ROUNDING), from_units(1, FINEST))
        for owner, amount in most.items()
        if amount <= _LARGEST
    }
    return held, frozenset(most) - frozenset(held)


class Tab:
    """One auction's bookings. Without a ledger, or without agents that pay, it books nothing.

    As a context manager it releases the hold, or takes the charge back, where the auction fails. If a hold fails, every
    agent is left out; if a charge fails, the reply has no sponsors, unless `on_error` is `raise`. So no sponsored reply
    goes out uncharged.

    Attributes:
        currency: the unit of all amounts.
        unlimited: owners for whom no amount can be held.
        without_cover: owners whose accounts do not cover the most that they may owe.
        nonce: source of the auction's seed and salt, the same in every retry of one id; None without a hold.
        failure: why the ledger failed; None where it did not.
    """

    def __init__(
        self,
        ledger: AuctionLedger | None,
        auction_id: str,
        most: Mapping[str, Decimal],
        waiter: Waiter,
        *,
        unlimited: frozenset[str] = frozenset(),
        currency: str,
        on_error: OnLedgerError,
        signing_key: Any = None,
    ) -> None:
        self._ledger = ledger if most else None
        self._auction_id, self._most, self._waiter = auction_id, dict(most), waiter
        self.unlimited, self.currency, self._on_error = unlimited, currency, on_error
        self._signing_key = signing_key
        self._step: Literal["none", "hold", "charge", "over"] = "none"
        self._receipt = ""
        self._lock = Lock()  # bookings run in threads, and a cancelled auction gives up while one is under way
        self.without_cover: frozenset[str] = frozenset()
        self.nonce: str | None = None
        self.failure: LedgerError | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._book(self._hold)
        except DeliveredError:  # whose receipt is the caller's now
            raise
        except BaseException as error:
            await self.give_up(f"not delivered: {type(error).__name__}")
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and not issubclass(kind, DeliveredError):
            await self.give_up(f"not delivered: {kind.__name__}")

    async def charge(self, result: "AuctionResult") -> "Charge | None":
        """Charge what every owner owes; return None where there is nothing to charge, or the ledger failed.

        Agents that pay per click owe nothing yet. An auction without payments is charged nothing, which closes it.

        Raises:
            DeliveredError: a call under the same id has delivered another outcome.
            LedgerError: the ledger failed and `on_error` is `raise`. The auction is cancelled, so its id is used up.
        """
        return await self._book(lambda ledger: self._charge(ledger, result))

    async def give_up(self, reason: str) -> None:
        """Release what is held, and take back what this auction charged: its reply is not delivered."""
        await self._book(lambda ledger: self._give_up(ledger, reason), shield=True)

    async def _book(self, step: Callable[[AuctionLedger], T], *, shield: bool = False) -> T | None:
        """Return the result of a booking, from a thread where an event loop would wait; None without a ledger."""
        if (ledger := self._ledger) is None:
            return None
        return await self._waiter.in_thread(lambda: step(ledger), shield=shield)

    def _hold(self, ledger: AuctionLedger) -> None:
        with self._lock:
            if self._step == "over":
                return
            self._step = "hold"
            try:
                hold = ledger.hold(self._auction_id, self._most, currency=self.currency)
            except LedgerError as error:
                if isinstance(error, ChargeConflictError):
                    self._step = "over"  # another call has booked under this id
                self._fail(error)
                self.without_cover = frozenset(self._most)
                return
            self.without_cover, self.nonce = frozenset(hold.without_cover), hold.nonce or None
            self._check_delivered(hold)

    def _check_delivered(self, hold: "Hold") -> None:
        """Raise `DeliveredError` with the kept reply, where another call under the id has delivered it.

        The ledger counts this call among those that deliver, so a caller that is cancelled meanwhile gives that up.
        """
        if delivered := getattr(hold, "delivered", None):
            self._step, self._receipt = "charge", delivered.receipt
            reply = with_charge(AIMessage.model_validate(json.loads(delivered.reply)), delivered.charge)
            message = f"Auction {self._auction_id!r} delivered its reply already: it is the error's `reply`."
            raise DeliveredError(message, delivered.charge, reply, delivered.receipt)

    def _charge(self, ledger: AuctionLedger, result: "AuctionResult") -> "Charge | None":
        amounts: dict[str, Decimal] = {}
        for agent, amount, price in zip(result.agents, result.charges, result.prices_per_click, strict=True):
            if agent.pays and price is None:
                amounts[agent.payer] = plus(amounts.get(agent.payer, Decimal(0)), amount)
        with self._lock:
            if self._step == "over":
                return None
            if self.failure is not None:
                self._cancel(ledger, "the hold failed")
                return None
            self._step = "charge"
            try:
                return self._charge_held(ledger, amounts, result)
            except LedgerError as error:
                if self._on_error == "raise" and isinstance(error, LedgerUnavailableError):
                    closed = f"Auction {self._auction_id!r} is cancelled: ask for a reply under a new key."
                    raise LedgerUnavailableError(f"{error} {closed}") from error
                self._fail(error)
                self._cancel(ledger, "the charge failed, so the reply was not sponsored")
                return None

    def _charge_held(self, ledger: AuctionLedger, amounts: dict[str, Decimal], result: "AuctionResult") -> "Charge":
        receipt = result.receipt if self._signing_key is None else result.receipt.signed(self._signing_key)
        self._receipt = receipt.digest
        reply, record = receipt.candidates[receipt.winner].reply, receipt.as_dict()
        book = partial(ledger.charge, self._auction_id, amounts, currency=self.currency, reply=reply, receipt=record)
        if getattr(ledger, "keep_replies", False):
            book = partial(book, message=json_of(result.reply.model_dump()))
        if getattr(ledger, "binds_views", False):
            book = partial(book, views=receipt.leaves())
        try:
            return book()
        except ChargeConflictError as error:
            # another call under the same id may have delivered meanwhile, or released what both held
            self._check_delivered(ledger.hold(self._auction_id, self._most, currency=self.currency))
            if isinstance(error, DeliveredError):
                raise
            return book()

    def _give_up(self, ledger: AuctionLedger, reason: str) -> None:
        with self._lock:  # waits for a charge under way in another thread
            self._cancel(ledger, reason)

    def _cancel(self, ledger: AuctionLedger, reason: str) -> None:
        step, self._step = self._step, "over"
        try:
            if step == "hold":
                ledger.void(self._auction_id, reason=reason)
            elif step == "charge":
                ledger.cancel(self._auction_id, reason=reason, receipt=self._receipt)
        except ChargeConflictError:
            pass  # another call under the same id has charged it, and delivered
        except LedgerError as error:
            _logger.warning("The bookings of auction %s could not be cancelled: %s", self._auction_id, error)

    def _fail(self, error: LedgerError) -> None:
        if self._on_error == "raise" or isinstance(error, DeliveredError):
            raise error
        # the log, not the reply's metadata, names the accounts that fall short and the ledger's address
        _logger.warning("Auction %s has no sponsors: %s", self._auction_id, error)
        self.failure = error


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
        self._pending: list[tuple[str, str, AuctionResult | None]] = []
        self._failed = ""
        self.results: list[AuctionResult] = []

    def add(self, auction_id: str, receipt: str, result: "AuctionResult | None") -> None:
        """Add an auction whose reply is under way; where its caller has failed already, take its charge back.

        Args:
            auction_id: of the auction.
            receipt: under which this call delivers on the charge; empty without one.
            result: of the auction; None where an earlier call has it.
        """
        if result is not None:
            self.results.append(result)
        self._pending.append((auction_id, receipt, result))
        if self._failed:
            self._take_back()

    def complete(self) -> None:
        """Note that the caller has the replies that were under way."""
        pending, self._pending = self._pending, []
        if self._outer is not None:
            for delivered in pending:
                self._outer.add(*delivered)

    def _take_back(self) -> None:
        pending, self._pending = self._pending, []
        for auction_id, receipt, _ in pending:
            if self._ledger is not None and receipt:
                try:
                    self._ledger.cancel(auction_id, reason=f"not delivered: {self._failed}", receipt=receipt)
                except LedgerError as error:
                    _logger.warning("The charge of auction %s was not taken back: %s", auction_id, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.complete()
        else:
            self._failed = kind.__name__
            self._take_back()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        outer_failed = self._outer is not None and bool(self._outer._failed)  # noqa: SLF001 - its own kind
        if self._ledger is None or (kind is None and not outer_failed):
            self.__exit__(kind)
        else:
            await AWAITING.in_thread(lambda: self.__exit__(kind), shield=True)


def with_charge(reply: AIMessage, charge: "Charge") -> AIMessage:
    """Return a reply with the ledger's charge in its metadata."""
    booked: ChargeMetadata = {"seq": charge.seq, "hash": charge.hash, "receipt": charge.receipt}
    metadata = {**reply.response_metadata["auction"], "charge": booked}
    return reply.model_copy(update={"response_metadata": {**reply.response_metadata, "auction": metadata}})


def check_ledger(ledger: Any, reward_timeout: float | None = 0.0) -> None:
    """Raise `ConfigurationError` unless it is a ledger whose holds outlast the asking of agents, or None."""
    if ledger is None:
        return
    if not all(callable(getattr(ledger, verb, None)) for verb in ("hold", "charge", "void", "cancel")):
        raise refuse("ledger", "a Ledger, as in Ledger('sqlite:///llm_auction.db')", ledger)
    longest = getattr(ledger, "hold_for", None)
    if longest is not None and (reward_timeout is None or reward_timeout >= longest.total_seconds()):
        seconds = f"{longest.total_seconds():g} seconds"
        raise refuse(
            "reward_timeout",
            f"below hold_for of the ledger, which is {seconds}",
            reward_timeout,
            "Otherwise a hold could expire while agents are asked.",
        )
