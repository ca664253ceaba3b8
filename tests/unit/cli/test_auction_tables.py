"""What the shell shows, on terminals of every width."""

import re
from dataclasses import replace

import numpy as np
import pytest
from langchain_core.language_models import FakeListChatModel, FakeMessagesListChatModel
from langchain_core.messages import AIMessage
from rich.console import Console

from llm_auction_chain import Agent, AuctionRunnable, AuctionWarning, Billing, Policy
from llm_auction_chain.cli.auction_tables import _percent, show, show_details
from llm_auction_chain.testing import MarkovChatModel


def fails(prompt, reply):
    raise ZeroDivisionError("oh")


AGENTS = [
    Agent("StringSchool", lambda prompt, reply: reply.text.count("b"), context="abc guitars"),
    Agent("TuneTown", lambda prompt, reply: 2.0 * reply.text.count("c"), context="instruments", owner="tune-group"),
]


def shown(width, agents=AGENTS, scale=1.0, length=3, show=show_details, **settings):
    scaled = [replace(agent, reward=lambda p, r, reward=agent.reward: scale * reward(p, r)) for agent in agents]
    model = MarkovChatModel(length=length, tilts={"guitars": (0.0, 2.0, 0.0)})
    result = AuctionRunnable(model=model, agents=scaled, n_candidates=16, **{"seed": 7, **settings}).run("x")
    console = Console(width=width, color_system=None, force_terminal=True)
    with console.capture() as captured:
        show(result, console)
    return result, captured.get()


def test_caps_rivals_currency_and_disclosure_are_said():
    agents = [
        Agent("First", lambda prompt, reply: 9.0 * reply.text.count("b"), report_cap=1.0, categories=["music"]),
        Agent("Second", max, categories=["music"]),
        Agent("Yen", max, currency="JPY"),
    ]
    model = MarkovChatModel(length=3)
    auction = AuctionRunnable(
        model=model,
        agents=agents,
        seed=3,
        policy=Policy(exclusive_categories=["music"]),
        billing=Billing(currency="EUR"),
        disclosure="Ad: {sponsors}",
    )
    with pytest.warns(AuctionWarning, match="Yen took no part"):
        result = auction.run("x")
    console = Console(width=80, color_system=None, force_terminal=True)
    with console.capture() as captured:
        show_details(result, console)
    out = captured.get()
    assert result.sponsors
    for said in (
        "First reported rewards beyond its cap",
        "Second took no part: another owner holds the category music.",
        "Yen took no part: its rewards are in another currency.",
        " EUR",
        "Ad: First",
    ):
        assert said in out


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("scale", [1.0, 1e7])
def test_nothing_vanishes_on_any_terminal(width, scale):
    result, out = shown(width, scale=scale)
    lines = out.splitlines()
    assert max(map(len, lines)) <= width
    for agent, payment in zip(AGENTS, result.settlement.payments, strict=True):
        assert agent.name in out
        assert f"{payment:.4f}" in out
    assert "(tune-group)" in out
    for j, candidate in enumerate(result.candidates):
        row, record = rf" *{j} +{candidate.message.text} +[a-z]", rf"  reply +{candidate.message.text} *$"
        assert any(re.match(row if width > 40 else record, line) for line in lines), (j, out)
    assert "reported" not in out
    for fact in ("seed 7", result.auction_id, f"revenue {result.settlement.revenue:.4f}"):
        assert fact in out


@pytest.mark.parametrize("width", [60, 80])
def test_a_long_reply_is_cut_and_leaves_the_figures_their_room(width):
    result, out = shown(width, length=100)
    for j, candidate in enumerate(result.candidates):
        start, probability = candidate.message.text[:5], result.settlement.probabilities[j]
        row = rf"^ *{j} +{start}[abc]+… .* {candidate.log_weight:.2f} .* {probability:.4f}$"
        assert re.search(row, out, re.MULTILINE), (j, out)


def test_draws_components_and_the_log_normaliser_are_shown():
    result, out = shown(80)
    assert len(result.components) > 1
    assert result.draws > len(result.candidates)
    letters = {}
    for letter, (name, count) in zip("abcdef", result.components, strict=False):
        assert f"{letter} {name} {count}" in out
        letters[name] = letter
    for j, candidate in enumerate(result.candidates):
        times = f" x{candidate.draws}" if candidate.draws > 1 else ""
        assert re.search(
            rf"^ *{j} +{candidate.message.text} +{letters[candidate.component]}{times} ", out, re.MULTILINE
        )
    assert f"draws {result.draws} " in out
    assert f"log-normaliser {result.settlement.diagnostics.log_normaliser:.4f}" in out


def test_one_component_needs_no_letters():
    result, out = shown(80, agents=[Agent("A", lambda prompt, reply: 1.0)])
    assert f"draws {result.draws}, all from the reference" in out
    assert " x2" in out


def test_escapes_in_replies_are_spelled_out_and_names_are_no_markup():
    model = FakeListChatModel(responses=["Hi\x1b[2J\tthere\u202e"])
    agents = [Agent("[red]A", lambda prompt, reply: 1.0)]
    result = AuctionRunnable(
        model=model, agents=agents, n_candidates=1, disclosure="\x9b1A{sponsors}", report_cap=1.0
    ).run("x")
    console = Console(width=80, color_system=None, force_terminal=True)
    with console.capture() as captured:
        show_details(result, console)
    assert not {"\x1b", "\u202e", "\x9b"} & set(captured.get())
    assert "[red]A" in captured.get()
    assert "Hi\\x1b[2J" in captured.get()


def test_an_agent_that_abstains_gets_a_line_of_its_own():
    _, out = shown(80, agents=[*AGENTS, Agent("SongBook", fails)])
    assert "\nSongBook abstains (error): ZeroDivisionError: oh\n" in out


def test_without_agents_there_is_no_table_of_them():
    _, out = shown(80, agents=[])
    assert "Agents" not in out
    assert "draws 1, all from the reference" in out


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_first_look_has_the_bids_on_each_candidate_and_its_chance_before_and_after(width):
    result, out = shown(width, show=show, payment_rule="proportional")
    assert max(map(len, out.splitlines())) <= width
    weights = np.exp([candidate.merged_log_weight for candidate in result.candidates])
    for j, candidate in enumerate(result.candidates):
        bids = " +".join(f"{bid:.2f}" if bid else "-" for bid in result.rewards[:, j])
        chances = f"{_percent(weights[j] / weights.sum())} +{_percent(result.settlement.probabilities[j])}"
        assert re.search(rf"^ *{j} +{candidate.message.text} +{bids} +{chances}$", out, re.MULTILINE), (j, out)
    assert f"The reply drawn: candidate {result.settlement.winner} " in out


def test_a_first_look_says_who_pays_and_what_its_bids_did():
    result, out = shown(200, show=show, payment_rule="proportional", seed=1)
    likes_b, likes_c = result.explain().agents
    for agent in (likes_b, likes_c):
        chances = f"from {_percent(agent.probability_without)} to {_percent(agent.probability)}"
        assert f"{agent.agent} pays {float(agent.charge):.2f}: its bids move the chance of this reply {chances}." in out


def test_an_agent_that_bids_nothing_on_the_reply_and_one_that_never_pays_are_said_to():
    def likes_a(prompt, reply):
        return 1.0 + reply.text.count("a")

    agents = [Agent("Never", lambda prompt, reply: 0.0), Agent("User", likes_a, pays=False)]
    _, out = shown(80, agents=agents, show=show)
    assert "\nNever pays 0.00: it bids nothing on this reply.\n" in out
    assert "\nUser never pays: its bids move the chance of this reply from" in out


def test_many_agents_share_one_column_of_bids_and_five_have_a_line():
    agents = [Agent(f"Advertiser {k}", lambda prompt, reply: reply.text.count("b") / 7) for k in range(7)]
    result, out = shown(80, agents=agents, show=show)
    assert "bids" in out.splitlines()[1]
    for j, candidate in enumerate(result.candidates):
        bid = float(result.rewards[:, j].sum())
        assert re.search(rf"^ *{j} +{candidate.message.text} +{f'{bid:.2f}' if bid else '-'} ", out, re.MULTILINE)
    assert out.count(" pays ") == 5
    assert "and 2 more" in out


def test_a_first_look_names_the_replies_that_are_cut():
    messages = [AIMessage("a", response_metadata={"finish_reason": reason}) for reason in ("length", "stop")]
    model = FakeMessagesListChatModel(responses=messages)
    result = AuctionRunnable(model=model, n_candidates=2, seed=3).run("x")
    console = Console(width=80, color_system=None, force_terminal=True)
    with console.capture() as captured:
        show(result, console)
    lengths = [str(j) for j, one in enumerate(result.candidates)
               if one.message.response_metadata["finish_reason"] == "length"]  # fmt: skip
    assert f"Replies cut by --max-tokens: {', '.join(lengths)}" in captured.get()


def test_one_reply_is_a_reply():
    _, text = shown(100, agents=[], show=show)  # without agents, one reply is drawn
    assert "1 reply of the model" in text
