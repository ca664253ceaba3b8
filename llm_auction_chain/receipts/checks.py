"""The checks of a receipt: seal, commitments, consistency and figures. Each yields what differs."""

import math
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from llm_auction_chain.errors import AuctionError
from llm_auction_chain.mechanism.allocation import streams_of
from llm_auction_chain.mechanism.payments import PaymentRule, price_per_click
from llm_auction_chain.money import as_decimal, as_text, total
from llm_auction_chain.receipts.commitments import commitment, salt_of
from llm_auction_chain.receipts.fields import Bid
from llm_auction_chain.receipts.opening import commit
from llm_auction_chain.receipts.recompute import Figures, figures_of
from llm_auction_chain.receipts.records import GENERATOR, AgentView, Receipt, report_part
from llm_auction_chain.receipts.signing import is_signed_by
from llm_auction_chain.receipts.tolerances import RELATIVE, Margin, margins_of

__all__ = ["Difference", "bound", "consistent", "sealed", "settled", "spelled"]

_NATS = 1e-11  # processors differ in the last digits of logarithms
_DIGITS = 1e-12  # and of quotients
_LEAST = 1e-300  # smaller numbers have fewer digits
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 32
_SHORT.maxlist = _SHORT.maxdict = 3


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Something in a receipt that does not follow from the rest of it.

    Attributes:
        field: where, as in `agents[0].payment`.
        stated: what the receipt says there.
        computed: what follows from the rest, where it is a value.
        rule: else what is wrong.

    >>> print(Difference(field="winner", stated=1, computed=2))
    winner is 1; computed from the rest: 2
    >>> print(Difference(field="bypassed", stated=True, rule="there are agents"))
    bypassed is True; there are agents
    """

    field: str
    stated: Any
    computed: Any = None
    rule: str = ""

    def __str__(self) -> str:
        stated = _SHORT.repr(self.stated)
        return f"{self.field} is {stated}; {self.rule or f'computed from the rest: {_SHORT.repr(self.computed)}'}"


def spelled(path: Sequence[str | int]) -> str:
    """Return where in a receipt, as in `agents[0].payment`; names that a receipt does not have are quoted.

    >>> spelled(("agents", 0, "payment")), spelled(("no name",)), spelled(())
    ('agents[0].payment', "['no name']", 'receipt')
    """
    parts = (f".{part}" if isinstance(part, str) and part.isidentifier() else f"[{part!r}]" for part in path)
    return "".join(parts).removeprefix(".") or "receipt"


def sealed(read: Receipt | AgentView, expected: str | None) -> Iterator[Difference]:
    """Tell where digest or signature do not fit.

    Args:
        read: the receipt.
        expected: the public key that must have signed it; None: any, or none.
    """
    yield from _differ("digest", read.digest, read.computed_digest())
    signature = read.signature
    if signature is None:
        if expected is not None:
            yield Difference(field="signature", stated=None, rule=f"there should be one by {expected}")
        return
    if expected is not None:
        yield from _differ("signature.public_key", signature.public_key, expected)
    if not is_signed_by(read.digest, signature.value, signature.public_key):
        yield Difference(field="signature.value", stated=signature.value, rule="it does not sign this digest")


def bound(read: Receipt | AgentView) -> Iterator[Difference]:
    """Tell where a commitment was to something else."""
    yield from _differ("opening", read.opening, commit(read.auction_id, read.commitments()))
    if isinstance(read, AgentView):
        salts = read.salts.reports
        yield from _differ("len(salts.reports)", len(salts), len(read.agents))
    else:
        salts = tuple(salt_of(read.salt, report_part(k)) for k in range(len(read.agents)))
    yield from _differ("len(reports)", len(read.reports), len(read.agents))
    for k, (stated, salt, bid) in enumerate(zip(read.reports, salts, read.agents, strict=False)):
        yield from _differ(f"reports[{k}]", stated, commitment(salt, bid.committed(read.auction_id)))


def consistent(read: Receipt | AgentView) -> Iterator[Difference]:
    """Tell what contradicts itself without any figure being computed."""
    yield from _differ("generator", read.generator, GENERATOR)
    m = len(read.replies if isinstance(read, AgentView) else read.candidates)
    yield from _differ("len(log_probabilities)", len(read.log_probabilities), m)
    names = [bid.agent for bid in read.agents]
    if len(set(names)) < len(names):
        yield Difference(field="agents", stated=names, rule="an agent stands there twice")
    never = [j for j, nats in enumerate(read.log_probabilities) if nats is None]
    for k, bid in enumerate(read.agents):
        yield from _misreported(f"agents[{k}]", bid, m, never)
    yield from _misowned(read) if isinstance(read, AgentView) else _miscounted(read)


def _misreported(where: str, bid: Bid, m: int, never: Sequence[int]) -> Iterator[Difference]:
    yield from _differ(f"len({where}.report)", len(bid.report), m)
    for j in never:
        for amount in bid.report[j : j + 1]:
            if amount:
                yield Difference(field=f"{where}.report[{j}]", stated=amount, rule="it should be 0: it is never drawn")
    yield from _misclicked(where, bid, m)
    largest = max(map(abs, bid.report), default=0.0)
    if bid.status not in ("reported", "capped") and largest:
        yield Difference(field=f"{where}.report", stated=largest, rule=f"it should be 0, as the status is {bid.status}")
    if bid.report_cap is not None and largest > bid.report_cap:
        yield Difference(field=f"{where}.report", stated=largest, rule=f"it is beyond the cap, {bid.report_cap!r}")
    if bid.status == "capped" and bid.report_cap is None:
        yield Difference(field=f"{where}.status", stated=bid.status, rule="there is no cap")


def _misclicked(where: str, bid: Bid, m: int) -> Iterator[Difference]:
    """Tell where a report is not the value of a click times its probability, cut to the cap."""
    value, clicks = bid.value_per_click, bid.click_through
    if value is None or clicks is None:
        if value is not None or clicks is not None:
            yield Difference(field=f"{where}.value_per_click", stated=value, rule="it goes with click_through")
        return
    yield from _differ(f"len({where}.click_through)", len(clicks), m)
    cap = math.inf if bid.report_cap is None else bid.report_cap
    worth = [min(value * chance, cap) for chance in clicks]
    yield from _far(f"{where}.report", bid.report, worth, _LEAST)


def _misowned(read: AgentView) -> Iterator[Difference]:
    if not read.agents:
        yield Difference(field="agents", stated=[], rule="a view has at least one")
    if len({(bid.owner, bid.pays) for bid in read.agents}) > 1:
        owners = [bid.owner for bid in read.agents]
        yield Difference(field="agents", stated=owners, rule="a view has one owner, who pays for all or for none")


def _miscounted(read: Receipt) -> Iterator[Difference]:
    yield from _differ("draw_seed", read.draw_seed, str(streams_of(int(read.seed))[1]))
    m = len(read.candidates)
    for name in ("log_weights", "probabilities"):
        yield from _differ(f"len({name})", len(getattr(read, name)), m)
    drawn = sum(candidate.draws for candidate in read.candidates)
    stated = sum(component.draws for component in read.components)
    own = _has_own_reply(read)
    if stated != drawn - own:
        yield from _differ("sum(components.draws)", stated, drawn)
    for j, (candidate, weight) in enumerate(zip(read.candidates, read.log_weights, strict=False)):
        if candidate.excluded and weight is not None:
            yield Difference(field=f"log_weights[{j}]", stated=weight, rule="it should be null: the reply is excluded")
    if read.bypassed and read.agents:
        yield Difference(field="bypassed", stated=True, rule="there are agents")
    twice = sorted({out.agent for out in read.left_out} & {bid.agent for bid in read.agents})
    if twice:
        yield Difference(field="left_out", stated=twice, rule="it took part")


def _has_own_reply(read: Receipt) -> bool:
    """Whether the last candidate may be the platform's own reply, which no component drew: no other may be drawn."""
    others = read.log_weights[: len(read.candidates) - 1]
    return read.candidates[-1].component == "fallback" and all(weight is None for weight in others)


def settled(read: Receipt | AgentView) -> Iterator[Difference]:
    """Settle again, and tell which figures come out otherwise."""
    try:
        figures = figures_of(read)
        margins = margins_of(read, figures)
    except (AuctionError, ValueError, IndexError, ArithmeticError) as error:
        yield Difference(field="agents", stated=len(read.agents), rule=f"they cannot be settled: {error}")
        return
    yield from _differ("winner", read.winner, figures.winner)
    log_p = [-math.inf if value is None else value for value in read.log_probabilities]
    yield from _far("log_probabilities", log_p, figures.log_probabilities.tolist(), _NATS)
    if isinstance(read, Receipt):
        yield from _far("probabilities", read.probabilities, [_exp(value) for value in log_p], _LEAST)
        yield from _differ("revenue", read.revenue, as_text(total(Decimal(bid.charge) for bid in read.agents)))
    for margin in margins:
        yield from _owed(read, margin, figures)
    for k, bid in enumerate(read.agents):
        yield from _differ(f"agents[{k}].charge", bid.charge, as_text(as_decimal(bid.payment)))
        yield from _priced(f"agents[{k}].price_per_click", bid, read.payment_rule, figures)


def _owed(read: Receipt | AgentView, margin: Margin, figures: Figures) -> Iterator[Difference]:
    """Tell which amounts of an owner come out otherwise: the owner's strictly, each agent's as its share is known."""
    bids = [read.agents[k] for k in margin.agents]
    for name, computed, tolerance in (
        ("expected", figures.expected, margin.expected),
        ("payment", figures.payments, margin.payment),
    ):
        said, of_owner = sum(getattr(bid, name) for bid in bids), float(computed[margin.agents].sum())
        where = f"sum(agents.{name}) of {_SHORT.repr(bids[0].owner)}"
        if len(bids) > 1:
            yield from _off(where, said, of_owner, tolerance)
        least = -margin.spread if (name, read.payment_rule) == ("payment", "influence") else 0.0
        if not least - RELATIVE * margin.spread <= said <= margin.spread * (1.0 + RELATIVE):
            yield Difference(field=where, stated=said, rule=f"it is beyond what its reports span, {margin.spread!r}")
        share = tolerance + margin.split * abs(of_owner)
        for k, bid in zip(margin.agents, bids, strict=True):
            yield from _off(f"agents[{k}].{name}", getattr(bid, name), float(computed[k]), share)
    for k, bid in zip(margin.agents, bids, strict=True):
        figure = float(figures.contributions[k])
        yield from _off(f"agents[{k}].contribution", bid.contribution, figure, margin.contribution)


def _exp(nats: float) -> float:
    return math.exp(min(nats, 1.0))


def _priced(where: str, bid: Bid, rule: PaymentRule, figures: Figures) -> Iterator[Difference]:
    """Tell where a price per click does not follow from the payment, whose own digits have been checked."""
    price = None
    if bid.click_through is not None and bid.pays and len(bid.click_through) == len(figures.log_probabilities):
        p = np.exp(figures.log_probabilities)
        price = price_per_click(
            rule, expected=bid.expected, paid=bid.payment, probabilities=p, clicks=bid.click_through,
            winner=figures.winner,
        )  # fmt: skip
    if price is None or bid.price_per_click is None:
        yield from _differ(where, bid.price_per_click, price)
    else:
        yield from _off(where, bid.price_per_click, price, 0.0)


def _differ(field: str, stated: Any, computed: Any) -> Iterator[Difference]:
    if stated != computed:
        yield Difference(field=field, stated=stated, computed=computed)


def _far(field: str, stated: Sequence[float], computed: Sequence[float], tolerance: float) -> Iterator[Difference]:
    """Tell which of a row of figures differ in more than their twelve digits."""
    for k, (said, figure) in enumerate(zip(stated, computed, strict=False)):
        yield from _off(f"{field}[{k}]", said, figure, tolerance, _DIGITS)


def _off(
    field: str, stated: float, computed: float, tolerance: float, relative: float = RELATIVE
) -> Iterator[Difference]:
    """Tell where a figure differs by more than processors do."""
    if not math.isclose(stated, computed, rel_tol=relative, abs_tol=tolerance):
        yield Difference(field=field, stated=stated, computed=computed)
