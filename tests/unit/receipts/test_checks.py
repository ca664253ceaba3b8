"""Contradictions within a receipt are differences."""

import copy

import pytest

from llm_auction_chain import Agent
from llm_auction_chain.receipts import verify
from llm_auction_chain.rewards import Reward
from tests.unit.receipts.examples import hold_auction, rich_receipt, with_new_commitments, with_new_digest

RECEIPT = rich_receipt("pivot").as_dict()


CONTRADICTIONS = [
    ("agents[0].report", lambda r: r["agents"][3].update(report=[1.0] * len(r["candidates"])), "the status is error"),
    ("agents[0].report", lambda r: r["agents"][2].update(report=[5.0] * len(r["candidates"])), "exceeds the cap, 2.5"),
    ("agents[0].status", lambda r: r["agents"][0].update(status="capped"), "there are no bounds"),
    ("agents", lambda r: r["agents"][0].update(agent="Late"), "an agent appears twice"),
    ("left_out", lambda r: r["left_out"][0].update(agent="Late"), "it took part"),
    ("bypassed", lambda r: r.update(bypassed=True), "bypassed is True; there are agents"),
    ("components", lambda r: r["components"][0].update(draws=99), "sum(components.draws)"),
    ("reports", lambda r: r["reports"].pop(), "len(reports)"),
    ("agents[0].report", lambda r: r["agents"][0]["report"].pop(), "cannot be settled"),
    ("agents[4].click_through", lambda r: r["agents"][4]["click_through"].pop(), "len(agents[4].click_through)"),
    ("agents[0].pays", lambda r: r["agents"][0].update(pays=False), "agents that pay and agents that never pay"),
    ("agents[2].bounds", lambda r: r["agents"][2].update(bounds=None), "there is a cap, 2.5"),
    ("agents[2].bounds", lambda r: r["agents"][2].update(bounds=[-3.0, 2.5]), "in order and within the cap, 2.5"),
    ("agents[2].bounds", lambda r: r["agents"][2].update(bounds=[2.5, -2.5]), "in order and within the cap, 2.5"),
    ("generator", lambda r: r.update(generator="dice"), "generator is 'dice'"),
]  # fmt: skip


@pytest.mark.parametrize("k", range(len(CONTRADICTIONS)))
def test_a_contradiction_is_a_difference(k):
    _, contradict, told = CONTRADICTIONS[k]
    forged = copy.deepcopy(RECEIPT)
    contradict(forged)
    assert any(told in str(difference) for difference in verify(with_new_digest(forged)).differences)


class Bounded(Reward):
    bounds = (0.0, 1.0)

    def score(self, prompt, replies):
        return [2.0 * reply.text.count("b") for reply in replies]


def test_a_report_that_is_cut_to_the_bounds_of_its_reward_needs_no_cap():
    result = hold_auction([Agent("Bounded", Bounded())])
    assert (result.reports[0].status, max(result.reports[0].rewards)) == ("capped", 1.0)
    assert verify(result.receipt).ok
    assert verify(result.receipt.view("Bounded")).ok


def test_an_excluded_reply_has_no_weight():
    forged = copy.deepcopy(RECEIPT)
    j = next(j for j, candidate in enumerate(forged["candidates"]) if candidate["excluded"])
    forged["log_weights"][j] = 0.0
    assert f"log_weights[{j}] is 0.0; it should be null" in "".join(
        map(str, verify(with_new_digest(forged)).differences)
    )


def test_the_seed_of_the_draw_is_that_of_the_auction():
    forged = {**rich_receipt().as_dict(), "seed": "8"}
    assert "draw_seed" in {found.field for found in verify(with_new_commitments(forged)).differences}


def test_a_view_has_exactly_one_owner():
    receipt = rich_receipt()
    one, other = receipt.view("Capped"), receipt.view("Clicks")
    forged = one.model_copy(update={"agents": one.agents + other.agents, "reports": one.reports + other.reports})
    told = [str(difference) for difference in verify(forged).differences]
    assert any("a view has one owner" in text for text in told)
    assert any("a view has at least one" in str(d) for d in verify(one.model_copy(update={"agents": ()})).differences)


@pytest.mark.parametrize("of", ["receipt", "view"])
@pytest.mark.parametrize(("field", "value"), [
    ("most_steering", 5.1), ("most_steering", None), ("most_expected", 2.5), ("most_expected", None), ("steering", 4.0),
])  # fmt: skip
def test_a_limit_that_does_not_follow_from_the_bounds_is_named(of, field, value):
    receipt = rich_receipt("pivot")
    forged = (receipt if of == "receipt" else receipt.view("Capped")).as_dict()
    k = 2 if of == "receipt" else 0
    forged["agents"][k][field] = value
    assert [found.field for found in verify(with_new_digest(forged)).differences] == [f"agents[{k}].{field}"]


def test_a_broken_limit_is_named_though_all_the_rest_is_consistent():
    receipt = rich_receipt().view("Capped")
    forged = receipt.as_dict()
    forged["agents"][0] |= {"bounds": [2.4, 2.5], "most_steering": 0.1, "most_expected": 0.00125}
    told = [str(difference) for difference in verify(with_new_commitments(forged)).differences]
    assert any("agents[0].report[" in text and "not within the bounds, (2.4, 2.5)" in text for text in told)
    assert any(text.startswith("agents[0].steering is") and "exceeds the limit, 0.1" in text for text in told)
    assert any(text.startswith("sum(agents.expected) of 'Capped'") and "exceeds the limit" in text for text in told)


def test_bounds_are_committed_to_before_agents_report():
    forged = rich_receipt().as_dict()
    forged["agents"][2]["bounds"] = [-2.0, 2.5]
    assert {"opening", "reports[2]"} <= {found.field for found in verify(with_new_digest(forged)).differences}
