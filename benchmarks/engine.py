"""What does an auction's model work cost, against plain transformers, vLLM, and the arithmetic itself?

Every contender gets the same tokens, on the same two cores, in this run, in turn. Work: M replies are drawn from the
proposal, and every one is scored under the proposal's other laws and under every agent's own system prompt.

- ours: the engine of this package.
- transformers: `generate` for each law, then whole texts for each law in one batch.
- vLLM: one batch of draws, one batch of prompts with log-probabilities, in the environment of `make test-vllm`.
- floor: the model's weight matrices times as many rows, by `torch.nn.functional.linear`, and nothing else.
- packed floor: the same products with matrices that oneDNN has reordered beforehand, which takes a second copy of them.
- one reply: one plain reply of 64 tokens by transformers, what a user has without an auction.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from engine_contenders import THREADS, VLLM, Ours, Plain, exact, load, memory
from engine_floor import Floor, linear, packed
from engine_workload import Encode, Floats, Turn, Workload, build

from llm_auction_chain.models.local.weights import embedded_model_path

Contender = Callable[[int, Sequence[int]], Turn]  # from a seed, and the lengths of the replies we drew in this round

ROOT = Path(__file__).parents[1]
VLLM_PYTHON = Path(os.environ.get("VLLM_PYTHON", ROOT / ".venv-vllm/bin/python"))
WORKLOADS: dict[str, dict[str, Any]] = {
    "W1": {},
    "W2": {"m": 16, "tokens": 256, "ends": True},
    "W3": {"agents": 16},
    "W4": {"default": True},
}
QUICK = {"m": 8, "tokens": 16}
ONE_REPLY, CHECKED = 64, 8
# Rounding of logits to bfloat16 costs about .04 nats a token, in either direction: .04 sqrt(T) over T tokens, and more
# where powers multiply it. Another agent's prompt, the mistake hardest to see, costs .2 sqrt(T) or more at 64 tokens.
BOUND = 0.15  # nats / sqrt(tokens) / |powers|, mean over replies, for every law


def say(what: str) -> None:
    """Tell those who wait."""
    print(what, file=sys.stderr, flush=True)


def measure(contenders: Mapping[str, Contender], rounds: int) -> dict[str, list[Turn]]:
    """Return the turns of every round; one round before them is thrown away."""
    turns: dict[str, list[Turn]] = {name: [] for name in contenders}
    for seed in range(rounds + 1):
        for name, contender in contenders.items():
            lengths = [len(reply) for reply in turns["ours"][-1].replies] if name != "ours" else []
            turns[name].append(contender(seed, lengths))
            say(f"round {seed} of {rounds}: {name} {turns[name][-1].seconds:.2f} s")
    return {name: several[1:] for name, several in turns.items()}


def per_thousand(turns: Sequence[Turn]) -> float:
    """Return the median seconds for 1,000 tokens of replies: where replies end by themselves, draws differ."""
    return median(turn.seconds * 1000 / turn.tokens for turn in turns)


def print_times(turns: Mapping[str, Sequence[Turn]], rounds: int) -> None:
    """Print the table of the contenders."""
    print(f"\n{'seconds, median of ' + str(rounds):24}  median   least  tokens  a 1,000 tokens  / floor  parts")
    floor = per_thousand(turns["floor"])
    for name, several in turns.items():
        seconds = [turn.seconds for turn in several]
        parts = ", ".join(f"{part} {median(turn.parts[part] for turn in several):.2f}" for part in several[0].parts)
        tokens = median(turn.tokens for turn in several)
        print(
            f"{name:24} {median(seconds):7.2f} {min(seconds):7.2f} {tokens:7.0f} {per_thousand(several):15.2f} "
            f"{per_thousand(several) / floor:8.2f}  {parts}"
        )


def print_breakdown(ours: Ours, work: Workload) -> None:
    """Print where our seconds go, from a run of its own whose methods are timed."""
    print("\nours, where the seconds go (a run of its own)")
    for part, spent in ours.breakdown(work).items():
        print(
            f"{part:24} {sum(spent.values()):7.2f}  " + ", ".join(f"{key} {value:.2f}" for key, value in spent.items())
        )


def agree(
    path: Path, work: Workload, scorers: Mapping[str, Ours | Plain | VLLM], turns: Mapping[str, Turn]
) -> list[str]:
    """Compare every contender's log-probabilities with whole texts in float32, and return who is off.

    All score the same replies, some of ours. What they came to in their own turn, the figures from drawing among them,
    is compared for some of their own replies. The last column is in nats / sqrt(tokens) / |powers|.
    """
    model = load(path, torch.float32)
    some = np.linspace(0, len(work.own) - 1, min(CHECKED, len(work.own))).round().astype(int)
    print(f"\n|nats from float32|, {len(some)} replies  a token: mean    max  a reply: mean    max  worst law")
    off, replies = [], [turns["ours"].replies[m] for m in some]
    known = exact(model, work, replies)
    for name, scorer in scorers.items():
        found = {"scores": (scorer.score(work, replies), known, replies)}
        turn = turns[name]
        own = [turn.replies[m] for m in some]
        if turn.log_probs is not None:
            found["turn"] = (turn.log_probs[:, some], known if own == replies else exact(model, work, own), own)
        for what, compared in found.items():
            worst = print_difference(f"{name}, {what}", work, *compared)
            # Not a number is off too.
            if not worst <= BOUND:
                off.append(f"{name}'s {what} are off by {worst:.3f} nats / sqrt(tokens) under some law, above {BOUND}")
    return off


def print_difference(
    name: str, work: Workload, found: Floats, known: Floats, replies: Sequence[Sequence[int]]
) -> float:
    """Print a line of the table, and return what is held against the bound: the mean of the worst law."""
    a_reply, lengths = np.abs(found - known), np.array([len(reply) for reply in replies])
    a_token = a_reply / lengths
    laws = (a_reply / np.sqrt(lengths)).mean(axis=1) / np.linalg.norm(work.powers, axis=1)
    worst = float(laws.max())
    figures = f"{a_token.mean():13.4f} {a_token.max():6.4f} {a_reply.mean():14.3f} {a_reply.max():6.3f}"
    print(f"{name:28} {figures} {worst:10.3f}")
    return worst


def print_growth(ours: Ours, floor: Floor, work: Callable[..., Workload]) -> None:
    """Print how the seconds grow with replies, agents and tokens."""
    axes = {"m": (8, 16, 32, 64), "agents": (1, 3, 8, 16), "tokens": (16, 32, 64, 128)}
    for axis, values in axes.items():
        print(f"\n{axis:>10}   ours s  floor s   ratio")
        for value in values:
            one = work(**{axis: value})
            pairs = [(ours.turn(one, seed), floor.turn(one, [one.max_tokens] * len(one.own))) for seed in range(3)]
            mine, least = (min(turn.seconds for turn in several[1:]) for several in zip(*pairs, strict=True))
            print(f"{value:10d} {mine:8.2f} {least:8.2f} {mine / least:7.2f}", flush=True)


def compare_memory(path: Path, work: Workload) -> float | None:
    """Print the memory of fresh processes, and return the ratio of the peaks; None where transformers alone cannot."""
    names = ("ours", "transformers") if work.plain else ("ours",)
    print(f"\n{'MiB of a fresh process':24}  loaded    peak  growth")
    peaks = []
    for name in names:
        found = memory(name, path, work)
        print(f"{name:24} {found['loaded']:7.0f} {found['peak']:7.0f} {found['peak'] - found['loaded']:7.0f}")
        peaks.append(found["peak"])
    return peaks[0] / peaks[1] if work.plain else None


def one_reply(plain: Plain, work: Workload, tokens: int) -> Contender:
    """Return the drawing of one plain reply of so many tokens."""
    alone = Workload(prompts=work.prompts[:1], powers=[[1.0]], counts=[1], max_tokens=tokens, ends=False)
    return lambda seed, _: plain.drawn(alone, seed)


def work_of(name: str, encode: Encode, *, quick: bool) -> Callable[..., Workload]:
    """Return what builds a workload, with its sizes changed at will."""
    return lambda **sizes: build(encode, **{**WORKLOADS[name], **(QUICK if quick else {}), **sizes})


def main() -> None:
    """Print the tables and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--workload",
        choices=WORKLOADS,
        default="W1",
        help="W1: 32 replies of 64 tokens, 3 agents; W2: 16 replies that end by themselves, up to 256 tokens; "
        "W3: W1 with 16 agents; W4: W1 with the default proposal, a product, which the others cannot draw from",
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contender that are counted")
    parser.add_argument("--no-vllm", action="store_true", help="leave vLLM out")
    parser.add_argument("--growth", action="store_true", help="also measure more and fewer replies, agents and tokens")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 8 replies of 16 tokens: whether it works")
    given = parser.parse_args()
    rounds = 2 if given.quick else given.rounds
    torch.set_num_threads(THREADS)
    path = embedded_model_path()
    ours, plain = Ours(path), Plain(path)
    sized = work_of(given.workload, ours.engine.encode, quick=given.quick)
    work = sized()
    vllm = start_vllm(path) if work.plain and not given.no_vllm else None
    try:
        print(f"{given.workload}: {describe(work)}; {THREADS} threads, bfloat16")
        floor, ready = Floor.of(plain.model, linear), Floor.of(plain.model, packed)
        scorers: dict[str, Ours | Plain | VLLM] = {"ours": ours}
        scorers |= {"transformers": plain} if work.plain else {}
        scorers |= {"vLLM": vllm} if vllm else {}
        turns = measure(
            {name: (lambda seed, _, scorer=scorer: scorer.turn(work, seed)) for name, scorer in scorers.items()}
            | {"floor": lambda _, lengths: floor.turn(work, lengths)}
            | {"packed floor": lambda _, lengths: ready.turn(work, lengths)}
            | {"one reply": one_reply(plain, work, QUICK["tokens"] if given.quick else ONE_REPLY)},
            rounds,
        )
        print_times(turns, rounds)
        print_breakdown(ours, work)
        off = agree(path, work, scorers, {name: several[-1] for name, several in turns.items()})
    finally:
        if vllm:
            vllm.close()
    if given.growth:
        print_growth(ours, floor, sized)
    result = ratios(turns) | {"memory_vs_transformers": compare_memory(path, work)}
    rounded = {key: value and float(f"{value:.4g}") for key, value in result.items()}
    seconds = {name: round(median(turn.seconds for turn in several), 3) for name, several in turns.items()}
    print(
        json.dumps({"benchmark": "engine", "workload": given.workload, **rounded, "rounds": rounds, "seconds": seconds})
    )
    if off:
        sys.exit("; ".join(off))


def describe(work: Workload) -> str:
    """Return the sizes of a workload in words."""
    laws = len(work.powers)
    proposal = sum(1 for count in work.counts if count)
    return (
        f"{len(work.own)} replies of {'up to ' if work.ends else ''}{work.max_tokens} tokens from {proposal} laws, "
        f"{laws} laws in all over {len(work.prompts)} prompts of {sum(map(len, work.prompts))} tokens"
    )


def start_vllm(path: Path) -> VLLM | None:
    """Return vLLM ready for work, or None where it is not installed."""
    if not VLLM_PYTHON.exists():
        print(f"no vLLM at {VLLM_PYTHON}: it is left out; `make test-vllm` installs it, or set VLLM_PYTHON")
        return None
    say("vLLM loads, which takes up to a minute")
    return VLLM(VLLM_PYTHON, path)


def ratios(turns: Mapping[str, Sequence[Turn]]) -> dict[str, float | None]:
    """Return our seconds against the others'; None where another had no turn."""
    ours = per_thousand(turns["ours"])
    against = {name: per_thousand(turns[name]) / ours if name in turns else None for name in ("transformers", "vLLM")}
    one, whole = (median(turn.seconds for turn in turns[name]) for name in ("one reply", "ours"))
    least = median(turn.seconds for turn in turns["floor"])
    print(f"\nours is {whole / one:.2f} times one plain reply; the floor alone is {least / one:.2f} times")
    return {
        "cost_vs_one_reply": whole / one,
        "floor_vs_one_reply": least / one,
        "speedup_vs_transformers": against["transformers"],
        "speedup_vs_vllm": against["vLLM"],
        "time_vs_floor": ours / per_thousand(turns["floor"]),
        "time_vs_packed_floor": ours / per_thousand(turns["packed floor"]),
    }


if __name__ == "__main__":
    main()
