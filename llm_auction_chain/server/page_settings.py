"""What the fields of the playground hold: where they begin, what a link says of them, and the auction they describe."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_args
from urllib.parse import parse_qs, urlencode

from llm_auction_chain.agents import Agent, check_agents, load_agents
from llm_auction_chain.auction.admission import SEEDS
from llm_auction_chain.auction.settings import Billing
from llm_auction_chain.candidates import chat_models_in
from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.interfaces.runnable import AuctionRunnable
from llm_auction_chain.mechanism import PaymentRule
from llm_auction_chain.rewards import MentionReward
from llm_auction_chain.validators import number, whole_number

__all__ = [
    "COLUMNS",
    "FieldError",
    "Settings",
    "agents_of",
    "has_table",
    "mentions_of",
    "prepare",
    "rows_of",
    "temperature_of",
]

Rows = Sequence[Sequence[Any]]
COLUMNS = ("name", "description", "phrases, with commas between", "value")
"""Of the table of agents."""
_QUESTION = "Suggest a healthy breakfast in one sentence."


class FieldError(ConfigurationError):
    """What is wrong with a field of the page.

    Attributes:
        field: `question`, `agents`, `seed` or `settings`.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the page's fields hold, in their order. A link holds the same.

    Attributes:
        model: id of the auction.
        question: what the user asks.
        agents: a row for each: name, description, phrases with commas between, value.
        candidates: M, how many replies are drawn.
        tau: weight of the reference model, money per nat.
        temperature: of the model.
        rule: how the charge follows from the draw.
        seed: repeats the auction; empty for a fresh one.
    """

    model: str
    question: str
    agents: Rows
    candidates: int
    tau: float
    temperature: float
    rule: str
    seed: str

    @classmethod
    def of(cls, model: str, auction: AuctionRunnable) -> "Settings":
        """Return where the page begins: the auction's own settings."""
        return cls(
            model=model,
            question=_QUESTION,
            agents=rows_of(auction),
            candidates=auction.n_candidates,
            tau=auction.tau,
            temperature=temperature_of(auction),
            rule=auction.payment_rule,
            seed="" if auction.seed is None else str(auction.seed),
        )

    def link(self) -> str:
        """Return the settings as the end of a link, behind its `#`."""
        return urlencode({**vars(self), "agents": json.dumps(self.agents, ensure_ascii=False)})

    @classmethod
    def of_link(cls, link: str, auctions: Mapping[str, AuctionRunnable]) -> "Settings":
        """Return the settings of a link.

        Raises:
            FieldError: it is not one of this page.
        """
        values = {name: several[-1] for name, several in parse_qs(link, max_num_fields=20).items()}
        names = [field.name for field in fields(cls)]
        model = values.get("model", next(iter(auctions)))
        if not values or {*values} - {*names} or model not in auctions:
            raise FieldError("settings", "This link is not one of this page's, so its settings are not filled in.")
        own = cls.of(model, auctions[model])
        try:
            rows = json.loads(values["agents"]) if "agents" in values else own.agents
            if not all(isinstance(cell, str | int | float) for row in rows for cell in row):
                raise TypeError  # noqa: TRY301 - like any other rows
            return replace(
                own,
                question=values.get("question", own.question),
                agents=[[str(cell) for cell in row] for row in rows],
                candidates=whole_number(
                    "candidates", int(values.get("candidates", own.candidates)), least=1, below=1001
                ),
                tau=number("tau", float(values.get("tau", own.tau)), above=0),
                temperature=number("temperature", float(values.get("temperature", own.temperature)), least=0, most=2),
                rule=values.get("rule", own.rule) if values.get("rule") in get_args(PaymentRule) else own.rule,
                seed=values.get("seed", own.seed),
            )
        except (TypeError, ValueError, ConfigurationError) as error:
            raise FieldError("settings", f"This link cannot be read: {error or 'its agents are no table'}.") from error


def rows_of(auction: AuctionRunnable) -> list[list[str]]:
    """Return the table of an auction's agents: those that pay for mentions; the demo's where it has no agents."""
    agents = auction.agents if isinstance(auction.agents, Collection) else ()
    agents = load_agents(None) if auction.agents == () else agents
    mentions = ((agent, reward) for agent in agents if (reward := mentions_of(agent)))
    return [
        [agent.name, agent.context, ", ".join(reward.phrases), str(reward.value).removesuffix(".0")]
        for agent, reward in mentions
    ]


def agents_of(auction: AuctionRunnable, rows: Rows) -> Any:
    """Return the agents of the table, and those of the auction that the table cannot show.

    A row that has the name of an agent of the auction keeps what the table does not show: owner, cap, categories.

    Raises:
        FieldError: a row is no agent; the message names the row and what is wrong.
    """
    if not isinstance(auction.agents, Collection):
        return auction.agents
    originals = {agent.name: agent for agent in auction.agents}
    agents = {agent.name: agent for agent in auction.agents if not mentions_of(agent)}
    bidders = [agent for k, row in enumerate(rows, 1) if (agent := _agent_of(row, k, originals))]
    try:
        check_agents([*agents.values(), *bidders])
    except ConfigurationError as error:
        raise FieldError("agents", str(error)) from error
    agents |= {agent.name: agent for agent in bidders}
    # in the auction's own order, on which exclusive categories depend
    return [agents.pop(name) for name in [*originals] if name in agents] + [*agents.values()]


def _agent_of(row: Sequence[Any], k: int, originals: Mapping[str, Agent]) -> Agent | None:
    """Return the agent of a row; None for an empty row."""
    cells = [str("" if cell is None else cell).strip() for cell in row]
    cells += [""] * (len(COLUMNS) - len(cells))
    name, description, items, amount = cells[: len(COLUMNS)]
    if not any(cells):
        return None
    where = f"Row {k}{f' ({name})' if name else ''}"
    if not name:
        raise FieldError("agents", f"{where}: the name is empty. Give the agent a name, or clear the row.")
    phrases = [phrase for part in items.split(",") if (phrase := part.strip())]
    if not phrases:
        raise FieldError("agents", f"{where}: there are no phrases. Write at least one word that the agent pays for.")
    try:
        value = float(amount)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise FieldError("agents", f"{where}: the value must be a number such as 2.5, got {amount!r}.")
    try:
        if (original := originals.get(name)) and isinstance(original.reward, MentionReward):
            return replace(original, context=description, reward=replace(original.reward, phrases=phrases, value=value))
        reward = {"mention": {"phrases": phrases, "value": value}}
        return Agent.from_dict({"name": name, "context": description, "reward": reward})
    except ConfigurationError as error:
        raise FieldError("agents", f"{where}: {str(error).removeprefix('The agent, ')}") from error


def mentions_of(agent: Agent) -> MentionReward | None:
    """Return the reward of an agent that the table can show; None for any other, and for phrases with commas."""
    reward = agent.reward
    return reward if type(reward) is MentionReward and "," not in "".join(reward.phrases) else None


def has_table(auction: AuctionRunnable) -> bool:
    """Return whether the agents are a list, which the table can replace."""
    return isinstance(auction.agents, Collection)


def temperature_of(auction: AuctionRunnable) -> float:
    """Return the model's own temperature, and 1 where it does not say."""
    bound = getattr(auction.model, "kwargs", {}).get("temperature")
    known = [bound, *(getattr(model, "temperature", None) for model in chat_models_in(auction.model))]
    return next((float(one) for one in known if isinstance(one, int | float)), 1.0)


def prepare(auction: AuctionRunnable, settings: Settings) -> AuctionRunnable:
    """Return a copy of an auction with the settings of the page. It has no ledger and no `on_event`.

    Raises:
        FieldError: a setting is invalid.
    """
    question, seed = settings.question, settings.seed.strip()
    if not question.strip():
        raise FieldError("question", "The question is empty. Ask something.")
    if seed and not (seed.isascii() and seed.isdigit() and int(seed) < SEEDS):
        raise FieldError("seed", f"The seed must be a whole number of at least 0 and below 2**128, got {seed[:40]!r}.")
    agents = agents_of(auction, settings.agents)
    copy = auction.model_copy(
        update={"billing": Billing(currency=auction.billing.currency), "on_event": None, "agents": ()}
    )
    try:
        copy.n_candidates, copy.tau = int(settings.candidates), float(settings.tau)
        copy.payment_rule, copy.seed, copy.agents = settings.rule, int(seed) if seed else None, agents  # type: ignore[assignment]
    except (ConfigurationError, TypeError, ValueError) as error:
        raise FieldError("settings", str(error)) from error
    return copy
