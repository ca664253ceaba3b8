"""Example receipts: rich ones, random ones, and every small change of one."""

import copy
import json
import warnings
from decimal import Decimal

import numpy as np
from hypothesis import strategies as st
from langchain_core.messages import AIMessage

from llm_auction_chain import (
    Agent,
    AuctionRunnable,
    AuctionWarning,
    Billing,
    ContextProduct,
    ContextPrompt,
    DefensiveMixture,
    Policy,
    Reference,
)
from llm_auction_chain.candidates import Candidate
from llm_auction_chain.canonical_json import digest
from llm_auction_chain.mechanism import PAYMENT_RULES, settle
from llm_auction_chain.mechanism.allocation import streams_of
from llm_auction_chain.money import as_text, charges_of, total
from llm_auction_chain.receipts import GENERATOR, MECHANISM, AgentView, Receipt, issue, open_auction
from llm_auction_chain.receipts.records import commitment, opening_commitment, report_salt
from llm_auction_chain.reports import Report
from llm_auction_chain.rewards import ClickReward
from llm_auction_chain.testing import MarkovChatModel

WORDS = MarkovChatModel(tilts={"TuneTown": (0.0, 1.5, 0.0), "StringSchool": (-1.0, 0.0, 1.0)})
MIXTURE = DefensiveMixture([(Reference(), 1), (ContextPrompt(), 1), (ContextProduct(0.3), 2)])


def no_b_first(prompt, reply):
    return not reply.text.startswith("b")


def fails(prompt, reply):
    raise LookupError("no stock")


def receipt_of(reports, log_weights, *, tau, rule="expected", owners=None, pays=None, seed=7):
    """Return the receipt of an auction with these reports, (N, M), and log-weights, (M,); `-inf` is never drawn."""
    n, m = np.shape(reports)
    owners, pays = owners or [f"owner-{k}" for k in range(n)], pays or [True] * n
    terms = {
        "library": "0", "mechanism": MECHANISM, "time": "2026-01-01T00:00:00.000000+00:00", "model": "m",
        "contexts": "none", "currency": "EUR", "tau": tau, "payment_rule": rule, "generator": GENERATOR,
    }  # fmt: skip
    opening = open_auction(
        auction_id="x", salt="5a" * 32, prompt=[], terms=terms, seed=seed, draw_seed=streams_of(seed)[1],
        left_out=[], bypassed=False,
        candidates=[Candidate(message=AIMessage(str(j)), log_weight=nats) for j, nats in enumerate(log_weights)],
        components=[("reference", m)], report_cap=None,
        agents=[Agent(f"agent-{k}", max, owner=owners[k], pays=pays[k]) for k in range(n)],
    )  # fmt: skip
    reports = np.where(np.isneginf(log_weights), 0.0, reports)
    settled = settle(
        reports, log_weights, tau=tau, payment_rule=rule, owners=owners, pays=pays, seed=streams_of(seed)[1]
    )
    return issue(
        opening, auction_id="x", reports=[Report(rewards=tuple(row)) for row in reports.tolist()], settlement=settled,
        charges=charges_of(settled.payments.tolist(), owners), prices_per_click=[None] * n,
    )  # fmt: skip


def with_new_commitments(receipt):
    """Return the receipt with commitments and digest to match, as a platform that has the salts would."""
    kind = AgentView if "salts" in receipt else Receipt
    made = kind.from_dict(receipt)
    salts = [report_salt(made.salt, k) for k in range(len(made.agents))] if kind is Receipt else None
    reports = [
        commitment(salt, bid.committed(made.auction_id))
        for salt, bid in zip(salts or made.salts.reports, made.agents, strict=True)
    ]
    made = kind.from_dict({**receipt, "reports": reports})
    return with_new_digest({**made.as_dict(), "opening": opening_commitment(made.auction_id, made.commitments())})


def overcharge(receipt, agent, extra):
    """Return the receipt with a higher payment of an agent, and with sums and digests to match."""
    forged = copy.deepcopy(receipt.as_dict())
    (bid,) = (bid for bid in forged["agents"] if bid["agent"] == agent)
    bid["expected"] += extra
    bid["payment"] += extra
    bid["contribution"] -= extra
    bids = forged["agents"]
    for one, amount in zip(bids, charges_of([b["payment"] for b in bids], [b["owner"] for b in bids]), strict=True):
        one["charge"] = as_text(amount)
    if "revenue" in forged:
        forged["revenue"] = as_text(total(Decimal(bid["charge"]) for bid in forged["agents"]))
    return with_new_digest(forged)


def crowd():
    """Return agents of every kind: with contexts, of one owner, capped, failing, per click, never charged, a rival."""
    return [
        Agent("TuneTown", lambda prompt, reply: 2.0 * reply.text.count("b"), context="TuneTown sells.", owner="Music"),
        Agent("StringSchool", lambda prompt, reply: reply.text[-1] == "c", context="StringSchool", owner="Music"),
        Agent("Capped", lambda prompt, reply: 3.0 * reply.text.count("a"), report_cap=2.5, categories=["cars"]),
        Agent("Late", fails),
        Agent("Clicks", ClickReward(4.0, lambda prompt, reply: 0.2 + 0.3 * (reply.text[0] == "c"))),
        Agent("User", lambda prompt, reply: 0.3 * (reply.text == "ac"), pays=False),
        Agent("Rival", max, categories=["cars"]),
    ]  # fmt: skip


def hold_auction(agents, **settings):
    """Return the result of an auction."""
    defaults = {"model": WORDS, "n_candidates": 9, "seed": 7}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AuctionWarning)
        return AuctionRunnable(agents=agents, **{**defaults, **settings}).run("Say something")


def rich_receipt(rule="expected", **settings):
    """Return the receipt of an auction in which everything happens."""
    settings = {
        "policy": Policy(exclusive_categories=["cars"], candidate_filter=no_b_first),
        "proposal": MIXTURE,
        "n_candidates": 12,
        **settings,
    }
    return hold_auction(crowd(), payment_rule=rule, billing=Billing(currency="EUR"), **settings).receipt


def at_a_fallback():
    """Return the receipt of an auction whose filter excludes every reply."""
    return hold_auction(
        crowd()[:3], policy=Policy(candidate_filter=lambda prompt, reply: False, fallback="Let me think.")
    ).receipt


def all_receipts():
    """Return receipts and views of many kinds, as JSON, by name."""
    receipts = {rule: rich_receipt(rule) for rule in PAYMENT_RULES}
    made = {**receipts, "fallback": at_a_fallback(), "alone": hold_auction([]).receipt}
    views = {f"{name} {agent}": receipts[name].view(agent) for name, agent in [
        ("expected", "TuneTown"), ("proportional", "Clicks"), ("influence", "Capped"), ("pivot", "User"),
        ("pivot", "Late"),
    ]}  # fmt: skip
    return {name: json.loads(json.dumps(one.as_dict(), allow_nan=False)) for name, one in {**made, **views}.items()}


def with_new_digest(receipt):
    """Return the receipt with a digest to match, as a forger would."""
    return {
        **receipt,
        "digest": digest({name: receipt[name] for name in receipt if name not in ("digest", "signature")}),
    }


def changes_of(receipt):
    """Yield every small change of a receipt, with the path to it."""
    for path, value in _places(receipt, ()):
        for other in _others(value):
            forged = copy.deepcopy(receipt)
            _put(forged, path, other)
            if forged != receipt:
                yield path, forged


def _places(value, path):
    yield path, value
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from _places(inner, (*path, key))


def _others(value):  # noqa: PLR0911 - one a type
    """Return other values for the place of a value."""
    if isinstance(value, dict):
        return [{**value, "more": 1}, *({k: v for k, v in value.items() if k != key} for key in value)]
    if isinstance(value, list):
        swapped = [[*value[:k], value[k + 1], value[k], *value[k + 2 :]] for k in range(len(value) - 1)]
        return [value[1:], value[:-1], [*value, *value[-1:]], [*value, None], *swapped] if value else [[None]]
    if isinstance(value, bool):
        return [not value, None, int(value)]
    if isinstance(value, int):
        return [value + 1, -value - 1, None, str(value)]
    if isinstance(value, float):
        return [value * (1 + 1e-6) + 1e-6, -value, None]
    if isinstance(value, str):
        middle = len(value) // 2
        letter = "0" if value[middle : middle + 1] != "0" else "1"
        return [f"{value[:middle]}{letter}{value[middle + 1 :]}", value[:-1], None]
    return [0, "", False]


def _put(receipt, path, value):
    if not path:
        kept = dict(value)
        receipt.clear()
        receipt.update(kept)
        return
    *way, last = path
    for key in way:
        receipt = receipt[key]
    receipt[last] = value


AMOUNTS = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([0.0, 1.0, 1e6, -1e6, 1e-9, 0.5]))
KINDS = st.one_of(
    st.tuples(st.just("letters"), st.tuples(AMOUNTS, AMOUNTS, AMOUNTS)),
    st.tuples(st.just("click"), st.floats(0.0, 1e6)),
    st.just(("fails", None)),
)
BIDDERS = st.lists(st.tuples(KINDS, st.sampled_from([None, None, "X", "Y"]), st.booleans(),
                             st.sampled_from([None, 0.5, 7, 1e5]), st.sampled_from(["", "TuneTown", "StringSchool"])),
                   max_size=5)  # fmt: skip


@st.composite
def auctions(draw):
    """Return the result of a random auction."""
    agents = []
    pays, clicks = {}, {}
    for k, ((kind, worth), owner, may_pay, cap, context) in enumerate(draw(BIDDERS)):
        name = f"agent-{k}"
        paying = pays.setdefault(owner or name, may_pay or k < 2)
        # an owner pays per click for all of its agents, or for none
        fits = clicks.setdefault(owner or name, kind == "click") == (kind == "click")
        reward = {"letters": _letters, "click": _clicks, "fails": lambda worth: fails}[kind](worth)
        agents.append(Agent(name, reward, owner=owner if fits else None, pays=paying, report_cap=cap, context=context))
    allows = draw(st.sampled_from([None, None, no_b_first, lambda prompt, reply: False]))
    return hold_auction(
        agents,
        payment_rule=draw(st.sampled_from(PAYMENT_RULES)),
        tau=draw(st.one_of(st.floats(1e-6, 1e6), st.sampled_from([1.0, 1.0, 1e-12, 1e12]))),
        seed=draw(st.integers(0, 2**64)),
        proposal=draw(st.sampled_from([None, Reference(), MIXTURE])),
        n_candidates=draw(st.integers(1, 12)),
        policy=Policy(candidate_filter=allows, fallback="Let me think."),
        report_cap=draw(st.sampled_from([None, None, 3.0])),
    )


def _letters(worth):
    return lambda prompt, reply: sum(reply.text.count(letter) * each for letter, each in zip("abc", worth, strict=True))


def _clicks(worth):
    return ClickReward(worth, lambda prompt, reply: reply.text.count("a") / 2)
