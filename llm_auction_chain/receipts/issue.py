"""The receipt of an auction that has been settled."""

from collections.abc import Sequence
from decimal import Decimal

import numpy as np
import numpy.typing as npt

from llm_auction_chain.canonical_json import printable
from llm_auction_chain.mechanism import Settlement
from llm_auction_chain.money import as_decimal, as_text
from llm_auction_chain.receipts.commitments import commitment, salt_of
from llm_auction_chain.receipts.fields import Bid
from llm_auction_chain.receipts.opening import Opening
from llm_auction_chain.receipts.records import Receipt, report_part
from llm_auction_chain.reports import Report

__all__ = ["issue"]

_UNSEALED = f"sha256:{'0' * 64}"


def issue(
    opening: Opening,
    *,
    auction_id: str,
    reports: Sequence[Report],
    settlement: Settlement,
    prices_per_click: Sequence[float | None],
    revenue: Decimal,
) -> Receipt:
    """Return the receipt: all that `opening` is bound to, what was reported, and what came of it."""
    parts, named = opening.parts, printable(auction_id)
    bids = [_bid(opening, k, report, settlement, prices_per_click[k]) for k, report in enumerate(reports)]
    receipt = Receipt.model_validate(
        {
            "schema": "llm_auction_chain.receipt/1",
            **parts["terms"],
            "auction_id": named,
            "seed": parts["seed"],
            "draw_seed": parts["draw_seed"],
            "components": parts["draws"]["components"],
            "candidates": [
                {"reply": reply, **drawn}
                for reply, drawn in zip(parts["replies"], parts["draws"]["candidates"], strict=True)
            ],
            "log_weights": parts["weights"],
            "log_probabilities": _finite(settlement.log_probabilities),
            "probabilities": settlement.probabilities.tolist(),
            "winner": settlement.winner,
            "agents": bids,
            "left_out": parts["agents"]["left_out"],
            "revenue": as_text(revenue),
            "bypassed": parts["agents"]["bypassed"],
            "salt": opening.salt,
            "opening": opening.commitment,
            "reports": [
                commitment(salt_of(opening.salt, report_part(k)), bid.committed(named)) for k, bid in enumerate(bids)
            ],
            "digest": _UNSEALED,
            "signature": None,
        },
        strict=False,
    )
    return receipt.model_copy(update={"digest": receipt.computed_digest()})


def _bid(opening: Opening, k: int, report: Report, settlement: Settlement, price: float | None) -> Bid:
    payment = float(settlement.payments[k])
    return Bid(
        **opening.parts["agents"]["agents"][k],
        status=report.status,
        reason=printable(report.reason),
        report=report.rewards,
        click_through=report.click_through,
        value_per_click=report.value_per_click,
        contribution=float(settlement.contributions[k]),
        expected=float(settlement.expected_payments[k]),
        payment=payment,
        charge=as_text(as_decimal(payment)),
        price_per_click=price,
    )


def _finite(values: npt.NDArray[np.float64]) -> list[float | None]:
    return [value if value > -np.inf else None for value in values.tolist()]
