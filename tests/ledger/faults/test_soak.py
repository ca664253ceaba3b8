"""A short day of traffic, in which workers are killed and the database stops."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_auction_of_a_day_with_faults_is_charged_once():
    command = [sys.executable, ROOT / "benchmarks" / "soak.py", "--quick", "--auctions", "300"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603  our own code
    ratios = json.loads(shown.splitlines()[-1])["ratios"]
    assert ratios["wrong"] == 0, shown
    assert ratios["auctions_per_second"] > 0, shown
