"""Replies are draws from the model's own distribution, each from its own stream of randomness."""

import itertools
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llm_auction_chain.errors import ConfigurationError, ContextWindowError, PromptError
from llm_auction_chain.models.local.device import dtype_named
from llm_auction_chain.models.local.engine import Engine, _stable, _window
from llm_auction_chain.models.local.sampler import Sampler
from llm_auction_chain.models.local.weights import embedded_model_path

HELLO = [{"role": "user", "content": "Name three fruits."}]


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


def draw(engine, prompt, n, *, seed, max_tokens, stop=(), progress=None, **sampler):
    options = {"max_tokens": max_tokens, "stop": stop, "sampler": Sampler(**sampler)}
    return engine.sample([([prompt], [1.0], n)], seed=seed, progress=progress, **options)


def full_log_prob(engine, prompt, reply, temperature=1.0):
    with torch.inference_mode():
        ids = torch.tensor([[*prompt, *reply.token_ids]])
        logits = engine.model(ids).logits[0, len(prompt) - 1 : -1].double() / temperature
    return logits.log_softmax(-1)[range(len(reply.token_ids)), list(reply.token_ids)].sum().item()


def test_the_same_seed_gives_the_same_replies(engine):
    prompt = engine.encode(HELLO)
    first = draw(engine, prompt, 3, seed=1, max_tokens=8)
    assert draw(engine, prompt, 3, seed=1, max_tokens=8) == first
    assert draw(engine, prompt, 3, seed=2, max_tokens=8) != first
    assert len({reply.token_ids for reply in first}) == 3


def test_a_candidate_does_not_depend_on_the_batch_size(engine):
    prompt = engine.encode(HELLO)
    many = draw(engine, prompt, 5, seed=7, max_tokens=12)
    few = draw(engine, prompt, 2, seed=7, max_tokens=12)
    assert [reply.token_ids for reply in few] == [reply.token_ids for reply in many[:2]]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_prob_agrees_with_a_full_forward_pass(engine, temperature):
    prompt = engine.encode(HELLO)
    for reply in draw(engine, prompt, 4, seed=3, max_tokens=16, temperature=temperature):
        assert sum(reply.log_probs) == pytest.approx(full_log_prob(engine, prompt, reply, temperature), abs=1e-3)


def test_log_prob_agrees_when_rows_leave_early(tiny, monkeypatch):
    # A fifth of the vocabulary ends a reply, so that rows leave the batch at different times.
    monkeypatch.setattr(tiny, "ends", set(range(0, 49152, 5)))
    replies = draw(tiny, [3, 4, 6], 12, seed=0, max_tokens=10)
    lengths = [len(reply.token_ids) for reply in replies]
    assert len(set(lengths)) > 3
    for reply in replies:
        assert sum(reply.log_probs) == pytest.approx(full_log_prob(tiny, [3, 4, 6], reply), abs=1e-3)
        assert (reply.token_ids[-1] % 5 == 0) == (reply.finish_reason == "stop")
        assert all(token % 5 for token in reply.token_ids[:-1])


def test_an_end_token_is_counted_and_not_shown(tiny, monkeypatch):
    monkeypatch.setattr(tiny, "ends", set(range(49152)))
    (reply,) = draw(tiny, [3], 1, seed=0, max_tokens=10)
    assert (len(reply.token_ids), reply.text, reply.finish_reason) == (1, "", "stop")


def test_end_tokens_come_from_the_model_and_the_tokenizer(tiny):
    assert tiny.ends == {tiny.tokenizer.eos_token_id, 5}


def test_temperature_zero_takes_the_likeliest_token(engine):
    prompt = engine.encode(HELLO)
    one, two = draw(engine, prompt, 2, seed=0, max_tokens=6, temperature=0)
    assert one == two
    assert sum(one.log_probs) == 0
    with torch.inference_mode():
        assert one.token_ids[0] == engine.model(torch.tensor([prompt])).logits[0, -1].argmax().item()


def test_a_stop_string_cuts_the_text_before_it(engine):
    prompt = engine.encode(HELLO)
    (whole,) = draw(engine, prompt, 1, seed=0, max_tokens=8, temperature=0)
    string = whole.text[4:7]
    (cut,) = draw(engine, prompt, 1, seed=0, max_tokens=8, temperature=0, stop=["never", string])
    assert cut.text == whole.text[: whole.text.index(string)]
    assert cut.finish_reason == "stop"
    assert whole.token_ids[: len(cut.token_ids)] == cut.token_ids


def test_a_stream_grows_into_the_sample(engine):
    prompt = engine.encode(HELLO)
    arguments = {"seed": 5, "max_tokens": 12, "stop": ["\n"], "temperature": 0.8}
    options = {"seed": 5, "max_tokens": 12, "stop": ["\n"], "sampler": Sampler(temperature=0.8)}
    states = list(engine.stream(prompt, **options))
    assert [states[-1]] == draw(engine, prompt, 1, **arguments)
    assert all(later.text.startswith(earlier.text) for earlier, later in itertools.pairwise(states))
    assert {state.finish_reason for state in states[:-1]} == {None}


def test_what_a_later_token_could_change_waits():
    assert _stable("caf\N{REPLACEMENT CHARACTER}", ()) == "caf"
    assert _stable("the EN", ("END", "N!")) == "the "
    assert _stable("the EX", ("END",)) == "the EX"


def test_progress_counts_the_finished_replies(tiny):
    seen = []
    replies = draw(tiny, [3], 4, seed=0, max_tokens=5, progress=seen.append)
    assert [pace.tokens for pace in seen] == sorted(pace.tokens for pace in seen)
    assert (seen[-1].finished, seen[-1].total) == (4, 4)
    assert seen[-1].tokens == sum(len(reply.token_ids) for reply in replies)
    assert 0 < seen[-1].tokens_per_second < math.inf


def test_the_window_clips_the_reply_and_refuses_a_prompt_that_fills_it(tiny):
    (reply,) = draw(tiny, [3] * 30, 1, seed=0, max_tokens=100)
    assert len(reply.token_ids) <= 2
    with pytest.raises(ContextWindowError, match="32 tokens and the model reads 32"):
        draw(tiny, [3] * 32, 1, seed=0, max_tokens=1)
    with pytest.raises(PromptError, match="no tokens"):
        draw(tiny, [], 1, seed=0, max_tokens=1)


def test_a_model_without_a_chat_template_reads_lines(tiny):
    assert tiny.tokenizer.decode(tiny.encode(HELLO)) == "user: Name three fruits.\nassistant:"


def test_a_conversation_the_template_refuses_is_a_configuration_error(engine, monkeypatch):
    monkeypatch.setattr(engine.tokenizer, "chat_template", "{{ raise_exception('no system turns') }}")
    with pytest.raises(ConfigurationError, match="no system turns"):
        engine.encode(HELLO)


def test_no_turns_are_nothing_to_reply_to(engine):
    with pytest.raises(PromptError, match="nothing to reply to"):
        engine.encode([])


def test_a_model_is_loaded_once(engine):
    assert Engine.load(str(embedded_model_path()), "float32", "cpu") is engine
    assert engine.model.dtype == torch.float32
    assert engine.window == 8192


def test_a_model_without_a_window_has_no_limit():
    assert _window(SimpleNamespace()) == sys.maxsize


def test_keys_are_not_kept_where_longer_texts_turn_them_otherwise():
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 4096}
    assert _window(SimpleNamespace(max_position_embeddings=131072, rope_parameters=rope)) == 4096


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path_or_hub_id": "/no/such/folder"}, "model='/no/such/folder' is neither a folder"),
        ({"path_or_hub_id": "x", "dtype": "int3"}, "dtype='int3' is none of auto"),
        ({"path_or_hub_id": "x", "device": "toaster"}, "device='toaster' is not one"),
    ],
)
def test_a_wrong_setting_is_named(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        Engine.load(**arguments)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="is neither a folder with"):
        Engine.load(tmp_path)


@pytest.mark.parametrize("computes", [True, False])
def test_auto_dtype_is_what_the_device_computes_in(monkeypatch, computes):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: computes, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    expected = torch.bfloat16 if computes else torch.float32
    assert dtype_named("auto", torch.device("cpu")) == expected
    assert dtype_named("auto", torch.device("mps")) == torch.float32


def combined_log_prob(engine, prompts, powers, reply, temperature):
    with torch.inference_mode():
        logits = sum(
            power * engine.model(torch.tensor([[*prompt, *reply]])).logits[0, len(prompt) - 1 : -1].double()
            for prompt, power in zip(prompts, powers, strict=True)
        )
    return (logits / temperature).log_softmax(-1)[range(len(reply)), list(reply)].sum().item()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_are_those_of_full_forward_passes_under_every_condition(tiny, temperature):
    prompts = [[3, 4, 6], [9, 8, 7, 6, 10], [12]]
    powers = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-0.5, 1.0, 0.5], [0.6, 0.0, 0.4]]
    replies = [[7], [3, 9, 11, 4], [], [20, 21], [5], [3, 9, 11, 2, 8, 9, 10]]
    scores = tiny.score(prompts, powers, replies, Sampler(temperature=temperature))
    assert scores.shape == (4, 6)
    for c, row in enumerate(powers):
        for j, reply in enumerate(replies):
            exact = combined_log_prob(tiny, prompts, row, reply, temperature) if reply else 0.0
            assert scores[c, j] == pytest.approx(exact, abs=1e-4)


def test_scores_are_those_of_the_draws(tiny):
    prompts, powers, sampler = [[3, 4, 6], [9, 8]], [0.4, 0.6], Sampler(top_p=0.9, top_k=50, temperature=0.8)
    replies = tiny.sample([(prompts, powers, 6)], seed=2, max_tokens=9, sampler=sampler)
    (scores,) = tiny.score(prompts, [powers], [reply.token_ids for reply in replies], sampler)
    assert scores == pytest.approx([sum(reply.log_probs) for reply in replies], abs=1e-4)


def test_a_token_that_cannot_be_drawn_has_probability_nothing(tiny):
    (greedy,) = draw(tiny, [3, 4], 1, seed=0, max_tokens=4, temperature=0)
    other = [(greedy.token_ids[0] + 1) % 50, *greedy.token_ids[1:]]
    for sampler in (Sampler(temperature=0), Sampler(top_k=1), Sampler(top_p=1e-6)):
        (scores,) = tiny.score([[3, 4]], [[1.0]], [greedy.token_ids, other], sampler)
        assert scores.tolist() == [0.0, -math.inf]


def test_conditions_draw_their_own_rows_whatever_stands_beside_them(tiny):
    options = {"seed": 4, "max_tokens": 6, "sampler": Sampler()}
    both = tiny.sample([([[3, 4]], [1.0], 2), ([[3, 4], [9]], [0.5, 0.5], 3)], **options)
    assert both[:2] == tiny.sample([([[3, 4]], [1.0], 2)], **options)
    assert len(both) == 5


def test_nothing_asked_is_nothing_scored(tiny):
    assert tiny.score([], [], [[4, 5]], Sampler()).shape == (0, 1)
    assert tiny.score([[3]], [[1.0]], [], Sampler()).shape == (1, 0)
    nothing = tiny.score([[3], [4]], np.eye(2), [[5], [6, 7]], Sampler(), wanted=np.zeros((2, 2), dtype=bool))
    assert np.isnan(nothing).all()


def test_a_reply_that_does_not_fit_cannot_be_scored(tiny):
    with pytest.raises(ContextWindowError, match="shorten"):
        tiny.score([[3] * 30], [[1.0]], [[4, 5, 6]], Sampler())
