"""`llm-auction serve`, `playground` and `keys`: auctions behind a URL or on a web page, and who may call them."""

import ipaddress
import json
import logging
import os
import secrets
import shlex
import signal
import socket
import sys
import warnings
import webbrowser
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from llm_auction_chain.cli import fail, printable_text, show_logs
from llm_auction_chain.cli.run import DEFAULT_QUESTION, add_settings, checked_auction, load_weights, progress_bars
from llm_auction_chain.cli.tables import add_format, write_json
from llm_auction_chain.errors import AuctionError, AuctionWarning, ConfigurationError, MissingDependencyError
from llm_auction_chain.models.by_name import EMBEDDED, model_by_name
from llm_auction_chain.validators import text, whole_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI
    from uvicorn import Config

    from llm_auction_chain.interfaces.runnable import AuctionRunnable
    from llm_auction_chain.server.config import ServerConfig

_METRICS = "PROMETHEUS_MULTIPROC_DIR"
_PATIENCE = 30  # seconds that a worker may be silent: it imports and loads much


def add_serve(commands: Any) -> None:
    """Add the commands that serve to those of the parser."""
    serve = commands.add_parser(
        "serve",
        help="answer in the wire formats of OpenAI, each reply drawn by an auction",
        description="Serves auctions over HTTP. Any client of OpenAI's API talks to them once its base URL is the one "
        "that the command prints. Without arguments it has the demo's agents and the embedded model, for callers on "
        "this machine. SIGTERM ends it: requests that run get their replies. SIGHUP makes the workers, if there are "
        "several, read the file of --config again, one after another. Exit code 1: the port is in use.",
    )
    about = "have the page /playground, too; where there are keys, it asks for an operator's"
    serve.add_argument("--playground", action="store_true", help=about)
    serve.set_defaults(open=False)
    playground = commands.add_parser(
        "playground",
        help="show a web page on which you run auctions and see all of them",
        description="Serves a web page, and prints its URL: ask a question, edit the agents, move tau, and see the "
        "candidates, their probabilities and the payments. Without arguments it has the demo's agents and the embedded "
        "model. It is `llm-auction serve --playground`, so clients can call it, too.",
    )
    playground.add_argument("--open", action="store_true", help="open the page in a browser")
    playground.set_defaults(playground=True)
    for command in (serve, playground):
        _add_options(command)


def add_keys(commands: Any) -> None:
    """Add the command to those of the parser."""
    description = "Keys of a server. Its file has their digests, never the keys."
    keys = commands.add_parser("keys", help="make a key for a caller of a server", description=description)
    inner = keys.add_subparsers(dest="keys_command", required=True, metavar="COMMAND")
    new = inner.add_parser(
        "new",
        help="print a new key, once, and its entry in the file of a server",
        description="Prints a new key, and the entry to write under `keys` in the file of `llm-auction serve --config "
        "FILE`. Hand the key to its holder: nothing can print it again.",
    )
    about = (
        "what its holder may do: a client asks for replies, an owner reads views of its own auctions, an operator all"
    )
    new.add_argument("--role", required=True, choices=("client", "owner", "operator"), help=about)
    new.add_argument("--name", metavar="N", help="name of the holder, in logs; each key has its own (a random one)")
    new.add_argument("--owner", metavar="O", default="", help="account of an owner")
    new.set_defaults(do=_new_key)
    add_format(new)


def _add_options(command: ArgumentParser) -> None:
    """Add the settings of an auction, which are absent where they are not given, and those of the server."""
    others = {action.dest for action in command._actions}  # noqa: SLF001 - argparse has no other way to read them
    add_settings(command)
    command.add_argument("--ledger", metavar="URL", help="ledger that charges for the replies (none)")
    added = [action for action in command._actions if action.dest not in others]  # noqa: SLF001
    command.set_defaults(do=_serve, defaults={action.dest: action.default for action in added})
    for action in added:
        action.default = SUPPRESS
    about = "file with models, ledger, keys, limits and more, in place of all options above"
    command.add_argument("--config", metavar="FILE.yaml", help=about)
    command.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen on (127.0.0.1)")
    command.add_argument("--port", type=int, default=8000, metavar="P", help="port to listen on; 0 is any (8000)")
    command.add_argument("--workers", type=int, default=1, metavar="N", help="processes, each with its own models (1)")
    about = "answer callers on other machines without a key; else a server without keys answers this machine only"
    command.add_argument("--no-keys", action="store_true", help=about)
    about = "address of a reverse proxy, or several with commas, whose X-Forwarded headers are right (none)"
    command.add_argument("--proxy", metavar="ADDRESS", help=about)


def _serve(options: Namespace) -> int:
    whole_number("--workers", options.workers, least=1)
    config = _config(options)
    if config.playground and options.workers > 1:
        raise ConfigurationError("The playground keeps each visitor's auctions in one process. Leave out --workers.")
    if options.no_keys and config.keys:
        raise ConfigurationError("--no-keys is for a server without keys, and the file has some. Give one of them.")
    _check_ledger(config)
    _check_proxy(options.proxy)
    with ExitStack() as stack:
        stack.callback(_log_requests())
        listener = stack.enter_context(_listener(options, needs_loopback=not config.keys and not options.no_keys))
        if options.workers == 1:
            return _serve_alone(options, config, listener)
        if _METRICS not in os.environ:
            os.environ[_METRICS] = stack.enter_context(TemporaryDirectory(prefix="llm-auction-metrics-"))
            stack.callback(os.environ.pop, _METRICS)
        return _serve_with_workers(options, config, listener)


def _check_ledger(config: "ServerConfig") -> None:
    """Refuse a ledger that cannot be reached, or that does not exist: its URL may be mistyped."""
    exists = getattr(config.ledger, "exists", None)
    if exists and not exists():
        hint = "Check the URL; `llm-auction ledger deposit` creates a ledger."
        raise ConfigurationError(f"{config.ledger!r} does not exist, so no owner has money. {hint}")


def _check_proxy(addresses: str | None) -> None:
    try:
        for address in [] if addresses is None else addresses.split(","):
            ipaddress.ip_network(address.strip(), strict=False)
    except ValueError as error:
        message = f"--proxy must be IP addresses with commas between, got {addresses!r}."
        raise ConfigurationError(message) from error


def _config(options: Namespace) -> "ServerConfig":
    """Return what the file or the options say. All is checked; no model is loaded."""
    try:
        import uvicorn  # noqa: F401

        from llm_auction_chain.server.config import ServerConfig
        from llm_auction_chain.server.serving import MODEL_ID
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "prometheus_client", "starlette", "uvicorn"):
            raise
        message = "The server needs the server extra: pip install 'llm-auction-chain[server]'"
        raise MissingDependencyError(message) from error
    if options.config is None:
        auction = _auction(Namespace(**{**options.defaults, **vars(options)}))
        config = ServerConfig(models={MODEL_ID: auction}, ledger=auction.billing.ledger)
    elif settings := [name for name in options.defaults if hasattr(options, name)]:
        option = f"--{settings[0].replace('_', '-')}"
        raise ConfigurationError(f"{option} and --config exclude one another. Write the setting into the file.")
    else:
        config = ServerConfig.load(text("--config", options.config))
    secret = config.secret or getattr(options, "secret", None)
    return config.model_copy(update={"playground": config.playground or options.playground, "secret": secret})


def _auction(options: Namespace) -> "AuctionRunnable":
    """Return the auction of the options, with its model and its ledger."""
    from llm_auction_chain.auction.settings import Disclosure
    from llm_auction_chain.server.config import DISCLOSURE

    auction = checked_auction(options)
    sampling = {name: getattr(options, name) for name in ("temperature", "top_p") if getattr(options, name) is not None}
    settings = {**(EMBEDDED if options.model is None else {}), **sampling, "max_tokens": options.max_tokens}
    auction.model = model_by_name(options.model, **settings)
    auction.disclosure = Disclosure(text=DISCLOSURE)
    if options.ledger is not None:
        from llm_auction_chain.ledger import Ledger

        ledger = Ledger(text("--ledger", options.ledger), keep_replies=True)
        auction.billing = auction.billing.model_copy(update={"ledger": ledger})
    return auction


@contextmanager
def _listener(options: Namespace, *, needs_loopback: bool) -> Iterator[socket.socket]:
    """Bind a socket before anything is loaded. It listens when the server is ready."""
    where = text("--host", options.host), whole_number("--port", options.port, below=1 << 16)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(*where, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ConfigurationError(f"--host {options.host} is not an address: {error.strerror}.") from error
    if needs_loopback and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise ConfigurationError(
            f"--host {options.host} lets other machines call, and the server has no keys. Make some with `llm-auction "
            "keys new`, or let anyone call with --no-keys."
        )
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            message = f"{options.host}:{options.port}. Choose another with --port"
            raise OSError(error.errno, error.strerror, message) from error
        yield listener


def _serve_alone(options: Namespace, config: "ServerConfig", listener: socket.socket) -> int:
    from uvicorn import Server

    class Stopping(Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            """Close what open pages listen to, which never ends, and wait for all other requests."""
            for connection in [*self.server_state.connections]:
                if str((getattr(connection, "scope", None) or {}).get("path")).startswith("/playground"):
                    connection.transport.close()
            await super().shutdown(sockets)

    server = Stopping(_settings(options, config, config.app(open_to_all=options.no_keys)))
    _load(config)
    previous = signal.signal(signal.SIGTERM, server.handle_exit)
    try:
        listener.listen()
        url = _announce(listener, config)
        if options.open:
            webbrowser.open(f"{url}/playground")
        server.run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _serve_with_workers(options: Namespace, config: "ServerConfig", listener: socket.socket) -> int:
    """Serve with processes that share the socket. They get the options through a pipe, which nothing else can read."""
    from pydantic import SecretStr
    from uvicorn.config import STARTUP_FAILURE
    from uvicorn.supervisors import Multiprocess

    config.app(open_to_all=options.no_keys)  # checks what workers would fail at
    options.secret = SecretStr(secrets.token_urlsafe())  # where the file has none
    listener.listen()
    _announce(listener, config)
    sys.stderr.write(f"llm-auction: {options.workers} workers load the models; requests wait until one is ready\n")
    settings = _settings(options, config, partial(_app_of_worker, options), workers=options.workers, factory=True)
    supervisor = Multiprocess(settings, sockets=[listener])
    supervisor.run()
    return int(any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes))


def _settings(options: Namespace, config: "ServerConfig", app: Any, **more: Any) -> "Config":
    from uvicorn import Config

    return Config(
        app,
        access_log=False,
        forwarded_allow_ips=options.proxy,
        lifespan="on",
        log_config=None,
        proxy_headers=options.proxy is not None,
        server_header=False,
        timeout_graceful_shutdown=ceil(config.limits.timeout),
        timeout_worker_healthcheck=_PATIENCE,
        ws="none",
        **more,
    )


def _log_requests() -> "Callable[[], None]":
    """Log each request, and each warning once; return what undoes it.

    Why agents fail is not logged, as what they say may quote a prompt: an operator's answer has it.
    """
    levels = {"server": logging.INFO, "reports": logging.ERROR, "auction.result": logging.ERROR}
    loggers = {logging.getLogger(f"llm_auction_chain.{name}"): level for name, level in levels.items()}
    before = {logger: logger.level for logger in loggers}
    for logger, level in loggers.items():
        logger.setLevel(level)
    warnings.simplefilter("default", AuctionWarning)
    logging.captureWarnings(capture=True)

    def undo() -> None:
        logging.captureWarnings(capture=False)
        for logger, level in before.items():
            logger.setLevel(level)

    return undo


def _app_of_worker(options: Namespace) -> "FastAPI":
    """Return the application of one of several workers."""
    from uvicorn.config import STARTUP_FAILURE

    show_logs()
    _log_requests()
    _forget_dead_workers()
    try:
        config = _config(options)
        app = config.app(open_to_all=options.no_keys)
        _load(config, quiet=True)
    except AuctionError as error:
        sys.exit(fail(str(error), STARTUP_FAILURE))
    sys.stderr.write(f"llm-auction: worker {os.getpid()} is ready\n")
    return app


def _forget_dead_workers() -> None:
    """Remove what workers that were killed left in the metrics: auctions that run no longer."""
    from prometheus_client.multiprocess import mark_process_dead

    for path in Path(os.environ[_METRICS]).glob("gauge_live*.db"):
        process = path.stem.rpartition("_")[2]
        with suppress(PermissionError):  # it lives, under another user
            try:
                os.kill(int(process), 0)
            except ProcessLookupError:
                mark_process_dead(int(process))  # type: ignore[no-untyped-call]


def _load(config: "ServerConfig", *, quiet: bool = False) -> None:
    """Load the weights of all models that are on this machine."""
    from llm_auction_chain.candidates import chat_models_in

    models = [one for auction in config.models.values() for one in chat_models_in(auction.model)]
    with progress_bars(quiet=quiet) as bars:
        loading = bars.add_task("loading the model", total=len(models), rate="")
        for model in models:
            load_weights(model, bars, loading)
            bars.advance(loading)


def _announce(listener: socket.socket, config: "ServerConfig") -> str:
    """Print where the server is and what to try, and return its URL."""
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    body = {"model": next(iter(config.models)), "messages": [{"role": "user", "content": DEFAULT_QUESTION}]}
    key = ' -H "Authorization: Bearer $KEY"' if config.keys else ""
    curl = f"curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"
    lines = {"base URL": f"{url}/v1", "models": ", ".join(config.models), "try": curl}
    if config.playground:
        lines = {"page": f"{url}/playground", **lines}
    for name, line in lines.items():
        sys.stdout.write(f"{name:<8}  {printable_text(line)}\n")
    sys.stdout.flush()
    return url


def _new_key(options: Namespace) -> None:
    import yaml

    from llm_auction_chain.server.access import Key

    if bool(options.owner) != (options.role == "owner"):
        raise ConfigurationError("--owner belongs to --role owner: the account whose auctions the holder reads.")
    name = options.name or f"{options.owner or options.role}-{secrets.token_hex(4)}"
    key, stored = Key.new(options.role, name=name, owner=options.owner)
    entry = {name: value for name, value in vars(stored).items() if value}
    if options.format == "json":
        write_json({"key": key, "entry": entry})
    else:
        line = yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=10_000).strip()
        sys.stdout.write(f"key    {key}\nentry  - {line}\n")
