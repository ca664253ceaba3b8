"""Any sequence of operations, with repeats, against a few dictionaries."""

from datetime import timedelta
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from llm_auction_chain.errors import ChargeConflictError, CoverError
from llm_auction_chain.ledger import Ledger
from tests.ledger.conftest import Clock
from tests.ledger.faults.worker import Crowded

OWNERS = st.sampled_from("AB")
AUCTIONS = st.sampled_from("xyz")
MOST = st.dictionaries(OWNERS, st.integers(0, 9), max_size=2)
AMOUNTS = st.dictionaries(OWNERS, st.integers(-3, 9), max_size=2)
CALLS = st.sampled_from(["call 1", "call 2", "call 3"])  # under one id; each has a receipt of its own
EUR = {"currency": "EUR"}
# a failure is shown at once: shrinking it takes minutes and looks like a hang
AT_ONCE = settings(deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])


class Model:
    """The laws, in dictionaries: `balance` and `held` by owner, one dictionary per auction."""

    def __init__(self):
        self.balance, self.held, self.auctions, self.keys = {}, {}, {}, {}

    def free(self, owner):
        return self.balance.get(owner, 0) - self.held.get(owner, 0)

    def move(self, into, amounts, sign=1):
        for owner, amount in amounts.items():
            into[owner] = into.get(owner, 0) + sign * amount

    def release(self, auction):
        if auction["state"] == "held":
            self.move(self.held, auction["held"], -1)

    def hold(self, name, most, ends):
        auction = self.auctions.get(name)
        if auction:
            if auction["state"] in ("cancelled", "reversed") or auction.get("done"):
                raise ChargeConflictError
            if auction["state"] != "voided" or "most" in auction:
                if auction.get("most") != most:
                    raise ChargeConflictError
                if auction["state"] in ("held", "charged"):
                    return auction["held"]
        held = {owner: amount for owner, amount in most.items() if self.free(owner) >= amount}
        self.auctions[name] = {"state": "held", "most": dict(most), "held": held, "ends": ends}
        self.move(self.held, held)
        return held

    def charge(self, name, amounts, call):
        auction = self.auctions.get(name, {"state": ""})
        asked = {owner: amount for owner, amount in amounts.items() if amount}
        if auction["state"] == "charged" and auction["asked"] == asked and not auction.get("done"):
            auction["calls"].add(call)
            return
        if auction["state"] not in ("", "held", "expired"):
            raise ChargeConflictError
        if auction["state"] and any(abs(amount) > auction["held"].get(owner, -1) for owner, amount in amounts.items()):
            raise CoverError
        needed = {"": amounts, "held": {}, "expired": auction.get("held", {})}[auction["state"]]
        if any(amount > max(0, self.free(owner)) for owner, amount in needed.items()):
            raise CoverError
        lines = {**dict.fromkeys(auction["held"] if auction["state"] == "held" else (), 0), **amounts}
        self.release(auction)
        self.move(self.balance, amounts, -1)
        self.auctions[name] = {**auction, "state": "charged", "asked": asked, "left": lines, "calls": {call}}

    def void(self, name, state="voided"):
        auction = self.auctions.setdefault(name, {"state": ""})
        if auction["state"] in ("charged", "reversed"):
            raise ChargeConflictError
        if auction["state"] != "cancelled":
            self.release(auction)
            auction["state"] = state

    def reverse(self, name, owner):
        auction = self.auctions.get(name, {"state": ""})
        if auction["state"] not in ("charged", "reversed"):
            raise ChargeConflictError
        lines = {one: amount for one, amount in auction["left"].items() if owner in (None, one)}
        if owner is not None and owner not in auction["left"] and owner not in auction.get("done", ()):
            raise ChargeConflictError
        auction["done"] = {*auction.get("done", ()), *lines}
        auction["left"] = {one: amount for one, amount in auction["left"].items() if one not in lines}
        self.move(self.balance, lines)
        if not auction["left"]:
            auction["state"] = "reversed"

    def cancel(self, name, call):
        auction = self.auctions.get(name, {"state": ""})
        if auction["state"] == "charged":
            if call is None or auction["calls"] == {call}:
                self.reverse(name, None)
            else:
                auction["calls"].discard(call)
        elif auction["state"] != "reversed":
            self.void(name, "cancelled")

    def expire(self, now):
        for auction in self.auctions.values():
            if auction["state"] == "held" and auction["ends"] <= now:
                self.release(auction)
                auction["state"] = "expired"


class Machine(RuleBasedStateMachine):
    kind, url = Ledger, "sqlite://"

    def __init__(self):
        super().__init__()
        self.clock, self.model = Clock(), Model()
        self.ledger = self.kind(self.url, scales={"EUR": 2}, clock=self.clock)

    def teardown(self):
        assert self.ledger.verify().differences == []
        self.ledger.close()

    def both(self, told, asked):
        """Do it to both, twice: either refuses as the other does, and the second time changes nothing."""
        for _ in range(2):
            try:
                told()
            except (ChargeConflictError, CoverError) as error:
                with pytest.raises(type(error)):
                    asked()
            else:
                asked()

    @rule(owner=OWNERS, amount=st.integers(0, 20), key=st.integers())
    def deposit(self, owner, amount, key):
        if key not in self.model.keys:
            self.model.move(self.model.balance, {owner: amount})
        elif self.model.keys[key] != (owner, amount):
            return
        self.model.keys[key] = (owner, amount)
        for _ in range(2):
            self.ledger.deposit(owner, amount, key=str(key), **EUR)

    @rule(name=AUCTIONS, most=MOST)
    def hold(self, name, most):
        ends = self.clock.now + timedelta(minutes=15)
        self.both(lambda: self.model.hold(name, most, ends), lambda: self.ledger.hold(name, most, **EUR))

    @rule(name=AUCTIONS, amounts=AMOUNTS, call=CALLS)
    def charge(self, name, amounts, call):
        receipt = {"digest": call}
        self.both(
            lambda: self.model.charge(name, amounts, call),
            lambda: self.ledger.charge(name, amounts, receipt=receipt, **EUR),
        )

    @rule(name=AUCTIONS)
    def void(self, name):
        self.both(lambda: self.model.void(name), lambda: self.ledger.void(name))

    @rule(name=AUCTIONS, call=st.none() | CALLS)
    def cancel(self, name, call):
        self.both(lambda: self.model.cancel(name, call), lambda: self.ledger.cancel(name, receipt=call))

    @rule(name=AUCTIONS, owner=st.none() | OWNERS)
    def reverse(self, name, owner):
        self.both(lambda: self.model.reverse(name, owner), lambda: self.ledger.reverse(name, owner=owner))

    @rule(minutes=st.sampled_from([5, 20]))
    def wait_and_expire(self, minutes):
        self.clock.move(minutes=minutes)
        self.model.expire(self.clock.now)
        self.ledger.expire_holds()

    @precondition(lambda self: self.model.balance)
    @invariant()
    def agree(self):
        found = {account.owner: (account.balance, account.held) for account in self.ledger.accounts()}
        assert {account.currency for account in self.ledger.accounts()} <= {"EUR"}
        for owner in "AB":
            expected = self.model.balance.get(owner, 0), self.model.held.get(owner, 0)
            assert found.get(owner, (0, 0)) == expected
        for totals in self.ledger.totals():
            assert totals.cash == totals.revenue + totals.balances


class CrowdedMachine(Machine):
    kind = Crowded


@pytest.mark.parametrize("machine", [Machine, CrowdedMachine])
def test_any_sequence_of_operations_does_what_the_laws_say(machine):
    run_state_machine_as_test(
        machine, settings=settings(AT_ONCE, max_examples=30, stateful_step_count=20, derandomize=True)
    )


STEPS = st.lists(st.tuples(st.sampled_from(["hold", "charge", "void", "reverse"]), AUCTIONS, AMOUNTS), max_size=12)


@settings(AT_ONCE, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_both_databases_keep_the_same_chain(emptied, steps):
    heads = []
    for url in (emptied(), "sqlite://"):
        with patch("secrets.token_hex", lambda size: "5a" * size), Ledger(url, clock=Clock(), credit=5) as ledger:
            for kind, auction, amounts in steps:
                most = {owner: abs(amount) for owner, amount in amounts.items()}
                arguments = {"hold": (auction, most), "charge": (auction, amounts)}.get(kind, (auction,))
                try:
                    getattr(ledger, kind)(*arguments)
                except (ChargeConflictError, CoverError) as error:
                    heads.append(str(error))
            assert ledger.verify().ok
            heads.append(ledger.head())
    assert heads[: len(heads) // 2] == heads[len(heads) // 2 :]
