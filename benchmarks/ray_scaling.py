"""Do workers on Ray add up? Auctions a second of one, two and four of them, over a model that takes a fixed time.

Each worker holds four auctions at a time, on a cluster on this machine that claims more CPUs than it has: they mostly
wait for the model. Starting them does not count. There is no ledger, whose writers take turns: `ledger.py` measures it.
It runs in `.venv-ray`, which `make bench` sets up.
"""

import argparse
import os
import time
from statistics import median
from typing import Any

import ray
from front import Options, benchmark, take_turns
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda

from llm_auction_chain import Agent, AuctionRunnable, map_auctions

BATCH = 4  # auctions that a worker holds at a time
WORKERS = (1, 2, 4)
LOGICAL_CPUS = 8
STORE = 200 * 2**20  # bytes of the object store


def draw(_: Any) -> AIMessage:
    """Reply after half a second, with the times before and after it."""
    began = time.time()
    time.sleep(0.5)
    return AIMessage(f"{began} {time.time()}")


def make_auction() -> AuctionRunnable:
    """Return the auction of a worker."""
    agents = [Agent(f"agent {k}", lambda prompt, reply: float(len(reply.text) % 3)) for k in range(8)]
    return AuctionRunnable(model=RunnableLambda(draw), agents=agents, n_candidates=4)


def seconds(workers: int, rows: int) -> float:
    """Return the seconds from the first draw to the last, over all workers."""
    items = [{"key": f"request {n}", "prompt": "How do I learn the violin?"} for n in range(rows)]
    dataset = ray.data.from_items(items, override_num_blocks=rows // BATCH)
    answered = map_auctions(dataset, make_auction, workers=workers, batch_size=BATCH).take_all()
    times = [tuple(map(float, row["reply"].split())) for row in answered if row["error"] is None]
    if len(times) < rows:
        raise RuntimeError("An auction failed.")
    return max(end for _, end in times) - min(began for began, _ in times)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the sizes."""
    parser.add_argument("--rounds", type=int, help="of all contenders in turns: 2, or 1 where quick")


def measure(options: Options) -> dict[str, float]:
    """Print the table and return the ratios."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    ray.init(num_cpus=LOGICAL_CPUS, object_store_memory=STORE, include_dashboard=False, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.wait_for_min_actors_s = 300  # all workers begin together
    rows = (16 if options.quick else 32) * BATCH
    contenders = {str(count): (lambda count=count: seconds(count, rows)) for count in WORKERS}
    taken = take_turns(contenders, options.rounds or (1 if options.quick else 2))
    rate = {count: rows / median(taken[str(count)]) for count in WORKERS}
    print(f"{'workers':>8} {'auctions/s':>12} {'of one':>8}")
    for count in WORKERS:
        print(f"{count:>8} {rate[count]:>12.1f} {rate[count] / rate[1]:>8.2f}")
    return {f"ray_scaling_{count}": rate[count] / rate[1] for count in WORKERS[1:]}


if __name__ == "__main__":
    benchmark("ray_scaling", __doc__, measure, quick="half the auctions, in one turn", add_options=add_options)
