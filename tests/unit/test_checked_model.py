"""Settings whose errors name the setting."""

from functools import partial
from typing import Any, ClassVar

import pytest

from llm_auction_chain.checked_model import CheckedModel
from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.validators import whole_number


class Settings(CheckedModel):
    checks: ClassVar[dict[str, Any]] = {"count": partial(whole_number, least=1)}

    count: int
    name: str = ""


@pytest.mark.parametrize(("settings", "message"), [
    ({}, "Settings needs a count."),
    ({"count": 0}, "count must be a whole number of at least 1, got 0."),
    ({"count": 1, "name": 2}, "name: Input should be a valid string, got 2."),
    ({"count": 1, "nam": "x"}, "Settings has no setting 'nam'. Did you mean 'name'?"),
    ({"coun": 1}, "Settings has no setting 'coun'. Did you mean 'count'?"),
    ({"count": 1, "zzz": "x"}, "Settings has no setting 'zzz'. It has count, name."),
])  # fmt: skip
def test_an_error_names_the_setting(settings, message):
    with pytest.raises(ConfigurationError) as refused:
        Settings(**settings)
    assert str(refused.value) == message
