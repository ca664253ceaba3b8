"""The settings of an auction: declared, documented and validated here, once, for every interface."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, ClassVar, Literal, Self, get_args

from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable
from pydantic import SkipValidation, model_validator
from typing_extensions import override

from llm_auction_chain.agents import AgentSource, check_agents, check_cap, check_categories
from llm_auction_chain.auction.admission import SEEDS, size_of
from llm_auction_chain.auction.billing import OnLedgerError, check_ledger, most_owed
from llm_auction_chain.auction.events import EventHook
from llm_auction_chain.candidates import (
    CandidateFilter,
    Proposal,
    SequenceScorer,
    as_message,
    check_proposal,
    runnables_in,
)
from llm_auction_chain.checked_model import CheckedModel
from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.ledger import AuctionLedger
from llm_auction_chain.mechanism import PaymentRule
from llm_auction_chain.mechanism.settlement import check_tau
from llm_auction_chain.models.by_name import model_by_name
from llm_auction_chain.receipts.signing import check_private_key
from llm_auction_chain.reports import OnAgentError
from llm_auction_chain.validators import Check, choice, name_of_account, number, optional, refuse, text, whole_number

__all__ = [
    "GROUPS",
    "AuctionSettings",
    "Billing",
    "Disclosure",
    "DisclosurePlace",
    "FilterLike",
    "OnToolCalls",
    "Policy",
    "Sampling",
    "group_of",
]

FilterLike = Callable[..., Any] | Runnable[Any, bool]
"""A rule `(prompt, reply) -> bool`, sync or async, or a Runnable over `{"prompt": ..., "reply": ...}`."""
OnToolCalls = Literal["auction", "bypass"]
DisclosurePlace = Literal["metadata", "start", "end"]

_LONGEST_WAIT = 1e6  # seconds


def _value(check: Callable[[Any], Any]) -> Check:
    """Return a check of the value alone, which also allows None."""

    def checked(_: str, value: Any) -> Any:
        if value is not None:
            check(value)
        return value

    return checked


def _choice(choices: Any) -> Check:
    return partial(choice, choices=get_args(choices))


def _scorer(name: str, value: Any) -> Any:
    if not isinstance(value, SequenceScorer):
        raise refuse(name, "an object with score(prompt, replies)", value)
    return value


def _hook(name: str, value: Any) -> Any:
    if not callable(value):
        raise refuse(name, "a function of an AuctionEvent", value)
    return value


def _model(name: str, value: Any) -> Any:
    if isinstance(value, str) and ":" in value:
        value = model_by_name(value)
    if not isinstance(value, Runnable):
        hint = "For a model on this machine: ChatTransformers(model=...)." if isinstance(value, str) else ""
        raise refuse(name, "a LangChain chat model, or the name of one such as 'openai:gpt-4o-mini'", value, hint)
    if any(isinstance(one, AuctionSettings) for one in runnables_in(value)):
        raise refuse(name, "a model that is not an auction already", type(value).__name__, "Losers would be charged.")
    return value


def _agents(_: str, value: Any) -> Any:
    return value if callable(value) or isinstance(value, Runnable) else check_agents(value)


class _Settings(CheckedModel):
    @classmethod
    @override
    def _hint(cls, name: str) -> str:
        group = group_of(name)
        return f"Give it as {group}." if group else super()._hint(name)


class Sampling(_Settings, frozen=True):
    """How candidates are drawn and weighed."""

    checks: ClassVar[Mapping[str, Check]] = {
        "min_candidates": partial(whole_number, least=1),
        "min_ess": optional(partial(number, least=1)),
        "max_candidates": optional(partial(whole_number, least=1)),
        "native_n": partial(choice, choices=(True, False)),
        "scorer": optional(_scorer),
    }

    min_candidates: int = 1
    """Model calls may fail; the auction settles on this many candidates, or raises `CandidatesError`."""
    min_ess: float | None = None
    """Draw further rounds of `n_candidates` while the effective sample size of the weights is below this. None draws
    one round."""
    max_candidates: int | None = None
    """The most draws of all rounds. None: four rounds."""
    native_n: bool = True
    """Whether providers that can draw several replies in one request do so. False sends one request a reply."""
    scorer: SkipValidation[SequenceScorer | None] = None
    """Says how likely replies are, for a model that cannot say it itself."""


class Policy(_Settings, frozen=True):
    """What the platform allows, whatever agents report."""

    checks: ClassVar[Mapping[str, Check]] = {
        "candidate_filter": _value(CandidateFilter),
        "fallback": _value(as_message),
        "exclusive_categories": lambda _, value: check_categories(value, "the auction"),
    }

    candidate_filter: SkipValidation[FilterLike | None] = None
    """`(prompt, reply) -> bool`, sync or async, or a Runnable: which candidates may be returned."""
    fallback: SkipValidation[str | AIMessage | None] = None
    """The reply where the filter excludes every candidate: a text or a message. None raises `CandidatesError`."""
    exclusive_categories: SkipValidation[Collection[str]] = ()
    """In each of these categories at most one owner takes part: the first in the agents' order."""


class Billing(_Settings, frozen=True):
    """How owners are charged."""

    checks: ClassVar[Mapping[str, Check]] = {
        "ledger": _value(check_ledger),
        "currency": partial(name_of_account, empty=True),
        "on_error": _choice(OnLedgerError),
        "signing_key": _value(check_private_key),
    }

    ledger: SkipValidation[AuctionLedger | None] = None
    """Charges every owner in the moment the reply is returned. None: no charges."""
    currency: str = ""
    """The unit of rewards, payments and tau, such as "EUR". Empty where it has no name."""
    on_error: OnLedgerError = "reference"
    """Where the ledger fails, `reference` replies without sponsors and payments, and `raise` raises the error."""
    signing_key: SkipValidation[Any] = None
    """An Ed25519 private key, as `receipts.load_private_key` reads it, that signs the receipts which the ledger stores.
    None: they are stored unsigned."""


class Disclosure(_Settings, frozen=True):
    """The text about sponsors that users see."""

    checks: ClassVar[Mapping[str, Check]] = {"text": partial(text, empty=True), "place": _choice(DisclosurePlace)}

    text: str = ""
    """Shown where the reply is sponsored. `{sponsors}` stands for the sponsors' names. Empty: no text."""
    place: DisclosurePlace = "metadata"
    """`metadata` leaves the reply's text alone; `start` and `end` add the disclosure to it, except to a reply in a
    requested format or without a text."""


def _group(kind: type[CheckedModel], name: str, is_value: Callable[[Any], bool]) -> Check:
    """Return a check that accepts a group, a mapping, or the commonest value of the group directly."""

    def checked(group: str, value: Any) -> Any:
        if value is None or isinstance(value, kind):
            return value or kind()
        if isinstance(value, Mapping):
            return kind.model_validate(dict(value))
        if not is_value(value):
            raise refuse(group, f"{kind.__name__}(...), or its {name}", value)
        return kind(**{name: value})

    return checked


class AuctionSettings(_Settings):
    """The settings that every interface takes."""

    checks: ClassVar[Mapping[str, Check]] = {
        "model": _model,
        "agents": _agents,
        "n_candidates": partial(whole_number, least=1),
        "tau": lambda _, value: check_tau(value),
        "payment_rule": _choice(PaymentRule),
        "seed": optional(partial(whole_number, below=SEEDS)),
        "proposal": _value(check_proposal),
        "reward_timeout": optional(partial(number, above=0, most=_LONGEST_WAIT)),
        "report_cap": _value(lambda value: check_cap(value, "the auction")),
        "on_agent_error": _choice(OnAgentError),
        "on_tool_calls": _choice(OnToolCalls),
        "on_event": optional(_hook),
        "sampling": _group(Sampling, "scorer", lambda value: isinstance(value, SequenceScorer)),
        "policy": _group(Policy, "candidate_filter", lambda value: callable(value) or isinstance(value, Runnable)),
        "billing": _group(Billing, "ledger", lambda value: callable(getattr(value, "charge", None))),
        "disclosure": _group(Disclosure, "text", lambda value: isinstance(value, str)),
    }

    model: SkipValidation[Runnable[Any, Any]]
    """Any Runnable chat model, or `provider:model` for LangChain's `init_chat_model`, as in "openai:gpt-4o-mini"."""
    agents: SkipValidation[AgentSource] = ()
    """The agents that bid: a list, or a callable or Runnable that returns one for a call's input.
    `config={"configurable": {"auction_agents": [...]}}` replaces it for one call."""
    n_candidates: int = 16
    """M, the number of candidates. With `sampling=Sampling(min_ess=...)`, those of one round."""
    tau: float = 1.0
    """Weight of the reference model, money per nat, above 0. Small: agents decide. Large: the model decides."""
    payment_rule: PaymentRule = "expected"
    """`expected`, `proportional`, `influence` or `pivot`; all four have the same mean payments."""
    seed: int | None = None
    """Replays auctions. None takes a fresh seed for each, which the result records."""
    proposal: SkipValidation[Proposal | None] = None
    """What candidates are drawn from. None: what fits the agents' public contexts, keywords and caps, and the model."""
    reward_timeout: float | None = 60.0
    """Seconds for all agents together. An agent that misses the deadline abstains. None waits without limit."""
    report_cap: float | None = None
    """Money. Every reward is cut to the range from minus to plus this. None: each agent's own cap, if it has one."""
    on_agent_error: OnAgentError = "abstain"
    """Where an agent fails, `abstain` counts a report of zero, and `raise` raises `RewardError`."""
    on_tool_calls: OnToolCalls = "bypass"
    """Where the model may call tools, `bypass` returns the reference model's own reply, without agents and payments,
    and `auction` lets agents bid for tool calls as for any reply."""
    on_event: SkipValidation[EventHook | None] = None
    """Called with an `AuctionEvent` after every stage, sync or async: counts and numbers, without texts. The same
    events reach `astream_events` as custom events."""
    sampling: Sampling = Sampling()
    """How candidates are drawn: a `Sampling`, as in `Sampling(min_ess=8.0)`, or a scorer."""
    policy: Policy = Policy()
    """What is allowed: a `Policy`, as in `Policy(fallback="...")`, or a candidate filter."""
    billing: Billing = Billing()
    """How owners are charged: a `Billing`, as in `Billing(ledger=..., currency="EUR")`, or a `Ledger`."""
    disclosure: Disclosure = Disclosure()
    """The text about sponsors that users see: `Disclosure(text="...", place="end")`, or a text alone."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        """Refuse settings that exclude one another."""
        size_of(self)
        check_ledger(self.billing.ledger, reward_timeout=self.reward_timeout)
        if self.billing.ledger is not None and isinstance(self.agents, Collection):
            _, unlimited = most_owed(tuple(self.agents), self.report_cap, self.payment_rule, self.tau)
            if unlimited:
                raise ConfigurationError(
                    f"{min(unlimited)!r} has no report_cap, or one that no ledger can hold, so it could owe anything. "
                    "Set the auction's report_cap, or each agent's."
                )
        return self


GROUPS: dict[str, type[CheckedModel]] = {
    "sampling": Sampling,
    "policy": Policy,
    "billing": Billing,
    "disclosure": Disclosure,
}


def group_of(name: str) -> str | None:
    """Return the group that has a setting of this name, in words: `sampling=Sampling(min_ess=...)`."""
    for group, kind in GROUPS.items():
        if name in kind.model_fields:
            return f"{group}={kind.__name__}({name}=...)"
    return None
