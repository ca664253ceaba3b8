"""The disk is full while an auction is held; then room is made, and the same process goes on."""

from random import Random

FULL = 40


def hold_on_full_disks(client, fault):
    """Hold auctions on a full disk, and after each of them one with room; all of them are delivered."""
    keys = [(f"full-{n}", f"room-{n}") for n in range(FULL)]
    for pair in keys:
        client.run(list(pair), **fault())
    assert client.left([key for pair in keys for key in pair]) == []


def test_the_system_writes_no_byte_more_and_nothing_uncharged_is_sponsored(sqlite, client_of, settle):
    client, rng = client_of(sqlite), Random(17)
    hold_on_full_disks(client, lambda: {"bytes": rng.randrange(60_000)})
    found = settle("disk full: no byte more", sqlite, FULL)
    assert FULL < found.charged < found.delivered


def test_the_database_gets_no_page_more_and_nothing_uncharged_is_sponsored(sqlite, client_of, settle):
    client, rng = client_of(sqlite), Random(19)
    hold_on_full_disks(client, lambda: {"pages": rng.randrange(4)})
    found = settle("disk full: no page more", sqlite, FULL)
    assert FULL < found.charged < found.delivered
