"""A report: what one agent says that the replies are worth to it, in money."""

import contextlib
import math
import numbers
import traceback
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from typing import Any, Literal

from llm_auction_chain.agents import Agent
from llm_auction_chain.errors import AuctionError, LogProbError, RewardError
from llm_auction_chain.rewards.base import Reward
from llm_auction_chain.rewards.click import ClickReward

__all__ = ["InvalidReportError", "Report", "Status", "amounts_of", "bounds_of", "cap_of", "failed_report", "report_of"]

Status = Literal["reported", "capped", "timeout", "error", "invalid"]
_OURS = f"{__package__.split('.')[0]}."
_NO_AMOUNTS = (str, bytes, bytearray, Mapping, AbstractSet)  # iterables without an amount per reply, or an order
_LARGEST = 1e100
_LONGEST_REASON = 200
_LONGEST_TEXT = 2000  # characters of an exception's text, which may be a whole page


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one agent reported.

    Attributes:
        rewards: (M,), money; all zero unless `status` is `reported` or `capped`.
        status: `reported`; `capped`, a reward was beyond the agent's cap, or its bounds, and was cut to it; `timeout`,
            the report was late; `error`, the agent's code raised; `invalid`, it returned something else than numbers.
        reason: why, in at most 200 characters; empty where reported. It is public: the type and text of the agent's
            exception, or the rule that its report broke; never a reported number, and nothing of another agent. An
            exception from elsewhere within a ready-made reward, which may quote private settings, has its type alone.
        click_through: (M,), the predicted probability of a click, of an agent with a `ClickReward`; else None.
        value_per_click: its bid, money; None where `click_through` is.
    """

    rewards: tuple[float, ...]
    status: Status = "reported"
    reason: str = ""
    click_through: tuple[float, ...] | None = None
    value_per_click: float | None = None


class InvalidReportError(Exception):
    """An agent returned something else than an amount for every reply.

    Attributes:
        rule: the broken rule, without any reported number. The text may have one: it is for the developer.
    """

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(text)
        self.rule = rule


def cap_of(agent: Agent, report_cap: float | None) -> float | None:
    """Return the cap on an agent's rewards: the lower one of its own and the auction's, or None without either."""
    return min((cap for cap in (agent.report_cap, report_cap) if cap is not None), default=None)


def bounds_of(agent: Agent, report_cap: float | None) -> tuple[float, float]:
    """Return the least and the most that an agent can report, money: what its reward declares, within its cap."""
    cap = cap_of(agent, report_cap)
    cap = math.inf if cap is None else float(cap)
    low, high = -cap, cap
    with contextlib.suppress(Exception):
        if (declared := getattr(agent.reward, "bounds", None)) is not None:
            low, high = (min(max(float(bound), -cap), cap) for bound in declared)
    return (low, high) if low <= high else (-cap, cap)


def report_of(value: Any, n_replies: int, *, reward: Any, bounds: tuple[float, float], refuse_negative: bool) -> Report:
    """Return the report that an agent's returned value is.

    Args:
        value: one amount for every reply, in any iterable with an order.
        n_replies: M.
        reward: the agent's reward.
        bounds: money; amounts are cut to within these.
        refuse_negative: whether an amount below 0 is invalid.

    Raises:
        InvalidReportError: the value is not one finite number for every reply.

    >>> report_of([1, 3.5], 2, reward=None, bounds=(-2.0, 2.0), refuse_negative=False).rewards
    (1.0, 2.0)
    """
    rewards = amounts_of(value, n_replies, refuse_negative=refuse_negative)
    clicks = bid = None
    if isinstance(reward, ClickReward) and reward.value_per_click:
        bid = float(reward.value_per_click)
        clicks = tuple(min(amount / bid, 1.0) for amount in rewards)
    low, high = bounds
    if not rewards or (min(rewards) >= low and max(rewards) <= high):
        return Report(rewards=rewards, click_through=clicks, value_per_click=bid)
    return Report(
        rewards=tuple(min(max(reward, low), high) for reward in rewards),
        status="capped",
        reason="reported rewards beyond its cap or bounds, which count instead",
        click_through=clicks,
        value_per_click=bid,
    )


def failed_report(error: BaseException, n_replies: int, reward: Any = None) -> Report:
    """Return the report of an agent whose code raised: zero for every reply.

    >>> failed_report(LookupError("no bid"), 2)
    Report(rewards=(0.0, 0.0), status='error', reason='LookupError: no bid', click_through=None, value_per_click=None)
    """
    status: Status = "error"
    if isinstance(error, InvalidReportError | RewardError):
        status = "invalid"
    elif isinstance(error, TimeoutError):
        status = "timeout"
    reason = error.rule if isinstance(error, InvalidReportError) else text_of(error)
    ready_made = isinstance(reward, Reward) and type(reward).__module__.startswith(_OURS)
    if ready_made and not _is_ours(error):
        reason = type(error).__name__
    reason = "".join(letter if letter.isprintable() else " " for letter in reason[:_LONGEST_REASON])
    # Half a surrogate pair is text in Python, but cannot be stored or printed.
    reason = reason.encode("utf-8", "replace").decode()
    return Report(rewards=(0.0,) * n_replies, status=status, reason=reason)


def _is_ours(error: BaseException) -> bool:
    """Whether this package raised the error, and not with a server's words."""
    if not isinstance(error, AuctionError | InvalidReportError | TimeoutError | ConnectionError):
        return False
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)] or [_OURS]
    of_server = modules[-1].startswith(f"{_OURS}models.vllm.") and not isinstance(error, LogProbError)
    return modules[-1].startswith(_OURS) and not of_server


def text_of(error: BaseException) -> str:
    """Return the type and the beginning of the text of an exception; its type alone where there is no text."""
    try:
        text = str(error)[:_LONGEST_TEXT]
    except Exception:  # noqa: BLE001 - its text cannot be shown
        text = ""
    return f"{type(error).__name__}: {text}".removesuffix(": ")


def amounts_of(value: Any, n_replies: int, *, refuse_negative: bool = False) -> tuple[float, ...]:
    """Return a report's amounts as floats.

    Raises:
        InvalidReportError: they are not one finite number for every reply.
    """
    if isinstance(value, _NO_AMOUNTS) or not isinstance(value, Iterable):
        raise _invalid(f"returned {type(value).__name__}; score must return one number per reply, as a list")
    values = list(islice(value, n_replies + 1))
    if len(values) != n_replies:
        count = len(values) if len(values) < n_replies else f"more than {n_replies}"
        raise _invalid(f"returned {count} rewards for {n_replies} replies; return one per reply")
    if not {*map(type, values)} <= {float}:
        values = [_number(j, item) for j, item in enumerate(values)]
    for j, amount in enumerate(values):
        if not -_LARGEST <= amount <= _LARGEST:  # nan too
            must = "rewards must be finite, at most 1e100"
        elif refuse_negative and amount < 0.0:
            must = "payment_rule='proportional' needs rewards >= 0"
        else:
            continue
        raise _invalid(f"reported a reward out of range; {must}", f"reported {amount} for candidate {j}; {must}")
    return tuple(values)


def _number(j: int, item: Any) -> float:
    """Return an amount as a float; True is 1. A string, None and a complex number are not amounts of money."""
    kind = type(item).__name__
    if getattr(item, "shape", None) == () and hasattr(item, "item"):  # a scalar of NumPy or torch
        item = item.item()
    if not isinstance(item, numbers.Real | Decimal):
        raise _invalid(f"reported {kind} for candidate {j}; rewards must be numbers, in money")
    try:
        return float(item)
    except (OverflowError, ValueError):
        return math.inf


def _invalid(rule: str, text: str = "") -> InvalidReportError:
    return InvalidReportError(rule, f"{text or rule}.")
