"""A server for all tests, and the clients that call it."""

import threading
from dataclasses import dataclass

import openai
import pytest

from llm_auction_chain import AuctionRunnable, Billing, Ledger
from llm_auction_chain.server import Key, Limits, create_app
from tests.server.kitchen import LONG, Gate, Kitchen, agents, serving


@dataclass
class Site:
    """A running server: where it is, its application and ledger, what its model waits for, keys by their names."""

    url: str
    app: object
    gate: Gate
    ledger: Ledger
    keys: dict

    def money(self):
        """Return what is set aside in all accounts, and what they have."""
        accounts = self.ledger.accounts()
        return sum(one.held for one in accounts), sum(one.balance for one in accounts)

    def settled(self, before):
        """Wait until the accounts are as before: holds are released as soon as the model is left."""
        for _ in range(1000):
            if self.money() == before:
                return
            threading.Event().wait(0.01)
        assert self.money() == before


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """A server for the whole session."""
    gate = Gate()
    path = tmp_path_factory.mktemp("server") / "ledger.sqlite"
    texts, stored = zip(
        Key.new("client", name="web"),
        Key.new("client", name="phone"),
        Key.new("operator", name="ops"),
        Key.new("owner", name="eggs", owner="egg-group"),
        strict=True,
    )
    with Ledger(f"sqlite:///{path}", keep_replies=True) as ledger:
        for owner in ("egg-group", "oat-group"):
            ledger.deposit(owner, 100_000, key=owner)
        settings = {"model": Kitchen(gate=gate), "agents": agents(), "n_candidates": 4, "reward_timeout": 10.0}
        auctions = {
            "ads": AuctionRunnable(**settings),
            "ads/charged": AuctionRunnable(**settings, billing=Billing(ledger=ledger)),
            "ads/strict": AuctionRunnable(**settings, billing=Billing(ledger=ledger, on_error="raise")),
            "ads/tools": AuctionRunnable(**settings, on_tool_calls="auction"),
        }
        limits = Limits(keep_alive=0.05, n=3, max_tokens=100, body_bytes=100_000)
        app = create_app(auctions, keys=stored, limits=limits)
        keys = dict(zip((key.name for key in stored), texts, strict=True))
        with serving(app) as url:
            yield Site(url, app, gate, ledger, keys)


@pytest.fixture
def gate(site):
    """The gate of the model, closed."""
    site.gate.reset()
    yield site.gate
    site.gate.open()


@pytest.fixture
def client(site):
    """OpenAI's Python client, which repeats nothing by itself."""
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key=site.keys["web"], max_retries=0, timeout=LONG) as client:
        yield client


@pytest.fixture
async def async_client(site):
    key = site.keys["web"]
    async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key=key, max_retries=0, timeout=LONG) as client:
        yield client
