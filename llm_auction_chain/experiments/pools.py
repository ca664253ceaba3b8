"""Pools: for one question, draws of every condition, scored under every condition, with all rewards.

All that is downstream of a pool is arithmetic: M, tau, proposals of its conditions, payment rules, misreports.
"""

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from langchain_core.embeddings import Embeddings
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.runnables import Runnable, RunnableConfig

from llm_auction_chain.candidates import (
    ContextProduct,
    ContextPrompt,
    DefensiveMixture,
    Proposal,
    Reference,
    SequenceScorer,
    Source,
    chat_model_of,
    read_log_probs,
    settings_of,
)
from llm_auction_chain.candidates.logprobs import log_prob_matrix
from llm_auction_chain.candidates.proposals import (
    Condition,
    KeywordTilt,
    ProposalInputs,
    choose_proposal,
    conditions_of,
    log_weights,
    stratify,
)
from llm_auction_chain.descriptions import descriptions_of, keywords_of
from llm_auction_chain.errors import AuctionWarning, CandidatesError, ConfigurationError
from llm_auction_chain.experiments.baselines import CONTEXT_PROMPT, REFERENCE, Candidates
from llm_auction_chain.experiments.config import ExperimentConfig
from llm_auction_chain.experiments.questions import Question
from llm_auction_chain.experiments.store import Arrays, Store
from llm_auction_chain.messages import total_usage
from llm_auction_chain.rewards.judge import JudgeReward
from llm_auction_chain.validators import choice
from llm_auction_chain.waiting import BLOCKING, run

__all__ = [
    "OWN_POLICIES",
    "PROPOSALS",
    "RUBRICS",
    "Bench",
    "Pool",
    "abilities",
    "draw_conditions",
    "measure_pool",
    "within_reach",
]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_OF_SPEED = {"max_cached_tokens"}  # a model's settings that change no reply, added since runs were stored

OWN_POLICIES = "own policies"
"""Draws from the model under each sponsor's description alone, in equal parts: what sponsors would write themselves."""

PROPOSALS: Mapping[str, Proposal | None] = {
    "reference": Reference(),
    "context prompt": ContextPrompt(),
    "product, strength 1/4": ContextProduct(0.25),
    "product, strength 1": ContextProduct(1.0),
    "blend, strength 1/4": ContextProduct(0.25, joint=True),
    "tilt 1": KeywordTilt(1.0, until_said=False),
    "tilt 2 until said": KeywordTilt(2.0),
    "tilt 3 until said": KeywordTilt(3.0),
    "product mixture": DefensiveMixture([(Reference(), 0.2), (ContextProduct(), 0.8)]),
    "default": None,
}
"""Proposals by name. The default is that of an auction whose rewards are not log-ratios; the product mixture is that of
one with log-ratios, which experiments with both kinds of rewards use for both."""

RUBRICS: Mapping[str, str] = {
    "helpful": "Does the reply answer what the user asked, to the point, completely and without mistakes?",
    "natural": "Does the reply read as one piece, in which nothing breaks the topic or the tone?",
    "personable": "Does the reply sound like a competent and friendly assistant on the user's side, not like a seller?",
    "trustworthy": "Would the user believe the reply and rely on it, with no interest of others in view?",
    "unobtrusive": "Is the reply free of anything that the user would notice as an advertisement?",
    "clicked": "Would the user want to follow up something that the reply recommends, such as a product or a shop?",
}
"""What a judge grades for the user, from 0 to 1: user satisfaction in four, then notice and click, as in GEM-Bench
(arXiv 2509.14221), in our own words. "unobtrusive" is the opposite of notice, so that more is better for the user."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What measurements are made with.

    Attributes:
        config: of the experiment.
        model: draws the replies.
        store: keeps what was measured.
        scorer: says how likely replies are, for a model that cannot say it itself.
        judge: a chat model that grades replies; None leaves grades out.
        embeddings: for the relevance of replies to the question; None leaves it out.
        proposals: by name; None is the default proposal of an auction.
    """

    config: ExperimentConfig
    model: Runnable[Any, Any]
    store: Store
    scorer: SequenceScorer | None = None
    judge: Runnable[Any, Any] | None = None
    embeddings: Embeddings | None = None
    proposals: Mapping[str, Proposal | None] = field(default_factory=lambda: PROPOSALS)

    @cached_property
    def identity(self) -> str:
        """What tells the model, its scorer and its judge from others in the store."""
        return json.dumps([_identity(self.model), _identity(self.scorer)])


def _identity(model: Any) -> Any:
    """Return the class of a model and those of its settings that are plain data: no keys, no connections."""
    if model is None:
        return None
    is_chat_model = isinstance(model, Runnable)
    chat = chat_model_of(model) if is_chat_model else model
    settings = {name: getattr(chat, name) for name in getattr(type(chat), "model_fields", vars(chat))}
    settings.update(settings_of(model) if is_chat_model else {})
    names = sorted(settings.keys() - _OF_SPEED)
    return [type(chat).__qualname__, {name: settings[name] for name in names if _is_plain(settings[name])}]


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, (*value, *value.values())))
    return (
        value is None
        or isinstance(value, str | int | float)
        or (isinstance(value, list | tuple) and all(map(_is_plain, value)))
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """All draws for one question and seed. N sponsors, C conditions, R draws.

    Attributes:
        question: with its sponsors.
        seed: of the draws.
        names: (C,), conditions, the reference first.
        counts: (C,), draws of each condition, which stand together: as many as any proposal takes.
        shares: of the conditions (C,) in each proposal.
        own: (N,), the condition of each sponsor's own policy.
        log_probs: (C, R), nats; nan where the model cannot say it.
        rewards: (N, R) by family, money: what each reply is worth to each sponsor.
        texts: (R,).
        tokens: (R,), lengths of the replies; nan where the model does not count.
        relevance: (R,), cosine of the reply's embedding and the question's; nan without embeddings.
        grades: (R,) by rubric, 0 to 1; empty without a judge.
    """

    question: Question
    seed: int
    names: tuple[str, ...]
    counts: Integers
    shares: Mapping[str, Floats]
    own: Integers
    log_probs: Floats
    rewards: Mapping[str, Floats]
    texts: tuple[str, ...]
    tokens: Floats
    relevance: Floats
    grades: Mapping[str, Floats]

    @cached_property
    def sources(self) -> Integers:
        """(R,), the condition of each draw."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def sets(self, proposal: str, m: int, family: str) -> Iterator[tuple[Integers, Candidates]]:
        """Return disjoint sets of M candidates, as an auction draws them: the places of the draws, and the candidates.

        There are as many as the pool has draws for. A set consists of independent draws, so means over sets are means
        over auctions. Where the model says nothing of probabilities all log-weights are 0: draws of other conditions
        than the reference then serve rules that use no weights.

        Args:
            proposal: a name of `shares`.
            m: candidates of a set.
            family: of the rewards.

        Raises:
            ConfigurationError: the pool has no such proposal or family, or too few draws for one set.
        """
        choice("proposal", proposal, tuple(self.shares))
        choice("family", family, choices=tuple(self.rewards))
        wanted = np.array(stratify(self.shares[proposal].tolist(), m))
        drawn = np.flatnonzero(wanted)
        number = int((self.counts[drawn] // wanted[drawn]).min())
        if not number:
            raise ConfigurationError(
                f"M = {m} candidates of {proposal!r} need {wanted.max()} draws of one condition, and the pool has "
                f"{self.counts[drawn].min()}. Raise `draws`, or leave this M out of `n_candidates`."
            )
        starts = np.concatenate([[0], np.cumsum(self.counts)[:-1]])
        kinds = np.full(len(self.names), CONTEXT_PROMPT - 1)
        kinds[self.shares["context prompt"] > 0] = CONTEXT_PROMPT
        kinds[self.own], kinds[0] = np.arange(len(self.own)), REFERENCE
        for k in range(number):
            places = np.concatenate([starts[c] + np.arange(k * wanted[c], (k + 1) * wanted[c]) for c in drawn])
            log_probs = self.log_probs[:, places]
            plain = drawn.tolist() == [0] or bool(np.isnan(log_probs).any())
            yield (
                places,
                Candidates(
                    log_weights=np.zeros(m) if plain else log_weights(log_probs, wanted),
                    rewards=self.rewards[family][:, places],
                    log_reference=log_probs[0],
                    sources=kinds[self.sources[places]],
                ),
            )


def within_reach(bench: Bench) -> ExperimentConfig:
    """Return the configuration without the proposals and families that need more than the model can do, and warn.

    The reference and mentions, which any chat model serves, take the place of a list that would be empty.
    """
    config = bench.config
    _, logits, scores = abilities(bench)

    def can(name: str) -> bool:
        proposal = bench.proposals.get(name)
        weighed = name in bench.proposals and proposal not in (None, Reference())
        return not weighed or (scores and (logits or not _needs_logits(proposal)))

    proposals = [name for name in config.proposals if can(name)]
    families = [family for family in config.families if scores or family != "log_ratio"]
    if left := [name for name in (*config.proposals, *config.families) if name not in (*proposals, *families)]:
        model = type(bench.model).__name__
        message = f"{model} does not expose what these need, so they are left out: {', '.join(left)}."
        warnings.warn(message, AuctionWarning, stacklevel=3)
    return config.changed(proposals=proposals or ("reference",), families=families or ("mentions",))


def measure_pool(bench: Bench, question: Question, seed: int) -> Pool:
    """Return the pool of a question, from the store where it holds it.

    Raises:
        ConfigurationError: a proposal or a family of rewards needs more than model, scorer and judge can do.
        CandidatesError: a model call failed. What was measured before is stored: run again to go on.
    """
    config = bench.config
    prompt: list[BaseMessage] = [HumanMessage(question.text)]
    source, logits, scores = abilities(bench)
    conditions, shares, own = _conditions(bench, prompt, question, seed, scores=scores, logits=logits)
    counts = np.array([stratify(each.tolist(), config.draws) for each in shares.values()]).max(axis=0)
    drawn_on = {
        "measures": "draws",
        "model": bench.identity,
        "max_tokens": config.max_tokens,
        "conditions": [
            [one.powers, [[(m.type, m.text) for m in prompt] for prompt in one.prompts], *filter(None, [one.tilt])]
            for one in conditions
        ],
        "counts": counts.tolist(),
        "seed": seed,
    }
    scorer = bench.scorer or source.scorer
    arrays = bench.store.get(drawn_on, lambda: draw_conditions(source, scorer, conditions, counts, seed))
    texts = tuple(str(text) for text in arrays["texts"])
    replies = [AIMessage(text) for text in texts]
    return Pool(
        question=question,
        seed=seed,
        names=tuple(condition.name for condition in conditions),
        counts=counts,
        shares=shares,
        own=own,
        log_probs=arrays["log_probs"],
        rewards={family: _rewards(bench, family, question, prompt, replies, arrays, own) for family in config.families},
        texts=texts,
        tokens=arrays["tokens"],
        relevance=_relevance(bench, question, texts),
        grades=_grades(bench, prompt, replies),
    )


def abilities(bench: Bench, **settings: Any) -> tuple[Source, bool, bool]:
    """Return the model as a source, whether it exposes its logits, and whether something scores its replies."""
    source = Source(bench.model, RunnableConfig(), native_n=True, kwargs=settings)
    return source, source.logits and bench.scorer is None, bench.scorer is not None or source.scorer is not None


def _needs_logits(proposal: Proposal | None) -> bool:
    parts = proposal.parts() if isinstance(proposal, DefensiveMixture) else [(proposal, 1.0)]
    return any(isinstance(part, ContextProduct | KeywordTilt) for part, _ in parts)


def _conditions(
    bench: Bench, prompt: Sequence[BaseMessage], question: Question, seed: int, *, scores: bool, logits: bool
) -> tuple[list[Condition], dict[str, Floats], Integers]:
    """Return the conditions, the shares of each proposal, and the condition of each sponsor's own policy."""
    contexts = [descriptions_of([sponsor.context])[0] for sponsor in question.sponsors]
    inputs = ProposalInputs(
        prompt=tuple(prompt),
        descriptions=tuple(sorted(contexts)),
        keywords=tuple(sorted({keywords_of(context) for context in contexts})),
        tau=bench.config.draw_tau,
        seed=seed,
    )
    conditions = [Condition(name="reference", prompts=(tuple(prompt),))]
    places: dict[str, list[tuple[int, float]]] = {}

    def place(condition: Condition) -> int:
        for k, known in enumerate(conditions):
            if known.same_law(condition):
                return k
        conditions.append(condition)
        return len(conditions) - 1

    for name in dict.fromkeys(("reference", "context prompt", *bench.config.proposals)):
        proposal = bench.proposals[choice("proposals", name, choices=tuple(bench.proposals))]
        if proposal is None:
            proposal, _ = choose_proposal(inputs, can="everything" if logits else "score" if scores else "draw")
        parts, shares = conditions_of(proposal, inputs)
        if not logits and not all(part.is_plain for part in parts):
            raise ConfigurationError(
                f"The proposal {name!r} draws from products of prompts or tilts, for which the model must expose its "
                "logits. Leave it out of `proposals`, or use a local model."
            )
        places[name] = [(place(part), share) for part, share in zip(parts, shares, strict=True) if share]
    alone = [ContextPrompt().describe(prompt, [context], seed) for context in contexts]
    own = [place(Condition(name=f"own policy {k}", prompts=(prompts,))) for k, prompts in enumerate(alone)]
    places[OWN_POLICIES] = [(k, 1.0 / len(own)) for k in own]
    shares_of = {name: np.zeros(len(conditions)) for name in places}
    for name, pairs in places.items():
        for k, share in pairs:
            shares_of[name][k] += share
        if not scores and np.flatnonzero(shares_of[name]).tolist() != [0] and name in bench.config.proposals:
            raise ConfigurationError(
                f"The proposal {name!r} needs the probability of every reply, which this model does not report. Leave "
                "it out of `proposals`, or give a scorer."
            )
    return conditions, shares_of, np.array(own, dtype=np.int64)


def draw_conditions(
    source: Source, scorer: SequenceScorer | None, conditions: Sequence[Condition], counts: Integers, seed: int
) -> tuple[Arrays, UsageMetadata | None]:
    """Return draws of conditions with their log-probabilities under each, their texts and lengths.

    Raises:
        CandidatesError: a model call failed.
    """
    sample = run(
        source.sample(
            list(zip(conditions, counts.tolist(), strict=True)),
            BLOCKING,
            seed=seed,
            tokens=scorer is not None and scorer is source.scorer,
            config=RunnableConfig(),
        )
    )
    if sample.causes:
        raise CandidatesError(f"{len(sample.causes)} of {counts.sum()} draws failed: {sample.causes[0]}", sample.causes)
    messages = [message for _, message in sample.replies]
    log_probs = np.full((len(conditions), len(messages)), np.nan)
    if scorer is not None:
        identities = [message.text for message in messages]
        law = source.law if scorer is source.scorer else {}
        log_probs = run(log_prob_matrix(scorer, conditions, sample.replies, BLOCKING, identities=identities, law=law))
    known = (read_log_probs(message) for message in messages)
    return {
        "texts": np.array([str(message.text) for message in messages]),
        "log_probs": log_probs,
        "tokens": np.array([math.nan if one is None else len(one.tokens) for one in known]),
    }, total_usage(message.usage_metadata for message in messages if message.usage_metadata)


def _rewards(
    bench: Bench,
    family: str,
    question: Question,
    prompt: list[BaseMessage],
    replies: list[AIMessage],
    arrays: Arrays,
    own: Integers,
) -> Floats:
    if family == "log_ratio":  # as LogRatioReward with the own policy's instructions has it
        if np.isnan(arrays["log_probs"]).any():
            raise ConfigurationError(
                "The family 'log_ratio' needs the probability of every reply, which this model does not report. Leave "
                "it out of `families`, or give a scorer."
            )
        return np.asarray(arrays["log_probs"][own] - arrays["log_probs"][0])
    rewards = [sponsor.reward(family, judge=bench.judge) for sponsor in question.sponsors]
    if family == "mentions":
        return np.array([reward.score(prompt, replies) for reward in rewards])
    texts = [str(reply.text) for reply in replies]
    depends_on = {
        "measures": family,
        "judge": _identity(bench.judge),
        "question": question.text,
        "sponsors": question.sponsors,
        "texts": texts,
    }
    amounts = bench.store.get(
        depends_on, lambda: ({"rewards": np.array([reward.score(prompt, replies) for reward in rewards])}, None)
    )
    return amounts["rewards"]


def _relevance(bench: Bench, question: Question, texts: Sequence[str]) -> Floats:
    if bench.embeddings is None:
        return np.full(len(texts), np.nan)
    question_vector = np.array(bench.embeddings.embed_query(question.text))
    vectors = np.array(bench.embeddings.embed_documents(list(texts)))
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(question_vector)
    return np.asarray(np.divide(vectors @ question_vector, lengths, out=np.zeros(len(texts)), where=lengths > 0))


def _grades(bench: Bench, prompt: list[BaseMessage], replies: list[AIMessage]) -> dict[str, Floats]:
    if bench.judge is None:
        return {}
    graders = {name: JudgeReward(bench.judge, rubric) for name, rubric in RUBRICS.items()}
    texts = [str(reply.text) for reply in replies]
    depends_on = {
        "measures": "grades",
        "judge": _identity(bench.judge),
        "rubrics": RUBRICS,
        "prompt": prompt,
        "texts": texts,
    }

    def grade() -> tuple[Arrays, None]:
        return {name: np.array(grader.score(prompt, replies)) for name, grader in graders.items()}, None

    return bench.store.get(depends_on, grade)
