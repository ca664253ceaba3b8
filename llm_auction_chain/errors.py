"""What can go wrong, as one tree.

    AuctionError
    ├── ConfigurationError        a setting that no auction can run with: tau, payment rule, counts, agents
    ├── PromptError               there is nothing to reply to
    ├── RewardError               a report is not a finite number for every candidate
    ├── CandidatesError           too few replies could be drawn; `.causes` holds every failure
    ├── ContextWindowError        a prompt is longer than the model can read
    └── MissingDependencyError    an extra or the model's weights are not installed; names the command to run

Every message says what to do. Catch `AuctionError` to catch them all.
"""

from collections.abc import Sequence

__all__ = [
    "AuctionError",
    "CandidatesError",
    "ConfigurationError",
    "ContextWindowError",
    "MissingDependencyError",
    "PromptError",
    "RewardError",
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


class ContextWindowError(AuctionError):
    """The prompt and the reply do not fit into the model's context window."""


class MissingDependencyError(AuctionError, ImportError):
    """Something optional is not installed; the message names the command that installs it."""
