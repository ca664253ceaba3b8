"""Draw replies from a transformers model in this process, many at once, each from its own stream of randomness."""

import copy
import dataclasses
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from llm_auction_chain.errors import ConfigurationError, ContextWindowError, MissingDependencyError, PromptError
from llm_auction_chain.local.weights import INSTALL_EXTRA, quiet_transformers

try:
    import torch
    from jinja2 import TemplateError
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

    from llm_auction_chain.local.sampler import Sampler
except ImportError as error:
    raise MissingDependencyError(f"{error.name} is not installed; run: {INSTALL_EXTRA}") from error

__all__ = ["Engine", "Sampled"]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# Tokens whose logits over the vocabulary are held at once. Larger arrays (above 32 MB with glibc) would go back to the
# system and be paged in again at every step, which took half of the time.
_SCORED_AT_ONCE = 128
# Prompts, powers, and how many replies.
Drawing = tuple[Sequence[Sequence[int]], Sequence[float], int]
# What a decoder shows for a character whose bytes have not all been drawn yet.
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampled:
    """One reply.

    Attributes:
        token_ids: every token drawn, the end token and those of a stop string included.
        text: the reply without the end token, cut before the first stop string.
        finish_reason: "stop" after an end token or a stop string, "length" after the last token allowed, None while
            the reply is still growing.
        log_probs: one per token, under the condition and the sampler, with its temperature and truncation.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: Literal["stop", "length"] | None
    log_probs: tuple[float, ...]


@dataclasses.dataclass(kw_only=True)
class _Row:
    """A reply being drawn."""

    generator: torch.Generator
    token_ids: list[int] = dataclasses.field(default_factory=list)
    text: str = ""
    finish_reason: Literal["stop", "length"] | None = None
    log_probs: list[float] = dataclasses.field(default_factory=list)

    def freeze(self) -> Sampled:
        return Sampled(
            token_ids=tuple(self.token_ids),
            text=self.text,
            finish_reason=self.finish_reason,
            log_probs=tuple(self.log_probs),
        )


class Engine:
    """A model and its tokenizer on one device.

    Reply number `row` under `seed` is a function of the prompt, the sampler, `seed` and `row`, and of nothing else: it
    does not depend on how many replies are drawn beside it, up to the rounding of the model's dtype.

    Attributes:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        window: the number of tokens that prompt and reply may have together.
    """

    _loaded: ClassVar[dict[tuple[str, str, str], "Engine"]] = {}
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.window: int = getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
        ends = getattr(model.generation_config, "eos_token_id", None)
        self._ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}

    @classmethod
    def load(cls, path_or_hub_id: str | Path, dtype: str = "auto", device: str = "auto") -> "Engine":
        """Return the engine of a model; the same arguments return the same object in this process.

        Args:
            path_or_hub_id: a folder written by `save_pretrained`, or a model's name on the Hugging Face Hub.
            dtype: "bfloat16", "float16", "float32", or "auto": bfloat16 where the device computes in it, else float32.
            device: a torch device, or "auto": cuda, else mps, else cpu.

        Raises:
            ConfigurationError: there is no such model, dtype or device.
        """
        torch_device = _device(device)
        torch_dtype = _dtype(dtype, torch_device)
        key = (str(path_or_hub_id), str(torch_dtype), str(torch_device))
        with cls._lock:
            if key not in cls._loaded:
                try:
                    with quiet_transformers():
                        model = AutoModelForCausalLM.from_pretrained(path_or_hub_id, dtype=torch_dtype)
                        tokenizer = AutoTokenizer.from_pretrained(path_or_hub_id)
                except (OSError, ValueError, SafetensorError) as error:
                    raise ConfigurationError(
                        f"model={str(path_or_hub_id)!r} is neither a folder with a transformers causal language model "
                        f"nor one that can be fetched from the Hugging Face Hub: {error}"
                    ) from error
                cls._loaded[key] = cls(model.to(torch_device).eval(), tokenizer)
            return cls._loaded[key]

    def encode(self, turns: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the tokens after which the assistant's next turn begins.

        The model's own chat template writes the conversation; a model without one reads lines of `role: text`.

        Args:
            turns: mappings with "role" (user, assistant, system) and "content".

        Raises:
            PromptError: there is no turn.
            ConfigurationError: the template refuses the conversation.
        """
        if not turns:
            raise PromptError("there is nothing to reply to; pass at least one message")
        if self.tokenizer.chat_template is None:
            lines = [f"{turn['role']}: {turn['content']}" for turn in turns]
            return list(self.tokenizer("\n".join([*lines, "assistant:"]))["input_ids"])
        try:
            return list(
                self.tokenizer.apply_chat_template(
                    list(turns), tokenize=True, add_generation_prompt=True, return_dict=False
                )
            )
        except TemplateError as error:
            raise ConfigurationError(f"the model's chat template refuses these messages: {error}") from error

    def sample(
        self,
        conditions: Sequence[Drawing],
        *,
        seed: int,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> list[Sampled]:
        """Draw replies, each under its condition.

        Args:
            conditions: (prompts, powers, count): `count` replies whose tokens follow
                `prod_k pi(token | prompts[k]) ** powers[k]`; a prompt is a list of tokens.
            seed: a non-negative integer; with the row's number it decides the reply.
            progress: called with (finished, total) each time replies finish.
            **options: `max_tokens`, `stop` and `sampler`, as `stream` takes them.

        Returns:
            The replies in the order of the conditions.

        Raises:
            PromptError: a prompt is empty.
            ContextWindowError: a prompt leaves no room for a token.
        """
        total = sum(count for _, _, count in conditions)
        longest = max(len(prompt) for prompts, _, _ in conditions for prompt in prompts)
        replies: list[Sampled] = []
        for prompts, powers, count in conditions:
            rows, done = [_Row(generator=self._generator(seed, len(replies) + row)) for row in range(count)], 0
            for _ in self._grow(prompts, powers, rows, longest=longest, **options):
                finished = sum(row.finish_reason is not None for row in rows)
                if progress is not None and finished > done:
                    progress(len(replies) + finished, total)
                done = finished
            replies += [row.freeze() for row in rows]
        return replies

    def stream(
        self, prompt: Sequence[int], *, seed: int, stop: Sequence[str] = (), **options: Any
    ) -> Iterator[Sampled]:
        """Yield one reply after every token; the last item is `sample([([prompt], [1.0], 1)], ...)[0]`.

        Every text is a prefix of the next: a character that lacks bytes, and letters that may turn out to be a stop
        string, wait.

        Args:
            prompt: its tokens.
            seed: a non-negative integer.
            stop: strings before which the reply is cut.
            **options: `max_tokens`, the most tokens drawn, clipped to the model's window; `sampler`.

        Raises:
            PromptError: the prompt is empty.
            ContextWindowError: the prompt leaves no room for a token.
        """
        shown = ""
        row = _Row(generator=self._generator(seed, 0))
        for _ in self._grow([prompt], [1.0], [row], longest=len(prompt), stop=stop, **options):
            if row.finish_reason is not None:
                yield row.freeze()
                return
            stable = _stable(self._text(row.token_ids), stop)
            shown = stable if stable.startswith(shown) else shown
            yield dataclasses.replace(row.freeze(), text=shown)

    def score(
        self,
        prompts: Sequence[Sequence[int]],
        powers: Sequence[Sequence[float]],
        replies: Sequence[Sequence[int]],
        sampler: Sampler,
    ) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
        """Return `log pi_c(reply)` (C, M) in nats; tokens follow `prod_k pi(token | prompts[k]) ** powers[c, k]`.

        Every prompt is read once, every reply once under every prompt.

        Args:
            prompts: K lists of tokens.
            powers: (C, K).
            replies: M lists of tokens, the end token included where there is one.
            sampler: temperature and truncation of the law asked for.

        Raises:
            PromptError: a prompt is empty.
            ContextWindowError: a prompt and a reply do not fit into the model's window.
        """
        longest = max((len(reply) for reply in replies), default=0)
        for prompt in prompts:
            self._room(len(prompt), longest)
        prefixes = [self._read(prompt) for prompt in prompts]
        totals = np.zeros((len(powers), len(replies)))
        order = sorted((row for row in range(len(replies)) if replies[row]), key=lambda row: len(replies[row]))
        while order:
            size = max(1, _SCORED_AT_ONCE // len(replies[order[-1]]))
            rows, order = order[-size:], order[:-size]
            totals[:, rows] = self._score_rows(prefixes, powers, [replies[row] for row in rows], sampler)
        return totals

    def _score_rows(
        self,
        prefixes: "Sequence[tuple[DynamicCache, torch.Tensor]]",
        powers: Sequence[Sequence[float]],
        replies: Sequence[Sequence[int]],
        sampler: Sampler,
    ) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
        """Return the log-probabilities (C, rows) of one batch of replies, none of them empty."""
        lengths = [len(reply) for reply in replies]
        # The padding stands behind the reply, where no token of it can see it.
        padded = [[*reply, *[0] * (max(lengths) - len(reply))] for reply in replies]
        ids = torch.tensor(padded, device=self.model.device)
        real = torch.tensor([[k < length for k in range(max(lengths))] for length in lengths], device=ids.device)
        tokens = ids[real]
        logits: list[torch.Tensor | None] = [None] * len(powers)
        for k, (cache, first) in enumerate(prefixes):
            shown = [first.expand(len(replies), 1, -1)]
            if ids.shape[1] > 1:
                copied = copy.deepcopy(cache)
                copied.batch_repeat_interleave(len(replies))
                shown.append(self._logits(ids[:, :-1], copied, keep=ids.shape[1] - 1))
            given = torch.cat(shown, dim=1)[real]
            for c, row in enumerate(powers):
                if row[k]:
                    known = logits[c]
                    logits[c] = given * row[k] if known is None else known.add_(given, alpha=row[k])
        with torch.inference_mode():
            scores = (
                torch.stack([sampler.log_probs(combined, tokens) for combined in logits if combined is not None])
                .double()
                .cpu()
                .numpy()
            )
        return np.stack([part.sum(axis=1) for part in np.split(scores, np.cumsum(lengths)[:-1], axis=1)], axis=1)

    def _read(self, prompt: Sequence[int]) -> "tuple[DynamicCache, torch.Tensor]":
        """Return the cache after a prompt, and the logits (1, 1, vocabulary) of what comes next."""
        cache = DynamicCache(config=self.model.config)
        return cache, self._logits(torch.tensor([list(prompt)], device=self.model.device), cache, keep=1)

    def _room(self, prompt: int, wanted: int | None = None) -> int:
        """Return how many tokens fit behind a prompt of so many tokens."""
        if prompt < 1:
            raise PromptError("the prompt has no tokens")
        room = self.window - prompt
        if room < (wanted or 1):
            reply = "the reply included" if wanted is None else f"and the reply has {wanted}"
            raise ContextWindowError(
                f"the prompt has {prompt} tokens and the model reads {self.window}, {reply}; shorten the prompt"
            )
        return room

    def _grow(
        self,
        prompts: Sequence[Sequence[int]],
        powers: Sequence[float],
        rows: list[_Row],
        *,
        longest: int,
        max_tokens: int,
        sampler: Sampler,
        stop: Sequence[str] = (),
    ) -> Iterator[None]:
        """Extend the rows token by token until all are finished; finished rows leave the batch."""
        for prompt in prompts:
            self._room(len(prompt))
        # One length for all conditions: a reply cut by it is then a prefix under each of them.
        length = min(max_tokens, self._room(longest))
        active = rows
        caches, shown = [], []
        for prompt in prompts:
            cache, first = self._read(prompt)
            if len(rows) > 1:
                cache.batch_repeat_interleave(len(rows))
            caches.append(cache)
            shown.append(first[:, 0].expand(len(rows), -1))
        while True:
            tokens, log_probs = sampler.draw(_combine(shown, powers), [row.generator for row in active])
            for row, token, log_prob in zip(active, tokens, log_probs, strict=True):
                row.token_ids.append(token)
                row.log_probs.append(log_prob)
                self._finish(row, length, stop)
            yield
            going = [place for place, row in enumerate(active) if row.finish_reason is None]
            if not going:
                return
            if len(going) < len(active):
                active = [active[place] for place in going]
                for cache in caches:
                    cache.batch_select_indices(torch.tensor(going, device=self.model.device))
            ids = torch.tensor([row.token_ids[-1:] for row in active], device=self.model.device)
            shown = [self._logits(ids, cache, keep=1)[:, 0] for cache in caches]

    def _generator(self, seed: int, row: int) -> torch.Generator:
        """Return the stream of randomness that belongs to one row."""
        state = np.random.SeedSequence([seed, row]).generate_state(1, np.uint64)
        return torch.Generator(self.model.device).manual_seed(int(state[0]))

    def _logits(self, ids: torch.Tensor, cache: Any, *, keep: int) -> torch.Tensor:
        """Return the float32 logits (rows, keep, vocabulary) after the last `keep` tokens, and extend the cache."""
        with torch.inference_mode():
            output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=keep)
            logits: torch.Tensor = output.logits[:, -keep:].float()
            return logits

    def _text(self, token_ids: Sequence[int]) -> str:
        """Return the tokens' text without special tokens."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _finish(self, row: _Row, length: int, stop: Sequence[str]) -> None:
        """Set the row's text and finish reason where its newest token ends it."""
        ended = row.token_ids[-1] in self._ends
        full = len(row.token_ids) >= length
        if not (ended or full or stop):
            return
        text = self._text(row.token_ids[:-1] if ended else row.token_ids)
        cuts = [place for string in stop if (place := text.find(string)) >= 0]
        if cuts or ended:
            row.text, row.finish_reason = text[: min(cuts, default=None)], "stop"
        elif full:
            row.text, row.finish_reason = text, "length"


def _combine(shown: Sequence[torch.Tensor], powers: Sequence[float]) -> torch.Tensor:
    """Return logits of `prod_k pi_k ** powers[k]`: the sum needs no normalising, the softmax behind it does that."""
    if len(shown) == 1 and powers[0] == 1.0:
        return shown[0]
    return torch.stack([power * logits for power, logits in zip(powers, shown, strict=True)]).sum(0)


def _stable(text: str, stop: Sequence[str]) -> str:
    """Return the part of an unfinished text that no later token can change."""
    text = text.rstrip(_UNFINISHED)
    held = max(
        (size for string in stop for size in range(1, len(string)) if text.endswith(string[:size])),
        default=0,
    )
    return text[: len(text) - held]


def _device(name: str) -> torch.device:
    """Return the device named, or the best one for "auto"."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise ConfigurationError(f"device={name!r} is not one torch can use here: {error}") from error
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype named, or bfloat16 for "auto" where the device computes in it, else float32."""
    if name == "auto":
        return torch.bfloat16 if _computes_in_bfloat16(device) else torch.float32
    if name not in _DTYPES:
        raise ConfigurationError(f"dtype={name!r} is none of auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _computes_in_bfloat16(device: torch.device) -> bool:
    """Return whether the device has instructions for bfloat16, rather than an emulation."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, probe, bool)() for probe in probes)
    return False
