"""What does an auction's model work cost, against plain transformers, vLLM, and the arithmetic itself?

All contenders take turns in this run, with the same tokens, on the same two cores, in the dtype that these compute in.
None remembers a prompt of the turn before.
Work: M replies are drawn from the proposal. Each is scored under the proposal's other laws and under every agent's own
system prompt.

- ours: the engine of this package.
- transformers: `generate` for each law, then whole texts for each law in one batch.
- vLLM: one batch of draws, one batch of prompts with log-probabilities, in the environment of `make test-vllm`.
- floor: the model's weight matrices times as many rows, by `torch.nn.functional.linear`, and nothing else.
- packed floor: the same products with matrices that oneDNN has reordered beforehand, which takes a second copy of them.
- one reply: one plain reply of 64 tokens by transformers, what a user has without an auction.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from engine_contenders import THREADS, VLLM, Ours, Plain, exact, load, memory
from engine_floor import CHUNKS, QUICK_CHUNKS, Floor, linear, packed
from engine_workload import Encode, Floats, Turn, Workload, build, count_processor_time
from front import Options, benchmark

from llm_auction_chain.models.local.capabilities import can_pack, dtype_named
from llm_auction_chain.models.local.weights import embedded_model_path

Contender = Callable[[int, Sequence[int]], Turn]  # from a seed, and the lengths of our replies in this round

ROOT = Path(__file__).parents[1]
VLLM_PYTHON = Path(os.environ.get("VLLM_PYTHON", ROOT / ".venv-vllm/bin/python"))
WORKLOADS: dict[str, dict[str, Any]] = {
    "W1": {},
    "W2": {"m": 16, "tokens": 256, "ends": True},
    "W3": {"agents": 16},
    "W4": {"product": True},
}
QUICK = {"m": 4, "tokens": 8}
ONE_REPLY, CHECKED = 64, 8
CHAT_REPLY, FURTHER = 16, "And what should I leave at home?"
QUICK_CHECKED = 2
# Rounding of logits to bfloat16 costs about .04 nats a token, in either direction: .04 sqrt(T) over T tokens, and more
# where powers multiply it. Another agent's prompt, the mistake hardest to see, costs .2 sqrt(T) or more at 64 tokens.
BOUND = 0.15  # nats / sqrt(tokens) / |powers|, mean over replies, for every law


def say(what: str) -> None:
    """Print progress."""
    print(what, file=sys.stderr, flush=True)


def play(contenders: Mapping[str, Contender], rounds: int) -> dict[str, list[Turn]]:
    """Return the turns of every round; one round before them does not count."""
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
    """Print where our seconds go, from another run with timed methods."""
    print("\nours, where the seconds go (another run)")
    for part, spent in ours.breakdown(work).items():
        print(
            f"{part:24} {sum(spent.values()):7.2f}  " + ", ".join(f"{key} {value:.2f}" for key, value in spent.items())
        )


def print_chat(ours: Ours, work: Workload) -> dict[str, float]:
    """Print how many tokens of prompts the turns of a chat read, and return the shares of the first and the last."""
    small = replace(work, counts=[min(count, 1) for count in work.counts], max_tokens=min(work.max_tokens, CHAT_REPLY))
    further = ours.engine.encode([{"role": "user", "content": FURTHER}])
    counts = ours.chat(small, further)
    print(f"\na chat, replies of {small.max_tokens} tokens, further questions of {len(further)}")
    print("turn  tokens of all prompts  read for drawing and scoring")
    for turn, (prompts, read) in enumerate(counts, 1):
        print(f"{turn:4d} {prompts:22d} {read:29d}")
    shares = [read / prompts for prompts, read in counts]
    return {"prompts_read_first_turn": shares[0], "prompts_read_last_turn": shares[-1]}


def check(
    path: Path, work: Workload, scorers: Mapping[str, Ours | Plain | VLLM], turns: Mapping[str, Turn], checked: int
) -> None:
    """Compare every contender's log-probabilities with those of whole texts in float32.

    All score the same replies, some of ours. The log-probabilities of their own turn are compared for some of their own
    replies. The last column is in nats / sqrt(tokens) / |powers|.

    Raises:
        SystemExit: a contender is off by more than rounding.
    """
    model = load(path, torch.float32)
    some = np.linspace(0, len(work.own) - 1, min(checked, len(work.own))).round().astype(int)
    print(f"\n|nats from float32|, {len(some)} replies  a token: mean    max  a reply: mean    max  worst law")
    off, replies = [], [turns["ours"].replies[m] for m in some]
    known = exact(model, work, replies)
    for name, scorer in scorers.items():
        compared = {"scores": (scorer.score(work, replies), known, replies)}
        turn = turns[name]
        own = [turn.replies[m] for m in some]
        if turn.log_probs is not None:
            compared["turn"] = (turn.log_probs[:, some], known if own == replies else exact(model, work, own), own)
        for what, values in compared.items():
            worst = print_difference(f"{name}, {what}", work, *values)
            # nan is off too.
            if not worst <= BOUND:
                off.append(f"{name}'s {what} are off by {worst:.3f} nats / sqrt(tokens) under some law, above {BOUND}")
    if off:
        sys.exit("; ".join(off))


def print_difference(
    name: str, work: Workload, values: Floats, known: Floats, replies: Sequence[Sequence[int]]
) -> float:
    """Print a line of the table, and return the mean of the worst law, which `BOUND` limits."""
    a_reply, lengths = np.abs(values - known), np.array([len(reply) for reply in replies])
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


def compare_memory(path: Path, dtype: str, work: Workload) -> dict[str, float]:
    """Print the memory of fresh processes, and return the ratio of the peaks if transformers can do the work."""
    names = ("ours", "transformers") if work.plain else ("ours",)
    print(f"\n{'MiB of a fresh process':24}  loaded    peak  growth")
    peaks = []
    for name in names:
        used = memory(name, path, dtype, work)
        print(f"{name:24} {used['loaded']:7.0f} {used['peak']:7.0f} {used['peak'] - used['loaded']:7.0f}")
        peaks.append(used["peak"])
    return {"memory_vs_transformers": peaks[0] / peaks[1]} if work.plain else {}


def one_reply(plain: Plain, work: Workload, tokens: int) -> Contender:
    """Return the contender that draws one plain reply of this length."""
    alone = Workload(prompts=work.prompts[:1], powers=[[1.0]], counts=[1], max_tokens=tokens, ends=False)
    return lambda seed, _: plain.drawn(alone, seed)


def work_of(name: str, encode: Encode, *, quick: bool) -> Callable[..., Workload]:
    """Return a builder of the workload, which takes other sizes as keywords."""
    return lambda **sizes: build(encode, **{**WORKLOADS[name], **(QUICK if quick else {}), **sizes})


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the workload."""
    parser.add_argument(
        "--workload",
        choices=WORKLOADS,
        default="W1",
        help="W1: 32 replies of 64 tokens, 3 agents; W2: 16 replies that end by themselves, up to 256 tokens; "
        "W3: W1 with 16 agents; W4: W1 with the proposal for log-ratios, a product, which the others cannot draw from",
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contender that count")
    parser.add_argument(
        "--dtype",
        choices=("auto", "bfloat16", "float32"),
        default="auto",
        help="auto: bfloat16 where the processor has instructions for it, else float32",
    )
    parser.add_argument("--no-vllm", action="store_true", help="leave vLLM out")
    parser.add_argument(
        "--busy",
        action="store_true",
        help="for a machine with other work: one thread, and the processor's time in place of the wall's, without vLLM",
    )
    parser.add_argument("--growth", action="store_true", help="also measure more and fewer replies, agents and tokens")


def measure(options: Options) -> dict[str, float]:
    """Print the tables and return the ratios."""
    rounds = 2 if options.quick else options.rounds
    threads = 1 if options.busy else THREADS
    torch.set_num_threads(threads)
    if options.busy:
        count_processor_time()
    dtype = str(dtype_named(options.dtype, torch.device("cpu"))).removeprefix("torch.")
    path = embedded_model_path()
    ours, plain = Ours(path, dtype), Plain(path, dtype)
    sized = work_of(options.workload, ours.engine.encode, quick=options.quick)
    work = sized()
    vllm = start_vllm(path, dtype) if work.plain and not (options.no_vllm or options.busy) else None
    try:
        print(f"{options.workload}: {describe(work)}; {threads} threads, {dtype}", flush=True)
        chunks = QUICK_CHUNKS if options.quick else CHUNKS
        floors = {"floor": Floor.of(plain.model, linear, chunks)}
        if can_pack(plain.model):
            floors["packed floor"] = Floor.of(plain.model, packed, chunks)
        scorers: dict[str, Ours | Plain | VLLM] = {"ours": ours}
        scorers |= {"transformers": plain} if work.plain else {}
        scorers |= {"vLLM": vllm} if vllm else {}
        turns = play(
            {name: (lambda seed, _, scorer=scorer: scorer.turn(work, seed)) for name, scorer in scorers.items()}
            | {name: (lambda _, lengths, floor=floor: floor.turn(work, lengths)) for name, floor in floors.items()}
            | {"one reply": one_reply(plain, work, QUICK["tokens"] if options.quick else ONE_REPLY)},
            rounds,
        )
        print_times(turns, rounds)
        print_breakdown(ours, work)
        last = {name: several[-1] for name, several in turns.items()}
        check(path, work, scorers, last, QUICK_CHECKED if options.quick else CHECKED)
    finally:
        if vllm:
            vllm.close()
    if options.growth:
        print_growth(ours, floors["floor"], sized)
    chat = print_chat(ours, work)
    return ratios(turns) | chat | compare_memory(path, dtype, work)


def describe(work: Workload) -> str:
    """Return the sizes of a workload in words."""
    laws = len(work.powers)
    proposal = sum(1 for count in work.counts if count)
    return (
        f"{len(work.own)} replies of {'up to ' if work.ends else ''}{work.max_tokens} tokens from {proposal} laws, "
        f"{laws} laws in all over {len(work.prompts)} prompts of {sum(map(len, work.prompts))} tokens"
    )


def start_vllm(path: Path, dtype: str) -> VLLM | None:
    """Return vLLM ready for work, or None where it is not installed."""
    if not VLLM_PYTHON.exists():
        print(f"no vLLM at {VLLM_PYTHON}: it is left out; `make test-vllm` installs it, or set VLLM_PYTHON")
        return None
    say("vLLM loads, which takes up to a minute")
    return VLLM(VLLM_PYTHON, path, dtype)


def ratios(turns: Mapping[str, Sequence[Turn]]) -> dict[str, float]:
    """Return the ratios of our seconds to those of the contenders that took part."""
    a_thousand = {name: per_thousand(several) for name, several in turns.items()}
    mine = a_thousand["ours"]
    one, whole, least = (median(turn.seconds for turn in turns[name]) for name in ("one reply", "ours", "floor"))
    print(f"\nours takes {whole / one:.2f} times as long as one plain reply; the floor alone {least / one:.2f} times")
    slower = {"transformers": "transformers", "vllm": "vLLM"}
    lower = {"floor": "floor", "packed_floor": "packed floor"}
    return (
        {"cost_vs_one_reply": whole / one, "floor_vs_one_reply": least / one}
        | {f"speedup_vs_{key}": a_thousand[name] / mine for key, name in slower.items() if name in turns}
        | {f"time_vs_{key}": mine / a_thousand[name] for key, name in lower.items() if name in turns}
    )


if __name__ == "__main__":
    benchmark("engine", __doc__, measure, quick="2 rounds of 4 replies of 8 tokens", add_options=add_options)
