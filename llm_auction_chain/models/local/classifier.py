"""A transformers sequence classifier that rates replies, many in one pass."""

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_auction_chain.errors import ContextWindowError, MissingDependencyError
from llm_auction_chain.models.local.templates import check_rows, templated
from llm_auction_chain.models.local.weights import INSTALL_EXTRA
from llm_auction_chain.validators import refuse
from llm_auction_chain.waiting import exit_waits

try:
    from llm_auction_chain.models.local.limits import import_torch

    import_torch()
    import torch
    from transformers import AutoModelForSequenceClassification

    from llm_auction_chain.models.local.capabilities import load_once, window_of
    from llm_auction_chain.models.local.passes import packs
except ImportError as error:
    raise MissingDependencyError(f"{error.name} is not installed. Run: {INSTALL_EXTRA}") from error

__all__ = ["RewardModel"]

# A tokenizer's output: lists of equal length, by the names of the model's inputs.
Encoded = Mapping[str, Sequence[int]]


class RewardModel:
    """A sequence classifier and its tokenizer on one device. It is thread-safe.

    Replies share a pass, padded to the longest, if padding does not change the model's ratings. A short probe checks
    that. Otherwise only replies of one length share a pass.

    Attributes:
        model: a transformers model for sequence classification, on its device.
        tokenizer: its tokenizer.
        window: the most tokens of prompt and reply together.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        config = model.config.get_text_config()
        self.window = min(window_of(config), tokenizer.model_max_length)
        tokenizer.truncation_side = "left"
        self._turn = threading.Lock()
        pad = getattr(config, "pad_token_id", None)
        if pad is None and tokenizer.pad_token_id != tokenizer.eos_token_id:
            pad = tokenizer.pad_token_id
        # Without a padding token models take no batches. With -1, which is in no text, they rate the last token.
        config.pad_token_id = self._pad = -1 if pad is None else int(pad)
        self._pads = self._padding_changes_nothing(config.vocab_size)

    @classmethod
    def load(
        cls, path_or_hub_id: str | Path, dtype: str = "auto", device: str = "auto", *, trust_remote_code: bool = False
    ) -> "RewardModel":
        """Return the model of this name, which this process loads once. `ChatTransformers` explains the arguments.

        Raises:
            ConfigurationError: there is no such model, dtype or device, or it was not trained to classify.
        """
        auto = AutoModelForSequenceClassification
        return load_once(cls, auto, path_or_hub_id, dtype, device, trust_remote_code=trust_remote_code)

    @exit_waits()
    def logits(
        self,
        turns: Sequence[Mapping[str, str]],
        replies: Sequence[str],
        *,
        label: int | None,
        max_batch_tokens: int,
        abandoned: threading.Event,
    ) -> list[float]:
        """Return one logit per reply.

        Args:
            turns: mappings with "role" and "content".
            replies: texts of the assistant's next turn.
            label: the number of a label, or None for the only one.
            max_batch_tokens: the most tokens of one pass, with padding. A single reply may have more.
            abandoned: once it is set, the remaining replies get nan.

        Raises:
            ConfigurationError: there is no such label, or the chat template refuses the conversation.
            ContextWindowError: a reply alone is longer than the model reads.
        """
        column = self._column(label)
        encoded = [self._encode(turns, reply) for reply in replies]
        for each in encoded:
            check_rows(self.tokenizer, each["input_ids"], self.model)
        logits = [math.nan] * len(replies)
        for rows in self._batches([len(each["input_ids"]) for each in encoded], max_batch_tokens):
            with self._turn, exit_waits():
                if abandoned.is_set():
                    break
                several = self._pass([encoded[row] for row in rows])[:, column].tolist()
            for row, logit in zip(rows, several, strict=True):
                logits[row] = logit
        return logits

    def _column(self, label: int | None) -> int:
        count = self.model.config.num_labels
        if (label is None and count > 1) or (label or 0) >= count:
            names = ", ".join(f"{number} ({name})" for number, name in sorted(self.model.config.id2label.items()))
            raise refuse("label", f"one of the model's {count} labels", label, f"They are {names}.")
        return label or 0

    def _encode(self, turns: Sequence[Mapping[str, str]], reply: str) -> Encoded:
        """Return the inputs for a reply. A prompt that is too long loses its beginning."""
        with self._turn:
            if self.tokenizer.chat_template is None:
                return self._encode_pair(turns, reply)
            ids = self._templated([*turns, {"role": "assistant", "content": reply}])
            if len(ids) <= self.window:
                return {"input_ids": ids}
            kept = ids[:1] if ids[0] == self.tokenizer.bos_token_id else []
            self._check_fits(len(kept) + len(ids) - len(self._templated(turns, add_generation_prompt=True)))
            return {"input_ids": kept + ids[len(kept) - self.window :]}

    def _templated(self, turns: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = False) -> list[int]:
        clean = [{"role": turn["role"], "content": _clean(turn["content"])} for turn in turns]
        return templated(self.tokenizer, clean, add_generation_prompt=add_generation_prompt)

    def _encode_pair(self, turns: Sequence[Mapping[str, str]], reply: str) -> Encoded:
        """Return a prompt and a reply as a pair of texts. A prompt of several turns becomes lines of `role: text`."""
        lines = [turn["content"] if len(turns) == 1 else f"{turn['role']}: {turn['content']}" for turn in turns]
        alone, pair = map(self.tokenizer.num_special_tokens_to_add, (False, True))
        # Some tokenizers put nothing between the texts.
        second = _clean(reply if pair > alone else f"\n{reply}")
        self._check_fits(pair + len(self.tokenizer(second, add_special_tokens=False)["input_ids"]))
        encoded = self.tokenizer(_clean("\n".join(lines)), second, truncation="only_first", max_length=self.window)
        return {name: ids for name, ids in encoded.items() if name != "attention_mask"}

    def _check_fits(self, tokens: int) -> None:
        """Raise ContextWindowError unless there is room for at least one token of the prompt."""
        if tokens >= self.window:
            raise ContextWindowError(
                f"A reply takes {tokens} tokens, and the reward model reads {self.window} with the prompt. Give it a "
                "shorter reply or use another model."
            )

    def _batches(self, lengths: Sequence[int], most: int) -> Iterator[list[int]]:
        """Yield the rows of each pass."""
        rows = range(len(lengths))
        alike = [[row for row in rows if lengths[row] == length] for length in sorted(set(lengths))]
        for group in [rows] if self._pads else alike:
            for places in packs([lengths[row] for row in group], most, padded=True):
                yield [group[place] for place in places]

    @torch.inference_mode()
    def _pass(self, batch: Sequence[Encoded]) -> torch.Tensor:
        """Return the logits, (batch, labels), on the CPU."""
        longest = max(len(each["input_ids"]) for each in batch)
        inputs = {
            name: _padded([each[name] for each in batch], longest, self._pad if name == "input_ids" else 0)
            for name in batch[0]
        }
        inputs["attention_mask"] = _padded([[1] * len(each["input_ids"]) for each in batch], longest, 0)
        on_device = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        logits: torch.Tensor = self.model(**on_device).logits
        return logits.float().cpu()

    def _padding_changes_nothing(self, vocabulary: int) -> bool:
        """Return whether a text has the same logits beside a longer text as alone."""
        if not 0 <= self._pad < vocabulary:
            return False
        some = [token for token in range(min(vocabulary, 10)) if token != self._pad]
        short, long = {"input_ids": some[:3]}, {"input_ids": some}
        try:
            alone, beside = self._pass([short])[0], self._pass([short, long])[0]
        except (IndexError, RuntimeError, ValueError):
            return False
        rounding = 1e-3 if self.model.dtype == torch.float32 else 0.1
        return bool((alone - beside).norm() <= rounding * alone.norm())


def _padded(rows: Sequence[Sequence[int]], longest: int, filling: int) -> torch.Tensor:
    return torch.tensor([[*row, *[filling] * (longest - len(row))] for row in rows])


def _clean(text: str) -> str:
    """Return the text without halves of surrogate pairs, which Python allows and tokenizers do not."""
    return text.encode("utf-8", "replace").decode()
