"""Temperature, truncation, and the choice of a token from logits."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from llm_auction_chain.errors import LogitsError

__all__ = ["Draws", "Sampler"]

_BLOCK = 128  # tokens of a block: the search adds up blocks first, then looks into one of them
# Logits that become float32 at once. On a CPU so few stay in its cache, and their memory is not mapped anew each time.
_AT_ONCE = {"cpu": 1 << 19}
_AT_ONCE_ELSEWHERE = 1 << 26


class Draws(NamedTuple):
    """One token for each row.

    Attributes:
        tokens: (rows,).
        log_probs: (rows,), of the tokens under the law without a bias, nats.
        alone: (rows, K), of the tokens under each prompt alone, nats.
        columns: (rows, C), of the columns under the law without a bias, nats.
    """

    tokens: list[int]
    log_probs: list[float]
    alone: list[list[float]]
    columns: npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """Draws a token from the softmax of the logits over the temperature, truncated.

    Logits have the shape (K, rows, vocabulary), for K prompts, in any dtype. The law is
    `prod_k softmax(logits[k]) ** powers[k]`, normalised.

    Attributes:
        temperature: divides the logits. 0 takes the likeliest token, with probability 1.
        top_p: below 1, keeps only the smallest set of likeliest tokens whose probabilities reach it.
        top_k: above 0, keeps only that many likeliest tokens.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def draw(
        self,
        logits: torch.Tensor,
        powers: Sequence[float],
        uniforms: Sequence[float],
        columns: torch.Tensor | None = None,
        bias: npt.NDArray[np.float64] | None = None,
    ) -> "Draws":
        """Draw one token for each row: the first at which the sum of probabilities exceeds the row's uniform number.

        Args:
            logits: (K, rows, vocabulary).
            powers: (K,).
            uniforms: (rows,), from 0 to 1.
            columns: (C,), tokens whose log-probabilities under the law are wanted.
            bias: (rows, C), nats, added to the log-probabilities of the columns before a token is drawn.
        """
        tokens: list[int] = []
        log_probs: list[float] = []
        alone: list[list[float]] = []
        of_columns: list[torch.Tensor] = []
        with torch.inference_mode():
            for rows in _chunks(logits):
                parts = logits[:, rows].float()
                combined = _checked(_combined(parts, powers))
                law = self._law(combined)
                probs = law.exp()
                if columns is not None and bias is not None:
                    factors = torch.from_numpy(np.exp(bias[rows])).to(probs)
                    probs[:, columns] *= factors
                chosen = combined.argmax(-1) if self.temperature == 0 else _inverse(probs, uniforms[rows])
                tokens += chosen.tolist()
                log_probs += _at(law, chosen).tolist()
                if columns is not None:
                    of_columns.append(law[:, columns])
                if len(powers) > 1:
                    alone += torch.stack([self._log_probs(part, chosen) for part in parts], 1).tolist()
        figures = torch.cat(of_columns).double().cpu().numpy() if of_columns else np.zeros((len(tokens), 0))
        return Draws(tokens, log_probs, alone or [[value] for value in log_probs], figures)

    def columns(self, logits: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities (rows, C) of some tokens (C,) under each row of logits (rows, vocabulary)."""
        with torch.inference_mode():
            return torch.cat([self._law(_checked(logits[rows].float()))[:, columns] for rows in _chunks(logits[None])])

    def log_probs(self, logits: torch.Tensor, powers: Sequence[float], tokens: torch.Tensor) -> torch.Tensor:
        """Return the log-probability (rows,) of each token (rows,) under its row of logits, float32."""
        with torch.inference_mode():
            combined = (
                (_checked(_combined(logits[:, rows].float(), powers)), tokens[rows]) for rows in _chunks(logits)
            )
            return torch.cat([self._log_probs(*both) for both in combined])

    def _log_probs(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return _at(self._law(logits), tokens)

    def _law(self, logits: torch.Tensor) -> torch.Tensor:
        if self.temperature == 0:
            likeliest = logits.argmax(-1, keepdim=True)
            return torch.full_like(logits, -torch.inf).scatter(-1, likeliest, 0.0)
        if self.temperature != 1:
            logits = logits / self.temperature
        return _truncate(logits, self.top_p, self.top_k).log_softmax(-1)


def _chunks(logits: torch.Tensor) -> Iterator[slice]:
    """Yield slices of the rows."""
    k, rows, vocabulary = logits.shape
    step = max(1, _AT_ONCE.get(logits.device.type, _AT_ONCE_ELSEWHERE) // (k * vocabulary))
    yield from (slice(start, start + step) for start in range(0, rows, step))


def _combined(parts: torch.Tensor, powers: Sequence[float]) -> torch.Tensor:
    """Return logits of `prod_k pi_k ** powers[k]`. They need no normalising before the softmax."""
    if len(powers) == 1 and powers[0] == 1.0:
        return parts[0]
    return sum((part * power for part, power in zip(parts[1:], powers[1:], strict=True)), parts[0] * powers[0])


def _checked(logits: torch.Tensor) -> torch.Tensor:
    """Return the logits if each row has a largest one. An overflow leaves nan or infinity."""
    if not bool(logits.amax(-1).isfinite().all()):
        raise LogitsError(
            "The model's logits are not finite numbers, so no token has a probability. Try dtype='float32', or another "
            "prompt."
        )
    return logits


def _at(law: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return law.gather(-1, tokens[:, None])[:, 0]


def _inverse(probs: torch.Tensor, uniforms: Sequence[float]) -> torch.Tensor:
    """Return for each row the first token at which the sum of probabilities exceeds the row's uniform number.

    One pass adds up blocks. Then only the tokens of one block matter.
    """
    vocabulary = probs.shape[-1]
    whole = vocabulary - vocabulary % _BLOCK
    sums = probs[:, :whole].reshape(len(probs), -1, _BLOCK).sum(-1) if whole else probs[:, :0]
    if whole < vocabulary:
        sums = torch.cat([sums, probs[:, whole:].sum(-1, keepdim=True)], -1)
    totals = np.cumsum(sums.cpu().numpy(), axis=-1, dtype=np.float64)
    targets = np.asarray(uniforms)[:, None] * totals[:, -1:]
    block = np.minimum((totals <= targets).sum(-1), totals.shape[-1] - 1)[:, None]
    before = np.where(block > 0, np.take_along_axis(totals, np.maximum(block - 1, 0), -1), 0.0)
    places = block * _BLOCK + np.arange(_BLOCK)
    inside = torch.from_numpy(np.minimum(places, vocabulary - 1)).to(probs.device)
    shown = np.where(places < vocabulary, probs.gather(-1, inside).cpu().numpy(), 0.0)
    offset = (np.cumsum(shown, axis=-1) <= np.maximum(targets - before, 0.0)).sum(-1)
    # Rounding may put the number behind the block's last possible token, which is then the right one.
    last = np.where(shown > 0, np.arange(_BLOCK), 0).max(-1)
    return torch.from_numpy(block[:, 0] * _BLOCK + np.minimum(offset, last)).to(probs.device)


def _truncate(logits: torch.Tensor, top_p: float, top_k: int) -> torch.Tensor:
    """Return the logits with -inf for every token that truncation excludes."""
    if 0 < top_k < logits.shape[-1]:
        values, kept = logits.topk(top_k, dim=-1)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, kept, values)
    if top_p < 1:
        values, order = logits.sort(dim=-1, descending=True)
        probs = values.softmax(-1)
        # The likeliest token always stays.
        out = probs.cumsum(-1) - probs >= top_p
        out[:, 0] = False
        logits = logits.masked_fill(torch.zeros_like(out).scatter(-1, order, out), -torch.inf)
    return logits
