"""Ready-made rewards from plain data, as a YAML or JSON file holds them."""

import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields
from importlib import import_module
from typing import Any

from langchain_core.embeddings import Embeddings

from llm_auction_chain.errors import ConfigurationError, MissingDependencyError
from llm_auction_chain.models.by_name import embeddings_by_name, model_by_name
from llm_auction_chain.rewards.base import Reward
from llm_auction_chain.rewards.click import ClickReward
from llm_auction_chain.rewards.embedding import EmbeddingReward
from llm_auction_chain.rewards.judge import JudgeReward
from llm_auction_chain.rewards.log_ratio import LogRatioReward
from llm_auction_chain.rewards.reward_model import RewardModelReward
from llm_auction_chain.rewards.text import LengthReward, MentionReward, RegexReward
from llm_auction_chain.rewards.webhook import WebhookReward
from llm_auction_chain.validators import refuse, text

__all__ = ["FORMS", "REWARDS", "Form", "refuse_unknown", "required_settings", "reward_from_data", "settings_of"]

REWARDS: Mapping[str, type[Reward]] = {
    "click": ClickReward,
    "embedding": EmbeddingReward,
    "judge": JudgeReward,
    "length": LengthReward,
    "log_ratio": LogRatioReward,
    "mention": MentionReward,
    "regex": RegexReward,
    "reward_model": RewardModelReward,
    "webhook": WebhookReward,
}
"""The ready-made rewards by their names in data. The settings of each are those of its class."""

_SECRETS = "WEBHOOK_SECRET"
# Objects of Python that data cannot write.
_NOT_DATA = {("log_ratio", "scorer"), ("webhook", "tls")}
# What runs code of others, or opens the network of the platform.
_TRUSTED = ("allow_http", "allow_private", "trust_remote_code")


@dataclass(frozen=True, kw_only=True)
class Form:
    """How data writes a setting that is an object in Python.

    Attributes:
        read: from the place for errors, the value and whether code is allowed to the object.
        schema: the JSON Schema of what data writes.
        description: what data writes.
        required: whether the setting must be there.
    """

    read: Callable[[str, Any, bool], Any]
    schema: Mapping[str, Any]
    description: str
    required: bool = True


def reward_from_data(spec: Any, where: str, *, allow_code: bool, of: str = "reward") -> Any:
    """Return the reward that data describes: `{name: settings}`, or `package.module:function` if code is allowed.

    Args:
        spec: the data.
        where: the place of the data, for errors: a file and an agent.
        allow_code: whether data may name functions, whose modules are imported.
        of: the key that the data stands under.

    Raises:
        ConfigurationError: it describes no reward; the message names the place and the setting.
        MissingDependencyError: the reward needs a package that is not installed.

    >>> reward_from_data({"mention": {"phrases": ["guitar"], "value": 2.0}}, "agents.yaml, agent 1", allow_code=False)
    MentionReward(phrases=['guitar'], value=2.0, at_most=1)
    """
    kinds = [kind for kind in REWARDS if of == "reward" or kind != "click"]  # a file may refer to a part of itself
    if isinstance(spec, Mapping) and spec:
        refuse_unknown(spec, kinds, f"{where}: {of}")
        (kind, settings), *more = spec.items()
        if isinstance(settings, Mapping) and not more:
            return _ready_made(kind, settings, where, allow_code=allow_code)
    if isinstance(spec, str) and ":" in spec:
        return _function(spec, where, of, allow_code=allow_code)
    raise ConfigurationError(
        f"{where}: {of} is one of {', '.join(kinds)} with its settings, as in `mention: {{phrases: [guitar], "
        "value: 2.0}`, or `package.module:function` under --allow-code."
    )


def settings_of(kind: str) -> list[str]:
    """Return the settings that data may give a ready-made reward.

    >>> settings_of("log_ratio")
    ['instructions', 'value']
    """
    return [field.name for field in fields(_dataclass(kind)) if field.init and (kind, field.name) not in _NOT_DATA]


def required_settings(kind: str) -> list[str]:
    """Return the settings that data must give a ready-made reward.

    >>> required_settings("embedding")
    ['description']
    """
    without = [field.name for field in fields(_dataclass(kind)) if field.default is MISSING and field.init]
    return [name for name in without if (kind, name) not in FORMS or FORMS[kind, name].required]


def refuse_unknown(given: Collection[Any], names: Collection[str], subject: str) -> None:
    """Refuse keys that are misspelled or belong elsewhere.

    Raises:
        ConfigurationError: there is one.
    """
    if unknown := [key for key in given if key not in names]:
        raise ConfigurationError(f"{subject} has no setting {unknown[0]!r}. It has {', '.join(names)}.")


def _dataclass(kind: str) -> Any:
    return REWARDS[kind]


def _ready_made(kind: str, settings: Mapping[str, Any], where: str, *, allow_code: bool) -> Reward:
    refuse_unknown(settings, settings_of(kind), f"{where}: {kind}")
    if missing := [name for name in required_settings(kind) if name not in settings]:
        raise ConfigurationError(f"{where}: {kind} needs {' and '.join(missing)}.")
    for name in _TRUSTED:
        if settings.get(name, False) is not False and not allow_code:
            raise ConfigurationError(
                f"{where}: {kind}: {name} is for a file that you trust. If you trust it, give --allow-code, or "
                "allow_code=True."
            )
    objects = {
        name: form.read(f"{where}: {kind}: {name}", settings.get(name), allow_code)
        for (of, name), form in FORMS.items()
        if of == kind
    }
    try:
        return REWARDS[kind](**{**settings, **objects})
    except (TypeError, ConfigurationError) as error:
        raise ConfigurationError(f"{where}: {error}") from error
    except MissingDependencyError as error:
        raise MissingDependencyError(f"{where}: {error}") from error


def _function(spec: str, where: str, of: str, *, allow_code: bool) -> Any:
    """Return a function of a module, which is imported: the module is the user's own code."""
    if not allow_code:
        raise ConfigurationError(
            f"{where}: {of} {spec!r} names code, which would run. If you trust the file, give --allow-code, or "
            "allow_code=True."
        )
    module, _, function = spec.partition(":")
    try:
        return getattr(import_module(module), function)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigurationError(f"{where}: {of} {spec!r} cannot be imported: {reason}.") from error


def _click_through(where: str, spec: Any, allow_code: bool) -> Any:  # noqa: FBT001
    place, _, of = where.rpartition(": ")
    return reward_from_data(spec, place, allow_code=allow_code, of=of)


def _judge(where: str, name: Any, _: bool) -> Any:  # noqa: FBT001
    return _by_name(model_by_name, where, name)


def _embeddings(where: str, name: Any, _: bool) -> Embeddings:  # noqa: FBT001
    embeddings: Embeddings = _by_name(embeddings_by_name, where, name, empty=True)
    return embeddings


def _by_name(make: Callable[[str], Any], where: str, name: Any, *, empty: bool = False) -> Any:
    """Return the model of a name. Errors name the place."""
    if name is not None or not empty:
        text(where, name)
    try:
        return make(name)
    except (ConfigurationError, MissingDependencyError) as error:
        raise type(error)(f"{where}: {error}") from error


def _secret(where: str, value: Any, _: bool) -> Any:  # noqa: FBT001
    """Return a secret from the environment, or as it stands. No message shows it."""
    if not isinstance(value, Mapping):
        return value
    name = value.get("env")
    if len(value) != 1 or not isinstance(name, str) or not re.fullmatch(rf"{_SECRETS}\w*", name):
        # Any variable would let a file sign with passwords of the platform.
        expected = f"a text, or {{env: NAME}} with the name of an environment variable that begins with {_SECRETS}"
        raise refuse(where, expected, [*value])
    if not os.environ.get(name):
        raise ConfigurationError(f"{where}: the environment variable {name} is not set.")
    return os.environ[name]


FORMS: Mapping[tuple[str, str], Form] = {
    ("click", "click_through"): Form(
        read=_click_through,
        schema={"$ref": "#/$defs/ClickThrough"},
        description="From 0 to 1 for each reply: a ready-made reward that is no click.",
    ),
    ("embedding", "embeddings"): Form(
        read=_embeddings,
        schema={"type": "string"},
        description="`provider:model` for LangChain's `init_embeddings`. Without it, the extra `embeddings` embeds.",
        required=False,
    ),
    ("judge", "judge"): Form(
        read=_judge,
        schema={"type": "string"},
        description="`provider:model` for LangChain's `init_chat_model`, as in `openai:gpt-4o-mini`.",
    ),
    ("webhook", "secret"): Form(
        read=_secret,
        schema={
            "anyOf": [
                {"type": "string"},
                {
                    "type": "object",
                    "properties": {"env": {"type": "string", "pattern": f"^{_SECRETS}\\w*$"}},
                    "required": ["env"],
                    "additionalProperties": False,
                },
            ]
        },
        description="A text that only the bidder has too, or `env`: the environment variable that holds it.",
    ),
}
"""What data writes in its own way, by reward and setting."""
