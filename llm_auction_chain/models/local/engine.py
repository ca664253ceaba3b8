"""An engine that draws and scores replies of a transformers model in this process, many in one batch."""

import contextlib
import dataclasses
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llm_auction_chain.candidates.proposals import PLAIN
from llm_auction_chain.candidates.tilts import (
    MOST_TOKENS,
    Tilt,
    TokenTilts,
    equal_parts,
    spellings_of,
    tokens_that_begin,
)
from llm_auction_chain.descriptions import Keywords
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

__all__ = ["Drawing", "Engine", "FifoLock", "Progress", "Sampled"]

# The share of the free memory for a request's keys and values.
_MEMORY = 1 / 4
_CACHED = 1 / 4  # of these tokens, the share for cached prompts
# Tokens of one pass. On a CPU more tokens leave its caches, and fewer multiply slower.
_PASS = {"cpu": 512}
_PASS_ELSEWHERE = 4096
_MOST_KNOWN = 4096  # agents whose tokens are kept
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
        totals: (C,), of the whole reply under each of the request's conditions, nats; nan where the draw does not give
            it. It gives the reply's own condition, each of its prompts alone, and the tilts of its only prompt.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: Literal["stop", "length"] | None
    log_probs: tuple[float, ...]
    totals: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A condition in tokens, and how many replies to draw under it.

    Attributes:
        prompts: (K,), each a list of tokens.
        powers: (K,). Tokens follow `prod_k pi(token | prompts[k]) ** powers[k]`.
        count: may be 0, for the log-probabilities of other replies under the condition.
        tilt: raises the odds of keywords; only of one prompt at the power 1.
    """

    prompts: Sequence[Sequence[int]]
    powers: Sequence[float]
    count: int
    tilt: Tilt | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is one prompt as it stands."""
        return tuple(self.powers) == PLAIN and self.tilt is None


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
        max_cached_tokens: the most tokens of prompts whose keys and values are cached for later requests.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_batch_tokens: int | None = None,
        max_cached_tokens: int | None = None,
        compiled: bool = False,
        packed: bool = False,
    ) -> None:
        """Take over a model on its device.

        `ChatTransformers` explains the sizes and `compiled`. With `packed`, packed weights, which the device multiplies
        faster, may replace the model's own. The model then cannot be saved.

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
        cached = int(_CACHED * self.max_batch_tokens) if max_cached_tokens is None else max_cached_tokens
        self.max_cached_tokens = self._passes.most_cached = cached
        self._known_keywords: dict[Keywords, list[int]] = {}
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
        max_cached_tokens: int | None = None,
        compiled: bool = False,
        trust_remote_code: bool = False,
    ) -> "Engine":
        """Return the engine of a model, which this process loads once. `ChatTransformers` explains the arguments."""
        options: dict[str, Any] = {"compiled": compiled, "trust_remote_code": trust_remote_code}
        options |= {"max_batch_tokens": max_batch_tokens, "max_cached_tokens": max_cached_tokens, "packed": True}
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
            conditions: what to draw, and how many replies of each.
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
        rooms = [self._room(len(prompt)) for one in conditions for prompt in one.prompts]
        if (length := min(max_tokens, *rooms)) < min(max_tokens, max(rooms)):
            # Under the shorter prompt the reply would have gone on: its probabilities could not be compared.
            raise ContextWindowError(
                f"The longest prompt leaves room for {length} tokens, and the shortest for more. Shorten it, or lower "
                f"max_tokens to at most {length}."
            )
        total = sum(one.count for one in conditions)
        rows = [Row(uniforms=_stream(seed, row)) for row in range(total)]
        with self._requests.turn(cancel):
            started = time.perf_counter()
            for _ in self._in_turn(self._grow(conditions, rows, length, sampler, stop), cancel):
                if progress is not None:
                    tokens = sum(len(row.token_ids) for row in rows)
                    finished = sum(row.finish_reason is not None for row in rows)
                    progress(finished, total, tokens / max(time.perf_counter() - started, 1e-9))
        places = [place for place, one in enumerate(conditions) for _ in range(one.count)]
        return [_freeze(row, _totals(row, place, conditions)) for row, place in zip(rows, places, strict=True)]

    def stream(
        self, prompt: Sequence[int], *, seed: int, max_tokens: int, sampler: Sampler, stop: Sequence[str] = ()
    ) -> Iterator[Sampled]:
        """Yield one reply after every token. The last item is `sample([Drawing([prompt], PLAIN, 1)], ...)[0]`.

        Every text is a prefix of the next one. It leaves out incomplete characters and letters that may become a stop
        string. Other requests may take steps between two tokens.

        It takes the arguments of `sample` and raises the same errors.
        """
        row = Row(uniforms=_stream(seed, 0))
        length = min(max_tokens, self._room(len(prompt)))
        shown = ""
        drawing = Drawing([prompt], PLAIN, 1)
        for _ in self._in_turn(self._grow([drawing], [row], length, sampler, stop), None):
            if row.finish_reason is not None:
                yield _freeze(row, _totals(row, 0, [drawing]))
                return
            if row.token_ids:
                stable = _stable(self._text(row.token_ids), stop)
                shown = stable if stable.startswith(shown) else shown
                yield dataclasses.replace(_freeze(row, ()), text=shown)

    @exit_waits()
    def score(
        self,
        prompts: Sequence[Sequence[int]],
        powers: npt.ArrayLike,
        replies: Sequence[Sequence[int]],
        sampler: Sampler,
        *,
        tilts: Mapping[int, Tilt] | None = None,
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
            tilts: those of laws of one prompt, by their places.
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
        own = {law: TokenTilts([tilt], [self.keyword_tokens(tilt)]) for law, tilt in (tilts or {}).items()}
        size = self.max_batch_tokens
        steps = score(self._passes, prompts, laws, replies, wanted, sampler, tilts=own, totals=totals, size=size)
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
        drawn_from = [one for one in conditions if one.count]
        used = [[places.setdefault(tuple(prompt), len(places)) for prompt in one.prompts] for one in drawn_from]
        prefixes = yield from self._passes.read(list(places))
        ends = np.cumsum([one.count for one in drawn_from])
        waiting = [
            Law(
                prefixes=[prefixes[place] for place in own],
                powers=one.powers,
                rows=list(rows[end - one.count : end]),
                **self._tilts(one, conditions),
            )
            for own, one, end in zip(used, drawn_from, ends, strict=True)
        ]
        room = self.max_batch_tokens - sum(len(prompt) for prompt in places)
        for blocks in row_blocks(waiting, room // length):
            batch = [dataclasses.replace(law, rows=law.rows[rows]) for law, rows in blocks]
            yield from decode(self._passes, batch, sampler, lambda row: self._finish(row, length, stop))

    def _tilts(self, drawing: Drawing, conditions: Sequence[Drawing]) -> dict[str, Any]:
        """Return the tilts of a drawing's only prompt, and the place of its own among them."""
        tilts = [other.tilt for other in _tilted_alike(drawing, conditions) if other.tilt is not None]
        if not tilts:
            return {}
        own = None if drawing.tilt is None else tilts.index(drawing.tilt)
        return {"tilts": TokenTilts(tilts, [self.keyword_tokens(tilt) for tilt in tilts]), "tilt": own}

    def keyword_tokens(self, tilt: Tilt) -> list[list[int]]:
        """Return for each agent of a tilt the tokens that begin its keywords, the rarest first."""
        return equal_parts([self._beginnings(keywords) for keywords in tilt.keywords], MOST_TOKENS)

    def _beginnings(self, keywords: Keywords) -> list[int]:
        if keywords not in self._known_keywords:
            if len(self._known_keywords) >= _MOST_KNOWN:
                self._known_keywords.clear()
            spellings = [spelling for word in keywords.words for spelling in spellings_of(word)]
            batch = self.tokenizer(spellings, add_special_tokens=False)["input_ids"] if spellings else []
            tokens = {
                spelling: (ids[0], spelling if len(ids) == 1 else self._text(ids[:1]))
                for spelling, ids in zip(spellings, batch, strict=True)
                if ids
            }
            special = {*self.ends, *self.tokenizer.all_special_ids}
            beginnings = tokens_that_begin(keywords, tokens, size=len(self.tokenizer), special=special)
            self._known_keywords[keywords] = beginnings
        return self._known_keywords[keywords]

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


def _tilted_alike(drawing: Drawing, conditions: Sequence[Drawing]) -> list[Drawing]:
    """Return the tilted conditions of a drawing's only prompt; nothing where it has several, or other powers."""
    if tuple(drawing.powers) != PLAIN:
        return []
    prompts = [list(prompt) for prompt in drawing.prompts]
    return [one for one in conditions if one.tilt is not None and [list(prompt) for prompt in one.prompts] == prompts]


def _totals(row: Row, place: int, conditions: Sequence[Drawing]) -> tuple[float, ...]:
    """Return the log-probability of a finished row under each condition, as far as its draw gives it."""
    own = conditions[place]
    tilts = [other.tilt for other in _tilted_alike(own, conditions)]
    alone: dict[tuple[int, ...], float] = {}
    if len(own.prompts) > 1 or tuple(own.powers) == PLAIN:
        alone = dict(zip(map(tuple, own.prompts), row.alone.tolist(), strict=True))

    def total(other: Drawing) -> float:
        known = alone.get(tuple(other.prompts[0]), math.nan) if len(other.prompts) == 1 else math.nan
        if other is own:
            return sum(row.log_probs)
        if other.is_plain:
            return known
        if other.tilt in tilts and len(other.prompts) == len(own.prompts) == 1:
            return known + float(row.log_ratios[tilts.index(other.tilt)])
        return math.nan

    return tuple(map(total, conditions))


def _freeze(row: Row, totals: tuple[float, ...]) -> Sampled:
    return Sampled(
        token_ids=tuple(row.token_ids),
        text=row.text,
        finish_reason=row.finish_reason,
        log_probs=tuple(row.log_probs),
        totals=totals,
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
