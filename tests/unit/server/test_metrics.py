"""Metrics of the server."""

import os
import subprocess
import sys

from langchain_core.messages import AIMessage

from llm_auction_chain.server.limits import Capacity, Limits
from llm_auction_chain.server.metrics import Metrics


def reply(**auction):
    metadata = {"auction": {"bypassed": False, "sponsored": False, **auction}}
    return AIMessage("", response_metadata=metadata)


def test_auctions_are_counted_by_their_outcome():
    metrics = Metrics(Capacity(Limits()))
    for auction in ({"sponsored": True}, {}, {}, {"bypassed": True}):
        metrics.count_auction("m", reply(**auction))
    text = metrics.text().decode()
    for outcome, count in (("sponsored", 1), ("unsponsored", 2), ("bypassed", 1)):
        assert f'llm_auction_auctions_total{{model="m",outcome="{outcome}"}} {count}.0' in text


def test_a_model_that_counts_no_tokens_has_no_count_of_tokens():
    metrics = Metrics(Capacity(Limits()))
    metrics.count_auction("m", reply())
    assert "llm_auction_tokens_total{" not in metrics.text().decode()


def test_two_servers_in_one_process_count_apart():
    one, other = Metrics(Capacity(Limits())), Metrics(Capacity(Limits()))
    one.count_request("/healthz", 200, 0.1)
    assert b"/healthz" in one.text()
    assert b"/healthz" not in other.text()


def test_worker_processes_share_their_counts(tmp_path):
    code = (
        "from llm_auction_chain.server.limits import Capacity, Limits\n"
        "from llm_auction_chain.server.metrics import Metrics\n"
        "metrics = Metrics(Capacity(Limits()))\n"
        "metrics.count_request('/healthz', 200, 0.1)\n"
        "print(metrics.text().decode())\n"
    )
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for count in (1, 2):
        text = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)  # noqa: S603
        assert f'llm_auction_requests_total{{route="/healthz",status="200"}} {count}.0' in text
