"""The outcome of an auction as plain JSON, which travels with the reply as `response_metadata["auction"]`."""

from typing import TYPE_CHECKING, Literal, NotRequired

from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from llm_auction_chain.auction.admission import LeftOutReason
from llm_auction_chain.candidates import Contexts
from llm_auction_chain.mechanism import PaymentRule
from llm_auction_chain.money import as_decimal, as_text, charges_of
from llm_auction_chain.reports import Status

if TYPE_CHECKING:
    from llm_auction_chain.auction.result import AuctionResult

__all__ = ["AuctionMetadata", "metadata_of"]


class AgentMetadata(TypedDict):
    """Whether an agent reported."""

    agent: str
    """Name of the agent."""
    status: Status
    """`reported`; `capped`, a reward was cut to the agent's cap or bounds; `timeout`, `error` or `invalid`, the agent
    abstained."""
    reason: str
    """Why; empty where it reported."""


class LeftOutMetadata(TypedDict):
    """An agent that took no part."""

    agent: str
    """Name of the agent."""
    reason: LeftOutReason
    """`category`, another owner holds its category; `owner`, its owner's other agents pay and it does not, or per
    click, or the reverse; `currency`, its rewards are in another; `cap`, what its owner may owe has no limit; `cover`,
    the owner's account does not cover that; `ledger`, the ledger failed."""
    category: str
    """The exclusive category that another owner holds; empty for other reasons."""


class PaymentMetadata(TypedDict):
    """What an agent pays, as the computed number and as the decimal that is billed."""

    agent: str
    """Name of the agent."""
    owner: str
    """Name of the payer."""
    pays: bool
    """False for an agent that is never charged."""
    amount: float
    """For this draw, money."""
    amount_decimal: str
    """The amount to bill. These sum to `revenue_decimal`."""
    expected: float
    """The average over draws, money."""
    expected_decimal: str
    """The same in digits."""
    contribution: float
    """What the agent adds to welfare, money: its own expected gain if it pays."""
    contribution_decimal: str
    """The same in digits."""
    per_click: NotRequired[float]
    """What the agent pays when the user clicks, in place of `amount`, money. Only of an agent that pays per click."""
    per_click_decimal: NotRequired[str]
    """The price to bill for a click."""


class DiagnosticsMetadata(TypedDict):
    """How reliable the sample of candidates is."""

    candidates: int
    """How many replies were drawn, M."""
    failed_calls: int
    """Model calls that raised an error."""
    distinct_replies: int
    """How many of the replies differ; each has one probability."""
    excluded_replies: int
    """How many of these the platform's filter forbids."""
    ess_weights: float
    """Effective number of draws by their importance weights."""
    ess_probabilities: float
    """Effective number of candidates by their probabilities. Near 1, one candidate dominates."""
    largest_share: float
    """The largest normalised weight of a draw, from 0 to 1."""
    log_normaliser: float
    """Money. Its mean over auctions rises with the number of candidates, and with the quality of the proposal."""
    k_hat: float | None
    """Pareto shape of the weights' tail; above 0.7 they are unreliable. Null where there are too few draws."""


class ComponentMetadata(TypedDict):
    """A component of the proposal."""

    component: str
    """Name of the component."""
    draws: int
    """How many replies were drawn from it."""


class ProposalMetadata(TypedDict):
    """What the candidates were drawn from."""

    contexts: Contexts
    """Whether the agents' descriptions or keywords reached the proposal: `used` or `unused`; `reference` where they
    reached the reference itself; `none` where no agent has any."""
    reason: str
    """Why it is this proposal."""
    components: list[ComponentMetadata]
    """The components in their order."""


class ChargeMetadata(TypedDict):
    """The ledger's booking."""

    seq: int
    """Its number in the ledger."""
    hash: str
    """Its hash in the ledger's chain."""
    receipt: str
    """Digest of the auction's receipt."""


class AuctionMetadata(TypedDict):
    """The outcome of one auction, without reports. It is for the platform; `public_reply` leaves what users may see."""

    schema: Literal["llm_auction_chain.auction/1"]
    """Name and version of this schema. A later version may add keys."""
    auction_id: str
    """Unique: the run's id, or made of the call's idempotency key and prompt."""
    winner: int
    """Place of the drawn reply among the candidates, from 0."""
    probabilities: list[float]
    """The probability of each candidate with all agents."""
    payments: list[PaymentMetadata]
    """What each agent pays, in the auction's order."""
    agents: list[AgentMetadata]
    """Whether each agent reported, in the same order."""
    left_out: list[LeftOutMetadata]
    """Agents that took no part, and why."""
    revenue: float
    """The sum of the amounts, money."""
    revenue_decimal: str
    """The sum of the amounts to bill."""
    currency: str
    """The unit of all amounts; empty where it has no name."""
    sponsored: bool
    """Whether an agent that pays made this reply likelier."""
    sponsors: list[str]
    """Names of those agents."""
    disclosure: str
    """The text about sponsors; empty where there are none, or no text is set."""
    bypassed: bool
    """Whether no agent could bid, because the model may call tools or no user reads the reply."""
    diagnostics: DiagnosticsMetadata
    """How reliable the sample of candidates is."""
    proposal: ProposalMetadata
    """What the candidates were drawn from."""
    warnings: list[str]
    """What deserves a look."""
    tau: float
    """Weight of the reference model, money per nat."""
    payment_rule: PaymentRule
    """The rule that the amounts follow."""
    seed: int
    """Replays the auction; where the model takes no seed, the draw among the same candidates."""
    commitment: str
    """What the auction was bound to before agents reported; a receipt opens it."""
    charge: ChargeMetadata | None
    """The ledger's booking; null without a ledger, or where no agent pays."""


def metadata_of(result: "AuctionResult") -> AuctionMetadata:
    """Return the outcome as plain JSON: finite Python numbers, without rewards. A charge is added when it is booked."""
    settlement = result.settlement
    diagnostics = settlement.diagnostics
    sponsors = result.sponsors
    return {
        "schema": "llm_auction_chain.auction/1",
        "auction_id": result.auction_id,
        "winner": settlement.winner,
        "probabilities": settlement.probabilities.tolist(),
        "payments": _payments(result),
        "agents": [
            {"agent": agent.name, "status": report.status, "reason": report.reason}
            for agent, report in zip(result.agents, result.reports, strict=True)
        ],
        "left_out": [
            {"agent": out.agent.name, "reason": out.reason, "category": out.category} for out in result.left_out
        ],
        "revenue": settlement.revenue,
        "revenue_decimal": as_text(result.revenue),
        "currency": result.currency,
        "sponsored": bool(sponsors),
        "sponsors": [agent.name for agent in sponsors],
        "disclosure": result.disclosure,
        "bypassed": result.bypassed,
        "diagnostics": {
            "candidates": result.draws,
            "failed_calls": len(result.failures),
            "distinct_replies": result.distinct_replies,
            "excluded_replies": sum(candidate.excluded for candidate in result.candidates),
            "ess_weights": diagnostics.ess_weights,
            "ess_probabilities": diagnostics.ess_probabilities,
            "largest_share": diagnostics.largest_share,
            "log_normaliser": diagnostics.log_normaliser,
            "k_hat": diagnostics.k_hat,
        },
        "proposal": {
            "contexts": result.contexts,
            "reason": result.proposal_reason,
            "components": [{"component": name, "draws": count} for name, count in result.components],
        },
        "warnings": list(result.warnings),
        "tau": settlement.tau,
        "payment_rule": settlement.payment_rule,
        "seed": result.seed,
        "commitment": result.opening.commitment,
        "charge": None,
    }


def _payments(result: "AuctionResult") -> list[PaymentMetadata]:
    """Return what each agent pays: the computed numbers, and beside them the decimals that are billed.

    Prices per click are rounded as charges are, by owner: one click on the reply is one for all of its agents.
    """
    settlement, prices, charges = result.settlement, result.prices_per_click, result.charges
    clicks = {i: price for i, price in enumerate(prices) if price is not None}
    rounded = charges_of([*clicks.values()], [result.agents[i].payer for i in clicks])
    due = dict(zip(clicks, rounded, strict=True))
    payments: list[PaymentMetadata] = []
    for i, (agent, price) in enumerate(zip(result.agents, prices, strict=True)):
        expected, contribution = float(settlement.expected_payments[i]), float(settlement.contributions[i])
        payment: PaymentMetadata = {
            "agent": agent.name,
            "owner": agent.payer,
            "pays": agent.pays,
            "amount": float(settlement.payments[i]),
            "amount_decimal": as_text(charges[i]),
            "expected": expected,
            "expected_decimal": as_text(as_decimal(expected)),
            "contribution": contribution,
            "contribution_decimal": as_text(as_decimal(contribution)),
        }
        if price is not None:
            payment |= {"per_click": price, "per_click_decimal": as_text(due[i])}
        payments.append(payment)
    return payments
