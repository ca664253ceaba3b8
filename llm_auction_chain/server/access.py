"""Keys of the server: which roles exist, how a key is stored, and how a caller is recognised by it."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, Self, get_args

from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.server.wire import WireError
from llm_auction_chain.validators import choice, name_of_account, refuse

__all__ = ["ANONYMOUS", "Access", "Key", "Role"]

Role = Literal["client", "owner", "operator"]
_DIGEST = re.compile("sha256:[0-9a-f]{64}")
_BYTES = 32  # of randomness: a key cannot be guessed from its digest, so the digest needs no salt and no slow hash


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key of the server, by its digest: the key itself is not stored.

    Attributes:
        role: `client` asks for replies, `owner` reads the views of its own agents, `operator` does both, reads whole
            receipts, and sees payments with each reply.
        name: of the caller, in logs. One name's idempotency keys are apart from another's. While a key is replaced, two
            of the same role have one name.
        digest: `sha256:` and the SHA-256 of the key.
        owner: the account of an owner's key; empty for the other roles.

    Raises:
        ConfigurationError: an attribute is invalid.

    >>> text, key = Key.new("owner", name="tune-billing", owner="tune-group")
    >>> text.startswith("owner-"), Access([key]).caller(f"Bearer {text}").owner
    (True, 'tune-group')
    """

    role: Role
    name: str
    digest: str
    owner: str = ""

    def __post_init__(self) -> None:
        choice("role", self.role, get_args(Role))
        name_of_account("name", self.name)
        if not isinstance(self.digest, str) or not _DIGEST.fullmatch(self.digest):  # it may be the key: not shown
            hint = "`llm-auction keys new`, or Key.new, makes a key and its digest."
            raise ConfigurationError(f"digest must be `sha256:` and 64 hexadecimal digits. {hint}")
        owner = name_of_account("owner", self.owner, empty=self.role != "owner")
        object.__setattr__(self, "owner", owner)  # as accounts are spelled
        if owner and self.role != "owner":
            raise refuse("owner", f"empty for the role {self.role!r}", self.owner)

    @classmethod
    def new(cls, role: Role, *, name: str, owner: str = "") -> tuple[str, Self]:
        """Return a fresh key as text, to hand to its holder, and what the server stores of it."""
        text = f"{role}-{secrets.token_urlsafe(_BYTES)}"
        return text, cls(role=role, name=name, digest=_digest(text), owner=owner)

    def require(self, *roles: Role) -> None:
        """Refuse a caller whose role may not make a request.

        Raises:
            WireError: 403.
        """
        if self.role not in roles:
            hint = " This server has no keys; `llm-auction keys new` makes some." if self is ANONYMOUS else ""
            message = f"This needs a key of the role {' or '.join(roles)}.{hint}"
            raise WireError(403, message, code="insufficient_role")


ANONYMOUS = Key(role="client", name="anonymous", digest=f"sha256:{'0' * 64}")
"""Each caller of a server without keys."""


class Access:
    """Recognises callers by their keys.

    Args:
        keys: of the server. None lets each caller in as a client.

    Raises:
        ConfigurationError: two keys have one digest, or one name and different roles, or the collection is empty.
    """

    def __init__(self, keys: Collection[Key] | None) -> None:
        self._keys = None if keys is None else tuple(keys)
        if self._keys is None:
            return
        if not self._keys:
            raise ConfigurationError("The server has no keys, so nothing could call it. None serves without keys.")
        for one in self._keys:
            if not isinstance(one, Key):
                raise refuse("keys", "a collection of Key objects", one)
        digests, callers = {one.digest for one in self._keys}, {(one.name, one.role, one.owner) for one in self._keys}
        names = [name for name, *_ in callers]
        if len(digests) < len(self._keys):
            raise ConfigurationError("Two keys have the same digest. Leave one of them out.")
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigurationError(f"Keys named {min(twice)!r} have different roles or owners. Name them apart.")

    @property
    def needs_keys(self) -> bool:
        """Whether a caller needs a key."""
        return self._keys is not None

    def caller(self, authorization: str | None) -> Key:
        """Return the key that a request's `Authorization` header holds.

        Args:
            authorization: the header, as in `Bearer client-...`; None where there is none.

        Raises:
            WireError: 401 for no key or an unknown one.
        """
        return ANONYMOUS if self._keys is None else _holder(self._keys, authorization)


def _holder(keys: Collection[Key], authorization: str | None) -> Key:
    """Return the key of the header. Every stored digest is compared, each in constant time."""
    scheme, _, text = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not text.strip():
        raise WireError(401, "Send a key of this server: Authorization: Bearer KEY.", code="missing_api_key")
    digest = _digest(text.strip())
    matches = [one for one in keys if hmac.compare_digest(one.digest, digest)]
    if not matches:
        raise WireError(401, "This server does not know the key.", code="invalid_api_key")
    return matches[0]


def _digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"
