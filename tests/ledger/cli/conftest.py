"""A command and what it said; a ledger in a file; receipts of real auctions."""

import re
from decimal import Decimal
from typing import NamedTuple

import pytest

from llm_auction_chain import Agent, AuctionRunnable, Ledger
from llm_auction_chain.cli import main
from llm_auction_chain.testing import MarkovChatModel

AGENTS = [
    Agent("B", lambda prompt, reply: 4.0 * reply.text.count("b"), owner="TuneTown", currency="EUR"),
    Agent("C", lambda prompt, reply: 2.0 * reply.text.count("c"), currency="EUR"),
]


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def say(capsys, monkeypatch):
    """Run a command in this process; return its exit code and what it said."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        return Said(code, *capsys.readouterr())

    return run


@pytest.fixture
def say_on_terminal(say, monkeypatch):
    """Run a command as on a terminal of some width; return what it said without the colours."""

    def run(width, *arguments):
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        monkeypatch.setenv("COLUMNS", str(width))
        said = say(*arguments)
        return said._replace(out=re.sub("\x1b\\[[0-9;]*m", "", said.out))

    return run


@pytest.fixture
def path(tmp_path, monkeypatch):
    """The file that the environment names, where there is no ledger yet."""
    monkeypatch.setenv("LLM_AUCTION_LEDGER", f"sqlite:///{tmp_path / 'ledger.db'}")
    return tmp_path / "ledger.db"


@pytest.fixture(scope="session")
def receipts():
    """Receipts of three auctions between B, for TuneTown, and C."""
    runs = [AuctionRunnable(model=MarkovChatModel(), agents=AGENTS, seed=seed) for seed in (7, 8, 9)]
    return [run.run("Say something").receipt for run in runs]


def book(url, receipts):
    """Book a month: deposits, the auctions of the receipts, one that was voided, and a reversal."""
    with Ledger(url, scales={"EUR": 2}) as ledger:
        for owner in ("TuneTown", "C"):
            ledger.deposit(owner, 100, currency="EUR", key=owner, note="first")
        for receipt in receipts:
            amounts = {bid.owner: Decimal(bid.charge) for bid in receipt.agents}
            ledger.hold(receipt.auction_id, dict.fromkeys(amounts, Decimal(20)), currency="EUR")
            ledger.charge(receipt.auction_id, amounts, currency="EUR", receipt=receipt.as_dict())
        ledger.hold("voided", {"C": Decimal(1)}, currency="EUR")
        ledger.void("voided")
        ledger.charge("paid", {"C": Decimal("-1.005")}, currency="EUR")
        ledger.reverse(receipts[0].auction_id, owner="C", reason="complaint")
        ledger.withdraw("TuneTown", "0.50", currency="EUR", key="out")
        ledger.deposit("Other", "0.000001", currency="USD", key="other")


@pytest.fixture
def booked(path, receipts):
    """The file of a ledger with a month in it."""
    book(f"sqlite:///{path}", receipts)
    return path
