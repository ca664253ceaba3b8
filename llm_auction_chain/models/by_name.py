"""Chat models by their names: what a shell or a configuration can say of them."""

from pathlib import Path
from typing import Any

from llm_auction_chain.errors import ConfigurationError, MissingDependencyError

__all__ = ["model_by_name"]


def model_by_name(name: str | None, *, max_tokens: int | None = None) -> Any:
    """Return a chat model, whose weights are not loaded yet.

    Args:
        name: a local path or hub id for transformers, or `provider:model`. None is the embedded model.
        max_tokens: longest reply; None is the model's own limit.

    Raises:
        ConfigurationError: the provider's model cannot be set up.
        MissingDependencyError: a package is not installed.
    """
    limit: dict[str, Any] = {} if max_tokens is None else {"max_tokens": max_tokens}
    provider, colon, _ = (name or "").partition(":")
    if name is None or not colon or not provider.isidentifier() or Path(name).exists():
        from llm_auction_chain.models.local.chat_model import ChatTransformers

        return ChatTransformers(model=name, **limit)
    try:
        from langchain.chat_models import init_chat_model
    except ImportError as error:
        raise MissingDependencyError(f"{name!r} needs langchain: pip install langchain") from error
    try:
        return init_chat_model(name, **limit)
    except ImportError as error:
        raise MissingDependencyError(str(error)) from error
    except Exception as error:
        raise ConfigurationError(f"The model {name!r} could not be set up: {error}") from error
