"""The connection to PostgreSQL is cut in the middle of a transaction, or a COMMIT's answer is lost."""

import time
from random import Random
from threading import Thread

import pytest
from sqlalchemy import make_url

from tests.ledger.faults.door import Door

CUTS, COMMITS = 120, 40
CUT = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = :name AND backend_type = 'client backend' AND state <> 'idle'
"""


@pytest.fixture
def client(postgresql, client_of):
    return client_of(postgresql)


def test_cut_once_at_each_step_the_auction_is_charged_once(client, postgresql, settle):
    steps = client.run(["whole"], steps=True, at=10**6).steps
    keys = [f"cut-{n}" for n in range(1, len(steps) + 1)]
    for n, key in enumerate(keys, 1):
        client.run([key], at=n, act="cut")
    assert client.left(keys) == []
    found = settle("cut once at each step", postgresql, len(steps))
    assert found.charged == found.delivered == len(steps) + 1


@pytest.mark.parametrize("on_ledger_error", ["reference", "raise"])
def test_cut_for_good_from_each_step_nothing_uncharged_is_sponsored(client, postgresql, settle, on_ledger_error):
    steps = client.run(["whole"], steps=True, at=10**6).steps
    failed = 0
    for n in range(1, len(steps) + 1, 5):
        keys = [f"cut-{n}", f"next-{n}"]
        task = {"at": n, "act": "cut", "lasting": True, "on_ledger_error": on_ledger_error}
        failed += len(client.run(keys, **task).failed)
        assert len(client.left(keys)) <= (on_ledger_error == "raise")
    assert (failed > 0) == (on_ledger_error == "raise")
    found = settle(f"cut for good, {on_ledger_error}", postgresql, (len(steps) + 4) // 5)
    assert found.charged < found.delivered + failed


def test_cut_at_random_each_auction_is_charged_once_or_has_no_sponsors(client, postgresql, administer, settle):
    rng, name = Random(11), make_url(postgresql).database
    keys, cuts = [], 0
    while cuts < CUTS:
        shares = [[f"{len(keys)}-{share}-{n}" for n in range(40)] for share in range(2)]
        fresh = [key for share in shares for key in share]
        client.begin(fresh, shares=shares, last=True)
        waiting = Thread(target=client.end)
        waiting.start()
        while waiting.is_alive():
            time.sleep(rng.uniform(0, 0.15))
            cuts += len(administer(CUT, name=name))
        waiting.join()
        keys += fresh
    assert client.left(keys) == []
    settle("cut at random", postgresql, cuts)


@pytest.mark.parametrize("refused", [0, 6])
def test_commits_whose_answer_is_lost_are_charged_once(client, postgresql, settle, tmp_path_factory, refused):
    rng, url = Random(13), make_url(postgresql)
    folder = tmp_path_factory.mktemp("d")
    door = Door(
        folder, url.query["host"], lambda: rng.random() < 0.3, lambda: rng.randint(max(0, refused - 1), refused)
    )
    client.url = url.set(query={"host": str(folder)}).render_as_string(hide_password=False)
    keys = []
    try:
        while door.lost < COMMITS:
            fresh = [f"lost-{len(keys) + n}" for n in range(20)]
            client.run(fresh, last=True)
            keys += fresh
    finally:
        door.close()
    assert client.left(keys) == []
    settle(f"COMMIT done, answer lost{', then no connection' if refused else ''}", postgresql, door.lost)
