"""More requests than the server runs at once, more time than it has, and a stop while auctions run."""

import contextlib
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from llm_auction_chain import AuctionRunnable, Ledger
from llm_auction_chain.server import Limits, create_app
from tests.server.kitchen import LONG, QUESTION, Gate, Kitchen, agents, serving

WAIT = [{"role": "user", "content": "Please wait."}]


@contextlib.contextmanager
def asking(gate, **limits):
    """Yield what asks a server of these limits, whose model waits at the gate where a request says so."""
    auction = AuctionRunnable(model=Kitchen(gate=gate), agents=agents(), reward_timeout=0.4, n_candidates=2)
    app = create_app(auction, limits=Limits(**limits))
    with serving(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0, timeout=LONG) as client:
        yield lambda messages, **settings: client.chat.completions.create(
            model="llm-auction", messages=messages, **settings
        )


def test_requests_wait_for_their_turn_and_are_all_answered():
    gate = Gate()
    with asking(gate, auctions=1, queue=8) as ask, ThreadPoolExecutor(9) as pool:
        first = pool.submit(ask, WAIT)
        assert gate.reached.wait(LONG)
        others = [pool.submit(ask, QUESTION) for _ in range(8)]
        assert not any(one.done() for one in others)
        gate.open()
        assert all(one.result(LONG).choices for one in (first, *others))


def test_a_client_that_goes_away_while_it_waits_leaves_its_place_to_others():
    gate = Gate()
    with asking(gate, auctions=1, queue=1) as ask, ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, WAIT)
        assert gate.reached.wait(LONG)
        for _ in range(3):  # if one of them stayed in the queue, the next would be refused
            with pytest.raises(openai.APITimeoutError):
                ask(QUESTION, timeout=0.5)
        last = pool.submit(ask, QUESTION)
        gate.open()
        assert first.result(LONG).choices
        assert last.result(LONG).choices


@pytest.mark.parametrize("stream", [False, True])
def test_an_auction_that_takes_too_long_is_over_when_its_time_is(stream):
    gate = Gate()
    with asking(gate, timeout=0.5, keep_alive=0.1) as ask:
        with pytest.raises(openai.APIError) as caught:
            list(ask(WAIT, stream=stream))
        assert "took too long" in str(caught.value)
        assert gate.left.wait(LONG)
        assert ask(QUESTION).choices


PROGRAM = """
import asyncio, sys
from pathlib import Path

import uvicorn

from llm_auction_chain import AuctionRunnable, Billing, Ledger
from llm_auction_chain.server import create_app
from tests.server.kitchen import Kitchen, agents

class File:
    async def wait(self):
        print("reached", flush=True)
        while not Path(sys.argv[3]).exists():
            await asyncio.sleep(0.01)

with Ledger(sys.argv[1], keep_replies=True) as ledger:
    auction = AuctionRunnable(model=Kitchen(gate=File()), agents=agents(), billing=Billing(ledger=ledger), seed=7)
    uvicorn.run(create_app(auction), fd=int(sys.argv[2]), log_config=None, timeout_graceful_shutdown=int(sys.argv[4]))
"""


@pytest.mark.parametrize("patience", [LONG, 1])
def test_a_stop_charges_what_is_delivered_and_releases_what_is_not(tmp_path, patience):
    """With patience for the auction that runs, its reply is delivered; without, the auction is cancelled."""
    url, ready = f"sqlite:///{tmp_path / 'ledger.sqlite'}", tmp_path / "ready"
    with Ledger(url, keep_replies=True) as ledger, socket.create_server(("127.0.0.1", 0)) as listener:
        for owner in ("egg-group", "oat-group"):
            ledger.deposit(owner, 100, key=owner)
        address, handle = listener.getsockname(), listener.fileno()
        command = [sys.executable, "-c", PROGRAM, url, str(handle), str(ready), str(patience)]
        with (
            subprocess.Popen(  # noqa: S603  our own code
                command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2], pass_fds=[handle]
            ) as process,
            ThreadPoolExecutor(1) as pool,
            openai.OpenAI(
                base_url=f"http://127.0.0.1:{address[1]}/v1", api_key="-", max_retries=0, timeout=LONG
            ) as client,
        ):
            answer = pool.submit(client.chat.completions.create, model="llm-auction", messages=WAIT)
            assert process.stdout.readline() == "reached\n"
            assert sum(one.held for one in ledger.accounts()) > 0
            process.send_signal(signal.SIGTERM)
            if patience == LONG:
                ready.touch()
                assert answer.result(LONG).choices
            else:
                with pytest.raises(openai.APIError):
                    answer.result(LONG)
            process.wait(LONG)
        accounts = ledger.accounts()
        assert sum(one.held for one in accounts) == 0
        assert (sum(one.balance for one in accounts) < 200) == (patience == LONG)
