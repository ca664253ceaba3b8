"""Measurements on disk: arrays in one SQLite file, keyed by a hash of all that they depend on."""

import hashlib
import io
import json
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from langchain_core.messages.ai import UsageMetadata

from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.experiments.results import Cost

__all__ = ["Arrays", "Store"]

Arrays = Mapping[str, npt.NDArray[Any]]
_TABLE = """CREATE TABLE IF NOT EXISTS measurements (
    key TEXT PRIMARY KEY, depends_on TEXT NOT NULL, arrays BLOB NOT NULL, seconds REAL NOT NULL,
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL)"""


class Store:
    """Keeps what was measured. Each measurement is written as soon as it is made, so a killed run loses at most one.

    Args:
        path: the SQLite file, which is made where there is none; None keeps everything in memory.

    Attributes:
        cost: of what was asked for so far.

    Raises:
        ConfigurationError: the file is no store.

    >>> store = Store(None)
    >>> measure = lambda: ({"lengths": np.array([3, 4])}, None)
    >>> for _ in range(2):
    ...     store.get({"text": "abc"}, measure)["lengths"].tolist(), store.cost.reused
    ([3, 4], 0)
    ([3, 4], 1)
    """

    def __init__(self, path: Path | None) -> None:
        self.cost = Cost()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._file = sqlite3.connect(":memory:" if path is None else path, timeout=60.0)
            with self._file:
                self._file.execute(_TABLE)
        except sqlite3.Error as error:
            raise ConfigurationError(f"{path} is not a file of measurements: {error}.") from error

    def get(
        self, depends_on: Mapping[str, Any], measure: Callable[[], tuple[Arrays, UsageMetadata | None]]
    ) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays of a measurement, which is made where the file does not hold it.

        Args:
            depends_on: all that changes the result: JSON, or what has a stable `str`.
            measure: returns the arrays and the tokens used.
        """
        text = json.dumps(depends_on, sort_keys=True, default=str)
        key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        columns = "arrays, seconds, input_tokens, output_tokens"
        with closing(self._file.execute(f"SELECT {columns} FROM measurements WHERE key = ?", [key])) as rows:  # noqa: S608
            row = rows.fetchone()
        reused = row is not None
        if row is None:
            start = time.perf_counter()
            arrays, usage = measure()
            tokens = (usage["input_tokens"], usage["output_tokens"]) if usage else (0, 0)
            buffer = io.BytesIO()
            np.savez_compressed(buffer, allow_pickle=False, **arrays)
            row = (buffer.getvalue(), time.perf_counter() - start, *tokens)
            with self._file:
                self._file.execute("INSERT OR REPLACE INTO measurements VALUES (?, ?, ?, ?, ?, ?)", [key, text, *row])
        packed, seconds, read, written = row
        cost = self.cost
        self.cost = Cost(
            measured=cost.measured + 1,
            reused=cost.reused + reused,
            seconds=cost.seconds + seconds,
            input_tokens=cost.input_tokens + read,
            output_tokens=cost.output_tokens + written,
        )
        with np.load(io.BytesIO(packed), allow_pickle=False) as loaded:
            return dict(loaded)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()
