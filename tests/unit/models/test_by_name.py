"""Models by their names."""

import sys

import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from llm_auction_chain.errors import ConfigurationError, MissingDependencyError
from llm_auction_chain.models.by_name import embeddings_by_name, model_by_name
from llm_auction_chain.models.local.chat_model import ChatTransformers
from llm_auction_chain.models.local.embeddings import StaticEmbeddings
from llm_auction_chain.models.vllm.chat_model import ChatVLLM


def test_a_path_or_no_name_is_a_local_model_that_is_not_loaded_yet(tmp_path):
    assert model_by_name(None, max_tokens=3) == ChatTransformers(max_tokens=3)
    assert model_by_name(None) == ChatTransformers()
    folder = tmp_path / "llama:7b"
    folder.mkdir()
    assert model_by_name(str(folder), max_tokens=3).model == str(folder)


def test_a_provider_and_a_model_are_what_langchain_makes_of_them(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk")
    model = model_by_name("openai:gpt-4.1", max_tokens=3)
    assert isinstance(model, ChatOpenAI)
    assert (model.model_name, model.max_tokens) == ("gpt-4.1", 3)
    assert model_by_name("openai:gpt-4.1").max_tokens is None


def test_a_model_on_a_vllm_server_has_its_name_there_or_none():
    model = model_by_name("vllm:llama", max_tokens=3, base_url="http://gpu:8000/v1", temperature=0.7)
    assert model == ChatVLLM(model="llama", max_tokens=3, base_url="http://gpu:8000/v1", temperature=0.7)
    assert model_by_name("vllm:").model is None
    with pytest.raises(ConfigurationError, match="base_url must be a URL: http://HOST:PORT/v1, got 'gpu'"):
        model_by_name("vllm:llama", base_url="gpu")


def test_what_cannot_be_set_up_is_named(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="The model 'openai:gpt-4' could not be set up"):
        model_by_name("openai:gpt-4", max_tokens=3)
    with pytest.raises(MissingDependencyError, match="langchain-cohere"):
        model_by_name("cohere:command", max_tokens=3)
    monkeypatch.setitem(sys.modules, "langchain.chat_models", None)
    with pytest.raises(MissingDependencyError, match="'openai:gpt-4' needs langchain"):
        model_by_name("openai:gpt-4", max_tokens=3)


def test_embeddings_have_names_as_chat_models_have(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk")
    assert isinstance(embeddings_by_name(None), StaticEmbeddings)
    embeddings = embeddings_by_name("openai:text-embedding-3-small")
    assert isinstance(embeddings, OpenAIEmbeddings)
    assert embeddings.model == "text-embedding-3-small"
    with pytest.raises(ConfigurationError, match="The model 'small' could not be set up"):
        embeddings_by_name("small")
