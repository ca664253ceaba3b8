"""Every run tries the same examples; `HYPOTHESIS_PROFILE=explore pytest tests/laws` tries new ones."""

import os
import random
import secrets
import tempfile
from pathlib import Path

import pytest
import trustme
from hypothesis import settings

# torch's threads wait for each other longer than these tests compute, ten times as long on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_configure(config):
    """Have clients of HTTP trust an authority of this run's own: to read the world's takes each a twentieth second."""
    folder = tempfile.TemporaryDirectory()
    config.add_cleanup(folder.cleanup)
    authority = Path(folder.name) / "authority.pem"
    trustme.CA().cert_pem.write_to_path(authority)
    os.environ["SSL_CERT_FILE"] = str(authority)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Have what takes a fresh seed take the test's own, the same in every run."""
    rng = random.Random(item.nodeid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secrets, "randbits", rng.getrandbits)
        patch.setattr(secrets, "token_hex", lambda size=32: rng.randbytes(size).hex())
        return (yield)


@pytest.fixture(scope="session")
def seven_words(tmp_path_factory):
    """The folder of a model small enough to list all its replies."""
    from tests.tiny import save_seven_words

    return save_seven_words(tmp_path_factory.mktemp("seven-words"))
