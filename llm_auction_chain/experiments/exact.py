"""Solvable beds: chains of tokens whose replies are all enumerated, so that pi*, J* and distributions are known."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement, product

import numpy as np
import numpy.typing as npt
from langchain_core.messages import HumanMessage

from llm_auction_chain.candidates import ContextPrompt
from llm_auction_chain.candidates.proposals import log_weights
from llm_auction_chain.experiments.baselines import CONTEXT_PROMPT, REFERENCE, Candidates, Rule
from llm_auction_chain.testing.markov import MarkovChatModel
from llm_auction_chain.validators import number

__all__ = ["ExactBed", "Point", "SmallBed", "divergence"]

Floats = npt.NDArray[np.float64]
_BATCHES = 40
_LENGTH = 7
_MOST_MENTIONS = 3


@dataclass(frozen=True, kw_only=True)
class Point:
    """What the auctions of one proposal and one M gave.

    Attributes:
        distance: total variation between the distributions of the returned reply's reward vector and of that under pi*.
        noise: how large `distance` would be from Monte Carlo alone: half the distance between two half-samples.
        log_probability: mean `log pi*(reply)` of the returned reply, nats.
        welfare: mean sum of the rewards of the returned reply, money.
        gap: `(J* - E[G_M]) / tau`, nats.
        divergence: KL between the same distributions as `distance`, nats, bias-corrected by the jackknife.
        slack: gap - divergence, bias-corrected in the same way, and its standard error; the bound says it is above 0.
        ess: mean effective sample size of the weights.
    """

    distance: float
    noise: float
    log_probability: float
    welfare: float
    gap: float
    divergence: float
    slack: tuple[float, float]
    ess: float


@dataclass(frozen=True, kw_only=True)
class ExactBed:
    """Replies of six tokens and length seven, all 279,936 of them; tau is 1.

    Two tokens are rare (5 %). The context prompt raises the logits of both. Two agents pay for each token of their own
    kind, at most three times.

    Attributes:
        log_probs: (2, Y), under the reference and the context prompt, nats.
        total: (Y,), sum of the rewards, money.
        kinds: (Y,), number of the reply's reward vector.
    """

    log_probs: Floats
    total: Floats
    kinds: npt.NDArray[np.intp]

    @classmethod
    def make(cls, *, tilt: float = 2.0, value: float = 1.5) -> "ExactBed":
        """Return the bed.

        Args:
            tilt: nats that the context prompt adds to the logits of the agents' tokens.
            value: money per token.
        """
        number("tilt", tilt)
        start = np.array([0.3, 0.25, 0.2, 0.15, 0.05, 0.05])
        rows = np.random.default_rng(0).dirichlet(start * 20, size=6) + 1e-3
        model = MarkovChatModel(
            vocabulary="abcdef",
            start=tuple(start.tolist()),
            transition=tuple(map(tuple, (rows / rows.sum(axis=1, keepdims=True)).tolist())),
            length=_LENGTH,
            tilts={"Ellis": (0, 0, 0, 0, tilt, 0), "Farrow": (0, 0, 0, 0, 0, tilt)},
        )
        tokens = np.array(list(product(range(6), repeat=_LENGTH)))
        question = (HumanMessage("Speak"),)
        log_probs = []
        for prompt in (question, ContextPrompt().describe(question, ["Ellis", "Farrow"], 0)):
            first, following = model.log_probabilities([prompt], [1.0])
            log_probs.append(first[tokens[:, 0]] + following[tokens[:, :-1], tokens[:, 1:]].sum(axis=1))
        mentions = np.minimum(np.stack([(tokens == token).sum(axis=1) for token in (4, 5)]), _MOST_MENTIONS)
        _, kinds = np.unique(mentions, axis=1, return_inverse=True)
        return cls(log_probs=np.array(log_probs), total=value * mentions.sum(axis=0), kinds=kinds.ravel())

    @cached_property
    def best(self) -> float:
        """J* / tau: the regularised welfare of the optimally fine-tuned model, nats."""
        return float(np.logaddexp.reduce(self.log_probs[0] + self.total))

    @cached_property
    def log_optimum(self) -> Floats:
        """(Y,), log pi* of every reply, nats."""
        return np.asarray(self.log_probs[0] + self.total - self.best)

    @cached_property
    def optimum(self) -> Floats:
        """(K,), the distribution of the reward vector under pi*."""
        return np.bincount(self.kinds, np.exp(self.log_optimum)).astype(np.float64)

    def under_optimum(self, values: Floats) -> float:
        """Return the mean of values (Y,) under pi*: what an auction approaches."""
        return float(np.exp(self.log_optimum) @ values)

    def simulate(self, counts: Sequence[int], *, auctions: int, seed: int) -> Point:
        """Hold auctions whose candidates come from the reference and the context prompt.

        Args:
            counts: (2,), candidates from each.
            auctions: how many, a multiple of 40.
            seed: of the draws.
        """
        rng = np.random.default_rng(seed)
        weights = log_weights(self.log_probs, counts)
        cumulative = np.cumsum(np.exp(self.log_probs), axis=1)
        returned = np.zeros((_BATCHES, len(self.optimum)))
        normaliser, chance, welfare, ess = np.zeros((4, _BATCHES))
        for batch in range(_BATCHES):
            drawn = np.concatenate(
                [
                    np.searchsorted(cumulative[c], rng.random((auctions // _BATCHES, count)) * cumulative[c, -1])
                    for c, count in enumerate(counts)
                ],
                axis=1,
            )
            lw = weights[drawn]
            scores = lw + self.total[drawn]
            log_sum = np.logaddexp.reduce(scores, axis=1, keepdims=True)
            p = np.exp(scores - log_sum)
            returned[batch] = np.bincount(self.kinds[drawn].ravel(), p.ravel(), len(self.optimum)) / len(p)
            normaliser[batch] = log_sum.mean() - math.log(sum(counts))
            chance[batch], welfare[batch] = (
                (p * values[drawn]).sum(axis=1).mean() for values in (self.log_optimum, self.total)
            )
            shifted = np.exp(lw - lw.max(axis=1, keepdims=True))
            ess[batch] = (shifted.sum(axis=1) ** 2 / (shifted**2).sum(axis=1)).mean()
        law, left_out = returned.mean(axis=0), _without_one(returned)
        distances = np.array([divergence(each, self.optimum) for each in left_out])
        gap, gaps = self.best - normaliser.mean(), self.best - _without_one(normaliser)
        return Point(
            distance=_variation(law, self.optimum),
            noise=_variation(returned[::2].mean(axis=0), returned[1::2].mean(axis=0)) / 2,
            log_probability=float(chance.mean()),
            welfare=float(welfare.mean()),
            gap=float(gap),
            divergence=_jackknife(distances, divergence(law, self.optimum))[0],
            slack=_jackknife(gaps - distances, gap - divergence(law, self.optimum)),
            ess=float(ess.mean()),
        )


@dataclass(frozen=True, kw_only=True)
class SmallBed:
    """A bed so small that every set of candidates is enumerated: nine replies, two agents with policies of their own.

    Attributes:
        laws: (Y,) by source, as in `Candidates.sources`: what the model would reply to each prompt.
        rewards: (2, Y), money.
    """

    laws: Mapping[int, Floats]
    rewards: Floats

    @classmethod
    def make(cls, *, tilt: float = 1.5, value: float = 1.0) -> "SmallBed":
        """Return the bed. A description adds `tilt` nats to the agent's token, which it pays `value` money for."""
        model = MarkovChatModel(tilts={"Ellis": (0, tilt, 0), "Farrow": (0, 0, tilt)})
        question = (HumanMessage("Speak"),)
        described = {REFERENCE: (), CONTEXT_PROMPT: ("Ellis", "Farrow"), 0: ("Ellis",), 1: ("Farrow",)}
        prompts = {
            k: ContextPrompt().describe(question, names, 0) if names else question for k, names in described.items()
        }
        laws = {source: np.exp(list(model.enumerate([prompt]).values())) for source, prompt in prompts.items()}
        words = list(model.enumerate())
        return cls(laws=laws, rewards=value * np.array([[word.count(letter) for word in words] for letter in "bc"]))

    def hold(self, rule: Rule, counts: Mapping[int, int]) -> tuple[Floats, float]:
        """Return the exact distribution (Y,) of the reply under a rule, and the exact revenue, money.

        Args:
            rule: what chooses and charges.
            counts: candidates from each source.
        """
        sources = np.repeat(list(counts), list(counts.values()))
        mixture = sum(count * self.laws[source] for source, count in counts.items()) / len(sources)
        weights = np.log(self.laws[REFERENCE]) - np.log(mixture)
        returned, revenue = np.zeros(len(weights)), 0.0
        of_sources = [
            [(drawn, _chance(drawn, self.laws[source])) for drawn in _multisets(len(weights), count)]
            for source, count in counts.items()
        ]
        for parts in product(*of_sources):
            drawn = np.concatenate([part for part, _ in parts])
            chance = math.prod(each for _, each in parts)
            one = Candidates(
                log_weights=weights[drawn],
                rewards=self.rewards[:, drawn],
                log_reference=np.log(self.laws[REFERENCE][drawn]),
                sources=sources,
            )
            outcome = rule(one, one.rewards)
            np.add.at(returned, drawn, chance * outcome.probabilities)
            revenue += chance * outcome.revenue()
        return returned, revenue


def _multisets(n: int, count: int) -> list[npt.NDArray[np.intp]]:
    return [np.array(drawn) for drawn in combinations_with_replacement(range(n), count)]


def _chance(drawn: npt.NDArray[np.intp], law: Floats) -> float:
    """Return how likely independent draws are this multiset."""
    ways = math.factorial(len(drawn)) / math.prod(math.factorial(k) for k in np.bincount(drawn).tolist())
    return ways * float(np.prod(law[drawn]))


def divergence(p: Floats, q: Floats) -> float:
    """Return `KL(p || q)`, nats.

    >>> round(divergence(np.array([1.0, 0.0]), np.array([0.5, 0.5])), 3)
    0.693
    """
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / q[seen])).sum())


def _variation(p: Floats, q: Floats) -> float:
    return float(np.abs(p - q).sum() / 2)


def _without_one(batches: Floats) -> Floats:
    """Return the means without each batch in turn."""
    return np.asarray((batches.sum(axis=0) - batches) / (len(batches) - 1))


def _jackknife(left_out: Floats, whole: float) -> tuple[float, float]:
    """Return the bias-corrected estimate and its standard error."""
    n = len(left_out)
    return float(n * whole - (n - 1) * left_out.mean()), float(math.sqrt((n - 1) * left_out.var()))
