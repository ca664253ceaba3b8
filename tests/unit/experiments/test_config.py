"""Configurations of experiments are frozen and checked."""

import pytest
from pydantic import ValidationError

from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.experiments.config import ExperimentConfig


def test_lists_become_tuples_of_checked_items():
    config = ExperimentConfig(experiment="users", taus=[1, 2.5], seeds=range(3), families="mentions")
    assert (config.taus, config.seeds, config.families) == ((1.0, 2.5), (0, 1, 2), ("mentions",))


def test_a_configuration_cannot_be_changed_in_place():
    config = ExperimentConfig(experiment="users")
    with pytest.raises(ValidationError, match="frozen"):
        config.tau = 2.0
    assert config.changed(tau=2.0).tau == 2.0
    assert config.tau == 1.0


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"experiment": "wealth"}, "experiment must be 'convergence' or"),
        ({"tau": 0}, "tau must be a number above 0, got 0"),
        ({"taus": (1.0, -1.0)}, "taus must be a number above 0"),
        ({"n_candidates": (0,)}, "n_candidates must be a whole number of at least 1"),
        ({"payment_rules": ("second price",)}, "payment_rules must be 'expected' or"),
        ({"seeds": ()}, "seeds must be a list of at least one"),
        ({"seed": 1}, "has no setting 'seed'. Did you mean 'seeds'"),
    ],
)
def test_a_wrong_setting_is_named(settings, match):
    with pytest.raises(ConfigurationError, match=match):
        ExperimentConfig(**{"experiment": "users", **settings})
