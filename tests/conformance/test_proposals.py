"""Every ready-made proposal keeps the laws of `ProposalConformance`."""

import dataclasses

from llm_auction_chain import ContextProduct, ContextPrompt, DefensiveMixture, KeywordTilt, Reference
from llm_auction_chain.candidates.proposals import choose_proposal
from llm_auction_chain.testing import ProposalConformance


class TestReference(ProposalConformance):
    def proposal(self):
        return Reference()


class TestContextPrompt(ProposalConformance):
    def proposal(self):
        return ContextPrompt()


class TestContextProduct(ProposalConformance):
    def proposal(self):
        return ContextProduct()


class TestContextBlend(ProposalConformance):
    def proposal(self):
        return ContextProduct(0.5, joint=True)


class TestDefensiveMixture(ProposalConformance):
    def proposal(self):
        return DefensiveMixture([(Reference(), 1), (ContextPrompt(), 2), (ContextProduct(0.5), 1)])


class TestKeywordTilt(ProposalConformance):
    def proposal(self):
        return DefensiveMixture([(Reference(), 1), (KeywordTilt(2.0), 1), (KeywordTilt(1.0, until_said=False), 1)])


class TestDefaultForLogRatios(ProposalConformance):
    def proposal(self):
        return choose_proposal(dataclasses.replace(self._inputs(), log_ratios="all"), can="everything")[0]


class TestDefaultForLogRatiosWithScores(ProposalConformance):
    def proposal(self):
        return choose_proposal(dataclasses.replace(self._inputs(), log_ratios="all"), can="score")[0]


class TestDefault(ProposalConformance):
    def proposal(self):
        return choose_proposal(self._inputs(), can="everything")[0]
