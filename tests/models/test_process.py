"""A process with a local model: the threads that it takes, and its end."""

import subprocess
import sys

import pytest

from tests.unit.models.local.test_limits import on_one_core

REPLY = """
from llm_auction_chain import ChatTransformers
ChatTransformers(model=sys.argv[1], max_tokens=1, seed=1).invoke("a")
import torch
print(torch.get_num_threads(), os.environ.get("OMP_WAIT_POLICY"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems bind no process to cores")
def test_a_process_on_one_core_replies_with_one_thread_that_sleeps_while_it_waits(seven_words):
    done = on_one_core(REPLY, str(seven_words))
    assert done.stdout.split() == ["1", "None"], "one thread, and the environment as it was"
    assert "GOMP_SPINCOUNT = '0'" in done.stderr


LATE = """
import sys
from llm_auction_chain import Agent, AuctionRunnable, ChatTransformers
from llm_auction_chain.rewards import LogRatioReward
model = ChatTransformers(max_tokens=2)
model.load()
agents = [Agent(f"A{k}", LogRatioReward(f"{k} is " + "very " * 700 + "good")) for k in range(8)]
result = AuctionRunnable(model=model, agents=agents, n_candidates=2, reward_timeout=0.3).run("Hi")
print(*{report.status for report in result.reports})
sys.exit(0)
"""


def test_work_that_is_late_does_not_abort_the_exit():
    process = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, check=False, timeout=300)  # noqa: S603
    assert (process.stdout.split(), process.returncode) == (["timeout"], 0), process.stderr
