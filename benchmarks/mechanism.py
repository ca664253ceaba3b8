"""How fast is `settle`, against one exponential over the same matrix? Both measured in this run, alternated."""

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from llm_auction_chain.mechanism import settle


def main() -> None:
    """Print the tables and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    repeats = 7 if parser.parse_args().quick else 31
    rewards = np.random.default_rng(0).random((1000, 1024))
    print("1,000 agents x 1,024 candidates\n   tau   exp ms   settle ms   ratio")
    ratios = {}
    for tau in (0.001, 0.1, 1.0, 100.0):
        plain, ours = alternate(lambda: np.exp(rewards), lambda tau=tau: settle(rewards, tau=tau, seed=1), repeats)  # type: ignore[misc]
        ratios[tau] = ours / plain
        print(f"{tau:6g} {plain * 1e3:8.2f} {ours * 1e3:11.2f} {ratios[tau]:7.2f}")
    tracemalloc.start()
    settle(rewards, tau=1.0, seed=1)
    memory = tracemalloc.get_traced_memory()[1] / rewards.nbytes
    tracemalloc.stop()
    for axis, shapes in {
        "agents": [(n, 1024) for n in (125, 250, 500, 1000, 2000)],
        "candidates": [(1000, m) for m in (128, 256, 512, 1024, 2048)],
    }.items():
        print(f"\n{axis:>10}   settle ms   ns per entry")
        for shape in shapes:
            matrix = np.random.default_rng(0).random(shape)
            _, ours = alternate(lambda: None, lambda matrix=matrix: settle(matrix, tau=1.0, seed=1), repeats)  # type: ignore[misc]
            print(f"{shape[axis == 'candidates']:10d} {ours * 1e3:11.2f} {ours * 1e9 / matrix.size:14.2f}")
    result = {"settle_vs_exp": round(ratios[1.0], 3), "memory_vs_matrix": round(memory, 3)}
    print(json.dumps({"benchmark": "mechanism", "ratios": result}))


def alternate(first: Callable[[], object], second: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return the median seconds of both, called in turn."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for call, taken in zip((first, second), seconds, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return float(np.median(seconds[0])), float(np.median(seconds[1]))


if __name__ == "__main__":
    main()
