"""From logits to a token: temperature, truncation, and the draw."""

import dataclasses
from collections.abc import Sequence

import torch

__all__ = ["Sampler"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """Draws a token from the softmax of the logits over the temperature, truncated.

    Attributes:
        temperature: the logits are divided by it; 0 takes the likeliest token, whose probability is then 1.
        top_p: below 1, only the smallest set of likeliest tokens whose probabilities reach it is drawn from.
        top_k: above 0, only that many likeliest tokens are drawn from.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    @property
    def plain(self) -> bool:
        """Whether tokens are drawn from the softmax of the logits as they are."""
        return self.temperature == 1.0 and self.top_p >= 1.0 and self.top_k == 0

    def draw(self, logits: torch.Tensor, generators: Sequence[torch.Generator]) -> tuple[list[int], list[float]]:
        """Draw one token a row and return it with its log-probability.

        An exponential race: token i finishes at a time distributed Exp(p_i), and the first to finish is distributed p.

        Args:
            logits: float32, shape (rows, vocabulary).
            generators: one a row.
        """
        with torch.inference_mode():
            if self.temperature == 0:
                return logits.argmax(-1).tolist(), [0.0] * len(generators)
            log_probs = self._law(logits)
            times = torch.empty_like(log_probs)
            for row, generator in zip(times, generators, strict=True):
                row.exponential_(generator=generator)
            tiny = torch.finfo(times.dtype).tiny
            tokens = (log_probs - times.clamp_min_(tiny).log_()).argmax(-1, keepdim=True)
            return tokens[:, 0].tolist(), log_probs.gather(-1, tokens)[:, 0].tolist()

    def log_probs(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return the log-probability of each token (rows,) where it were drawn from its row of logits.

        Args:
            logits: float32, shape (rows, vocabulary).
            tokens: int64, shape (rows,).
        """
        at = tokens[:, None]
        if self.plain:
            return logits.gather(-1, at)[:, 0] - logits.logsumexp(-1)
        if self.temperature == 0:
            return torch.where(logits.argmax(-1) == tokens, 0.0, -torch.inf)
        return self._law(logits).gather(-1, at)[:, 0]

    def _law(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(_truncate(logits / self.temperature, self.top_p, self.top_k), -1)


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
