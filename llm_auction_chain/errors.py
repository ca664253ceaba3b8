"""What can go wrong, as one tree.

    AuctionError
    ├── ConfigurationError        a setting that no auction can run with: tau, payment rule, counts, agents
    ├── PromptError               there is nothing to reply to
    ├── RewardError               a report is not a finite number for every candidate
    ├── CandidatesError           too few replies could be drawn; `.causes` holds every failure
    ├── LogProbError              a log-probability that is not exactly the one asked for
    ├── ScoringError              a scorer failed: unreachable, another model, the feature missing
    ├── ContextWindowError        a prompt is longer than the model can read
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
from typing import Any

__all__ = [
    "AuctionError",
    "AuctionWarning",
    "CandidatesError",
    "ChargeConflictError",
    "ConfigurationError",
    "ContextWindowError",
    "CoverError",
    "LedgerError",
    "LedgerUnavailableError",
    "LogProbError",
    "MissingDependencyError",
    "PromptError",
    "RewardError",
    "ScoringError",
]


class AuctionError(Exception):
    """The root: every error this library raises on purpose is one of these."""


# None of these is a ValueError: pydantic would swallow it into its own ValidationError, and the caller would lose
# the tree.
class ConfigurationError(AuctionError):
    """A setting that no auction can run with."""


class PromptError(AuctionError):
    """The prompt holds nothing to reply to."""


class RewardError(AuctionError):
    """A report is not a finite number for every candidate."""


class CandidatesError(AuctionError):
    """Fewer candidates than `min_candidates` could be drawn.

    Attributes:
        causes: the exception of every model call that failed, in the order of the calls.
    """

    def __init__(self, message: str, causes: Sequence[BaseException] = ()) -> None:
        super().__init__(message)
        self.causes = tuple(causes)


class LogProbError(AuctionError):
    """A log-probability is not exactly that of the whole reply under the law asked for: no weight can be made of it."""


class ScoringError(AuctionError):
    """A scorer could not say how likely a reply is: unreachable, another model, or without the feature."""


class ContextWindowError(AuctionError):
    """The prompt and the reply do not fit into the model's context window."""


class LedgerError(AuctionError):
    """A booking that the ledger refuses; nothing was booked."""


class ChargeConflictError(LedgerError):
    """Something else has been booked under the same id."""


class DeliveredError(ChargeConflictError):
    """The auction of this id was charged and its reply delivered, and this call would have another outcome.

    Attributes:
        charge: the `Charge` of the delivered reply.
        reply: the delivered reply, where the ledger keeps replies; else None.
        receipt: under which the call that gets this error delivers the reply; else empty.
    """

    def __init__(self, message: str, charge: Any = None, reply: Any = None, receipt: str = "") -> None:
        super().__init__(message)
        self.charge, self.reply, self.receipt = charge, reply, receipt


class CoverError(LedgerError):
    """An account's balance, less what is held on it, does not cover the amount."""


class LedgerUnavailableError(LedgerError):
    """The database is unreachable, full or locked: whether the booking was made is not known. Asking again is safe."""


class MissingDependencyError(AuctionError, ImportError):
    """Something optional is not installed; the message names the command that installs it."""


class AuctionWarning(UserWarning):
    """The auction is valid, and something about it deserves a look."""
