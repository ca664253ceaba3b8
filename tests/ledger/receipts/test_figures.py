"""Tolerances: honest figures are always valid, and a forger can change almost nothing."""

import copy
import json

import numpy as np
import pytest

from llm_auction_chain import Agent
from llm_auction_chain.mechanism import PAYMENT_RULES, settle
from llm_auction_chain.mechanism.allocation import streams_of
from llm_auction_chain.money import as_decimal, as_text
from llm_auction_chain.receipts import Receipt, verify
from llm_auction_chain.receipts.figures import figures_of
from llm_auction_chain.rewards import ClickReward
from tests.unit.receipts.examples import (
    hold_auction,
    no_b_first,
    overcharge,
    receipt_of,
    rich_receipt,
    with_new_commitments,
    with_new_digest,
)


def counts(letter, worth, constant=0.0):
    return lambda prompt, reply: constant + worth * reply.text.count(letter)


def random_auction(rng):
    """Return reports, log-weights and terms: of any size relative to tau, with constants, duplicates and opposites."""
    n, m, tau = int(rng.integers(1, 7)), int(rng.integers(1, 12)), 10.0 ** rng.uniform(-9, 12)
    spreads = tau * 10.0 ** (
        rng.uniform(-9, 9, n) if rng.random() < 0.5 else rng.uniform(-7, 7) + rng.uniform(-2, 2, n)
    )
    shape = rng.random((n, m)) if rng.random() < 0.5 else rng.integers(0, 2, (n, m))
    constants = np.where(rng.random(n) < 0.6, 0.0, spreads * 10.0 ** rng.uniform(-3, 6, n))
    reports = spreads[:, None] * shape + constants[:, None]
    if n > 1 and rng.random() < 0.3:
        reports[1] = reports[0] * rng.choice([1.0, 0.999, 2.0])
    rule = PAYMENT_RULES[rng.integers(4)]
    if rule != "proportional":
        reports *= rng.choice([-1, 1], size=(n, 1))
    log_weights = rng.normal(size=m) * rng.choice([0, 1, 20, 300])
    if m > 2 and rng.random() < 0.2:
        log_weights[rng.integers(m)] = -np.inf
    owners = [str(rng.choice(["X", "Y", f"own {k}"])) for k in range(n)]
    pays = [owner != "Y" for owner in owners]
    return reports, log_weights, {
        "tau": tau, "rule": rule, "owners": owners, "pays": pays, "seed": int(rng.integers(2**53))
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_honest_receipts_and_views_hold_whatever_tau_and_reports_are(seed):
    rng = np.random.default_rng(seed)
    for _ in range(40):
        reports, log_weights, terms = random_auction(rng)
        receipt = receipt_of(reports, log_weights, **terms)
        for one in (receipt, *(receipt.view(bid.agent) for bid in receipt.agents)):
            assert verify(one).differences == (), (reports, log_weights, terms)


@pytest.mark.parametrize("size", [1e9, 1e10, 1e11, 1e12])
def test_a_view_holds_where_another_report_leaves_few_digits_for_its_own(size):
    rng = np.random.default_rng(int(np.log10(size)))
    for seed in range(100):
        own = 10.0 ** rng.uniform(3.4, 5) * rng.random((2, 6))
        other = size * (rng.random() + np.array([1, 1, 1, 0, 0, 0]))
        receipt = receipt_of([*own, other], rng.normal(size=6), tau=1.0, rule=PAYMENT_RULES[seed % 4], seed=seed)
        for one in (receipt, *(receipt.view(bid.agent) for bid in receipt.agents)):
            assert verify(one).differences == ()


def test_a_view_holds_where_what_agents_of_one_owner_would_pay_alone_has_few_digits():
    rng = np.random.default_rng(0)
    for seed in range(200):
        lead, size = rng.uniform(0, 14), 10.0 ** rng.uniform(8, 10)
        own = np.array([[0.0, 1.0, 0.3], [0.0, 1.0 + rng.uniform(0, 3) / size, 0.1]]) * size
        receipt = receipt_of(
            [*own, [size - lead, 0.0, 0.0]], rng.normal(size=3), tau=1.0, owners=["o", "o", "q"], seed=seed
        )
        assert verify(receipt.view("agent-0")).differences == ()


@pytest.mark.parametrize("span", [1e-6, 1e-9, 1e-12])
def test_a_view_holds_where_the_pivot_is_a_tie_but_for_the_last_digits(span):
    rng = np.random.default_rng(0)
    for seed in range(100):
        noise = -np.log(np.random.default_rng(streams_of(seed)[1]).standard_exponential(3))
        tie = noise[0] - noise - np.array([0.0, rng.random() * span, 50.0])
        receipt = receipt_of(
            [span * rng.random(3), 3 * rng.random() * np.ones(3)], tie, tau=1.0, rule="pivot", seed=seed
        )
        for bid in receipt.agents:
            assert verify(receipt.view(bid.agent)).differences == ()


SHILLS = ["none", "constant", "favourite", "opposed"]


@pytest.mark.parametrize("shill", SHILLS)
def test_a_forger_moves_less_than_a_hundred_millionth_of_what_reports_span(shill):
    rng = np.random.default_rng(SHILLS.index(shill))
    tried = 0
    while tried < 60:
        reports, log_weights, terms = random_auction(rng)
        if shill == "opposed" and terms["rule"] == "proportional":
            continue
        m = len(log_weights)
        more = {
            "none": [], "constant": [np.full(m, 1e100)], "favourite": [1e9 * terms["tau"] * (np.arange(m) == 0)],
            "opposed": [1e9 * terms["tau"] * rng.random(m)] * 2,
        }[shill]  # fmt: skip
        if shill == "opposed":
            more[1] = -more[0]
        terms["owners"] += ["the platform"] * len(more)
        terms["pays"] += [False] * len(more)
        receipt = receipt_of(np.vstack([reports, *more]), log_weights, **terms)
        possible = ~np.isneginf(log_weights)
        for bid in receipt.agents[: len(reports)]:
            own = [row for row, owner in zip(reports, terms["owners"], strict=False) if owner == bid.owner]
            least = max(1e-6, 1e-8 * np.ptp(np.sum(own, axis=0)[possible]))
            for one in (receipt, receipt.view(bid.agent)):
                tried += 1
                for extra in least * 10.0 ** np.arange(0, 20, 2):
                    assert not verify(overcharge(one, bid.agent, extra)).ok, (
                        extra / least,
                        reports,
                        log_weights,
                        terms,
                    )


@pytest.mark.parametrize("rule", PAYMENT_RULES)
@pytest.mark.parametrize("tau", [1e-3, 1.0, 1e6, 1e12])
def test_no_report_and_no_tau_lets_a_platform_invent_a_charge(tau, rule):
    agents = [
        Agent("B", counts("b", 2.0)),
        Agent("C", counts("c", 1.0)),
        Agent("S", counts("a", 0.0, 1e100), pays=False),
    ]
    receipt = hold_auction(agents, tau=tau, payment_rule=rule).receipt
    for one in (receipt, receipt.view("B")):
        assert verify(one).ok
        for extra in (1e-5, 0.9, 9.0, 999.0, -1e-5, -9.0):
            assert not verify(overcharge(one, "B", extra)).ok


def test_a_law_with_rivals_who_do_not_exist_is_found_in_the_receipt():
    agents = [
        Agent("B", counts("b", 2.0)),
        Agent("C", counts("c", 1.0)),
        Agent("S", counts("a", 0.0, 1e100), pays=False),
    ]
    receipt = hold_auction(agents).receipt
    forged = receipt.as_dict()
    reports = np.array([bid.report for bid in receipt.agents[:2]])
    rng = np.random.default_rng(0)
    bias = 0.1 * rng.normal(size=reports.shape[1])
    law = settle(reports, bias, tau=1.0, seed=int(receipt.draw_seed))
    forged["log_probabilities"], forged["probabilities"] = law.log_probabilities.tolist(), law.probabilities.tolist()
    forged["winner"] = law.winner
    for k, name in enumerate("BC"):
        figures = figures_of(Receipt.from_dict(forged).view(name))
        bid = forged["agents"][k]
        bid["expected"], bid["payment"] = figures.expected_payments.item(), figures.payments.item()
        bid["steering"] = figures.steering.item()
        bid["contribution"], bid["charge"] = figures.contributions.item(), as_text(as_decimal(figures.payments.item()))
    assert verify(Receipt.from_dict(with_new_digest(forged)).view("B")).ok  # a view trusts p
    assert "log_probabilities[0]" in {found.field for found in verify(with_new_digest(forged)).differences}


def test_probabilities_are_those_of_the_log_probabilities_to_twelve_digits():
    forged = rich_receipt().as_dict()
    j = int(np.argmax(forged["probabilities"]))
    forged["probabilities"][j] *= 1 + 1e-11
    assert [found.field for found in verify(with_new_digest(forged)).differences] == [f"probabilities[{j}]"]


@pytest.mark.parametrize("of", ["receipt", "view"])
def test_a_report_on_a_reply_that_is_never_drawn_is_zero(of):
    receipt = hold_auction([Agent("B", counts("b", 2.0)), Agent("C", counts("c", 1.0))], policy=no_b_first).receipt
    forged = (receipt if of == "receipt" else receipt.view("B")).as_dict()
    j = forged["log_probabilities"].index(None)
    forged["agents"][0]["report"][j] = 1e100
    assert [found.field for found in verify(with_new_commitments(forged)).differences] == [f"agents[0].report[{j}]"]


@pytest.mark.parametrize("rule", PAYMENT_RULES)
def test_a_price_per_click_follows_from_the_value_that_the_agent_gave(rule):
    clicks = ClickReward(4.0, lambda prompt, reply: min(0.9, 0.1 + 0.2 * reply.text.count("b")))
    receipt = hold_auction([Agent("K", clicks), Agent("C", counts("c", 1.0))], seed=3, payment_rule=rule).receipt
    for one in (receipt, receipt.view("K")):
        forged = one.as_dict()
        bid = forged["agents"][0]
        assert bid["value_per_click"] == 4.0
        assert bid["price_per_click"] <= 4.0
        bid["click_through"] = [chance / 100 for chance in bid["click_through"]]
        bid["price_per_click"] *= 100
        assert "agents[0].report[0]" in {found.field for found in verify(with_new_commitments(forged)).differences}
        bid["value_per_click"] *= 100  # consistent again, but not what the agent committed to
        assert verify(with_new_commitments(forged)).ok
        assert [found.field for found in verify(with_new_digest(forged)).differences] == ["reports[0]"]


def test_a_cut_report_per_click_holds_and_a_value_without_clicks_does_not():
    capped = Agent("K", ClickReward(4.0, lambda prompt, reply: 0.3 * (1 + reply.text.count("b") % 3)), report_cap=2.0)
    receipt = hold_auction([capped, Agent("C", counts("c", 1.0))]).receipt
    assert receipt.agents[0].status == "capped"
    assert verify(receipt).ok
    forged = receipt.as_dict()
    forged["agents"][1]["value_per_click"] = 2.0
    assert [found.field for found in verify(with_new_commitments(forged)).differences] == ["agents[1].value_per_click"]


def deciding_alone(rng):
    """Return agents of one owner each of which would decide alone, so that none would pay anything alone."""
    tau, scale = 10.0 ** rng.uniform(-3, 0), 10.0 ** rng.uniform(2.5, 7)
    wishes = [{letter: rng.choice([0.0, 1.0, rng.random()]) * scale * tau for letter in "abc"} for _ in range(3)]
    owners, pays = ["o", "o", rng.choice(["o", "q"])], rng.random() < 0.7
    agents = []
    for k, (wish, owner) in enumerate(zip(wishes, owners, strict=True)):
        worth = lambda prompt, reply, wish=wish: max(map(wish.get, reply.text))  # noqa: E731
        agents.append(Agent(f"A{k}", worth, owner=str(owner), pays=bool(pays or owner == "q")))
    return tau, agents


@pytest.mark.parametrize("rule", PAYMENT_RULES)
def test_views_of_agents_of_one_owner_hold_where_each_alone_would_pay_rounding(rule):
    rng = np.random.default_rng(1)
    for seed in range(30):
        tau, agents = deciding_alone(rng)
        receipt = hold_auction(agents, tau=tau, payment_rule=rule, seed=seed).receipt
        for one in (receipt, *(receipt.view(agent.name) for agent in agents)):
            assert verify(one).differences == ()


def test_an_owners_payment_is_checked_strictly_however_its_agents_divide_it():
    reports = 1e4 * np.array([[0.0, 1.0, 0.0], [0.0, 0.8, 0.0], [0.5, 0.0, 0.0]])
    receipt = receipt_of(reports, [0.0, 0.1, 0.2], tau=1.0, owners=["o", "o", "q"])
    assert 0.8 * receipt.agents[0].payment == pytest.approx(receipt.agents[1].payment)
    for one in (receipt, receipt.view("agent-0")):
        told = {found.field for found in verify(overcharge(one, "agent-0", 1e-3)).differences}
        assert {"sum(agents.expected) of 'o'", "sum(agents.payment) of 'o'"} <= told


def test_an_owner_may_have_any_name():
    receipt = receipt_of(np.eye(3), np.zeros(3), tau=1.0, owners=["{}", "{}", "{x!r}"])
    told = verify(overcharge(receipt, "agent-0", 1.0)).differences
    assert "sum(agents.payment) of '{}'" in {found.field for found in told}


def test_an_owners_agents_divide_its_payment_by_the_spans_of_their_reports():
    receipt = rich_receipt()
    forged = copy.deepcopy(receipt.as_dict())
    one, other = forged["agents"][:2]
    assert one["owner"] == other["owner"]
    one["expected"], other["expected"] = one["expected"] - 1e-6, other["expected"] + 1e-6
    assert {found.field for found in verify(with_new_digest(forged)).differences} == {
        "agents[0].expected",
        "agents[1].expected",
    }


def test_whole_numbers_may_be_spelled_with_a_point_and_flags_and_texts_are_none():
    told = rich_receipt().as_dict()
    spelled = json.loads(json.dumps(told), parse_int=float)
    assert any(type(candidate["draws"]) is float for candidate in spelled["candidates"])
    assert verify(spelled).ok
    for value in (True, "1", 1.5, [1]):
        assert not verify({**told, "winner": value}).ok
