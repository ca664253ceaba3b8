"""What the page about scaling says that an auction takes in the database."""

import random
import runpy
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from llm_auction_chain import Agent, AuctionRunnable, Ledger
from llm_auction_chain.messages import json_of
from llm_auction_chain.testing import ScriptedChatModel

DOCS = Path(__file__).parents[2] / "docs"
AUCTIONS = 300
OWNERS = [f"owner {k}" for k in range(8)]
TEXT = "practise the guitar every day with a teacher who listens and an instrument that you like"


def test_the_bytes_of_an_auction_are_those_that_the_capacity_counts_on(emptied):
    """Eight owners, 16 candidates of some 256 tokens, receipts and replies kept."""
    measured = runpy.run_path(str(DOCS / "write_capacity.py"))["MEASURED"]
    rng, url = random.Random(7), emptied()
    replies = [" ".join(rng.choices(TEXT.split(), k=192)) for _ in range(400)]
    agents = [
        Agent(owner, lambda prompt, reply, k=k: (len(reply.text) + k) % 97 / 97, report_cap=1.0)
        for k, owner in enumerate(OWNERS)
    ]
    model = ScriptedChatModel(turns=[replies])
    result = AuctionRunnable(model=model, agents=agents, n_candidates=16, seed=7).run("How do I learn the guitar?")
    receipt, message = result.receipt.as_dict(), json_of(result.reply.model_dump())
    most, amounts = dict.fromkeys(OWNERS, Decimal(1)), dict.fromkeys(OWNERS, Decimal("0.012345"))
    engine = create_engine(url)

    def sizes():
        names = ("accounts", "auctions", "bookings", "entries", "receipts")
        with engine.connect() as connection:
            return {name: connection.scalar(text(f"SELECT pg_total_relation_size('{name}')")) for name in names}

    with Ledger(url, keep_replies=True) as ledger:
        for owner in OWNERS:
            ledger.deposit(owner, 100_000)
        before = sizes()
        for n in range(AUCTIONS):
            ledger.hold(f"auction {n}", most)
            ledger.charge(f"auction {n}", amounts, receipt={**receipt, "auction_id": f"auction {n}"}, message=message)
        grown = {name: (size - before[name]) / AUCTIONS for name, size in sizes().items()}
    engine.dispose()
    assert sum(grown.values()) == pytest.approx(measured.stored, rel=0.15)
    assert sum(grown.values()) - grown["receipts"] == pytest.approx(measured.stored_after_erasure, rel=0.15)
