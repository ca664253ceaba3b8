"""What receipts consist of: bids, candidates, salts, and the bounds of every figure."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

__all__ = [
    "Bid",
    "Charge",
    "Component",
    "Count",
    "Digest",
    "Hidden",
    "LeftOut",
    "Nats",
    "Record",
    "Reply",
    "Row",
    "Salt",
    "Salts",
    "Seed",
    "Share",
    "Signature",
    "Tau",
    "Time",
]

_T = TypeVar("_T")
Row = Annotated[tuple[_T, ...], Field(fail_fast=True)]  # of a million wrong entries the first is told


def _whole(value: Any) -> Any:
    """Return 5 for 5.0, which is how other writers of JSON may spell it."""
    return int(value) if type(value) is float and value.is_integer() else value


# Bounds keep every sum and quotient of them within float64, and whole numbers within those that JSON has.
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Salt = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Charge = Annotated[str, Field(pattern=r"^-?[0-9]{1,160}\.[0-9]{6}$")]
Seed = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,4299})$")]
Time = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}\+00:00$")]
Nats = Annotated[float, Field(allow_inf_nan=False)]
Money = Annotated[float, Field(ge=-1e150, le=1e150, allow_inf_nan=False)]
Reward = Annotated[float, Field(ge=-1e100, le=1e100, allow_inf_nan=False)]
Worth = Annotated[float, Field(ge=0, le=1e100, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Tau = Annotated[float, Field(ge=1e-100, le=1e100, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(_whole)]
Draws = Annotated[int, Field(ge=1, lt=2**31), BeforeValidator(_whole)]


class Record(BaseModel):
    """Frozen, and strict: nothing is taken for a number that is none, and nothing unknown is let pass."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Component(Record):
    """A component of the proposal.

    Attributes:
        component: its name.
        draws: how many replies were drawn from it.
    """

    component: str
    draws: Count


class Reply(Record):
    """A candidate.

    Attributes:
        reply: salted digest of its message.
        component: of the proposal, that drew it first; `fallback` for the platform's own reply.
        draws: how many draws gave it.
        excluded: whether the platform's filter forbids it.
    """

    reply: Digest
    component: str
    draws: Draws
    excluded: bool


class Signature(Record):
    """An Ed25519 signature of the digest.

    Attributes:
        algorithm: `Ed25519`.
        public_key: hexadecimal digits.
        value: hexadecimal digits.
    """

    algorithm: Literal["Ed25519"]
    public_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    value: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


class Bid(Record):
    """One agent in an auction: what it reported and what it pays.

    Attributes:
        agent: its name.
        owner: who pays.
        pays: False for a player that is never charged.
        report_cap: money; what its report was cut to.
        status: `reported`, `capped`, `timeout`, `error` or `invalid`.
        reason: why, where it did not report or was cut.
        report: (M,), money, as it counted.
        click_through: (M,), the predicted probability of a click, of an agent that pays per click.
        value_per_click: money, its bid: the report is that times `click_through`, cut to the cap.
        contribution: U_i, money.
        expected: T_i, money.
        payment: for this draw, money, as computed.
        charge: the payment rounded to a millionth, halves to even.
        price_per_click: money, of an agent that pays per click.
    """

    agent: str
    owner: str
    pays: bool
    report_cap: Nats | None
    status: Literal["reported", "capped", "timeout", "error", "invalid"]
    reason: str
    report: Row[Reward]
    click_through: Row[Share] | None
    value_per_click: Worth | None
    contribution: Money
    expected: Money
    payment: Money
    charge: Charge
    price_per_click: Money | None

    def committed(self, auction_id: str) -> dict[str, Any]:
        """Return what the commitment to a report fixes: who reported what on which terms, not what came of it."""
        outcome = {"contribution", "expected", "payment", "charge", "price_per_click"}
        return {"auction_id": auction_id, **self.model_dump(mode="json", exclude=outcome)}


class LeftOut(Record):
    """An agent that took no part.

    Attributes:
        agent: its name.
        reason: `category`, a rival holds an exclusive one; `cover`, its owner's account does not cover it; `ledger`,
            the ledger could not say.
        category: the exclusive category; empty for other reasons.
    """

    agent: str
    reason: Literal["category", "cover", "ledger"]
    category: str


class Salts(Record):
    """What opens the commitments to what a view shows, and no others.

    Attributes:
        terms: of the terms.
        draw_seed: of the seed of the draw.
        replies: of the list of replies.
        reply: of the digest of each reply that agents were shown.
        reports: of the owner's reports.
    """

    terms: Salt
    draw_seed: Salt
    replies: Salt
    reply: Salt
    reports: Row[Salt]


class Hidden(Record):
    """Commitments to what a view does not show.

    Attributes:
        seed: from which the candidates can be drawn again.
        draws: components and their draws; what drew each candidate, how often, and whether it is excluded.
        weights: log-weights.
        agents: who takes part, on whose account, with which cap; who does not, and why.
    """

    seed: Digest
    draws: Digest
    weights: Digest
    agents: Digest
