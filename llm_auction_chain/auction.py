"""`Auction`: wires model, agents and mechanism. The only place that knows all parts."""

import asyncio
import secrets
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import set_config_context
from langchain_core.utils.uuid import uuid7

from llm_auction_chain.agents import Agent
from llm_auction_chain.candidates import (
    Drawn,
    Plan,
    Proposal,
    SequenceScorer,
    Size,
    Source,
    adraw,
    check_proposal,
    draw,
    hidden,
    make_plan,
)
from llm_auction_chain.errors import AuctionWarning, ConfigurationError, PromptError
from llm_auction_chain.mechanism import PaymentRule, settle
from llm_auction_chain.mechanism.settle import check_payment_rule, check_tau
from llm_auction_chain.result import AuctionResult, matrix_of, metadata_of
from llm_auction_chain.rewards import OnAgentError, Report, acollect, collect

__all__ = ["Auction", "Progress", "ProgressHook", "check_agents", "check_seed"]

Stage = Literal["candidates", "weights", "rewards"]
_SUSPICIOUS = 4  # so many draws that are all one reply are rather one draw, repeated


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an auction has come: counts only, never a text or a report.

    Attributes:
        stage: `candidates` while replies are drawn, `weights` while they are scored under the proposal's components,
            `rewards` while agents are asked.
        done: how many have come in.
        total: how many were asked for.
        tokens_per_second: of all candidates together, while a model that counts draws them; else None.
    """

    stage: Stage
    done: int
    total: int
    tokens_per_second: float | None = None


ProgressHook = Callable[[Progress], None]


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
        proposal: what candidates are drawn from; None is the best that the model and the agents' contexts allow.
        scorer: says how likely replies are, for a model that cannot say it itself.
        min_ess: draws further rounds while the weights are worth fewer draws; None draws one round.
        max_candidates: the most draws of all rounds; None is four rounds.
        native_n: whether providers known to draw many replies in one request are asked to; False asks for one each.

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
        if self.on_agent_error not in get_args(OnAgentError):
            raise ConfigurationError(f"on_agent_error is {self.on_agent_error!r}; choose 'abstain' or 'raise'.")
        if self.proposal is not None:
            check_proposal(self.proposal)
        if self.scorer is not None and not isinstance(self.scorer, SequenceScorer):
            raise ConfigurationError(f"scorer is {self.scorer!r}; give an object with score(prompt, replies).")
        self._size()

    def run(
        self,
        prompt: Sequence[BaseMessage],
        agents: Iterable[Agent],
        *,
        seed: int | None = None,
        config: RunnableConfig | None = None,
        progress: ProgressHook | None = None,
        **kwargs: Any,
    ) -> AuctionResult:
        """Hold one auction.

        Args:
            prompt: the user's messages.
            agents: who bids; none is a legal auction: the reference's own reply.
            seed: replays it; None takes a fresh one, kept in the result.
            config: the parent run's.
            progress: told how far it has come.
            **kwargs: handed to the model.

        Raises:
            PromptError: nothing to reply to.
            ConfigurationError: the agents' names are not unique, or the seed is not a whole number.
            CandidatesError: too few replies.
            RewardError: an agent failed and `on_agent_error` is `raise`.
        """
        bidders, streams, seed = self._open(prompt, agents, seed)
        child = hidden(config)
        plan = self._plan(prompt, bidders, child, streams[0], kwargs)
        drawn = draw(plan, config=child, progress=_stages(progress))
        # whatever a callback calls finds the parent run, and the tag, in its context
        with set_config_context(child) as context:
            reports = context.run(
                collect, bidders, prompt, _replies(drawn), on_agent_error=self.on_agent_error,
                refuse_negative=self.payment_rule == "proportional", config=child,
                progress=_rewards(progress, len(bidders)),
            )  # fmt: skip
        return self._close(prompt, bidders, plan, drawn, reports, streams[1], seed)

    async def arun(
        self,
        prompt: Sequence[BaseMessage],
        agents: Iterable[Agent],
        *,
        seed: int | None = None,
        config: RunnableConfig | None = None,
        progress: ProgressHook | None = None,
        **kwargs: Any,
    ) -> AuctionResult:
        """Do as `run`, awaiting model and agents."""
        bidders, streams, seed = self._open(prompt, agents, seed)
        child = hidden(config)
        plan = self._plan(prompt, bidders, child, streams[0], kwargs)
        drawn = await adraw(plan, config=child, progress=_stages(progress))
        with set_config_context(child) as context:
            asking = acollect(
                bidders, prompt, _replies(drawn), on_agent_error=self.on_agent_error,
                refuse_negative=self.payment_rule == "proportional", config=child,
                progress=_rewards(progress, len(bidders)),
            )  # fmt: skip
            reports = await asyncio.create_task(asking, context=context)
        return self._close(prompt, bidders, plan, drawn, reports, streams[1], seed)

    def _open(
        self, prompt: Sequence[BaseMessage], agents: Iterable[Agent], seed: int | None
    ) -> tuple[tuple[Agent, ...], tuple[int, int], int]:
        if not prompt or _is_blank(prompt[-1]):
            raise PromptError("The prompt is empty; its last message must have content.")
        seed = secrets.randbits(53) if seed is None else check_seed(seed)
        # one stream for the candidates, one for the draw: neither tells anything about the other
        of_candidates, of_draw = (
            int(state) >> 11 for state in np.random.SeedSequence(seed).generate_state(2, np.uint64)
        )
        return check_agents(agents), (of_candidates, of_draw), seed

    def _plan(
        self,
        prompt: Sequence[BaseMessage],
        agents: tuple[Agent, ...],
        config: RunnableConfig,
        seed: int,
        kwargs: dict[str, Any],
    ) -> Plan:
        # without agents one candidate has the very law that M would be drawn from
        return make_plan(
            Source(self.model, config, native_n=self.native_n, kwargs=kwargs),
            scorer=self.scorer,
            proposal=self.proposal,
            prompt=prompt,
            contexts=[agent.context for agent in agents],
            tau=self.tau,
            size=self._size() if agents else Size(n=1, most=1, min_ess=0.0, fewest=1),
            seed=seed,
        )

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

    def _close(
        self,
        prompt: Sequence[BaseMessage],
        agents: tuple[Agent, ...],
        plan: Plan,
        drawn: Drawn,
        reports: Sequence[Report],
        draw_seed: int,
        seed: int,
    ) -> AuctionResult:
        settlement = settle(
            matrix_of(reports, drawn.candidates),
            [candidate.merged_log_weight for candidate in drawn.candidates],
            tau=self.tau,
            payment_rule=self.payment_rule,
            owners=[agent.payer for agent in agents],
            draws=[candidate.draws for candidate in drawn.candidates],
            seed=draw_seed,
        )
        auction_id = str(uuid7())
        noticed = self._warn(plan, drawn)
        metadata = metadata_of(auction_id, agents, reports, plan, drawn, settlement, noticed, seed)
        winner = drawn.candidates[settlement.winner].message
        shown = {
            name: value
            for name, value in winner.response_metadata.items()
            if name != "logprobs" or plan.source.asked_for_tokens or not plan.weighs
        }
        reply = winner.model_copy(
            update={"response_metadata": {**shown, "auction": metadata}, "usage_metadata": drawn.usage}
        )
        return AuctionResult(
            auction_id=auction_id,
            prompt=tuple(prompt),
            candidates=drawn.candidates,
            components=drawn.components,
            agents=agents,
            reports=tuple(reports),
            settlement=settlement,
            reply=reply,
            usage=drawn.usage,
            failures=drawn.causes,
            warnings=noticed,
            seed=seed,
        )

    def _warn(self, plan: Plan, drawn: Drawn) -> tuple[str, ...]:
        noticed = []
        if plan.contexts == "unused" and self.proposal is None:
            noticed.append(
                "The agents' contexts are not used: the model cannot say how likely its replies are. Use "
                "ChatTransformers or ChatVLLM, give a scorer, or proposal=Reference() to say that this is meant."
            )
        draws = sum(candidate.draws for candidate in drawn.candidates)
        if len(drawn.candidates) == 1 and draws >= _SUSPICIOUS:
            noticed.append(
                f"All {draws} draws are the same reply, so no agent can move it. Raise the temperature above 0, take "
                "away the provider's seed, or any cache in front of the model."
            )
        for text in noticed:
            warnings.warn(text, AuctionWarning, stacklevel=2)
        return tuple(noticed)


def check_seed(seed: object) -> int:
    """Return the seed, or raise `ConfigurationError`."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigurationError(f"seed is {seed!r}; it must be a whole number of at least 0.")
    return seed


def check_agents(agents: Iterable[Agent]) -> tuple[Agent, ...]:
    """Return the agents, or raise `ConfigurationError`: something else than agents, or a name twice."""
    try:
        checked = tuple(agents)
    except TypeError as error:
        raise ConfigurationError(f"agents is {agents!r}; give a list of Agent.") from error
    seen: set[str] = set()
    for agent in checked:
        if not isinstance(agent, Agent):
            raise ConfigurationError(f"agents holds {agent!r}; every entry must be an Agent.")
        if agent.name in seen:
            raise ConfigurationError(f"Two agents are called {agent.name!r}; names must be unique within an auction.")
        seen.add(agent.name)
    return checked


def _stages(hook: ProgressHook | None) -> Callable[[Stage, int, int, float | None], None] | None:
    if hook is None:
        return None
    return lambda stage, done, total, rate: hook(Progress(stage=stage, done=done, total=total, tokens_per_second=rate))


def _rewards(hook: ProgressHook | None, total: int) -> Callable[[int], None] | None:
    if hook is None:
        return None
    return lambda done: hook(Progress(stage="rewards", done=done, total=total))


def _is_blank(message: BaseMessage) -> bool:
    """Whether a message says nothing: no word, no picture, no call."""
    parts = [message.content] if isinstance(message.content, str) else message.content
    spoken = [part if isinstance(part, str) else part.get("text", part) for part in parts]
    says = any(part.strip() if isinstance(part, str) else part for part in spoken)
    return not says and not getattr(message, "tool_calls", None) and message.type != "tool"


def _replies(drawn: Drawn) -> list[AIMessage]:
    return [candidate.message for candidate in drawn.candidates]
