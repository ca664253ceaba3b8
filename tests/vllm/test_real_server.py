"""ChatVLLM and whole auctions against a real vLLM server. The last test kills it."""

import math
import os
import re
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from langchain_core.messages import HumanMessage, SystemMessage

from llm_auction_chain import Agent, AuctionRunnable, ChatTransformers
from llm_auction_chain.candidates import ContextPrompt, DefensiveMixture, Reference
from llm_auction_chain.errors import CandidatesError, ContextWindowError, LogProbError, ScoringError
from llm_auction_chain.models.local.capabilities import dtype_named
from llm_auction_chain.models.local.weights import embedded_model_path
from llm_auction_chain.models.vllm.chat_model import ChatVLLM
from llm_auction_chain.rewards import MentionReward

ROOT = Path(__file__).parents[2]
DTYPE = dtype_named("auto", torch.device("cpu"))  # the server's, too
END = 2
M, LENGTH = 16, 48
PLAIN = [HumanMessage("Name a colour.")]
TOLD = [SystemMessage("Teal Paints sells teal. Bring it in where it fits."), *PLAIN]

# Two engines in bfloat16 round the logits at other places. Over 8,192 tokens each was measured to be 0.05 nats
# (standard deviation) from float32, and they 0.063 from each other, without bias; in float32 they are 0.00001 apart, of
# which ten times are allowed. Errors of the tokens add up as a random walk: a reply of T differs by about SD * sqrt(T).
TOKEN_SD = 0.063 if DTYPE is torch.bfloat16 else 1e-4

CONTEXT = "Teal Paints sells teal paint."
TEAL = Agent("Teal", MentionReward(["teal", "blue", "paint"], value=1.0, at_most=2), context=CONTEXT)


def draw(model, n, prompt=PLAIN, **kwargs):
    return [generation.message for generation in model.generate([prompt], n=n, **kwargs).generations[0]]


def tokens_of(reply):
    return reply.response_metadata["logprobs"]["token_ids"]


@pytest.fixture(scope="module")
def model(server):
    return ChatVLLM(base_url=server.url, max_tokens=LENGTH, seed=11)


@pytest.fixture(scope="module")
def local():
    return ChatTransformers(model=str(embedded_model_path()))


@pytest.fixture(scope="module")
def auction(model):
    """Half of the candidates come from the plain prompt, half from one that describes the agent."""
    halves = DefensiveMixture([(Reference(), 1), (ContextPrompt(), 1)])
    return AuctionRunnable(model=model, agents=[TEAL], n_candidates=8, seed=3, proposal=halves)


@pytest.fixture(scope="module")
def replies(model):
    """M replies drawn under each prompt."""
    return draw(model, M, PLAIN, logprobs=True) + draw(model, M, TOLD, logprobs=True)


@pytest.fixture(scope="module")
def scores(model, replies):
    """Return (2, 2 * M), under the plain prompt and under the other."""
    return np.array([model.score(prompt, replies) for prompt in (PLAIN, TOLD)])


def test_every_token_arrives_and_replies_that_end_have_their_end_token(replies):
    for reply in replies:
        given = reply.response_metadata["logprobs"]
        assert given["complete"]
        assert given["basis"] == "sampler"
        assert len(given["token_ids"]) == len(given["token_logprobs"]) <= LENGTH
        ended = reply.response_metadata["finish_reason"] == "stop"
        assert ended == (given["token_ids"][-1] == END)
    assert {reply.response_metadata["finish_reason"] for reply in replies} == {"stop", "length"}


def test_usage_counts_the_prompt_once_and_every_token(replies):
    first, *others = replies[:M]
    assert first.usage_metadata["output_tokens"] == sum(len(tokens_of(reply)) for reply in replies[:M])
    assert 10 < first.usage_metadata["input_tokens"] < 60
    assert all(reply.usage_metadata is None for reply in others)


def test_a_reply_scores_what_its_sampler_said(replies, scores):
    """The server's batches go by what arrives when, and bfloat16 rounds otherwise in another batch.

    Of 32 replies none to one differs, by 0.06 nats of 170 in the largest case seen; a law that is not the sampler's
    would be off in all of them, and by nats.
    """
    sampled = np.array([math.fsum(reply.response_metadata["logprobs"]["token_logprobs"]) for reply in replies])
    apart = np.abs(np.r_[scores[0, :M], scores[1, M:]] - sampled)
    assert np.mean(apart < 1e-3) > 0.8
    assert apart.max() < 0.25


def test_scores_agree_with_transformers_token_by_token(server, model, replies):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = embedded_model_path()
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPE)
    turns = [{"role": "user", "content": PLAIN[0].text}]
    prompt = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        turns, add_generation_prompt=True, return_dict=False
    )
    errors = []
    for reply in replies[:M]:
        ids = tokens_of(reply)
        with torch.inference_mode():
            logits = network(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].float()
        exact = logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0].double().numpy()
        errors.append(exact - reply.response_metadata["logprobs"]["token_logprobs"])
    every = np.concatenate(errors)
    assert every.std() < 2 * TOKEN_SD
    assert abs(every.mean()) < 6 * TOKEN_SD / math.sqrt(every.size)
    for error in errors:
        assert abs(error.sum()) < 5 * TOKEN_SD * math.sqrt(error.size)


def test_scores_agree_with_the_local_engine_under_both_prompts(local, replies, scores):
    bound = 5 * TOKEN_SD * np.sqrt([len(tokens_of(reply)) for reply in replies])
    expected = np.array([local.score(prompt, replies) for prompt in (PLAIN, TOLD)])
    assert np.all(np.abs(expected - scores) < bound)
    # The bound tells prompts apart.
    assert np.mean(np.abs(expected[::-1] - scores) < bound) < 0.5


def test_an_auction_weighs_its_candidates_as_the_local_engine_would(auction, local):
    result = auction.run(PLAIN)
    assert result.components == (("reference", 4), ("context prompt", 4))
    replies = [candidate.message for candidate in result.candidates]
    described = ContextPrompt().describe(PLAIN, [CONTEXT], 0)
    reference, context = (np.array(local.score(prompt, replies)) for prompt in (PLAIN, described))
    expected = reference - np.logaddexp(reference, context) + math.log(2)
    # An error in reference - context reaches the weight at most whole.
    bound = 5 * TOKEN_SD * np.sqrt([2 * len(tokens_of(reply)) for reply in replies])
    weights = np.array([candidate.log_weight for candidate in result.candidates])
    assert np.all(np.abs(weights - expected) < bound)
    assert np.all(weights <= math.log(2))
    assert weights.min() < -1
    assert result.reply.text in {reply.text for reply in replies}


async def test_the_async_auction_is_the_same(auction):
    first, again = auction.run(PLAIN), await auction.arun(PLAIN)
    assert [one.message.text for one in again.candidates] == [one.message.text for one in first.candidates]
    assert again.log_weights == pytest.approx(first.log_weights, abs=1e-3)
    assert again.reply.text == first.reply.text


@pytest.mark.parametrize("stage", ["candidates", "weights"])
def test_an_auction_whose_server_falls_silent_ends_in_an_error(server, auction, stage):
    """The process is stopped when the stage begins, and goes on after the auction."""
    started = time.monotonic()
    auction.run(PLAIN)
    patience = max(5.0, 4 * (time.monotonic() - started))
    impatient = auction.model_copy(update={"model": auction.model.model_copy(update={"timeout": patience})})

    def stop(progress):
        if progress.stage == stage and progress.done == 0:
            os.killpg(server.process.pid, signal.SIGSTOP)

    error = CandidatesError if stage == "candidates" else ScoringError
    try:
        if stage == "candidates":
            os.killpg(server.process.pid, signal.SIGSTOP)
        with pytest.raises(error, match=r"did not answer within [\d.]+ s"):
            impatient.run(PLAIN, progress=stop)
    finally:
        os.killpg(server.process.pid, signal.SIGCONT)
    assert auction.run(PLAIN).draws == 8


def test_a_reply_is_likelier_on_average_under_the_prompt_it_was_drawn_from(scores):
    """The mean log-ratio of draws is a divergence, at least 0; here each way is several nats."""
    log_ratio = scores[0] - scores[1]
    assert log_ratio[:M].mean() > 1
    assert log_ratio[M:].mean() < -1


def test_tokens_come_as_often_as_their_log_probabilities_say(model):
    """Every first token of more than 2 % in 400 draws within 4.5 standard deviations: fails by chance below 1e-4."""
    n = 400
    drawn = draw(model, n, logprobs=True, max_tokens=1)
    counts = Counter(tokens_of(reply)[0] for reply in drawn)
    chances = {
        tokens_of(reply)[0]: math.exp(reply.response_metadata["logprobs"]["token_logprobs"][0]) for reply in drawn
    }
    likely = {token: p for token, p in chances.items() if p > 0.02}
    assert len(likely) >= 5
    for token, p in likely.items():
        assert abs(counts[token] - n * p) < 4.5 * math.sqrt(n * p * (1 - p))


def test_a_seed_gives_the_same_replies_and_another_seed_others(model):
    texts = [[reply.text for reply in draw(model, 4, seed=seed)] for seed in (1, 1, 2)]
    assert texts[0] == texts[1]
    assert not set(texts[0]) & set(texts[2])


def test_greedy_replies_are_one_and_cannot_be_scored(model):
    # few tokens: batches of other sizes round otherwise, and two words may be all but equally likely
    greedy = model.model_copy(update={"temperature": 0.0, "max_tokens": 8})
    drawn = draw(greedy, 2, logprobs=True)
    assert len({reply.text for reply in drawn}) == 1
    assert drawn[0].response_metadata["logprobs"]["basis"] == "unknown"
    with pytest.raises(LogProbError, match="temperature=1"):
        greedy.score(PLAIN, drawn)


def test_a_stop_string_cuts_the_text_and_keeps_every_token(model):
    drawn = draw(model, 8, stop=[" "], logprobs=True)
    assert not any(" " in reply.text for reply in drawn)
    sampled = [math.fsum(reply.response_metadata["logprobs"]["token_logprobs"]) for reply in drawn]
    assert model.score(PLAIN, drawn) == pytest.approx(sampled, abs=1e-3)


def test_a_servers_cache_changes_no_score(model, scores):
    assert model._checked[model.base_url, "smollm2"] >= LENGTH


def test_tokens_are_counted_as_the_local_engine_counts_them(model, local):
    assert model.get_num_tokens("Teal & blue, or neither?") == local.get_num_tokens("Teal & blue, or neither?")
    for prompt in (PLAIN, TOLD):
        read = draw(model, 1, prompt)[0].usage_metadata["input_tokens"]
        counted = [each.get_num_tokens_from_messages(prompt) for each in (model, local)]
        assert counted == [read, read]


def test_variables_of_the_chat_template_are_taken(server, replies):
    quiet = ChatVLLM(base_url=server.url, max_tokens=8, chat_template_kwargs={"enable_thinking": False})
    (reply,) = draw(quiet, 1, logprobs=True)
    assert math.isfinite(quiet.score(PLAIN, [reply])[0])


async def test_the_async_twin_draws_and_scores_the_same(model, replies, scores):
    result = await model.agenerate([PLAIN], n=M, logprobs=True)
    assert [generation.text for generation in result.generations[0]] == [reply.text for reply in replies[:M]]
    assert await model.ascore(PLAIN, replies) == pytest.approx(scores[0], abs=1e-3)


def test_another_model_lists_what_is_served(server):
    with pytest.raises(ScoringError, match=r"serves smollm2, and not 'llama'"):
        ChatVLLM(base_url=server.url, model="llama").invoke(PLAIN)


def test_a_prompt_longer_than_the_window_is_a_context_window_error(model, replies):
    long = [HumanMessage("red " * 2000)]
    with pytest.raises(ContextWindowError, match="maximum context length is 1024"):
        model.invoke(long)
    with pytest.raises(ContextWindowError, match="do not fit into the 1024"):
        model.score(long, replies)
    with pytest.raises(ContextWindowError, match="max_model_len=1024"):
        model.invoke(PLAIN, max_tokens=4096)


def test_a_reply_cut_by_the_window_cannot_be_weighed(model):
    nearly = [HumanMessage("red " * 975)]
    drawn = draw(model, 8, nearly, max_tokens=100)
    assert "length" in {reply.response_metadata["finish_reason"] for reply in drawn}
    with pytest.raises(ContextWindowError, match="Lower max_tokens to at most"):
        draw(model, 8, nearly, max_tokens=100, logprobs=True)


@pytest.mark.parametrize("document", ["cookbook/context_priors_with_vllm.md"])
def test_the_examples_of_the_recipe_run(server, monkeypatch, document):
    monkeypatch.setenv("VLLM_URL", server.url)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names = {}
    for block in blocks:
        exec(compile(block, document, "exec"), names)  # noqa: S102


def test_an_auction_whose_server_dies_while_it_draws_ends_in_an_error(server, auction, replies):
    """The last test: nothing can be drawn after it."""
    long = auction.model.model_copy(update={"max_tokens": 900, "max_retries": 0})
    killer = threading.Timer(2.0, server.end, [signal.SIGKILL])
    killer.start()
    with pytest.raises(CandidatesError, match="cannot be reached"):
        auction.model_copy(update={"model": long, "n_candidates": 64}).run(PLAIN)
    killer.join()
    with pytest.raises(ScoringError, match=r"cannot be reached .* vllm serve"):
        long.score(PLAIN, replies)
