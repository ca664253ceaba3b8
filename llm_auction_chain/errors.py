"""What can go wrong, as one tree.

    AuctionError
    ├── ConfigurationError        a setting that no auction can run with: tau, payment rule, counts, agents
    ├── PromptError               there is nothing to reply to
    ├── RewardError               a report is not a finite number for every candidate
    ├── CandidatesError           too few replies could be drawn; of the class that its `.causes` share, too
    ├── LogProbError              a log-probability that is not exactly the one asked for
    │   └── LogitsError               the model's logits are not finite numbers
    ├── ScoringError              a scorer failed: unreachable, another model, the feature missing
    ├── ContextWindowError        a prompt is longer than the model can read; LangChain's ContextOverflowError, too
    ├── LedgerError               a booking that the ledger refuses
    │   ├── ChargeConflictError       the id stands for something else, or is closed
    │   │   └── DeliveredError            the id has been charged with another outcome, and its reply delivered
    │   ├── CoverError                an account does not cover it
    │   └── LedgerUnavailableError    unreachable, full or locked; what was asked may or may not have been booked
    └── MissingDependencyError    an extra or the model's weights are not installed; names the command to run

Every message says what to do. Catch `AuctionError` to catch them all. What deserves a look but stops nothing is an
`AuctionWarning`: contexts that cannot be used, draws that are all the same.
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from langchain_core.exceptions import ContextOverflowError

__all__ = [
    "AuctionError",
    "AuctionWarning",
    "CandidatesError",
    "ChargeConflictError",
    "ConfigurationError",
    "ContextWindowError",
    "CoverError",
    "DeliveredError",
    "LedgerError",
    "LedgerUnavailableError",
    "LogProbError",
    "LogitsError",
    "MissingDependencyError",
    "PromptError",
    "RewardError",
    "ScoringError",
]


class AuctionError(Exception):
    """The root: every error this library raises on purpose is one of these.

    To handle them all alike, catch this one.
    """


# None of these is a ValueError: pydantic would swallow it into its own ValidationError, and the caller would lose
# the tree.
class ConfigurationError(AuctionError):
    """A setting that no auction can run with.

    Raised when an object is made or a call gives settings, before a model is called. The message names the setting, its
    value and what is allowed. Correct it; a repeated call fails again.
    """


class PromptError(AuctionError):
    """The prompt holds nothing to reply to.

    Raised for an empty list of messages, an empty prompt, or an input that is no message. Check what the chain passes
    on.
    """


class RewardError(AuctionError):
    """A report is not a finite number for every candidate.

    A ready-made reward raises it, and the agent then abstains: the auction goes on, and `result.reports` has the
    reason. Only under `on_agent_error="raise"` does it end the auction.
    """


class CandidatesError(AuctionError):
    """Fewer candidates than `min_candidates` could be drawn.

    Its `__cause__` is the first of the causes. It is also an instance of every class that all of them share, with the
    attributes of the first. So code that catches, retries or falls back on a provider's error, or on LangChain's
    `ModelError`, also works with an auction. A `ModelError` is retryable if one of the causes is. `StopIteration` and
    LangGraph's errors do not count, because they steer loops and graphs.

    Attributes:
        causes: the exception of every model call that failed, in the order of the calls.

    >>> error = CandidatesError("too few", [ConnectionRefusedError("a"), ConnectionResetError("b")])
    >>> isinstance(error, ConnectionError), error.__cause__
    (True, ConnectionRefusedError('a'))
    """

    def __new__(cls, message: str, causes: Sequence[BaseException] = ()) -> "CandidatesError":  # noqa: D102, PYI034
        kind = _kind_of(*dict.fromkeys(map(type, causes))) if causes else cls
        # Not `super()`: the other classes' own __new__ takes other arguments, as their __init__ does.
        base: Any = next(base for base in kind.__mro__ if base.__module__ == "builtins")
        error: CandidatesError = base.__new__(kind, message)
        return error

    def __init__(self, message: str, causes: Sequence[BaseException] = ()) -> None:
        if causes and len(type(self).__bases__) > 1:
            self.__dict__.update(vars(causes[0]))
        self.args = (message,)
        self.causes = tuple(causes)
        self.__cause__ = self.causes[0] if causes else None
        if hasattr(self, "is_retryable"):  # a `ModelError`
            with suppress(AttributeError):  # a property, which the attributes of the first decide
                self.is_retryable = any(getattr(cause, "is_retryable", True) for cause in causes)

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> Any:
        return CandidatesError, (*self.args, self.causes)


@lru_cache(maxsize=64)
def _kind_of(*causes: type[BaseException]) -> type[CandidatesError]:
    """Return a class that is `CandidatesError`, and every class that all causes share."""
    shared = [kind for kind in causes[0].__mro__ if _counts(kind) and all(issubclass(cause, kind) for cause in causes)]
    nearest = [kind for kind in shared if not any(issubclass(near, kind) for near in shared if near is not kind)]
    try:
        both: type[CandidatesError] = type("CandidatesError", (CandidatesError, *nearest), {"__module__": __name__})
        both("")
    except Exception:  # noqa: BLE001 - a class may refuse subclasses in any way
        return CandidatesError
    return both if nearest else CandidatesError


def _counts(kind: type) -> bool:
    """Whether a cause's class may be that of a `CandidatesError`, too: not if it steers loops, tasks or graphs."""
    steers = issubclass(kind, BaseException) and not issubclass(kind, Exception)
    steers = steers or issubclass(kind, StopIteration | StopAsyncIteration)
    steers = steers or any(base.__module__ == "langgraph.errors" for base in kind.__mro__)
    return not (steers or issubclass(kind, CandidatesError) or issubclass(CandidatesError, kind))


class LogProbError(AuctionError):
    """A log-probability is not exactly that of the whole reply under the right distribution, so it is no weight.

    Raised where a proposal or a mixture needs probabilities and the model returns none, or those of another
    distribution. Use the reference proposal, or a model that returns exact ones: `ChatTransformers`, `ChatVLLM`.
    """


class LogitsError(LogProbError):
    """The model's logits behind a prompt are not finite numbers, so no token has a probability.

    The usual cause is a half-precision number that overflows. Load the model with `dtype="float32"`.
    """


class ScoringError(AuctionError):
    """A scorer could not say how likely a reply is: unreachable, another model, or without the feature.

    Raised by `ChatVLLM`, and by the scorer of a mixture or a log-ratio. Check that the server runs and serves the
    model; a server that is only busy may answer a repeated call.
    """


class ContextWindowError(AuctionError, ContextOverflowError):
    """The prompt and the reply do not fit into the model's context window.

    Raised by `ChatTransformers` and `ChatVLLM`. Shorten the conversation, ask for fewer tokens, or use a model with a
    longer window. LangChain's `ContextOverflowError` catches it, too.
    """


class LedgerError(AuctionError):
    """A booking that the ledger refuses; nothing was booked.

    Raised for a booking that contradicts what is booked, or a database that is not this version's. The message says
    which.
    """


class ChargeConflictError(LedgerError):
    """Something else has been booked under the same id.

    Raised where an auction's id or a booking's key is used for another booking, or for one that is charged, voided or
    reversed. Give a new id or key; if the call was a repetition, its first booking stands.
    """


class DeliveredError(ChargeConflictError):
    """This auction was charged and its reply delivered, and the repeated call would have another outcome.

    Raised by a call that repeats an `idempotency_key` with other settings, another model or other agents. Deliver
    `reply` if the ledger keeps it, else give the call a new key.

    Attributes:
        charge: the `Charge` of the delivered reply.
        reply: the delivered reply, where the ledger keeps replies; else None.
        receipt: under which the call that gets this error delivers the reply; else empty.
    """

    def __init__(self, message: str, charge: Any = None, reply: Any = None, receipt: str = "") -> None:
        super().__init__(message)
        self.charge, self.reply, self.receipt = charge, reply, receipt


class CoverError(LedgerError):
    """An account's balance, less its holds, does not cover the amount.

    Raised by a hold or a withdrawal that is not covered, and by a charge above its hold. An auction leaves out agents
    without cover, so it does not raise this. Book a deposit.
    """


class LedgerUnavailableError(LedgerError):
    """The database is unreachable, full or locked. The booking may have been made; a repeated request is safe.

    Raised after retries. Repeat the ledger's call with the same id or key: it books once. An auction that failed at its
    charge is cancelled: ask for a reply under a new key.
    """


class MissingDependencyError(AuctionError, ImportError):
    """Something optional is not installed; the message names the command that installs it.

    Raised when an object is made that needs an extra, such as a ledger or a webhook. Run the command.
    """


class AuctionWarning(UserWarning):
    """The auction is valid, and something about it deserves a look.

    Issued through `warnings`, and listed in `result.warnings`. To stop at one while you test, turn it into an error:
    `warnings.simplefilter("error", AuctionWarning)`.
    """
