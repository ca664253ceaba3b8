"""Auctions that the tests of this folder share."""

from llm_auction_chain import Agent, AuctionRunnable
from llm_auction_chain.testing import MarkovChatModel

WORDS = MarkovChatModel(length=3)


LIKES_B = Agent("B", lambda prompt, reply: 2.0 * reply.text.count("b"))


LIKES_C = Agent("C", lambda prompt, reply: 1.0 * reply.text.count("c"))


def auction(agents=(LIKES_B, LIKES_C), **settings):
    return AuctionRunnable(**{"model": WORDS, "agents": agents, "n_candidates": 16, "seed": 7, **settings})


async def both(runnable):
    """Return the results of both colours."""
    return runnable.run("x"), await runnable.arun("x")
