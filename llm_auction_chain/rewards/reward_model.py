"""A reward from a reward model in this process."""

import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from typing_extensions import override

from llm_auction_chain.errors import RewardError
from llm_auction_chain.messages import as_turns
from llm_auction_chain.rewards.base import Bounds, Prompt, Replies, WaitingReward
from llm_auction_chain.validators import choice, number, refuse, whole_number
from llm_auction_chain.waiting import Waiter

__all__ = ["RewardModelReward"]


@dataclass(frozen=True)
class RewardModelReward(WaitingReward):
    """Worth `value * sigmoid(logit)`, or `value * logit`, of a transformers sequence classifier.

    The model reads prompt and reply by its chat template, or as a pair of texts where it has none. What a reply is
    worth does not depend on the replies beside it, up to the rounding of the dtype. The model is loaded when the first
    reply is scored, once in a process.

    Attributes:
        model: a folder written by `save_pretrained`, or a model's name on the Hugging Face Hub.
        value: money at a sigmoid of 1, or per unit of the logit with `squash="none"`.
        label: the number of the model's label; None if it has only one.
        squash: "sigmoid", or "none" for the logit itself, which has no bounds.
        max_batch_tokens: the most tokens of one pass, padding included; a single reply may have more.
        dtype: "bfloat16", "float16", "float32", or "auto": bfloat16 where the device computes in it, else float32.
        device: a torch device, or "auto": cuda, else mps, else cpu.
        trust_remote_code: whether Python code that comes with the model may run.

    Raises:
        ConfigurationError: a setting out of range; from `score`, there is no such model, label, dtype or device.
        ContextWindowError: from `score`, a reply alone is longer than the model reads. A prompt that is too long loses
            its beginning, a reply loses nothing.
        MissingDependencyError: from `score`, the extra `local` is not installed.
        RewardError: from `score`, a logit is not finite.

    >>> RewardModelReward("my-reward-model", value=5.0, squash="none").device
    'auto'
    """

    model: str | Path
    value: float = 1.0
    label: int | None = None
    squash: Literal["sigmoid", "none"] = "sigmoid"
    max_batch_tokens: int = 8192
    dtype: str = "auto"
    device: str = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        number("RewardModelReward.value", self.value)
        if not isinstance(self.model, str | Path) or not str(self.model).strip():
            raise refuse("RewardModelReward.model", "a folder or a model's name", self.model)
        if self.label is not None:
            whole_number("RewardModelReward.label", self.label)
        whole_number("RewardModelReward.max_batch_tokens", self.max_batch_tokens, least=1)
        choice("RewardModelReward.squash", self.squash, ("sigmoid", "none"))

    @property
    @override
    def awaits(self) -> bool:
        return False  # it computes in this process, in a thread

    @property
    @override
    def bounds(self) -> Bounds | None:
        return self._between(self.value) if self.squash == "sigmoid" else None

    @override
    async def _score(self, prompt: Prompt, replies: Replies, waiter: Waiter) -> list[float]:
        abandoned = threading.Event()
        try:
            return await waiter.in_thread(lambda: self._amounts(prompt, replies, abandoned))
        finally:
            abandoned.set()  # after a cancellation, the thread stops before its next pass

    def _amounts(self, prompt: Prompt, replies: Replies, abandoned: threading.Event) -> list[float]:
        if not replies:
            return []
        from llm_auction_chain.models.local.classifier import RewardModel

        model = RewardModel.load(self.model, self.dtype, self.device, trust_remote_code=self.trust_remote_code)
        texts = [as_turns([reply], "RewardModelReward")[0]["content"] for reply in replies]
        turns = as_turns(prompt, "RewardModelReward")
        logits = list(
            model.logits(turns, texts, label=self.label, max_batch_tokens=self.max_batch_tokens, abandoned=abandoned)
        )
        if not all(map(math.isfinite, logits)):
            raise RewardError(f"{str(self.model)!r} gives a logit that is not finite; try dtype='float32'.")
        if self.squash == "none":
            return [self.value * logit for logit in logits]
        return [self.value * (1.0 + math.tanh(logit / 2.0)) / 2.0 for logit in logits]  # tanh does not overflow
