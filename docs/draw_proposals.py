"""Draws `docs/img/proposals.png` from the tables of `docs/experiments/proposals.md`."""

import re
from pathlib import Path

import matplotlib.pyplot as plt

HERE = Path(__file__).parent
SIZES = (8, 16, 32)  # M of the tables' columns
MARKS = ("o-", "s--", "d:", "^-.")
Interval = tuple[float, float, float]
Rows = dict[str, dict[int, list[Interval]]]


def read(page: str) -> Rows:
    """Return gains at 4 tau (nats) and ESS / M of each proposal but the reference, by longest reply (tokens)."""
    rows: Rows = {}
    for section in page.split("\n## All tables: at most ")[1:]:
        table = section.split("**keyword, 4 tau:")[1].split("\n**")[0]
        for row in table.splitlines():
            number = r"(-?[\d.]+)"
            figures = re.findall(rf"{number} \({number} to {number}\)", row)
            name = row.strip("| ").split(" | ")[0]
            if figures and name != "reference":
                tokens = int(section.split()[0])
                rows.setdefault(name, {})[tokens] = [(float(a), float(b), float(c)) for a, b, c in figures]
    return rows


def draw(rows: Rows, path: Path) -> None:
    """Draw both panels into a PNG file."""
    canvas, (gains, shares) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    lengths = sorted(rows["default"])
    for place, (size, mark) in enumerate(zip(SIZES, MARKS, strict=False)):
        beside = [1.02 ** (place - 1) * tokens for tokens in lengths]
        value, low, high = zip(*(rows["default"][tokens][place] for tokens in lengths), strict=True)
        bars = [[abs(a - b) for a, b in zip(value, end, strict=True)] for end in (low, high)]
        gains.errorbar(beside, value, yerr=bars, fmt=mark, capsize=2, label=f"M = {size}")
    for (name, by_length), mark in zip(rows.items(), MARKS, strict=False):
        shares.plot(by_length.keys(), [figures[-1][0] for figures in by_length.values()], mark, label=name)
    gains.axhline(0, color="black", linewidth=1)
    shares.axhline(0.5, color="black", linewidth=1)
    gains.set(title="Gain of the default, 4 tau a keyword", ylabel="nats over the reference")
    shares.set(title=f"ESS of the weights / M, M = {SIZES[-1]}", ylim=(0, 1))
    for axes in (gains, shares):
        axes.set(xlabel="longest reply (tokens)", xscale="log", xticks=lengths, xticklabels=lengths)
        axes.minorticks_off()
        axes.legend(fontsize="small")
    canvas.savefig(path, dpi=100)


if __name__ == "__main__":
    draw(read((HERE / "experiments" / "proposals.md").read_text()), HERE / "img" / "proposals.png")
