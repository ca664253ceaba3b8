"""What the playground returns; `tests/browser/test_playground.py` opens it."""

import json
import re
import sys
import warnings
from dataclasses import replace
from urllib.parse import unquote_plus

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from llm_auction_chain import Agent, AuctionRunnable, Billing, ConfigurationError, Ledger, server
from llm_auction_chain.errors import MissingDependencyError
from llm_auction_chain.receipts import verify
from llm_auction_chain.rewards import MentionReward
from llm_auction_chain.server.page import changed_digit, mount_playground
from llm_auction_chain.server.page_settings import Settings
from llm_auction_chain.testing import MarkovChatModel, ScriptedChatModel


def mentions(name, *phrases, value=2.0, **settings):
    return Agent(name, MentionReward(phrases, value=value), **settings)


def auction_of(*agents, **settings):
    return AuctionRunnable(model=MarkovChatModel(), agents=agents, **settings)


def call(page, name, *values):
    """Call a handler of a page as gradio does, and return its outputs."""
    handler = next(fn.fn for fn in page.fns.values() if getattr(fn.fn, "__name__", "") == name)
    return handler(*values)


SETTINGS = Settings(
    model="llm-auction", question="Say", agents=[["B", "", "bb, cb", "2"]], candidates=8, tau=1.0, temperature=1.0,
    rule="expected", seed="7",
)  # fmt: skip


async def test_a_run_returns_results_and_charges_nobody():
    with Ledger("sqlite://") as ledger:
        ledger.deposit("B", 100, key="1")
        auction = auction_of(mentions("B", "bb", "cb", report_cap=9.0), billing=Billing(ledger=ledger))
        page = server.playground(auction)
        outputs = await call(page, "_run_auction", *vars(SETTINGS).values())
        assert ledger.balance("B").balance == 100
        assert auction.billing.ledger is ledger
    status, result = outputs[3:5]
    assert "8 candidates" in status
    assert result.seed == 7
    assert "Link to this auction" in outputs[-1]
    assert json.dumps(SETTINGS.agents[0])[1:-1] in unquote_plus(outputs[-1])


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, None), (0.3, 0.3)])
async def test_the_model_gets_the_temperature_only_where_it_is_moved(temperature, expected):
    temperatures = set()

    class Noting(MarkovChatModel):
        def _generate(self, *arguments, **keywords):
            temperatures.add(keywords.pop("temperature", None))
            return super()._generate(*arguments, **keywords)

    page = server.playground(AuctionRunnable(model=Noting()))
    await call(page, "_run_auction", *vars(replace(SETTINGS, temperature=temperature)).values())
    assert temperatures == {expected}


async def test_texts_of_models_and_agents_are_escaped_and_the_drawn_reply_is_among_the_first():
    agents = [Agent(f"<{k}>", lambda prompt, reply, k=k: float(k == len(reply.text))) for k in range(25)]
    model = ScriptedChatModel(turns=[[f"<b>{k} ${{1}}" for k in range(40)]])
    page = server.playground(AuctionRunnable(model=model, agents=agents))
    for seed in "123":
        settings = replace(SETTINGS, candidates=60, seed=seed, agents=[])
        outputs = await call(page, "_run_auction", *vars(settings).values())
        first, more = outputs[6].split("<details>")
        assert "★ Drawn" in first
        assert "★ Drawn" not in more
        assert "less likely replies" in more
        assert "Agents, 20 of 25 that moved the draw most" in first
        pages = [output for output in outputs if isinstance(output, str) and not output.startswith("{")]
        assert not re.search(r"<b>|<\d", "".join(pages))


@pytest.mark.parametrize(
    ("field", "value", "place"),
    [("question", " ", 0), ("agents", [["B", "", "", "1"]], 1), ("seed", "-1", 2), ("seed", "1e3", 2)],
)
async def test_what_is_wrong_is_said_at_its_field_and_nothing_else_changes(field, value, place):
    page = server.playground(auction_of())
    outputs = await call(page, "_run_auction", *vars(replace(SETTINGS, **{field: value})).values())
    assert [one.visible for one in outputs[:3]] == [k == place for k in range(3)]
    assert 'role="alert"' in outputs[place].value
    assert all(output == {"__type__": "update"} for output in outputs[3:])


async def test_a_model_that_fails_is_an_error_on_the_page():
    class Broken(MarkovChatModel):
        def _generate(self, *args, **kwargs):
            raise ConnectionError("no <route>")

    page = server.playground(AuctionRunnable(model=Broken()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = await call(page, "_run_auction", *vars(SETTINGS).values())
    assert 'role="alert"' in outputs[3]
    assert "<route>" not in outputs[3]


def test_a_changed_digit_is_refused_by_the_verification():
    receipt = auction_of(mentions("B", "bb", "cb"), seed=7).run("Say something").receipt
    text = json.dumps(receipt.as_dict())
    assert verify(text).ok
    changed, change = changed_digit(text)
    assert change.startswith("agents[0].charge: ")
    fields = {difference.field for difference in verify(changed).differences}
    assert {"digest", "agents[0].charge", "revenue"} <= fields
    without = auction_of(seed=7).run("Say something").receipt
    changed, change = changed_digit(json.dumps(without.as_dict()))
    assert change.startswith("seed: ")
    assert not verify(changed).ok


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"agents": [{}]}', '{"agents": 1}', '{"agents": [{"charge": "x"}]}'])
def test_what_is_no_receipt_is_left_as_it_is(text):
    assert changed_digit(text) == (text, "Nothing was changed: this is no receipt.")


def test_what_if_waits_for_numbers_and_says_where_an_auction_is_gone():
    page = server.playground(auction_of())
    result = auction_of(mentions("B", "bb", "cb"), seed=7).run("Say something")
    assert call(page, "_recompute", result, None, "B", 1.0) == {"__type__": "update"}
    assert "Run it again" in call(page, "_recompute", None, 1.0, "B", 1.0)
    assert "the lie loses" in call(page, "_recompute", result, 1.0, "B", 2.0)
    assert 'role="alert"' in call(page, "_recompute", result, 1.0, "other", 2.0)


def test_without_gradio_it_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "llm_auction_chain.server.page")
    monkeypatch.delattr(server, "page")
    with pytest.raises(MissingDependencyError, match=r"llm-auction-chain\[playground\]"):
        _ = server.playground


def test_what_is_no_auction_is_refused():
    for wrong in (None, {}, {"a": 1}, {"": auction_of()}):
        with pytest.raises(ConfigurationError):
            server.playground(wrong)


def test_a_server_without_keys_has_an_open_page_and_no_public_functions():
    app = FastAPI()
    mount_playground(app, {"a": auction_of(), "b": auction_of()}, "/play")
    with TestClient(app) as client:
        assert client.get("/play/config").status_code == 200
        assert client.get("/play/gradio_api/info").json() == {"named_endpoints": {}, "unnamed_endpoints": {}}
        assert client.get("/favicon.ico").status_code == 204
