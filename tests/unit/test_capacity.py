"""The table of capacity is what its script computes, and the script computes what the page says."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(DOCS / "write_capacity.py"))


def test_the_page_has_the_table_that_the_script_writes(script):
    text = (DOCS / "how_to" / "scaling.md").read_text("utf-8")
    assert script["page"](text) == text, "python docs/write_capacity.py writes it"


def test_twice_the_load_needs_at_most_twice_of_everything(script):
    for auction, model in script["CASES"]:
        for rate in script["RATES"]:
            one, two = (script["needs"](rate * times, auction, model) for times in (1, 2))
            assert all(one[part] <= two[part] <= 2 * one[part] for part in one)


def test_half_the_candidates_need_half_the_writing(script):
    auction, model = script["LONG"], script["LARGE"]
    whole, half = (
        script["costs"](replace(auction, candidates=count), model)["writing"]
        for count in (auction.candidates, auction.candidates // 2)
    )
    assert whole == pytest.approx(2 * half)


def test_a_replica_writes_no_more_tokens_than_its_operations_and_its_bandwidth_allow(script):
    gpu = script["GPU"]
    for auction, model in script["CASES"]:
        replica = script["replica"](model, auction)
        operations = model.gpus * gpu.operations * gpu.compute_share
        assert replica.write * 2 * model.parameters <= operations * (1 + 1e-9)
        assert 2 * model.parameters <= replica.step * model.gpus * gpu.bandwidth * gpu.bandwidth_share
