"""Draws `docs/img/proposals.png` from the tables of `docs/experiments/proposals.md`."""

import re
from pathlib import Path

import matplotlib.pyplot as plt

HERE = Path(__file__).parent
MARKS = {
    "tilt 1": ("tab:blue", "o--"),
    "tilt 2 until said": ("tab:orange", "s:"),
    "tilt 3 until said": ("tab:green", "d-."),
    "default": ("tab:red", "^-"),
}
Interval = tuple[float, float, float]


def intervals(row: str) -> list[Interval]:
    """Return a row's estimates, each with its interval."""
    number = r"(-?[\d.]+)"
    return [(float(a), float(b), float(c)) for a, b, c in re.findall(rf"{number} \({number} to {number}\)", row)]


def read(page: str) -> dict[str, dict[int, tuple[Interval, float]]]:
    """Return the gain at 4 tau (nats) and ESS / M, at the largest M, by proposal and longest reply (tokens)."""
    figures: dict[str, dict[int, tuple[Interval, float]]] = {name: {} for name in MARKS}
    for section in page.split("\n## All tables: at most ")[1:]:
        tokens = int(section.split()[0])
        table = section.split("**keyword, 4 tau:")[1].split("\n**")[0]
        for row in table.splitlines():
            name = row.strip("| ").split(" | ")[0]
            if name in MARKS:
                *_, gain, (share, _, _) = intervals(row)
                figures[name][tokens] = gain, share
    return figures


def draw(figures: dict[str, dict[int, tuple[Interval, float]]], path: Path) -> None:
    """Draw both panels into a PNG file."""
    canvas, (gains, shares) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    lengths = sorted({tokens for by_length in figures.values() for tokens in by_length})
    measured = {name: by_length for name, by_length in figures.items() if by_length}
    for place, (name, by_length) in enumerate(measured.items()):
        color, style = MARKS[name]
        tokens = sorted(by_length)
        beside = [1.01 ** (2 * place - 3) * at for at in tokens]
        value, low, high = zip(*(by_length[at][0] for at in tokens), strict=True)
        down, up = ([abs(a - b) for a, b in zip(value, end, strict=True)] for end in (low, high))
        gains.errorbar(beside, value, yerr=[down, up], fmt=style, color=color, capsize=2)
        shares.plot(tokens, [by_length[at][1] for at in tokens], style, color=color, label=name)
    gains.axhline(0, color="black", linewidth=1)
    shares.axhline(0.5, color="black", linewidth=1)
    gains.set(title="Gain over the reference, 4 tau a keyword, M = 32", ylabel="nats")
    shares.set(title="ESS of the weights / M, M = 32", ylim=(0, 1))
    shares.legend(fontsize="small")
    for axes in (gains, shares):
        axes.set(xlabel="longest reply (tokens)", xscale="log", xticks=lengths, xticklabels=lengths)
        axes.minorticks_off()
    canvas.savefig(path, dpi=100)


if __name__ == "__main__":
    draw(read((HERE / "experiments" / "proposals.md").read_text()), HERE / "img" / "proposals.png")
