"""Merkle trees, as RFC 6962 hashes them: a root fixes its leaves, and a path shows that one value is among them."""

import hashlib
from collections.abc import Iterable, Sequence

__all__ = ["hashed", "leaf", "path", "root", "root_of"]

Step = tuple[str, str]  # the side on which the other hash stands, `left` or `right`, and that hash
_LEAF, _NODE = b"\x00", b"\x01"  # so that no node can be shown as a leaf


def hashed(prefix: bytes, *parts: str) -> str:
    """Return the SHA-256 of a prefix and of texts, of which all but one have a fixed length."""
    return f"sha256:{hashlib.sha256(prefix + ''.join(parts).encode()).hexdigest()}"


def leaf(value: str) -> str:
    """Return the hash of a value as a leaf."""
    return hashed(_LEAF, value)


def root(leaves: Sequence[str]) -> str:
    """Return the root over hashes of leaves; empty without leaves.

    >>> root([leaf("a")]) == leaf("a"), root([])
    (True, '')
    """
    if len(leaves) < 2:  # noqa: PLR2004
        return leaves[0] if leaves else ""
    half = _half(leaves)
    return hashed(_NODE, root(leaves[:half]), root(leaves[half:]))


def path(leaves: Sequence[str], place: int) -> list[Step]:
    """Return the hashes beside the way from the leaf at a place to the root."""
    if len(leaves) < 2:  # noqa: PLR2004
        return []
    half = _half(leaves)
    if place < half:
        return [*path(leaves[:half], place), ("right", root(leaves[half:]))]
    return [*path(leaves[half:], place - half), ("left", root(leaves[:half]))]


def root_of(start: str, steps: Iterable[Step]) -> str:
    """Return the root to which a path leads from the hash of a leaf.

    >>> leaves = [leaf(text) for text in "abcde"]
    >>> all(root_of(one, path(leaves, place)) == root(leaves) for place, one in enumerate(leaves))
    True
    """
    for side, other in steps:
        start = hashed(_NODE, other, start) if side == "left" else hashed(_NODE, start, other)
    return start


def _half(leaves: Sequence[str]) -> int:
    """Return the largest power of two below the number of leaves."""
    return 1 << (len(leaves) - 1).bit_length() - 1
