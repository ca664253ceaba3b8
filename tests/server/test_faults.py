"""Money and the server, while workers are killed and clients hang up: what `benchmarks/server.py` checks, in short."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "server.py"


def test_no_charge_is_lost_or_doubled_while_workers_are_killed_and_clients_hang_up():
    command = [sys.executable, PROGRAM, "--faults-only", "--requests", "300"]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout  # noqa: S603  our own code
    assert "SIGKILL" in output
    assert json.loads(output.splitlines()[-1])["ratios"] == {"lost_or_double_charged": 0.0}, output
