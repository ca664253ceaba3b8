"""vLLM's turn of `engine.py`: run by the Python of vLLM's own environment, which has no llm_auction_chain.

Reads one JSON object a line from stdin and answers each with one: {"draw": [[prompt, count], ...], "max_tokens": 64,
"ends": false} with replies and their log-probabilities, {"score": [[prompt, reply], ...]} with log-probabilities. Both
say how many seconds vLLM took, measured here.
"""

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

# What a request may hold at once. Chunked prefill is off: vLLM 0.32's CPU backend dies of it where requests have seeds.
LONGEST, AT_ONCE = 2048, 4096
# Tokens of a prompt that its replies share are shared in blocks. By itself, blocks of 128, vLLM shares none of a short
# prompt's, and reads it once for every reply.
BLOCK = 32
PR_SET_PDEATHSIG = 1  # of Linux: the signal that a process gets when its parent dies


def load(model: str, dtype: str) -> LLM:
    """Return the engine, as fast as its own switches make it on a processor."""
    return LLM(
        model=model,
        dtype=dtype,
        enforce_eager=True,
        enable_chunked_prefill=False,
        max_model_len=LONGEST,
        max_num_batched_tokens=AT_ONCE,
        block_size=BLOCK,
        disable_log_stats=True,
    )


def draw(llm: LLM, wanted: Sequence[tuple[list[int], int]], *, max_tokens: int, ends: bool) -> dict[str, Any]:
    """Draw `count` replies to every prompt, all in one batch."""
    settings = [
        SamplingParams(n=count, max_tokens=max_tokens, ignore_eos=not ends, logprobs=0, detokenize=False)
        for _, count in wanted
    ]
    # The next auction has another question.
    llm.reset_prefix_cache()
    start = time.perf_counter()
    answers = llm.generate([{"prompt_token_ids": prompt} for prompt, _ in wanted], settings, use_tqdm=False)
    seconds = time.perf_counter() - start
    drawn = [reply for answer in answers for reply in answer.outputs]
    return {
        "seconds": seconds,
        "replies": [list(reply.token_ids) for reply in drawn],
        "log_probs": [reply.cumulative_logprob for reply in drawn],
    }


def score(llm: LLM, pairs: Sequence[tuple[list[int], list[int]]]) -> dict[str, Any]:
    """Return the log-probability of every reply behind its prompt; the one token drawn after it is thrown away."""
    settings = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    start = time.perf_counter()
    answers = llm.generate([{"prompt_token_ids": prompt + reply} for prompt, reply in pairs], settings, use_tqdm=False)
    log_probs = [
        sum(answer.prompt_logprobs[len(prompt) + k][token].logprob for k, token in enumerate(reply))
        for answer, (prompt, reply) in zip(answers, pairs, strict=True)
    ]
    return {"seconds": time.perf_counter() - start, "log_probs": log_probs}


def main() -> None:
    """Answer until stdin ends. What vLLM and its processes print goes to stderr."""
    # A stopped process would not notice that the benchmark was killed.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    llm = load(*sys.argv[1:])
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = draw(llm, request.pop("draw"), **request) if "draw" in request else score(llm, request["score"])
        print(json.dumps(answer), file=answers, flush=True)


# vLLM starts its processes by importing this file again.
if __name__ == "__main__":
    main()
