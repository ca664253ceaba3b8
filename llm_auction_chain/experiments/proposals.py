"""`proposals`: what candidates are best drawn from, for rewards of several kinds and sizes."""

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.messages.ai import UsageMetadata

from llm_auction_chain.candidates.proposals import (
    Condition,
    ContextPrompt,
    ProposalInputs,
    choose_proposal,
    conditions_of,
    log_weights,
    stratify,
)
from llm_auction_chain.descriptions import clean_context, descriptions_of, keywords_of
from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.experiments.config import ExperimentConfig
from llm_auction_chain.experiments.pools import Bench, abilities, draw_conditions
from llm_auction_chain.experiments.questions import Question
from llm_auction_chain.experiments.results import Estimate, Figure, Findings, Series, Table
from llm_auction_chain.experiments.store import Arrays
from llm_auction_chain.experiments.study import Experiment, Study
from llm_auction_chain.mechanism.diagnostics import effective_sample_size
from llm_auction_chain.rewards import EmbeddingReward, MentionReward
from llm_auction_chain.validators import refuse

__all__ = ["EXPERIMENTS"]

Floats = npt.NDArray[np.float64]


class Case(NamedTuple):
    """A family of rewards at one size.

    Attributes:
        family: of `_rewards`.
        scale: what the family's amounts are multiplied by, tau a unit.
        tau: that proposals are made for.
    """

    family: str
    scale: float
    tau: float = 1.0

    @property
    def log_ratios(self) -> Literal["none", "all"]:
        """How many of the agents have log-ratios."""
        return "all" if self.family == "log_ratio" else "none"


CASES: Mapping[str, Case] = {
    "keyword, 1 tau": Case("keywords", 1.0),
    "keyword, 2 tau": Case("keywords", 2.0),
    "keyword, 4 tau": Case("keywords", 4.0),
    "brand, 4 tau": Case("brand", 4.0),
    "grade, 0 to 3 tau": Case("grade", 3.0),
    "log-ratio, tau 1": Case("log_ratio", 1.0),
    "log-ratio, tau 4": Case("log_ratio", 0.25, 4.0),
}
# Words of the descriptions that no sponsor pays for: they are among the commonest tokens of the embedded model.
_COMMON = re.compile(
    "all|and|any|are|can|for|from|have|how|into|its|less|make|more|need|not|one|other|out|that|the|their|them|they|this|"
    "through|time|used|using|what|when|with|you|your"
)
_MOST_MENTIONS = 3  # of an agent's keywords in one reply that are paid
_SUBSETS = 200  # auctions of M draws from one pool
_FEW = 24  # candidates of the reference that the default is compared with
_SIZES = (2, 4, 6, 8, 12, 16, 24, 32)
_DEFAULT, _REFERENCE, _OLD = "default", "reference", "product mixture"
_CHEAP = "keyword, 1 tau"  # a case outside log-ratios, for the proposal whose cost is measured
_TIMED_TOKENS = 48
_ROUNDS = 1  # of draws whose time is measured


@dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """Draws of every condition for one question, under every condition.

    Attributes:
        log_probs: (C, R), nats, the reference first.
        sources: (R,), the condition of each draw.
        rewards: (N, R) by family, money at value 1.
        shares: of the conditions (C,), by case and proposal.
        seconds: (2,), that drawing as many replies took from the reference and from the default.
        length: mean tokens of a reply of the reference.
    """

    log_probs: Floats
    sources: npt.NDArray[np.int64]
    rewards: Mapping[str, Floats]
    shares: Mapping[tuple[str, str], Floats]
    seconds: Floats
    length: float

    def statistics(self, case: str, proposal: str, m: int) -> Floats:
        """Return E[G_M] / tau (nats), the mean ESS of the weights as a share of M, and their spread (nats).

        The mean is over subsets of the draws without replacement, each M independent draws in the proposal's shares,
        so it is unbiased. Every proposal gets subsets of the same draws.
        """
        counts = np.array(stratify(self.shares[case, proposal].tolist(), m))
        drawn = np.flatnonzero(counts)
        family, scale, _ = CASES[case]
        worth = scale * self.rewards[family].sum(axis=0)
        rng, figures = np.random.default_rng(0), []
        places = [np.flatnonzero(self.sources == condition) for condition in drawn]
        for _ in range(_SUBSETS):
            chosen = np.concatenate(
                [rng.choice(own, count, replace=False) for own, count in zip(places, counts[drawn], strict=True)]
            )
            weights = log_weights(self.log_probs[:, chosen], counts)
            normaliser = np.logaddexp.reduce(weights + worth[chosen]) - math.log(m)
            figures.append((normaliser, effective_sample_size(weights) / m, float(np.std(weights))))
        return np.asarray(np.mean(figures, axis=0))


def measure(bench: Bench, question: Question, seed: int) -> Draws:
    """Return the draws for a question, from the store where it holds them.

    Raises:
        ConfigurationError: the model does not expose its logits, or a proposal is unknown or missing.
        CandidatesError: a model call failed.
    """
    source, logits, _ = abilities(bench)
    if not logits:
        raise ConfigurationError("The experiment 'proposals' needs a model that exposes its logits. Use a local model.")
    if not {_REFERENCE, _DEFAULT} <= {*bench.config.proposals}:
        raise refuse("proposals", f"a list with {_REFERENCE!r} and {_DEFAULT!r}", bench.config.proposals)
    if bench.config.draws < _SIZES[0]:
        raise refuse("draws", f"at least {_SIZES[0]}", bench.config.draws)
    cases = {name: case for name, case in CASES.items() if _can_pay(bench, case)}
    contexts = descriptions_of(sponsor.context for sponsor in question.sponsors)
    inputs = ProposalInputs(
        prompt=(HumanMessage(question.text),),
        descriptions=tuple(contexts),
        keywords=tuple(sorted(map(keywords_of, contexts))),
        seed=seed,
    )
    parts = {
        (name, proposal): _parts(bench, proposal, replace(inputs, tau=case.tau, log_ratios=case.log_ratios))
        for (name, case), proposal in product(cases.items(), bench.config.proposals)
    }
    conditions: list[Condition] = []
    places = {
        key: [_place(condition, conditions) for condition in drawn_from] for key, (drawn_from, _) in parts.items()
    }
    drawn = {place for key, own in places.items() for place, share in zip(own, parts[key][1], strict=True) if share}
    own: list[int] = []
    if any(case.family == "log_ratio" for case in cases.values()):
        alone = [replace(inputs, descriptions=(clean_context(sponsor.context),)) for sponsor in question.sponsors]
        own = [_place(ContextPrompt().condition(one), conditions) for one in alone]
    counts = np.array([bench.config.draws if place in drawn else 0 for place in range(len(conditions))])
    depends_on = {
        "measures": "draws of components",
        "model": bench.identity,
        "max_tokens": bench.config.max_tokens,
        "conditions": [repr(condition) for condition in conditions],
        "counts": counts.tolist(),
        "seed": seed,
    }
    arrays = bench.store.get(depends_on, lambda: draw_conditions(source, source.scorer, conditions, counts, seed))
    sources = np.repeat(np.arange(len(counts)), counts)
    shares = {}
    for key, (_, fractions) in parts.items():
        shares[key] = np.zeros(len(conditions))
        np.add.at(shares[key], places[key], fractions)
    timed = [[conditions[place] for place in places[_CHEAP, name]] for name in (_REFERENCE, _DEFAULT)]
    seconds = bench.store.get(
        {**depends_on, "measures": "seconds of draws", "conditions": [list(map(repr, one)) for one in timed]},
        partial(_time, bench, [shares[_CHEAP, name][places[_CHEAP, name]] for name in (_REFERENCE, _DEFAULT)], timed),
    )
    return Draws(
        log_probs=arrays["log_probs"],
        sources=sources,
        rewards=_rewards(bench, question, arrays, own, cases),
        shares=shares,
        seconds=seconds["seconds"],
        length=float(np.mean(arrays["tokens"][sources == 0])),
    )


def _parts(bench: Bench, name: str, inputs: ProposalInputs) -> tuple[list[Condition], list[float]]:
    if name not in bench.proposals:
        raise ConfigurationError(f"There is no proposal {name!r}. There are {', '.join(bench.proposals)}.")
    proposal = bench.proposals[name]
    return conditions_of(choose_proposal(inputs, can="everything")[0] if proposal is None else proposal, inputs)


def _place(condition: Condition, conditions: list[Condition]) -> int:
    """Return the place of a condition among others, at whose end it is put where it is new."""
    for place, known in enumerate(conditions):
        if known.same_law(condition):
            return place
    conditions.append(condition)
    return len(conditions) - 1


def _can_pay(bench: Bench, case: Case) -> bool:
    if case.family == "grade":
        return bench.embeddings is not None
    return case.family != "log_ratio" or "log_ratio" in bench.config.families


def _rewards(
    bench: Bench, question: Question, arrays: Arrays, own: Sequence[int], cases: Mapping[str, Case]
) -> dict[str, Floats]:
    """Return what each draw is worth to each sponsor at value 1, (N, R), by family."""
    replies = [AIMessage(str(text)) for text in arrays["texts"]]
    families = {case.family for case in cases.values()}
    rewards: dict[str, Floats] = {}
    for family in ("keywords", "brand", "grade"):
        if family in families:
            payers = [_reward(bench, family, sponsor.name, sponsor.context) for sponsor in question.sponsors]
            rewards[family] = np.array([payer.score([], replies) for payer in payers])
    if "log_ratio" in families:
        rewards["log_ratio"] = np.asarray(arrays["log_probs"][list(own)] - arrays["log_probs"][0])
    return rewards


def _reward(bench: Bench, family: str, name: str, context: str) -> Any:
    if family == "grade" and bench.embeddings is not None:
        return EmbeddingReward(bench.embeddings, context)
    if family == "brand":
        return MentionReward([name], value=1.0, at_most=1)
    return MentionReward(keyword_phrases(name, context), value=1.0, at_most=_MOST_MENTIONS)


def keyword_phrases(name: str, context: str) -> list[str]:
    """Return the words of a sponsor's description that it pays for: not the commonest, and not its name.

    >>> keyword_phrases("FretHouse", "FretHouse sells guitars for all.")
    ['guitars', 'sells']
    """
    words = keywords_of(context).words
    return [word for word in words if word != name and not _COMMON.fullmatch(word.casefold())]


def _time(
    bench: Bench, shares: Sequence[Floats], conditions: Sequence[Sequence[Condition]]
) -> tuple[Arrays, UsageMetadata | None]:
    """Return the seconds of drawing from each proposal. They take turns, each going first as often as the other."""
    seconds = np.zeros(len(conditions))
    counts = [np.array(stratify(own.tolist(), bench.config.draws)) for own in shares]
    for turn in range(-1, 2 * _ROUNDS):  # the first does not count
        for place in range(len(conditions))[:: -1 if turn % 2 else 1]:
            source, _, _ = abilities(bench, max_tokens=_TIMED_TOKENS)
            start = time.perf_counter()
            draw_conditions(source, source.scorer, conditions[place], counts[place], turn + 1)
            seconds[place] += (time.perf_counter() - start) * (turn >= 0)
    return {"seconds": seconds}, None


def analyse(study: Study[Draws]) -> Findings:
    """Return what each proposal gains over the reference, by case and M, with its effective sample size and cost."""
    config, units = study.config, [unit for row in study.units for unit in row]
    cases = [case for case in CASES if all((case, _REFERENCE) in unit.shares for unit in units)]
    sizes = [m for m in _SIZES if m <= config.draws]
    most = sizes[-1]
    columns = sorted({m for m in (8, 16) if m < most} | {most})

    def gains(case: str, name: str, m: int, other: str = _REFERENCE) -> Estimate:
        return study.mean(lambda unit: unit.statistics(case, name, m)[0] - unit.statistics(case, other, m)[0])

    def figures(case: str, name: str, which: int) -> Estimate:
        return study.mean(lambda unit: unit.statistics(case, name, most)[which])

    names = config.proposals
    over = {(case, name, m): gains(case, name, m) for case in cases for name in names for m in columns}
    kept = {(case, name): figures(case, name, 1) for case in cases for name in names}
    spread = {name: figures(_CHEAP, name, 2) for name in names}
    needed = _needed(study, sizes)
    cost = study.ratio(lambda unit: unit.seconds[1], lambda unit: unit.seconds[0])
    plain = [case for case in cases if CASES[case].family != "log_ratio"]
    ratios = {
        "nats_under_reference_worst_family": max(-over[case, _DEFAULT, most].value for case in cases),
        "nats_over_reference_4tau": over["keyword, 4 tau", _DEFAULT, most].value,
        "ess_share_worst": min(kept[case, _DEFAULT].value for case in cases if case != "log-ratio, tau 1"),
        "candidates_vs_reference_4tau": needed / _FEW,
        "cost_vs_reference": cost.value,
    }
    if "log-ratio, tau 1" in cases and _OLD in names:
        ratios["nats_under_old_default_log_ratio"] = -gains("log-ratio, tau 1", _DEFAULT, most, _OLD).value
    length = study.mean(lambda unit: unit.length)
    return Findings(
        tables=(
            *(_gains_table(case, names, over, kept, most) for case in cases),
            Table(
                title=f"Weights outside log-ratios, M = {most}",
                columns=("proposal", "spread of log-weights (nats)", "ESS of weights / M"),
                rows=tuple((name, spread[name], kept[_CHEAP, name]) for name in names),
            ),
        ),
        figures=(
            Figure(
                name="proposals_gain",
                title=f"Gain over the reference, M = {most}, {config.max_tokens} tokens",
                x_label="nats",
                y_label="",
                kind="bars",
                series=tuple(
                    Series(label=name, x=plain, y=[over[case, name, most] for case in plain])
                    for name in names
                    if name != _REFERENCE
                ),
            ),
        ),
        ratios=ratios,
        notes=(
            f"Replies of the reference have {length} tokens, at most {config.max_tokens}.",
            f"Drawing from the default takes {cost} of the reference's time (up to {_TIMED_TOKENS} tokens, in turns).",
            f"At 4 tau a keyword, {needed:g} candidates of the default reach what the reference reaches with {_FEW}.",
        ),
    )


def _needed(study: Study[Draws], sizes: Sequence[int]) -> float:
    """Return the smallest M of the default that is not below the reference's E[G] at 24 candidates; inf if none is."""
    case = "keyword, 4 tau"

    def reached(name: str, m: int) -> float:
        return study.mean(lambda unit: unit.statistics(case, name, m)[0]).value

    goal = reached(_REFERENCE, min(_FEW, sizes[-1]))
    return next((m for m in sizes if reached(_DEFAULT, m) >= goal), math.inf)


def _gains_table(
    case: str,
    names: Sequence[str],
    over: Mapping[tuple[str, str, int], Estimate],
    kept: Mapping[tuple[str, str], Estimate],
    most: int,
) -> Table:
    sizes = sorted({m for _, _, m in over})
    return Table(
        title=f"{case}: E[G_M] / tau over the reference at the same M, paired over questions",
        columns=("proposal", *(f"M = {m} (nats)" for m in sizes), f"ESS / M at {most}"),
        rows=tuple((name, *(over[case, name, m] for m in sizes), kept[case, name]) for name in names),
    )


EXPERIMENTS = {
    "proposals": Experiment(
        claim="A default that follows from what is public gains where rewards are high, at next to no cost elsewhere.",
        config=ExperimentConfig(
            experiment="proposals",
            n_questions=20,
            proposals=(
                "reference", "context prompt", "product, strength 1/4", "product, strength 1", "tilt 1",
                "tilt 2 until said", "tilt 3 until said", "product mixture", "default",
            ),
        ),
        quick={
            "n_questions": 2, "draws": 8, "max_tokens": 12,
            "proposals": ("reference", "tilt 2 until said", "default"), "families": ("mentions",),
        },
        analyse=analyse,
        measure=measure,
    )
}  # fmt: skip
