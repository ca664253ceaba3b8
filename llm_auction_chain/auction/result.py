"""The result of an auction, from reports to reply, and the metadata that travel with the reply."""

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata

from llm_auction_chain.agents import Agent
from llm_auction_chain.auction.admission import Admitted, LeftOut
from llm_auction_chain.auction.billing import with_charge
from llm_auction_chain.auction.display import as_html, summary
from llm_auction_chain.auction.explanation import AgentExplanation, Explanation, shortened
from llm_auction_chain.auction.metadata import metadata_of
from llm_auction_chain.auction.settings import AuctionSettings, DisclosurePlace
from llm_auction_chain.auction.storage import as_dict, fields_from
from llm_auction_chain.candidates import Candidate, Contexts, Drawn, Plan
from llm_auction_chain.descriptions import lint_context
from llm_auction_chain.errors import AuctionWarning
from llm_auction_chain.mechanism import Settlement, settle
from llm_auction_chain.mechanism.payments import price_per_click
from llm_auction_chain.money import as_text, charges_of, total
from llm_auction_chain.receipts import Opening, Receipt, issue
from llm_auction_chain.reports import Report
from llm_auction_chain.rewards import Reward

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from llm_auction_chain.ledger import Charge

__all__ = ["AuctionResult", "settle_auction"]

FloatArray = npt.NDArray[np.float64]
_logger = logging.getLogger(__name__)
_LEFT_OUT = {
    "owner": "of one owner's agents all pay or none does, and all per click or none. Give each kind an owner.",
    "currency": "their rewards are in another currency than the auction's. Convert them before the auction.",
    "cap": "they have no report_cap, or one that no ledger can hold. Set report_cap.",
    "cover": "the accounts do not cover the most that the owners may owe. Deposit with ledger.deposit(owner, amount).",
}
_SUSPICIOUS = 4  # this many draws that all gave one reply are more likely one draw, repeated
_lint = lru_cache(maxsize=4096)(lint_context)
_ROUNDING = 1e-9  # by which p may differ from p_-i though the agent did nothing
_R = TypeVar("_R", bound="AuctionResult")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AuctionResult:
    """Everything about one auction.

    Attributes:
        auction_id: unique: the run's id, or made of the call's idempotency key and prompt.
        prompt: the user's messages.
        candidates: the distinct replies, how often each was drawn, and their log-weights.
        components: name and number of draws of every component of the proposal.
        contexts: whether the agents' descriptions or keywords reached the proposal: `used`, `unused`; `reference` where
            they reached the reference itself; `none` without any.
        proposal_reason: why candidates were drawn from these components.
        agents: the N agents that took part, in the order of the matrices.
        left_out: those that did not, and why: an exclusive category, no cover, or a failed ledger.
        reports: (N,), each agent's rewards, status and reason. Private values: not in the metadata.
        settlement: probabilities, draw and payments.
        reply: the drawn message, with `response_metadata["auction"]` and the usage of all hidden calls.
        usage: tokens of all hidden calls; None where the model reports none.
        usages: the same for each of several models, by its name: fallbacks answer under their own.
        failures: the errors of model calls that failed.
        warnings: what deserves a look: contexts that are not used, draws that are all the same.
        currency: the unit of rewards, payments and tau; empty where it has no name.
        disclosure: the text about sponsors; empty where there are none, or no text is set.
        bypassed: whether this is the reference model's own reply, because the model may call tools or no user reads it.
        seed: replays the auction; where the model takes no seed, it replays the draw among the same candidates.
        opening: the commitment made before agents reported, and its salt.
        charge: the ledger's booking; None without a ledger, or where no agent pays.
    """

    auction_id: str
    prompt: tuple[BaseMessage, ...]
    candidates: tuple[Candidate, ...]
    components: tuple[tuple[str, int], ...]
    contexts: Contexts
    proposal_reason: str
    agents: tuple[Agent, ...]
    left_out: tuple[LeftOut, ...]
    reports: tuple[Report, ...]
    settlement: Settlement
    reply: AIMessage
    usage: UsageMetadata | None
    usages: Mapping[str, UsageMetadata]
    failures: tuple[BaseException, ...]
    warnings: tuple[str, ...]
    currency: str
    disclosure: str
    bypassed: bool
    seed: int
    opening: Opening
    charge: "Charge | None"

    def __str__(self) -> str:
        """Return about ten lines for people: question, reply, payments, and which agents moved the reply.

        >>> from llm_auction_chain import Agent, AuctionRunnable
        >>> from llm_auction_chain.testing import MarkovChatModel
        >>> agent = Agent("B", lambda prompt, reply: 4.0 * reply.text.count("b"))
        >>> print(AuctionRunnable(model=MarkovChatModel(), agents=[agent], seed=7).run("Say something"))
        Question: "Say something"
        Reply:    "bb"
        Sponsored by B.
          B: pays 1.887806, moved the draw by 83.8%, same reply without it
        Revenue 1.887806, tau 1, payment rule expected
        Distinct replies: 7 of 16, effective sample size 1.1
        Seed 7, auction ...
        """
        return summary(self)

    def __repr__(self) -> str:
        """Return one line, without private rewards: traces and logs show it."""
        return f"<AuctionResult {self.auction_id}: {shortened(self.text)}, revenue {as_text(self.revenue)}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: question, reply, and tables of agents and candidates."""
        return as_html(self)

    @property
    def text(self) -> str:
        """The text of the reply, as the user reads it; a disclosure in the reply is part of it."""
        return str(self.reply.text)

    @property
    def distinct_replies(self) -> int:
        """How many different replies were drawn; each is one candidate."""
        return len(self.candidates)

    @property
    def draws(self) -> int:
        """How many replies were drawn, M."""
        return sum(count for _, count in self.components)

    @property
    def rewards(self) -> FloatArray:
        """(N, candidates), the reports, money. Private values."""
        return _matrix_of(self.reports, self.candidates)

    @property
    def log_weights(self) -> FloatArray:
        """(candidates,), `log pi_ref - log pi_gen` of all draws of each, by log-add-exp, nats."""
        return np.array([candidate.merged_log_weight for candidate in self.candidates])

    @cached_property
    def receipt(self) -> Receipt:
        """The complete record, for the platform and its auditor; `receipt.view(agent)` is one agent's part."""
        return issue(
            self.opening,
            auction_id=self.auction_id,
            reports=self.reports,
            settlement=self.settlement,
            charges=self.charges,
            prices_per_click=self.prices_per_click,
        )

    def charged(self, charge: "Charge") -> Self:
        """Return this result with the ledger's charge, in the reply's metadata too."""
        return _changed(self, charge=charge, reply=with_charge(self.reply, charge))

    @cached_property
    def charges(self) -> tuple[Decimal, ...]:
        """(N,), the amounts to bill: each owner's payment is rounded to a millionth of the unit, halves to even.

        An owner's amounts sum to its rounded payment.
        """
        return charges_of(self.settlement.payments.tolist(), [agent.payer for agent in self.agents])

    @cached_property
    def payments(self) -> Mapping[str, Decimal]:
        """What each agent pays, by its name: its part of `charges`. They sum to `revenue`.

        It is a zero for an agent that never pays, and for one whose report changes nothing.
        """
        return MappingProxyType({agent.name: due for agent, due in zip(self.agents, self.charges, strict=True)})

    @property
    def revenue(self) -> Decimal:
        """The sum of `payments`, exact."""
        return total(self.charges)

    @property
    def sponsors(self) -> tuple[Agent, ...]:
        """The agents that pay and raised the probability of the drawn reply."""
        j, settlement = self.settlement.winner, self.settlement
        likelier = settlement.probabilities[j] > settlement.counterfactuals[:, j] * (1.0 + _ROUNDING)
        return tuple(agent for agent, more in zip(self.agents, likelier, strict=True) if more and agent.pays)

    @cached_property
    def prices_per_click(self) -> tuple[float | None, ...]:
        """(N,), money: what an agent with a `ClickReward` pays when the user clicks, in place of its payment.

        Under `expected` and `proportional` it is `T_i / E_p[click-through]`, under `pivot` and `influence` the payment
        over the drawn reply's click-through; for an owner's only agent never above the value per click. On average over
        draws and clicks it equals the expected payment. None for every other kind of reward, and where a click is less
        likely than a millionth: then the payment itself is due.
        """
        return tuple(self.price_per_click(i) for i in range(len(self.agents)))

    def price_per_click(self, i: int) -> float | None:
        """Return the price per click of agent i, as in `prices_per_click`."""
        settlement, clicks = self.settlement, self.reports[i].click_through
        if clicks is None or not self.agents[i].pays:
            return None
        return price_per_click(
            settlement.payment_rule,
            expected=float(settlement.expected_payments[i]),
            paid=float(settlement.payments[i]),
            probabilities=settlement.probabilities,
            clicks=clicks,
            winner=settlement.winner,
        )

    def explain(self) -> Explanation:
        """Return each agent's influence on this auction: `str()` gives a text, `as_dict()` the data.

        >>> from llm_auction_chain import Agent, AuctionRunnable
        >>> from llm_auction_chain.testing import MarkovChatModel
        >>> agent = Agent("B", lambda prompt, reply: 4.0 * reply.text.count("b"))
        >>> held = AuctionRunnable(model=MarkovChatModel(), agents=[agent], seed=7).run("Say something")
        >>> held.explain().sponsors, held.explain().as_dict()["agents"][0]["reply_without"]
        (('B',), 'bb')
        """
        sponsors = tuple(agent.name for agent in self.sponsors)
        return Explanation(
            auction_id=self.auction_id,
            reply=str(self.reply.text),
            sponsored=bool(sponsors),
            sponsors=sponsors,
            currency=self.currency,
            agents=tuple(self._explained(i) for i in range(len(self.agents))),
            left_out=tuple(out.as_dict() for out in self.left_out),
        )

    def plot(self, *, axes: "Sequence[Axes] | None" = None) -> "Figure":
        """Return a figure: the probability of each reply with all agents and without each, and what each agent pays.

        Without an agent means without the other agents of its owner, too. The ten agents that moved the draw most have
        a column, and the twenty likeliest replies a row; the others are added up. Characters that matplotlib's font
        lacks are boxes: `matplotlib.rcParams["font.family"]` names other fonts.

        Args:
            axes: two of matplotlib's, to draw into. None makes a figure, which notebooks show and `savefig` writes.

        Raises:
            ConfigurationError: there are not two axes.
            MissingDependencyError: matplotlib is not installed.

        >>> from llm_auction_chain import Agent, AuctionRunnable
        >>> from llm_auction_chain.testing import MarkovChatModel
        >>> agent = Agent("B", lambda prompt, reply: 4.0 * reply.text.count("b"))
        >>> held = AuctionRunnable(model=MarkovChatModel(), agents=[agent], seed=7).run("Say something")
        >>> [axes.get_title("left") for axes in held.plot().axes]
        ['Probability of each reply; the outline is that with all agents', 'Payments']
        """
        from llm_auction_chain.auction.plots import plot_result

        return plot_result(self, axes=axes)

    def as_dict(self) -> dict[str, Any]:
        """Return everything about the auction as plain JSON, for storing; `from_dict` reads it.

        It has all reports and the receipt's salt: keep it for the platform and its auditor. Agents' rewards, which are
        code, are left out. In messages, what JSON does not have becomes text.
        """
        return as_dict(self)

    def to_json(self, *, indent: int | None = None) -> str:
        """Return `as_dict()` as a JSON text; `AuctionResult.from_dict(json.loads(text))` reads it."""
        return json.dumps(self.as_dict(), allow_nan=False, indent=indent)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the result that `as_dict` returned as plain JSON: same figures, explanation and receipt.

        `tau_sweep` and `experiments.best_response` work on it as on the first. Its agents have no rewards.

        Raises:
            ConfigurationError: the data are not those of a result.

        >>> from llm_auction_chain import Agent, AuctionRunnable
        >>> from llm_auction_chain.testing import MarkovChatModel
        >>> agent = Agent("B", lambda prompt, reply: 4.0 * reply.text.count("b"))
        >>> held = AuctionRunnable(model=MarkovChatModel(), agents=[agent], seed=7).run("Say something")
        >>> stored = held.to_json()
        >>> again = AuctionResult.from_dict(json.loads(stored))
        >>> again.text, again.payments == held.payments, again.receipt == held.receipt
        ('bb', True, True)
        """
        return cls(**fields_from(data))

    def _explained(self, i: int) -> AgentExplanation:
        settlement, agent = self.settlement, self.agents[i]
        without, drawn = int(settlement.winners_without[i]), settlement.winner
        limits = self.receipt.agents[i]
        return AgentExplanation(
            agent=agent.name,
            owner=agent.payer,
            pays=agent.pays,
            status=self.reports[i].status,
            influence=float(settlement.influences[i]),
            probability=float(settlement.probabilities[drawn]),
            probability_without=float(settlement.counterfactuals[i, drawn]),
            reply_without=str(self.candidates[without].message.text),
            changed_the_reply=without != drawn,
            contribution=float(settlement.contributions[i]),
            payment=float(settlement.payments[i]),
            expected_payment=float(settlement.expected_payments[i]),
            most_expected_payment=limits.most_expected,
            steering=float(settlement.steering[i]),
            most_steering=limits.most_steering,
            charge=as_text(self.charges[i]),
            price_per_click=self.price_per_click(i),
        )


def settle_auction(
    settings: AuctionSettings, admitted: Admitted, plan: Plan, drawn: Drawn, opening: Opening, reports: Sequence[Report]
) -> AuctionResult:
    """Return the result of an auction, before owners are charged.

    Args:
        settings: of the auction.
        admitted: the agents that take part, and the seed of the draw.
        plan: what the candidates were drawn from.
        drawn: the candidates and their log-weights.
        opening: the commitment made before agents reported.
        reports: (N,), each agent's report of the candidates that may be drawn.
    """
    reports = _over_all_candidates(reports, drawn)
    settlement = settle(
        rewards=_matrix_of(reports, drawn.candidates),
        owners=[agent.payer for agent in admitted.agents],
        pays=[agent.pays for agent in admitted.agents],
        draws=np.array([candidate.draws for candidate in drawn.candidates]),
        log_weights=np.array([candidate.merged_log_weight for candidate in drawn.candidates]),
        tau=settings.tau,
        payment_rule=settings.payment_rule,
        seed=admitted.seed_of_draw,
    )
    result = AuctionResult(
        auction_id=admitted.auction_id,
        prompt=admitted.prompt,
        candidates=drawn.candidates,
        components=drawn.components,
        contexts=drawn.contexts,
        proposal_reason=drawn.reason,
        agents=admitted.agents,
        left_out=admitted.left_out,
        reports=reports,
        settlement=settlement,
        reply=drawn.candidates[settlement.winner].message,
        usage=drawn.usage,
        usages=drawn.usages,
        failures=drawn.causes,
        warnings=(*_warn(settings, admitted, plan, drawn), *_without_influence(admitted.agents, reports, drawn)),
        currency=admitted.currency,
        disclosure="",
        bypassed=admitted.bypassed,
        seed=admitted.seed,
        opening=opening,
        charge=None,
    )
    if settings.disclosure.text and result.sponsors:
        names = ", ".join(agent.name for agent in result.sponsors)
        result = _changed(result, disclosure=settings.disclosure.text.replace("{sponsors}", names))
    return _changed(result, reply=_reply(result, plan, settings.disclosure.place))


def _changed(result: _R, **changes: Any) -> _R:
    """Return a copy with another reply, disclosure or charge.

    Neither amounts nor the receipt depend on these, so the copy keeps what is computed already, unlike `replace`.
    """
    changed = copy(result)
    vars(changed).update(changes)
    return changed


def _over_all_candidates(reports: Sequence[Report], drawn: Drawn) -> tuple[Report, ...]:
    """Return the reports over all candidates, zero for those that may not be drawn: agents do not see these."""
    if len(drawn.possible) == len(drawn.candidates):
        return tuple(reports)

    def spread(amounts: Sequence[float]) -> tuple[float, ...]:
        row = [0.0] * len(drawn.candidates)
        for j, amount in zip(drawn.possible, amounts, strict=True):
            row[j] = amount
        return tuple(row)

    return tuple(
        replace(
            report,
            rewards=spread(report.rewards),
            click_through=None if report.click_through is None else spread(report.click_through),
        )
        for report in reports
    )


def _reply(result: AuctionResult, plan: Plan, place: DisclosurePlace) -> AIMessage:
    """Return the drawn message with the metadata, and the disclosure in its place.

    A reply in a requested format keeps its text: with a disclosure around it, no parser could read it.
    """
    metadata = {
        name: value
        for name, value in result.reply.response_metadata.items()
        if name != "logprobs" or plan.source.asked_for_tokens or not plan.tokens
    }
    place = "metadata" if plan.source.asked_for_format else place
    return result.reply.model_copy(
        update={
            "response_metadata": {**metadata, "auction": metadata_of(result)},
            "usage_metadata": result.usage,
            "content": _with_disclosure(result.reply.content, result.disclosure, place),
        }
    )


def _with_disclosure(content: Any, disclosure: str, place: DisclosurePlace) -> Any:
    """Return a message's content with the disclosure before or after its text; content without a text stays as it is.

    Among blocks it is a block next to the first or the last text: after the thinking, before the calls of tools.
    """
    if not disclosure or place == "metadata":
        return content
    parts = [content] if isinstance(content, str) else content
    texts = [k for k, part in enumerate(parts) if AIMessage([part]).text.strip()]
    if not texts:
        return content
    added: Any = f"{disclosure}\n\n" if place == "start" else f"\n\n{disclosure}"
    if isinstance(content, str):
        return added + content if place == "start" else content + added
    near = texts[0] if place == "start" else texts[-1]
    if isinstance(block := content[near], dict):
        # OpenAI takes the blocks of one id for one message, which must follow its reasoning.
        added = {"type": "text", "text": added, **{name: block[name] for name in ("id", "phase") if name in block}}
    at = near if place == "start" else near + 1
    return [*content[:at], added, *content[at:]]


def _warn(settings: AuctionSettings, admitted: Admitted, plan: Plan, drawn: Drawn) -> tuple[str, ...]:
    """Return what deserves a look, and issue it as `AuctionWarning`s."""
    messages = [
        f"The context of {agent.name!r} {'; it '.join(findings)}."
        for agent in admitted.agents
        if (findings := _lint(agent.context))
    ]
    if plan.contexts == "unused" and settings.proposal is None and plan.scorer is None:
        messages.append(
            "The agents' contexts are not used: the model cannot say how likely its replies are. Use "
            "ChatTransformers or ChatVLLM, give a scorer, state a reference that knows the agents with "
            "proposal=Reference(prompt=...), or set proposal=Reference() to accept this."
        )
    messages += filter(None, [drawn.warning])
    for reason, what in _LEFT_OUT.items():
        if names := [out.agent.name for out in admitted.left_out if out.reason == reason]:
            if reason == "cover" and admitted.currency:
                what = what.replace("amount)", f"amount, currency={admitted.currency!r})")  # noqa: PLW2901
            messages.append(f"{', '.join(names)} took no part: {what}")
    if admitted.failure is not None:
        messages.append(f"The ledger failed, so the reply has no sponsors: {type(admitted.failure).__name__}.")
    draws = sum(candidate.draws for candidate in drawn.candidates)
    if len(drawn.candidates) == 1 and draws >= _SUSPICIOUS:
        messages.append(
            f"All {draws} draws are the same reply, so no agent can move it. Raise the temperature above 0, remove "
            "the provider's seed, or any cache in front of the model."
        )
    for message in messages:
        warnings.warn(message, AuctionWarning, stacklevel=2)
    return tuple(messages)


def _without_influence(agents: Sequence[Agent], reports: Sequence[Report], drawn: Drawn) -> list[str]:
    """Return which agents' reports do not differ, and why, and log it.

    It is no `AuctionWarning`: where those are errors, a report would end the auction of all.
    """
    causes: dict[str, list[str]] = {}
    replies = [drawn.candidates[j].message for j in drawn.possible]
    for agent, report in zip(agents, reports, strict=True):
        if cause := _cause(agent, report, [report.rewards[j] for j in drawn.possible], replies):
            causes.setdefault(cause, []).append(repr(agent.name))
            if cause != report.reason:  # which is logged already
                _logger.warning("Agent %r moved no reply: %s", agent.name, cause)
    return [f"{', '.join(names)} moved no reply: {cause}" for cause, names in causes.items()]


def _cause(agent: Agent, report: Report, rewards: Sequence[float], replies: Sequence[AIMessage]) -> str:
    """Return why an agent's rewards are all the same; empty where they are not, or may well be."""
    if report.status in ("error", "invalid"):
        return report.reason
    if len(replies) < 2 or len(set(rewards)) > 1 or report.status == "timeout":  # noqa: PLR2004
        return ""
    if not any(reply.text.strip() for reply in replies):
        return "the replies have no text, so a reward must read their tool_calls."
    if report.status == "capped":
        return "all rewards are beyond the cap or bounds."
    ready_made = isinstance(agent.reward, Reward)  # and counts what no reply may have
    if not ready_made and all(isinstance(reply.content, list) for reply in replies):
        return "all rewards are the same. The content is a list of blocks; a reward may read reply.text."
    return "all rewards are the same, and not 0." if rewards[0] and not ready_made else ""


def _matrix_of(reports: Sequence[Report], candidates: Sequence[Candidate]) -> FloatArray:
    """Return the reports as a matrix (N, candidates), money."""
    return np.array([report.rewards for report in reports], dtype=np.float64).reshape(len(reports), len(candidates))
