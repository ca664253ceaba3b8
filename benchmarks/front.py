"""What all benchmarks share: the command line, contenders that take turns, and the line of JSON at the end."""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Options", "benchmark", "take_turns"]

Options = argparse.Namespace


def benchmark(
    name: str,
    description: str | None,
    measure: Callable[[Options], Mapping[str, float]],
    *,
    quick: str,
    add_options: Callable[[argparse.ArgumentParser], object] = lambda _: None,
) -> None:
    """Read the command line, measure, and print the ratios as the last line.

    Args:
        name: of the benchmark.
        description: what `--help` says first.
        measure: prints its tables and returns the ratios of this run. `options.quick` says whether to hurry.
        quick: what `--quick` leaves out. A quick run takes less than 50 seconds on two slow cores.
        add_options: adds the options that only this benchmark has.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    add_options(parser)
    ratios = measure(parser.parse_args())
    rounded = {key: float(f"{value:.4g}") for key, value in ratios.items()}
    print(json.dumps({"benchmark": name, "ratios": rounded}))


def take_turns(
    contenders: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    warm_up: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the seconds (rounds,) of each contender. They take turns, so that a busy machine slows all of them.

    Args:
        contenders: calls without arguments. One that returns a float has timed itself, and the float is its seconds.
        rounds: that count.
        warm_up: rounds before them that do not count.
        clock: `time.process_time` counts the processor's seconds, of all threads.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(warm_up + rounds):
        for name, call in contenders.items():
            start = clock()
            result = call()
            seconds[name].append(result if isinstance(result, float) else clock() - start)
    return {name: several[warm_up:] for name, several in seconds.items()}
