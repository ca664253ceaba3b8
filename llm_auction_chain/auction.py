"""`Auction`: wires model, agents and mechanism. The only place that knows all parts."""

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.utils.uuid import uuid7

from llm_auction_chain.agents import Agent
from llm_auction_chain.candidates import Candidate, Drawn, asample, sample
from llm_auction_chain.errors import ConfigurationError, PromptError
from llm_auction_chain.mechanism import PaymentRule, Settlement, settle
from llm_auction_chain.mechanism.settle import check_payment_rule, check_tau
from llm_auction_chain.rewards import OnAgentError, Report, acollect, collect

__all__ = ["Auction", "AuctionResult", "Progress", "ProgressHook", "check_agents"]

_SCHEMA = "llm_auction_chain.auction/1"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an auction has come: counts only, never a text or a report.

    Attributes:
        stage: `candidates` while replies are drawn, `rewards` while agents are asked.
        done: how many have come in.
        total: how many were asked for.
    """

    stage: Literal["candidates", "rewards"]
    done: int
    total: int


ProgressHook = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class AuctionResult:
    """Everything about one auction.

    Attributes:
        auction_id: unique, sorted by time (UUID version 7).
        prompt: the user's messages.
        candidates: the M replies and their log-weights.
        agents: the N agents, in the order of the matrices.
        reports: (N,), each agent's rewards, status and reason. Private values: not in the metadata.
        settlement: law, draw and payments.
        reply: the drawn message, with `response_metadata["auction"]` and the usage of all hidden calls.
        usage: tokens of all hidden calls; None where the model reports none.
        failures: what made model calls fail, if some did.
        seed: gives the same auction again (the same draw, where the model takes no seed).
    """

    auction_id: str
    prompt: tuple[BaseMessage, ...]
    candidates: tuple[Candidate, ...]
    agents: tuple[Agent, ...]
    reports: tuple[Report, ...]
    settlement: Settlement
    reply: AIMessage
    usage: UsageMetadata | None
    failures: tuple[BaseException, ...]
    seed: int

    @property
    def distinct_replies(self) -> int:
        """How many of the candidates differ, in text or tool calls."""
        return _distinct(self.candidates)


@dataclass(frozen=True, kw_only=True)
class Auction:
    """Draw M candidates, ask the agents, settle: the reply follows `pi_ref * exp(sum_i r_i / tau)` as M grows.

    Attributes:
        model: any Runnable chat model.
        n_candidates: M, at least 1.
        tau: weight of the reference model, money per nat, above 0.
        payment_rule: `expected`, `proportional`, `influence` or `pivot`.
        min_candidates: settle on this many survivors where model calls fail.
        on_agent_error: `abstain` (a zero report) or `raise`.

    Raises:
        ConfigurationError: a setting no auction can run with.
    """

    model: Runnable[Any, Any]
    n_candidates: int = 16
    tau: float = 1.0
    payment_rule: PaymentRule = "expected"
    min_candidates: int = 1
    on_agent_error: OnAgentError = "abstain"

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
        total = self._count(bidders)
        drawn = sample(
            self.model, prompt, total, config=config, min_candidates=min(total, self.min_candidates),
            seed=streams[0], progress=_stage(progress, "candidates", total), **kwargs,
        )  # fmt: skip
        reports = collect(
            bidders, prompt, _replies(drawn), on_agent_error=self.on_agent_error,
            refuse_negative=self.payment_rule == "proportional", config=config,
            progress=_stage(progress, "rewards", len(bidders)),
        )  # fmt: skip
        return self._close(prompt, bidders, drawn, reports, streams[1], seed)

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
        total = self._count(bidders)
        drawn = await asample(
            self.model, prompt, total, config=config, min_candidates=min(total, self.min_candidates),
            seed=streams[0], progress=_stage(progress, "candidates", total), **kwargs,
        )  # fmt: skip
        reports = await acollect(
            bidders, prompt, _replies(drawn), on_agent_error=self.on_agent_error,
            refuse_negative=self.payment_rule == "proportional", config=config,
            progress=_stage(progress, "rewards", len(bidders)),
        )  # fmt: skip
        return self._close(prompt, bidders, drawn, reports, streams[1], seed)

    def _open(
        self, prompt: Sequence[BaseMessage], agents: Iterable[Agent], seed: int | None
    ) -> tuple[tuple[Agent, ...], tuple[int, int], int]:
        if not any(message.content for message in prompt):
            raise PromptError("The prompt is empty; give at least one message with content.")
        if seed is None:
            seed = secrets.randbits(53)
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ConfigurationError(f"seed is {seed!r}; it must be a whole number of at least 0.")
        # one stream for the candidates, one for the draw: neither tells anything about the other
        of_candidates, of_draw = (
            int(state) >> 11 for state in np.random.SeedSequence(seed).generate_state(2, np.uint64)
        )
        return check_agents(agents), (of_candidates, of_draw), seed

    def _count(self, agents: tuple[Agent, ...]) -> int:
        """Return M; without agents one candidate has the very law that M would be drawn from."""
        return self.n_candidates if agents else 1

    def _close(
        self,
        prompt: Sequence[BaseMessage],
        agents: tuple[Agent, ...],
        drawn: Drawn,
        reports: Sequence[Report],
        draw_seed: int,
        seed: int,
    ) -> AuctionResult:
        m = len(drawn.candidates)
        settlement = settle(
            np.array([report.rewards for report in reports]).reshape(len(agents), m),
            [candidate.log_weight for candidate in drawn.candidates],
            tau=self.tau,
            payment_rule=self.payment_rule,
            owners=[agent.payer for agent in agents],
            seed=draw_seed,
        )
        auction_id = str(uuid7())
        metadata = _metadata(auction_id, agents, reports, drawn, settlement, seed)
        winner = drawn.candidates[settlement.winner].message
        reply = winner.model_copy(
            update={
                "response_metadata": {**winner.response_metadata, "auction": metadata},
                "usage_metadata": drawn.usage,
            }
        )
        return AuctionResult(
            auction_id=auction_id,
            prompt=tuple(prompt),
            candidates=drawn.candidates,
            agents=agents,
            reports=tuple(reports),
            settlement=settlement,
            reply=reply,
            usage=drawn.usage,
            failures=drawn.causes,
            seed=seed,
        )


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


def _stage(
    hook: ProgressHook | None, stage: Literal["candidates", "rewards"], total: int
) -> Callable[[int], None] | None:
    if hook is None:
        return None
    return lambda done: hook(Progress(stage=stage, done=done, total=total))


def _replies(drawn: Drawn) -> list[AIMessage]:
    return [candidate.message for candidate in drawn.candidates]


def _distinct(candidates: Sequence[Candidate]) -> int:
    return len({(candidate.message.text, repr(candidate.message.tool_calls)) for candidate in candidates})


def _metadata(
    auction_id: str,
    agents: tuple[Agent, ...],
    reports: Sequence[Report],
    drawn: Drawn,
    settlement: Settlement,
    seed: int,
) -> dict[str, Any]:
    """Return the outcome as plain JSON: Python numbers only, finite, and nobody's rewards."""
    diagnostics = settlement.diagnostics
    return {
        "schema": _SCHEMA,
        "auction_id": auction_id,
        "winner": settlement.winner,
        "probabilities": settlement.probabilities.tolist(),
        "payments": [
            {
                "agent": agent.name,
                "owner": agent.payer,
                "amount": float(settlement.payments[i]),
                "expected": float(settlement.expected_payments[i]),
                "contribution": float(settlement.contributions[i]),
            }
            for i, agent in enumerate(agents)
        ],
        "agents": [
            {"agent": agent.name, "status": report.status, "reason": report.reason}
            for agent, report in zip(agents, reports, strict=True)
        ],
        "revenue": settlement.revenue,
        "diagnostics": {
            "candidates": len(drawn.candidates),
            "failed_calls": len(drawn.causes),
            "distinct_replies": _distinct(drawn.candidates),
            "ess_weights": diagnostics.ess_weights,
            "ess_probabilities": diagnostics.ess_probabilities,
            "largest_share": diagnostics.largest_share,
            "k_hat": diagnostics.k_hat,
        },
        "tau": settlement.tau,
        "payment_rule": settlement.payment_rule,
        "seed": seed,
    }
