"""The bare arithmetic of an auction's model work, the floor that `engine.py` measures against."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from engine_workload import Turn, Workload, now
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

CHUNKS = (64, 128, 256, 512, 1024, 2048)  # rows to multiply at once: the floor takes the fastest
QUICK_CHUNKS = (128, 512)

Product = Callable[[torch.Tensor], object]


@dataclass(frozen=True)
class Floor:
    """The model's weight matrices times as many rows as the work has, and nothing else: no attention, no choice.

    Attributes:
        layers: (width of its input, product) of each matrix, in the order of the model.
        head: the same of the matrix of the vocabulary.
        inputs: random rows of each width.
        at_once: rows that are fastest multiplied at once, by the layers and by the head.
    """

    layers: list[tuple[int, Product]]
    head: tuple[int, Product]
    inputs: dict[int, torch.Tensor] = field(default_factory=dict)
    at_once: dict[bool, int] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any, product: Callable[[torch.Tensor], Product], chunks: Sequence[int] = CHUNKS) -> "Floor":
        """Return the floor of a model for one way to multiply by a matrix (out, in)."""
        head = model.get_output_embeddings()
        modules = [each for each in model.modules() if isinstance(each, torch.nn.Linear | Conv1D) and each is not head]
        weights = [each.weight.t() if isinstance(each, Conv1D) else each.weight for each in modules]
        floor = cls(
            [(weight.shape[1], product(weight)) for weight in weights], (head.weight.shape[1], product(head.weight))
        )
        for width in {width for width, _ in (*floor.layers, floor.head)}:
            floor.inputs[width] = torch.randn(max(chunks), width).to(head.weight.dtype)
        for of_head in (False, True):
            seconds = {size: floor._seconds_a_row(size, of_head=of_head) for size in chunks}
            floor.at_once[of_head] = min(seconds, key=lambda size: seconds[size])
        return floor

    def turn(self, work: Workload, lengths: Sequence[int]) -> Turn:
        """Multiply for replies of these lengths; a reply's last token is never read."""
        prompts = sum(map(len, work.prompts))
        behind = [len(work.used[c]) for c in work.own]
        steps = [
            sum(count for count, length in zip(behind, lengths, strict=True) if length > step)
            for step in range(1, max(lengths))
        ]
        scored = sum(
            (length - 1) * len({k for c in np.flatnonzero(wanted) for k in work.used[c]} - {*work.used[own]})
            for length, own, wanted in zip(lengths, work.own, work.wanted.T, strict=True)
        )
        times = [now()]
        with torch.inference_mode():
            for several in ([(prompts, len(work.prompts))], [(rows, rows) for rows in steps], [(scored, scored)]):
                for rows, shown in several:
                    self._multiply(rows, of_head=False)
                    self._multiply(shown, of_head=True)
                times.append(now())
        prefill, decode, score = np.diff(times).tolist()
        return Turn(
            parts={"prefill": prefill, "decode": decode, "score": score}, replies=[[0] * length for length in lengths]
        )

    def _multiply(self, rows: int, *, of_head: bool) -> None:
        for start in range(0, rows, self.at_once[of_head]):
            size = min(self.at_once[of_head], rows - start)
            for width, product in [self.head] if of_head else self.layers:
                product(self.inputs[width][:size])

    def _seconds_a_row(self, size: int, *, of_head: bool) -> float:
        self.at_once[of_head] = size
        seconds = []
        with torch.inference_mode():
            for _ in range(3):
                start = now()
                self._multiply(size, of_head=of_head)
                seconds.append(now() - start)
        return min(seconds) / size


def linear(weight: torch.Tensor) -> Product:
    """Return the product as a model computes it."""
    return lambda rows: functional.linear(rows, weight)


def packed(weight: torch.Tensor) -> Product:
    """Return the product with a matrix that oneDNN has reordered beforehand."""
    ready = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)  # noqa: SLF001
    return lambda rows: torch.ops.mkldnn._linear_pointwise(rows, ready, None, "none", [], "")  # noqa: SLF001
