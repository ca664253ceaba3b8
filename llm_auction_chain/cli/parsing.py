"""The parser of the command line."""

import argparse
from typing import NoReturn

from llm_auction_chain.cli.passwords import without_passwords

__all__ = ["Parser"]


class Parser(argparse.ArgumentParser):
    """A parser whose complaints repeat no password of a URL that was mistyped or stands in the wrong place."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and end with exit code 2."""
        super().error(without_passwords(message))
