"""A reward, a proposal and a scorer of your own: `python` holds an auction with them, `pytest` tests their laws.

Needs: pip install llm-auction-chain pytest. The tutorial "Your own parts" explains each step.
"""

import math
from dataclasses import dataclass

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from llm_auction_chain import Agent, AuctionRunnable, DefensiveMixture, Reference
from llm_auction_chain.candidates import Condition
from llm_auction_chain.rewards import Reward
from llm_auction_chain.testing import MarkovChatModel, ProposalConformance, RewardConformance, ScorerConformance


@dataclass(frozen=True)
class Starts(Reward):
    """Worth `value` where the reply starts with a word."""

    word: str
    value: float = 1.0

    def score(self, prompt, replies):
        return [self.value * reply.text.startswith(self.word) for reply in replies]


class TestStarts(RewardConformance):
    def reward(self):
        return Starts("TuneTown", value=2.0)


@dataclass(frozen=True)
class Hint:
    """Draws from the prompt with one line about the first description, in alphabetical order."""

    def condition(self, inputs):
        hints = [SystemMessage(f"Think of: {text[:200]}") for text in sorted(inputs.descriptions)[:1]]
        return Condition(name="hint", prompts=((*hints, *inputs.prompt),))


half_hinted = DefensiveMixture([(Reference(), 1), (Hint(), 1)])


class TestHint(ProposalConformance):
    def proposal(self):
        return half_hinted


letters = MarkovChatModel(tilts={"StringSchool": (1.0, 0.0, 0.5)})


class LetterScorer:
    def score(self, prompt, replies):
        likely = letters.enumerate([prompt])
        return [likely.get(reply.text, -math.inf) for reply in replies]


class TestLetterScorer(ScorerConformance):
    def scorer(self):
        return LetterScorer()

    def prompts(self):
        return [HumanMessage("Hi")], [SystemMessage("StringSchool gives lessons."), HumanMessage("Hi")]

    def every_reply(self):
        return [AIMessage(text) for text in letters.enumerate()]

    def draw(self, prompt, n):
        return [one.message for one in letters.generate([prompt], n=n, seed=1).generations[0]]


agents = [
    Agent("StringSchool", Starts("a", value=2.0), context="StringSchool gives lessons."),
    Agent("TuneTown", Starts("c", value=1.5), context="TuneTown sells guitars."),
]
auction = AuctionRunnable(model=letters, agents=agents, proposal=half_hinted, sampling=LetterScorer(), seed=7)
result = auction.run("Say something")
print(result.text, {name: str(amount) for name, amount in result.payments.items()}, result.components)
