"""The process is killed: at random, and at every step that an auction has."""

from random import Random

import pytest

KILLS = 120
EVERY_AUCTION_HAS = [
    "before hold",
    "before COMMIT",
    "after COMMIT",
    "after hold",
    "auction.started",
    "auction.candidates",
    "auction.scored",
    "before charge",
    "after charge",
    "auction.settled",
    "reply returned",
    "reply delivered",
]


def test_killed_at_random_each_auction_is_charged_once(client, url, settle):
    rng = Random(5)
    typical = client.run([f"first-{n}" for n in range(3)]).seconds
    keys, kills = [], 0
    while kills < KILLS:
        asked = client.left(keys)[:3]
        fresh = [f"random-{len(keys) + n}" for n in range(3 - len(asked))]
        keys += fresh
        kills += client.run(asked + fresh, kill_after=rng.uniform(0, typical)).killed
    client.run(client.left(keys))
    assert client.left(keys) == []
    found = settle("killed at random", url, kills)
    assert found.charged == found.delivered


def kill_at_each_step(client, name, **task):
    """Kill an auction at its n-th step, for every n, then ask for all of them again, and return the steps."""
    steps = client.run([f"{name}-whole"], steps=True, at=10**6, **task).steps
    keys = [f"{name}-{n}" for n in range(1, len(steps) + 1)]
    for n, key in enumerate(keys, 1):
        assert client.run([key], at=n, act="kill", **task).killed == 1, steps[n - 1]
    left = client.left(keys)
    assert len(left) in (len(keys), len(keys) - 1)  # the last step is the delivery
    client.run(left)
    assert client.left(keys) == []
    return steps


def test_killed_at_each_step_each_auction_is_charged_once(client, url, settle):
    steps = kill_at_each_step(client, "step")
    passed = iter(steps)
    assert all(step in passed for step in EVERY_AUCTION_HAS)
    found = settle("killed at each step", url, len(steps))
    assert found.charged == found.delivered == len(steps) + 1


@pytest.mark.parametrize("stage", ["auction.scored", "auction.settled"])
def test_killed_at_each_step_of_giving_up_nothing_undelivered_stays_charged(client, url, settle, stage):
    steps = kill_at_each_step(client, stage, fails_at=stage)
    assert ("after cancel" if stage == "auction.settled" else "after void") in steps
    settle(f"killed while it gives up at {stage}", url, len(steps))
