"""Files that a command writes: checked before the work begins, and written whole or not at all."""

import os
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, TYPE_CHECKING

from llm_auction_chain.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def whole_file(option: str, path: Path) -> "Iterator[IO[str]]":
    """Open a file that only this user can read, and put it at the path at the end, unless an error comes before.

    Until then it lies beside the path: a full disk or an interrupt leaves an earlier file there as it was.

    Raises:
        ConfigurationError: the path cannot be written, or is no file; the message names the option.
    """
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file():
            raise ConfigurationError(f"{option} {path} is not a file. Name a file.")
        file = NamedTemporaryFile(  # noqa: SIM115 - closed below
            "w", dir=target.parent, prefix=f".{target.name[:100]}.", delete=False, encoding="utf-8"
        )
    except OSError as error:
        raise ConfigurationError(f"{option} {path} cannot be written: {error.strerror}.") from error
    try:
        with file:
            yield file
        Path(file.name).replace(target)
    finally:
        Path(file.name).unlink(missing_ok=True)
