"""Engines: of the embedded model, and of a random model that is fast."""

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llm_auction_chain.models.local.engine import Engine
from llm_auction_chain.models.local.weights import embedded_model_path


@pytest.fixture(scope="module")
def engine():
    return Engine.load(embedded_model_path(), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random two-layer Llama with a window of 32 tokens and no chat template."""
    path = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path())
    tokenizer.chat_template = None
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        eos_token_id=[tokenizer.eos_token_id, 5],
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return Engine.load(path, dtype="float32", device="cpu")
