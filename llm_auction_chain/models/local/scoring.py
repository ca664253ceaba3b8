"""Log-probabilities of replies. A pass reads every prompt once, and every reply once behind each of its prompts."""

from collections.abc import Generator, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from llm_auction_chain.candidates.tilts import TokenTilts
from llm_auction_chain.models.local.attention import Prefix
from llm_auction_chain.models.local.passes import Passes, packs
from llm_auction_chain.models.local.sampler import Sampler

__all__ = ["score"]

FloatArray = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def score(
    passes: Passes,
    prompts: Sequence[Sequence[int]],
    powers: FloatArray,
    replies: Sequence[Sequence[int]],
    wanted: Mask,
    sampler: Sampler,
    *,
    tilts: Mapping[int, TokenTilts],
    totals: FloatArray,
    size: int,
) -> Generator[None, None, None]:
    """Add the log-probabilities of `Engine.score`, which explains the arguments, to the totals (C, M).

    `tilts` holds the tilt of each law that has one. It yields after every pass, and holds keys, values and states of at
    most `size` tokens at once.
    """
    for laws in _affordable(powers != 0, [len(prompt) for prompt in prompts], size):
        used: list[int] = np.flatnonzero((powers[laws] != 0).any(0)).tolist()
        prefixes = yield from passes.read([prompts[k] for k in used])
        for columns in _alike(wanted[laws]):
            rows = [law for law in laws if wanted[law, columns[0]]]
            if not rows:
                continue
            shown = {k: prefix for k, prefix in zip(used, prefixes, strict=True) if (powers[rows, k] != 0).any()}
            for pack in packs([len(replies[column]) * len(shown) for column in columns], size):
                batch = [columns[place] for place in pack if replies[columns[place]]]
                if not batch:
                    continue
                texts = [replies[column] for column in batch]
                own = {place: tilts[law] for place, law in enumerate(rows) if law in tilts}
                for part in _follow(passes, list(shown.values()), powers[rows][:, list(shown)], texts, sampler, own):
                    totals[np.asarray(rows)[:, None], batch] += part
                    yield


def _follow(
    passes: Passes,
    prefixes: Sequence[Prefix],
    powers: FloatArray,
    replies: Sequence[Sequence[int]],
    sampler: Sampler,
    tilts: Mapping[int, TokenTilts],
) -> Iterator[FloatArray]:
    """Yield parts (C, M) of the log-probabilities of replies under the same laws. No reply is empty."""
    lengths = [len(reply) for reply in replies]
    ends = np.cumsum(lengths)
    states = prefixes[0].state.new_empty(len(prefixes), int(sum(lengths)), len(prefixes[0].state))
    for prefix, row in zip(prefixes, states, strict=True):
        row[ends - lengths] = prefix.state
    # The state before the last token of a reply gives its probability, so the pass leaves the last token out.
    # Prefix by prefix: replies of one length behind one prefix are one product.
    pairs = [(k, m) for k in range(len(prefixes)) for m, reply in enumerate(replies) if len(reply) > 1]
    for several in passes.follow([(prefixes[k], replies[m][:-1]) for k, m in pairs]):
        for place, state in several:
            k, m = pairs[place]
            states[k, ends[m] - len(state) : ends[m]] = state
        yield np.zeros((len(powers), len(replies)))
    tokens = torch.tensor([token for reply in replies for token in reply], device=states.device)
    owners = np.repeat(np.arange(len(replies)), lengths)
    columns = {law: [np.zeros((0, len(own.columns)))] for law, own in tilts.items()}
    step = max(1, passes.rows // len(prefixes))
    for start in range(0, len(tokens), step):
        rows = slice(start, start + step)
        flat = passes.logits(states[:, rows].flatten(0, 1))
        logits = flat.view(len(prefixes), -1, flat.shape[-1])
        parts = np.zeros((len(powers), len(replies)))
        known: dict[bytes, FloatArray] = {}  # a tilt and its reference have the same powers
        for place, (part, law) in enumerate(zip(parts, powers, strict=True)):
            used = np.flatnonzero(law)
            shown = logits[used[0] : used[0] + 1] if len(used) == 1 else logits[used]
            if (key := law.tobytes()) not in known:
                known[key] = sampler.log_probs(shown, law[used].tolist(), tokens[rows]).double().cpu().numpy()
            np.add.at(part, owners[rows], known[key])
            if place in tilts:
                wanted = torch.from_numpy(tilts[place].columns).to(states.device)
                columns[place].append(sampler.columns(shown[0], wanted).double().cpu().numpy())
        yield parts
    parts = np.zeros((len(powers), len(replies)))
    for law, own in tilts.items():
        parts[law] = own.log_ratios(replies, np.split(np.concatenate(columns[law]), ends[:-1]))[:, 0]
    yield parts


def _affordable(uses: Mask, lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield laws (C',) whose prompts have at most `size` tokens together, or one law alone."""
    laws: list[int] = []
    read: Mask = np.zeros(uses.shape[1], dtype=bool)
    for law, row in enumerate(uses):
        if laws and np.dot(read | row, lengths) > size:
            yield laws
            laws, read = [], np.zeros_like(read)
        laws.append(law)
        read |= row
    if laws:
        yield laws


def _alike(wanted: Mask) -> list[list[int]]:
    """Return groups of the columns that are equal."""
    groups: dict[bytes, list[int]] = {}
    for column, pattern in enumerate(wanted.T):
        groups.setdefault(pattern.tobytes(), []).append(column)
    return list(groups.values())
