"""Eight processes at once on one ledger."""

PROCESSES, AUCTIONS = 8, 250


def test_eight_processes_charge_each_of_their_auctions_once(client, url, settle):
    shares = [[f"{process}-{n}" for n in range(AUCTIONS)] for process in range(PROCESSES)]
    keys = [key for share in shares for key in share]
    client.run(keys, shares=shares)
    assert client.left(keys) == []
    found = settle(f"none: {PROCESSES} processes x {AUCTIONS} auctions", url, 0)
    assert found.charged == found.delivered == PROCESSES * AUCTIONS


def test_eight_processes_with_the_same_keys_charge_each_auction_once(client, url, settle):
    keys = [f"shared-{n}" for n in range(12)]
    client.run(keys, shares=[keys] * PROCESSES)
    found = settle(f"{PROCESSES} processes, the same keys", url, PROCESSES)
    assert found.charged == found.delivered == len(keys)
