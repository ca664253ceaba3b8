"""An engine that draws and scores replies of a transformers model in this process, many in one batch."""

import contextlib
import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llm_auction_chain.errors import ContextWindowError, MissingDependencyError, PromptError
from llm_auction_chain.models.local.templates import as_lines, check_rows, templated
from llm_auction_chain.models.local.weights import INSTALL_EXTRA
from llm_auction_chain.waiting import exit_waits

try:
    from llm_auction_chain.models.local.limits import import_torch

    import_torch()
    from transformers import AutoModelForCausalLM

    from llm_auction_chain.models.local.capabilities import free_memory, load_once, passes_for, window_of
    from llm_auction_chain.models.local.decoding import Law, Row, decode, row_blocks
    from llm_auction_chain.models.local.sampler import Sampler
    from llm_auction_chain.models.local.scoring import score
except ImportError as error:
    raise MissingDependencyError(f"{error.name} is not installed. Run: {INSTALL_EXTRA}") from error

__all__ = ["Engine", "FifoLock", "Progress", "Sampled"]

# The share of the free memory for a request's keys and values.
_MEMORY = 1 / 4
# Tokens of one pass. On a CPU more tokens leave its caches, and fewer multiply slower.
_PASS = {"cpu": 512}
_PASS_ELSEWHERE = 4096
# Prompts, powers, and how many replies.
Drawing = tuple[Sequence[Sequence[int]], Sequence[float], int]
# Finished replies, all replies, and tokens per second, without the wait for other requests.
Progress = Callable[[int, int, float], None]
# The decoder shows it for a character whose last bytes are still missing.
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_POLL = 0.05  # seconds between two checks for cancellation in a waiting thread


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampled:
    """One reply.

    Attributes:
        token_ids: all tokens, with the end token and the tokens of a stop string.
        text: the reply without the end token, cut before the first stop string.
        finish_reason: "stop" after an end token or a stop string, "length" after `max_tokens`, None while the reply
            grows.
        log_probs: one for each token, under the condition, with the sampler's temperature and truncation, nats.
        prompt_log_probs: (K,), of the whole reply under each of the condition's prompts alone, nats.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: Literal["stop", "length"] | None
    log_probs: tuple[float, ...]
    prompt_log_probs: tuple[float, ...]


class Engine:
    """A model and its tokenizer on one device.

    Reply number `row` under `seed` depends only on the prompt, the sampler, `seed` and `row`. Other replies in its
    batch do not change it, up to the rounding of the model's dtype.

    The engine is thread-safe. It serves requests one after another, in the order of their calls. Streams take their
    steps between the steps of a request.

    Attributes:
        model: a transformers causal language model. The engine replaces its attention by one that shares prefixes,
            where the model's states allow it.
        tokenizer: its tokenizer.
        window: the most tokens of prompt and reply together.
        ends: the tokens that end a reply.
        max_batch_tokens: the most tokens whose keys and values a request holds at once. It does larger work in parts.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_batch_tokens: int | None = None,
        compiled: bool = False,
        packed: bool = False,
    ) -> None:
        """Take over a model on its device.

        `ChatTransformers` explains `max_batch_tokens` and `compiled`. With `packed`, packed weights, which the device
        multiplies faster, may replace the model's own. The model then cannot be saved.

        Raises:
            ConfigurationError: the model's logits depend on more than its states.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.window = window_of(model.config.get_text_config())
        ends = getattr(model.generation_config, "eos_token_id", None)
        self.ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
        self._special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        size = _PASS.get(model.device.type, _PASS_ELSEWHERE)
        self._passes = passes_for(model, min(size, max_batch_tokens or size), compiled=compiled, packed=packed)
        free = int(_MEMORY * free_memory(model.device)) // self._passes.token_bytes
        self.max_batch_tokens = max_batch_tokens or max(size, free)
        self._requests = FifoLock()
        self._steps = FifoLock()

    @classmethod
    def load(
        cls,
        path_or_hub_id: str | Path,
        dtype: str = "auto",
        device: str = "auto",
        *,
        max_batch_tokens: int | None = None,
        compiled: bool = False,
        trust_remote_code: bool = False,
    ) -> "Engine":
        """Return the engine of a model, which this process loads once. `ChatTransformers` explains the arguments."""
        options: dict[str, Any] = {"compiled": compiled, "trust_remote_code": trust_remote_code}
        options |= {"max_batch_tokens": max_batch_tokens, "packed": True}
        return load_once(cls, AutoModelForCausalLM, path_or_hub_id, dtype, device, **options)

    @exit_waits()
    def encode(self, turns: Sequence[Mapping[str, str]], variables: Mapping[str, Any] | None = None) -> list[int]:
        """Return the tokens of turns, mappings with "role" and "content", up to the assistant's next turn.

        They follow the model's chat template, which gets the variables. A model without a template reads lines of
        `role: text`.

        Raises:
            PromptError: there is no turn.
            ConfigurationError: the template refuses the conversation, or the model does not know a token.
        """
        if not turns:
            raise PromptError("There is nothing to reply to. Pass at least one message.")
        if self.tokenizer.chat_template is None:
            ids = as_lines(self.tokenizer, turns)
        else:
            ids = templated(self.tokenizer, turns, add_generation_prompt=True, **variables or {})
        check_rows(self.tokenizer, ids, self.model)
        return ids

    @exit_waits()
    def sample(
        self,
        conditions: Sequence[Drawing],
        *,
        seed: int,
        max_tokens: int,
        sampler: Sampler,
        stop: Sequence[str] = (),
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> list[Sampled]:
        """Draw replies, each under its condition, in as few batches as `max_batch_tokens` allows.

        Args:
            conditions: (prompts, powers, count): `count` replies whose tokens follow
                `prod_k pi(token | prompts[k]) ** powers[k]`. A prompt is a list of tokens.
            seed: a non-negative integer. Reply number `row` depends on it and on `row`.
            max_tokens: the most tokens of a reply. The model's window may allow fewer.
            sampler: chooses the tokens.
            stop: strings. A reply ends before the first of them.
            progress: a callback after every token.
            cancel: once it is set, the engine takes no further step.

        Raises:
            PromptError: a prompt is empty.
            ContextWindowError: a prompt leaves no room for a token, or cuts replies that another would not cut.
            concurrent.futures.CancelledError: `cancel` was set.
        """
        rooms = [self._room(len(prompt)) for prompts, _, _ in conditions for prompt in prompts]
        if (length := min(max_tokens, *rooms)) < min(max_tokens, max(rooms)):
            # Under the shorter prompt the reply would have gone on: its probabilities could not be compared.
            raise ContextWindowError(
                f"The longest prompt leaves room for {length} tokens, and the shortest for more. Shorten it, or lower "
                f"max_tokens to at most {length}."
            )
        total = sum(count for _, _, count in conditions)
        rows = [Row(uniforms=_stream(seed, row)) for row in range(total)]
        with self._requests.turn(cancel):
            started = time.perf_counter()
            for _ in self._in_turn(self._grow(conditions, rows, length, sampler, stop), cancel):
                if progress is not None:
                    tokens = sum(len(row.token_ids) for row in rows)
                    finished = sum(row.finish_reason is not None for row in rows)
                    progress(finished, total, tokens / max(time.perf_counter() - started, 1e-9))
        return [_freeze(row) for row in rows]

    def stream(
        self, prompt: Sequence[int], *, seed: int, max_tokens: int, sampler: Sampler, stop: Sequence[str] = ()
    ) -> Iterator[Sampled]:
        """Yield one reply after every token. The last item is `sample([([prompt], [1.0], 1)], ...)[0]`.

        Every text is a prefix of the next one. It leaves out incomplete characters and letters that may become a stop
        string. Other requests may take steps between two tokens.

        It takes the arguments of `sample` and raises the same errors.
        """
        row = Row(uniforms=_stream(seed, 0))
        length = min(max_tokens, self._room(len(prompt)))
        shown = ""
        for _ in self._in_turn(self._grow([([prompt], [1.0], 1)], [row], length, sampler, stop), None):
            if row.finish_reason is not None:
                yield _freeze(row)
                return
            if row.token_ids:
                stable = _stable(self._text(row.token_ids), stop)
                shown = stable if stable.startswith(shown) else shown
                yield dataclasses.replace(_freeze(row), text=shown)

    @exit_waits()
    def score(
        self,
        prompts: Sequence[Sequence[int]],
        powers: npt.ArrayLike,
        replies: Sequence[Sequence[int]],
        sampler: Sampler,
        *,
        wanted: npt.NDArray[np.bool_] | None = None,
        cancel: threading.Event | None = None,
    ) -> npt.NDArray[np.float64]:
        """Return `log pi_c(reply)` (C, M) in nats. Tokens follow `prod_k pi(token | prompts[k]) ** powers[c, k]`.

        The engine reads every prompt once, and every reply once behind each of its prompts. One call for all proposals
        and agents is therefore cheapest.

        Args:
            prompts: K lists of tokens.
            powers: (C, K).
            replies: M lists of tokens, with the end token where there is one.
            sampler: temperature and truncation of the laws.
            wanted: (C, M), whether to compute an entry. The others are nan. None computes all.
            cancel: once it is set, the engine makes no further pass.

        Raises:
            PromptError: a prompt is empty.
            ContextWindowError: a prompt and a reply do not fit into the model's window.
            concurrent.futures.CancelledError: `cancel` was set.
        """
        longest = max((len(reply) for reply in replies), default=0)
        for prompt in prompts:
            self._room(len(prompt), longest)
        laws = np.asarray(powers, dtype=np.float64)
        laws = laws.reshape(len(laws), len(prompts))
        wanted = np.ones((len(laws), len(replies)), dtype=bool) if wanted is None else wanted
        totals = np.where(wanted, 0.0, np.nan)
        steps = score(self._passes, prompts, laws, replies, wanted, sampler, totals=totals, size=self.max_batch_tokens)
        with self._requests.turn(cancel):
            deque(self._in_turn(steps, cancel), maxlen=0)
        return totals

    def _room(self, prompt: int, wanted: int | None = None) -> int:
        """Return how many tokens fit behind a prompt of `prompt` tokens."""
        if prompt < 1:
            raise PromptError("The prompt has no tokens.")
        room = self.window - prompt
        if room < (wanted or 1):
            reply = "with the reply" if wanted is None else f"and the reply has {wanted}"
            raise ContextWindowError(
                f"The prompt has {prompt} tokens and the model reads {self.window}, {reply}. Shorten the prompt."
            )
        return room

    def _in_turn(self, steps: Generator[None, None, None], cancel: threading.Event | None) -> Iterator[None]:
        """Take each step in this thread's turn, and yield after it."""
        going = True
        with contextlib.closing(steps):  # frees its tensors here, where exit waits, rather than with a traceback
            while going:
                with self._steps.turn(cancel), exit_waits():
                    going = next(steps, self) is None
                if going:
                    yield

    def _grow(
        self, conditions: Sequence[Drawing], rows: Sequence[Row], length: int, sampler: Sampler, stop: Sequence[str]
    ) -> Generator[None, None, None]:
        """Read the prompts, extend the rows until all are finished, and yield after every pass."""
        places: dict[tuple[int, ...], int] = {}
        used = [[places.setdefault(tuple(prompt), len(places)) for prompt in prompts] for prompts, _, _ in conditions]
        prefixes = yield from self._passes.read(list(places))
        ends = np.cumsum([count for _, _, count in conditions])
        waiting = [
            Law(prefixes=[prefixes[place] for place in own], powers=powers, rows=list(rows[end - count : end]))
            for own, (_, powers, count), end in zip(used, conditions, ends, strict=True)
        ]
        room = self.max_batch_tokens - sum(len(prompt) for prompt in places)
        for blocks in row_blocks(waiting, room // length):
            batch = [dataclasses.replace(law, rows=law.rows[rows]) for law, rows in blocks]
            yield from decode(self._passes, batch, sampler, lambda row: self._finish(row, length, stop))

    def _text(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """Return the text of tokens, in which special tokens show only if `special` says so."""
        options = {"skip_special_tokens": not special, "clean_up_tokenization_spaces": False}
        return str(self.tokenizer.decode(token_ids, **options))

    def _finish(self, row: Row, length: int, stop: Sequence[str]) -> None:
        """Set the text and finish reason of a row that its newest token ends."""
        ended = row.token_ids[-1] in self.ends
        full = len(row.token_ids) >= length
        if not (ended or full or stop):
            return
        text = self._text(row.token_ids[:-1] if ended else row.token_ids)
        cuts = [place for string in stop if (place := text.find(string)) >= 0]
        cuts += [self._place(row.token_ids, string) for string in stop if any(map(string.count, self._special))]
        if (cut := min((place for place in cuts if place >= 0), default=None)) is not None or ended:
            row.text, row.finish_reason = text[:cut], "stop"
        elif full:
            row.text, row.finish_reason = text, "length"

    def _place(self, ids: Sequence[int], string: str) -> int:
        """Return where in a reply's text a string with special tokens, which do not show there, begins; else -1."""
        place = self._text(ids, special=True).find(string)
        counts = range(len(ids), -1, -1)
        count = next((n for n in counts if len(self._text(ids[:n], special=True)) <= place), 0)
        hidden = len(self._text(ids[:count], special=True)) - len(self._text(ids[:count]))
        return place - hidden


def _stream(seed: int, row: int) -> np.random.Generator:
    """Return the random generator of one row."""
    return np.random.default_rng(np.random.SeedSequence([seed, row]))


def _freeze(row: Row) -> Sampled:
    return Sampled(
        token_ids=tuple(row.token_ids),
        text=row.text,
        finish_reason=row.finish_reason,
        log_probs=tuple(row.log_probs),
        prompt_log_probs=tuple(map(sum, zip(*row.alone, strict=True))),
    )


def _stable(text: str, stop: Sequence[str]) -> str:
    """Return the part of an unfinished text that no later token changes."""
    text = text.rstrip(_UNFINISHED)
    begun = (size for string in stop for size in range(1, len(string)) if text.endswith(string[:size]))
    return text[: len(text) - max(begun, default=0)]


class FifoLock:
    """A lock for threads in the order of their calls. A thread whose call was cancelled leaves the queue."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Event] = deque()

    @contextlib.contextmanager
    def turn(self, cancel: threading.Event | None = None) -> Iterator[None]:
        """Wait for this thread's turn, and hold the lock for the block.

        Raises:
            CancelledError: `cancel` was set before the turn came.
        """
        mine = threading.Event()
        with self._lock:
            self._waiting.append(mine)
            self._waiting[0].set()
        try:
            while not mine.wait(None if cancel is None else _POLL):
                _raise_if_set(cancel)
            _raise_if_set(cancel)
            yield
        finally:
            with self._lock:
                self._waiting.remove(mine)
                if self._waiting:
                    self._waiting[0].set()


def _raise_if_set(cancel: threading.Event | None) -> None:
    if cancel is not None and cancel.is_set():
        raise CancelledError("The call was cancelled.")
