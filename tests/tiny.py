"""A Llama of seven words with random weights, whose short replies can all be listed; and what to ask of an engine."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llm_auction_chain.models.local.attention import Reading
from llm_auction_chain.models.local.engine import Drawing
from llm_auction_chain.models.local.passes import SharedPasses
from llm_auction_chain.models.local.sampler import Sampler

WORDS = ["<end>", "user", ":", "assistant", "Hi", "system", "no"]  # every other word of a prompt is read as "no"


def save_seven_words(folder):
    words = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="no"))  # noqa: S106
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(folder)  # noqa: S106
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, eos_token_id=0, initializer_range=0.6,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def tokens_of_prompts(monkeypatch):
    """Return a list that from now on gets how many tokens of prompts each pass reads."""
    read = []
    states = SharedPasses._states

    def watched(passes, tokens, ids):
        if isinstance(tokens, Reading) and all(group.reads for group in tokens.groups):
            read.append(len(ids))
        return states(passes, tokens, ids)

    monkeypatch.setattr(SharedPasses, "_states", watched)
    return read


def draw(engine, prompt, n, *, seed, max_tokens, stop=(), progress=None, **sampler):
    options = {"max_tokens": max_tokens, "stop": stop, "sampler": Sampler(**sampler)}
    return engine.sample([Drawing([prompt], [1.0], n)], seed=seed, progress=progress, **options)


def full_log_prob(engine, prompt, reply, temperature=1.0):
    with torch.inference_mode():
        ids = torch.tensor([[*prompt, *reply.token_ids]])
        logits = engine.model(ids).logits[0, len(prompt) - 1 : -1].double() / temperature
    return logits.log_softmax(-1)[range(len(reply.token_ids)), list(reply.token_ids)].sum().item()


def combined_log_prob(engine, prompts, powers, reply, temperature):
    with torch.inference_mode():
        logits = sum(
            power * engine.model(torch.tensor([[*prompt, *reply]])).logits[0, len(prompt) - 1 : -1].double()
            for prompt, power in zip(prompts, powers, strict=True)
        )
    return (logits / temperature).log_softmax(-1)[range(len(reply)), list(reply)].sum().item()
