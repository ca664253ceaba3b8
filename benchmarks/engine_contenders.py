"""Who does an auction's model work in `engine.py`: this package, plain transformers, vLLM, and the bare arithmetic.

Run as a script it reads {"contender": ..., "path": ..., "dtype": ..., "workload": ...} from stdin, does the work once,
and prints the process's memory: `python benchmarks/engine_contenders.py`.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
from engine_workload import Floats, Turn, Workload, now
from transformers import AutoModelForCausalLM

from llm_auction_chain.models.local.weights import quiet_transformers

THREADS = 2


class Ours:
    """This package's engine: `sample`, then one `score` for the log-probabilities that sampling did not return."""

    def __init__(self, path: Path, dtype: str) -> None:
        from llm_auction_chain.models.local.engine import Engine
        from llm_auction_chain.models.local.sampler import Sampler

        self.engine = Engine.load(path, dtype=dtype, device="cpu")
        self.sampler = Sampler()
        self._ends = self.engine.ends

    def turn(self, work: Workload, seed: int) -> Turn:
        """Draw and score, with an empty cache of prompts."""
        self.forget()
        start = now()
        drawn = self.draw(work, seed)
        middle = now()
        log_probs = self.complete(work, drawn)
        end = now()
        return Turn(
            parts={"draw": middle - start, "score": end - middle},
            replies=[reply.token_ids for reply in drawn],
            log_probs=log_probs,
        )

    def forget(self) -> None:
        """Empty the cache of prompts."""
        getattr(self.engine._passes, "_cached", {}).clear()  # noqa: SLF001

    def draw(self, work: Workload, seed: int) -> list[Any]:
        """Return the replies, the log-probabilities under their own laws among what they know."""
        from llm_auction_chain.models.local.engine import Drawing

        self.engine.ends = self._ends if work.ends else type(self._ends)()
        drawings = [
            Drawing([work.prompts[k] for k in used], [powers[k] for k in used], count)
            for used, powers, count in zip(work.used, work.powers, work.counts, strict=True)
        ]
        return list(self.engine.sample(drawings, seed=seed, max_tokens=work.max_tokens, sampler=self.sampler))

    def complete(self, work: Workload, drawn: Sequence[Any]) -> Floats:
        """Return the log-probabilities (C, M): those from drawing, and the missing ones in one call."""
        replies = [reply.token_ids for reply in drawn]
        log_probs = self.engine.score(work.prompts, work.powers, replies, self.sampler, wanted=work.wanted)
        for m, (reply, own) in enumerate(zip(drawn, work.own, strict=True)):
            for c in range(len(work.powers)):
                if work.known(c, own):
                    log_probs[c, m] = reply.totals[c]
        return log_probs

    def score(self, work: Workload, replies: Sequence[Sequence[int]]) -> Floats:
        """Return the log-probabilities (C, M) of given replies."""
        return self.engine.score(work.prompts, work.powers, replies, self.sampler)

    def chat(self, work: Workload, further: Sequence[int], turns: int = 3) -> list[tuple[int, int]]:
        """Return the tokens of all prompts, and those that drawing and scoring read, of each turn of a chat.

        Behind every prompt comes one of the replies, and the tokens of a further question.
        """
        self.forget()
        counts = []
        for turn in range(turns):
            with counted() as read:
                drawn = self.draw(work, turn)
                self.complete(work, drawn)
            counts.append((sum(map(len, work.prompts)), sum(read)))
            prompts = [[*prompt, *drawn[0].token_ids, *further] for prompt in work.prompts]
            work = replace(work, prompts=prompts)
        return counts

    def breakdown(self, work: Workload) -> dict[str, dict[str, float]]:
        """Return the seconds of each kind of work within drawing and scoring."""
        seconds = {}
        self.forget()
        with stopwatch() as spent:
            start = now()
            drawn = self.draw(work, 1)
            seconds["draw"] = {**spent, "other": now() - start - sum(spent.values())}
            spent.clear()
            start = now()
            self.complete(work, drawn)
            seconds["score"] = {**spent, "other": now() - start - sum(spent.values())}
        return seconds


@contextmanager
def counted() -> Iterator[list[int]]:
    """Yield how many tokens of prompts each pass of our engine reads from now on."""
    from llm_auction_chain.models.local.attention import Reading
    from llm_auction_chain.models.local.passes import SharedPasses

    read: list[int] = []
    states = SharedPasses._states  # noqa: SLF001

    def watched(passes: Any, tokens: Any, ids: Sequence[int]) -> Any:
        if isinstance(tokens, Reading) and all(group.reads for group in tokens.groups):
            read.append(len(ids))
        return states(passes, tokens, ids)

    with patch.object(SharedPasses, "_states", watched):
        yield read


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Yield the seconds that our engine's kinds of work take from now on."""
    from llm_auction_chain.models.local.passes import Passes, SharedPasses
    from llm_auction_chain.models.local.sampler import Sampler

    spent: dict[str, float] = defaultdict(float)
    watched = {
        "prompts": (SharedPasses, "read"),
        "replies that grow": (SharedPasses, "step"),
        "replies behind prompts": (SharedPasses, "follow"),
        "logits": (Passes, "logits"),
        "choice of tokens": (Sampler, "draw"),
        "log-probabilities": (Sampler, "log_probs"),
    }
    with ExitStack() as stack:
        for what, (owner, name) in watched.items():
            stack.enter_context(patch.object(owner, name, _timed(getattr(owner, name), what, spent)))
        yield spent


def _timed(method: Callable[..., Any], what: str, spent: dict[str, float]) -> Callable[..., Any]:
    """Return the method with its seconds added up; of a generator those within its steps."""

    def steps(generator: Iterator[Any]) -> Generator[Any, None, Any]:
        while True:
            start = now()
            try:
                step = next(generator)
            except StopIteration as end:
                return end.value
            finally:
                spent[what] += now() - start
            yield step

    def call(*args: Any, **keywords: Any) -> Any:
        start = now()
        result = method(*args, **keywords)
        spent[what] += now() - start
        return steps(result) if isinstance(result, Iterator) else result

    return call


def load(path: Path, dtype: torch.dtype) -> Any:
    """Return a transformers model of its own: the engine's model has the engine's attention."""
    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa").eval()


class Plain:
    """transformers as its documentation has it: `generate` for each law, then whole texts for each law."""

    def __init__(self, path: Path, dtype: str) -> None:
        self.model = load(path, getattr(torch, dtype))
        self._end = self.model.generation_config.eos_token_id

    def turn(self, work: Workload, seed: int) -> Turn:
        """Draw and score."""
        turn = self.drawn(work, seed)
        start = now()
        log_probs = self.score(work, turn.replies)
        return Turn(parts={**turn.parts, "score": now() - start}, replies=turn.replies, log_probs=log_probs)

    def drawn(self, work: Workload, seed: int) -> Turn:
        """Only draw."""
        torch.manual_seed(seed)
        start = now()
        replies = [
            reply for c, count in enumerate(work.counts) if count for reply in self.draw(work, work.prompt(c), count)
        ]
        return Turn(parts={"draw": now() - start}, replies=replies)

    def draw(self, work: Workload, prompt: list[int], count: int) -> list[list[int]]:
        """Return `count` replies in one batch."""
        # `generate` takes its defaults from here.
        self.model.generation_config.eos_token_id = self._end if work.ends else None
        ids = torch.tensor([prompt])
        drawn = self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
            num_return_sequences=count, max_new_tokens=work.max_tokens, pad_token_id=self._end,
        )  # fmt: skip
        replies = drawn[:, len(prompt) :].tolist()
        return [_cut(reply, self._end) for reply in replies] if work.ends else replies

    def score(self, work: Workload, replies: Sequence[Sequence[int]]) -> Floats:
        """Return the log-probabilities (C, M): one batch of whole texts for each law."""
        longest = max(map(len, replies))
        # The padding stands behind the reply, where no token of it can see it.
        padded = torch.tensor([[*reply, *[self._end] * (longest - len(reply))] for reply in replies])
        real = torch.tensor([[k < len(reply) for k in range(longest)] for reply in replies])
        scores = []
        with torch.inference_mode():
            for c in range(len(work.powers)):
                prompt = torch.tensor(work.prompt(c)).expand(len(replies), -1)
                output = self.model(
                    input_ids=torch.cat([prompt, padded], 1), logits_to_keep=longest + 1, use_cache=False
                )
                law = output.logits[:, :-1].float().log_softmax(-1)
                chosen = law.gather(-1, padded[..., None])[..., 0]
                scores.append(chosen.where(real, 0.0).double().sum(-1).numpy())
        return np.array(scores)


class VLLM:
    """vLLM in a process of its own, `engine_vllm.py`, that is stopped while others are measured: it waits in a loop."""

    def __init__(self, python: Path, path: Path, dtype: str) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(  # noqa: S603
            [python, Path(__file__).with_name("engine_vllm.py"), path, dtype],
            env={**os.environ, **_fastest(python)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        self._answer()

    def turn(self, work: Workload, seed: int) -> Turn:  # a seed of its own would slow vLLM down
        """Draw and score; the seconds are those of vLLM's own calls."""
        wanted = [(work.prompt(c), count) for c, count in enumerate(work.counts) if count]
        drawn = self._ask(draw=wanted, max_tokens=work.max_tokens, ends=work.ends)
        missing = work.wanted
        scored = self._ask(score=self._pairs(work, drawn["replies"], missing))
        log_probs = np.zeros(missing.shape)
        log_probs[missing] = scored["log_probs"]
        log_probs[work.own, range(len(work.own))] = drawn["log_probs"]
        return Turn(
            parts={"draw": drawn["seconds"], "score": scored["seconds"]}, replies=drawn["replies"], log_probs=log_probs
        )

    def score(self, work: Workload, replies: Sequence[Sequence[int]]) -> Floats:
        """Return the log-probabilities (C, M) of given replies."""
        every = np.ones((len(work.powers), len(replies)), dtype=bool)
        scored = self._ask(score=self._pairs(work, replies, every))
        return np.array(scored["log_probs"]).reshape(every.shape)

    def close(self) -> None:
        """End the process and all it started."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _pairs(
        self, work: Workload, replies: Sequence[Sequence[int]], wanted: npt.NDArray[np.bool_]
    ) -> list[tuple[list[int], list[int]]]:
        return [(work.prompt(c), list(replies[m])) for c, m in np.argwhere(wanted).tolist()]

    def _ask(self, **request: Any) -> dict[str, Any]:
        os.killpg(self._process.pid, signal.SIGCONT)
        if self._process.stdin is not None:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            self._log.seek(0)
            raise SystemExit("".join(self._log.readlines()[-30:]) + "\nvLLM died; above is the end of its log.")
        os.killpg(self._process.pid, signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        return answer


def _fastest(python: Path) -> dict[str, str]:
    """Return the environment in which vLLM was fastest here.

    By itself it leaves one of two cores to its scheduler, which also waits in a loop; in one process both compute. Its
    documentation preloads Intel's OpenMP, which comes with it, and tcmalloc, which does not: glibc that gives no
    memory back does the same for it.
    """
    openmp = python.parent.parent / "lib" / "libiomp5.so"
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "OMP_NUM_THREADS": str(THREADS),
        "MALLOC_MMAP_THRESHOLD_": str(2**32),
        "MALLOC_TRIM_THRESHOLD_": str(2**32),
        "HF_HUB_OFFLINE": "1",
    } | ({"LD_PRELOAD": str(openmp)} if openmp.exists() else {})


def exact(model: Any, work: Workload, replies: Sequence[Sequence[int]]) -> Floats:
    """Return the log-probabilities (C, M) by whole texts in float32, one at a time."""
    totals = np.zeros((len(work.powers), len(replies)))
    with torch.inference_mode():
        for m, reply in enumerate(replies):
            tokens = torch.tensor([list(reply)])
            shown = [
                model(
                    input_ids=torch.tensor([[*prompt, *reply]]), logits_to_keep=len(reply) + 1, use_cache=False
                ).logits[:, :-1]
                for prompt in work.prompts
            ]
            for c, powers in enumerate(work.powers):
                law = sum(power * logits for power, logits in zip(powers, shown, strict=True) if power).log_softmax(-1)
                totals[c, m] = law.gather(-1, tokens[..., None]).double().sum()
    return totals


def _cut(reply: list[int], end: int) -> list[int]:
    """Return the reply up to its first end token."""
    return reply[: reply.index(end) + 1] if end in reply else reply


def memory(contender: str, path: Path, dtype: str, work: Workload) -> dict[str, float]:
    """Return MiB of a fresh process in which a contender did the work once: when loaded, and at most."""
    request = {"contender": contender, "path": str(path), "dtype": dtype, "workload": asdict(work)}
    done = subprocess.run(  # noqa: S603
        [sys.executable, __file__], input=json.dumps(request), stdout=subprocess.PIPE, text=True, check=True
    )
    mebibytes: dict[str, float] = json.loads(done.stdout)
    return mebibytes


def main() -> None:
    """Do the work once and print what memory it took."""
    request = json.load(sys.stdin)
    torch.set_num_threads(THREADS)
    kinds: dict[str, type[Ours | Plain]] = {"ours": Ours, "transformers": Plain}
    contender = kinds[request["contender"]](Path(request["path"]), request["dtype"])
    loaded = _status("VmRSS")
    contender.turn(Workload(**request["workload"]), 1)
    print(json.dumps({"loaded": loaded, "peak": _status("VmHWM")}))


def _status(name: str) -> float:
    """Return MiB from the status of this process in Linux; `getrusage` would count its parent too."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
