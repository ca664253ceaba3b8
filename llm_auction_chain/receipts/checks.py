"""The checks of a receipt: its seal, its commitments, its consistency and its figures. Each yields differences."""

import math
import reprlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from llm_auction_chain.errors import AuctionError
from llm_auction_chain.mechanism.allocation import streams_of
from llm_auction_chain.mechanism.payments import PaymentRule, price_per_click
from llm_auction_chain.money import as_text, charges_of, total
from llm_auction_chain.receipts import records
from llm_auction_chain.receipts.figures import RELATIVE, Figures, Limits, Margin, figures_of, limits_of, margins_of
from llm_auction_chain.receipts.records import AgentView, Bid, Receipt
from llm_auction_chain.receipts.signing import is_signed_by

_NATS = 1e-11  # processors differ in the last digits of logarithms
_DIGITS = 1e-12  # and of quotients
_SMALLEST = 1e-300  # smaller numbers have fewer digits
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 32
_SHORT.maxlist = _SHORT.maxdict = 3


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A value in a receipt that does not follow from the rest of the receipt.

    Attributes:
        field: where it is, such as `agents[0].payment`.
        stated: the value in the receipt.
        computed: the value that follows from the rest, if `rule` is empty.
        rule: what is wrong, if no single value would be right.

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


def path_text(path: Sequence[str | int]) -> str:
    """Return a path within a receipt as text. Names that no receipt has are quoted.

    >>> path_text(("agents", 0, "payment")), path_text(("no name",)), path_text(())
    ('agents[0].payment', "['no name']", 'receipt')
    """
    parts = (f".{part}" if isinstance(part, str) and part.isidentifier() else f"[{part!r}]" for part in path)
    return "".join(parts).removeprefix(".") or "receipt"


def check_seal(record: Receipt | AgentView, signer: str | None) -> Iterator[Difference]:
    """Check the digest and the signature, which must be by the key `signer` unless that is None."""
    yield from _compare("digest", record.digest, record.computed_digest())
    signature = record.signature
    if signature is None:
        yield from _require(signer is None, "signature", None, f"there should be one by {signer}")
        return
    yield from _compare("signature.public_key", signature.public_key, signer or signature.public_key)
    valid = is_signed_by(record.digest, signature.value, signature.public_key)
    yield from _require(valid, "signature.value", signature.value, "it does not sign this digest")


def check_expected(record: Receipt | AgentView, expected: Mapping[str, str]) -> Iterator[Difference]:
    """Check the fields whose values are known from elsewhere, such as the auction's id."""
    for field, value in expected.items():
        stated = getattr(record, field)
        yield from _require(stated == value, field, stated, f"it should be {_SHORT.repr(value)}")


def check_commitments(record: Receipt | AgentView) -> Iterator[Difference]:
    """Check that the commitments are those of the content."""
    yield from _compare("opening", record.opening, records.opening_commitment(record.auction_id, record.commitments()))
    if isinstance(record, AgentView):
        salts = record.salts.reports
        yield from _compare("len(salts.reports)", len(salts), len(record.agents))
    else:
        salts = tuple(records.report_salt(record.salt, k) for k in range(len(record.agents)))
    yield from _compare("len(reports)", len(record.reports), len(record.agents))
    for k, (stated, salt, bid) in enumerate(zip(record.reports, salts, record.agents, strict=False)):
        yield from _compare(f"reports[{k}]", stated, records.commitment(salt, bid.committed(record.auction_id)))


def check_consistency(record: Receipt | AgentView) -> Iterator[Difference]:
    """Check what needs no figures: lengths, counts, names, caps, statuses and clicks."""
    yield from _compare("generator", record.generator, records.GENERATOR)
    m = len(record.replies if isinstance(record, AgentView) else record.candidates)
    yield from _compare("len(log_probabilities)", len(record.log_probabilities), m)
    names = [bid.agent for bid in record.agents]
    yield from _require(len(set(names)) == len(names), "agents", names, "an agent appears twice")
    never = {j for j, nats in enumerate(record.log_probabilities) if nats is None}
    for k, bid in enumerate(record.agents):
        yield from _check_report(f"agents[{k}]", bid, m, never)
    yield from _check_owner(record) if isinstance(record, AgentView) else _check_counts(record)


def _check_report(where: str, bid: Bid, m: int, never: Container[int]) -> Iterator[Difference]:
    yield from _compare(f"len({where}.report)", len(bid.report), m)
    for j, amount in enumerate(bid.report):
        rule = "it should be 0: the candidate is never drawn"
        yield from _require(not amount or j not in never, f"{where}.report[{j}]", amount, rule)
    yield from _check_clicks(where, bid, m)
    yield from _check_bounds(where, bid, never)
    largest, cap = max(map(abs, bid.report), default=0.0), bid.report_cap
    absent = 0.0 if bid.status in ("reported", "capped") else largest
    yield from _require(not absent, f"{where}.report", absent, f"it should be 0: the status is {bid.status}")
    yield from _require(cap is None or largest <= cap, f"{where}.report", largest, f"it exceeds the cap, {cap!r}")


def _check_bounds(where: str, bid: Bid, never: Container[int]) -> Iterator[Difference]:
    """Check that the report is within its public bounds, and these within the cap."""
    cap = math.inf if bid.report_cap is None else bid.report_cap
    if bid.bounds is None:
        yield from _require(cap == math.inf, f"{where}.bounds", None, f"there is a cap, {cap!r}")
        yield from _require(bid.status != "capped", f"{where}.status", bid.status, "there are no bounds")
        return
    low, high = bid.bounds
    rule = f"they should be in order and within the cap, {bid.report_cap!r}"
    yield from _require(-cap <= low <= high <= cap, f"{where}.bounds", bid.bounds, rule)
    if bid.status not in ("reported", "capped"):
        return
    for j, amount in enumerate(bid.report):
        within = j in never or low <= amount <= high
        yield from _require(within, f"{where}.report[{j}]", amount, f"it is not within the bounds, {bid.bounds!r}")


def _check_clicks(where: str, bid: Bid, m: int) -> Iterator[Difference]:
    """Check that the report is the value of a click times its probability, cut to the cap."""
    value, clicks = bid.value_per_click, bid.click_through
    if value is None or clicks is None:
        rule = "it should be null exactly if click_through is"
        yield from _require(value is None and clicks is None, f"{where}.value_per_click", value, rule)
        return
    yield from _compare(f"len({where}.click_through)", len(clicks), m)
    cap = math.inf if bid.report_cap is None else bid.report_cap
    yield from _compare_rows(f"{where}.report", bid.report, [min(value * chance, cap) for chance in clicks], _SMALLEST)


def _check_owner(view: AgentView) -> Iterator[Difference]:
    yield from _require(view.agents, "agents", [], "a view has at least one")
    owners, terms = [bid.owner for bid in view.agents], {(bid.owner, bid.pays) for bid in view.agents}
    yield from _require(len(terms) <= 1, "agents", owners, "a view has one owner, who pays for all or for none")


def _check_counts(receipt: Receipt) -> Iterator[Difference]:
    yield from _compare("draw_seed", receipt.draw_seed, str(streams_of(int(receipt.seed))[1]))
    m = len(receipt.candidates)
    for name in ("log_weights", "probabilities"):
        yield from _compare(f"len({name})", len(getattr(receipt, name)), m)
    draws = sum(candidate.draws for candidate in receipt.candidates)
    stated = sum(component.draws for component in receipt.components)
    if stated != draws - _has_fallback(receipt):
        yield from _compare("sum(components.draws)", stated, draws)
    for j, (candidate, weight) in enumerate(zip(receipt.candidates, receipt.log_weights, strict=False)):
        fits = weight is None or not candidate.excluded
        yield from _require(fits, f"log_weights[{j}]", weight, "it should be null: the reply is excluded")
    yield from _require(not (receipt.bypassed and receipt.agents), "bypassed", receipt.bypassed, "there are agents")
    twice = sorted({out.agent for out in receipt.left_out} & {bid.agent for bid in receipt.agents})
    yield from _require(not twice, "left_out", twice, "it took part")


def _has_fallback(receipt: Receipt) -> bool:
    """Return whether the last candidate may be the platform's own reply: it is the only one that may be drawn."""
    others = receipt.log_weights[: len(receipt.candidates) - 1]
    return receipt.candidates[-1].component == "fallback" and all(weight is None for weight in others)


def check_figures(record: Receipt | AgentView) -> Iterator[Difference]:
    """Settle the auction again and compare its figures."""
    try:
        figures = figures_of(record)
        margins = margins_of(record, figures)
        limits = limits_of(
            ((bid.owner, bid.pays, bid.bounds) for bid in record.agents), record.payment_rule, record.tau
        )
    except (AuctionError, ValueError, IndexError, ArithmeticError) as error:
        yield Difference(field="agents", stated=len(record.agents), rule=f"they cannot be settled: {error}")
        return
    yield from _compare("winner", record.winner, figures.winner)
    log_p = [-math.inf if value is None else value for value in record.log_probabilities]
    yield from _compare_rows("log_probabilities", log_p, figures.log_probabilities.tolist(), _NATS)
    if isinstance(record, Receipt):
        p = [math.exp(min(value, 1.0)) for value in log_p]  # at most e, so that exp does not overflow
        yield from _compare_rows("probabilities", record.probabilities, p, _SMALLEST)
        yield from _compare("revenue", record.revenue, as_text(total(Decimal(bid.charge) for bid in record.agents)))
    for margin in margins:
        yield from _check_amounts(record, margin, figures)
        yield from _check_limits(record, margin, figures, limits)
    charges = charges_of([bid.payment for bid in record.agents], [bid.owner for bid in record.agents])
    for k, (bid, amount) in enumerate(zip(record.agents, charges, strict=True)):
        yield from _compare(f"agents[{k}].charge", bid.charge, as_text(amount))
        yield from _check_price(f"agents[{k}].price_per_click", bid, record.payment_rule, figures)


def _check_amounts(record: Receipt | AgentView, margin: Margin, figures: Figures) -> Iterator[Difference]:
    """Check an owner's sums, and each agent's share of them."""
    bids = [record.agents[k] for k in margin.agents]
    for name, computed, tolerance in (
        ("expected", figures.expected_payments, margin.expected),
        ("payment", figures.payments, margin.payment),
    ):
        stated, of_owner = sum(getattr(bid, name) for bid in bids), float(computed[margin.agents].sum())
        where = f"sum(agents.{name}) of {_SHORT.repr(bids[0].owner)}"
        if len(bids) > 1:
            yield from _compare_numbers(where, stated, of_owner, tolerance)
        least = -margin.spread if (name, record.payment_rule) == ("payment", "influence") else 0.0
        within = least - RELATIVE * margin.spread <= stated <= margin.spread * (1.0 + RELATIVE)
        yield from _require(within, where, stated, f"it exceeds the span of its reports, {margin.spread!r}")
        for k, bid in zip(margin.agents, bids, strict=True):
            yield from _compare_numbers(f"agents[{k}].{name}", getattr(bid, name), float(computed[k]), tolerance)
    for k, bid in zip(margin.agents, bids, strict=True):
        figure = float(figures.contributions[k])
        yield from _compare_numbers(f"agents[{k}].contribution", bid.contribution, figure, margin.contribution)


def _check_limits(
    record: Receipt | AgentView, margin: Margin, figures: Figures, limits: Sequence[Limits]
) -> Iterator[Difference]:
    """Check an owner's limits, which follow from public numbers, and that what happened is within them."""
    bids = [record.agents[k] for k in margin.agents]
    for k, bid in zip(margin.agents, bids, strict=True):
        where, steering = f"agents[{k}]", float(figures.steering[k])
        yield from _compare_numbers(f"{where}.most_steering", bid.most_steering, limits[k].steering, 0.0)
        yield from _compare_numbers(f"{where}.most_expected", bid.most_expected, limits[k].expected, 0.0)
        yield from _compare_numbers(f"{where}.steering", bid.steering, steering, margin.steering)
        within = bid.most_steering is None or bid.steering <= bid.most_steering * (1.0 + RELATIVE)
        yield from _require(within, f"{where}.steering", bid.steering, f"it exceeds the limit, {bid.most_steering!r}")
    expected, most = sum(bid.expected for bid in bids), bids[0].most_expected
    within = most is None or expected <= most * (1.0 + RELATIVE) + margin.expected
    where = f"sum(agents.expected) of {_SHORT.repr(bids[0].owner)}"
    yield from _require(within, where, expected, f"it exceeds the limit, {most!r}")


def _check_price(where: str, bid: Bid, rule: PaymentRule, figures: Figures) -> Iterator[Difference]:
    """Check the price per click against the stated payment, which is checked by itself."""
    price = None
    if bid.click_through is not None and bid.pays and len(bid.click_through) == len(figures.log_probabilities):
        p = np.exp(figures.log_probabilities)
        price = price_per_click(
            rule, expected=bid.expected, paid=bid.payment, probabilities=p, clicks=bid.click_through,
            winner=figures.winner,
        )  # fmt: skip
    yield from _compare_numbers(where, bid.price_per_click, price, 0.0)


def _require(holds: object, field: str, stated: Any, rule: str) -> Iterator[Difference]:
    if not holds:
        yield Difference(field=field, stated=stated, rule=rule)


def _compare(field: str, stated: Any, computed: Any) -> Iterator[Difference]:
    if stated != computed:
        yield Difference(field=field, stated=stated, computed=computed)


def _compare_rows(
    field: str, stated: Sequence[float], computed: Sequence[float], tolerance: float
) -> Iterator[Difference]:
    """Compare entry by entry, to twelve digits."""
    for k, (entry, figure) in enumerate(zip(stated, computed, strict=False)):
        yield from _compare_numbers(f"{field}[{k}]", entry, figure, tolerance, _DIGITS)


def _compare_numbers(
    field: str, stated: float | None, computed: float | None, tolerance: float, relative: float = RELATIVE
) -> Iterator[Difference]:
    """Compare two numbers as closely as processors agree; None, where there is none, equals None alone."""
    if stated is None or computed is None:
        yield from _compare(field, stated, computed)
    elif not math.isclose(stated, computed, rel_tol=relative, abs_tol=tolerance):
        yield Difference(field=field, stated=stated, computed=computed)
