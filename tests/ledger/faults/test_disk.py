"""The disk is full while auctions are held; then room is made, and the same process goes on."""

from random import Random

FULL = 40
CALLERS = 16


def hold_on_full_disks(client, fault):
    """Hold auctions on a full disk, and after each of them one with room; all of them are delivered."""
    keys = [(f"full-{n}", f"room-{n}") for n in range(FULL)]
    for pair in keys:
        client.run(list(pair), **fault())
    assert client.left([key for pair in keys for key in pair]) == []


def test_the_system_writes_no_byte_more_and_nothing_uncharged_is_sponsored(sqlite, client_of, settle):
    client, rng = client_of(sqlite), Random(17)
    hold_on_full_disks(client, lambda: {"bytes": rng.randrange(250_000)})
    found = settle("disk full: no byte more", sqlite, FULL)
    assert FULL < found.charged < found.delivered


def test_the_database_gets_no_page_more_and_nothing_uncharged_is_sponsored(sqlite, client_of, settle):
    client, rng = client_of(sqlite), Random(19)
    hold_on_full_disks(client, lambda: {"pages": rng.randrange(4)})
    found = settle("disk full: no page more", sqlite, FULL)
    assert FULL < found.charged < found.delivered


def hold_at_once_on_full_disks(client, fault, times):
    """Let callers hold auctions at once on a full disk, then as many with room; all of them are delivered."""
    crowds = [[f"{disk}-{n}-{caller}" for caller in range(CALLERS)] for n in range(times) for disk in ("full", "room")]
    for full, room in zip(crowds[::2], crowds[1::2], strict=True):
        client.run([full, room], **fault())
    assert client.left([key for keys in crowds for key in keys]) == []


def test_callers_at_once_are_each_told_whether_a_full_file_took_their_charge(sqlite, client_of, settle):
    client, rng, times = client_of(sqlite), Random(23), 8
    hold_at_once_on_full_disks(client, lambda: {"bytes": rng.randrange(500_000)}, times)
    found = settle("disk full to the byte, 16 callers at once", sqlite, times)
    assert CALLERS * times < found.charged < found.delivered


def test_callers_at_once_are_each_told_whether_a_full_database_took_their_charge(sqlite, client_of, settle):
    client, rng, times = client_of(sqlite), Random(29), 8
    hold_at_once_on_full_disks(client, lambda: {"pages": rng.randrange(30)}, times)
    found = settle("database full, 16 callers at once", sqlite, times)
    assert CALLERS * times < found.charged < found.delivered
