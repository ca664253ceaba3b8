"""Embeddings that need no network, and are those of the package whose weights they are."""

import asyncio
import json
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest

from llm_auction_chain.errors import MissingDependencyError
from llm_auction_chain.models.local import embeddings
from llm_auction_chain.models.local.embeddings import StaticEmbeddings

SENTENCES = [
    "StringSchool gives online guitar lessons.",
    "TuneTown sells used instruments, pianos above all, in Zürich and 東京 🎸.",
    "a",
    " two  spaces\nand a line ",
    "SongBook prints songs. " * 40,
]

# Runs in a process of its own: whoever looks up a host or talks to one ends it.
ALONE = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise SystemExit(event)
sys.addaudithook(refuse)
from llm_auction_chain.models.local.embeddings import StaticEmbeddings
print(len(StaticEmbeddings().embed_query("How do I learn the guitar?")))
print([name for name in ("wordllama", "huggingface_hub", "torch", "transformers") if name in sys.modules])
import socket
socket.getaddrinfo("localhost", 80)
"""

# The package's own way, in a process of its own: importing it sets up the root logger.
THEIRS = """
import json, sys
from pathlib import Path
import wordllama
folder = Path(wordllama.__file__).parent
model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
print(json.dumps(model.embed(json.load(sys.stdin), norm=True).tolist()))
"""


def run(code, given=""):
    return subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, text=True, check=False)  # noqa: S603


@pytest.fixture
def unloaded():
    embeddings._load.cache_clear()
    yield
    embeddings._load.cache_clear()


def test_nothing_is_asked_of_a_network():
    done = run(ALONE)
    assert done.stdout.split("\n")[:2] == ["256", "[]"]
    # the trap itself works
    assert done.returncode == 1
    assert done.stderr.startswith("socket.getaddrinfo")


def test_the_vectors_are_those_of_the_package():
    theirs = run(THEIRS, json.dumps(SENTENCES))
    assert theirs.returncode == 0, theirs.stderr
    np.testing.assert_allclose(StaticEmbeddings().embed_documents(SENTENCES), json.loads(theirs.stdout), atol=2e-6)


def test_a_vector_has_length_one_and_does_not_depend_on_its_company():
    together = StaticEmbeddings().embed_documents(SENTENCES)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, rtol=1e-6)
    for sentence, vector in zip(SENTENCES, together, strict=True):
        assert StaticEmbeddings().embed_query(sentence) == vector


def test_a_text_without_tokens_is_zeros():
    zeros, something = StaticEmbeddings().embed_documents(["", "something"])
    assert zeros == [0.0] * 256
    assert np.isfinite(something).all()
    assert StaticEmbeddings().embed_query("") == zeros


def test_no_texts_are_no_vectors():
    assert StaticEmbeddings().embed_documents([]) == []


def test_half_a_surrogate_pair_is_embedded():
    assert StaticEmbeddings().embed_query("guitar" + chr(0xD83C)) == StaticEmbeddings().embed_query("guitar?")


def test_what_means_the_same_is_nearer():
    query, *others = StaticEmbeddings().embed_documents(
        [
            "I want to learn to play the guitar",
            "Music teachers for beginners on string instruments",
            "Emergency plumbers for burst pipes",
            "Tax advice for small companies",
        ]
    )
    similar = np.dot(others, query)
    assert similar.argmax() == 0


async def test_the_async_twins_give_the_same():
    embedder = StaticEmbeddings()
    assert await embedder.aembed_documents(SENTENCES) == embedder.embed_documents(SENTENCES)
    assert await embedder.aembed_query(SENTENCES[0]) == embedder.embed_query(SENTENCES[0])


def test_threads_read_the_table_once(unloaded, monkeypatch):
    reads = []
    find = embeddings.installed_files
    monkeypatch.setattr(embeddings, "installed_files", lambda *names: reads.append(names) or find(*names))

    async def all_at_once():
        return await asyncio.gather(*(StaticEmbeddings().aembed_query("guitar") for _ in range(8)))

    vectors = asyncio.run(all_at_once())
    assert len(reads) == 1
    assert all(vector == vectors[0] for vector in vectors)


def test_what_is_not_installed_is_named_with_its_command(unloaded, monkeypatch):
    monkeypatch.setattr(embeddings, "_DISTRIBUTION", "no-such-distribution")
    with pytest.raises(MissingDependencyError, match=r"Run: pip install 'llm-auction-chain\[embeddings\]'"):
        StaticEmbeddings().embed_query("guitar")
    monkeypatch.undo()
    assert len(StaticEmbeddings().embed_query("guitar")) == 256


def test_a_package_without_the_weights_is_named_with_its_version(unloaded, monkeypatch):
    monkeypatch.setattr(embeddings, "_WEIGHTS", "other.safetensors")
    version = metadata.version("wordllama")
    with pytest.raises(MissingDependencyError, match=rf"wordllama {version} is installed without other.safetensors"):
        StaticEmbeddings().embed_query("guitar")


@pytest.mark.parametrize("module", ["safetensors.numpy", "tokenizers"])
def test_a_reader_that_is_not_installed_is_named(module, unloaded, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"{module} is not installed. Run: pip install 'llm-auction"):
        StaticEmbeddings().embed_query("guitar")
