"""Every run tries the same examples; `HYPOTHESIS_PROFILE=explore pytest tests/laws` tries new ones."""

import os

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(scope="session")
def seven_words(tmp_path_factory):
    """The folder of a model small enough to list all its replies."""
    from tests.tiny import save_seven_words

    return save_seven_words(tmp_path_factory.mktemp("seven-words"))
