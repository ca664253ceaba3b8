"""Figures show the settlement's own figures, take texts as they are, and leave nothing behind in pyplot."""

import numpy as np
import pytest
from langchain_core.language_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text

from llm_auction_chain import Agent, AuctionResult, Billing, ConfigurationError, plot_tau_sweep, tau_sweep
from tests.unit.auction.auctions import LIKES_B, LIKES_C, auction, both

ODD = "$x^2$ 100% \\frac{1}{2} _a ^b \U0001f3b8 \u65e5\u672c \x1b[2J"


def texts(axes):
    """Return what axes show, line by line."""
    return [text.get_text() for text in axes.findobj(Text) if text.get_text()]


def heads(axes):
    return [label.get_text() for label in axes.get_xticklabels()]


def rows(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def hostile():
    """Return the result of an auction whose every text is odd."""
    model = FakeMessagesListChatModel(responses=[AIMessage(f"{ODD}{k}") for k in range(4)])
    agents = [Agent(f"{name}{ODD.replace(chr(27), '')}", lambda prompt, reply: 1.0) for name in ("$a$", "_b")]
    return auction(agents, model=model, n_candidates=4, billing=Billing(currency="$E_U$")).run(ODD)


async def test_a_figure_has_the_probabilities_with_all_agents_and_without_each():
    for result in await both(auction()):
        probabilities, payments = result.plot().axes
        assert heads(probabilities) == ["all agents", "without\nB", "without\nC"]
        order = np.argsort(-result.settlement.probabilities, kind="stable")
        named = [f'"{result.candidates[j].message.text}"' for j in order]
        shown = [row.removeprefix("drawn: ") for row in rows(probabilities)]
        assert shown == [name for name in named if name in shown] + [row for row in shown if "other" in row]
        assert [row for row in rows(probabilities) if row.startswith("drawn: ")] == [f'drawn: "{result.text}"']
        p, without_b = result.settlement.probabilities, result.settlement.counterfactuals[0]
        longest = max(p.max(), result.settlement.counterfactuals.max())
        bars = probabilities.containers
        for law, container in ((p, bars[0]), (without_b, bars[2]), (p, bars[3])):  # a bar, then the outline
            lengths = [bar.get_width() * longest / 0.6 for bar in container]
            assert lengths[0] == pytest.approx(law[order[0]])
            assert sum(lengths) == pytest.approx(1.0)
        assert rows(payments) == ["B", "C"]
        assert [bar.get_width() for bar in payments.containers[0]] == [float(due) for due in result.payments.values()]
        assert {f"{due}" for due in result.payments.values()} <= set(texts(payments))


def test_an_agent_that_never_pays_or_failed_says_so_and_an_amount_has_its_currency():
    def fails(prompt, reply):
        raise LookupError("no such reply")

    agents = [LIKES_B, Agent("user", LIKES_C.reward, pays=False), Agent("F", fails)]
    result = auction(agents, billing=Billing(currency="EUR")).run("x")
    payments = result.plot().axes[1]
    assert {"never pays", "0.000000 EUR (error)", f"{result.payments['B']} EUR"} <= set(texts(payments))
    assert payments.get_xlabel() == "EUR"


def test_only_so_many_agents_and_replies_have_a_place_of_their_own():
    model = FakeMessagesListChatModel(responses=[AIMessage(f"reply {k}") for k in range(64)])
    agents = [Agent(f"A{k}", lambda prompt, reply, k=k: 0.01 * k * (len(reply.text) % 2)) for k in range(30)]
    result = auction(agents, model=model, n_candidates=64).run("x")
    probabilities, payments = result.plot().axes
    assert len(rows(payments)) == 10
    assert len(heads(probabilities)) == 11
    assert "10 of 30 agents" in probabilities.get_title("left")
    assert len(rows(probabilities)) <= 22
    assert rows(probabilities)[-1] == f"other replies ({64 - 20})"
    assert [bar.get_width() for bar in probabilities.containers[0]][-1] > 0.0


@pytest.mark.parametrize("settings", [{"agents": []}, {"n_candidates": 1}])
def test_a_figure_of_little_is_drawn(settings):
    result = auction(**settings).run("x")
    result.plot().draw_without_rendering()
    assert (result.plot().axes[1].get_title("left") == "No agent took part") == (settings.get("agents") == [])
    plot_tau_sweep(result).draw_without_rendering()


def test_no_text_is_read_as_mathematics_and_none_of_it_warns():
    result = hostile()
    for figure in (result.plot(), plot_tau_sweep(result)):
        figure.draw_without_rendering()  # warnings are errors here
        odd = [text for text in figure.findobj(Text) if "$" in text.get_text()]
        assert len(odd) >= 4
        assert not any(text.get_parse_math() or text.get_usetex() for text in odd)
        assert "\x1b" not in "".join(text.get_text() for text in figure.findobj(Text))
    assert sorted(rows(result.plot().axes[1])) == ["$a$$x^2$ 100…□ [2J", "_b$x^2$ 100%…□ [2J"]


def test_a_figure_is_none_of_pyplots_and_a_notebook_shows_it():
    result = auction().run("x")
    for figure in (result.plot(), plot_tau_sweep(result)):
        assert isinstance(figure, Figure)
        assert figure._repr_png_().startswith(b"\x89PNG")
    assert plt.get_fignums() == []


def test_a_figure_is_drawn_into_axes_that_are_there():
    result = auction().run("x")
    whole = Figure()
    left, right = whole.subfigures(1, 2)
    assert result.plot(axes=left.subplots(2)) is whole
    assert plot_tau_sweep(result, axes=right.subplots(3)) is whole
    assert len(whole.findobj(lambda artist: artist in left.axes and artist.get_title("left"))) == 2
    for axes in (whole.subplots(), [1, 2], whole.subplots(2, 2)):
        with pytest.raises(ConfigurationError, match="axes must be 2 axes of matplotlib, got"):
            result.plot(axes=axes)


def test_a_sweep_shows_its_points_and_the_auctions_tau():
    agents = [LIKES_B, LIKES_C, Agent("user", LIKES_C.reward, pays=False)]
    result = auction(agents, billing=Billing(currency="EUR")).run("x")
    taus = [3.0, 0.3, 1.0]
    payments, distance, size = plot_tau_sweep(result, taus).axes
    points = tau_sweep(result, sorted(taus))
    legend = [text.get_text() for text in payments.get_legend().get_texts()]
    assert legend == ["B", "C", "revenue", "this auction's tau"]
    b, _, revenue, own = payments.lines
    assert list(b.get_xdata()) == sorted(taus)
    assert list(b.get_ydata()) == [point.settlement.expected_payments[0] for point in points]
    assert list(revenue.get_ydata()) == [point.expected_revenue for point in points]
    assert list(distance.lines[0].get_ydata()) == [point.distance for point in points]
    assert list(size.lines[0].get_ydata()) == [point.settlement.diagnostics.ess_probabilities for point in points]
    assert list(own.get_xdata()) == [1.0, 1.0]
    assert (payments.get_ylabel(), size.get_xlabel(), size.get_xscale()) == ("EUR", "tau, EUR per nat", "log")


def test_a_stored_result_has_the_same_figures():
    result = hostile()
    copy = AuctionResult.from_dict(result.as_dict())
    for figure, again in zip(*([one.plot(), plot_tau_sweep(one)] for one in (result, copy)), strict=True):
        assert list(map(texts, figure.axes)) == list(map(texts, again.axes))


def test_a_sweep_needs_a_tau():
    result = auction().run("x")
    for taus, message in (([], "taus must be one number or more"), ([-1.0], "tau must be")):
        with pytest.raises(ConfigurationError, match=message):
            plot_tau_sweep(result, taus)


def test_lines_differ_without_colours():
    agents = [Agent(f"A{k}", lambda prompt, reply, k=k: 0.1 * k * reply.text.count("b")) for k in range(1, 12)]
    lines = plot_tau_sweep(auction(agents).run("x")).axes[0].lines[:10]
    assert len({(line.get_linestyle(), line.get_marker(), str(line._unscaled_dash_pattern)) for line in lines}) == 10
