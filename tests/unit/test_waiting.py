"""Code that is written once blocks a thread or awaits in a loop, as its caller wishes."""

import asyncio
import subprocess
import sys
import threading
import time
from contextvars import ContextVar, copy_context

import pytest

from llm_auction_chain.waiting import AWAITING, BLOCKING, run


@pytest.fixture(params=["blocking", "awaiting"])
def call(request):
    """Finish `work(waiter)`."""
    if request.param == "blocking":
        return lambda work: run(work(BLOCKING))
    return lambda work: asyncio.run(work(AWAITING))


async def side(waiter):
    async def awaiting():
        await asyncio.sleep(0)
        return "awaiting"

    return await waiter.either(lambda: "blocking", awaiting)


def test_each_caller_waits_in_its_own_way():
    assert run(side(BLOCKING)) == "blocking"
    assert asyncio.run(side(AWAITING)) == "awaiting"


def test_a_call_that_blocks_leaves_the_loop_free():
    thread = asyncio.run(AWAITING.in_thread(threading.current_thread))
    assert thread is not threading.main_thread()
    assert thread.daemon
    assert run(BLOCKING.in_thread(threading.current_thread)) is threading.current_thread()


def test_calls_run_side_by_side_and_return_in_order():
    everybody = threading.Barrier(8)

    async def blocks(k):
        everybody.wait(60)
        return k

    assert run(BLOCKING.together([lambda k=k: blocks(k) for k in range(8)])) == list(range(8))

    async def awaited():
        barrier = asyncio.Barrier(8)

        async def meets(k):
            await barrier.wait()
            return k

        return await AWAITING.together([lambda k=k: meets(k) for k in range(8)])

    assert asyncio.run(asyncio.wait_for(awaited(), 60)) == list(range(8))


def test_of_calls_that_fail_the_first_error_is_raised(call):
    async def fails(k):
        if k:
            raise LookupError(k)

    with pytest.raises(LookupError, match="1"):
        call(lambda waiter: waiter.together([lambda k=k: fails(k) for k in range(3)]))


@pytest.mark.parametrize("most", [1, 2])
def test_no_more_calls_are_under_way_than_allowed_and_each_return_is_reported(call, most):
    under_way, returned, lock = [], [], threading.Lock()

    async def work(waiter):
        async def waits():
            with lock:
                under_way.append(1)
                assert len(under_way) <= most
            await waiter.either(lambda: time.sleep(0.005), lambda: asyncio.sleep(0.005))
            with lock:
                under_way.pop()

        await waiter.together([waits] * 6, most=most, progress=returned.append)

    call(work)
    assert returned == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("calls", [1, 5])
def test_after_an_error_no_further_call_begins(call, calls):
    begun = []

    async def work(waiter):
        async def fails():
            begun.append(1)
            if len(begun) > 1:
                await waiter.either(lambda: time.sleep(0.1), lambda: asyncio.sleep(0.1))
            raise LookupError("lost")

        await waiter.together([fails] * calls, most=1)

    with pytest.raises(LookupError, match="lost"):
        call(work)
    assert len(begun) <= 2


def test_a_coroutine_runs_within_a_context_that_ends_with_it(call):
    name = ContextVar("name", default="outer")

    async def reads():
        return name.get()

    async def work(waiter):
        context = copy_context()
        context.run(name.set, "inner")
        return await waiter.within(context, reads()), name.get()

    assert call(work) == ("inner", "outer")


def test_no_calls_have_no_results(call):
    assert call(lambda waiter: waiter.together([])) == []


def test_calls_see_the_callers_context(call):
    name = ContextVar("name", default="nothing")

    async def reads():
        return name.get()

    async def work(waiter):
        name.set("set")
        return await waiter.together([reads, reads]), await waiter.in_thread(name.get)

    assert call(work) == (["set", "set"], "set")


def test_code_that_awaits_anything_else_is_refused_without_a_loop():
    with pytest.raises(RuntimeError, match="only through its Waiter"):
        run(asyncio.sleep(0))


EXIT = """
import threading, time
from llm_auction_chain.waiting import exit_waits
inside = threading.Event()
def work():
    try:
        while True:
            with exit_waits():
                inside.set()
                time.sleep(0.5)
                print("whole block", flush=True)
    except BaseException as error:
        print(error, flush=True)
threading.Thread(target=work, daemon=True).start()
inside.wait()
"""


def test_exit_waits_for_a_block_of_compiled_code_and_no_other_begins():
    process = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, check=True, timeout=60)  # noqa: S603
    assert process.stdout.splitlines() == ["whole block", "The interpreter exits."]


def test_what_is_no_longer_inside_delays_no_exit():
    code = EXIT.replace("with exit_waits():", "if True:").replace("0.5", "600")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)  # noqa: S603  our own code
