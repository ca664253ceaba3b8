"""Models by their names, which is how a shell or a file refers to them."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_auction_chain.errors import ConfigurationError, MissingDependencyError

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings
    from langchain_core.language_models import BaseChatModel

__all__ = ["EMBEDDED", "embeddings_by_name", "model_by_name"]

EMBEDDED: Mapping[str, Any] = {"temperature": 0.5, "dtype": "float32"}
"""What suits the embedded model, which is tiny: at temperature 1 it loses the thread. In float32 a seed gives the same
on all CPUs."""


def model_by_name(name: str | None, *, max_tokens: int | None = None, **settings: Any) -> "BaseChatModel":
    """Return a chat model, whose weights are not loaded yet.

    Args:
        name: a local path or hub id for transformers; `vllm:model` for a vLLM server, where `vllm:` is the only model
            that it serves; or `provider:model` for LangChain's `init_chat_model`. None is the embedded model.
        max_tokens: longest reply; None is the model's own limit.
        **settings: more of the model's own, such as `temperature` or `base_url`.

    Raises:
        ConfigurationError: the provider's model cannot be set up.
        MissingDependencyError: a package is not installed.
    """
    settings |= {} if max_tokens is None else {"max_tokens": max_tokens}
    provider, colon, rest = (name or "").partition(":")
    if name is None or not colon or not provider.isidentifier() or Path(name).exists():
        from llm_auction_chain.models.local.chat_model import ChatTransformers

        return ChatTransformers(model=name, **settings)
    if provider == "vllm":
        from llm_auction_chain.models.vllm.chat_model import ChatVLLM

        return ChatVLLM(model=rest or None, **settings)
    model: BaseChatModel = _of_langchain("langchain.chat_models", "init_chat_model", name, settings)
    return model


def embeddings_by_name(name: str | None) -> "Embeddings":
    """Return embeddings.

    Args:
        name: `provider:model`. None is the model of the extra `embeddings`.

    Raises:
        ConfigurationError: the provider's model cannot be set up.
        MissingDependencyError: a package is not installed.
    """
    if name is None:
        from llm_auction_chain.models.local.embeddings import StaticEmbeddings

        return StaticEmbeddings()
    embeddings: Embeddings = _of_langchain("langchain.embeddings", "init_embeddings", name, {})
    return embeddings


def _of_langchain(module: str, function: str, name: str, settings: dict[str, Any]) -> Any:
    """Return the model of a name from the function of LangChain that knows all providers."""
    try:
        make = getattr(import_module(module), function)
    except ImportError as error:
        raise MissingDependencyError(f"{name!r} needs langchain: pip install langchain") from error
    try:
        return make(name, **settings)
    except ImportError as error:
        raise MissingDependencyError(str(error)) from error
    except Exception as error:
        raise ConfigurationError(f"The model {name!r} could not be set up: {error}") from error
