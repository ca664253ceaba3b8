"""`Ledger` obeys the laws of every ledger, on both databases."""

import pytest

from llm_auction_chain.ledger import Ledger
from llm_auction_chain.testing import LedgerConformance


class TestLedger(LedgerConformance):
    @pytest.fixture(autouse=True)
    def _opened(self, url):
        with Ledger(url) as self._ledger:
            yield

    def ledger(self):
        for owner, amount in self.deposits.items():
            self._ledger.deposit(owner, amount)
        return self._ledger

    def account(self, ledger, owner):
        account = ledger.balance(owner)
        return account.balance, account.held
