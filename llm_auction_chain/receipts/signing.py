"""Ed25519 signatures, made by the library `cryptography`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_auction_chain.errors import ConfigurationError, MissingDependencyError


def load_private_key(source: str | Path | bytes, password: bytes | None = None) -> Any:
    """Return the Ed25519 private key in a PEM file or in its bytes.

    Raises:
        ConfigurationError: the file cannot be read or contains another kind of key.
        MissingDependencyError: `cryptography` is not installed.
    """
    keys, serialization = _library()
    return _load(source, "private", keys.Ed25519PrivateKey, serialization.load_pem_private_key, password)


def load_public_key(source: str | Path | bytes) -> Any:
    """Return the Ed25519 public key in a PEM file or in its bytes.

    Raises:
        ConfigurationError: the file cannot be read or contains another kind of key.
        MissingDependencyError: `cryptography` is not installed.
    """
    keys, serialization = _library()
    return _load(source, "public", keys.Ed25519PublicKey, serialization.load_pem_public_key)


def check_private_key(key: Any) -> Any:
    """Return an Ed25519 private key; refuse other kinds of keys."""
    return _check_kind(key, _library()[0].Ed25519PrivateKey)


def signature_of(digest: str, key: Any) -> tuple[str, str]:
    """Return the public key and the signature of a digest, hexadecimal."""
    private = check_private_key(key)
    return private.public_key().public_bytes_raw().hex(), private.sign(digest.encode()).hex()


def public_key_hex(public_key: Any) -> str:
    """Return an Ed25519 public key in hexadecimal digits; refuse other kinds of keys."""
    return str(_check_kind(public_key, _library()[0].Ed25519PublicKey).public_bytes_raw().hex())


def is_signed_by(digest: str, value: str, public_key: str) -> bool:
    """Return whether `value` is the key's signature of a digest; both are hexadecimal."""
    keys, _ = _library()
    from cryptography.exceptions import InvalidSignature

    try:
        key = keys.Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        key.verify(bytes.fromhex(value), digest.encode())
    except (InvalidSignature, ValueError):
        return False
    return True


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingDependencyError(
            "Signatures need the signatures extra: pip install 'llm-auction-chain[signatures]'"
        ) from error
    return ed25519, serialization


def _check_kind(key: Any, kind: type) -> Any:
    if not isinstance(key, kind):
        raise ConfigurationError(
            f"The key must be an {kind.__name__} of the library `cryptography`, got {type(key).__name__}. "
            "load_private_key and load_public_key read one from a PEM file."
        )
    return key


def _load(source: str | Path | bytes, name: str, kind: type, load: Callable[..., Any], *password: bytes | None) -> Any:
    try:
        key = load(source if isinstance(source, bytes) else Path(source).read_bytes(), *password)
    except OSError as error:
        raise ConfigurationError(f"{source!s} cannot be read: {error.strerror or error}.") from error
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"The {name} key cannot be read: {error}") from error
    return _check_kind(key, kind)
