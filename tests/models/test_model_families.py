"""Log-probabilities are those of plain forward passes, whatever a model's attention, positions, windows or state."""

import copy
import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llm_auction_chain.errors import ContextWindowError
from llm_auction_chain.models.local.engine import Drawing, Engine
from llm_auction_chain.models.local.passes import Passes, SharedPasses
from llm_auction_chain.models.local.sampler import Sampler
from tests.families import FAMILIES, VOCABULARY, WINDOW, build, combined_log_probs, full_log_probs, round_to, words

SEVEN = [11, 5, 42, 3, 29, 17, 8]
TWELVE = [9, 33, 21, 4, 56, 48, 2, 13, 37, 25, 50, 19]
ONE = [31]
PROMPTS = [SEVEN, TWELVE, ONE]
PRODUCT = ([SEVEN, TWELVE], [0.6, 0.4])
CONTRAST = (PROMPTS, [-0.5, 1.0, 0.5])
CONDITIONS = [Drawing([SEVEN], [1.0], 3), Drawing([TWELVE], [1.0], 2), Drawing(*PRODUCT, 3), Drawing(*CONTRAST, 3)]
POWERS = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.6, 0.4, 0.0], [-0.5, 1.0, 0.5]]
LONG = [14, 7, 52, 23, 46, 1, 38, 20, 0]
REPLIES = [[6], [], LONG, [40, 12], [44, 10, 27, 58, 35], LONG, LONG[:5], [6]]
OPTIONS = {"max_tokens": 9, "sampler": Sampler()}
CLOSE = 1e-4
# Their state, or what their masks hide, is not in the keys and values: each pass reads whole texts.
UNSHARED = {
    "bloom", "falcon", "falcon-alibi", "falcon-h1", "glm-sparse-mask", "jamba", "lfm2", "llama4-mask", "mamba",
    "phimoe-mask", "qwen3-next", "recurrent-gemma",
}  # fmt: skip
# Nats a token by which bfloat16 may be off: twice what a plain pass in bfloat16 is, at most (llama 0.06, qwen2 0.14).
ROUNDED = 0.3
# Half of the replies, where rounding sends some tokens to other experts (a plain pass is off by 0.08 with mixtral).
REROUTED = 0.2


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    reference = build(request.param)
    engine = Engine(copy.deepcopy(reference), words())
    engine.ends = set()  # every reply gets long
    return SimpleNamespace(name=request.param, engine=engine, reference=reference)


@pytest.fixture(scope="module")
def llama():
    reference = build("llama")
    return SimpleNamespace(engine=Engine(copy.deepcopy(reference), words()), reference=reference)


def each_with_its_condition(conditions, replies):
    conditions = [(one.prompts, one.powers) for one in conditions for _ in range(one.count)]
    return zip(conditions, replies, strict=True)


def full_scores(model, replies):
    """Log-probabilities (len(POWERS), M); every prompt and reply is read once."""
    scores = np.zeros((len(POWERS), len(replies)))
    for j, reply in enumerate(replies):
        laws = torch.stack([full_log_probs(model, prompt, reply) for prompt in PROMPTS])
        for c, powers in enumerate(POWERS):
            law = torch.tensordot(torch.tensor(powers, dtype=torch.float64), laws, dims=1).log_softmax(-1)
            scores[c, j] = law[range(len(reply)), reply].sum().item()
    return scores


def test_log_probabilities_are_those_of_full_forward_passes(family):
    replies = family.engine.sample(CONDITIONS, seed=3, **OPTIONS)
    assert len({reply.token_ids for reply in replies}) == len(replies)
    for (prompts, powers), reply in each_with_its_condition(CONDITIONS, replies):
        exact = combined_log_probs(family.reference, prompts, powers, reply.token_ids)
        assert reply.log_probs == pytest.approx(exact, abs=CLOSE)
        assert sum(reply.log_probs) == pytest.approx(exact.sum(), abs=CLOSE)


def test_prefixes_are_shared_where_a_models_state_is_in_its_keys_and_values(family):
    assert type(family.engine._passes) is (Passes if family.name in UNSHARED else SharedPasses)


def test_scores_are_those_of_full_forward_passes(family):
    scores = family.engine.score(PROMPTS, POWERS, REPLIES, Sampler())
    assert scores == pytest.approx(full_scores(family.reference, REPLIES), abs=CLOSE)


def test_a_prompt_that_goes_on_where_another_stayed_is_scored_as_one_read_whole(family):
    family.engine.score([TWELVE], [[1.0]], REPLIES, Sampler())
    prompts = [[*TWELVE, *SEVEN], [*TWELVE[:5], *SEVEN], TWELVE[:4]]
    scores = family.engine.score(prompts, np.eye(3), REPLIES, Sampler())
    for prompt, row in zip(prompts, scores, strict=True):
        exact = [combined_log_probs(family.reference, [prompt], [1.0], reply).sum() for reply in REPLIES if reply]
        assert row[[bool(reply) for reply in REPLIES]] == pytest.approx(exact, abs=CLOSE)


def test_rows_that_leave_early_take_nothing_from_the_others(family, monkeypatch):
    monkeypatch.setattr(family.engine, "ends", set(range(0, VOCABULARY, 3)))
    conditions = [Drawing([TWELVE], [1.0], 10), Drawing(*CONTRAST, 10)]
    replies = family.engine.sample(conditions, seed=5, **OPTIONS)
    assert len({len(reply.token_ids) for reply in replies}) > 2
    for (prompts, powers), reply in each_with_its_condition(conditions, replies):
        exact = combined_log_probs(family.reference, prompts, powers, reply.token_ids)
        assert reply.log_probs == pytest.approx(exact, abs=CLOSE)


def test_a_stream_ends_in_the_sample(family):
    (sampled,) = family.engine.sample([Drawing([SEVEN], [1.0], 1)], seed=11, **OPTIONS)
    *_, streamed = family.engine.stream(SEVEN, seed=11, **OPTIONS)
    assert (streamed.token_ids, streamed.text) == (sampled.token_ids, sampled.text)
    assert streamed.log_probs == pytest.approx(sampled.log_probs, abs=CLOSE)


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_is_as_close_as_its_rounding(name, tmp_path):
    rounded, reference = round_to(torch.bfloat16, build(name), tmp_path)
    scores = Engine(rounded, words()).score(PROMPTS, POWERS, REPLIES, Sampler())
    lengths = np.array([len(reply) for reply in REPLIES])
    off = np.abs(scores - full_scores(reference, REPLIES))[:, lengths > 0] / lengths[lengths > 0]
    if hasattr(reference.config, "num_experts_per_tok"):
        assert np.median(off) < REROUTED
    else:
        assert off.max() < ROUNDED


def test_a_prompt_that_fills_the_window_is_refused(llama):
    with pytest.raises(ContextWindowError, match=f"{WINDOW} tokens and the model reads {WINDOW}"):
        llama.engine.sample([Drawing([[1] * WINDOW], [1.0], 2)], seed=0, **OPTIONS)
    with pytest.raises(ContextWindowError, match="Shorten the prompt"):
        llama.engine.sample([Drawing([SEVEN, [1] * (WINDOW + 5)], [0.5, 0.5], 2)], seed=0, **OPTIONS)
    with pytest.raises(ContextWindowError, match="Shorten the prompt"):
        llama.engine.score([SEVEN, [1] * WINDOW], [[1.0, 0.0]], [[2]], Sampler())


def test_a_text_may_fill_the_window(llama):
    prompt = [*SEVEN, *TWELVE, *SEVEN, *TWELVE]
    for reply in llama.engine.sample([Drawing([prompt], [1.0], 4)], seed=0, max_tokens=99, sampler=Sampler()):
        assert len(prompt) + len(reply.token_ids) <= WINDOW
        exact = combined_log_probs(llama.reference, [prompt], [1.0], reply.token_ids)
        assert reply.log_probs == pytest.approx(exact, abs=CLOSE)


@pytest.mark.parametrize("condition", [([SEVEN], [1.0]), CONTRAST])
def test_a_single_candidate_is_the_first_of_many(llama, condition):
    (alone,) = llama.engine.sample([Drawing(*condition, 1)], seed=2, **OPTIONS)
    first = llama.engine.sample([Drawing(*condition, 40)], seed=2, **OPTIONS)[0]
    assert alone.token_ids == first.token_ids
    assert alone.log_probs == pytest.approx(first.log_probs, abs=CLOSE)


def test_replies_do_not_depend_on_the_rows_beside_them(llama):
    few = llama.engine.sample([Drawing(*PRODUCT, 5)], seed=2, **OPTIONS)
    many = llama.engine.sample(
        [Drawing(*PRODUCT, 5), Drawing([TWELVE], [1.0], 20), Drawing(*CONTRAST, 7)], seed=2, **OPTIONS
    )
    assert [reply.token_ids for reply in few] == [reply.token_ids for reply in many[:5]]
    for alone, beside in zip(few, many, strict=False):
        assert alone.log_probs == pytest.approx(beside.log_probs, abs=CLOSE)


@pytest.mark.parametrize("condition", [([TWELVE], [1.0]), PRODUCT])
def test_a_thousand_candidates_do_not_depend_on_the_tokens_of_a_pass(llama, condition):
    options = {"seed": 1, "max_tokens": 3, "sampler": Sampler()}
    narrow = Engine(copy.deepcopy(llama.reference), words(), max_batch_tokens=64)
    many = llama.engine.sample([Drawing(*condition, 1000)], **options)
    same = narrow.sample([Drawing(*condition, 1000)], **options)
    assert [reply.token_ids for reply in many] == [reply.token_ids for reply in same]
    assert np.concatenate([reply.log_probs for reply in many]) == pytest.approx(
        np.concatenate([reply.log_probs for reply in same]), abs=CLOSE
    )
    for reply in many[::50]:
        exact = combined_log_probs(llama.reference, *condition, reply.token_ids)
        assert reply.log_probs == pytest.approx(exact, abs=CLOSE)


def test_scores_do_not_depend_on_the_tokens_of_a_pass(llama):
    # Fewer tokens than a prompt has, and than a reply has.
    narrow = Engine(copy.deepcopy(llama.reference), words(), max_batch_tokens=4)
    scores = narrow.score(PROMPTS, POWERS, REPLIES, Sampler())
    assert scores == pytest.approx(full_scores(llama.reference, REPLIES), abs=CLOSE)


@pytest.mark.parametrize("pad_token", [None, "<end>", "word3"])
def test_no_padding_token_is_needed_or_used(llama, pad_token):
    tokenizer = words(pad_token)
    assert tokenizer.pad_token == pad_token
    engine = Engine(copy.deepcopy(llama.reference), tokenizer)
    padded = engine.sample(CONDITIONS, seed=3, **OPTIONS)
    plain = llama.engine.sample(CONDITIONS, seed=3, **OPTIONS)
    assert [reply.token_ids for reply in padded] == [reply.token_ids for reply in plain]
    scores = engine.score(PROMPTS, POWERS, REPLIES, Sampler())
    assert scores == pytest.approx(full_scores(llama.reference, REPLIES), abs=CLOSE)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_a_compiled_model_shares_prefixes_too(name, monkeypatch):
    # Traced as ever, but not translated: that takes a C++ compiler and minutes.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    reference = build(name)
    engine = Engine(copy.deepcopy(reference), words(), compiled=True)
    assert isinstance(engine._passes, SharedPasses)
    assert engine.score(PROMPTS, POWERS, REPLIES, Sampler()) == pytest.approx(
        full_scores(reference, REPLIES), abs=CLOSE
    )
    (reply,) = engine.sample([Drawing([SEVEN], [1.0], 1)], seed=1, **OPTIONS)
    assert reply.log_probs == pytest.approx(combined_log_probs(reference, [SEVEN], [1.0], reply.token_ids), abs=CLOSE)
