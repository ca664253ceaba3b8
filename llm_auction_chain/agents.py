"""Agents that bid for the reply."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Protocol, Self, SupportsFloat

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable

from llm_auction_chain.errors import ConfigurationError, MissingDependencyError
from llm_auction_chain.validators import choice, name_of_account, number, refuse, takes, text

__all__ = [
    "AGENTS_OF_CALL",
    "Agent",
    "AgentSource",
    "RewardLike",
    "agents_from_data",
    "agents_of_call",
    "check_agents",
    "check_cap",
    "check_categories",
    "load_agents",
    "of_another_kind",
    "read_yaml",
]

AGENTS_OF_CALL = "auction_agents"
"""The key under `configurable`, in the runtime context or in the state that replaces the agents for one call."""
_LONGEST_CONTEXT = 100_000
_MOST_KEYWORDS, _LONGEST_KEYWORD = 32, 100


class ScoresReplies(Protocol):
    """Says what all replies of an auction are worth in one call, sync or async."""

    def score(self, prompt: list[BaseMessage], replies: list[AIMessage], /) -> Any:
        """Return one amount per reply."""


RewardLike = (
    Callable[[list[BaseMessage], AIMessage], SupportsFloat | Awaitable[SupportsFloat]]
    | ScoresReplies
    | Runnable[Any, Any]
)
"""What may be an agent's reward: `(prompt, reply) -> amount`, sync or async; an object with `score(prompt, replies)`,
which every `Reward` is; or a Runnable over `{"prompt": ..., "reply": ...}`."""


@dataclass(frozen=True)
class Agent:
    """A bidder: a party to which some replies are worth more than others.

    Attributes:
        name: unique within an auction. Names of agents, owners and categories are compared in Unicode's NFKC.
        reward: `(prompt, reply) -> float`, sync or async; or an object with `score(prompt, replies)`, one number per
            reply; or a Runnable over `{"prompt": ..., "reply": ...}`. What the reply is worth to the agent, in money.
        owner: the payer. Agents of one owner are one report and one payer; None: the agent pays itself.
        context: public description, fixed before the auction, without any bid; at most 100,000 characters, of which
            models read 400.
        keywords: public words of what the agent offers, at most 32. `KeywordTilt` draws replies with them early. None:
            the words of its context.
        pays: False for a player whose welfare counts and that is never charged: the user, the platform's own rules.
            It has no reason to be honest, so its reward should be the platform's.
        report_cap: money; every reward is cut to within plus and minus this. None: the auction's cap.
        currency: the unit its rewards are in; None is the auction's. Another than the auction's is refused.
        categories: what the agent trades in, as the platform sees it. `exclusive_categories` of an auction refer to it.

    Raises:
        ConfigurationError: a setting is out of range; the message names it.

    >>> Agent(name="TuneTown", reward=lambda prompt, reply: 1.0).payer
    'TuneTown'
    """

    name: str
    reward: RewardLike = field(repr=False)  # bids are private, and traces show reprs
    owner: str | None = None
    context: str = ""
    pays: bool = True
    report_cap: float | None = None
    categories: Collection[str] = ()
    currency: str | None = None
    keywords: Collection[str] | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        object.__setattr__(self, "name", name_of_account("The name of an agent", self.name))
        if self.owner is not None:
            object.__setattr__(self, "owner", name_of_account(f"owner of {self.name!r}", self.owner))
        text(f"context of {self.name!r}", self.context, empty=True, most=_LONGEST_CONTEXT)
        if self.keywords is not None:
            object.__setattr__(self, "keywords", _check_keywords(self.keywords, repr(self.name)))
        choice(f"pays of {self.name!r}", self.pays, (True, False))
        if self.currency is not None:
            object.__setattr__(self, "currency", name_of_account(f"currency of {self.name!r}", self.currency))
        check_cap(self.report_cap, repr(self.name))
        object.__setattr__(self, "categories", check_categories(self.categories, repr(self.name)))
        reward = self.reward
        if not (callable(reward) or callable(getattr(reward, "score", None)) or isinstance(reward, Runnable)):
            expected = "a callable (prompt, reply) -> float, an object with score(prompt, replies), or a Runnable"
            raise refuse(f"reward of {self.name!r}", expected, reward)
        if callable(score := getattr(reward, "score", None)):
            takes(f"score of the reward of {self.name!r}", score, "(prompt, replies)")
        elif callable(reward) and not isinstance(reward, Runnable):
            takes(f"reward of {self.name!r}", reward, "(prompt, reply)")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, allow_code: bool = False) -> Self:
        """Return the agent that plain data describes, such as an entry of an agents file.

        Args:
            data: the settings of an agent. The reward is `{name: settings}` with the name of a ready-made reward:
                click, embedding, judge, length, log_ratio, mention, regex, reward_model or webhook.
            allow_code: whether you trust the data, which may then name a function as its reward,
                `package.module:function`. Its module is imported.

        Raises:
            ConfigurationError: a setting is unknown, missing or out of range; the message names it.
            MissingDependencyError: the reward needs a package that is not installed.

        >>> Agent.from_dict({"name": "TuneTown", "reward": {"mention": {"phrases": ["guitar"], "value": 2.0}}}).reward
        MentionReward(phrases=['guitar'], value=2.0, at_most=1)
        """
        return cls._from_data(data, "The agent", allow_code=allow_code)

    @classmethod
    def _from_data(cls, data: Any, where: str, *, allow_code: bool) -> Self:
        """Return the agent that data describes. Errors name its place. They show no values: one may be a secret."""
        from llm_auction_chain.rewards.from_data import refuse_unknown, reward_from_data

        if isinstance(data, Mapping):
            where = f"{where}, {data['name']!r}" if "name" in data else where
            refuse_unknown(data, [setting.name for setting in fields(cls)], f"{where}: an agent")
        if not isinstance(data, Mapping) or not {"name", "reward"} <= data.keys():
            what = [*data] if isinstance(data, Mapping) else type(data).__name__
            raise ConfigurationError(f"{where} must be a mapping with a name and a reward, got {what}.")
        reward = reward_from_data(data["reward"], where, allow_code=allow_code)
        try:
            return cls(**{**data, "reward": reward})
        except (TypeError, ConfigurationError) as error:
            raise ConfigurationError(f"{where}: {error}") from error

    @cached_property
    def payer(self) -> str:
        """The owner, or the agent itself where it has none."""
        return self.owner if self.owner is not None else self.name

    @property
    def per_click(self) -> bool:
        """Whether it pays per click: its whole reward is a `ClickReward`."""
        return hasattr(self.reward, "value_per_click")


def load_agents(path: str | Path | None, *, allow_code: bool = False) -> list[Agent]:
    """Return the agents of a YAML or JSON file.

    Args:
        path: a file with a list of agents under `agents:`, each with the settings that `Agent.from_dict` takes. None
            is the file of the demo, which comes with the package.
        allow_code: whether you trust the file, which may then name functions as rewards.

    Raises:
        ConfigurationError: the file cannot be read, or a setting is unknown, missing, written twice or out of range;
            the message names the file, the agent and the setting.
        MissingDependencyError: a package is not installed.

    >>> [agent.name for agent in load_agents(None)]
    ['EggCo', 'OatCo', 'BerryCo']
    """
    from llm_auction_chain.rewards.from_data import refuse_unknown

    if path is not None and not (isinstance(path, str | Path) and str(path).strip()):
        raise refuse("The path of an agents file", "a path", path)
    where = "the default agents" if path is None else str(path)
    data = read_yaml(files("llm_auction_chain") / "agents.yaml" if path is None else Path(path), where)
    if isinstance(data, dict):
        refuse_unknown(data, ["agents"], f"{where}: it")
    entries = data.get("agents") if isinstance(data, dict) else data
    if not isinstance(entries, list):
        raise ConfigurationError(f"{where}: write a list of agents under `agents:`.")
    return agents_from_data(entries, where, allow_code=allow_code)


def agents_from_data(entries: list[Any], where: str, *, allow_code: bool = False) -> list[Agent]:
    """Return the agents of a list of plain data. Errors name its place.

    Raises:
        ConfigurationError: as for `load_agents`.
        MissingDependencyError: a package is not installed.
    """
    agents = [
        Agent._from_data(entry, f"{where}, agent {number}", allow_code=allow_code)  # noqa: SLF001 - of this module
        for number, entry in enumerate(entries, 1)
    ]
    try:
        return [*check_agents(agents)]
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error


def read_yaml(source: Traversable, where: str) -> Any:
    """Return what a YAML or JSON file holds.

    Raises:
        ConfigurationError: it cannot be read, or it has a key that is written twice, of which YAML would take the last
            value.
        MissingDependencyError: PyYAML is not installed.
    """
    try:
        return _from_yaml(source.read_text(encoding="utf-8"), where)
    except OSError as error:
        raise ConfigurationError(f"{where} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{where} is not UTF-8: {error}.") from error
    except ValueError as error:  # the path has a null
        raise ConfigurationError(f"{where} cannot be read: {error}.") from error


def _from_yaml(content: str, where: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise MissingDependencyError("A YAML file needs PyYAML: pip install 'llm-auction-chain[cli]'") from error

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
            keys: set[str] = set()
            for key, _ in node.value:
                if key.value in keys:
                    problem = f"{key.value!r} is there twice"
                    raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
                keys.add(key.value)
            return super().construct_mapping(node, deep=deep)

    try:
        return yaml.load(content, Loader)  # noqa: S506 - a safe loader
    except yaml.MarkedYAMLError as error:  # its own text shows the line, which may hold a secret
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigurationError(f"{where} is not YAML: {place}{error.problem}.") from None
    except Exception as error:  # PyYAML lets errors of its constructors pass, as for the date 2026-02-30
        raise ConfigurationError(f"{where} is not YAML: {error}") from error


def check_agents(agents: Iterable[Agent], *, owners: bool = True) -> tuple[Agent, ...]:
    """Return the agents as a tuple.

    Args:
        agents: in their order.
        owners: whether to check that an owner's agents are of one kind: all pay or none, all per click or none.

    Raises:
        ConfigurationError: one is not an Agent, two have one name, or an owner's agents are of two kinds.
    """
    if not isinstance(agents, Iterable):
        raise refuse("agents", "a list of Agent", agents)
    checked = tuple(agents)
    names: set[str] = set()
    for agent in checked:
        if not isinstance(agent, Agent):
            raise refuse("agents", "a list of Agent", agent)
        if agent.name in names:
            raise ConfigurationError(f"Two agents are called {agent.name!r}; names must be unique within an auction.")
        names.add(agent.name)
    if owners and (odd := of_another_kind(checked)):
        raise ConfigurationError(
            f"{odd[0].payer!r} has agents that pay and agents that do not, or that pay per click and that do not; give "
            "each kind an owner of its own."
        )
    return checked


def agents_of_call(name: str, agents: Any) -> Any:
    """Return what replaces the agents for one call: agents, or a function or Runnable that returns them.

    Servers hand on what clients send: an empty list or names, which need no code, would switch the auction off.

    Raises:
        ConfigurationError: it is none of these.
    """
    if callable(agents) or isinstance(agents, Runnable):
        return agents
    if not isinstance(agents, Collection) or not agents or not all(isinstance(agent, Agent) for agent in agents):
        raise refuse(name, "a list of at least one Agent, or a function or Runnable that returns agents", agents)
    return agents


def of_another_kind(agents: Iterable[Agent]) -> list[Agent]:
    """Return the agents of another kind than their owner's first: which pays or not, per click or not."""
    kinds: dict[str, tuple[bool, bool]] = {}
    return [one for one in agents if (kind := (one.pays, one.per_click)) != kinds.setdefault(one.payer, kind)]


def check_cap(cap: Any, whose: str) -> float | None:
    """Return a cap on reports, which must be above 0, or None for no cap."""
    return None if cap is None else number(f"report_cap of {whose}", cap, above=0)


def check_categories(categories: Any, whose: str) -> tuple[str, ...]:
    """Return categories, which must be a list of names, as a tuple."""
    if isinstance(categories, str) or not isinstance(categories, Collection):
        raise refuse(f"categories of {whose}", "a list of names", categories)
    return tuple(name_of_account(f"categories of {whose}: each", category) for category in categories)


def _check_keywords(keywords: Any, whose: str) -> tuple[str, ...]:
    """Return keywords, which must be a short list of words, as a tuple."""
    if isinstance(keywords, str) or not isinstance(keywords, Collection) or len(keywords) > _MOST_KEYWORDS:
        raise refuse(f"keywords of {whose}", f"a list of at most {_MOST_KEYWORDS} words", keywords)
    return tuple(text(f"keywords of {whose}: each", word, most=_LONGEST_KEYWORD) for word in keywords)


AgentSource = Collection[Agent] | Callable[..., Iterable[Agent] | Awaitable[Iterable[Agent]]] | Runnable[Any, Any]
"""Where an auction's agents come from: a list, or a callable (sync or async) or Runnable that returns one for a call's
input, as `AgentDirectory` does."""
