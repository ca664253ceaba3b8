"""Sentence embeddings that come from `pip` and need no hub.

The distribution `wordllama` (MIT) holds a table of token vectors and its tokenizer. Its code is never imported, because
it changes the root logger and downloads the tokenizer.
"""

import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from langchain_core.embeddings import Embeddings
from typing_extensions import override

from llm_auction_chain.errors import MissingDependencyError
from llm_auction_chain.models.local.weights import installed_files
from llm_auction_chain.waiting import exit_waits

__all__ = ["StaticEmbeddings"]

FloatArray = npt.NDArray[np.float32]

_DISTRIBUTION = "wordllama"
_WEIGHTS = "l2_supercat_256.safetensors"
_TOKENIZER = "l2_supercat_tokenizer_config.json"
_INSTALL = "pip install 'llm-auction-chain[embeddings]'"
_ONCE = threading.Lock()


class StaticEmbeddings(Embeddings):
    """Embeds a text as the mean of its token vectors, scaled to length 1. A text without tokens gives zeros.

    A vector has 256 numbers. It does not depend on other texts or on the machine, up to rounding, nor on the order of
    words. It works best for English. The first call in a process reads the table (16 MB), which all instances share.

    Raises:
        MissingDependencyError: the extra `embeddings` is not installed.

    >>> query, lessons, tyres = StaticEmbeddings().embed_documents(
    ...     ["How do I learn the guitar?", "Online lessons for guitarists", "Tyres for lorries"]
    ... )
    >>> len(query), bool(np.dot(query, lessons) > np.dot(query, tyres))
    (256, True)
    """

    @override
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = _embedded(texts).tolist()
        return vectors

    @override
    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def _embedded(texts: Sequence[str]) -> FloatArray:
    """Return (texts, 256), with rows of length 1 or 0."""
    # Python strings may hold half a surrogate pair, which no tokenizer takes.
    clean = [text.encode("utf-8", "replace").decode() for text in texts]
    with exit_waits():
        with _ONCE:
            table, tokenizer = _load()
        encoded = tokenizer.encode_batch_fast(clean, add_special_tokens=False)
    # The sum has the direction of the mean.
    sums = np.zeros((len(texts), table.shape[1]), np.float32)
    for row, encoding in zip(sums, encoded, strict=True):
        table[encoding.ids].sum(axis=0, out=row)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    np.divide(sums, lengths, out=sums, where=lengths > 0)
    return sums


@cache
def _load() -> tuple[FloatArray, Any]:
    """Return the table (tokens, 256) and the tokenizer."""
    (weights, tokens), _ = installed_files(_DISTRIBUTION, [_WEIGHTS, _TOKENIZER], _INSTALL)
    try:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingDependencyError(f"{error.name} is not installed. Run: {_INSTALL}") from error
    return load_file(weights)["embedding.weight"].astype(np.float32), Tokenizer.from_file(str(tokens))
