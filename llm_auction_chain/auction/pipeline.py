"""`Auction`: wires model, agents and mechanism. The only place that knows all parts."""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, Literal, TypeVar, get_args

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import set_config_context
from langchain_core.utils.uuid import uuid7

from llm_auction_chain.agents import Agent, cap_of, check_agents, check_cap, check_categories
from llm_auction_chain.auction.admission import Opened, check_prompt, one_currency, open_up
from llm_auction_chain.auction.billing import OnLedgerError, Tab, check_ledger, most_owed
from llm_auction_chain.auction.events import (
    AuctionEvent,
    EventHook,
    Progress,
    ProgressHook,
    atell,
    candidates,
    scored,
    settled,
    started,
    tell,
)
from llm_auction_chain.auction.outcome import DisclosurePlace, close
from llm_auction_chain.auction.result import AuctionResult, LeftOut
from llm_auction_chain.candidates import (
    CandidateFilter,
    Drawn,
    Plan,
    Proposal,
    SequenceScorer,
    Size,
    Source,
    adraw,
    as_message,
    check_proposal,
    draw,
    hidden,
    make_plan,
    name_of,
    offers_tools,
)
from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.mechanism import PaymentRule
from llm_auction_chain.mechanism.settle import check_payment_rule, check_tau
from llm_auction_chain.receipts import GENERATOR, MECHANISM, Opening, open_auction
from llm_auction_chain.reports import OnAgentError, Report, Terms, collect
from llm_auction_chain.rewards import AskedBy, log_ratios_of
from llm_auction_chain.waiting import AWAITING, BLOCKING, run

__all__ = ["Auction", "OnToolCalls"]

OnToolCalls = Literal["auction", "bypass"]
_T = TypeVar("_T")
_LIBRARY = version("llm-auction-chain")  # reads a file, which no event loop should wait for
_LONGEST_WAIT = 1e6  # seconds
_BYPASSED = "tools are called, so nobody bids"
_LARGE = 1 << 15  # rewards; settling more takes longer than an event loop should be held up
_PER_AGENT = 64  # what an agent costs beside its rewards, counted in them
_MANY = 512  # candidates; digests of more take longer than an event loop should be held up


@dataclass(frozen=True, kw_only=True)
class Auction:
    """Draw M candidates, ask the agents, settle: the reply follows `pi_ref * exp(sum_i r_i / tau)` as M grows.

    Attributes:
        model: any Runnable chat model.
        n_candidates: M, at least 1; the draws of a round where `min_ess` is set.
        tau: weight of the reference model, money per nat, above 0.
        payment_rule: `expected`, `proportional`, `influence` or `pivot`.
        min_candidates: settle on this many survivors where model calls fail.
        on_agent_error: `abstain` (a zero report) or `raise`.
        reward_timeout: seconds for all agents together; who has not reported by then abstains. None waits for ever.
        report_cap: money; every reward is cut to within plus and minus this. None: each agent's own cap, if it has one.
        proposal: what candidates are drawn from; None is the best that the model and the agents' contexts allow.
        scorer: says how likely replies are, for a model that cannot say it itself.
        min_ess: draws further rounds while the weights are worth fewer draws; None draws one round.
        max_candidates: the most draws of all rounds; None is four rounds.
        native_n: whether providers known to draw many replies in one request are asked to; False asks for one each.
        candidate_filter: `(prompt, reply) -> bool`, sync or async, or a Runnable: what may be returned at all.
        fallback: text or message that is the reply where the filter excludes every candidate; None is an error.
        exclusive_categories: of each, one owner at most takes part: the first in the agents' order.
        currency: the unit of rewards, payments and tau; empty where it has no name.
        disclosure: what the user is told where the reply is sponsored; `{sponsors}` stands for the agents' names.
        disclosure_place: `metadata` leaves the text as it was drawn; `start` and `end` put the disclosure into it, but
            never into a reply in a format that was asked for.
        on_tool_calls: where the model may call tools, `bypass` takes the reference's own reply, without agents and
            payments; `auction` lets agents bid for calls as for any reply.
        ledger: where owners are charged, in the same moment as the reply is returned; None charges nobody.
        on_ledger_error: where it fails, `reference` replies without agents and payments, `raise` fails.

    Raises:
        ConfigurationError: a setting no auction can run with.
    """

    model: Runnable[Any, Any]
    n_candidates: int = 16
    tau: float = 1.0
    payment_rule: PaymentRule = "expected"
    min_candidates: int = 1
    on_agent_error: OnAgentError = "abstain"
    proposal: Proposal | None = None
    scorer: SequenceScorer | None = None
    min_ess: float | None = None
    max_candidates: int | None = None
    native_n: bool = True
    reward_timeout: float | None = 60.0
    report_cap: float | None = None
    candidate_filter: Any = None
    fallback: str | AIMessage | None = None
    exclusive_categories: Collection[str] = ()
    currency: str = ""
    disclosure: str | None = None
    disclosure_place: DisclosurePlace = "metadata"
    on_tool_calls: OnToolCalls = "bypass"
    ledger: Any = None
    on_ledger_error: OnLedgerError = "reference"

    def __post_init__(self) -> None:
        """Refuse what no auction can run with."""
        if not isinstance(self.model, Runnable):
            raise ConfigurationError(f"model is {self.model!r}; give a LangChain chat model (any Runnable chat model).")
        for name in ("n_candidates", "min_candidates"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name} is {value!r}; it must be a whole number of at least 1.")
        if self.min_candidates > self.n_candidates:
            raise ConfigurationError(
                f"min_candidates is {self.min_candidates}, more than n_candidates, which is {self.n_candidates}."
            )
        check_tau(self.tau)
        check_payment_rule(self.payment_rule)
        _check_choice("on_agent_error", self.on_agent_error, OnAgentError)
        if self.proposal is not None:
            check_proposal(self.proposal)
        if self.scorer is not None and not isinstance(self.scorer, SequenceScorer):
            raise ConfigurationError(f"scorer is {self.scorer!r}; give an object with score(prompt, replies).")
        self._size()
        self._check_terms()

    def _check_terms(self) -> None:
        timeout = self.reward_timeout
        if timeout is not None and (
            isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= _LONGEST_WAIT
        ):
            raise ConfigurationError(
                f"reward_timeout is {timeout!r}; give seconds above 0, at most a million, or None to wait for ever."
            )
        check_cap(self.report_cap, "the auction")
        check_categories(self.exclusive_categories, "the auction")
        if self.candidate_filter is not None:
            CandidateFilter(self.candidate_filter)
        if self.fallback is not None:
            as_message(self.fallback)
        for name in ("currency", "disclosure"):
            if not isinstance(getattr(self, name) or "", str):
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}; give a text.")
        _check_choice("disclosure_place", self.disclosure_place, DisclosurePlace)
        _check_choice("on_tool_calls", self.on_tool_calls, OnToolCalls)
        _check_choice("on_ledger_error", self.on_ledger_error, OnLedgerError)
        check_ledger(self.ledger, timeout)

    def run(
        self,
        prompt: Sequence[BaseMessage],
        agents: Iterable[Agent],
        *,
        seed: int | None = None,
        auction_id: str | None = None,
        config: RunnableConfig | None = None,
        progress: ProgressHook | None = None,
        on_event: EventHook | None = None,
        traced: bool = True,
        **kwargs: Any,
    ) -> AuctionResult:
        """Hold one auction.

        Args:
            prompt: the user's messages.
            agents: who bids; none is a legal auction: the reference's own reply.
            seed: replays it; None takes a fresh one, kept in the result.
            auction_id: under which it is booked: the same call again has the same, and is charged once. None: fresh.
            config: the parent run's.
            progress: told how far it has come.
            on_event: told of every stage that is done.
            traced: whether each model call is a run of its own, under the parent's; False where the parent's run is the
                only one that may count.
            **kwargs: handed to the model.

        Raises:
            PromptError: nothing to reply to.
            ConfigurationError: the agents' names are not unique, or the seed is not a whole number.
            CandidatesError: too few replies.
            RewardError: an agent failed and `on_agent_error` is `raise`.
            LedgerError: the ledger failed and `on_ledger_error` is `raise`.
        """
        child = hidden(config)
        asked = self._asked(prompt, agents, child, kwargs)
        tab = self._tab(auction_id, asked)
        try:
            tab.hold()
            opened = self._open(prompt, asked, seed, tab, child, kwargs)
            tell(on_event, self._started(opened))
            plan = self._plan(opened, child, kwargs, traced=traced)
            drawn = _under(child, draw, plan, config=child, progress=Progress.of_candidates(progress))
            if (opened := self._unless_called(opened, drawn)).bypassed:
                tab.give_up(_BYPASSED)
            opening = self._bind(opened, plan, drawn)
            tell(on_event, candidates(opened.auction_id, drawn, opening.commitment))
            reports = _under(
                child, run, collect(
                    opened.agents, opened.prompt, _replies(drawn), self._terms(opened, plan, opening),
                    config=child, progress=Progress.of_rewards(progress, len(opened.agents)), waiter=BLOCKING,
                ),
            )  # fmt: skip
            tell(on_event, scored(opened.auction_id, reports))
            result = self._charged(tab, opened, plan, drawn, opening, reports)
            tell(on_event, _settled(result))
        except BaseException as error:
            tab.give_up(f"not delivered: {type(error).__name__}")
            raise
        return result

    async def arun(
        self,
        prompt: Sequence[BaseMessage],
        agents: Iterable[Agent],
        *,
        seed: int | None = None,
        auction_id: str | None = None,
        config: RunnableConfig | None = None,
        progress: ProgressHook | None = None,
        on_event: EventHook | None = None,
        traced: bool = True,
        **kwargs: Any,
    ) -> AuctionResult:
        """Do as `run`, awaiting model, agents, ledger and `on_event`."""
        child = hidden(config)
        asked = self._asked(prompt, agents, child, kwargs)
        tab = self._tab(auction_id, asked)
        try:
            await tab.apart(tab.hold)
            opened = self._open(prompt, asked, seed, tab, child, kwargs)
            await atell(on_event, self._started(opened))
            plan = self._plan(opened, child, kwargs, traced=traced)
            drawn = await _aunder(child, adraw(plan, config=child, progress=Progress.of_candidates(progress)))
            if (opened := self._unless_called(opened, drawn)).bypassed:
                await tab.apart(tab.give_up, _BYPASSED)
            if len(drawn.candidates) < _MANY:
                opening = self._bind(opened, plan, drawn)
            else:
                opening = await asyncio.to_thread(self._bind, opened, plan, drawn)
            await atell(on_event, candidates(opened.auction_id, drawn, opening.commitment))
            asking = collect(
                opened.agents, opened.prompt, _replies(drawn), self._terms(opened, plan, opening),
                config=child, progress=Progress.of_rewards(progress, len(opened.agents)), waiter=AWAITING,
            )  # fmt: skip
            reports = await _aunder(child, asking)
            await atell(on_event, scored(opened.auction_id, reports))
            if len(opened.agents) * max(_PER_AGENT, len(drawn.candidates)) < _LARGE:
                result: AuctionResult = await tab.apart(self._charged, tab, opened, plan, drawn, opening, reports)
            else:
                result = await asyncio.to_thread(self._charged, tab, opened, plan, drawn, opening, reports)
            await atell(on_event, _settled(result))
        except BaseException as error:
            await asyncio.shield(tab.apart(tab.give_up, f"not delivered: {type(error).__name__}"))
            raise
        return result

    def bypasses(self, config: RunnableConfig | None, kwargs: Mapping[str, Any]) -> bool:
        """Whether a call with these keywords takes the reference's own reply, because it offers tools."""
        return self.on_tool_calls == "bypass" and offers_tools(self.model, config, kwargs)

    def _asked(
        self,
        prompt: Sequence[BaseMessage],
        agents: Iterable[Agent],
        config: RunnableConfig,
        kwargs: Mapping[str, Any],
    ) -> tuple[Agent, ...]:
        """Return who would take part, if all are covered and nobody's rival."""
        check_prompt(prompt)
        return () if self.bypasses(config, kwargs) else check_agents(agents)

    def _tab(self, auction_id: str | None, agents: Sequence[Agent]) -> Tab:
        """Return what the auction will have on the ledger."""
        negative = self.payment_rule != "proportional"
        most = {} if self.ledger is None else most_owed(agents, self.report_cap, negative=negative)
        currency = one_currency(self.currency, agents)
        return Tab(self.ledger, self.on_ledger_error, auction_id or str(uuid7()), currency, most)

    def _open(
        self,
        prompt: Sequence[BaseMessage],
        agents: Sequence[Agent],
        seed: int | None,
        tab: Tab,
        config: RunnableConfig,
        kwargs: Mapping[str, Any],
    ) -> Opened:
        return open_up(
            prompt,
            agents,
            tab,
            seed=seed,
            model=name_of(self.model, config),
            exclusive=self.exclusive_categories,
            currency=one_currency(self.currency, agents),
            bypassed=self.bypasses(config, kwargs),
        )

    def _unless_called(self, opened: Opened, drawn: Drawn) -> Opened:
        """Return the auction, without agents where a reply calls tools that nobody was seen to offer.

        Decided from the draws alone, before anybody is asked: the reply then follows the reference by their weights.
        """
        calls = any(one.message.tool_calls or one.message.invalid_tool_calls for one in drawn.candidates)
        if self.on_tool_calls != "bypass" or not calls:
            return opened
        return replace(opened, agents=(), left_out=(), bypassed=True)

    def _bind(self, opened: Opened, plan: Plan, drawn: Drawn) -> Opening:
        """Bind the auction to all that its reply depends on but the reports."""
        return open_auction(
            auction_id=opened.auction_id,
            salt=opened.salt,
            prompt=opened.prompt,
            terms={
                "library": _LIBRARY,
                "mechanism": MECHANISM,
                "time": opened.time,
                "model": opened.model,
                "contexts": plan.contexts,
                "currency": opened.currency,
                "tau": float(self.tau),
                "payment_rule": self.payment_rule,
                "generator": GENERATOR,
            },
            seed=opened.seed,
            candidates=drawn.candidates,
            agents=opened.agents,
            components=drawn.components,
            caps=[cap_of(agent, self.report_cap) for agent in opened.agents],
            left_out=[out.as_dict() for out in opened.left_out],
            bypassed=opened.bypassed,
        )

    def _started(self, opened: Opened) -> AuctionEvent:
        taking_part, left_out = len(opened.agents), len(opened.left_out)
        most = self._size_for(opened).most
        return started(opened.auction_id, agents=taking_part, left_out=left_out, bypassed=opened.bypassed, most=most)

    def _plan(self, opened: Opened, config: RunnableConfig, kwargs: dict[str, Any], *, traced: bool) -> Plan:
        return make_plan(
            Source(self.model, config, native_n=self.native_n, traced=traced, kwargs=kwargs),
            scorer=self.scorer,
            proposal=self.proposal,
            prompt=opened.prompt,
            contexts=[agent.context for agent in opened.agents],
            tau=self.tau,
            size=self._size_for(opened),
            seed=opened.seed_of_candidates,
            tokens=any(log_ratios_of(agent.reward) for agent in opened.agents),
            candidate_filter=None if self.candidate_filter is None else CandidateFilter(self.candidate_filter),
            fallback=None if self.fallback is None else as_message(self.fallback),
        )

    def _terms(self, opened: Opened, plan: Plan, opening: Opening) -> Terms:
        return Terms(
            timeout=self.reward_timeout,
            report_cap=self.report_cap,
            on_agent_error=self.on_agent_error,
            refuse_negative=self.payment_rule == "proportional",
            asked_by=AskedBy(auction_id=opened.auction_id, currency=opened.currency, commitment=opening.commitment),
            scorer=plan.scorer,
            law=plan.source.law if plan.scorer is plan.source.scorer else None,
        )

    def _size_for(self, opened: Opened) -> Size:
        """Return how many draws: without agents one candidate has the very law that M would be drawn from."""
        return self._size() if opened.agents or self.candidate_filter else _ONE

    def _size(self) -> Size:
        n, most = self.n_candidates, self.max_candidates
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < n):
            raise ConfigurationError(f"max_candidates is {most!r}; it must be a whole number of at least {n}.")
        if self.min_ess is None:
            if most not in (None, n):
                raise ConfigurationError(f"max_candidates is {most} and min_ess is not set, so {n} would be drawn.")
            return Size(n=n, most=n, min_ess=0.0, fewest=self.min_candidates)
        most = 4 * n if most is None else most
        if isinstance(self.min_ess, bool | str) or not 1 <= self.min_ess <= most:
            raise ConfigurationError(
                f"min_ess is {self.min_ess!r}; it must be from 1 to max_candidates, which is {most}."
            )
        return Size(n=n, most=most, min_ess=float(self.min_ess), fewest=self.min_candidates)

    def _charged(
        self, tab: Tab, opened: Opened, plan: Plan, drawn: Drawn, opening: Opening, asked: Sequence[Report]
    ) -> AuctionResult:
        """Return what the auction comes to once it is charged; without agents where that fails."""
        result = self._close(opened, plan, drawn, opening, asked)
        charge = tab.charge(result)
        if charge is not None or tab.failure is None or tab.failure is opened.failure:
            return result.charged(charge)
        # players that never pay stay, as where nothing could be held
        stay = [k for k, agent in enumerate(opened.agents) if not agent.pays]
        gone = (LeftOut(agent=agent, category="", reason="ledger") for agent in opened.agents if agent.pays)
        alone = replace(
            opened,
            agents=tuple(opened.agents[k] for k in stay),
            left_out=(*opened.left_out, *gone),
            failure=tab.failure,
        )
        return self._close(alone, plan, drawn, self._bind(alone, plan, drawn), [asked[k] for k in stay])

    def _close(
        self, opened: Opened, plan: Plan, drawn: Drawn, opening: Opening, asked: Sequence[Report]
    ) -> AuctionResult:
        return close(
            opened,
            plan,
            drawn,
            opening,
            asked,
            tau=self.tau,
            payment_rule=self.payment_rule,
            disclosure=self.disclosure,
            disclosure_place=self.disclosure_place,
            proposal_chosen=self.proposal is not None,
        )


def _check_choice(name: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        listed = " or ".join(map(repr, get_args(choices)))
        raise ConfigurationError(f"{name} is {value!r}; choose {listed}.")


_ONE = Size(n=1, most=1, min_ess=0.0, fewest=1)


def _under(child: RunnableConfig, do: Callable[..., _T], *given: Any, **named: Any) -> _T:
    """Do it where whatever a model, scorer or agent calls finds the parent run, and the tag, in its context."""
    with set_config_context(child) as context:
        return context.run(do, *given, **named)


async def _aunder(child: RunnableConfig, doing: Coroutine[Any, Any, _T]) -> _T:
    with set_config_context(child) as context:
        return await asyncio.create_task(doing, context=context)


def _settled(result: AuctionResult) -> AuctionEvent:
    charged = result.charge is not None
    return settled(result.auction_id, result.settlement, sponsored=bool(result.sponsors), charged=charged)


def _replies(drawn: Drawn) -> list[AIMessage]:
    return [candidate.message for candidate in drawn.candidates if candidate.possible]
