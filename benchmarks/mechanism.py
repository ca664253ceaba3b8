"""How fast is `settle`, against one exponential over the same matrix? Both measured in this run, alternated."""

import time
import tracemalloc
from functools import partial
from typing import Any

import numpy as np
from front import Options, benchmark, take_turns

from llm_auction_chain.mechanism import PAYMENT_RULES, settle

Case = tuple[np.ndarray[Any, np.dtype[np.float64]], dict[str, Any]]

TYPICAL = "tau 1, rewards 0..1"


def cases(rewards: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, Case]:
    """Return the typical auction, and auctions where sums lose digits, exponentials underflow or arrays are copied."""
    n, m = rewards.shape
    rng = np.random.default_rng(1)
    every_case: dict[str, Case] = {TYPICAL: (rewards, {})}
    for tau in (1e-5, 0.001, 0.003, 0.01, 0.1, 10.0, 30.0, 100.0, 1e3, 1e6):
        every_case[f"tau {tau:g}"] = (rewards, {"tau": tau})
    for factor in (100.0, 1000.0):
        every_case[f"rewards x {factor:g}"] = (rewards * factor, {})
    for share in (0.01, 0.1):
        every_case[f"{share:.0%} of rewards not 0"] = (rewards * (rng.random(rewards.shape) < share), {})
    every_case["rewards -1..1"] = (2.0 * rewards - 1.0, {})
    every_case["a constant of 1e12"] = (rewards + 1e12, {})
    for name, every in (("one weight -inf", m), ("half the weights -inf", 2)):
        every_case[name] = (rewards, {"log_weights": np.where(np.arange(m) % every, 0.0, -np.inf)})
    every_case["owners in pairs"] = (rewards, {"owners": [k // 2 for k in range(n)]})
    for rule in PAYMENT_RULES[1:]:
        every_case[f"rule {rule}"] = (rewards, {"payment_rule": rule})
    return every_case


def measure(options: Options) -> dict[str, float]:
    """Print the tables and return the ratios."""
    repeats = 25 if options.quick else 101
    matrix = np.random.default_rng(0).random((1000, 1024))
    print(f"{'1,000 agents x 1,024 candidates':32} exp ms   settle ms   ratio")
    ratios = {}
    for name, (rewards, arguments) in cases(matrix).items():
        settings: dict[str, Any] = {"tau": 1.0, "seed": 1} | arguments
        plain, taken = least({"exp": partial(np.exp, matrix), "settle": partial(settle, rewards, **settings)}, repeats)
        ratios[name] = taken / plain
        print(f"{name:32} {plain * 1e3:6.2f} {taken * 1e3:11.2f} {ratios[name]:7.2f}")
    worst = max(ratios, key=lambda name: ratios[name])
    print(f"typical: {ratios[TYPICAL]:.2f} ({TYPICAL}); worst: {ratios[worst]:.2f} ({worst})")
    tracemalloc.start()
    settle(matrix, tau=1.0, seed=1)
    memory = tracemalloc.get_traced_memory()[1] / matrix.nbytes
    tracemalloc.stop()
    print_curves(repeats)
    return {"settle_vs_exp": ratios[TYPICAL], "settle_vs_exp_worst": ratios[worst], "memory_vs_matrix": memory}


def print_curves(repeats: int) -> None:
    """Print how the time grows with agents and with candidates."""
    for axis, shapes in {
        "agents": [(n, 1024) for n in (125, 250, 500, 1000, 2000)],
        "candidates": [(1000, m) for m in (128, 256, 512, 1024, 2048)],
    }.items():
        print(f"\n{axis:>10}   settle ms   ns per entry")
        for shape in shapes:
            matrix = np.random.default_rng(0).random(shape)
            (ours,) = least({"settle": partial(settle, matrix, tau=1.0, seed=1)}, repeats)
            print(f"{shape[axis == 'candidates']:10d} {ours * 1e3:11.2f} {ours * 1e9 / matrix.size:14.2f}")


def least(contenders: dict[str, Any], repeats: int) -> list[float]:
    """Return the least seconds of each, of the processor, all threads.

    Other programs only add to a measurement, in slices of 4 ms on some machines: the least is nearest to the truth.
    """
    return [min(seconds) for seconds in take_turns(contenders, repeats, clock=time.process_time).values()]


if __name__ == "__main__":
    benchmark("mechanism", __doc__, measure, quick="fewer repetitions")
