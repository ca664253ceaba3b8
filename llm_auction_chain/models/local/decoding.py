"""Sampling of replies under several laws, in one batch, token by token."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from llm_auction_chain.candidates.tilts import TiltState, TokenTilts
from llm_auction_chain.models.local.attention import Prefix
from llm_auction_chain.models.local.passes import Passes
from llm_auction_chain.models.local.sampler import Draws, Sampler

__all__ = ["Law", "Row", "decode", "row_blocks"]

FloatArray = npt.NDArray[np.float64]

# The share of finished rows at which they leave the batch. To leave, the batch must copy the keys of the others.
_LEAVE = 1 / 8


@dataclasses.dataclass(eq=False, kw_only=True)
class Row:
    """A reply that grows. Its token ids and log-probabilities under the law are those so far."""

    uniforms: np.random.Generator  # the row's own. Each token takes one number
    token_ids: list[int] = dataclasses.field(default_factory=list)
    log_probs: list[float] = dataclasses.field(default_factory=list)
    # (K,), of the reply under each of the law's prompts alone.
    alone: FloatArray = dataclasses.field(default_factory=lambda: np.zeros(1))
    # (T,), of the reply under each of the law's tilts, minus that under the prompt alone.
    log_ratios: FloatArray = dataclasses.field(default_factory=lambda: np.zeros(0))
    text: str = ""  # of the finished reply
    finish_reason: Literal["stop", "length"] | None = None  # None while the reply grows


@dataclasses.dataclass(eq=False, kw_only=True)
class Law:
    """The law `prod_k pi(token | prefixes[k]) ** powers[k]`, perhaps tilted, and the rows that follow it.

    A row is K sequences with the same tokens, one behind each prefix.
    """

    prefixes: Sequence[Prefix]  # (K,), of the prompts
    powers: Sequence[float]  # (K,)
    rows: list[Row]
    tilts: TokenTilts | None = None  # those of the only prefix, for the rows' log-probabilities under each
    tilt: int | None = None  # the place of the law's own tilt among them
    # (K, rows, hidden), behind the newest tokens.
    states: torch.Tensor = dataclasses.field(default_factory=lambda: torch.empty(0))
    tilted: TiltState = dataclasses.field(init=False)  # of the rows

    def __post_init__(self) -> None:
        if self.tilts is not None:
            self.tilted = self.tilts.start(len(self.rows))

    def select(self, places: Sequence[int]) -> None:
        """Keep some of the rows."""
        self.rows = [self.rows[place] for place in places]
        if self.tilts is not None:
            self.tilted = self.tilted.select(places)


def decode(passes: Passes, laws: Sequence[Law], sampler: Sampler, finish: Callable[[Row], None]) -> Iterator[None]:
    """Extend the rows of all laws token by token, in one batch, and yield after every token.

    `finish` sets the text and the finish reason of a row that its newest token ends.
    """
    for law in laws:
        behind = torch.stack([prefix.state for prefix in law.prefixes])
        law.states = behind[:, None].expand(-1, len(law.rows), -1)
    prefixes = [prefix for law in laws for prefix in law.prefixes]
    sequences = passes.behind(prefixes, [len(law.rows) for law in laws for _ in law.prefixes])
    while True:
        for blocks in row_blocks(laws, passes.rows):
            _draw(passes, blocks, sampler)
        for row in (row for law in laws for row in law.rows if row.finish_reason is None):
            finish(row)
        yield
        going = [[place for place, row in enumerate(law.rows) if row.finish_reason is None] for law in laws]
        if not any(going):
            return
        rows, left = sum(len(law.rows) for law in laws), sum(map(len, going))
        if rows - left >= max(1, _LEAVE * rows):
            sequences.select([places for places, law in zip(going, laws, strict=True) for _ in law.prefixes])
            for places, law in zip(going, laws, strict=True):
                law.select(places)
        tokens = [row.token_ids[-1] for law in laws for _ in law.prefixes for row in law.rows]
        states = passes.step(sequences, tokens)
        sizes = [len(law.prefixes) * len(law.rows) for law in laws]
        for law, part in zip(laws, torch.split(states, sizes), strict=True):
            law.states = part.view(len(law.prefixes), len(law.rows), part.shape[-1])


def row_blocks(laws: Sequence[Law], size: int) -> Iterator[list[tuple[Law, slice]]]:
    """Yield slices of the laws' rows, with at most `size` sequences together, or one row alone."""
    blocks: list[tuple[Law, slice]] = []
    room = size
    for law in laws:
        k, start = len(law.prefixes), 0
        while start < len(law.rows):
            if blocks and room < k:
                yield blocks
                blocks, room = [], size
            stop = min(len(law.rows), start + max(1, room // k))
            blocks.append((law, slice(start, stop)))
            room, start = room - (stop - start) * k, stop
    if blocks:
        yield blocks


def _draw(passes: Passes, blocks: Sequence[tuple[Law, slice]], sampler: Sampler) -> None:
    """Append a token to the unfinished rows of the blocks. One product projects all onto the vocabulary."""
    states = [law.states[:, rows] for law, rows in blocks]
    logits = passes.logits(torch.cat([state.flatten(0, 1) for state in states]))
    parts = torch.split(logits, [state.shape[0] * state.shape[1] for state in states])
    for (law, rows), state, part in zip(blocks, states, parts, strict=True):
        block = law.rows[rows]
        uniforms = [0.0 if row.finish_reason else row.uniforms.random() for row in block]
        stacked = part.view(*state.shape[:2], -1)
        if law.tilts is None:
            draws = sampler.draw(stacked, law.powers, uniforms)
        else:
            columns = torch.from_numpy(law.tilts.columns).to(part.device)
            bias = None if law.tilt is None else law.tilts.bias(law.tilted, law.tilt, rows)
            draws = sampler.draw(stacked, law.powers, uniforms, columns, bias)
        going = [place for place, row in enumerate(block) if row.finish_reason is None]
        log_probs = np.array(draws.log_probs)
        if law.tilts is not None and going:
            log_probs[going] += _tilt(law, law.tilts, rows, going, draws)
        for place in going:
            row = block[place]
            row.token_ids.append(draws.tokens[place])
            row.log_probs.append(float(log_probs[place]))
            row.alone = row.alone + draws.alone[place]


def _tilt(law: Law, tilts: TokenTilts, rows: slice, going: Sequence[int], draws: Draws) -> FloatArray:
    """Add the drawn tokens to the tilts of the unfinished rows, and return what the law's own tilt adds to each."""
    places = np.arange(len(law.rows))[rows][going]
    before = law.tilted.log_ratios[places]
    tilts.step(law.tilted, places, np.array(draws.tokens)[going], draws.columns[going])
    for place in places:
        law.rows[place].log_ratios = law.tilted.log_ratios[place]
    after = law.tilted.log_ratios[places]
    return np.zeros(len(going)) if law.tilt is None else after[:, law.tilt] - before[:, law.tilt]
