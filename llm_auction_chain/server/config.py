"""The configuration file of a server: what it serves, to whom, and within which limits."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import SecretStr, SkipValidation

from llm_auction_chain.agents import agents_from_data, load_agents, read_yaml
from llm_auction_chain.checked_model import CheckedModel
from llm_auction_chain.errors import ConfigurationError, MissingDependencyError
from llm_auction_chain.interfaces.runnable import AuctionRunnable
from llm_auction_chain.ledger import AuctionLedger
from llm_auction_chain.models.by_name import EMBEDDED, model_by_name
from llm_auction_chain.rewards.from_data import refuse_unknown
from llm_auction_chain.server.access import Access, Key
from llm_auction_chain.server.limits import Limits
from llm_auction_chain.validators import Check, choice, number, refuse, text

if TYPE_CHECKING:
    from fastapi import FastAPI
    from langchain_core.language_models import BaseChatModel

__all__ = ["DISCLOSURE", "LEDGER_SETTINGS", "ServerConfig"]

DISCLOSURE = "Sponsored by {sponsors}."  # where the file has no text
LEDGER_SETTINGS = ("url", "scales", "credit", "hold_for", "keep_receipts")
_OF_A_MODEL = ("temperature", "top_p", "max_tokens", "base_url", "api_key")
_SHORTEST_SECRET = 16  # characters
_FILE_OF_SQLITE = re.compile(r"(sqlite[^:]*:///)((?!/|:memory:|file:).+)")


def _strings(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise refuse(name, "a list of texts", value)
    return tuple(text(f"{name}[{index}]", one) for index, one in enumerate(value))


def _models(name: str, value: Any) -> Any:
    if not isinstance(value, Mapping) or not value:
        raise refuse(name, "a mapping from model ids to the settings of auctions", value)
    return value


class ServerConfig(CheckedModel, frozen=True):
    """What a server serves, to whom, and within which limits.

    `ServerConfig.load` reads it from a file, in which every value of a model, of the ledger or of `secret` may also be
    `{env: NAME}`: the value of an environment variable. Relative paths start at the file's folder.
    """

    checks: ClassVar[Mapping[str, Check]] = {
        "models": _models,
        "cors_origins": _strings,
        "playground": partial(choice, choices=(True, False)),
    }

    models: SkipValidation[Mapping[str, AuctionRunnable]]
    """The auctions, by the model ids that clients name."""
    ledger: SkipValidation[AuctionLedger | None] = None
    """Charges the owners of every auction. A file has its URL, or a mapping with its `url` and other settings."""
    keys: tuple[Key, ...] | None = None
    """Who may call; `llm-auction keys new` makes one. None serves callers on this machine only."""
    limits: Limits = Limits()
    """What the server accepts at most."""
    cors_origins: tuple[str, ...] = ()
    """Web origins whose pages may call the server, as in `https://chat.example.com`."""
    playground: bool = False
    """Whether the server has the page `/playground`. Where there are keys, it asks for an operator's."""
    secret: SecretStr | None = None
    """At least 16 characters. Servers with one secret repeat the reply of a seed that a client sends, and agents cannot
    predict it. None is a random one at every start."""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return the configuration that a YAML or JSON file holds. No model's weights are loaded.

        Raises:
            ConfigurationError: the file cannot be read, or a setting is unknown, missing, written twice or invalid; the
                message names the file and the setting.
            MissingDependencyError: a setting needs a package that is not installed.
        """
        data = read_yaml(Path(path), str(path))
        with _at(str(path)):
            return cls.model_validate(_objects(_mapping("the file", data), Path(path).parent))

    def app(self, *, open_to_all: bool = False) -> "FastAPI":
        """Return the application that serves this.

        Args:
            open_to_all: whether callers on other machines need no key.
        """
        from llm_auction_chain.server.app import create_app

        return create_app(
            self.models,
            keys=self.keys,
            limits=self.limits,
            cors_origins=self.cors_origins,
            secret=self.secret.get_secret_value() if self.secret else None,
            playground=self.playground,
            open_to_all=open_to_all,
        )


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Put the place of a setting in front of what errors say."""
    try:
        yield
    except (ConfigurationError, MissingDependencyError) as error:
        raise type(error)(f"{place}: {error}") from error


def _objects(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the settings with the objects that their data describes."""
    objects = dict(data)
    if (ledger := data.get("ledger")) is not None:
        with _at("ledger"):
            objects["ledger"] = _ledger(ledger, folder)
    if isinstance(data.get("models"), Mapping):
        auctions: dict[str, AuctionRunnable] = {}
        models: dict[str, BaseChatModel] = {}
        for name, settings in _mapping("models", data["models"]).items():
            with _at(f"models.{name}"):
                auctions[name] = _auction(settings, folder, objects.get("ledger"), models)
        objects["models"] = auctions
    if (keys := data.get("keys")) is not None:
        if not isinstance(keys, list):
            raise refuse("keys", "a list of keys", type(keys).__name__)
        objects["keys"] = tuple(_key(f"keys[{index}]", key) for index, key in enumerate(keys))
        with _at("keys"):
            Access(objects["keys"])
    if (limits := data.get("limits")) is not None:
        with _at("limits"):
            objects["limits"] = Limits.model_validate(_mapping("limits", limits))
    if (secret := data.get("secret")) is not None:
        objects["secret"] = _secret(_from_environment("secret", secret))
    return {name: value for name, value in objects.items() if value is not None}


def _auction(
    settings: Any, folder: Path, ledger: AuctionLedger | None, models: dict[str, "BaseChatModel"]
) -> AuctionRunnable:
    """Return an auction. `models` has those of earlier ones: equal settings share one model."""
    settings = _mapping("an auction", settings)
    if misplaced := [name for name in _OF_A_MODEL if name in settings]:
        raise ConfigurationError(f"{misplaced[0]} is of the model. Write model: {{name: ..., {misplaced[0]}: ...}}.")
    allow_code = choice("allow_code", settings.pop("allow_code", False), (True, False))
    agents = settings.get("agents") or []
    if isinstance(agents, str):
        settings["agents"] = load_agents(folder / text("agents", agents), allow_code=allow_code)
    elif isinstance(agents, list):
        settings["agents"] = agents_from_data(agents, "agents", allow_code=allow_code)
    else:
        raise refuse("agents", "the path of an agents file, or a list of agents", agents)
    billing = _mapping("billing", settings.get("billing") or {})
    if "ledger" in billing:
        raise ConfigurationError("billing: the ledger is a setting of the whole file. Write it beside `models`.")
    settings["billing"] = {**billing, "ledger": ledger}
    disclosure = settings.get("disclosure", {})
    if isinstance(disclosure, Mapping):
        settings["disclosure"] = {"text": DISCLOSURE, **disclosure}
    with _at("model"):
        settings["model"] = _model(settings.get("model"), folder, models)
    return AuctionRunnable(**settings)


def _model(spec: Any, folder: Path, models: dict[str, "BaseChatModel"]) -> "BaseChatModel":
    """Return the model of a name, or of a mapping with its name and other settings."""
    settings = _mapping("the model", spec if isinstance(spec, Mapping) else {"name": spec})
    settings = {name: _from_environment(name, value) for name, value in settings.items()}
    if (name := settings.pop("name", None)) is None:
        settings = {**EMBEDDED, **settings}
    elif (folder / text("name", name)).exists():
        name = str(folder / name)
    key = json.dumps([name, settings], sort_keys=True, default=str)
    if key not in models:
        models[key] = model_by_name(name, **settings)
    return models[key]


def _ledger(spec: Any, folder: Path) -> AuctionLedger:
    """Return the ledger of a URL, or of a mapping with its URL and other settings; it keeps the replies for retries."""
    from llm_auction_chain.ledger import Ledger

    settings = _mapping("the ledger", spec if isinstance(spec, Mapping) and "env" not in spec else {"url": spec})
    refuse_unknown(settings, LEDGER_SETTINGS, "the ledger")
    url = text("url", _from_environment("url", settings.get("url")))
    settings["url"] = _FILE_OF_SQLITE.sub(lambda match: f"{match[1]}{folder.absolute() / match[2]}", url)
    if "hold_for" in settings:
        settings["hold_for"] = timedelta(seconds=number("hold_for", settings["hold_for"], above=0, most=1e9))
    return Ledger(**settings, keep_replies=True)


def _key(name: str, data: Any) -> Key:
    """Return a key."""
    with _at(name):
        settings = _mapping("a key", data)
        refuse_unknown(settings, [field.name for field in fields(Key)], "a key")
        for needed in ("role", "name", "digest"):
            if needed not in settings:
                raise ConfigurationError(f"a key needs a {needed}. `llm-auction keys new` prints the whole entry.")
        return Key(**settings)


def _secret(value: Any) -> SecretStr:
    if not isinstance(value, str) or len(value.strip()) < _SHORTEST_SECRET:
        raise ConfigurationError(f"secret must be a text of at least {_SHORTEST_SECRET} characters.")
    return SecretStr(value)


def _mapping(name: str, value: Any) -> dict[str, Any]:
    """Return a mapping of settings as a dictionary. No message shows its values: one may be a secret."""
    if not isinstance(value, Mapping):
        raise refuse(name, "a mapping of settings", value if value is None else type(value).__name__)
    return {text(f"a name in {name}", key): one for key, one in value.items()}


def _from_environment(name: str, value: Any) -> Any:
    """Return a value, or that of the environment variable which `{env: NAME}` names."""
    if not isinstance(value, Mapping) or "env" not in value:
        return value
    variable = text(f"env of {name}", value["env"])
    if len(value) > 1:
        raise refuse(name, "a value, or {env: NAME} alone", [*value])
    if not os.environ.get(variable):
        raise ConfigurationError(f"{name}: the environment variable {variable} is not set.")
    return os.environ[variable]
