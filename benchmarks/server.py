"""What does the server cost? Clients against the same model behind a bare endpoint; and money when things break.

The model replies after a fixed time, so all else that a client waits for is the server's work. Contenders take turns;
server and clients are processes of their own. The second part kills workers and hangs up, and compares the ledger with
what the clients received: see `server_faults.py`.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from front import Options, benchmark
from ledger import postgresql
from server_faults import faults
from server_load import Measurement, Server, hang, load, serving
from server_workers import OWNERS, Settings

from llm_auction_chain import Ledger

BARE, PLAIN = "bare endpoint", "server, M = 1, no agents"
AUCTION, CHARGED = "server, M = 8, 3 agents", "the same with PostgreSQL"
KEY_LEVEL = 16  # clients of the ratio
STREAMS, PARTS = 256, 12


def contest(contenders: dict[str, Server], clients: int, *, turns: int, seconds: float) -> dict[str, Measurement]:
    """Let clients load the servers in turn, print a row for each, and return what the clients saw."""
    measurements = {name: Measurement() for name in contenders}
    for server in contenders.values():
        asyncio.run(load(server, clients, seconds / 4, Measurement()))
    for _ in range(turns):
        for name, server in contenders.items():
            asyncio.run(load(server, clients, seconds, measurements[name]))
    for name, one in measurements.items():
        times = [one.percentile(share) * 1e3 for share in (0.5, 0.99)]
        rate, cost = len(one.seconds) / one.wall, one.processor / len(one.seconds) * 1e3
        figures = f"{rate:10.1f} {times[0]:9.0f} {times[1]:9.0f} {one.errors:7d} {cost:9.2f}"
        print(f"{clients:7d}  {name:26} {figures} {contenders[name].memory():8.0f}", flush=True)
    return measurements


def speed(folder: Path, options: Options) -> dict[str, float]:
    """Print a table of all servers and levels, and return the ratio of medians at 16 clients."""
    levels = (KEY_LEVEL,) if options.quick else (1, KEY_LEVEL, 64, 256)
    base = Settings(latency=options.latency)
    auction = Settings(latency=options.latency, candidates=8, agents=len(OWNERS))
    print(f"the model takes {options.latency * 1e3:g} ms")
    print("clients  server                      answers/s   p50, ms   p99, ms  errors  CPU, ms  RSS, MiB")
    with ExitStack() as stack:
        settings = {BARE: (base, {"app": "bare"}), PLAIN: (base, {})}
        if not options.quick:
            url = stack.enter_context(postgresql(folder))("load")
            with Ledger(url) as ledger:
                for owner in OWNERS:
                    ledger.deposit(owner, 1_000_000)
            settings |= {AUCTION: (auction, {}), CHARGED: (auction, {"ledger": url})}
        contenders = {name: stack.enter_context(serving(one, **more)) for name, (one, more) in settings.items()}
        ratios = {}
        for clients in levels:
            measurements = contest(contenders, clients, turns=2 if options.quick else 4, seconds=3.0)
            if clients == KEY_LEVEL:
                ratios["server_vs_bare_p50"] = measurements[PLAIN].percentile(0.5) / measurements[BARE].percentile(0.5)
                ratios["server_vs_bare_cpu"] = (measurements[PLAIN].processor / len(measurements[PLAIN].seconds)) / (
                    measurements[BARE].processor / len(measurements[BARE].seconds)
                )
    return ratios


def memory() -> dict[str, float]:
    """Print a server's memory after many requests and after many streams that clients left, and return its growth."""
    requests, refused, by_requests, by_streams = Measurement(), 0, [], []
    with serving(Settings()) as server:
        for _ in range(PARTS):
            asyncio.run(load(server, KEY_LEVEL, 2.5, requests))
            by_requests.append(server.memory())
    with serving(Settings(latency=60.0, keep_alive=0.5)) as server:
        for _ in range(PARTS):
            refused += asyncio.run(hang(server, STREAMS))
            time.sleep(1.0)
            by_streams.append(server.memory())
    print(f"\nRSS in MiB over {len(requests.seconds)} requests ({requests.errors} errors): {_listed(by_requests)}")
    print(f"over {PARTS} times {STREAMS} streams that clients left ({refused} refused): {_listed(by_streams)}")
    middle = PARTS // 2  # caches are full by then
    return {
        "rss_over_requests": by_requests[-1] / by_requests[middle],
        "rss_over_streams": by_streams[-1] / by_streams[middle],
    }


def _listed(sizes: Sequence[float]) -> str:
    return ", ".join(f"{one:.0f}" for one in sizes)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the sizes."""
    parser.add_argument("--latency", type=float, default=0.25, metavar="SECONDS", help="of a model call; 0.25")
    parser.add_argument("--requests", type=int, help="of the part with faults: 5,000, or 200 where quick; 0 for none")
    parser.add_argument("--faults-only", action="store_true", help="only the part with faults")


def measure(options: Options) -> dict[str, float]:
    """Print the tables and return the ratios."""
    requests = (200 if options.quick else 5000) if options.requests is None else options.requests
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not options.faults_only:
            ratios |= speed(folder, options)
            if not options.quick:
                ratios |= memory()
        if requests:
            ratios |= faults(folder, requests)
    return ratios


if __name__ == "__main__":
    benchmark("server", __doc__, measure, quick="16 clients, two servers, 200 faulty requests", add_options=add_options)
