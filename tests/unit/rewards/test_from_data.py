"""Ready-made rewards from plain data."""

import json
import re
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from llm_auction_chain import Agent, rewards
from llm_auction_chain.errors import ConfigurationError, MissingDependencyError
from llm_auction_chain.models.local.embeddings import StaticEmbeddings
from llm_auction_chain.rewards.from_data import REWARDS, reward_from_data, settings_of
from tests.unit.rewards.bidder import SECRET

EXAMPLES = {
    "click": "{value_per_click: 2.0, click_through: {mention: {phrases: [guitar], value: 0.5}}}",
    "embedding": "{description: guitar lessons, value: 2.0}",
    "judge": "{judge: 'openai:gpt-4o-mini', rubric: 'Does it help?', levels: ['no', 'yes']}",
    "length": "{target: 5, tolerance: 3, unit: characters}",
    "log_ratio": "{instructions: Praise drums., value: 0.5}",
    "mention": "{phrases: [guitar, piano], value: 2.0, at_most: 3}",
    "regex": "{pattern: '[a-z]+', timeout: 0.2}",
    "reward_model": "{model: my-reward-model, squash: none, label: 1}",
    "webhook": "{url: 'https://songbook.example/bid', secret: {env: WEBHOOK_SECRET_SONGBOOK}, timeout: 1.0}",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk")
    monkeypatch.setenv("WEBHOOK_SECRET_SONGBOOK", SECRET)


def read(text, *, allow_code=False):
    return reward_from_data(yaml.safe_load(text), "f.yaml, agent 1, 'A'", allow_code=allow_code)


def test_every_ready_made_reward_has_a_name_and_an_example():
    ready_made = {name for name in rewards.__all__ if name.endswith("Reward")} - {
        "Reward",
        "ParsedReward",
    }  # whose class and function are code
    assert {reward.__name__ for reward in REWARDS.values()} == ready_made
    assert EXAMPLES.keys() == REWARDS.keys()


@pytest.mark.parametrize("kind", REWARDS)
def test_data_makes_every_ready_made_reward_with_its_settings(kind):
    reward = read(f"{kind}: {EXAMPLES[kind]}")
    assert type(reward) is REWARDS[kind]
    for name, value in yaml.safe_load(EXAMPLES[kind]).items():
        if name not in ("click_through", "judge", "secret"):
            assert getattr(reward, name) == value


def test_data_names_what_python_passes_as_objects():
    assert read(f"click: {EXAMPLES['click']}").click_through == rewards.MentionReward(["guitar"], value=0.5)
    assert read(f"webhook: {EXAMPLES['webhook']}").secret == SECRET
    assert read("webhook: {url: 'https://b.example', secret: '" + SECRET + "'}").secret == SECRET
    judge = read(f"judge: {EXAMPLES['judge']}").judge
    assert isinstance(judge, ChatOpenAI)
    assert judge.model_name == "gpt-4o-mini"
    assert isinstance(read("embedding: {description: x}").embeddings, StaticEmbeddings)
    embeddings = read("embedding: {description: x, embeddings: 'openai:text-embedding-3-small'}").embeddings
    assert isinstance(embeddings, OpenAIEmbeddings)


@pytest.mark.parametrize(("text", "says"), [
    ("mention: {}", "mention needs phrases."),
    ("length: {}", "length needs target and tolerance."),
    ("embedding: {value: 2}", "embedding needs description."),
    ("mention: {phrases: [a], valu: 2}", "mention has no setting 'valu'. It has phrases, value, at_most."),
    ("log_ratio: {instructions: x, scorer: y}", "log_ratio has no setting 'scorer'."),
    ("webhook: {url: 'https://b.example', secret: s, tls: y}", "webhook has no setting 'tls'."),
    ("mention: {phrases: a}", "MentionReward.phrases must be a list of at least one phrase, got 'a'."),
    ("judge: {judge: 3, rubric: x}", "judge: judge must be a text that is not blank, got 3."),
    ("judge: {judge: 'nobody:model', rubric: x}", "judge: judge: The model 'nobody:model' could not be set up: "),
    ("judge: {judge: folder, rubric: x}", "JudgeReward.judge must be a chat model with structured output"),
    ("embedding: {description: x, embeddings: 'nobody:model'}", "embedding: embeddings: The model 'nobody:model'"),
    ("click: {value_per_click: 1, click_through: {mentio: {}}}", "click: click_through has no setting 'mentio'."),
    ("click: {value_per_click: 1, click_through: 0.5}", "click: click_through is one of embedding, "),
    ("&a {click: {value_per_click: 1, click_through: *a}}", "click: click_through has no setting 'click'."),
    ("webhook: {url: 'https://b.example', secret: {env: OPENAI_API_KEY}}", "that begins with WEBHOOK_SECRET"),
    ("webhook: {url: 'https://b.example', secret: {env: WEBHOOK_SECRET_2}}", "WEBHOOK_SECRET_2 is not set."),
])  # fmt: skip
def test_an_error_names_the_place_the_reward_and_the_setting(text, says):
    with pytest.raises(ConfigurationError) as caught:
        read(text)
    assert str(caught.value).startswith("f.yaml, agent 1, 'A': ")
    assert says in str(caught.value)


@pytest.mark.parametrize("text", [
    "webhook: {url: 'http://b.example', secret: s, allow_http: true}",
    "webhook: {url: 'https://b.example', secret: s, allow_private: true}",
    "reward_model: {model: m, trust_remote_code: true}",
    "'math:dist'",
])  # fmt: skip
def test_data_opens_the_network_and_runs_code_only_if_it_is_trusted(text):
    with pytest.raises(ConfigurationError, match=r"If you trust (it|the file), give --allow-code, or allow_code=True"):
        read(text)
    assert read(text, allow_code=True)


@pytest.mark.parametrize("text", [
    "webhook: {url: 'https://b.example', secret: {swordfish: swordfish}}",
    "webhook: {url: 'ftp://b.example', secret: swordfish}",
    "webhook: {secret: swordfish}",
])  # fmt: skip
def test_no_error_shows_a_secret(text):
    with pytest.raises(ConfigurationError) as caught:
        read(text.replace("{swordfish: swordfish}", "{env: swordfish}"))
    assert "swordfish" not in str(caught.value)


def test_a_package_that_is_missing_is_named_with_the_place(monkeypatch):
    monkeypatch.setitem(sys.modules, "regex", None)
    with pytest.raises(MissingDependencyError, match=r"f.yaml, agent 1, 'A': regex is not installed"):
        read("regex: {pattern: a}")
    with pytest.raises(MissingDependencyError, match=r"f.yaml, agent 1, 'A': judge: judge: .*langchain-cohere"):
        read("judge: {judge: 'cohere:command', rubric: x}")


@pytest.fixture(scope="module")
def fits():
    """Return whether data fits the published schema of an agents file."""
    path = Path(__file__).parents[3] / "docs/schemas/agents-1.json"
    schema = json.loads(path.read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema).is_valid


@pytest.mark.parametrize("kind", REWARDS)
def test_the_published_schema_knows_every_reward_and_its_settings(fits, kind):
    settings = yaml.safe_load(EXAMPLES[kind])
    assert fits([{"name": "A", "reward": {kind: settings}}])
    assert fits({"agents": [{"name": "A", "reward": {kind: settings}, "owner": "O", "pays": False}]})
    assert not fits([{"name": "A", "reward": {kind: {**settings, "bid": 1}}}])
    assert not fits([{"name": "A", "reward": {kind: {}}}])


def test_the_examples_of_the_documents_fit_the_schema_and_are_read(fits, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("WEBHOOK_SECRET_SONGBOOK", "s" * 32)
    kinds = set()
    for page in ("how_to/agents.md", "reference/agents_file.md"):
        document = (Path(__file__).parents[3] / "docs" / page).read_text("utf-8")
        for example in re.findall(r"```yaml\n(.*?)```", document, re.DOTALL):
            data = yaml.safe_load(example)
            assert fits(data)
            agents = data["agents"] if isinstance(data, dict) else data
            assert [Agent.from_dict(agent).name for agent in agents] == [agent["name"] for agent in agents]
            kinds |= {kind for agent in agents for kind in agent["reward"]}
    assert kinds == set(REWARDS)


def test_the_page_of_agents_files_has_every_key_under_its_reward():
    page = (Path(__file__).parents[3] / "docs/reference/agents_file.md").read_text("utf-8")
    sections = {part.split("\n")[0]: part for part in page.split("\n## ")}
    for kind, keys in {"Agent": Agent.__dataclass_fields__, **{kind: settings_of(kind) for kind in REWARDS}}.items():
        assert [key for key in keys if f"| `{key}` |" not in sections[kind]] == []


def test_the_published_schema_fits_the_demo_and_refuses_what_the_reader_refuses(fits):
    demo = Path(rewards.__file__).parents[1] / "agents.yaml"
    assert fits(yaml.safe_load(demo.read_text("utf-8")))
    assert fits([{"name": "A", "reward": "my.module:function"}])
    for text in ("agents: []\ntau: 4", "- {name: A}", "- {name: A, reward: len}", "- {name: A, reward: {}}", "- 3",
                 "- {name: A, reward: {mention: {phrases: [a]}, length: {target: 1, tolerance: 1}}}"):  # fmt: skip
        assert not fits(yaml.safe_load(text))
