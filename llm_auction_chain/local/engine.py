"""Draw replies from a transformers model in this process, many at once, each from its own stream of randomness."""

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
    from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
except ImportError as error:
    raise MissingDependencyError(f"{error.name} is not installed; run: {INSTALL_EXTRA}") from error

__all__ = ["Engine", "Sampled"]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
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
        log_prob: the log-probability of `token_ids` under the sampler, with its temperature and truncation.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: Literal["stop", "length"] | None
    log_prob: float


@dataclasses.dataclass(kw_only=True)
class _Row:
    """A reply being drawn."""

    generator: torch.Generator
    token_ids: list[int] = dataclasses.field(default_factory=list)
    text: str = ""
    finish_reason: Literal["stop", "length"] | None = None
    log_prob: float = 0.0

    def freeze(self) -> Sampled:
        return Sampled(
            token_ids=tuple(self.token_ids), text=self.text, finish_reason=self.finish_reason, log_prob=self.log_prob
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
                except (OSError, ValueError) as error:
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
        prompt_ids: Sequence[int],
        n: int,
        *,
        seed: int,
        progress: Callable[[int, int], None] | None = None,
        **sampler: Any,
    ) -> list[Sampled]:
        """Draw `n` replies in one batch.

        Args:
            prompt_ids: the prompt's tokens.
            n: how many replies.
            seed: a non-negative integer; with the row's number it decides the reply.
            progress: called with (finished, n) each time replies finish.
            **sampler: `max_tokens`, `temperature`, `top_p`, `top_k` and `stop`, as `stream` takes them.

        Returns:
            `n` replies, by row.

        Raises:
            PromptError: the prompt is empty.
            ContextWindowError: the prompt leaves no room for a token.
        """
        rows: list[_Row] = []
        done = 0
        for rows in self._grow(prompt_ids, n, seed=seed, **sampler):
            finished = sum(row.finish_reason is not None for row in rows)
            if progress is not None and finished > done:
                progress(finished, n)
            done = finished
        return [row.freeze() for row in rows]

    def stream(
        self,
        prompt_ids: Sequence[int],
        *,
        seed: int,
        max_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        stop: Sequence[str] = (),
    ) -> Iterator[Sampled]:
        """Yield one reply after every token; the last item is `sample(prompt_ids, 1, ...)[0]`.

        Every text is a prefix of the next: a character that lacks bytes, and letters that may turn out to be a stop
        string, wait.

        Args:
            prompt_ids: the prompt's tokens.
            seed: a non-negative integer.
            max_tokens: the most tokens drawn, clipped to the model's window.
            temperature: the logits are divided by it; 0 takes the likeliest token.
            top_p: below 1, only the smallest set of likeliest tokens whose probabilities reach it is drawn from.
            top_k: above 0, only that many likeliest tokens are drawn from.
            stop: strings before which the reply is cut.

        Raises:
            PromptError: the prompt is empty.
            ContextWindowError: the prompt leaves no room for a token.
        """
        shown = ""
        for (row,) in self._grow(
            prompt_ids,
            1,
            seed=seed,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            stop=stop,
        ):
            if row.finish_reason is not None:
                yield row.freeze()
                return
            stable = _stable(self._text(row.token_ids), stop)
            shown = stable if stable.startswith(shown) else shown
            yield dataclasses.replace(row.freeze(), text=shown)

    def _grow(
        self,
        prompt_ids: Sequence[int],
        n: int,
        *,
        seed: int,
        max_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        stop: Sequence[str] = (),
    ) -> Iterator[list[_Row]]:
        """Yield the same `n` rows after every token until all are finished; finished rows leave the batch."""
        if not prompt_ids:
            raise PromptError("the prompt has no tokens")
        room = self.window - len(prompt_ids)
        if room < 1:
            raise ContextWindowError(
                f"the prompt has {len(prompt_ids)} tokens and the model reads {self.window}, the reply included; "
                "shorten the prompt"
            )
        length = min(max_tokens, room)
        rows = [_Row(generator=self._generator(seed, row)) for row in range(n)]
        active = rows
        cache = DynamicCache(config=self.model.config)
        logits = self._forward([list(prompt_ids)], cache).expand(n, -1)
        if n > 1:
            cache.batch_repeat_interleave(n)
        while True:
            tokens, log_probs = _draw(logits, [row.generator for row in active], temperature, top_p, top_k)
            for row, token, log_prob in zip(active, tokens, log_probs, strict=True):
                row.token_ids.append(token)
                row.log_prob += log_prob
                self._finish(row, length, stop)
            yield rows
            going = [place for place, row in enumerate(active) if row.finish_reason is None]
            if not going:
                return
            if len(going) < len(active):
                active = [active[place] for place in going]
                cache.batch_select_indices(torch.tensor(going, device=self.model.device))
            logits = self._forward([row.token_ids[-1:] for row in active], cache)

    def _generator(self, seed: int, row: int) -> torch.Generator:
        """Return the stream of randomness that belongs to one row."""
        state = np.random.SeedSequence([seed, row]).generate_state(1, np.uint64)
        return torch.Generator(self.model.device).manual_seed(int(state[0]))

    def _forward(self, token_ids: list[list[int]], cache: Any) -> torch.Tensor:
        """Return the float32 logits (rows, vocabulary) after the last token, and extend the cache."""
        with torch.inference_mode():
            ids = torch.tensor(token_ids, device=self.model.device)
            output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits: torch.Tensor = output.logits[:, -1].float()
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


def _draw(
    logits: torch.Tensor, generators: Sequence[torch.Generator], temperature: float, top_p: float, top_k: int
) -> tuple[list[int], list[float]]:
    """Draw one token a row and return it with its log-probability.

    An exponential race: token i finishes at a time distributed Exp(p_i), and the first to finish is distributed p.

    Args:
        logits: float32, shape (rows, vocabulary).
        generators: one a row.
        temperature: 0 takes the likeliest token, whose probability is then 1.
        top_p: nucleus truncation below 1.
        top_k: truncation to the likeliest tokens above 0.
    """
    with torch.inference_mode():
        if temperature == 0:
            return logits.argmax(-1).tolist(), [0.0] * len(generators)
        log_probs = torch.log_softmax(_truncate(logits / temperature, top_p, top_k), -1)
        times = torch.empty_like(log_probs)
        for row, generator in zip(times, generators, strict=True):
            row.exponential_(generator=generator)
        tiny = torch.finfo(times.dtype).tiny
        tokens = (log_probs - times.clamp_min_(tiny).log_()).argmax(-1, keepdim=True)
        return tokens[:, 0].tolist(), log_probs.gather(-1, tokens)[:, 0].tolist()


def _truncate(logits: torch.Tensor, top_p: float, top_k: int) -> torch.Tensor:
    """Return the logits with -inf for every token that the truncation rules out."""
    if 0 < top_k < logits.shape[-1]:
        values, kept = logits.topk(top_k, dim=-1)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, kept, values)
    if top_p < 1:
        values, order = logits.sort(dim=-1, descending=True)
        probs = values.softmax(-1)
        # The likeliest token always stays: nothing comes before it.
        out = probs.cumsum(-1) - probs >= top_p
        out[:, 0] = False
        logits = logits.masked_fill(torch.zeros_like(out).scatter(-1, order, out), -torch.inf)
    return logits


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
