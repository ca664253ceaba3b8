"""The configuration file of a server: what it becomes, and what its errors say."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from llm_auction_chain import Agent, ChatTransformers, ChatVLLM, ConfigurationError, load_agents
from llm_auction_chain.auction.settings import AuctionSettings, Disclosure
from llm_auction_chain.server import access
from llm_auction_chain.server.config import ServerConfig
from llm_auction_chain.server.limits import Limits
from tests.documents import ROOT

AGENT = {"name": "A", "owner": "shop", "reward": {"mention": {"phrases": ["egg"], "value": 2.0}}}
DIGEST = f"sha256:{'0' * 64}"


@pytest.fixture
def load(tmp_path):
    """Return what a file with these settings holds."""

    def load(settings, name="server.yaml"):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        return ServerConfig.load(path)

    return load


def model(**settings):
    return {"models": {"auction": settings}}


def test_a_model_without_settings_is_an_auction_over_the_embedded_model_that_is_not_loaded_yet(load):
    config = load(model())
    auction = config.models["auction"]
    assert auction.model == ChatTransformers(temperature=0.5, dtype="float32")
    assert (auction.agents, config.ledger, config.keys, config.limits) == ((), None, None, Limits())


def test_the_settings_of_a_model_are_those_of_an_auction(load):
    config = load(
        model(
            agents=[AGENT],
            n_candidates=4,
            tau=2,
            payment_rule="influence",
            reward_timeout=3,
            report_cap=5,
            on_tool_calls="auction",
            sampling={"min_ess": 2.0},
            billing={"currency": "EUR"},
            disclosure={"text": "Sponsored by {sponsors}.", "place": "end"},
        )
    )
    auction = config.models["auction"]
    assert auction.agents == (Agent.from_dict(AGENT),)
    assert (auction.n_candidates, auction.tau, auction.payment_rule) == (4, 2.0, "influence")
    assert (auction.sampling.min_ess, auction.billing.currency) == (2.0, "EUR")
    assert auction.disclosure == Disclosure(text="Sponsored by {sponsors}.", place="end")


def test_a_model_is_a_name_or_a_name_with_settings_and_equal_ones_are_one_model(load, monkeypatch):
    monkeypatch.setenv("VLLM_KEY", "k")
    spec = {"name": "vllm:llama", "base_url": "http://gpu:8000/v1", "api_key": {"env": "VLLM_KEY"}}
    small, large, other = load(
        {
            "models": {
                "small": {"model": spec},
                "large": {"model": spec, "n_candidates": 32},
                "other": {"model": "vllm:"},
            }
        }
    ).models.values()
    assert small.model == ChatVLLM(model="llama", base_url="http://gpu:8000/v1", api_key="k")
    assert small.model is large.model
    assert other.model == ChatVLLM()


def test_paths_start_at_the_folder_of_the_file(load, tmp_path, monkeypatch):
    (tmp_path / "agents.json").write_text(json.dumps([AGENT]))
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir("/")
    settings = model(agents="agents.json", model={"name": "weights", "max_tokens": 5}, report_cap=1)
    config = load({**settings, "ledger": "sqlite:///billing.db"})
    auction = config.models["auction"]
    assert auction.agents == tuple(load_agents(tmp_path / "agents.json"))
    assert auction.model == ChatTransformers(model=str(tmp_path / "weights"), max_tokens=5)
    assert str(tmp_path / "billing.db") in repr(config.ledger)


def test_one_ledger_charges_for_all_models_and_keeps_the_replies_for_retries(load, monkeypatch):
    monkeypatch.setenv("LEDGER_URL", "sqlite://")
    settings = {"agents": [AGENT], "billing": {"currency": "EUR"}}
    config = load({"models": {"a": settings, "b": settings}, "ledger": {"env": "LEDGER_URL"}})
    assert config.models["a"].billing.ledger is config.models["b"].billing.ledger is config.ledger
    assert config.ledger.keep_replies
    ledger = load({**model(), "ledger": {"url": {"env": "LEDGER_URL"}, "scales": {"EUR": 2}, "hold_for": 90}}).ledger
    assert ledger.hold_for.total_seconds() == 90
    assert ledger.deposit("shop", "1", currency="EUR", key="k").entries[0].amount.as_tuple().exponent == -2


def test_keys_limits_and_the_secret_are_objects(load, monkeypatch):
    monkeypatch.setenv("SEEDS", "0123456789abcdef")
    entry = {"role": "owner", "name": "tunes", "owner": "tune-group", "digest": DIGEST}
    config = load({**model(), "keys": [entry], "limits": {"queue": 3}, "secret": {"env": "SEEDS"}})
    assert config.keys == (access.Key(**entry),)
    assert config.limits == Limits(queue=3)
    assert config.secret.get_secret_value() == "0123456789abcdef"
    assert "0123456789abcdef" not in repr(config)


@pytest.mark.parametrize(("settings", "message"), [
    ({"modles": {}}, "ServerConfig has no setting 'modles'. Did you mean 'models'?"),
    ({}, "ServerConfig needs a models."),
    ({"models": {}}, "models must be a mapping from model ids to the settings of auctions, got {}."),
    ({"models": [1]}, "models must be a mapping from model ids to the settings of auctions, got [1]."),
    ([1], "the file must be a mapping of settings, got 'list'."),
    (model(tau=-1), "models.auction: tau must be a number above 0,"),
    (model(n_candidate=3), "models.auction: AuctionRunnable has no setting 'n_candidate'. Did you mean 'n_cand"),
    (model(agents=3), "models.auction: agents must be the path of an agents file, or a list of agents, got 3."),
    (model(agents=[{**AGENT, "pays": 3}]), "models.auction: agents, agent 1, 'A': pays of 'A' must be True or"),
    (model(agents=[{"name": "A", "reward": "os:system"}]), "--allow-code"),
    (model(model={"name": "vllm:x", "base_url": "gpu"}), "models.auction: model: base_url must be a URL"),
    (model(model={"name": "vllm:x", "api_key": {"env": "NO_SUCH"}}), "the environment variable NO_SUCH is not set."),
    (model(billing={"ledger": "sqlite://"}), "models.auction: billing: the ledger is a setting of the whole file."),
    ({**model(), "ledger": "nonsense"}, "ledger: "),
    ({**model(), "ledger": {"url": "sqlite://", "scale": {}}}, "ledger: the ledger has no setting 'scale'."),
    ({**model(), "limits": {"queue": -1}}, "limits: queue must be a whole number of at least 0, got -1."),
    ({**model(), "keys": [{"role": "king", "name": "x", "digest": DIGEST}]}, "keys[0]: role must be 'client' or"),
    ({**model(), "keys": [{"role": "client", "name": "x"}]}, "keys[0]: a key needs a digest."),
    ({**model(), "keys": []}, "keys: The server has no keys"),
    ({**model(), "keys": 2 * [{"role": "client", "name": "x", "digest": DIGEST}]}, "keys: Two keys have the same"),
    (model(temperature=0.5), "temperature is of the model. Write model: {name: ..., temperature: ...}."),
    ({**model(), "cors_origins": "*"}, "cors_origins must be a list of texts, got '*'."),
    ({**model(), "secret": "short"}, "secret must be a text of at least 16 characters."),
])  # fmt: skip
def test_an_error_names_the_file_the_place_the_value_and_what_is_allowed(load, settings, message):
    with pytest.raises(ConfigurationError) as refused:
        load(settings)
    assert "server.yaml: " in str(refused.value)
    assert message in str(refused.value)


def test_no_error_shows_a_key_or_a_secret(load):
    key, _ = access.Key.new("client", name="web")
    for settings in (
        {"keys": [{"role": "client", "name": "web", "digest": key}]},
        {"keys": [key]},
        {"keys": key},
        {"secret": {"value": key}},
        {"secret": [key]},
    ):
        with pytest.raises(ConfigurationError) as refused:
            load({**model(), **settings})
        assert key not in str(refused.value)


def test_the_file_of_the_page_about_the_server_can_be_served(load, tmp_path, monkeypatch):
    page = (Path(__file__).parents[3] / "docs" / "how_to" / "server.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    monkeypatch.setenv("LEDGER_URL", "sqlite://")
    (tmp_path / "agents.yaml").write_text(yaml.safe_dump([AGENT]), encoding="utf-8")
    config = load(yaml.safe_load(block))
    assert config.app().title == "llm-auction"
    assert config.limits.auctions == 8


def test_a_file_may_name_code_only_where_it_says_so(load):
    settings = {"agents": [{"name": "A", "reward": "math:dist"}]}
    assert load(model(**settings, allow_code=True)).models["auction"].agents[0].name == "A"


@pytest.fixture(scope="module")
def fits():
    """Return whether settings fit the published schema."""
    schema = json.loads((ROOT / "docs/schemas/server-1.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema).is_valid


def test_the_example_of_the_page_fits_the_schema_and_is_read(fits, load, tmp_path, monkeypatch):
    page = (ROOT / "docs/how_to/server.md").read_text("utf-8")
    (example,) = (yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    (tmp_path / "agents.yaml").write_text(json.dumps([{**AGENT, "report_cap": 1.0}]))
    monkeypatch.setenv("LEDGER_URL", "sqlite://")
    config = load(example)
    assert fits(example)
    assert config.models.keys() == example["models"].keys()
    assert config.limits == Limits(**example["limits"])


def test_the_file_of_deploy_fits_the_schema(fits):
    assert fits(yaml.safe_load((ROOT / "deploy/config.yaml").read_text("utf-8")))


@pytest.mark.parametrize("settings", [
    {}, {"models": {}}, model(n_candidate=3), model(proposal="x"), model(billing={"ledger": "sqlite://"}),
    {**model(), "keys": [{"role": "king", "name": "x", "digest": DIGEST}]}, {**model(), "limit": {}},
])  # fmt: skip
def test_the_schema_refuses_what_the_reader_refuses(fits, load, settings):
    assert not fits(settings)
    with pytest.raises(ConfigurationError):
        load(settings)


def test_the_schema_has_every_setting_that_data_can_write(fits):
    schema = json.loads((ROOT / "docs/schemas/server-1.json").read_text("utf-8"))
    assert schema["properties"].keys() == ServerConfig.model_fields.keys()
    objects = {"proposal", "on_event"}
    assert (
        schema["$defs"]["Auction"]["properties"].keys() ^ {"allow_code"}
        == AuctionSettings.model_fields.keys() - objects
    )


def test_a_sponsored_reply_says_so_unless_the_file_turns_it_off(load):
    for settings, text in (
        ({}, "Sponsored by {sponsors}."),
        ({"disclosure": {"place": "end"}}, "Sponsored by {sponsors}."),
        ({"disclosure": "Ad"}, "Ad"),
        ({"disclosure": ""}, ""),
    ):
        config = load({"models": {"m": {"model": "vllm:", **settings}}})
        assert config.models["m"].disclosure.text == text
