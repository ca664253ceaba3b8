"""What does a busy neighbour cost the local engine, which shares two cores with it?

All contenders take turns in this run, alone and beside one and two loops that never rest. Each is a process of its own,
because OpenMP reads once how its threads wait for each other.

- ours: the engine as it is, with two threads that sleep while they wait.
- one thread: the engine under `OMP_NUM_THREADS=1`.
- spinning: the engine with OpenMP's default, two threads that wait in a loop. A neighbour makes it slow beyond measure,
  so quick runs leave it out.

Other work on the machine is one more neighbour: without an idle machine, read the ratios between contenders.
"""

import multiprocessing
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from statistics import median
from typing import Any
from unittest.mock import patch

from engine_workload import build
from front import Options, benchmark

CORES = 2
CONTENDERS = {
    "ours": {},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "spinning": {"GOMP_SPINCOUNT": "300000"},  # libgomp's own default
}
SIZES = {"m": 8, "tokens": 24}
QUICK = {"m": 4, "tokens": 8, "agents": 1}
SPAWN = multiprocessing.get_context("spawn")


def serve(pipe: Connection, sizes: Mapping[str, Any], dtype: str) -> None:
    """Do the work once for each message, and answer with its seconds on the clock and of the processor."""
    from llm_auction_chain.models.local.limits import import_torch

    import_torch()
    from engine_contenders import Ours

    from llm_auction_chain.models.local.weights import embedded_model_path

    ours = Ours(embedded_model_path(), dtype)
    work = build(ours.engine.encode, **sizes)
    ours.turn(work, 0)
    pipe.send("ready")
    while pipe.recv():
        before = os.times()
        seconds = ours.turn(work, 0).seconds
        after = os.times()
        pipe.send((seconds, after.user - before.user + after.system - before.system))


def never_rest(ready: Barrier) -> None:
    """Keep a core busy."""
    ready.wait()
    while True:
        pass


@contextmanager
def contender(environment: Mapping[str, str], sizes: Mapping[str, int], dtype: str) -> Iterator[Connection]:
    """Yield the pipe to a process that is ready to work, with these variables and no others for threads."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_", "GOMP_", "KMP_"))}
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=serve, args=(theirs, sizes, dtype), daemon=True)
    with patch.dict(os.environ, {**kept, **environment}, clear=True):
        process.start()
    theirs.close()
    ours.recv()
    try:
        yield ours
    finally:
        process.kill()
        process.join()


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Run as many processes that never rest."""
    ready = SPAWN.Barrier(count + 1)
    processes = [SPAWN.Process(target=never_rest, args=(ready,), daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    ready.wait()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def measure(options: Options) -> dict[str, float]:
    """Print the table and return the ratios."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:CORES]))
    sizes, rounds = (QUICK, 2) if options.quick else (SIZES, options.rounds)
    names = [name for name in CONTENDERS if not (options.quick and name == "spinning")]
    turns: dict[tuple[str, int], list[tuple[float, float]]] = {
        (name, k): [] for name in names for k in range(CORES + 1)
    }
    with ExitStack() as stack:
        pipes = {name: stack.enter_context(contender(CONTENDERS[name], sizes, options.dtype)) for name in names}
        for _ in range(rounds):
            for k in range(CORES + 1):
                with neighbours(k):
                    for name, pipe in pipes.items():
                        pipe.send("go")
                        turns[name, k].append(pipe.recv())
    seconds = {key: median(several[0] for several in answers) for key, answers in turns.items()}
    print(f"{sizes['m']} replies of {sizes['tokens']} tokens, {options.dtype}, medians of {rounds}, {CORES} cores")
    print(f"{'':12} neighbours  seconds  / alone  processor's seconds")
    for (name, k), time in seconds.items():
        used = median(several[1] for several in turns[name, k])
        print(f"{name:12} {k:10d} {time:8.2f} {time / seconds[name, 0]:8.2f} {used:20.2f}")
    beside = {0: "alone", 1: "beside_one", 2: "beside_two"}
    return {f"slowdown_{beside[k]}": seconds["ours", k] / seconds["ours", 0] for k in (1, 2)} | {
        f"time_vs_{name.replace(' ', '_')}_{place}": seconds["ours", k] / seconds[name, k]
        for name in names[1:]
        for k, place in beside.items()
    }


if __name__ == "__main__":
    benchmark(
        "neighbours",
        __doc__,
        measure,
        quick="2 rounds of 4 replies of 8 tokens, without spinning threads",
        add_options=lambda parser: (
            parser.add_argument("--rounds", type=int, default=5, help="turns of every contender"),
            parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto"),
        ),
    )
