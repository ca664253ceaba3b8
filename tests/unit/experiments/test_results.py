"""Estimates, tables and figures of experiments."""

import json
import math
import sys

import numpy as np
import pytest
from matplotlib import image

from llm_auction_chain.errors import MissingDependencyError
from llm_auction_chain.experiments.results import Cost, Estimate, Figure, Findings, Series, Summary, Table, mean, ratio

TABLE = Table(
    title="Welfare",
    columns=("proposal", "M", "money"),
    rows=(("reference", 8, Estimate(value=1.5, low=1.0, high=2.0)), ("default", 16, 2.25)),
)
FIGURE = Figure(
    name="welfare",
    title="Welfare grows",
    x_label="candidates M",
    y_label="money",
    series=(
        Series(label="reference", x=[1, 2, 4], y=[1.0, Estimate(value=2.0, low=1.5, high=2.5), 3.0]),
        Series(label="default", x=[1, 2, 4], y=[2.0, 2.5, 3.5]),
    ),
    x_log=True,
)


def summary(**changes):
    findings = Findings(tables=(TABLE,), figures=(FIGURE,), ratios={"a_vs_b": 1.5, "c": math.nan}, notes=("Noted.",))
    return Summary(**{"experiment": "welfare", "claim": "It pays.", "findings": findings, "cost": Cost(), **changes})


def test_an_interval_covers_the_mean_of_questions_in_about_95_of_100_samples():
    # 400 samples of 30 questions by 3 seeds from N(0, 1) effects of questions and N(0, 1) of seeds. The number of hits
    # is binomial(400, 0.95) up to the percentile bootstrap's own error of about 2 %: outside 350..395 with p < 1e-3.
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(400):
        estimate = mean(rng.normal(size=(30, 1)) + rng.normal(size=(30, 3)))
        hits += estimate.low <= 0 <= estimate.high
    assert 350 <= hits <= 395


def test_one_measurement_has_no_interval_and_says_so():
    estimate = mean([[2.0]])
    assert (estimate.value, str(estimate)) == (2.0, "2")
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)


def test_a_ratio_is_resampled_in_pairs():
    rng = np.random.default_rng(0)
    below = rng.uniform(1, 100, size=(20, 2))
    estimate = ratio(3 * below, below)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((3, 3, 3))
    assert math.isnan(ratio([1.0, 2.0], [0.0, 0.0]).value)


def test_the_same_values_give_the_same_interval():
    values = np.random.default_rng(1).normal(size=(7, 2))
    assert mean(values) == mean(values)


def test_a_table_is_text_markdown_and_data():
    assert str(TABLE).splitlines() == [
        "Welfare",
        "proposal    M         money",
        "reference   8  1.5 (1 to 2)",
        "default    16          2.25",
    ]
    assert TABLE.to_markdown().splitlines()[2:4] == ["| proposal | M | money |", "| --- | --- | --- |"]
    frame = TABLE.to_frame()
    assert frame.columns.tolist() == ["proposal", "M", "money", "money low", "money high"]
    assert frame["money"].tolist() == [1.5, 2.25]


def test_a_summary_ends_with_one_line_of_json():
    last = str(summary()).splitlines()[-1]
    assert json.loads(last) == {"experiment": "welfare", "ratios": {"a_vs_b": 1.5, "c": None}}


def test_all_tables_are_one_frame():
    assert summary().to_frame()["table"].tolist() == ["Welfare", "Welfare"]


def test_what_is_saved_is_a_page_its_figures_and_the_line_of_json(tmp_path):
    written = summary().save(tmp_path / "new")
    assert [path.name for path in written] == ["welfare.md", "welfare.json", "welfare.svg", "welfare.png"]
    assert "![Welfare grows](welfare.svg)" in written[0].read_text(encoding="utf-8")
    assert json.loads(written[1].read_text(encoding="utf-8"))["experiment"] == "welfare"


@pytest.mark.parametrize("kind", ["lines", "points", "bars"])
def test_a_figure_reads_without_colours(kind, tmp_path):
    figure = Figure(**{**vars(FIGURE), "kind": kind, "diagonal": kind == "points"})
    axes = figure.draw().axes[0]
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("Welfare grows", "candidates M", "money")
    if kind == "bars":
        assert len({bar.get_hatch() for bar in axes.patches}) == 2
    else:
        assert len({line.get_marker() for line in axes.lines if line.get_marker() in "os"}) == 2
    figure.draw().savefig(tmp_path / "figure.png")
    assert image.imread(tmp_path / "figure.png").shape[1] == 800


def test_a_bar_in_a_heading_ends_no_cell():
    table = Table(title="T", columns=("|x|",), rows=((1,),))
    assert table.to_markdown().splitlines()[2] == r"| \|x\| |"


@pytest.mark.parametrize(("package", "install", "act"), [
    ("pandas", "pandas", TABLE.to_frame), ("matplotlib.figure", r"'llm-auction-chain\[plot\]'", FIGURE.draw),
])  # fmt: skip
def test_a_missing_package_is_named(package, install, act, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "llm_auction_chain.auction.plots", raising=False)
    with pytest.raises(MissingDependencyError, match=f"pip install {install}"):
        act()


def test_a_number_that_is_not_defined_is_not_shown_as_zero():
    assert str(Estimate(value=math.nan)) == "nan"
    assert str(Estimate(value=1e-17)) == "0"


@pytest.mark.parametrize("logs", [{}, {"x_log": True, "y_log": True}])
def test_the_diagonal_is_where_both_are_equal(logs):
    points = Series(label="points", x=[1.0, 100.0], y=[0.1, 50.0])
    figure = Figure(
        name="d", title="d", x_label="x", y_label="y", series=(points,), kind="points", diagonal=True, **logs
    )
    line = figure.draw().axes[0].lines[-1]
    assert line.get_xdata().tolist() == line.get_ydata().tolist() == [1.0, 100.0]
