"""Writes the table of capacity into the page about scaling: `python docs/write_capacity.py`.

What a load needs follows from a few rates. Replace those of `GPU` and `MEASURED` by what your own machines reach.
"""

from dataclasses import dataclass
from math import ceil
from pathlib import Path

_PAGE = Path(__file__).parent / "how_to" / "scaling.md"
_BEGIN, _END = "<!-- capacity: python docs/write_capacity.py -->\n", "<!-- end -->\n"
_DAY = 86_400  # seconds
_BYTES = 2  # of a number in bfloat16


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A kind of GPU, from its data sheet, and the shares of it that serving reaches.

    Attributes:
        operations: of bfloat16 numbers, a second.
        bandwidth: of its memory, bytes a second.
        memory: bytes.
        compute_share: of the operations that long prompts reach.
        bandwidth_share: of the bandwidth that decoding reaches.
        memory_share: of the memory for weights and KV cache.
    """

    operations: float = 989e12
    bandwidth: float = 3.35e12
    memory: float = 80e9
    compute_share: float = 0.4
    bandwidth_share: float = 0.6
    memory_share: float = 0.9


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model and how it is served.

    Attributes:
        name: in the table.
        parameters: their number.
        cache: KV cache of a token, bytes.
        gpus: of one replica.
        sequences: that a replica writes at once, at most.
    """

    name: str
    parameters: float
    cache: float
    gpus: int
    sequences: int = 256


@dataclass(frozen=True, kw_only=True)
class Auction:
    """A kind of auction, whose candidates come from the reference and from keyword tilts: nothing is scored.

    Attributes:
        name: in the table.
        candidates: M.
        prompt: P, tokens.
        reply: T, tokens.
    """

    name: str
    candidates: int
    prompt: int
    reply: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one auction of eight owners costs beside the model.

    Attributes:
        processor: seconds of a worker's core, with the ledger's client.
        ledger_rate: auctions a second that one ledger books, held and charged.
        stored: bytes in PostgreSQL, with receipt and kept reply.
        stored_after_erasure: bytes once `erase_receipts` has deleted receipt and reply.
    """

    processor: float = 0.011
    ledger_rate: float = 190.0
    stored: float = 13_000.0
    stored_after_erasure: float = 4_400.0


GPU, MEASURED = Gpu(), Measured()
SMALL = Model(name="8B, 1 GPU", parameters=8e9, cache=2 * 32 * 8 * 128 * _BYTES, gpus=1)
LARGE = Model(name="70B, 4 GPUs", parameters=70e9, cache=2 * 80 * 8 * 128 * _BYTES, gpus=4)
SHORT = Auction(name="ad in a chat", candidates=8, prompt=200, reply=64)
LONG = Auction(name="with keywords", candidates=16, prompt=200, reply=256)
CASES = ((SHORT, SMALL), (LONG, SMALL), (LONG, LARGE))
RATES = (10, 100, 1000)  # auctions a second
LOAD = 0.7  # share of its capacity that a part is planned for, so that queues stay short


@dataclass(frozen=True, kw_only=True)
class Replica:
    """What one replica does of one kind of auction.

    Attributes:
        write: tokens a second that all sequences together write.
        read: tokens a second.
        step: seconds for one token of each sequence.
    """

    write: float
    read: float
    step: float


def replica(model: Model, auction: Auction, gpu: Gpu = GPU) -> Replica:
    """Return what a replica reaches: each step reads all weights and every sequence's cache, or is compute-bound."""
    weights = model.parameters * _BYTES
    operations = model.gpus * gpu.operations * gpu.compute_share
    each = model.cache * (auction.prompt + auction.reply)
    room = model.gpus * gpu.memory * gpu.memory_share - weights
    sequences = min(model.sequences, int(room / each))
    by_memory = (weights + sequences * each) / (model.gpus * gpu.bandwidth * gpu.bandwidth_share)
    step = max(by_memory, 2 * model.parameters * sequences / operations)
    return Replica(write=sequences / step, read=operations / (2 * model.parameters), step=step)


def costs(auction: Auction, model: Model) -> dict[str, float]:
    """Return the seconds of a replica that one auction takes, by what they are spent on."""
    one = replica(model, auction)
    return {
        "writing": auction.candidates * auction.reply / one.write,
        "reading": auction.prompt / one.read,
    }


def needs(rate: float, auction: Auction, model: Model) -> dict[str, float]:
    """Return what a rate of auctions needs of each part."""
    seconds, one = costs(auction, model), replica(model, auction)
    replicas = ceil(rate * sum(seconds.values()) / LOAD)
    return {
        "in_flight": ceil(rate * (auction.reply * one.step + auction.prompt / one.read)),
        "replicas": replicas,
        "gpus": replicas * model.gpus,
        "cores": ceil(rate * MEASURED.processor / LOAD),
        "ledgers": ceil(rate / MEASURED.ledger_rate / LOAD),
        "gigabytes": rate * _DAY * MEASURED.stored / 1e9,
        "gigabytes_kept": rate * _DAY * MEASURED.stored_after_erasure / 1e9,
    }


def table() -> str:
    """Return the table."""
    head = (
        "auctions a second",
        "setting",
        "model",
        "in flight",
        "replicas",
        "GPUs",
        "of their time, writing",
        "workers' cores",
        "ledgers",
        "database, a day",
        "after erasure",
    )
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for auction, model in CASES:
        seconds = costs(auction, model)
        for rate in RATES:
            need = needs(rate, auction, model)
            counts = (f"{need[name]:,}" for name in ("in_flight", "replicas", "gpus"))
            cells = [
                f"{rate:,}",
                auction.name,
                model.name,
                *counts,
                f"{seconds['writing'] / sum(seconds.values()):.0%}",
                f"{need['cores']:,}",
                f"{need['ledgers']:,}",
                f"{need['gigabytes']:,.0f} GB",
                f"{need['gigabytes_kept']:,.0f} GB",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """Return the page with the table of today's rates."""
    before, rest = text.split(_BEGIN)
    return f"{before}{_BEGIN}\n{table()}\n{_END}{rest.split(_END)[1]}"


if __name__ == "__main__":
    _PAGE.write_text(page(_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
