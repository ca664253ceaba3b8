"""How soon is the returned reply's law right? By enumeration on a solvable model, by E[G_M] on the embedded model."""

import argparse
import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations_with_replacement, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import yaml
from front import Options, benchmark
from langchain_core.messages import AIMessage, HumanMessage

from llm_auction_chain.candidates.proposals import (
    Component,
    Condition,
    ContextProduct,
    ContextPrompt,
    DefensiveMixture,
    Proposal,
    Reference,
    conditions_of,
    default_proposal,
    log_weights,
    stratify,
)
from llm_auction_chain.descriptions import descriptions_of
from llm_auction_chain.mechanism import settle
from llm_auction_chain.models.local.chat_model import ChatTransformers
from llm_auction_chain.rewards import MentionReward
from llm_auction_chain.testing.markov import MarkovChatModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]

# Published for P = (.5, .3, .15, .05), r = (0, .5, 1, 2), tau = 1 and M = 1, 2, 4, 8, 16: KL(law || pi*), nats.
PUBLISHED = {1: 0.172002, 2: 0.080810, 4: 0.032447, 8: 0.010859, 16: 0.003139}

QUESTIONS = Path(__file__).with_name("convergence_questions.yaml")
PICTURES = Path(__file__).parent.parent / "docs" / "img"
TOKENS, DRAWS = 48, 32
QUICK_QUESTIONS, QUICK_TOKENS, QUICK_DRAWS = 2, 24, 8
FAMILIES = {"topical, tau 1": ("topical", 1.0), "log-ratio, tau 1": ("ratio", 1.0), "log-ratio, tau 4": ("ratio", 4.0)}
SINGLES: dict[str, Component] = {
    "reference": Reference(),
    "context prompt": ContextPrompt(),
    "product, beta 1": ContextProduct(1.0),
    "product, beta 1/4": ContextProduct(0.25),
    "blend, a 1/4": ContextProduct(0.25, joint=True),
}


def mixture(reference: float, context: float, weak: float, natural: float) -> DefensiveMixture:
    """Return a mixture of reference, context prompt, product of strength 1/4 and product of strength 1/tau."""
    parts: dict[Proposal, float] = {
        Reference(): reference,
        ContextPrompt(): context,
        ContextProduct(0.25): weak,
        ContextProduct(): natural,
    }
    return DefensiveMixture([(part, share) for part, share in parts.items() if share])


MIXTURES: dict[str, Proposal] = {
    f"{r:g} / {c:g} / {w:g} / {n:g}": mixture(r, c, w, n)
    for r, c, w, n in (
        (0.05, 0, 0, 0.95),
        (0.1, 0, 0, 0.9),
        (0.15, 0, 0, 0.85),
        (0.2, 0, 0, 0.8),
        (0.3, 0, 0, 0.7),
        (0.4, 0, 0, 0.6),
        (0.15, 0.05, 0.05, 0.75),
        (0.1, 0, 0.1, 0.8),
        (0.1, 0.1, 0, 0.8),
        (0.25, 0.125, 0.125, 0.5),
        (0.4, 0.1, 0.1, 0.4),
        (0.5, 0.5, 0, 0),
    )
}


@dataclass(frozen=True)
class Solvable:
    """A chain of six tokens and length seven, all 279,936 replies enumerated.

    Two tokens are rare (5%). The context prompt raises both logits by `tilt`. Two agents pay `value` per token of their
    own kind, at most three times; tau is 1.

    Attributes:
        log_probs: (2, Y), under the reference and the context prompt.
        total: (Y,), sum of the rewards.
        kinds: (Y,), number of the reply's reward vector.
    """

    log_probs: Floats
    total: Floats
    kinds: npt.NDArray[np.intp]

    @classmethod
    def make(cls, *, tilt: float, value: float = 1.5) -> "Solvable":
        """Return the model for a context prompt of this strength."""
        start = np.array([0.3, 0.25, 0.2, 0.15, 0.05, 0.05])
        rows = np.random.default_rng(0).dirichlet(start * 20, size=6) + 1e-3
        model = MarkovChatModel(
            vocabulary="abcdef",
            start=tuple(start.tolist()),
            transition=tuple(map(tuple, (rows / rows.sum(axis=1, keepdims=True)).tolist())),
            length=7,
            tilts={"Ellis": (0, 0, 0, 0, tilt, 0), "Farrow": (0, 0, 0, 0, 0, tilt)},
        )
        tokens = np.array(list(product(range(6), repeat=7)))
        prompts = [(HumanMessage("Speak"),), ContextPrompt().describe([HumanMessage("Speak")], ["Ellis", "Farrow"], 0)]
        log_probs = []
        for prompt in prompts:
            first, following = model.log_probabilities([prompt], [1.0])
            log_probs.append(first[tokens[:, 0]] + following[tokens[:, :-1], tokens[:, 1:]].sum(axis=1))
        mentions = np.minimum(np.stack([(tokens == token).sum(axis=1) for token in (4, 5)]), 3)
        _, kinds = np.unique(mentions, axis=1, return_inverse=True)
        return cls(log_probs=np.array(log_probs), total=value * mentions.sum(axis=0), kinds=kinds.ravel())

    @cached_property
    def optimum(self) -> tuple[float, Floats, float]:
        """Return J*, the law of the reward vector under pi*, and the welfare under pi*."""
        scores = self.log_probs[0] + self.total
        best = float(np.logaddexp.reduce(scores))
        law = np.exp(scores - best)
        return best, np.asarray(np.bincount(self.kinds, law), dtype=np.float64), float(law @ self.total)


@dataclass(frozen=True)
class Point:
    """What the auctions of one proposal and one M gave; batches are equal parts of the auctions.

    Attributes:
        distance: total variation between the law of the returned reply's reward vector and that under pi*.
        noise: how large `distance` would be from Monte Carlo alone: half the distance between the two half-samples.
        welfare: E[sum of rewards] of the returned reply.
        gap: J* - E[G_M], nats.
        divergence: KL between the same laws as `distance`, bias-corrected by the jackknife.
        slack: gap - divergence, from the jackknife, and its standard error.
        ess: mean effective sample size of the weights.
    """

    distance: float
    noise: float
    welfare: float
    gap: float
    divergence: float
    slack: tuple[float, float]
    ess: float


def simulate(model: Solvable, counts: Sequence[int], auctions: int, seed: int, batches: int = 40) -> Point:
    """Run auctions whose candidates come from reference and context prompt in fixed counts."""
    rng = np.random.default_rng(seed)
    best, target, _ = model.optimum
    weights = log_weights(model.log_probs, counts)
    law = np.zeros((batches, len(target)))
    normaliser, welfare, ess = np.zeros((3, batches))
    cumulative = np.cumsum(np.exp(model.log_probs), axis=1)
    for batch in range(batches):
        drawn = np.concatenate(
            [
                np.searchsorted(cumulative[c], rng.random((auctions // batches, count)) * cumulative[c, -1])
                for c, count in enumerate(counts)
            ],
            axis=1,
        )
        lw = weights[drawn]
        scores = lw + model.total[drawn]
        log_sum = np.logaddexp.reduce(scores, axis=1, keepdims=True)
        p = np.exp(scores - log_sum)
        law[batch] = np.bincount(model.kinds[drawn].ravel(), p.ravel(), len(target)) / len(p)
        normaliser[batch] = log_sum.mean() - math.log(sum(counts))
        welfare[batch] = (p * model.total[drawn]).sum(axis=1).mean()
        shifted = np.exp(lw - lw.max(axis=1, keepdims=True))
        ess[batch] = (shifted.sum(axis=1) ** 2 / (shifted**2).sum(axis=1)).mean()
    kl, _ = jackknife(
        np.array([divergence(each, target) for each in without_one(law)]), divergence(law.mean(0), target)
    )
    slack = jackknife(
        np.array(
            [best - g - divergence(p, target) for g, p in zip(without_one(normaliser), without_one(law), strict=True)]
        ),
        best - normaliser.mean() - divergence(law.mean(0), target),
    )
    return Point(
        distance=variation(law.mean(0), target),
        noise=variation(law[::2].mean(0), law[1::2].mean(0)) / 2,
        welfare=float(welfare.mean()),
        gap=float(best - normaliser.mean()),
        divergence=kl,
        slack=slack,
        ess=float(ess.mean()),
    )


def variation(p: Floats, q: Floats) -> float:
    """Return the total variation between two laws."""
    return float(abs(p - q).sum() / 2)


def divergence(p: Floats, q: Floats) -> float:
    """Return KL(p || q), nats."""
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / q[seen])).sum())


def without_one(batches: Floats) -> Floats:
    """Return the means without each batch in turn."""
    return np.asarray((batches.sum(axis=0) - batches) / (len(batches) - 1))


def jackknife(left_out: Floats, whole: float) -> tuple[float, float]:
    """Return the bias-corrected estimate and its standard error."""
    n = len(left_out)
    return float(n * whole - (n - 1) * left_out.mean()), float(math.sqrt((n - 1) * left_out.var()))


def soft_best_of_n() -> float:
    """Print KL(law || pi*) by enumeration of the counts, settled by the library; return the largest error."""
    reference, rewards = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.0, 0.5, 1.0, 2.0])
    target = reference * np.exp(rewards) / (reference @ np.exp(rewards))
    worst = 0.0
    print("Soft best-of-n, by enumeration: KL(law || pi*)\n   M   published    settled")
    for m, published in PUBLISHED.items():
        law = np.zeros(4)
        for drawn in combinations_with_replacement(range(4), m):
            counts = np.bincount(drawn, minlength=4)
            ways = math.lgamma(m + 1) - sum(math.lgamma(k + 1) for k in counts)
            p = settle([rewards[list(drawn)]], tau=1.0, seed=0).probabilities
            law += math.exp(ways + float(counts @ np.log(reference))) * np.bincount(drawn, weights=p, minlength=4)
        print(f"{m:4d} {published:11.6f} {divergence(law, target):10.6f}")
        worst = max(worst, abs(divergence(law, target) - published))
    return worst


SOLVABLE_SHARES = {"reference": (1, 0), "context prompt": (0, 1), "1/4 + 3/4": (0.25, 0.75)}


def solvable(auctions: int, sizes: Sequence[int]) -> dict[str, dict[int, Point]]:
    """Print and return the curves of reference, context prompt and their mixture."""
    model = Solvable.make(tilt=2.0)
    best, _, welfare = model.optimum
    print(f"\nSolvable model, {auctions} auctions: J* = {best:.4f} nats, welfare under pi* = {welfare:.4f}")
    print("proposal            M      TV   noise  welfare  J*-E[G]      KL   slack  (se)     ESS")
    curves: dict[str, dict[int, Point]] = {}
    for k, (name, shares) in enumerate(SOLVABLE_SHARES.items()):
        curves[name] = {}
        for m in sizes:
            counts = [m * share for share in shares] if 0 in shares else stratify(shares, m)
            point = simulate(model, [int(count) for count in counts], auctions, 1000 * k + m)
            curves[name][m] = point
            print(
                f"{name:16s} {m:4d}  {point.distance:.4f}  {point.noise:.4f}   {point.welfare:.4f}   {point.gap:.4f}"
                f"  {point.divergence:6.4f}  {point.slack[0]:6.4f} ({point.slack[1]:.4f}) {point.ess:6.1f}"
            )
        clear = [m for m in sizes if curves[name][m].distance > 3 * curves[name][m].noise and m >= 4]  # noqa: PLR2004
        if len(clear) > 1:
            slope = np.polyfit(np.log(clear), np.log([curves[name][m].distance for m in clear]), 1)[0]
            print(f"{name:16s} slope of log TV against log M, M = {clear[0]} to {clear[-1]}: {slope:.2f}")
    points = [point for curve in curves.values() for point in curve.values()]
    broken = sum(point.slack[0] + 3 * point.slack[1] < 0 for point in points)
    print(f"KL <= (J* - E[G_M]) / tau: broken beyond three standard errors in {broken} of {len(points)}")
    return curves


def tilts(auctions: int) -> None:
    """Print the same comparison for context prompts of other strengths."""
    print(f"\nSolvable model, M = 16: TV by the context prompt's strength, {auctions} auctions")
    print("tilt   reference   context   1/4 + 3/4   to context   to reference")
    for tilt in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0):
        model = Solvable.make(tilt=tilt)
        tv = [simulate(model, counts, auctions, 7).distance for counts in ([16, 0], [0, 16], [4, 12])]
        print(f"{tilt:4.1f} {tv[0]:11.4f} {tv[1]:9.4f} {tv[2]:11.4f} {tv[2] / tv[1]:12.2f} {tv[2] / tv[0]:14.2f}")


@dataclass(frozen=True)
class Pool:
    """Draws of every component for one question, scored under all of them once.

    Attributes:
        names: (C,), conditions.
        log_probs: (C, C, R), nats; [c, d, r] is draw r of component d under condition c.
        ratio: (N, C, R), `log pi_i - log pi_ref`, nats.
        sampled: (C, R), what the sampler said of its own draws, nats.
        texts: (C, R).
        seconds: () it took.
    """

    names: npt.NDArray[np.str_]
    log_probs: Floats
    ratio: Floats
    sampled: Floats
    texts: npt.NDArray[np.str_]
    seconds: Floats


def draw_pool(question: dict[str, Any], draws: int, tokens: int, seed: int) -> Pool:
    """Draw and score everything that the analysis of one question needs."""
    start = time.perf_counter()
    model = ChatTransformers(max_tokens=tokens)
    conditions, alone = wanted(question, seed)
    drawings = [(each.prompts, each.powers, draws) for each in conditions]
    result = model._generate([], seed=seed, logprobs=True, conditions=drawings)  # noqa: SLF001
    replies = [cast("AIMessage", generation.message) for generation in result.generations]
    size = len(conditions)
    laws = [(each.prompts, each.powers) for each in [*conditions, *alone]]
    scores = np.array(model.score_conditions(laws, replies)).reshape(-1, size, draws)
    sampled = [sum(reply.response_metadata["logprobs"]["token_logprobs"]) for reply in replies]
    return Pool(
        names=np.array([each.name for each in conditions]),
        log_probs=scores[:size],
        ratio=scores[size:] - scores[0],
        sampled=np.array(sampled).reshape(size, draws),
        texts=np.array([str(reply.text) for reply in replies]).reshape(size, draws),
        seconds=np.array(time.perf_counter() - start),
    )


def wanted(question: dict[str, Any], seed: int) -> tuple[list[Condition], list[Condition]]:
    """Return the conditions to draw from, the reference first, and conditions whose prompt describes one agent each."""
    prompt = [HumanMessage(question["ask"])]
    contexts = [descriptions_of([agent["context"]])[0] for agent in question["agents"]]
    proposals: list[Proposal] = [*SINGLES.values(), default_proposal(sorted(contexts), scores=True, logits=True)]
    conditions = {}
    for tau in sorted({tau for _, tau in FAMILIES.values()}):
        for proposal in proposals:
            for each in conditions_of(proposal, prompt, sorted(contexts), tau=tau, seed=seed)[0]:
                conditions[each.name] = each
    alone = [Condition(name="alone", prompts=(ContextPrompt().describe(prompt, [one], seed),)) for one in contexts]
    return list(conditions.values()), alone


def load_pool(
    question: dict[str, Any], draws: int, tokens: int, seed: int, cache: Path, *, only_cached: bool = False
) -> Pool | None:
    """Return a question's pool, from the cache where it holds it; None where it does not and `only_cached`."""
    laws = [
        (each.powers, [[str(message.text) for message in prompt] for prompt in each.prompts])
        for each in chain.from_iterable(wanted(question, seed))
    ]
    key = hashlib.blake2b(json.dumps([laws, draws, seed, tokens]).encode(), digest_size=8).hexdigest()
    path = cache / f"{key}.npz"
    if only_cached and not path.exists():
        return None
    if not path.exists():
        np.savez_compressed(path, **vars(draw_pool(question, draws, tokens, seed)))
    with np.load(path) as arrays:
        return Pool(**arrays)


@dataclass(frozen=True)
class Measured:
    """E[G_M] / tau in nats and mean ESS of the weights: (Q,) by family, M and proposal."""

    nats: dict[tuple[str, int, str], Floats]
    ess: dict[tuple[str, int, str], Floats]

    def against(self, family: str, m: int, name: str, other: str) -> tuple[float, float]:
        """Return the mean paired difference over questions and two standard errors."""
        return spread(self.nats[family, m, name] - self.nats[family, m, other])

    def best(self, family: str, m: int) -> str:
        """Return the single component with the highest mean over questions."""
        return max(SINGLES, key=lambda name: float(self.nats[family, m, name].mean()))


def spread(values: Floats) -> tuple[float, float]:
    """Return the mean and two standard errors of it."""
    return float(values.mean()), 2 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def evaluate(
    questions: Sequence[dict[str, Any]], pools: Sequence[Pool], sizes: Sequence[int], resamples: int
) -> Measured:
    """Evaluate every single component, the default and the mixtures on the pools."""
    nats: dict[tuple[str, int, str], list[float]] = {}
    ess: dict[tuple[str, int, str], list[float]] = {}
    for k, (question, pool) in enumerate(zip(questions, pools, strict=True)):
        prompt = [HumanMessage(question["ask"])]
        contexts = descriptions_of([agent["context"] for agent in question["agents"]])
        default = default_proposal(contexts, scores=True, logits=True)
        components, draws = pool.texts.shape
        order = np.random.default_rng(k).random((resamples, components, draws)).argsort(axis=-1)
        for family, (kind, tau) in FAMILIES.items():
            rewards = (topical(question, pool) if kind == "topical" else pool.ratio).sum(axis=0) / tau
            for name, proposal in {**SINGLES, "default": default, **MIXTURES}.items():
                conditions, shares = conditions_of(proposal, prompt, contexts, tau=tau, seed=k)
                for m in sizes:
                    counts = np.zeros(components, dtype=int)
                    for condition, count in zip(conditions, stratify(shares, m), strict=True):
                        counts[pool.names.tolist().index(condition.name)] += count
                    value, size = log_normaliser(pool, rewards, counts, order)
                    nats.setdefault((family, m, name), []).append(value)
                    ess.setdefault((family, m, name), []).append(size)
    return Measured(*({key: np.array(values) for key, values in each.items()} for each in (nats, ess)))


def log_normaliser(
    pool: Pool, rewards: Floats, counts: npt.NDArray[np.int_], order: npt.NDArray[np.intp]
) -> tuple[float, float]:
    """Return E[G_M] / tau and the mean ESS of the weights, over subsets of the pool drawn without replacement.

    Such a subset is M independent draws, so its mean is unbiased; the pool is what the noise comes from.
    """
    lw = log_weights(pool.log_probs.reshape(len(counts), -1), counts.tolist())
    lw = lw.reshape(len(counts), -1)
    taken = [(lw[d][order[:, d, :n]], rewards[d][order[:, d, :n]]) for d, n in enumerate(counts)]
    weights = np.concatenate([each for each, _ in taken], axis=1)
    scores = weights + np.concatenate([each for _, each in taken], axis=1)
    shifted = np.exp(weights - weights.max(axis=1, keepdims=True))
    ess = shifted.sum(axis=1) ** 2 / (shifted**2).sum(axis=1)
    return float(np.logaddexp.reduce(scores, axis=1).mean() - math.log(counts.sum())), float(ess.mean())


def topical(question: dict[str, Any], pool: Pool) -> Floats:
    """Return what every agent pays for the mentions in every reply, (N, C, R)."""
    replies = [AIMessage(text) for text in pool.texts.ravel().tolist()]
    rewards = [MentionReward(agent["phrases"], value=agent["value"], at_most=3) for agent in question["agents"]]
    return np.array([reward.score([], replies) for reward in rewards]).reshape(-1, *pool.texts.shape)


def report(measured: Measured, sizes: Sequence[int]) -> dict[str, float]:
    """Print the tables of the embedded model and return the ratios of the largest M."""
    top = max(sizes)
    for m in sizes:
        print(f"\nE[G_{m}] / tau, nats, mean over questions (+- two standard errors); ESS of the weights")
        print(f"{'proposal':20s}" + "".join(f"{family:>20s}" for family in FAMILIES) + "    ESS")
        for name in (*SINGLES, "default"):
            cells = (spread(measured.nats[family, m, name]) for family in FAMILIES)
            size = np.mean([measured.ess[family, m, name].mean() for family in FAMILIES])
            print(f"{name:20s}" + "".join(f"{mean:13.2f} +-{error:5.2f}" for mean, error in cells) + f" {size:6.1f}")
    print(f"\nThe default minus another, nats, M = {top}, paired over questions (+- two standard errors)")
    print(f"{'other':20s}" + "".join(f"{family:>20s}" for family in FAMILIES))
    for name in SINGLES:
        cells = (measured.against(family, top, "default", name) for family in FAMILIES)
        print(f"{name:20s}" + "".join(f"{mean:13.2f} +-{error:5.2f}" for mean, error in cells))
    best = [measured.best(family, top) for family in FAMILIES]
    print(f"{'best single':20s}" + "".join(f"{name:>20s}" for name in best))
    total = len(measured.nats[next(iter(FAMILIES)), top, "default"])
    halves = {"even": range(0, total, 2), "odd": range(1, total, 2), "all": range(total)}
    print(
        f"\nShares reference / context prompt / product 1/4 / product 1/tau, M = {top}, nats:\n"
        "lost to the best single and to the reference, each in its worst family; gained over the context prompt"
    )
    print(f"{'shares':26s}" + "".join(f"{half:>24s}" for half in halves) + "   ESS, topical")
    for name in ("default", *MIXTURES):
        ess = float(measured.ess[next(iter(FAMILIES)), top, name].mean())
        lost = (losses(measured, name, top, chosen) for chosen in halves.values())
        print(f"{name:26s}" + "".join(f"{a:8.2f}{b:8.2f}{c:8.2f}" for a, b, c in lost) + f"{ess:15.1f}")
    under_best, under_reference, over_context = losses(measured, "default", top, range(total))
    return {
        "nats_over_context": over_context,
        "nats_under_best_component_worst_family": under_best,
        "nats_under_reference_worst_family": under_reference,
    }


def by_agents(measured: Measured, questions: Sequence[dict[str, Any]], top: int) -> None:
    """Print what the default loses to each family's best single component, by the number of agents."""
    print(f"\nBest single minus default, nats, M = {top}, by the number of agents")
    print(f"{'agents':8s}{'questions':>10s}" + "".join(f"{family:>20s}" for family in FAMILIES))
    numbers = np.array([len(question["agents"]) for question in questions])
    for number in sorted(set(numbers.tolist())):
        cells = (
            (measured.nats[family, top, measured.best(family, top)] - measured.nats[family, top, "default"])[
                numbers == number
            ].mean()
            for family in FAMILIES
        )
        print(f"{number:<8d}{(numbers == number).sum():10d}" + "".join(f"{mean:20.2f}" for mean in cells))


def losses(measured: Measured, name: str, m: int, chosen: Sequence[int]) -> tuple[float, float, float]:
    """Return nats under the best single and under the reference in their worst family, and over the context prompt."""
    mean = {key: float(values[list(chosen)].mean()) for key, values in measured.nats.items() if len(chosen)}
    if not mean:
        return math.nan, math.nan, math.nan
    return (
        max(max(mean[family, m, single] for single in SINGLES) - mean[family, m, name] for family in FAMILIES),
        max(mean[family, m, "reference"] - mean[family, m, name] for family in FAMILIES),
        float(np.mean([mean[family, m, name] - mean[family, m, "context prompt"] for family in FAMILIES])),
    )


def drift(pools: Sequence[Pool]) -> None:
    """Print how far a draw's log-probability differs between sampling and scoring, for every single component."""
    print("\nScored minus sampled log-probability of a draw's own component, nats (rounding of the dtype)")
    for name, component in SINGLES.items():
        own = component.condition([HumanMessage("")], ["", ""], tau=1.0, seed=0).name
        off = [pool.log_probs[k, k] - pool.sampled[k] for pool in pools for k in np.flatnonzero(pool.names == own)]
        print(f"{name:20s} mean {np.mean(off):6.3f}   deviation {np.std(off):.3f}   largest {np.abs(off).max():.2f}")


def plot(curves: dict[str, dict[int, Point]], measured: Measured, top: int) -> None:
    """Write the pictures."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    PICTURES.mkdir(parents=True, exist_ok=True)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for k, (name, curve) in enumerate(curves.items()):
        sizes = list(curve)
        left.loglog(sizes, [point.distance for point in curve.values()], "o-", ms=3, color=f"C{k}", label=name)
        left.loglog(sizes, [point.noise for point in curve.values()], ":", lw=0.8, color=f"C{k}")
        right.loglog(sizes, [point.gap for point in curve.values()], "o-", ms=3, color=f"C{k}", label=f"{name}: bound")
        seen = [(m, point.divergence) for m, point in curve.items() if point.divergence > 0]
        right.loglog(*zip(*seen, strict=True), "x--", ms=4, lw=0.8, color=f"C{k}", label=f"{name}: KL")
    label(left, "total variation to pi* (dotted: Monte Carlo noise)", "candidates M")
    label(right, "nats: (J* - E[G_M]) / tau and KL(law || pi*)", "candidates M")
    figure.savefig(PICTURES / "convergence_solvable.png", dpi=90)
    figure, axes = plt.subplots(1, len(FAMILIES), figsize=(9, 3.2), layout="constrained", sharey=True)
    names = [*SINGLES, "default"][::-1]
    for axis, family in zip(axes, FAMILIES, strict=True):
        cells = [measured.against(family, top, name, "reference") for name in names]
        colours = ["C3" if name == "default" else "C0" for name in names]
        axis.barh(names, [mean for mean, _ in cells], xerr=[error for _, error in cells], color=colours, height=0.7)
        axis.axvline(0, color="black", lw=0.8)
        label(axis, family, "nats over the reference", legend=False)
    figure.savefig(PICTURES / "convergence_proposals.png", dpi=90)


def label(axis: "Axes", title: str, below: str, *, legend: bool = True) -> None:
    """Name an axis."""
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(below, fontsize=9)
    axis.tick_params(labelsize=8)
    if legend:
        axis.legend(fontsize=7)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for pictures and for analysing earlier draws."""
    parser.add_argument("--plot", action="store_true", help=f"write the pictures into {PICTURES.parent.name}/img")
    parser.add_argument("--cache", type=Path, help="folder that keeps draws and scores, to analyse again without model")
    parser.add_argument("--cached", action="store_true", help="only the questions that the cache holds")


def measure(options: Options) -> dict[str, float]:
    """Print the tables and return the ratios."""
    quick = options.quick
    error = soft_best_of_n()
    curves = solvable(4000, [2**k for k in range(8)])
    if not quick:
        tilts(4000)
    questions = yaml.safe_load(QUESTIONS.read_text(encoding="utf-8"))["questions"]
    questions = questions[:: 3 if quick else 1][: QUICK_QUESTIONS if quick else None]
    draws, tokens = (QUICK_DRAWS, QUICK_TOKENS) if quick else (DRAWS, TOKENS)
    sizes = (draws // 2, draws) if quick else (draws // 4, draws // 2, draws)
    print(f"\nEmbedded model, {tokens} tokens, {draws} draws of every component", flush=True)
    with TemporaryDirectory() as scratch:
        cache = options.cache or Path(scratch)
        cache.mkdir(parents=True, exist_ok=True)
        loaded = [
            load_pool(each, draws, tokens, k, cache, only_cached=options.cached) for k, each in enumerate(questions)
        ]
    questions = [question for question, pool in zip(questions, loaded, strict=True) if pool]
    pools = [pool for pool in loaded if pool]
    print(f"{len(pools)} questions, drawn and scored in {sum(float(pool.seconds) for pool in pools):.0f} s")
    measured = evaluate(questions, pools, sizes, 50 if quick else 200)
    ratios = report(measured, sizes)
    by_agents(measured, questions, max(sizes))
    drift(pools)
    if options.plot:
        plot(curves, measured, max(sizes))
    at = {name: curve[16].distance for name, curve in curves.items()}
    return {
        "mixture_vs_context_m16": at["1/4 + 3/4"] / at["context prompt"],
        "mixture_vs_reference_m16": at["1/4 + 3/4"] / at["reference"],
        "softbon_max_error": error,
        **ratios,
    }


if __name__ == "__main__":
    benchmark("convergence", __doc__, measure, quick="two questions, fewer and shorter draws", add_options=add_options)
