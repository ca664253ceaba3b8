"""Proposals: the distributions that candidates are drawn from, and the weights that correct for them.

A proposal is a mixture of conditions. The number of draws from each is fixed (stratified), every candidate is scored
under every condition, and the balance heuristic

    lw_j = log pi_ref(y_j) - log sum_c (n_c / M) * pi_c(y_j)

makes the distribution of the reply exact in the limit. With n_ref draws from the reference it is at most
log(M / n_ref). Conditions depend on `ProposalInputs`, which is public, and never on a report.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from langchain_core.messages import BaseMessage, convert_to_messages
from langchain_core.prompts import BasePromptTemplate

from llm_auction_chain.candidates.tilts import Tilt
from llm_auction_chain.descriptions import Keywords, with_instructions
from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.validators import choice, number, refuse

__all__ = [
    "PLAIN",
    "Abilities",
    "Component",
    "Condition",
    "ContextProduct",
    "ContextPrompt",
    "DefensiveMixture",
    "KeywordTilt",
    "Proposal",
    "ProposalInputs",
    "Reference",
    "check_proposal",
    "choose_proposal",
    "conditions_of",
    "log_weights",
    "stratify",
]

Prompt = Sequence[BaseMessage]
Template = BasePromptTemplate[Any] | Callable[[list[BaseMessage], str], Sequence[BaseMessage]]

Abilities = Literal["draw", "score", "tilt", "everything"]
"""What a model can do: only draw replies; also say how likely they are; also draw under tilts of the whole reply; or
also under every tilt and product, because it exposes its logits."""

PLAIN = (1.0,)
_LONGEST_BLOCK = 4000  # characters of all descriptions in one prompt
_STRONGEST = 20.0  # nats: with more, float32 holds no other token beside a keyword
_MODEST = 1.0  # nats: with reports that differ by no more, draws of the reference are as good as any
_SHARP = 2.0  # money per nat: from this tau on, a product takes no more than half of the draws
_MANY_AGENTS = 4  # with more descriptions, the product costs more than it gains
# Short, with quotation marks and no markup: a small model repeats longer instructions and delimiters, and an agent
# takes the repetition for a reply that it likes (docs/concepts/convergence.md).
_INSTRUCTIONS = "Mention in your answer:\n\n{descriptions}"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A distribution of replies: token by token proportional to `prod_k pi(token | prompts[k]) ** powers[k]`.

    Attributes:
        name: for metadata and tables.
        prompts: (K,), each a tuple of messages.
        powers: (K,), not 0; `PLAIN` for one prompt as it stands, which any chat model can draw from.
        tilt: raises the odds of keywords; only of one prompt as it stands.
        reference: whether it is the reference, or one of the prompts of a reference that mixes several.
    """

    name: str
    prompts: tuple[tuple[BaseMessage, ...], ...]
    powers: tuple[float, ...] = PLAIN
    tilt: Tilt | None = None
    reference: bool = False

    def __post_init__(self) -> None:
        """Refuse a tilt of several prompts, or of another power."""
        if self.tilt is not None and self.powers != PLAIN:
            raise ConfigurationError("A tilt must be of one prompt at the power 1, and not of a product of prompts.")

    @property
    def is_plain(self) -> bool:
        """Whether it is one prompt as it stands."""
        return self.powers == PLAIN and self.tilt is None

    def same_law(self, other: "Condition") -> bool:
        """Whether both are the same distribution, under whatever name."""
        return (self.prompts, self.powers, self.tilt) == (other.prompts, other.powers, other.tilt)


@dataclass(frozen=True, kw_only=True)
class ProposalInputs:
    """All that a proposal may depend on. It is public and fixed before the auction: no report is among it.

    Attributes:
        prompt: the user's messages.
        descriptions: of the agents, distinct, cleaned and sorted, so that their order does not matter.
        keywords: of the agents, distinct and sorted.
        tau: weight of the reference, money per nat.
        seed: of the auction's candidates.
        span: nats: by how much the sum of all reports over tau can differ between two replies, by the agents' caps
            alone; infinite without caps. Bounds that a reward declares are left out: they follow from its bid.
        log_ratios: how many of the agents have rewards made of log-ratios of language models.
    """

    prompt: tuple[BaseMessage, ...]
    descriptions: tuple[str, ...] = ()
    keywords: tuple[Keywords, ...] = ()
    tau: float = 1.0
    seed: int = 0
    span: float = math.inf
    log_ratios: Literal["none", "some", "all"] = "none"


@runtime_checkable
class Component(Protocol):
    """A part of a proposal: one condition for each auction."""

    def condition(self, inputs: ProposalInputs) -> Condition:
        """Return the condition for an auction."""
        ...


@dataclass(frozen=True)
class Reference:
    """Draws from the reference model, as an auction without bids does. On its own, every log-weight is 0.

    The reference is the model under the user's prompt alone, unless you state another one with `prompt`: then replies
    converge to `pi_prompt * exp(sum_i r_i / tau)`, and a reply without bids is one that already knows the agents. Any
    chat model can draw from it. A `DefensiveMixture` of references alone states a mixture of prompts as the reference.

    Attributes:
        prompt: a prompt template with the variables `messages` and `descriptions`, or a callable of both. None is the
            user's prompt.

    >>> from langchain_core.messages import HumanMessage, SystemMessage
    >>> inputs = ProposalInputs(prompt=(HumanMessage("Hi"),), descriptions=("TuneTown sells guitars.",))
    >>> stated = Reference(lambda messages, descriptions: [SystemMessage(f"Our sponsors: {descriptions}"), *messages])
    >>> stated.condition(inputs).prompts[0][0].text
    'Our sponsors: "TuneTown sells guitars."'
    """

    prompt: Template | None = None

    def __post_init__(self) -> None:
        """Refuse what is no template."""
        _check_template("prompt of Reference", self.prompt)

    def condition(self, inputs: ProposalInputs) -> Condition:
        """Return the user's prompt, or the stated one where an agent has a description."""
        if self.prompt is None or not inputs.descriptions:
            return Condition(name="reference", prompts=(inputs.prompt,), reference=True)
        described = ContextPrompt(self.prompt).describe(inputs.prompt, inputs.descriptions, inputs.seed)
        return Condition(name="reference that knows the agents", prompts=(described,), reference=True)


@dataclass(frozen=True)
class ContextPrompt:
    """One prompt that describes all agents to the model (arXiv 2405.05905, section 6).

    Attributes:
        template: a prompt template with the variables `messages` and `descriptions`, or a callable of both; None puts
            the descriptions into a block of a system message, and keeps the user's messages.

    >>> from langchain_core.messages import HumanMessage
    >>> inputs = ProposalInputs(prompt=(HumanMessage("Hi"),), descriptions=("TuneTown sells guitars.",))
    >>> condition = ContextPrompt().condition(inputs)
    >>> "TuneTown sells guitars." in condition.prompts[0][0].text, condition.prompts[0][-1].text
    (True, 'Hi')
    """

    template: Template | None = None

    def __post_init__(self) -> None:
        """Refuse what is no template."""
        _check_template("template of ContextPrompt", self.template)

    def condition(self, inputs: ProposalInputs) -> Condition:
        """Return the prompt with all descriptions, shuffled by the seed."""
        prompt = self.describe(inputs.prompt, inputs.descriptions, inputs.seed)
        return Condition(name="context prompt", prompts=(prompt,))

    def describe(self, prompt: Prompt, descriptions: Sequence[str], seed: int) -> tuple[BaseMessage, ...]:
        """Return the prompt's messages with as many descriptions as the block holds."""
        # an order that depends on the seed, not on the agents' order
        block = _block(sorted(descriptions, key=lambda text: hashlib.blake2b(f"{seed}:{text}".encode()).digest()))
        messages = list(prompt)
        if self.template is None:
            return with_instructions(messages, _INSTRUCTIONS.format(descriptions=block))
        if isinstance(self.template, BasePromptTemplate):
            described = self.template.invoke({"messages": messages, "descriptions": block}).to_messages()
        else:
            described = convert_to_messages(self.template(messages, block))
        if not described:
            raise ConfigurationError(f"The template {self.template!r} returned no messages. Return at least one.")
        return tuple(described)


@dataclass(frozen=True)
class ContextProduct:
    """Draws every token from `pi_ref ** (1 - n * strength) * prod_i pi_i ** strength`, normalised.

    pi_i is the model under agent i's description alone. For rewards `log(pi_i / pi_ref)` the target itself is
    `pi_ref * prod_i (pi_i / pi_ref) ** (1 / tau)`, hence the strength 1/tau. Needs logits: local models only.

    Attributes:
        strength: above 0; None is 1/tau, but at most 1, because a higher power draws replies that are unlikely under
            every prompt.
        joint: whether one prompt has all descriptions, in place of one prompt for each agent:
            `pi_ref ** (1 - strength) * pi_all ** strength`.
        template: as for ContextPrompt.
    """

    strength: float | None = None
    joint: bool = False
    template: Template | None = None

    def __post_init__(self) -> None:
        """Refuse an invalid strength."""
        _check_template("template of ContextProduct", self.template)
        if self.strength is not None:
            number("strength", self.strength, above=0)

    def condition(self, inputs: ProposalInputs) -> Condition:
        """Return the product of the reference and the prompts that describe one agent each (or all, `joint`)."""
        power = 1.0 / max(inputs.tau, 1.0) if self.strength is None else float(self.strength)
        groups = [list(inputs.descriptions)] if self.joint else [[one] for one in sorted(inputs.descriptions)]
        context = ContextPrompt(self.template)
        described = [context.describe(inputs.prompt, group, inputs.seed) for group in groups]
        kind = "blend" if self.joint else "product"
        factors = [(inputs.prompt, 1.0 - power * len(described)), *((one, power) for one in described)]
        prompts, powers = zip(*[factor for factor in factors if factor[1]], strict=True)
        return Condition(name=f"context {kind} {power:g}", prompts=prompts, powers=powers)


@dataclass(frozen=True)
class KeywordTilt:
    """Draws every token v from `pi_ref(v) * exp(strength * [v begins a keyword of an agent that has none yet])`.

    It reads the user's prompt alone, so it costs what the reference costs. The log-probability of a reply under any
    tilt follows from the reference's logits, so a mixture of tilts scores its candidates in the pass that draws them.
    Needs logits: local models; on a vLLM server `until_said=False`.

    Attributes:
        strength: nats, above 0 and at most 20: how much the log-odds of such a token rise.
        until_said: whether an agent's keywords are tilted only until one of them begins. Else they are in the whole
            reply, and the spread of the log-weights grows with its length.

    Raises:
        ConfigurationError: a setting is out of range.

    >>> from langchain_core.messages import HumanMessage
    >>> inputs = ProposalInputs(prompt=(HumanMessage("Hi"),), keywords=(Keywords(("guitar", "lessons")),))
    >>> KeywordTilt(2.0).condition(inputs).name
    'tilt 2 until said'
    """

    strength: float
    until_said: bool = True

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        number("strength", self.strength, above=0, most=_STRONGEST)
        choice("until_said", self.until_said, (True, False))

    def condition(self, inputs: ProposalInputs) -> Condition:
        """Return the prompt with a tilt towards the agents' keywords; the prompt alone where there are none."""
        if not inputs.keywords:
            return Reference().condition(inputs)
        tilt = Tilt(keywords=inputs.keywords, strength=float(self.strength), until_said=self.until_said)
        name = f"tilt {self.strength:g}{' until said' if self.until_said else ''}"
        return Condition(name=name, prompts=(inputs.prompt,), tilt=tilt)


@dataclass(frozen=True)
class DefensiveMixture:
    """Components in fixed shares. With the reference among them, no weight exceeds `log(M / n_ref)`.

    Attributes:
        components: (component, share) pairs; shares are positive and need not sum to 1. A mixture may be a component.

    Raises:
        ConfigurationError: there are no components, or a share is not a positive number.

    Source: Hesterberg 1995 (defensive mixtures); Veach and Guibas 1995 (balance heuristic).

    >>> mixture = DefensiveMixture([(Reference(), 1), (DefensiveMixture([(ContextPrompt(), 1), (Reference(), 1)]), 1)])
    >>> [(type(component).__name__, share) for component, share in mixture.parts()]
    [('Reference', 0.75), ('ContextPrompt', 0.25)]
    """

    components: Sequence[tuple["Proposal", float]]

    def __post_init__(self) -> None:
        """Refuse invalid components."""
        try:
            pairs = tuple((part, share) for part, share in self.components)
        except (TypeError, ValueError):
            pairs = ()
        if not pairs:
            raise refuse("components", "pairs of a component and its share", self.components)
        object.__setattr__(self, "components", pairs)
        for part, share in self.components:
            check_proposal(part)
            number(f"The share of {part!r}", share, above=0)

    def parts(self) -> list[tuple[Component, float]]:
        """Return the components, those of inner mixtures included, with their shares of all draws; equal ones once."""
        total = sum(share for _, share in self.components)
        components: list[Component] = []  # prompt templates have no hash
        shares: list[float] = []
        for part, share in self.components:
            inner = part.parts() if isinstance(part, DefensiveMixture) else [(part, 1.0)]
            for component, fraction in inner:
                if component not in components:
                    components.append(component)
                    shares.append(0.0)
                shares[components.index(component)] += fraction * share / total
        return list(zip(components, shares, strict=True))


Proposal = Component | DefensiveMixture


def check_proposal(proposal: object) -> None:
    """Raise `ConfigurationError` unless it is a proposal."""
    component = callable(getattr(proposal, "condition", None)) and not isinstance(proposal, type)
    if not isinstance(proposal, DefensiveMixture) and not component:
        expected = "Reference(), ContextPrompt(), ContextProduct(), KeywordTilt(), or a DefensiveMixture of them"
        raise refuse("proposal", expected, proposal, "An object with condition(inputs) will do.")


def choose_proposal(inputs: ProposalInputs, *, can: Abilities) -> tuple[Proposal, str]:
    """Return the default proposal of an auction, and why it is this one.

    With a share a of the draws from the reference, every weight is at most 1 / a, and the mean weight is 1. So the
    effective sample size is at least about a * M, however long replies are: half of the draws, except where all agents
    have log-ratios and tau is small (docs/concepts/proposals.md).

    >>> from langchain_core.messages import HumanMessage
    >>> inputs = ProposalInputs(prompt=(HumanMessage("Hi"),), keywords=(Keywords(("guitar",)),))
    >>> proposal, reason = choose_proposal(inputs, can="everything")
    >>> [type(part).__name__ for part, _ in proposal.parts()], reason
    (['Reference', 'KeywordTilt'], "half of the draws lean towards the agents' keywords")
    """
    nothing_to_gain = {
        "no agent has a context or keywords": not (inputs.descriptions or inputs.keywords),
        "the model cannot say how likely its replies are": can == "draw",
        f"by their caps, reports differ by at most {inputs.span:.2g} tau between replies": inputs.span <= _MODEST,
    }
    for reason, holds in nothing_to_gain.items():
        if holds:
            return Reference(), reason
    tilt = KeywordTilt(2.0) if can == "everything" else KeywordTilt(1.0, until_said=False)
    if inputs.log_ratios != "none" and inputs.descriptions:
        reason = "a reward is a log-ratio, for which prompts that describe the agents draw best"
        if can != "everything":
            return DefensiveMixture([(Reference(), 1), (ContextPrompt(), 1)]), reason
        product = ContextProduct(joint=len(inputs.descriptions) > _MANY_AGENTS)
        if inputs.log_ratios == "some":
            return DefensiveMixture([(Reference(), 2), (tilt, 1), (product, 1)]), reason
        share = 0.2 if inputs.tau < _SHARP else 0.5
        return DefensiveMixture([(Reference(), share), (product, 1 - share)]), reason
    if inputs.keywords and can in ("tilt", "everything"):
        return DefensiveMixture([(Reference(), 1), (tilt, 1)]), "half of the draws lean towards the agents' keywords"
    return Reference(), "there are no keywords, or the model cannot lean towards them"


def stratify(shares: Sequence[float], n: int) -> list[int]:
    """Return counts that sum to n, in proportion to the shares. Each share above 0 gets at least one, if n allows.

    >>> stratify([0.25, 0.75], 16), stratify([0.1, 0.9], 2), stratify([0.1, 0.9], 1)
    ([4, 12], [1, 1], [1, 0])
    """
    total = sum(shares)
    wanted = [k for k, share in enumerate(shares) if share]
    counts = [1 if k in wanted[:n] else 0 for k in range(len(shares))]
    ideal = [share / total * n for share in shares]
    for _ in range(n - sum(counts)):
        short = max(range(len(shares)), key=lambda k: (ideal[k] - counts[k], -k))
        counts[short] += 1
    return counts


def log_weights(log_probs: npt.NDArray[np.float64], counts: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return `lw_j = log pi_ref(y_j) - log sum_c (n_c / M) * pi_c(y_j)`, nats.

    Args:
        log_probs: (C, M), of every draw under every condition, the reference first.
        counts: (C,), how many draws came from each condition.

    >>> log_weights(np.log([[0.5, 0.25]]), [2]).tolist()
    [0.0, 0.0]
    """
    counts = np.asarray(counts, dtype=np.float64)
    drawn = np.flatnonzero(counts)
    shares = np.log(counts[drawn] / counts.sum())
    mixture = np.logaddexp.reduce(log_probs[drawn] + shares[:, None], axis=0)
    return np.asarray(np.where(np.isneginf(log_probs[0]), -np.inf, log_probs[0] - mixture))


def _check_template(name: str, template: Any) -> None:
    if not (template is None or isinstance(template, BasePromptTemplate) or callable(template)):
        raise refuse(name, "a prompt template, or a callable (messages, descriptions) -> messages", template)


def _block(descriptions: Sequence[str]) -> str:
    """Return the descriptions as quoted lines; only the first ones if all are too long."""
    lines, room = [], _LONGEST_BLOCK
    for line in (f'"{description}"' for description in descriptions):
        if len(line) < room:
            lines.append(line)
            room -= len(line) + 1
    return "\n".join(lines)


def conditions_of(proposal: Proposal, inputs: ProposalInputs) -> tuple[list[Condition], list[float]]:
    """Return the conditions of a proposal for one auction and their shares.

    The reference comes first, with share 0 if the proposal does not draw from it. Other components start from its
    prompt. Components that are the same distribution here are one condition.

    Raises:
        ConfigurationError: other components stand beside several references.
    """
    parts = proposal.parts() if isinstance(proposal, DefensiveMixture) else [(proposal, 1.0)]
    references = [(part, share) for part, share in parts if isinstance(part, Reference)]
    others = [(part, share) for part, share in parts if not isinstance(part, Reference)]
    conditions: list[Condition] = []
    shares: list[float] = []

    def add(condition: Condition, share: float) -> None:
        place = next((k for k, known in enumerate(conditions) if known.same_law(condition)), len(conditions))
        if place == len(conditions):
            conditions.append(condition)
            shares.append(0.0)
        shares[place] += share

    for reference, share in references or [(Reference(), 0.0)]:
        add(reference.condition(inputs), share)
    if others and len(conditions) > 1:
        raise ConfigurationError(
            f"proposal={proposal!r} has several references and other components beside them. Mix several references "
            "alone, or one with the others."
        )
    for part, share in others:
        add(part.condition(replace(inputs, prompt=conditions[0].prompts[0])), share)
    return conditions, shares
