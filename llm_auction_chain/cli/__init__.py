"""`llm-auction`: auctions, receipts and the ledger from the shell.

Nearly everything is imported within `main`, so that Ctrl-C works while it loads.
"""

import argparse
import atexit
import contextlib
import gc
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

__all__ = ["command_parser", "fail", "main", "printable_lines", "printable_text", "show_logs", "without_passwords"]

_BAD_INPUT = 2
_FAILED = 1
_INTERRUPTED = 130
# up to the last @ of the line: a mistyped password may hold one, or spaces
_IN_ADDRESS = re.compile(r"(//[^:/@\s]*:).*@")
_IN_QUERY = re.compile(r"(password=)[^&\s'\"]*", re.IGNORECASE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 is success; 1 a failure, or a difference that a verification shows; 2 bad input; 130 an interrupt. Data goes to
    standard output, everything else to standard error.
    """
    code = 0
    atexit.register(gc.freeze)  # the last collection skips what torch brought: the prompt returns seconds earlier
    try:
        with _interrupts():
            import datetime as dt  # noqa: F401 - native code that looks for it makes a panic of Ctrl-C

            from llm_auction_chain import errors
    except KeyboardInterrupt:
        return fail("interrupted", _INTERRUPTED)
    try:
        with _interrupts(), _short_warnings(errors.AuctionWarning):
            options = command_parser().parse_args(arguments)
            show_logs()
            if hasattr(sys.stdout, "reconfigure"):
                sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that cannot show a reply is no failure
            code = options.do(options) or 0
            sys.stdout.flush()
    except (errors.ConfigurationError, errors.MissingDependencyError, errors.PromptError) as error:
        code = fail(str(error), _BAD_INPUT)
    except errors.AuctionError as error:
        code = fail(str(error), _FAILED)
    except BrokenPipeError:
        _drop_output()
        code = _FAILED
    except OSError as error:
        _drop_output()
        where = f": {error.filename}" if error.filename else ""
        code = fail(f"{error.strerror or error}{where}", _FAILED)
    except KeyboardInterrupt:
        code = fail("interrupted", _INTERRUPTED)
    return code


def without_passwords(text: str) -> str:
    """Return a message with the passwords of database URLs replaced by `***`.

    >>> without_passwords("no server at postgresql://me:secret@there/bank?sslpassword=other")
    'no server at postgresql://me:***@there/bank?sslpassword=***'
    """
    return _IN_QUERY.sub(r"\1***", _IN_ADDRESS.sub(r"\1***@", text))


def printable_text(text: str) -> str:
    r"""Return a text with its escapes and control characters spelled out: it moves no cursor and hides nothing.

    >>> printable_text("a\x1b[2Jb\n")
    'a\\x1b[2Jb\\n'
    """
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def printable_lines(text: str) -> str:
    """Return a text of several lines, each of them printable."""
    return "\n".join(map(printable_text, text.expandtabs().splitlines()))


def show_logs() -> None:
    """Send logs of warnings and errors to standard error, all of it printable, tracebacks too."""
    import logging

    class Printable(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return printable_lines(super().format(record))

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Printable())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


class _Parser(argparse.ArgumentParser):
    """A parser whose errors repeat no password of a URL that is mistyped or in the wrong place."""

    def error(self, message: str) -> NoReturn:
        super().error(printable_lines(without_passwords(message)))


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    from importlib.metadata import version

    try:
        import yaml  # noqa: F401 - files of agents are YAML

        from llm_auction_chain.cli.chat import add_chat
        from llm_auction_chain.cli.completion import add_completion
        from llm_auction_chain.cli.experiment import add_experiment
        from llm_auction_chain.cli.ledger import add_ledger
        from llm_auction_chain.cli.receipts import add_verify
        from llm_auction_chain.cli.run import add_run
        from llm_auction_chain.cli.serve import add_keys, add_serve
        from llm_auction_chain.cli.statements import add_statements
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("rich", "yaml"):
            raise
        from llm_auction_chain.errors import MissingDependencyError

        raise MissingDependencyError("The command needs the cli extra: pip install 'llm-auction-chain[cli]'") from error
    parser = _Parser(prog="llm-auction", description="Auctions over the replies of a language model.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('llm-auction-chain')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_run(commands)
    add_chat(commands)
    add_serve(commands)
    add_keys(commands)
    add_verify(commands)
    add_experiment(commands)
    add_statements(add_ledger(commands))
    add_completion(commands, parser)
    return parser


def fail(message: str, code: int) -> int:
    """Say in one line what failed, and return the exit code."""
    sys.stderr.write(f"llm-auction: {printable_lines(without_passwords(message))}\n")
    return code


def _drop_output() -> None:
    """Send the buffered output nowhere: at exit it would fail again, with a traceback."""
    with contextlib.suppress(OSError):  # standard output may not be a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt after Ctrl-C, also where C code turned it into another error, as NumPy's does."""
    pressed = False

    def press(*_: Any) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    previous = signal.getsignal(signal.SIGINT)
    try:
        if previous is signal.default_int_handler:
            signal.signal(signal.SIGINT, press)
    except ValueError:  # only the main thread receives signals
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
def _short_warnings(kind: type[Warning]) -> Iterator[None]:
    """Print each warning of the kind once, in one line, below all other output."""
    messages: dict[str, None] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("always", kind)
        show = warnings.showwarning

        def collect(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, kind):
                messages[str(message)] = None
            else:
                show(printable_lines(str(message)), category, *rest, **more)

        warnings.showwarning = collect
        try:
            yield
        finally:
            for text in messages:
                sys.stderr.write(f"llm-auction: warning: {printable_lines(text)}\n")
