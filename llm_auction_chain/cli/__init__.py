"""`llm-auction`: auctions, receipts and the ledger from the shell.

What takes time to import is imported within `main`, so that Ctrl-C is heard while it loads.
"""

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from llm_auction_chain.cli.run import load_agents
from llm_auction_chain.errors import (
    AuctionError,
    AuctionWarning,
    ConfigurationError,
    MissingDependencyError,
    PromptError,
)

if TYPE_CHECKING:
    import argparse

__all__ = ["load_agents", "main"]

_BAD_INPUT = 2
_FAILED = 1
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 is success; 1 that it failed, or that what was verified differs; 2 bad input; 130 that it was interrupted. Data
    goes to standard output, and all else to standard error.
    """
    code = 0
    try:
        with _heard_interrupts(), _spoken_warnings():
            import logging

            options = _parser().parse_args(arguments)
            logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
            if hasattr(sys.stdout, "reconfigure"):
                sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that cannot show a reply is no failure
            code = int(options.do(options))
            sys.stdout.flush()
    except (ConfigurationError, MissingDependencyError, PromptError) as error:
        return _say(str(error), _BAD_INPUT)
    except AuctionError as error:
        return _say(str(error), _FAILED)
    except BrokenPipeError:
        _drop_output()
        return _FAILED
    except OSError as error:
        _drop_output()
        where = f": {error.filename}" if error.filename else ""
        return _say(f"{error.strerror or error}{where}", _FAILED)
    except KeyboardInterrupt:
        return _say("interrupted", _INTERRUPTED)
    return code


def _say(message: str, code: int) -> int:
    from llm_auction_chain.cli.passwords import without_passwords

    sys.stderr.write(f"llm-auction: {without_passwords(message)}\n")
    return code


def _drop_output() -> None:
    """Send what is still buffered nowhere: at exit it would fail again, with a traceback."""
    with contextlib.suppress(OSError):  # standard output may be no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _heard_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt after Ctrl-C, also where C code, NumPy's while it loads, made another error of it."""
    pressed = False

    def press(*_: Any) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    previous = signal.getsignal(signal.SIGINT)
    try:
        if previous is signal.default_int_handler:
            signal.signal(signal.SIGINT, press)
    except ValueError:  # only the main thread hears
        previous = None
    try:
        yield
    except Exception as error:
        if pressed:
            raise KeyboardInterrupt from error
        raise
    finally:
        if previous is signal.default_int_handler:
            signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def _spoken_warnings() -> Iterator[None]:
    """Say each warning of ours once, below whatever else is shown."""
    heard: dict[str, None] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("always", AuctionWarning)
        show = warnings.showwarning

        def hear(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, AuctionWarning):
                heard[str(message)] = None
            else:
                show(message, category, *rest, **more)

        warnings.showwarning = hear
        try:
            yield
        finally:
            for text in heard:
                sys.stderr.write(f"llm-auction: warning: {text}\n")


def _parser() -> "argparse.ArgumentParser":
    from llm_auction_chain.cli.ledger import add_ledger
    from llm_auction_chain.cli.parsing import Parser
    from llm_auction_chain.cli.receipts import add_verify
    from llm_auction_chain.cli.run import add_run

    parser = Parser(prog="llm-auction", description="Auctions over the replies of a language model.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (add_run, add_verify, add_ledger):
        add(commands)
    return parser
