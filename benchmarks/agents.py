"""What asking agents costs: against a bare loop over their callbacks, and against one latency of remote bidders.

Both sides of each ratio are measured in this run, in turn.
"""

import asyncio
import contextlib
import json
import multiprocessing
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import trustme
from front import Options, benchmark, take_turns
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from llm_auction_chain import Agent
from llm_auction_chain.reports import Terms, collect
from llm_auction_chain.rewards import WebhookReward
from llm_auction_chain.waiting import AWAITING, BLOCKING, run

AGENTS, CANDIDATES = 1000, 32
BIDDERS, LATENCY = 200, 0.05
WORDS = ("guitar", "lesson", "teacher", "practise", "chords")
TERMS = Terms(timeout=60.0)
PROMPT: list[BaseMessage] = [HumanMessage("How do I learn to play the guitar?")]
TEXT = (
    "Find a teacher, practise chords every day and play the songs you love. Take a lesson a week, online or in town. "
)
ANSWER = json.dumps({"rewards": [1.0] * CANDIDATES}).encode()
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER


def replies(*, tokens: bool) -> list[AIMessage]:
    """Return candidates of some 60 tokens, with the metadata that a model puts there."""
    metadata: dict[str, Any] = {"model_name": "a model", "finish_reason": "stop"}
    if tokens:
        log_probs = {"token_ids": list(range(64)), "token_logprobs": [-1.5] * 64, "basis": "sampler", "complete": True}
        metadata["logprobs"] = log_probs
    return [AIMessage(f"{k}. {TEXT * 2}", response_metadata=metadata) for k in range(CANDIDATES)]


def counts_words(prompt: list[BaseMessage], reply: AIMessage) -> float:
    """Return how often words are in the reply: what an advertiser's own callback does at least."""
    text = reply.text.lower()
    return float(sum(text.count(word) for word in WORDS))


def constant(prompt: list[BaseMessage], reply: AIMessage) -> float:
    """Return the same for every reply: the least that a callback can do."""
    return 1.0


def callbacks(repeats: int) -> dict[str, float]:
    """Print what a callback costs in a bare loop and in `collect`, from threads and from a loop; return the ratios."""
    print(f"{AGENTS:,} Python agents x {CANDIDATES} candidates, microseconds per callback")
    print(f"{'callback':30} bare loop  threads      loop   ratios")
    ratios = {}
    for name, reward, tokens in (
        ("counts five words", counts_words, False),
        ("counts five words, with tokens", counts_words, True),
        ("returns 1.0", constant, False),
    ):
        agents, shown = [Agent(f"agent {k}", reward) for k in range(AGENTS)], replies(tokens=tokens)

        def bare(
            reward: Callable[[list[BaseMessage], AIMessage], float] = reward, shown: list[AIMessage] = shown
        ) -> None:
            for _ in range(AGENTS):
                for reply in shown:
                    reward(PROMPT, reply)

        def in_a_loop(agents: list[Agent] = agents, shown: list[AIMessage] = shown) -> None:
            asyncio.run(collect(agents, PROMPT, shown, TERMS, waiter=AWAITING))

        def in_threads(agents: list[Agent] = agents, shown: list[AIMessage] = shown) -> None:
            run(collect(agents, PROMPT, shown, TERMS, waiter=BLOCKING))

        plain, ours, awaited = least({"bare": bare, "threads": in_threads, "loop": in_a_loop}, repeats)
        calls = AGENTS * CANDIDATES
        print(
            f"{name:30} {plain / calls * 1e6:9.2f} {ours / calls * 1e6:8.2f} {awaited / calls * 1e6:9.2f}"
            f"   {ours / plain:.2f} {awaited / plain:.2f}"
        )
        ratios[name] = max(ours, awaited) / plain
    print("the last one is overhead alone: what copies, checks and threads cost per callback\n")
    return {
        "callback_overhead": ratios["counts five words"],
        "callback_overhead_with_tokens": ratios["counts five words, with tokens"],
    }


def webhooks(repeats: int, *, encrypted: bool) -> dict[str, float]:
    """Print how long a round of remote bidders takes, against one latency and the bare transfer; return the ratio."""
    shown = replies(tokens=False)
    authority = trustme.CA()
    with bidders(authority if encrypted else None) as port:
        tls = ssl.create_default_context()
        authority.configure_trust(tls)
        settings: dict[str, Any] = {"timeout": 30.0, "allow_http": True, "allow_private": True, "tls": tls}
        root = f"{'https' if encrypted else 'http'}://127.0.0.1:{port}"
        agents = [Agent(f"bidder {k}", WebhookReward(f"{root}/{k}", "secret", **settings)) for k in range(BIDDERS)]

        def ask(*, awaiting: bool) -> None:
            asking = partial(collect, agents, PROMPT, shown)
            reports = asyncio.run(asking(waiter=AWAITING)) if awaiting else run(asking(waiter=BLOCKING))
            failed = [report.reason for report in reports if report.status != "reported"]
            if failed:
                raise SystemExit(f"{len(failed)} bidders failed: {failed[0]}")

        start = time.perf_counter()
        ask(awaiting=True)
        opening = time.perf_counter() - start
        contenders: dict[str, Callable[[], object]] = {
            "bare": partial(bare_transfer, port, shown, tls if encrypted else None),
            "threads": partial(ask, awaiting=False),
            "loop": partial(ask, awaiting=True),
        }
        transfer, ours, awaited = least(contenders, repeats)
    kind = "TLS" if encrypted else "plain HTTP"
    print(f"{BIDDERS} webhook bidders of {LATENCY * 1e3:.0f} ms latency over {kind}, milliseconds per round")
    print(f"first round {opening * 1e3:.1f}: it opens the connections")
    print(f"bare transfer {transfer * 1e3:.1f}: the same bytes over open sockets, at bidders that answer at once")
    for name, taken in (("threads", ours), ("loop", awaited)):
        print(f"{name:10} {taken * 1e3:6.1f}   {taken / (LATENCY + transfer):.2f} x (latency + transfer)")
    return {
        f"webhook_round_vs_latency{'_tls' * encrypted}": max(ours, awaited) / (LATENCY + transfer),
        f"webhook_latencies{'_tls' * encrypted}": (max(ours, awaited) - transfer) / LATENCY,
    }


def bare_transfer(port: int, shown: list[AIMessage], tls: ssl.SSLContext | None) -> float:
    """Return the seconds that open sockets take to send and read the bytes of a round. Nothing is signed."""
    body = json.dumps({"prompt": [PROMPT[0].text], "replies": [reply.text for reply in shown]}).encode()
    request = b"POST /at-once HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(request)
        await reader.readexactly(len(RESPONSE))

    async def all_at_once() -> float:
        connections = [await asyncio.open_connection("127.0.0.1", port, ssl=tls) for _ in range(BIDDERS)]
        start = time.perf_counter()
        await asyncio.gather(*(exchange(*streams) for streams in connections))
        taken = time.perf_counter() - start
        for _, writer in connections:
            writer.close()
        return taken

    return asyncio.run(all_at_once())


@contextlib.contextmanager
def bidders(authority: trustme.CA | None) -> Iterator[int]:
    """Run bidders in a process of their own, and yield their port. With an authority they speak TLS."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    pem = authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.bytes() if authority else None
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, pem), daemon=True)
    process.start()
    try:
        yield int(ours.recv())
    finally:
        process.terminate()
        process.join()


def serve(parent: Connection, pem: bytes | None) -> None:
    """Answer every bid request after the latency, or at once where its path says so."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1])
                    for line in request.split(b"\r\n")
                    if line.lower().startswith(b"content-length")
                )
                await reader.readexactly(length)
                if b"/at-once" not in request.split(b"\r\n", 1)[0]:
                    await asyncio.sleep(LATENCY)
                writer.write(RESPONSE)
        writer.close()

    async def forever() -> None:
        tls = None
        if pem is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            with tempfile.NamedTemporaryFile() as file:
                file.write(pem)
                file.flush()
                tls.load_cert_chain(file.name)
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=2 * BIDDERS, ssl=tls)
        parent.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(forever())


def least(contenders: dict[str, Callable[[], object]], repeats: int) -> list[float]:
    """Return the least seconds of each: other programs only add to a measurement."""
    return [min(seconds) for seconds in take_turns(contenders, repeats).values()]


def measure(options: Options) -> dict[str, float]:
    """Print the tables and return the ratios."""
    repeats = 3 if options.quick else 15
    return callbacks(repeats) | webhooks(repeats, encrypted=False) | webhooks(repeats, encrypted=True)


if __name__ == "__main__":
    benchmark("agents", __doc__, measure, quick="fewer repetitions")
