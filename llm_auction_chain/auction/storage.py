"""A result as plain JSON and back: for storing an auction, and for studying it again without its model and agents."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from langchain_core.messages import AIMessage, BaseMessage, messages_from_dict, messages_to_dict

from llm_auction_chain.agents import Agent
from llm_auction_chain.auction.admission import LeftOut
from llm_auction_chain.candidates import Candidate
from llm_auction_chain.canonical_json import printable
from llm_auction_chain.errors import AuctionError, ConfigurationError
from llm_auction_chain.ledger import Charge, ChargeLine
from llm_auction_chain.mechanism import Settlement
from llm_auction_chain.mechanism.diagnostics import Diagnostics
from llm_auction_chain.money import as_text
from llm_auction_chain.receipts import Opening
from llm_auction_chain.reports import Report

if TYPE_CHECKING:
    from llm_auction_chain.auction.result import AuctionResult

__all__ = ["as_dict", "fields_from"]

_SCHEMA = "llm_auction_chain.result/1"
_PLAIN = ("auction_id", "contexts", "proposal_reason", "usage", "currency", "disclosure", "bypassed")
_VECTORS = ("probabilities", "expected_payments", "payments", "contributions", "steering", "noise")


class _StoredError(AuctionError):
    """The error of a model call in a stored result."""


@dataclass(frozen=True)
class _StoredReward:
    """The place of a reward in a stored result."""

    def score(self, prompt: list[BaseMessage], replies: list[AIMessage]) -> NoReturn:  # noqa: ARG002
        raise ConfigurationError("A stored result has no rewards of agents. What they reported is in result.reports.")


@dataclass(frozen=True)
class _StoredClickReward(_StoredReward):
    value_per_click: float | None = None


def as_dict(result: "AuctionResult") -> dict[str, Any]:
    """Return everything about an auction as plain JSON."""
    settlement = result.settlement
    return {
        "schema": _SCHEMA,
        "text": result.text,
        "payments": {name: as_text(due) for name, due in result.payments.items()},
        "revenue": as_text(result.revenue),
        **{name: getattr(result, name) for name in _PLAIN},
        "prompt": _messages(result.prompt),
        "reply": _messages([result.reply])[0],
        "candidates": [
            {
                "message": _messages([one.message])[0],
                "log_weight": _nats(one.log_weight),
                "draws": one.draws,
                "component": one.component,
                "excluded": one.excluded,
            }
            for one in result.candidates
        ],
        "components": [{"component": name, "draws": count} for name, count in result.components],
        "agents": [_agent(agent) for agent in result.agents],
        "left_out": [{**_agent(out.agent), "reason": out.reason, "category": out.category} for out in result.left_out],
        "reports": [_report(report) for report in result.reports],
        "settlement": {
            **{name: getattr(settlement, name).tolist() for name in (*_VECTORS, "counterfactuals")},
            "log_probabilities": [_nats(nats) for nats in settlement.log_probabilities.tolist()],
            "winner": settlement.winner,
            "revenue": settlement.revenue,
            "diagnostics": asdict(settlement.diagnostics),
            "tau": settlement.tau,
            "payment_rule": settlement.payment_rule,
            "seed": None if settlement.seed is None else str(settlement.seed),
        },
        "usages": {name: dict(usage) for name, usage in result.usages.items()},
        "failures": [
            str(error) if isinstance(error, _StoredError) else f"{type(error).__name__}: {error}"
            for error in result.failures
        ],
        "warnings": list(result.warnings),
        "seed": str(result.seed),
        "opening": {
            "commitment": result.opening.commitment,
            "salt": result.opening.salt,
            "parts": dict(result.opening.parts),
        },
        "charge": None if result.charge is None else _charge(result.charge),
    }


def fields_from(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the result that `as_dict` returned as plain JSON.

    Raises:
        ConfigurationError: the data are not those of a result, or of a later version.
    """
    if not isinstance(data, Mapping) or data.get("schema") != _SCHEMA:
        schema = data.get("schema") if isinstance(data, Mapping) else data
        raise ConfigurationError(f"A stored result must have the schema {_SCHEMA!r}, got {schema!r:.100}.")
    try:
        return _fields_from(data)
    except KeyError as error:
        raise ConfigurationError(f"The stored result has no {error.args[0]!r}.") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ConfigurationError(f"The stored result cannot be read: {error}") from error


def _fields_from(data: Mapping[str, Any]) -> dict[str, Any]:
    reports = tuple(_report_from(report) for report in data["reports"])
    return {
        **{name: data[name] for name in _PLAIN},
        "prompt": tuple(messages_from_dict(data["prompt"])),
        "reply": _reply_from(data["reply"]),
        "candidates": tuple(
            Candidate(
                message=_reply_from(one["message"]),
                log_weight=_log_weight_from(one["log_weight"]),
                draws=one["draws"],
                component=one["component"],
                excluded=one["excluded"],
            )
            for one in data["candidates"]
        ),
        "components": tuple((one["component"], one["draws"]) for one in data["components"]),
        "agents": tuple(
            _agent_from(agent, report.value_per_click) for agent, report in zip(data["agents"], reports, strict=True)
        ),
        "left_out": tuple(
            LeftOut(agent=_agent_from(out), reason=out["reason"], category=out["category"]) for out in data["left_out"]
        ),
        "reports": reports,
        "settlement": _settlement_from(data["settlement"]),
        "usages": dict(data["usages"]),
        "failures": tuple(_StoredError(text) for text in data["failures"]),
        "warnings": tuple(data["warnings"]),
        "seed": int(data["seed"]),
        "opening": Opening(**data["opening"]),
        "charge": None if data["charge"] is None else _charge_from(data["charge"]),
    }


def _messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    plain: list[dict[str, Any]] = printable(messages_to_dict(messages))
    return plain


def _reply_from(data: Mapping[str, Any]) -> AIMessage:
    (message,) = messages_from_dict([dict(data)])
    if not isinstance(message, AIMessage):
        raise TypeError(f"a reply must be an AI message, got {message.type!r}")
    return message


def _nats(log_weight: float) -> float | None:
    """Return a log-weight as JSON has it: null for one of minus infinity."""
    return log_weight if log_weight > -math.inf else None


def _log_weight_from(nats: float | None) -> float:
    return -math.inf if nats is None else nats


def _agent(agent: Agent) -> dict[str, Any]:
    """Return what an agent is without its reward, which is code."""
    return {
        "agent": agent.name,
        "owner": agent.owner,
        "context": agent.context,
        "keywords": None if agent.keywords is None else list(agent.keywords),
        "pays": agent.pays,
        "report_cap": None if agent.report_cap is None else float(agent.report_cap),
        "currency": agent.currency,
        "categories": sorted(agent.categories),
        "per_click": agent.per_click,
    }


def _agent_from(data: Mapping[str, Any], value_per_click: float | None = None) -> Agent:
    return Agent(
        data["agent"],
        _StoredClickReward(value_per_click) if data["per_click"] else _StoredReward(),
        owner=data["owner"],
        context=data["context"],
        keywords=data["keywords"],
        pays=data["pays"],
        report_cap=data["report_cap"],
        categories=data["categories"],
        currency=data["currency"],
    )


def _report(report: Report) -> dict[str, Any]:
    clicks = report.click_through
    return {
        "rewards": list(report.rewards),
        "status": report.status,
        "reason": report.reason,
        "click_through": None if clicks is None else list(clicks),
        "value_per_click": report.value_per_click,
    }


def _report_from(data: Mapping[str, Any]) -> Report:
    clicks = data["click_through"]
    return Report(
        rewards=tuple(data["rewards"]),
        status=data["status"],
        reason=data["reason"],
        click_through=None if clicks is None else tuple(clicks),
        value_per_click=data["value_per_click"],
    )


def _settlement_from(data: Mapping[str, Any]) -> Settlement:
    arrays = {name: np.array(data[name], dtype=np.float64) for name in _VECTORS}
    m = len(data["probabilities"])
    arrays["counterfactuals"] = np.array(data["counterfactuals"], dtype=np.float64).reshape(-1, m)
    arrays["log_probabilities"] = np.array([_log_weight_from(nats) for nats in data["log_probabilities"]])
    for array in arrays.values():
        array.setflags(write=False)
    return Settlement(
        **arrays,
        winner=data["winner"],
        revenue=data["revenue"],
        diagnostics=Diagnostics(**data["diagnostics"]),
        tau=data["tau"],
        payment_rule=data["payment_rule"],
        seed=None if data["seed"] is None else int(data["seed"]),
    )


def _charge(charge: Charge) -> dict[str, Any]:
    return {
        "auction_id": charge.auction_id,
        "currency": charge.currency,
        "seq": charge.seq,
        "hash": charge.hash,
        "at": charge.at.isoformat(),
        "lines": [
            {"owner": line.owner, "amount": as_text(line.amount), "residual": as_text(line.residual)}
            for line in charge.lines
        ],
        "total": as_text(charge.total),
        "receipt": charge.receipt,
    }


def _charge_from(data: Mapping[str, Any]) -> Charge:
    lines = tuple(
        ChargeLine(owner=line["owner"], amount=Decimal(line["amount"]), residual=Decimal(line["residual"]))
        for line in data["lines"]
    )
    at, total = datetime.fromisoformat(data["at"]), Decimal(data["total"])
    return Charge(**{**data, "at": at, "lines": lines, "total": total})
