"""Every ready-made proposal keeps the laws of `ProposalConformance`."""

from llm_auction_chain import ContextProduct, ContextPrompt, DefensiveMixture, Reference
from llm_auction_chain.candidates.proposals import default_proposal
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


class TestDefaultWithLogits(ProposalConformance):
    def proposal(self):
        return default_proposal(self.descriptions(), scores=True, logits=True)


class TestDefaultWithScores(ProposalConformance):
    def proposal(self):
        return default_proposal(self.descriptions(), scores=True, logits=False)
