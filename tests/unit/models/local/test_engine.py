"""Replies are draws from the model's own distribution, each from its own stream of randomness."""

import itertools
import math
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest
import torch

from llm_auction_chain.candidates.tilts import Tilt
from llm_auction_chain.descriptions import Keywords, keywords_of
from llm_auction_chain.errors import ConfigurationError, ContextWindowError, PromptError
from llm_auction_chain.models.local.decoding import Row
from llm_auction_chain.models.local.engine import Drawing, Engine, FifoLock, _stable, _stream
from llm_auction_chain.models.local.sampler import Sampler
from llm_auction_chain.models.local.weights import embedded_model_path
from tests.families import build, words
from tests.tiny import draw, full_log_prob, tokens_of_prompts

HELLO = [{"role": "user", "content": "Name three fruits."}]


def test_the_same_seed_gives_the_same_replies(tiny):
    prompt = tiny.encode(HELLO)
    first = draw(tiny, prompt, 3, seed=1, max_tokens=8)
    assert draw(tiny, prompt, 3, seed=1, max_tokens=8) == first
    assert draw(tiny, prompt, 3, seed=2, max_tokens=8) != first
    assert len({reply.token_ids for reply in first}) == 3


def test_a_candidate_does_not_depend_on_the_batch_size(tiny):
    prompt = tiny.encode(HELLO)
    many = draw(tiny, prompt, 5, seed=7, max_tokens=12)
    few = draw(tiny, prompt, 2, seed=7, max_tokens=12)
    assert [reply.token_ids for reply in few] == [reply.token_ids for reply in many[:2]]


def test_log_probs_of_the_embedded_model_agree_with_a_full_forward_pass(engine):
    prompt = engine.encode(HELLO)
    for reply in draw(engine, prompt, 2, seed=3, max_tokens=6):
        assert sum(reply.log_probs) == pytest.approx(full_log_prob(engine, prompt, reply), abs=1e-3)


def test_log_probs_agree_with_a_full_forward_pass_at_another_temperature(tiny):
    for reply in draw(tiny, [3, 4, 6], 4, seed=3, max_tokens=16, temperature=0.5):
        assert sum(reply.log_probs) == pytest.approx(full_log_prob(tiny, [3, 4, 6], reply, 0.5), abs=1e-3)


def test_end_tokens_come_from_the_model_and_the_tokenizer(tiny):
    assert tiny.ends == {tiny.tokenizer.eos_token_id, 5}


def test_temperature_zero_takes_the_likeliest_token(tiny):
    prompt = tiny.encode(HELLO)
    one, two = draw(tiny, prompt, 2, seed=0, max_tokens=6, temperature=0)
    assert one == two
    assert sum(one.log_probs) == 0
    with torch.inference_mode():
        assert one.token_ids[0] == tiny.model(torch.tensor([prompt])).logits[0, -1].argmax().item()


def test_a_stop_string_cuts_the_text_before_it(tiny):
    prompt = tiny.encode(HELLO)
    (whole,) = draw(tiny, prompt, 1, seed=0, max_tokens=8, temperature=0)
    string = whole.text[4:7]
    (cut,) = draw(tiny, prompt, 1, seed=0, max_tokens=8, temperature=0, stop=["never", string])
    assert cut.text == whole.text[: whole.text.index(string)]
    assert cut.finish_reason == "stop"
    assert whole.token_ids[: len(cut.token_ids)] == cut.token_ids


def test_overlapping_stop_strings_cut_at_the_earliest(tiny):
    prompt = tiny.encode(HELLO)
    (whole,) = draw(tiny, prompt, 1, seed=0, max_tokens=8, temperature=0)
    # The strings overlap in the text and come into view with the same token, the later one first in the list.
    early, late = whole.text[3:7], whole.text[5:8]
    assert whole.text.index(early) < whole.text.index(late) < whole.text.index(early) + len(early)
    for stop in ([late, early], [early, late]):
        (cut,) = draw(tiny, prompt, 1, seed=0, max_tokens=8, temperature=0, stop=stop)
        assert cut.text == whole.text[:3]
        *_, streamed = tiny.stream(prompt, seed=0, max_tokens=8, sampler=Sampler(temperature=0), stop=stop)
        assert streamed.text == cut.text


def test_a_row_ends_at_the_earliest_of_its_stop_strings(tiny, monkeypatch):
    """Whatever their order, also where one contains the other and one token completes both."""
    monkeypatch.setattr(tiny, "_text", lambda token_ids: "abcdef")
    for stop in (["cd", "bcde"], ["bcde", "cd"], ["e", "cdef", "bcd"], ["f", "b"]):
        row = Row(uniforms=np.random.default_rng(0), token_ids=[7])
        tiny._finish(row, 10, stop)
        assert (row.text, row.finish_reason) == ("a", "stop")


def test_a_stop_string_may_contain_a_special_token(tiny):
    """No text shows it. The reply ends before the string, whatever else is in it."""
    ids = tiny.tokenizer.convert_tokens_to_ids(["<|im_start|>", "a", "b", "<|im_end|>"])
    start, a, b, end = ids
    for stop, tokens, text in [
        ("<|im_start|>", [a, start], "a"),
        ("<|im_start|>", [start], ""),
        ("<|im_start|>", [a, end], "a"),
        ("b<|im_start|>", [start, a, b, start], "a"),
        ("<|im_start|>a", [b, start, a], "b"),
        ("b<|im_end|>", [a, b, end], "a"),
    ]:
        row = Row(uniforms=np.random.default_rng(0), token_ids=tokens)
        tiny._finish(row, 10, ["never", stop])
        assert (row.text, row.finish_reason) == (text, "stop")
    row = Row(uniforms=np.random.default_rng(0), token_ids=[a, start])
    tiny._finish(row, 10, ["b<|im_start|>"])
    assert row.finish_reason is None


def test_neighbouring_seeds_and_rows_share_no_stream_of_randomness():
    """No two of 8 seeds x 8 rows draw one number in common, at any place of their streams."""
    streams = {(seed, row): _stream(seed, row).random(200) for seed in range(8) for row in range(8)}
    numbers = np.concatenate(list(streams.values()))
    assert len(np.unique(numbers)) == len(numbers)
    # Nor does a large seed begin where the next one does.
    assert len({_stream(seed, 0).random() for seed in (2**32, 2**32 + 1, 2**64 - 1, 1, 0)}) == 5


def test_neighbouring_seeds_and_rows_draw_different_replies(tiny):
    replies = [reply.token_ids for seed in range(3) for reply in draw(tiny, [3], 3, seed=seed, max_tokens=12)]
    assert len(set(replies)) == 9


def test_a_stream_grows_into_the_sample(tiny):
    prompt = tiny.encode(HELLO)
    arguments = {"seed": 5, "max_tokens": 12, "stop": ["\n"], "temperature": 0.8}
    options = {"seed": 5, "max_tokens": 12, "stop": ["\n"], "sampler": Sampler(temperature=0.8)}
    states = list(tiny.stream(prompt, **options))
    assert [states[-1]] == draw(tiny, prompt, 1, **arguments)
    assert all(later.text.startswith(earlier.text) for earlier, later in itertools.pairwise(states))
    assert {state.finish_reason for state in states[:-1]} == {None}


def test_what_a_later_token_could_change_waits():
    assert _stable("caf\N{REPLACEMENT CHARACTER}", ()) == "caf"
    assert _stable("the EN", ("END", "N!")) == "the "
    assert _stable("the EX", ("END",)) == "the EX"


def test_progress_counts_the_finished_replies(tiny):
    seen = []
    draw(tiny, [3, 8, 1, 9], 4, seed=0, max_tokens=5, progress=lambda *progress: seen.append(progress))
    finished, totals, paces = zip(*seen, strict=True)
    assert list(finished) == sorted(finished)
    assert (finished[0], finished[-1]) == (0, 4)
    assert set(totals) == {4}
    assert paces[0] == 0.0, "the first call comes after the prompt, before any token"
    assert all(0 < pace < math.inf for pace in paces[1:])


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


def test_prompts_that_stay_take_a_quarter_of_the_batch_unless_a_setting_says_otherwise():
    for given, most in [({}, 10), ({"max_cached_tokens": 7}, 7), ({"max_cached_tokens": 0}, 0)]:
        assert Engine(build("llama"), words(), max_batch_tokens=40, **given).max_cached_tokens == most


def test_scoring_reads_no_prompt_that_drawing_has_read(tiny, monkeypatch):
    prompts, sampler = [[31, 4, 15, 9], [31, 4, 26]], Sampler()
    read = tokens_of_prompts(monkeypatch)
    replies = tiny.sample([Drawing([prompt], [1.0], 2) for prompt in prompts], seed=1, max_tokens=4, sampler=sampler)
    assert sum(read) == 4 + 1, "what the second one shares with the first is not read again"
    scores = tiny.score([*prompts, [31, 4, 26, 5]], np.eye(3), [reply.token_ids for reply in replies], sampler)
    assert sum(read) == 4 + 1 + 1
    own = [scores[0, 0], scores[0, 1], scores[1, 2], scores[1, 3]]
    assert own == pytest.approx([sum(reply.log_probs) for reply in replies], abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path_or_hub_id": "/no/such/folder"}, "model must be a folder with .*, got '/no/such/folder'"),
        ({"path_or_hub_id": "x", "dtype": "int3"}, "dtype must be 'auto' or 'bfloat16' or .*, got 'int3'"),
        ({"path_or_hub_id": "x", "device": "toaster"}, "device must be one that torch can use here, got 'toaster'"),
    ],
)
def test_a_wrong_setting_is_named(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        Engine.load(**arguments)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="model must be a folder with"):
        Engine.load(tmp_path)


def wait_until(true, seconds=30.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.001)


def line_up(pool, queue, done, *names, cancel=None):
    """Let threads ask for a turn, one surely after the other."""
    futures = []
    for name in names:
        before = len(queue._waiting)

        def take(name=name):
            with queue.turn(cancel):
                done.append(name)

        futures.append(pool.submit(take))
        wait_until(lambda before=before: len(queue._waiting) > before)
    return futures


def test_turns_come_in_the_order_in_which_they_were_asked_for():
    queue, done = FifoLock(), []
    with ThreadPoolExecutor(5) as pool:
        with queue.turn():
            futures = line_up(pool, queue, done, *range(5))
            assert not done
        for future in futures:
            future.result()
    assert done == list(range(5))


def test_an_abandoned_thread_leaves_and_the_next_one_goes_on():
    queue, done, cancel = FifoLock(), [], threading.Event()
    with ThreadPoolExecutor(2) as pool:
        with queue.turn():
            (abandoned,) = line_up(pool, queue, done, "abandoned", cancel=cancel)
            (next_one,) = line_up(pool, queue, done, "next")
            cancel.set()
            with pytest.raises(CancelledError):
                abandoned.result()
        next_one.result()
    assert done == ["next"]
    assert not queue._waiting


def test_a_turn_that_fails_is_handed_on():
    queue = FifoLock()
    with pytest.raises(ValueError, match="mine"), queue.turn():
        raise ValueError("mine")
    with queue.turn():
        assert len(queue._waiting) == 1


def tokens_of(engine, *words, chosen=True):
    keywords = Keywords(tuple(sorted(words)), chosen=chosen)
    (tokens,) = engine.keyword_tokens(Tilt(keywords=(keywords,), strength=1.0))
    return {engine.tokenizer.decode([token]) for token in tokens}


def test_a_keyword_begins_in_every_spelling_that_the_tokenizer_has(engine):
    assert tokens_of(engine, "guitar") == {" guitar", " Guitar"}
    assert tokens_of(engine, "Water") == {" Water", "Water", " water", "water"}


def test_the_common_words_of_a_description_are_no_keywords_unless_the_agent_chose_them(engine):
    sentence = keywords_of("OakBank offers a savings account with a fixed rate for the people that need it.")
    (tokens,) = engine.keyword_tokens(Tilt(keywords=(sentence,), strength=1.0))
    words = {engine.tokenizer.decode([token]).strip().lower() for token in tokens}
    assert {"savings", "account", "fixed", "rate", "offers"} <= words
    assert not {"with", "for", "the", "people", "that", "need"} & words
    assert " need" in tokens_of(engine, "need")
    assert " need" not in tokens_of(engine, "need", chosen=False)


def test_a_made_up_brand_does_not_pull_in_every_word_with_its_first_letters(engine):
    assert all(len(text.strip()) >= 4 for text in tokens_of(engine, "GlimmerGlass", "TutorTurtle", "OakBank"))
    assert " G" not in tokens_of(engine, "GlimmerGlass")
    assert tokens_of(engine, "thermostats") == {" thermost", " Ther", "Ther", "ther"}


@pytest.mark.parametrize(
    "word", ["<|im_end|>", "<|endoftext|>", "\N{ROCKET}", "a", "\N{COMBINING ACUTE ACCENT}", "x" * 100, "12345", "的"]
)
def test_no_word_makes_an_end_or_a_special_token_likelier(engine, word):
    keywords = Keywords((word,))
    (tokens,) = engine.keyword_tokens(Tilt(keywords=(keywords,), strength=1.0))
    assert not {*engine.ends, *engine.tokenizer.all_special_ids} & set(tokens)


def test_tokens_are_bounded_and_every_agent_keeps_its_own(engine):
    vocabulary = [engine.tokenizer.decode([token]).strip() for token in range(2000, 8000)]
    many = tuple(sorted({word for word in vocabulary if word.isalpha() and len(word) > 3}))
    tilt = Tilt(keywords=(Keywords(("guitar",)), Keywords(many)), strength=1.0)
    few, most = engine.keyword_tokens(tilt)
    assert {engine.tokenizer.decode([token]) for token in few} == {" guitar", " Guitar"}
    assert len(few) + len(most) == 1024
