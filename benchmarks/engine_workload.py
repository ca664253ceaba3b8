"""What `engine.py` measures: the model work of one auction, in tokens."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Encode = Callable[[Sequence[Mapping[str, str]]], list[int]]

QUESTION = "What should I pack for a first weekend of hiking in the mountains?"
BRANDS = (
    ("Alderfinch", "walking boots", "they are light, waterproof and can be resoled"),
    ("Northmere", "rain jackets", "they are sewn from recycled nets and mended for free"),
    ("Quillpack", "rucksacks", "their frames adjust to every back within a minute"),
    ("Emberlow", "camping stoves", "they boil a litre of water in under four minutes"),
    ("Tarnlight", "head torches", "one charge lasts for thirty hours of walking at night"),
    ("Oatfield", "energy bars", "they are baked of oats, dates and nuts without added sugar"),
    ("Duskwood", "sleeping bags", "they keep warm when they are wet, and pack down small"),
    ("Cairnmap", "hiking maps", "they show every hut, spring and path, and do not tear"),
    ("Silverbeck", "water filters", "they make any stream safe to drink from within seconds"),
    ("Fernhollow", "tents", "one person can pitch them in the rain in three minutes"),
    ("Woolgate", "hiking socks", "they are knitted of merino wool and prevent blisters"),
    ("Stonepoint", "trekking poles", "they fold, weigh little and spare the knees downhill"),
    ("Highbarn", "mountain huts", "a bed, a hot supper and a breakfast await every walker"),
    ("Redkite", "first aid kits", "they hold what walkers need and nothing that they do not"),
    ("Larchway", "mountain trains", "they reach forty trailheads that no road leads to"),
    ("Bluecrag", "sun creams", "they stay on for a whole day of sweat and high sun"),
)
CONTEXT = "{brand} offers {product}: {claim}."
# The system prompt of an agent's own model; about 120 tokens.
SYSTEM = (
    "You are the advertising assistant of {brand}, a company that offers {product}. Answer the user's question "
    "truthfully, in a friendly and plain tone. Wherever it fits naturally, mention {brand} and say why its {product} "
    "are a good choice: {claim}. Do not invent prices, discounts or guarantees, and do not speak badly of other "
    "companies. If the question has nothing to do with {product}, answer it briefly and well, and close with one short "
    "sentence about what {brand} offers. Keep the whole answer below eighty words."
)

_clock = time.perf_counter


def now() -> float:
    """Return seconds of the clock by which all contenders in this process are measured."""
    return _clock()


def count_processor_time() -> None:
    """Measure by the processor's time of this process, which other work on the machine hardly changes."""
    global _clock  # noqa: PLW0603 - one for all contenders
    _clock = time.process_time


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The model work of one auction.

    Attributes:
        prompts: (K,) lists of tokens, no two equal.
        powers: (C, K); law c is `prod_k pi(token | prompts[k]) ** powers[c][k]`. The proposal's laws come first, and
            the reference first of all; then the agents'.
        counts: (C,), how many replies are drawn from each law.
        max_tokens: of a reply.
        ends: whether the end token ends a reply.
    """

    prompts: Sequence[Sequence[int]]
    powers: Sequence[Sequence[float]]
    counts: Sequence[int]
    max_tokens: int
    ends: bool

    @cached_property
    def used(self) -> list[list[int]]:
        """The prompts of each law."""
        return [[k for k, power in enumerate(row) if power] for row in self.powers]

    @cached_property
    def own(self) -> list[int]:
        """The law (M,) that each reply is drawn from."""
        return [c for c, count in enumerate(self.counts) for _ in range(count)]

    @property
    def plain(self) -> bool:
        """Whether every law is the model's own behind one prompt: no products."""
        return all(len(used) == 1 for used in self.used)

    def prompt(self, c: int) -> list[int]:
        """Return the only prompt of a law."""
        return list(self.prompts[self.used[c][0]])

    def known(self, c: int, own: int) -> bool:
        """Return whether drawing a reply from the law `own` also returns its log-probability under the law c.

        Drawing from a product returns it behind each of the product's prompts too.
        """
        return c == own or (len(self.used[c]) == 1 and self.used[c][0] in self.used[own])

    @property
    def wanted(self) -> npt.NDArray[np.bool_]:
        """Which laws (C, M) remain to be evaluated after the replies are drawn."""
        return np.array([[not self.known(c, own) for own in self.own] for c in range(len(self.powers))])


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One auction's model work done.

    Attributes:
        parts: seconds of each part.
        replies: (M,) lists of tokens.
        log_probs: (C, M), nats; None from the floor, which computes none.
    """

    parts: dict[str, float]
    replies: Sequence[Sequence[int]]
    log_probs: Floats | None = None

    @property
    def seconds(self) -> float:
        """The seconds of all parts."""
        return sum(self.parts.values())

    @property
    def tokens(self) -> int:
        """The tokens of all replies."""
        return sum(map(len, self.replies))


def build(
    encode: Encode, *, m: int = 32, agents: int = 3, tokens: int = 64, ends: bool = False, product: bool = False
) -> Workload:
    """Return the work of one auction: M replies, and their log-ratio rewards under every agent's own system prompt.

    Args:
        encode: from a conversation to tokens.
        m: replies.
        agents: at most as many as there are brands.
        tokens: the most of a reply.
        ends: whether the end token ends a reply.
        product: whether to draw from the default proposal for log-ratios, a product, in place of reference and
            context prompt in equal parts.
    """
    # Not for the processes whose memory is measured: transformers alone needs no LangChain.
    from langchain_core.messages import HumanMessage, SystemMessage

    from llm_auction_chain.candidates.proposals import (
        ContextPrompt,
        DefensiveMixture,
        ProposalInputs,
        Reference,
        choose_proposal,
        conditions_of,
        stratify,
    )
    from llm_auction_chain.descriptions import descriptions_of
    from llm_auction_chain.messages import as_turns

    companies = [{"brand": brand, "product": product, "claim": claim} for brand, product, claim in BRANDS[:agents]]
    descriptions = descriptions_of([CONTEXT.format(**each) for each in companies])
    halves = DefensiveMixture([(Reference(), 1), (ContextPrompt(), 1)])
    question = HumanMessage(QUESTION)
    inputs = ProposalInputs(prompt=(question,), descriptions=tuple(descriptions), log_ratios="all")
    proposal = choose_proposal(inputs, can="everything")[0] if product else halves
    conditions, shares = conditions_of(proposal, inputs)
    laws: list[tuple[Sequence[Sequence[Any]], Sequence[float]]] = [(each.prompts, each.powers) for each in conditions]
    laws += [([[SystemMessage(SYSTEM.format(**each)), question]], [1.0]) for each in companies]
    encoded = [[tuple(encode(as_turns(prompt, "the benchmark"))) for prompt in prompts] for prompts, _ in laws]
    places = {prompt: k for k, prompt in enumerate(dict.fromkeys(prompt for prompts in encoded for prompt in prompts))}
    powers = np.zeros((len(laws), len(places)))
    for c, (prompts, (_, given)) in enumerate(zip(encoded, laws, strict=True)):
        powers[c, [places[prompt] for prompt in prompts]] = given
    return Workload(
        prompts=list(places),
        powers=powers.tolist(),
        counts=[*stratify(shares, m), *[0] * agents],
        max_tokens=tokens,
        ends=ends,
    )
