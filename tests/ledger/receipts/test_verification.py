"""Every auction has a valid receipt and valid views, here and in a process without clock and network."""

import copy
import json
import subprocess
import sys

from hypothesis import HealthCheck, given, settings

from llm_auction_chain.receipts import verify
from tests.unit.receipts.examples import all_receipts, auctions

OFFLINE = """
import json, socket, sys, time
from llm_auction_chain.receipts import verify

def never(*args, **kwargs):
    raise AssertionError("neither clock nor network")

socket.socket = socket.create_connection = socket.getaddrinfo = never
for name in ("time", "monotonic", "perf_counter", "time_ns", "localtime", "gmtime", "sleep"):
    setattr(time, name, never)
print([name for name, receipt in json.load(sys.stdin).items() if not verify(receipt).ok])
"""


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(auctions())
def test_a_receipt_and_every_view_of_it_hold(result):
    receipt = result.receipt
    for one in (receipt, *(receipt.view(agent.name) for agent in result.agents)):
        assert verify(one).differences == ()
        assert verify(json.loads(json.dumps(one.as_dict(), allow_nan=False))).differences == ()
        assert type(one).model_validate_json(json.dumps(one.as_dict())) == one


def test_another_process_needs_no_clock_and_no_network():
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", OFFLINE], input=json.dumps(all_receipts()), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_last_digits_of_another_processor_are_no_difference():
    for name, receipt in all_receipts().items():
        other = copy.deepcopy(receipt)
        for bid in other["agents"]:
            for figure in ("contribution", "expected", "payment"):
                bid[figure] *= 1 + 1e-13
        other["log_probabilities"] = [
            None if nats is None else nats * (1 + 1e-13) for nats in other["log_probabilities"]
        ]
        found = {difference.field for difference in verify(other).differences}
        assert found <= {"digest"}, name


def test_a_reply_is_replayed_by_its_seed():
    first, again = all_receipts(), all_receipts()
    fresh = {"auction_id", "time", "salt", "prompt", "candidates", "replies", "salts", "hidden", "reports", "opening",
             "digest", "receipt"}  # fmt: skip
    for name, receipt in first.items():
        assert {key: receipt[key] for key in receipt if key not in fresh} == {
            key: again[name][key] for key in receipt if key not in fresh
        }
