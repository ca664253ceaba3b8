"""A bar shows what a function would be called with, on standard error, and is closed whatever happens."""

import sys

import pytest
from tqdm.auto import tqdm

from llm_auction_chain import Agent, ConfigurationError, MissingDependencyError, Progress
from llm_auction_chain.auction.progress_bar import progress_hook
from llm_auction_chain.experiments import ExperimentConfig
from llm_auction_chain.experiments.study import run
from llm_auction_chain.testing import MarkovChatModel
from tests.unit.auction.auctions import auction, both


def of(stage, done, total, rate=None):
    return Progress(stage=stage, done=done, total=total, tokens_per_second=rate)


def lines(capsys):
    """Return the last state of every bar that was shown; nothing else may be."""
    out, err = capsys.readouterr()
    assert out == ""
    assert len(tqdm._instances) == 0
    return [line.rpartition("\r")[2] for line in err.split("\n")[:-1]]


def test_every_stage_has_a_bar_with_counts_and_tokens_per_second(capsys):
    with progress_hook(progress=True) as show:
        for count in (of("candidates", 0, 4), of("candidates", 3, 4, 1234.5), of("candidates", 4, 4, 1234.5)):
            show(count)
        show(of("rewards", 0, 2))
        show(of("rewards", 2, 2))
    first, second = lines(capsys)
    assert first.startswith("drawing candidates: 100%")
    assert "4/4" in first
    assert "1,234 tokens/s" in first
    assert second.startswith("asking agents: 100%")


def test_a_total_may_grow(capsys):
    with progress_hook(progress=True) as show:
        for count in (of("candidates", 4, 4), of("candidates", 5, 8), of("candidates", 8, 8)):
            show(count)
    assert "8/8" in lines(capsys)[-1]


async def test_run_and_arun_show_bars_where_they_are_asked_to(capsys):
    runnable = auction()
    runnable.run("x", progress=True)
    await runnable.arun("x", progress=True)
    labels = [line.partition(":")[0] for line in lines(capsys)]
    assert labels == ["drawing candidates", "asking agents"] * 2
    runnable.bind(seed=8).run("x", progress=True)
    assert len(lines(capsys)) == 2
    for progress in (None, False):
        runnable.run("x", progress=progress)
        await runnable.arun("x", progress=progress)
    await both(runnable)
    assert lines(capsys) == []


async def test_a_bar_is_closed_after_an_error(capsys):
    def fails(prompt, reply):
        raise LookupError("no such reply")

    runnable = auction([Agent("F", fails)], on_agent_error="raise")
    for hold in (runnable.run, runnable.arun):
        with pytest.raises(Exception, match="no such reply"):
            await hold("x", progress=True)
    assert [line.partition(":")[0] for line in lines(capsys)] == ["drawing candidates", "asking agents"] * 2


def test_an_experiment_shows_a_bar(capsys):
    config = ExperimentConfig(experiment="welfare", n_questions=1, draws=4)
    run(config, seed=range(2), model=MarkovChatModel(length=6), progress=True)
    (line,) = lines(capsys)
    assert line.startswith("measuring: 100%")
    assert "2/2" in line
    assert line.endswith("about 0 s left]")
    run(config, seed=0, model=MarkovChatModel(length=6), progress=False)
    assert lines(capsys) == []


@pytest.mark.parametrize("progress", [1, "yes", [print]])
def test_what_is_no_progress_is_refused(progress):
    with pytest.raises(ConfigurationError, match="progress must be True, False or a function of a Progress, got"):
        auction().run("x", progress=progress)


def test_a_bar_needs_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'llm-auction-chain\[progress\]'"):
        auction().run("x", progress=True)
    auction().run("x", progress=print)
