"""The format of receipts: the full receipt for the platform and its auditor, an agent's view of it, and commitments.

A commitment is a salted digest: it fixes a value and reveals nothing about it until the salt is known.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar
from unicodedata import normalize

from langchain_core.messages import BaseMessage
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from llm_auction_chain import merkle
from llm_auction_chain.canonical_json import digest, printable
from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.receipts.signing import signature_of

MECHANISM = "mosaic/1"
GENERATOR = "numpy PCG64 of draw_seed, stream 2 of SeedSequence(seed); Gumbel noise -log(standard_exponential)"

_WITH_FLOATS = frozenset({"terms", "weights", "agents"})  # parts of an opening
_TERMS = {"agent", "owner", "pays", "report_cap", "bounds"}  # of a bid
_LIMITS = {"most_expected", "steering", "most_steering"}
_OUTCOME = {"contribution", "expected", "payment", "charge", "price_per_click", *_LIMITS}
_FEWEST_LEAVES = 8
_T = TypeVar("_T")
# A list is a row, too: `model_validate` takes plain JSON. A million wrong entries are one error.
Row = Annotated[tuple[_T, ...], Field(fail_fast=True, strict=False)]


def _whole(value: Any) -> Any:
    """Return 5 for 5.0, which is how some writers of JSON spell whole numbers."""
    return int(value) if type(value) is float and value.is_integer() else value


# Within these bounds every sum and quotient fits into float64, and every whole number is exact in JSON.
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Salt = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Charge = Annotated[str, Field(pattern=r"^-?[0-9]{1,160}\.[0-9]{6}$")]
Seed = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,4299})$")]
Time = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}\+00:00$")]
Nats = Annotated[float, Field(allow_inf_nan=False)]
Money = Annotated[float, Field(ge=-1e150, le=1e150, allow_inf_nan=False)]
Reward = Annotated[float, Field(ge=-1e100, le=1e100, allow_inf_nan=False)]
Limit = Annotated[float, Field(ge=0, allow_inf_nan=False)]
ClickValue = Annotated[float, Field(ge=0, le=1e100, allow_inf_nan=False)]
Bounds = Annotated[Row[Reward], Field(min_length=2, max_length=2)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Tau = Annotated[float, Field(ge=1e-100, le=1e100, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(_whole)]
Draws = Annotated[int, Field(ge=1, lt=2**31), BeforeValidator(_whole)]


def salt_of(salt: str, part: str) -> str:
    """Return the salt of one part of a receipt: HMAC-SHA256 of the part's name. It reveals no other part's salt."""
    return hmac.new(bytes.fromhex(salt), part.encode(), hashlib.sha256).hexdigest()


def report_salt(salt: str, position: int) -> str:
    """Return the salt of the report of the agent at a position in the receipt."""
    return salt_of(salt, f"report {position}")


def commitment(salt: str, value: Any, *, floats: bool = True) -> str:
    """Return the commitment to plain JSON: the SHA-256 of `{"salt": ..., "value": ...}` in its canonical spelling.

    With `floats=False` it is faster; the value must then contain no floats.

    >>> commitment("00" * 32, [1.0]) == commitment("00" * 32, [1], floats=False)
    True
    """
    return digest({"salt": salt, "value": value}, floats=floats)


def committed(bid: Mapping[str, Any], auction_id: str) -> dict[str, Any]:
    """Return the value of the commitment to the report of a bid, as plain JSON: agent, terms and report."""
    return {"auction_id": auction_id, **{name: value for name, value in bid.items() if name not in _OUTCOME}}


def part_commitments(salt: str, parts: Mapping[str, Any]) -> dict[str, str]:
    """Return the commitment to each part of an opening, by name, each with a salt of its own."""
    salted = {name: {"salt": salt_of(salt, name), "value": part} for name, part in parts.items()}
    return {name: digest(value, floats=name in _WITH_FLOATS) for name, value in salted.items()}


def opening_commitment(auction_id: str, commitments: Mapping[str, str]) -> str:
    """Return one commitment to all parts of an opening, given the commitment to each part by name."""
    return digest({"auction_id": auction_id, **commitments})


def message_digest(salt: str, *messages: BaseMessage) -> str:
    """Return a commitment to the role, content and tool calls of messages. Ids and metadata do not count."""
    return message_digests([(salt, messages)])[0]


def message_digests(salted: Sequence[tuple[str, Sequence[BaseMessage]]]) -> list[str]:
    """Return the digest of each sequence of messages, which comes with its salt."""
    contents = [(salt, [_content(message) for message in messages]) for salt, messages in salted]
    texts = [all(type(one["content"]) is str and "calls" not in one for one in several) for _, several in contents]
    return [
        digest({"salt": salt, "value": printable(several)}, floats=not only_text)
        for (salt, several), only_text in zip(contents, texts, strict=True)
    ]


def _leaf(owner: str, reports: Sequence[str], shared: str, receipt: str) -> str:
    """Return the leaf of an owner's view. Salted commitments keep others from guessing it."""
    return merkle.leaf(digest({"owner": owner, "reports": list(reports), "shared": shared, "receipt": receipt}))


def _content(message: BaseMessage) -> dict[str, Any]:
    kind = message.type.removesuffix("MessageChunk").lower()
    # Much faster than `getattr`, for which pydantic raises an error where there is no role.
    role = vars(message).get("role", (message.model_extra or {}).get("role", kind))
    content = {"role": role, "content": message.content}
    calls = [[call["name"], call["args"]] for call in getattr(message, "tool_calls", None) or ()]
    return {**content, "calls": calls} if calls else content


class Record(BaseModel):
    """Base of all records. They are frozen and strict: no value is converted, no unknown field is accepted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True)


class Component(Record):
    """A component of the proposal."""

    component: str
    """Name of the component."""
    draws: Count
    """Number of replies drawn from it."""


class Reply(Record):
    """A candidate."""

    reply: Digest
    """Salted digest of its message."""
    component: str
    """Component of the proposal that drew it first; `fallback` for the platform's own reply."""
    draws: Draws
    """Number of draws that gave this reply."""
    excluded: bool
    """Whether the platform's filter excludes it."""


class Signature(Record):
    """An Ed25519 signature of the digest."""

    algorithm: Literal["Ed25519"]
    """`Ed25519`."""
    public_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """The signer's public key, hexadecimal."""
    value: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
    """The signature, hexadecimal."""


class Bid(Record):
    """One agent in an auction: its report and its payment."""

    agent: str
    """Name of the agent."""
    owner: str
    """Name of the account that pays."""
    pays: bool
    """False for an agent that is never charged."""
    report_cap: Nats | None
    """The report is cut to this amount, money; null for no cap."""
    bounds: Bounds | None
    """The least and the most that the agent can report, money: what its reward declares, within its cap; null for no
    limit. They are public. A report that failed is 0 whatever they are."""
    status: Literal["reported", "capped", "timeout", "error", "invalid"]
    """`reported`, `capped`, `timeout`, `error` or `invalid`."""
    reason: str
    """Why the agent did not report or why its report was cut; else empty."""
    report: Row[Reward]
    """(M,), the reward for each candidate as it counted, money."""
    click_through: Row[Probability] | None
    """(M,), predicted probability of a click on each candidate; null for an agent that does not pay per click."""
    value_per_click: ClickValue | None
    """The bid for a click, money. The report is this value times `click_through`, cut to the cap."""
    contribution: Money
    """U_i, money."""
    expected: Money
    """T_i, the expected payment, money. The owner's is the sum of its agents'."""
    most_expected: Limit | None
    """The most that the owner's expected payment can be, money; null where one of its agents has no bounds. With s, the
    sum of what its agents' bounds span, it is the tight bound below `s**2 / (8 * tau)`."""
    steering: Limit
    """The largest `|log p_j - log p_-i,j|` over the candidates, nats; p_-i is the distribution without the owner."""
    most_steering: Limit | None
    """The most that `steering` can be, `s / tau`: no reply becomes likelier or less likely by more than a factor of
    `exp(s / tau)`. Null where one of the owner's agents has no bounds."""
    payment: Money
    """The payment for this draw as computed, money."""
    charge: Charge
    """Its part of the owner's payment, which is rounded to a millionth as one sum, halves to even."""
    price_per_click: Money | None
    """Charged for a click in place of the payment, money; null for an agent that does not pay per click."""

    def committed(self, auction_id: str) -> dict[str, Any]:
        """Return the value of the commitment to this report: agent, terms and report, without the outcome."""
        return committed(self.model_dump(mode="json"), auction_id)


class LeftOut(Record):
    """An agent that did not take part."""

    agent: str
    """Name of the agent."""
    reason: Literal["category", "owner", "currency", "cap", "cover", "ledger"]
    """`category`: a rival holds an exclusive category; `owner`: its owner's agents are of another kind; `currency`:
    its rewards are in another currency; `cap`: its reports have no limit; `cover`: the owner's account has no cover;
    `ledger`: the ledger did not answer."""
    category: str
    """The exclusive category; empty for other reasons."""


class Salts(Record):
    """The salts that open what a view shows, and nothing else."""

    terms: Salt
    """Opens the terms."""
    draw_seed: Salt
    """Opens the seed of the draw."""
    replies: Salt
    """Opens the list of replies."""
    reply: Salt
    """Opens the digest of each reply that was shown to agents."""
    reports: Row[Salt]
    """Open the owner's reports."""


class Hidden(Record):
    """Commitments to the parts that a view does not show."""

    seed: Digest
    """The auction's seed, from which the candidates can be drawn again."""
    draws: Digest
    """Components and their draws; for each candidate its component, its draws and whether it is excluded."""
    weights: Digest
    """Log-weights."""
    agents: Digest
    """Agents that take part, with owners, caps and bounds; agents that do not, with reasons."""


class _Shared(Record):
    """The fields of both kinds of receipt."""

    library: str
    """Version of llm_auction_chain."""
    mechanism: Literal["mosaic/1"]
    """Version of the rules that the figures follow."""
    auction_id: str
    """Unique id."""
    time: Time
    """When the auction was opened, ISO 8601 in UTC."""
    model: str
    """The model that the candidates were drawn from."""
    contexts: Literal["none", "used", "unused", "reference"]
    """Whether the proposal used the agents' descriptions or keywords; `reference` where the reference itself does."""
    currency: str
    """Unit of all amounts; may be empty."""
    tau: Tau
    """Weight of the reference model, money per nat."""
    payment_rule: Literal["expected", "proportional", "influence", "pivot"]
    """The rule that payments follow."""
    draw_seed: Seed
    """Seed of the draw among the candidates, decimal digits."""
    generator: str
    """How the Gumbel noise follows from `draw_seed`."""
    prompt: Digest
    """Salted digest of the user's messages."""
    log_probabilities: Annotated[Row[Nats | None], Field(min_length=1)]
    """(M,), log p, nats; null for a candidate that is never drawn."""
    winner: Count
    """Index of the candidate that was drawn."""
    agents: Row[Bid]
    """The agents that took part; in a view those of one owner."""
    reports: Row[Digest]
    """Salted commitment to the report of each of `agents`."""
    opening: Digest
    """Commitment to everything but the reports. Agents received it before they reported."""
    digest: Digest
    """SHA-256 of all other fields but `signature`."""
    signature: Signature | None
    """Signature of the digest, or null."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Return the record that plain JSON describes. Use `verify` to check it.

        Raises:
            ConfigurationError: it is not a record of this kind.
        """
        try:
            return cls.model_validate_json(json.dumps(dict(content)))
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigurationError(f"This is not a valid {cls.__name__}; verify tells what is wrong.") from error

    def computed_digest(self) -> str:
        """Return the digest of all fields but `digest` and `signature`."""
        return digest(self.model_dump(mode="json", exclude={"digest", "signature"}))

    def _shared(self) -> str:
        """Return the digest of what the outcome of all owners follows from."""
        outcome = {"log_probabilities": list(self.log_probabilities), "winner": self.winner}
        return digest({"auction_id": self.auction_id, "opening": self.opening, **outcome})

    def signed(self, key: Any) -> Self:
        """Return a copy with a signature of the digest.

        Args:
            key: an Ed25519 private key of `cryptography`; `load_private_key` reads one.

        Raises:
            MissingDependencyError: `cryptography` is not installed.
            ConfigurationError: the key is of another kind, or the stated digest is not that of the content.
        """
        if self.digest != self.computed_digest():
            raise ConfigurationError(f"The digest of {self.auction_id} is not that of its content; verify tells more.")
        public_key, value = signature_of(self.digest, key)
        signature = Signature(algorithm="Ed25519", public_key=public_key, value=value)
        return self.model_copy(update={"signature": signature})

    def terms(self) -> dict[str, Any]:
        """Return the terms that the opening commits to."""
        names = ("library", "mechanism", "time", "model", "contexts", "currency", "tau", "payment_rule", "generator")
        return {name: getattr(self, name) for name in (*names, "prompt")}


class Receipt(_Shared):
    """The full record of one auction. It contains every report: keep it for the platform and its auditor.

    >>> from llm_auction_chain import Agent, AuctionRunnable
    >>> from llm_auction_chain.testing import MarkovChatModel
    >>> agent = Agent("B", lambda prompt, reply: 4.0 * reply.text.count("b"))
    >>> receipt = AuctionRunnable(model=MarkovChatModel(), agents=[agent], seed=7).run("Say something").receipt
    >>> receipt.revenue, receipt.view("B").agents[0].charge == receipt.revenue
    ('1.887806', True)
    """

    schema_: Literal["llm_auction_chain.receipt/1"] = Field(alias="schema")
    """`llm_auction_chain.receipt/1`."""
    seed: Seed
    """Seed of the auction, decimal digits. The candidates and `draw_seed` follow from it."""
    candidates: Annotated[Row[Reply], Field(min_length=1)]
    """(M,), the candidates."""
    components: Row[Component]
    """Components of the proposal and their draws."""
    log_weights: Row[Nats | None]
    """(M,), `log pi_ref - log pi_gen` of one draw, nats; null for a candidate that is never drawn."""
    probabilities: Row[Probability]
    """(M,), p."""
    left_out: Row[LeftOut]
    """Agents that did not take part, and why."""
    revenue: Charge
    """Sum of the charges."""
    bypassed: bool
    """Whether the reference model replied alone because tools were offered."""
    salt: Salt
    """Opens every commitment and digest."""

    def commitments(self) -> dict[str, str]:
        """Return the commitment to each part of the opening."""
        parts = {
            "terms": self.terms(),
            "seed": self.seed,
            "draw_seed": self.draw_seed,
            "replies": [candidate.reply for candidate in self.candidates],
            "draws": {
                "components": [component.model_dump() for component in self.components],
                "candidates": [candidate.model_dump(exclude={"reply"}) for candidate in self.candidates],
            },
            "weights": list(self.log_weights),
            "agents": {
                "agents": [bid.model_dump(mode="json", include=_TERMS) for bid in self.agents],
                "left_out": [one.model_dump() for one in self.left_out],
                "bypassed": self.bypassed,
            },
        }
        return part_commitments(self.salt, parts)

    def leaves(self) -> list[str]:
        """Return the leaves of the owners' views in the Merkle tree of the auction, in an order that tells nothing.

        They are a power of two, at least eight: what is missing is filled up, so that their number hides the owners'.
        """
        bids: dict[str, list[str]] = {}
        for bid, report in zip(self.agents, self.reports, strict=True):
            bids.setdefault(bid.owner, []).append(report)
        shared = self._shared()
        leaves = [_leaf(owner, reports, shared, self.digest) for owner, reports in bids.items()]
        fill = max(_FEWEST_LEAVES, 1 << (len(leaves) - 1).bit_length()) - len(leaves) if leaves else 0
        return sorted([*leaves, *(merkle.leaf(salt_of(self.salt, f"leaf {k}")) for k in range(fill))])

    def digest_of(self, *messages: BaseMessage, part: Literal["reply", "unshown reply", "prompt"] = "reply") -> str:
        """Return the digest that this receipt has for messages, to find the message that a digest stands for.

        Args:
            messages: one reply, or the whole prompt.
            part: `reply`, `prompt`, or `unshown reply`: a reply that could not be drawn and that no agent was shown.
        """
        return message_digest(salt_of(self.salt, part), *messages)

    def view(self, agent: str) -> "AgentView":
        """Return an unsigned view: the reports and payments of the agent's owner, and nothing of other owners.

        Args:
            agent: name of an agent that took part.

        Raises:
            ConfigurationError: the agent did not take part.
        """
        name = normalize("NFKC", printable(agent))
        owner = next((bid.owner for bid in self.agents if normalize("NFKC", bid.agent) == name), None)
        if owner is None:
            names = ", ".join(repr(bid.agent) for bid in self.agents) or "no agent"
            raise ConfigurationError(f"{agent!r} did not take part in {self.auction_id}; {names} did.")
        own = [k for k, bid in enumerate(self.agents) if bid.owner == owner]
        commitments = self.commitments()
        view = AgentView(
            **{
                **{name: getattr(self, name) for name in _Shared.model_fields},
                "schema": "llm_auction_chain.agent_view/1",
                "agents": tuple(self.agents[k] for k in own),
                "reports": tuple(self.reports[k] for k in own),
                "replies": tuple(candidate.reply for candidate in self.candidates),
                "salts": Salts(
                    **{part: salt_of(self.salt, part) for part in ("terms", "draw_seed", "replies", "reply")},
                    reports=tuple(report_salt(self.salt, k) for k in own),
                ),
                "hidden": Hidden(**{part: commitments[part] for part in Hidden.model_fields}),
                "receipt": self.digest,
                "signature": None,
            }
        )
        return view.model_copy(update={"digest": view.computed_digest()})


class AgentView(_Shared):
    """The part of a receipt that one owner may see: enough to recompute what its agents pay.

    p is proportional to `p_-i * exp(r_i / tau)`. So p, the owner's reports and tau determine the distribution without
    the owner, the contribution and the payment under every rule. Seed, weights, draws, the other reports and the number
    of agents stay hidden. But p reveals the sum of the other reports, up to a constant, to a reader who knows the
    weights and draws. These are all equal where the reference model alone draws and no reply repeats: with two owners
    the reader then knows the rival's report. Hand a view only to those who may know that.
    """

    schema_: Literal["llm_auction_chain.agent_view/1"] = Field(alias="schema")
    """`llm_auction_chain.agent_view/1`."""
    replies: Annotated[Row[Digest], Field(min_length=1)]
    """(M,), salted digests of the candidates' messages."""
    salts: Salts
    """Salts that open what the view shows."""
    hidden: Hidden
    """Commitments to what the view does not show."""
    receipt: Digest
    """Digest of the full receipt."""

    def leaf(self) -> str:
        """Return the leaf of this view in the Merkle tree of its auction."""
        owner = self.agents[0].owner if self.agents else ""
        return _leaf(owner, self.reports, self._shared(), self.receipt)

    def commitments(self) -> dict[str, str]:
        """Return the commitment to each part of the opening; those to visible parts are computed from the content."""
        visible = {
            "terms": commitment(self.salts.terms, self.terms()),
            "draw_seed": commitment(self.salts.draw_seed, self.draw_seed),
            "replies": commitment(self.salts.replies, list(self.replies)),
        }
        return {**visible, **self.hidden.model_dump()}

    def digest_of(self, *messages: BaseMessage) -> str:
        """Return the digest that this view has for a reply, to find the candidate that a message is."""
        return message_digest(self.salts.reply, *messages)
