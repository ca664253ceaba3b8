"""The overhead experiment: stages of real auctions, tokens, memory and the line through them."""

import math
import sys

import numpy as np
import pytest

from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.experiments import overhead, run
from llm_auction_chain.experiments.config import ExperimentConfig
from llm_auction_chain.experiments.overhead import STAGES, Setting, _line, _sponsors, _with_peak, measure
from llm_auction_chain.experiments.store import Store
from llm_auction_chain.testing import MarkovChatModel
from tests.unit.experiments.test_pools import MODEL, QUESTION, bench, plain


@pytest.fixture(scope="module")
def study():
    return run("overhead", quick=True, model=MarkovChatModel(length=6, tilts={"LeafLoft": (1.0, 0.0, 0.0)}))


def test_candidates_vary_with_two_agents_and_agents_with_sixteen_candidates(study):
    sizes = {(one.m, one.n) for one in study.units[0][0].settings}
    assert sizes == {(1, 2), (4, 2), (16, 1), (16, 2), (16, 4), (16, 8)}


def test_stages_take_time_and_sum_to_the_auction(study):
    for row in study.units:
        for costs in row:
            assert costs.stages.shape == (6, len(STAGES))
            assert (costs.stages >= 0).all()
            assert (costs.stages[:, [0, 2, 3, 4, 5]] > 0).all()
            assert costs.seconds == pytest.approx(costs.stages.sum(axis=1))
            assert (costs.reply_seconds > 0).all()


def test_tokens_are_those_of_all_draws_and_passes_the_paper_count(study):
    for costs in study.units[0]:
        m, n = (np.array([getattr(one, name) for one in costs.settings]) for name in "mn")
        assert costs.tokens[:, 1].tolist() == (6 * m).tolist()
        assert costs.reply_tokens[:, 1].tolist() == [6.0] * 6
        assert costs.passes.tolist() == (m * (6 + n + 1)).tolist()


def test_memory_of_the_process_is_reset_before_each_auction():
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux resets its maximum")

    def use(mebibytes):
        return lambda: np.ones(mebibytes << 17).sum()

    (_, large), (_, small) = _with_peak(use(256)), _with_peak(use(1))
    if math.isnan(large):
        pytest.skip("this system refuses to reset its maximum")
    assert 150 < large - small < 400


def test_memory_is_unknown_where_the_system_does_not_say_it(monkeypatch, tmp_path):
    monkeypatch.setattr(overhead, "Path", lambda _: tmp_path / "none")
    result, peak = _with_peak(lambda: 3)
    assert result == 3
    assert math.isnan(peak)


def test_the_ratio_is_of_sixteen_candidates_and_two_agents(study):
    found = study.summary().findings
    k = study.units[0][0].settings.index(Setting("log_ratio", "context prompt", 16, 2))
    above = np.mean([unit.seconds[k] for unit in study.units[0]])
    below = np.mean([unit.reply_seconds for unit in study.units[0]])
    assert found.ratios == {
        "auction_vs_one_reply": pytest.approx(above / below),
        "tokens_written_vs_one_reply": pytest.approx(16.0),
    }
    assert "M = 16, n = 2, log_ratio" in found.notes[0]
    assert "count 24 (24 to 24) times the passes" in found.notes[0]  # 16 (6 + 2 + 1) / 6


def test_tables_and_figures_show_every_auction(study):
    totals, stages, fits = study.summary().findings.tables
    assert totals.rows[0][:4] == ("plain reply", "", 1, 0)
    assert [row[:4] for row in totals.rows[1:]] == [row[:4] for row in stages.rows] == study.units[0][0].settings
    assert stages.columns[4:] == STAGES
    assert [row[2].split(",")[0] for row in fits.rows] == ["auction", "drawing", "scoring and asking"]
    figures = {figure.name: figure for figure in study.summary().findings.figures}
    assert list(figures["overhead_candidates"].series[0].x) == [1, 4, 16]
    assert list(figures["overhead_agents"].series[0].x) == [1, 2, 4, 8]
    assert len(figures["overhead_passes"].series[0].x) == 12


def test_a_line_is_found_and_its_scatter_counted():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert _line(x, 2 * x + 1) == pytest.approx((2.0, 1.0, 1.0))
    # about the mean 2.5 the sum of squares is 5, of which slope .6 explains 1.8
    assert _line(x, np.array([2.0, 1.0, 4.0, 3.0])) == pytest.approx((0.6, 1.0, 0.36))
    assert np.isnan(_line(x[:2], x[:2])).all()
    assert np.isnan(_line(x * math.nan, x)).all()


def test_more_agents_than_sponsors_come_from_other_questions():
    sponsors = [one for one, _ in zip(_sponsors(QUESTION), range(8), strict=False)]
    assert tuple(sponsors[:2]) == QUESTION.sponsors
    assert len({one.name for one in sponsors}) == len({one.context for one in sponsors}) == 8


def test_what_was_timed_is_stored_and_not_timed_again():
    store = Store(None)
    small = {"store": store, "n_candidates": (2,), "proposals": ("reference",)}
    first, again = (measure(bench(**small), QUESTION, 0) for _ in "ab")
    assert store.cost.reused == 1
    assert first.stages.tolist() == again.stages.tolist()
    measure(bench(**small), QUESTION, 1)
    measure(bench(**{**small, "n_candidates": (1,)}), QUESTION, 0)
    measure(bench(MODEL.model_copy(update={"length": 5}), **small), QUESTION, 0)
    assert (store.cost.measured, store.cost.reused) == (5, 1)


def test_a_model_that_counts_no_tokens_has_times_alone():
    config = ExperimentConfig(
        experiment="overhead", n_questions=1, n_candidates=(2, 4), proposals=("reference",), families=("mentions",)
    )
    found = run(config, model=plain()).summary().findings
    assert found.ratios["auction_vs_one_reply"] > 0
    assert math.isnan(found.ratios["tokens_written_vs_one_reply"])
    assert "M = 4, n = 2" in found.notes[0]


def test_an_unknown_proposal_is_refused():
    with pytest.raises(ConfigurationError, match="proposals must be"):
        measure(bench(n_candidates=(2,), proposals=("none of ours",)), QUESTION, 0)
