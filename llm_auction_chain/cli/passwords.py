"""Passwords in database URLs, which no message repeats."""

import re

__all__ = ["without_passwords"]

# up to the last @ of the line: a mistyped password may have one, or spaces
_IN_ADDRESS = re.compile(r"(//[^:/@\s]*:).*@")
_IN_QUERY = re.compile(r"(password=)[^&\s'\"]*", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """Return a message with the passwords of the URLs in it replaced by `***`.

    >>> without_passwords("no server at postgresql://me:secret@there/bank?sslpassword=other")
    'no server at postgresql://me:***@there/bank?sslpassword=***'
    """
    return _IN_QUERY.sub(r"\1***", _IN_ADDRESS.sub(r"\1***@", text))
