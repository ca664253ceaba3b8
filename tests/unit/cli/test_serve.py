"""`llm-auction serve`, `playground` and `keys`: what they check, what they serve, and what they print."""

import errno
import json
import os
import pickle
import signal
import socket
import subprocess
import sys

import pytest
import uvicorn
import yaml
from fastapi.testclient import TestClient
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from llm_auction_chain import Ledger
from llm_auction_chain.cli import main, serve
from llm_auction_chain.server import Key
from llm_auction_chain.server.access import Access
from llm_auction_chain.server.config import ServerConfig
from llm_auction_chain.testing import MarkovChatModel

BODY = {"model": "llm-auction", "messages": [{"role": "user", "content": "Say something"}]}


class Local(MarkovChatModel):
    """A model that says when its weights are loaded."""

    model: str | None = "folder"

    def load(self):
        sys.stderr.write("loaded\n")


@pytest.fixture
def start(monkeypatch, capsys):
    """Start a server in this process, up to the moment in which it would answer; return what it would run."""

    def start(*arguments, model=MarkovChatModel, command="serve"):
        monkeypatch.setattr(serve, "model_by_name", lambda name, **settings: model())
        servers = []

        def run(server, sockets):
            assert sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            servers.append(server)

        monkeypatch.setattr(uvicorn.Server, "run", run)
        capsys.readouterr()
        code = main([command, "--port", "0", *arguments])
        return code, servers[0] if servers else None, *capsys.readouterr()

    return start


@pytest.fixture
def file(tmp_path):
    """Write a file of a server with one model that no test calls, and return its path."""

    def write(**settings):
        path = tmp_path / "server.yaml"
        path.write_text(yaml.safe_dump({"models": {"tunes": {"model": "vllm:"}}, **settings}))
        return str(path)

    return write


def ask(server, **headers):
    client = TestClient(server.config.app, base_url="http://127.0.0.1")
    return client.post("/v1/chat/completions", json=BODY, headers=headers)


def test_without_arguments_the_demo_answers_callers_on_this_machine(start):
    code, server, out, _ = start()
    assert code == 0
    answer = ask(server).json()
    assert answer["choices"][0]["message"]["content"]
    assert set(answer["auction"]) == {"id", "sponsored", "sponsors", "disclosure"}
    url, models, example = (line.split(maxsplit=1 + line.startswith("base"))[-1] for line in out.splitlines())
    assert url.startswith("http://127.0.0.1:")
    assert models == "llm-auction"
    assert example.startswith(f"curl {url}/chat/completions -H 'Content-Type: application/json' -d '{{")


def test_a_sponsored_reply_says_so_without_any_setting(start, tmp_path):
    (tmp_path / "agents.yaml").write_text("- {name: B, reward: {regex: {pattern: b, value: 9.0}}}")
    _, server, *_ = start("--agents", str(tmp_path / "agents.yaml"), "--seed", "7")
    auction = ask(server).json()["auction"]
    assert (auction["sponsors"], auction["disclosure"]) == (["B"], "Sponsored by B.")


def test_the_line_to_try_is_a_request(start):
    _, server, out, _ = start()
    line = next(line for line in out.splitlines() if line.startswith("try"))
    words = subprocess.run(  # noqa: S603 - our own line
        ["/bin/sh", "-c", f"curl() {{ printf '%s\\n' \"$@\"; }}; {line.removeprefix('try')}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    body = json.loads(words[-1])
    assert TestClient(server.config.app, base_url="http://127.0.0.1").post(words[0], json=body).status_code == 200


def test_models_are_loaded_before_it_says_that_it_is_ready(start, monkeypatch):
    events = []
    monkeypatch.setattr(Local, "load", lambda self: events.append("loaded"))
    monkeypatch.setattr(serve, "_announce", lambda *_: events.append("ready"))
    start(model=Local)
    assert events == ["loaded", "ready"]


def test_uvicorn_believes_no_proxy_and_logs_no_requests_of_its_own(start):
    config = start()[1].config
    assert (config.proxy_headers, config.access_log, config.server_header) == (False, False, False)
    assert config.timeout_graceful_shutdown == 120
    config = start("--proxy", "10.0.0.7")[1].config
    assert (config.proxy_headers, config.forwarded_allow_ips) == (True, "10.0.0.7")


def test_the_time_to_drain_is_that_of_a_request(start, file):
    config = file(limits={"timeout": 70.5})
    assert start("--config", config)[1].config.timeout_graceful_shutdown == 71


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104 - it is refused
def test_it_listens_beyond_the_loopback_only_with_keys_or_where_that_is_the_wish(start, file, host):
    code, _, out, err = start("--host", host)
    assert (code, out) == (2, "")
    assert f"--host {host} lets other machines call, and the server has no keys." in err
    assert start("--host", host, "--no-keys")[0] == 0
    _, key = Key.new("client", name="web")
    assert start("--host", host, "--config", file(keys=[vars(key)]))[0] == 0


def test_the_settings_of_an_auction_reach_it(start, tmp_path):
    (tmp_path / "agents.yaml").write_text("- {name: B, reward: {regex: {pattern: b, value: 4.0}}}")
    ledger = f"sqlite:///{tmp_path}/billing.db"
    Ledger(ledger).deposit("B", 100)
    code, server, *_ = start("--agents", str(tmp_path / "agents.yaml"), "--candidates", "3", "--ledger", ledger)
    assert code == 0
    ask(server)
    assert Ledger(ledger).head().seq > 1


def test_the_playground_is_a_page_of_the_server_and_opens_in_a_browser(start, monkeypatch):
    opened = []
    monkeypatch.setattr(serve.webbrowser, "open", opened.append)
    code, server, out, _ = start("--open", command="playground")
    page = out.splitlines()[0].removeprefix("page").strip()
    assert (code, opened) == (0, [page])
    with TestClient(server.config.app, base_url="http://127.0.0.1") as client:
        assert "Auction playground" in client.get(page).text
    assert ask(server).status_code == 200
    start(command="playground")
    assert opened == [page]


def test_a_server_has_the_page_where_an_option_or_the_file_says_so_and_one_process(start, file):
    for settings, *arguments in (({"playground": True},), ({}, "--playground")):
        _, _, out, _ = start("--config", file(**settings), *arguments)
        assert out.startswith("page      http://127.0.0.1:")
    code, _, _, err = start("--playground", "--workers", "2")
    assert (code, "The playground keeps each visitor's auctions in one process." in err) == (2, True)


def test_a_file_has_models_of_its_own_and_excludes_the_options_of_an_auction(start, file):
    path = file()
    _, _, out, _ = start("--config", path)
    assert "models    tunes\n" in out
    for option in (["--tau", "4"], ["--ledger", "sqlite://"], ["--payment-rule", "proportional"]):
        code, _, _, err = start("--config", path, *option)
        assert (code, f"{option[0]} and --config exclude one another" in err) == (2, True)


def test_callers_without_a_key_are_refused_where_there_are_keys(start, file):
    text, key = Key.new("client", name="web")
    _, server, out, _ = start("--config", file(keys=[vars(key)]))
    assert '-H "Authorization: Bearer $KEY"' in out
    assert ask(server).status_code == 401
    assert ask(server, Authorization=f"Bearer {text}").status_code == 404  # it has no such model
    code, _, _, err = start("--config", file(keys=[vars(key)]), "--no-keys")
    assert (code, "--no-keys is for a server without keys" in err) == (2, True)


def test_a_port_in_use_is_said_before_a_model_loads(start):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, _, out, err = start("--port", str(port), model=Local)
    assert (code, out) == (1, "")
    assert err == f"llm-auction: {os.strerror(errno.EADDRINUSE)}: 127.0.0.1:{port}. Choose another with --port\n"


def test_a_ledger_that_does_not_exist_is_refused_and_not_created(start, tmp_path):
    code, server, _, err = start("--ledger", f"sqlite:///{tmp_path}/mistyped.db")
    assert (code, server) == (2, None)
    assert "mistyped.db') does not exist, so no owner has money. Check the URL" in err
    assert not (tmp_path / "mistyped.db").exists()


@pytest.mark.parametrize("arguments", [
    ["--workers", "0"], ["--host", ""], ["--port", "65536"], ["--host", "no such host."], ["--tau", "-1"],
    ["--candidates", "0"], ["--config", "none.yaml"], ["--agents", "none.yaml"], ["--ledger", "nonsense"],
    ["--proxy", "abc"],
])  # fmt: skip
def test_all_is_checked_before_a_model_loads(start, arguments):
    code, server, out, err = start(*arguments, model=Local)
    assert (code, server, out) == (2, None, "")
    assert "loaded" not in err


def test_sigterm_before_the_first_request_ends_it_and_what_was_set_before_is_back(start, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(serve, "_announce", lambda *_: signal.raise_signal(signal.SIGTERM))
    code, server, *_ = start()
    assert (code, server.should_exit) == (0, True)
    assert signal.getsignal(signal.SIGTERM) is before


def test_workers_get_the_options_and_one_secret_and_share_their_metrics(start, monkeypatch):
    supervisors = []

    def run(supervisor):
        assert os.path.isdir(os.environ["PROMETHEUS_MULTIPROC_DIR"])  # noqa: PTH112
        supervisors.append(supervisor)

    monkeypatch.setattr(Multiprocess, "run", run)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert start("--workers", "2", "--tau", "3")[0] == 0
    (supervisor,) = supervisors
    assert "PROMETHEUS_MULTIPROC_DIR" not in os.environ
    make = pickle.loads(pickle.dumps(supervisor.config.app))  # noqa: S301 - as it goes through the pipe
    (options,) = make.args
    config = serve._config(options)
    assert config.models["llm-auction"].tau == 3.0
    assert len(config.secret.get_secret_value()) > 40
    assert serve._config(options).secret == config.secret


def test_a_worker_that_cannot_start_says_so_and_stops_the_server(monkeypatch, tmp_path, capsys):
    (tmp_path / "server.yaml").write_text("models: {}")
    options = serve.Namespace(config=str(tmp_path / "server.yaml"), defaults={}, playground=False, no_keys=False)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        serve._app_of_worker(options)
    assert ended.value.code == STARTUP_FAILURE
    assert "models must be a mapping" in capsys.readouterr().err


def test_auctions_of_a_worker_that_was_killed_run_no_longer(monkeypatch, tmp_path):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    files = [tmp_path / f"gauge_livesum_{process}.db" for process in (ended.pid, os.getpid())]
    for path in files:
        path.touch()
    serve._forget_dead_workers()
    assert [path.exists() for path in files] == [False, True]


def test_a_key_is_printed_once_with_the_entry_that_the_file_has_for_it(capsys, file):
    assert main(["keys", "new", "--role", "owner", "--owner", "tune-group", "--name", "tunes"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    key, entry = first.removeprefix("key "), second.removeprefix("entry ")
    (loaded,) = ServerConfig.load(file(keys=yaml.safe_load(entry))).keys
    assert Access([loaded]).caller(f"Bearer {key.strip()}").owner == "tune-group"
    assert key.strip() not in entry


def test_each_new_key_has_a_name_of_its_own(capsys):
    entries = []
    for _ in range(2):
        assert main(["keys", "new", "--role", "client", "--format", "json"]) == 0
        entries.append(json.loads(capsys.readouterr().out)["entry"])
    assert entries[0]["name"] != entries[1]["name"]
    assert Access([Key(**entry) for entry in entries])


@pytest.mark.parametrize("arguments", [["--role", "owner"], ["--role", "client", "--owner", "tunes"]])
def test_only_the_key_of_an_owner_has_an_owner(capsys, arguments):
    assert main(["keys", "new", *arguments]) == 2
    assert "--owner belongs to --role owner" in capsys.readouterr().err


def test_without_the_extra_the_error_names_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve"]) == 2
    assert "pip install 'llm-auction-chain[server]'" in capsys.readouterr().err
