"""What an experiment finds: estimates with intervals, tables, figures and ratios, as text, data and pictures."""

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from llm_auction_chain.errors import MissingDependencyError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Picture

__all__ = ["Cell", "Cost", "Estimate", "Figure", "Findings", "Series", "Summary", "Table", "mean", "of_means", "ratio"]

Floats = npt.NDArray[np.float64]
_RESAMPLES = 2000
_ROUNDING = 1e-12
_MANY = 200  # points of a series, more of which are drawn as pixels
_LEVEL = (2.5, 97.5)  # percentiles of a 95 % interval
_HATCHES = ("", "//", "..", "xx", "\\\\", "++")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number that was measured, with its 95 % interval.

    Attributes:
        value: the estimate.
        low: where the interval begins; nan where one measurement gives none.
        high: where it ends.

    >>> str(Estimate(value=1.23456, low=1.1, high=1.4))
    '1.23 (1.1 to 1.4)'
    """

    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        """Return the value and the interval in three digits."""
        if math.isnan(self.low):
            return _digits(self.value)
        return f"{_digits(self.value)} ({_digits(self.low)} to {_digits(self.high)})"


def _digits(value: float) -> str:
    """Return three digits; 0 for what is 0 up to rounding."""
    return f"{0.0 if abs(value) <= _ROUNDING else value:.3g}"


def mean(values: npt.ArrayLike) -> Estimate:
    """Return the mean over questions and seeds.

    Args:
        values: (Q, S), one for each question and seed; (Q,) where there is one seed.

    >>> mean([[1.0], [3.0]]).value
    2.0
    """
    return of_means(lambda means: means[:, 0], values)


def ratio(numerators: npt.ArrayLike, denominators: npt.ArrayLike) -> Estimate:
    """Return the ratio of two means over the same questions and seeds, which are drawn in pairs.

    Args:
        numerators: (Q, S) or (Q,).
        denominators: of the same shape. Where their mean is 0 the ratio is nan.
    """

    def divide(means: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            quotient = means[:, 0] / means[:, 1]
        return np.asarray(np.where(np.isfinite(quotient), quotient, np.nan))

    return of_means(divide, numerators, denominators)


def of_means(statistic: Callable[[Floats], npt.ArrayLike], *samples: npt.ArrayLike) -> Estimate:
    """Return a function of means over questions and seeds.

    Args:
        statistic: from means (B, K) to values (B,); a value that is not finite is left out of the interval.
        *samples: K of them, each (Q, S) or (Q,).

    Source: the interval is a percentile bootstrap in two stages, which draws questions and then seeds of each
    (Davison and Hinkley 1997, section 3.8). It is repeatable.
    """
    values = np.stack([np.asarray(sample, dtype=np.float64) for sample in samples], axis=-1)
    values = values if values.ndim > 2 else values[:, None]  # noqa: PLR2004
    questions, seeds, _ = values.shape
    flat = values.reshape(questions * seeds, -1)
    value = float(np.asarray(statistic(flat.mean(axis=0, keepdims=True)))[0])
    if len(flat) == 1:
        return Estimate(value=value)
    resampled = np.asarray(statistic(_resamples(questions, seeds) @ flat))
    resampled = resampled[np.isfinite(resampled)]
    low, high = np.percentile(resampled, _LEVEL) if len(resampled) else (math.nan, math.nan)
    return Estimate(value=value, low=float(low), high=float(high))


@cache
def _resamples(questions: int, seeds: int) -> Floats:
    """Return the weights of the measurements in each resample, (B, Q * S)."""
    rng = np.random.default_rng(0)
    rows = rng.integers(questions, size=(_RESAMPLES, questions, 1))
    columns = rng.integers(seeds, size=(_RESAMPLES, questions, seeds))
    places = (rows * seeds + columns).reshape(_RESAMPLES, -1)
    weights = np.zeros((_RESAMPLES, questions * seeds))
    np.add.at(weights, (np.arange(_RESAMPLES)[:, None], places), 1.0 / places.shape[1])
    return weights


Cell = str | int | float | Estimate
"""Of a table."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of figures with a title.

    Attributes:
        title: what the table shows.
        columns: headings, with units.
        rows: one cell for each column.

    >>> print(Table(title="Fruit", columns=("kind", "money"), rows=(("apples", 0.5), ("pears", 12.25))))
    Fruit
    kind    money
    apples    0.5
    pears    12.2
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __str__(self) -> str:
        """Return the title, the headings and the rows, in columns."""
        cells = [self.columns, *(tuple(map(_text, row)) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        texts = [not self.rows or isinstance(cell, str) for cell in (self.rows or (self.columns,))[0]]
        lines = (
            "  ".join(
                cell.ljust(width) if text else cell.rjust(width)
                for cell, width, text in zip(row, widths, texts, strict=True)
            ).rstrip()
            for row in cells
        )
        return "\n".join((self.title, *lines))

    def to_markdown(self) -> str:
        """Return the table in Markdown, the title in bold above it."""
        lines = [self.columns, tuple("---" for _ in self.columns), *(tuple(map(_text, row)) for row in self.rows)]
        escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
        return f"**{self.title}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in escaped)

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    def to_frame(self) -> "pd.DataFrame":
        """Return the rows as a pandas DataFrame. An estimate takes three columns: `x`, `x low` and `x high`.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingDependencyError("A DataFrame needs pandas: pip install pandas") from error
        return pd.DataFrame([_record(self.columns, row) for row in self.rows])


def _text(cell: Cell) -> str:
    return _digits(cell) if isinstance(cell, float) else str(cell)


def _record(columns: Sequence[str], row: Sequence[Cell]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for name, cell in zip(columns, row, strict=True):
        if isinstance(cell, Estimate):
            record.update({name: cell.value, f"{name} low": cell.low, f"{name} high": cell.high})
        else:
            record[name] = cell
    return record


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line, set of points or set of bars.

    Attributes:
        label: its name in the legend.
        x: (K,), numbers, or names of bars.
        y: (K,), numbers or estimates.
    """

    label: str
    x: Sequence[float | str]
    y: Sequence[float | Estimate]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture of one claim. Line styles, markers and hatches tell series apart without colours.

    Attributes:
        name: of the file.
        title: what it shows.
        x_label: with its unit.
        y_label: with its unit.
        series: what is drawn.
        kind: lines through points with their intervals, points alone, or horizontal bars.
        x_log: whether x grows by factors.
        y_log: whether y does.
        diagonal: whether the line x = y is drawn.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    kind: Literal["lines", "points", "bars"] = "lines"
    x_log: bool = False
    y_log: bool = False
    diagonal: bool = False

    def draw(self) -> "Picture":
        """Return the figure as one of matplotlib's.

        Raises:
            MissingDependencyError: matplotlib is not installed.
        """
        from llm_auction_chain.auction.plots import MARKERS, STYLES, new_figure

        picture = new_figure(8.0 if len(self.series) > 1 else 6.4, 4.0)
        axes = picture.subplots()
        for k, series in enumerate(self.series):
            values = [_estimate(y) for y in series.y]
            heights = [value.value for value in values]
            ends = ([abs(each.value - each.low) for each in values], [abs(each.high - each.value) for each in values])
            look: dict[str, Any] = {"color": f"C{k}", "label": series.label}
            hollow = self.kind == "points" or k // len(MARKERS) % 2
            points: dict[str, Any] = {"marker": MARKERS[k % len(MARKERS)], "ms": 4, "mfc": "none" if hollow else None}
            if self.kind == "bars":
                step = 0.8 / len(self.series)
                places = np.arange(len(heights)) + step * (k - (len(self.series) - 1) / 2)
                hatch = _HATCHES[k % len(_HATCHES)]
                axes.barh(places, heights, step, xerr=np.nan_to_num(ends), hatch=hatch, edgecolor="black", **look)
                axes.set_yticks(np.arange(len(heights)), [str(x) for x in series.x])
            elif self.kind == "points":
                axes.plot(series.x, heights, ls="", rasterized=len(heights) > _MANY, **points, **look)
            else:
                style = STYLES[k % len(STYLES)]
                axes.errorbar(series.x, heights, np.nan_to_num(ends), ls=style, capsize=2, **points, **look)
        if self.x_log:
            axes.set_xscale("log", base=10 if self.diagonal else 2)
        if self.y_log:
            axes.set_yscale("log")
        if self.diagonal:
            corners = np.quantile(np.concatenate([series.x for series in self.series]), (0, 1))
            axes.plot(corners, corners, color="black", lw=0.8)
        axes.set(title=self.title, xlabel=self.x_label, ylabel=self.y_label)
        if len(self.series) > 1:
            picture.legend(loc="outside right upper", fontsize=8)
        return picture

    def _repr_svg_(self) -> str:
        buffer = io.StringIO()
        self.draw().savefig(buffer, format="svg")
        return buffer.getvalue()


def _estimate(value: float | Estimate) -> Estimate:
    return value if isinstance(value, Estimate) else Estimate(value=float(value))


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the analysis of one experiment returns.

    Attributes:
        tables: in the order of reading.
        figures: one for each claim.
        ratios: the few numbers that say it all, by name.
        notes: sentences: what the figures say, and what they cannot.
    """

    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    ratios: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the measurements of a study cost, those from earlier runs included.

    Attributes:
        measured: how many there are.
        reused: how many of them an earlier run had stored.
        seconds: that all of them took.
        input_tokens: that models read, as they report it.
        output_tokens: that models wrote.
    """

    measured: int = 0
    reused: int = 0
    seconds: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0

    def __str__(self) -> str:
        """Return one sentence."""
        return (
            f"{self.measured} measurements ({self.reused} from an earlier run) took {self.seconds:,.0f} s, "
            f"{self.input_tokens:,} tokens read and {self.output_tokens:,} written."
        )


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The findings of one experiment, ready to be read, plotted or passed on.

    Attributes:
        experiment: its name.
        claim: what it examines, in a sentence.
        findings: tables, figures, ratios and notes.
        cost: of the measurements.
    """

    experiment: str
    claim: str
    findings: Findings
    cost: Cost

    @property
    def json_line(self) -> str:
        """`{"experiment": name, "ratios": {...}}` in one line; a ratio that is no number is null."""
        ratios = {name: value if math.isfinite(value) else None for name, value in self.findings.ratios.items()}
        return json.dumps({"experiment": self.experiment, "ratios": ratios})

    def __str__(self) -> str:
        """Return claim, tables, notes, cost and the line of JSON."""
        findings = self.findings
        parts = (self.claim, *map(str, findings.tables), "\n".join(findings.notes), str(self.cost), self.json_line)
        return "\n\n".join(part for part in parts if part)

    def to_markdown(self) -> str:
        """Return the same in Markdown, with links to the figures that `save` writes beside it."""
        findings = self.findings
        pictures = (f"![{figure.title}]({figure.name}.svg)" for figure in findings.figures)
        parts = (
            f"# {self.experiment}", self.claim, *(table.to_markdown() for table in findings.tables), *pictures,
            *findings.notes, str(self.cost), f"```json\n{self.json_line}\n```",
        )  # fmt: skip
        return "\n\n".join(parts) + "\n"

    def to_frame(self) -> "pd.DataFrame":
        """Return the rows of all tables as one pandas DataFrame, whose first column `table` is the title.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        frames = [table.to_frame() for table in self.findings.tables]
        import pandas as pd

        for table, frame in zip(self.findings.tables, frames, strict=True):
            frame.insert(0, "table", table.title)
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def save(self, folder: Path) -> list[Path]:
        """Write `NAME.md`, `NAME.json` and an SVG and a PNG of every figure, and return their paths.

        Raises:
            MissingDependencyError: matplotlib is not installed.
        """
        folder.mkdir(parents=True, exist_ok=True)
        text, line = folder / f"{self.experiment}.md", folder / f"{self.experiment}.json"
        text.write_text(self.to_markdown(), encoding="utf-8")
        line.write_text(self.json_line + "\n", encoding="utf-8")
        written = [text, line]
        for figure in self.findings.figures:
            picture = figure.draw()
            for kind in ("svg", "png"):
                written.append(folder / f"{figure.name}.{kind}")
                picture.savefig(written[-1], dpi=120)
        return written
