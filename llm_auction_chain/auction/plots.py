"""Figures of one auction: what agents did to it, and what other values of tau would have done. For the extra `plot`."""

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llm_auction_chain.auction.display import by_effect, with_count
from llm_auction_chain.auction.explanation import shortened
from llm_auction_chain.auction.tau_sweep import tau_sweep
from llm_auction_chain.errors import MissingDependencyError
from llm_auction_chain.validators import refuse

try:
    from matplotlib import rcParams
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties, findfont, get_font
except ImportError as error:
    raise MissingDependencyError("A figure needs matplotlib: pip install 'llm-auction-chain[plot]'") from error

if TYPE_CHECKING:
    from llm_auction_chain.auction.explanation import AgentExplanation
    from llm_auction_chain.auction.result import AuctionResult

__all__ = ["MARKERS", "STYLES", "new_figure", "plot_result", "plot_tau_sweep"]

FloatArray = npt.NDArray[np.float64]
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
MARKERS = "osD^vPX*"
_PLAIN: dict[str, Any] = {"parse_math": False, "usetex": False}  # of texts that others wrote: a dollar is a dollar
_REPLIES = 20  # with a row of their own
_FAINT = 0.01  # replies less likely than this part of the likeliest have none
_AGENTS = 10  # with a column, a bar or a line of their own
_REPLY, _NAME, _HEAD = 36, 18, 14  # characters of a reply, of an agent's name, and of one above a column
_LONGEST_BAR = 0.6  # of a column; the number beside it needs the rest
_LEAST = 0.005  # probabilities below it are shown as less
_WIDE = 32.0  # by how much a sweep over tau goes below and above the auction's
_TAUS = 41


class _Picture(Figure):
    """A figure that notebooks show. pyplot does not know it, so nothing has to close it."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches."""
    return _Picture(figsize=(width, height), layout="constrained")


def plot_result(result: "AuctionResult", *, axes: Sequence[Axes] | None = None) -> Figure:
    """Return the figure of `AuctionResult.plot`."""
    agents = by_effect(result)[:_AGENTS]
    places = {agent.name: i for i, agent in enumerate(result.agents)}
    without = [result.settlement.counterfactuals[places[one.agent]] for one in agents]
    distributions = np.stack([result.settlement.probabilities, *without])
    kept = _rows_of(result, distributions)
    if axes is None:
        rows, bars = len(kept) + (len(kept) < len(result.candidates)), max(len(agents), 1)
        figure = new_figure(3.2 + 1.15 * max(len(distributions), 4), 2.4 + 0.27 * (rows + bars))
        axes = figure.subplots(2, 1, height_ratios=[rows + 1.5, bars + 1.0])
    probabilities, payments = _checked(axes, 2)
    _draw_probabilities(probabilities, result, agents, distributions, kept)
    _draw_payments(payments, result, agents)
    return _figure_of(probabilities)


def _rows_of(result: "AuctionResult", distributions: FloatArray) -> list[int]:
    """Return the candidates with a row: the drawn one, and those that are likely in any distribution (K, M)."""
    most, winner = distributions.max(axis=0), result.settlement.winner
    likely = [j for j in np.argsort(-most, kind="stable")[:_REPLIES].tolist() if most[j] >= _FAINT * most.max()]
    return sorted({*likely, winner}, key=lambda j: (-result.settlement.probabilities[j], j))


def _draw_probabilities(
    axes: Axes,
    result: "AuctionResult",
    agents: "Sequence[AgentExplanation]",
    distributions: FloatArray,
    kept: list[int],
) -> None:
    """Draw a row for each reply, and a column of bars for each distribution: of all agents, and without each."""
    texts = [shortened(result.candidates[j].message.text, _REPLY) for j in kept]
    drawn = kept.index(result.settlement.winner)
    texts[drawn] = f"drawn: {texts[drawn]}"
    columns = distributions[:, kept]
    if others := len(result.candidates) - len(kept):
        columns = np.column_stack([columns, np.maximum(distributions.sum(axis=1) - columns.sum(axis=1), 0.0)])
        texts.append(f"other replies ({others})")
    rows, length = np.arange(len(texts)), _LONGEST_BAR / columns.max()
    for column, distribution in enumerate(columns):
        look: dict[str, Any] = {"color": "C0", "hatch": ""} if column == 0 else {"color": "0.8", "hatch": "///"}
        axes.barh(rows, distribution * length, 0.7, left=column, edgecolor="0.4", linewidth=0.5, **look)
        axes.barh(rows, columns[0] * length, 0.7, left=column, fill=False, edgecolor="black", linewidth=1.0)
        for row, p in enumerate(distribution):
            number = f"{p:.2f}" if p >= _LEAST or p <= 0.0 else "<0.01"
            axes.text(column + max(p, columns[0, row]) * length + 0.03, row, number, va="center", fontsize=8)
    names = [f"without\n{_short_name(one.agent, _HEAD)}" for one in agents]
    names.insert(0, "all agents" if agents else "no agents")
    axes.set_xticks(range(len(columns)), names, ha="left", fontsize=8, **_PLAIN)
    axes.set_yticks(rows, map(_drawable, texts), **_PLAIN)
    axes.get_yticklabels()[drawn].set_fontweight("bold")
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlim=(-0.05, len(columns)), ylim=(len(rows) - 0.4, -0.6))
    title = with_count("Probability of each reply", len(agents), len(result.agents), "agents")
    axes.set_title(f"{title}; the outline is that with all agents" if agents else title, loc="left", fontsize=10)


def _draw_payments(axes: Axes, result: "AuctionResult", agents: "Sequence[AgentExplanation]") -> None:
    """Draw a bar for each agent's charge, with the charge in digits."""
    unit = f" {result.currency}" if result.currency else ""
    rows, amounts = np.arange(len(agents)), [float(one.charge) for one in agents]
    axes.barh(rows, amounts, 0.7, color="C0", edgecolor="black", linewidth=0.5)
    for row, one in enumerate(agents):
        click = "" if one.price_per_click is None else f", or {one.price_per_click:.6f}{unit} per click"
        state = "" if one.status == "reported" else f" ({one.status})"
        text = f"{one.charge}{unit}{click}{state}" if one.pays else f"never pays{state}"
        axes.annotate(
            text, (max(amounts[row], 0.0), row), (4, 0), textcoords="offset points", va="center", fontsize=8, **_PLAIN
        )
    axes.set_yticks(rows, [_short_name(one.agent, _NAME) for one in agents], **_PLAIN)
    least, most = min([*amounts, 0.0]), max([*amounts, 0.0])
    axes.set(xlim=(1.05 * least, 1.6 * most or 1.0), ylim=(max(len(rows), 1) - 0.4, -0.6))
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    title = with_count("Payments", len(agents), len(result.agents), "agents") if agents else "No agent took part"
    axes.set_title(title, loc="left", fontsize=10)
    if not agents:
        axes.set_axis_off()
    axes.set_xlabel(_drawable(result.currency or "money"), **_PLAIN)


def plot_tau_sweep(
    result: "AuctionResult", taus: Iterable[float] | None = None, *, axes: Sequence[Axes] | None = None
) -> Figure:
    """Return a figure of the same auction at other values of tau: payments and revenue, distance, and sample size.

    It settles the stored candidates again as `tau_sweep` does, without calls of the model or the agents. Payments are
    expected ones, of the ten agents that pay most; the auction's own tau is marked. Line styles and markers tell agents
    apart without colours.

    Args:
        result: of an auction with agents.
        taus: money per nat, above 0. None for 41 values around the auction's.
        axes: three of matplotlib's, to draw into. None makes a figure, which notebooks show and `savefig` writes.

    Raises:
        ConfigurationError: a tau is not a finite number above 0, or there are not three axes.
        MissingDependencyError: matplotlib is not installed.

    >>> from llm_auction_chain import Agent, AuctionRunnable
    >>> from llm_auction_chain.testing import MarkovChatModel
    >>> agent = Agent("B", lambda prompt, reply: float(reply.text.count("b")))
    >>> held = AuctionRunnable(model=MarkovChatModel(), agents=[agent], seed=7).run("Say something")
    >>> [axes.get_title("left") for axes in plot_tau_sweep(held).axes]
    ['Expected payments', 'How far agents move the distribution', 'Effective number of candidates']
    """
    own = result.settlement.tau
    taus = np.geomspace(own / _WIDE, own * _WIDE, _TAUS).tolist() if taus is None else list(taus)
    points = sorted(tau_sweep(result, taus), key=lambda point: point.tau)
    if not points:
        raise refuse("taus", "one number or more", taus)
    if axes is None:
        axes = new_figure(8.0, 7.0).subplots(3, 1, sharex=True, height_ratios=[2, 1, 1])
    payments, distance, size = _checked(axes, 3)
    x = [point.tau for point in points]
    dues = np.array([point.settlement.expected_payments for point in points]).reshape(len(x), -1)
    payers = [i for i, agent in enumerate(result.agents) if agent.pays]
    lines = sorted(payers, key=lambda i: -dues[:, i].max())[:_AGENTS]
    every = max(1, len(x) // 10)
    for k, i in enumerate(lines):
        style, marker = STYLES[k % len(STYLES)], MARKERS[k % len(MARKERS)]
        payments.plot(x, dues[:, i], color=f"C{k}", ls=style, marker=marker, ms=4, markevery=every, label=f"agent {k}")
    payments.plot(x, [point.expected_revenue for point in points], color="black", lw=2, label="revenue")
    distance.plot(x, [point.distance for point in points], color="black", marker="o", ms=3, markevery=every)
    sizes = [point.settlement.diagnostics.ess_probabilities for point in points]
    size.plot(x, sizes, color="black", marker="o", ms=3, markevery=every)
    for one in (payments, distance, size):
        one.axvline(own, color="0.4", ls=":", lw=1.5, label="this auction's tau")
        one.set_xscale("log")
        one.xaxis.set_major_formatter("{x:g}")
        one.grid(color="0.9")
        one.spines[["top", "right"]].set_visible(False)
    legend = payments.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8, frameon=False)
    for text, i in zip(legend.get_texts(), lines, strict=False):  # a label of its own could begin with an underscore
        text.set(text=_short_name(result.agents[i].name, _NAME), **_PLAIN)
    unit = _drawable(result.currency or "money")
    titles = [with_count("Expected payments", len(lines), len(payers), "agents that pay")]
    titles += ["How far agents move the distribution", "Effective number of candidates"]
    for one, title, label in zip((payments, distance, size), titles, (unit, "KL, nats", "ESS"), strict=True):
        one.set_title(title, loc="left", fontsize=10)
        one.set_ylabel(label, **_PLAIN)
    size.set_ylim(0.0, 1.05 * max(sizes))
    size.set_xlabel(f"tau, {unit} per nat", **_PLAIN)
    return _figure_of(payments)


def _checked(axes: Iterable[Axes], n: int) -> list[Axes]:
    """Return the axes as a list, if they are as many as the figure has parts."""
    listed = list(np.ravel(np.asarray(axes, dtype=object)))
    if len(listed) != n or not all(isinstance(one, Axes) for one in listed):
        raise refuse("axes", f"{n} axes of matplotlib", axes)
    return listed


def _figure_of(axes: Axes) -> Figure:
    """Return the figure that axes are in: that of a figure within it, where they are in one."""
    within: Any = axes.figure
    figure: Figure = within.figure
    return figure


def _short_name(text: str, longest: int) -> str:
    """Return a name on one line, without its middle where it is long: names often differ at the end."""
    line = shortened(text, 10 * longest)[1:-1]
    return _drawable(line if len(line) <= longest else f"{line[: longest - 6]}…{line[-5:]}")


def _drawable(text: str) -> str:
    """Return the text with a box for each character that the fonts lack, of which matplotlib would warn."""
    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in rcParams["font.family"]]
    return "".join(one if any(font.get_char_index(ord(one)) for font in fonts) else "□" for one in text)
