"""The files of deploy/: what reads them accepts them, they fit one another, and the page quotes them as they are."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from configparser import RawConfigParser

import pytest
import yaml
from fastapi.testclient import TestClient

from llm_auction_chain.cli import command_parser
from llm_auction_chain.server import Key, ServerConfig
from tests.documents import ROOT

FOLDER = ROOT / "deploy"
PAGE = ROOT / "docs/how_to/running_in_production.md"
VARIABLES = {"LLM_AUCTION_LEDGER": "sqlite://", "MODEL_URL": "http://model:8000/v1", "MODEL_KEY": "k"}
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))


@pytest.fixture(scope="module")
def config():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**VARIABLES, "SEED_SECRET": "s" * 64}.items():
            patch.setenv(name, value)
        return ServerConfig.load(FOLDER / "config.yaml")


def instructions():
    """Return the instructions of the Dockerfile: (name, arguments)."""
    text = re.sub(r"^#.*\n", "", (FOLDER / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line]


def variables(text):
    return set(re.findall(r"\{env: (\w+)\}", text))


def test_the_page_quotes_each_file_as_it_is():
    page = PAGE.read_text("utf-8")
    for path in set(FOLDER.iterdir()) - {FOLDER / "agents.yaml", FOLDER / "Dockerfile.dockerignore"}:
        assert f"\n{path.read_text('utf-8')}```\n" in page, path.name


def test_the_server_answers_from_its_file(config):
    client = TestClient(config.app())
    assert client.get("/readyz").status_code == 200
    assert client.get("/v1/models").status_code == 401
    assert config.models["auction"].billing.ledger is config.ledger


def test_no_key_of_the_file_is_one_that_exists(config):
    assert {key.digest for key in config.keys} == {f"sha256:{digit * 64}" for digit in "01"}
    assert {key.role for key in config.keys} <= {"client", "operator"}
    assert isinstance(config.keys[0], Key)


def test_the_variables_of_the_file_are_those_that_compose_and_systemd_set():
    needed = variables((FOLDER / "config.yaml").read_text("utf-8"))
    assert needed == {*VARIABLES, "SEED_SECRET"}
    assert set(COMPOSE["services"]["auction"]["environment"]) == needed
    assert all(name in (FOLDER / "llm-auction.service").read_text("utf-8") for name in needed)


def test_whatever_stops_the_server_waits_longer_than_a_request_takes(config):
    unit, nginx = ((FOLDER / name).read_text("utf-8") for name in ("llm-auction.service", "nginx.conf"))
    assert int(re.search(r"TimeoutStopSec=(\d+)", unit)[1]) > config.limits.timeout
    assert int(re.search(r"proxy_read_timeout (\d+)s", nginx)[1]) > config.limits.timeout
    assert int(COMPOSE["services"]["auction"]["stop_grace_period"].removesuffix("s")) > config.limits.timeout
    assert int(re.search(r"client_max_body_size (\d+)m", nginx)[1]) << 20 == config.limits.body_bytes


def test_commands_of_the_image_and_of_the_service_are_commands():
    (entry,) = (yaml.safe_load(one[1]) for one in instructions() if one[0] == "ENTRYPOINT")
    (command,) = (yaml.safe_load(one[1]) for one in instructions() if one[0] == "CMD")
    options = command_parser().parse_args([*entry, *command][1:])
    assert options.config in [one.split(":")[1] for one in COMPOSE["services"]["auction"]["volumes"]]
    unit = (FOLDER / "llm-auction.service").read_text("utf-8")
    words = shlex.split(re.search("^ExecStart=(.+)$", unit, re.MULTILINE)[1])
    assert command_parser().parse_args(words[1:]).proxy == "127.0.0.1"


def test_the_image_runs_without_root_and_reports_its_health():
    names = [name for name, *_ in instructions()]
    final = instructions()[len(names) - 1 - names[::-1].index("FROM") :]
    users = [arguments for name, arguments in final if name == "USER"]
    assert users
    assert all(user.isdigit() and int(user) > 0 for user in users)
    (health,) = (arguments for name, arguments in final if name == "HEALTHCHECK")
    compile(yaml.safe_load(health.partition("CMD ")[2])[2], "HEALTHCHECK", "exec")


def test_the_image_is_built_from_what_the_repository_has():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    shown = re.findall("^!(.+)$", (FOLDER / "Dockerfile.dockerignore").read_text("utf-8"), re.MULTILINE)
    copies = [one[1].split()[:-1] for one in instructions() if one[0] == "COPY" and "--from" not in one[1]]
    assert sorted(shown) == sorted(source.removeprefix("./") for sources in copies for source in sources)
    assert all((ROOT / source).exists() for source in shown)
    for _, arguments in instructions():
        for extras in re.findall(r"'\.\[([\w,]+)\]'", arguments):
            assert set(extras.split(",")) <= set(project["optional-dependencies"])
    torch = re.search(r"torch==[\d.]+", (FOLDER / "Dockerfile").read_text("utf-8"))[0]
    assert torch in (ROOT / "Makefile").read_text("utf-8")


def test_compose_shows_the_server_to_its_machine_only_and_the_ledger_to_nothing():
    services = COMPOSE["services"]
    assert services["auction"]["ports"] == ["127.0.0.1:8000:8000"]
    assert all("ports" not in services[name] for name in ("ledger", "model"))
    assert services["ledger"]["networks"] == ["inside"]
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    assert services["auction"]["read_only"]
    assert services["auction"]["cap_drop"] == ["ALL"]
    for name, condition in services["auction"]["depends_on"].items():
        assert condition == {"condition": "service_healthy"}
        assert services[name]["healthcheck"]["test"]


def test_no_password_is_in_a_file_and_a_missing_one_is_an_error():
    for service in COMPOSE["services"].values():
        for name, value in service.get("environment", {}).items():
            if any(word in name for word in ("PASSWORD", "KEY", "SECRET", "LEDGER")):
                assert re.search(r"\$\{\w+:\?\}", value), name


def test_systemd_accepts_the_service(tmp_path):
    text = (FOLDER / "llm-auction.service").read_text("utf-8")
    parser = RawConfigParser(strict=False)
    parser.optionxform = str
    parser.read_string(text)
    service = parser["Service"]
    assert (service["DynamicUser"], service["ProtectSystem"], service["NoNewPrivileges"]) == ("yes", "strict", "yes")
    if tool := shutil.which("systemd-analyze"):
        (tmp_path / "llm-auction.service").write_text(text.replace("/opt/llm-auction/bin/llm-auction", sys.executable))
        command = [tool, "verify", "--man=no", str(tmp_path / "llm-auction.service")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        assert (done.returncode, done.stderr) == (0, "")


def test_streams_pass_the_proxy_unbuffered_and_clients_cannot_forge_their_address():
    text = (FOLDER / "nginx.conf").read_text("utf-8")
    for line in ("proxy_buffering off;", "proxy_set_header X-Forwarded-For $remote_addr;", "proxy_http_version 1.1;"):
        assert line in text
    assert text.count("{") == text.count("}")


def test_alerts_are_about_metrics_that_the_server_has(config):
    app = config.model_copy(update={"keys": None}).app()
    client = TestClient(app)
    client.get("/healthz")
    names = set(re.findall(r"^# TYPE (\w+)", client.get("/metrics").text, re.MULTILINE))
    rules = yaml.safe_load((FOLDER / "alerts.yaml").read_text("utf-8"))["groups"][0]["rules"]
    used = {name.removesuffix("_bucket") for rule in rules for name in re.findall(r"llm_auction_\w+", rule["expr"])}
    assert used
    assert used <= names
    (scrape,) = yaml.safe_load((FOLDER / "prometheus.yaml").read_text("utf-8"))["scrape_configs"]
    assert f'job="{scrape["job_name"]}"' in rules[0]["expr"]
