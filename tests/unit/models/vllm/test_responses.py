"""What the answers of a vLLM server say, read without a server."""

import math

import httpx
import pytest
from langchain_core.exceptions import (
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelInvalidRequestError,
    ModelNotFoundError,
    ModelPermissionDeniedError,
    ModelRateLimitError,
    ModelTimeoutError,
)

from llm_auction_chain.errors import CandidatesError, ConfigurationError, ContextWindowError, ScoringError
from llm_auction_chain.models.vllm.responses import (
    is_plain,
    read_failure,
    read_first,
    read_names,
    read_replies,
    read_scores,
    read_tokens,
    read_usage,
)

PLAIN = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
BODY = {**PLAIN, "model": "smol", "logprobs": True, "max_tokens": 8}
URL = "http://gpu-7:8000/v1"


def choice(index, text, ids, **changes):
    content = [{"token": letter, "logprob": -0.5} for letter in [*text, "<|im_end|>"]]
    return {
        "index": index, "message": {"content": text}, "finish_reason": "stop", "stop_reason": None, "token_ids": ids,
        "logprobs": {"content": content}, **changes,
    }  # fmt: skip


def answer(*choices, tokens):
    return {
        "choices": list(choices),
        "usage": {"prompt_tokens": 5, "completion_tokens": tokens},
        "prompt_token_ids": [1, 2],
    }


@pytest.mark.parametrize("setting", [{"temperature": 0.9}, {"temperature": 0.0}, {"top_p": 0.9}, {"top_k": 1}])
def test_any_temperature_or_truncation_changes_the_distribution(setting):
    assert is_plain(PLAIN)
    assert not is_plain({**PLAIN, **setting})


@pytest.mark.parametrize("wrong", [{}, {"data": None}, {"data": "x"}, [], None, "<html>"])
def test_an_answer_without_its_list_is_no_vllm_servers(wrong):
    with pytest.raises(ScoringError, match=r"has .*'data'\. Is it a vLLM server\? It said: "):
        read_names(wrong)


@pytest.mark.parametrize("value", [None, "-0.5", "x", ["x"], {"logprob": None}, True, 0.5])
@pytest.mark.parametrize("place", [
    "choices", "choices.0", "choices.0.token_ids", "choices.0.token_ids.0", "choices.0.logprobs",
    "choices.0.logprobs.content", "choices.0.logprobs.content.0", "choices.0.logprobs.content.0.logprob",
    "prompt_token_ids", "prompt_token_ids.1",
])  # fmt: skip
def test_an_answer_of_another_shape_is_our_error(place, value):
    broken = answer(choice(0, "a", [3, 9]), tokens=2)
    *above, last = [int(step) if step.isdigit() else step for step in place.split(".")]
    part = broken
    for step in above:
        part = part[step]
    part[last] = value
    with pytest.raises(ScoringError, match="server"):
        read_replies(broken, BODY, [1, 2])
    with pytest.raises(ScoringError, match="server"):
        read_scores(broken, 1, [[3, 9]])


@pytest.mark.parametrize(
    "changes", [{"index": "0"}, {"message": {"content": [1]}}, {"message": 5}, {"message": None}, {"finish_reason": 1}]
)
def test_a_text_or_a_number_is_nothing_else(changes):
    with pytest.raises(ScoringError, match=r"has .* as 'choices\.0\..*Is it a vLLM server\? It said: \{'choices'"):
        read_replies(answer({**choice(0, "a", [3, 9]), **changes}, tokens=2), BODY, [1, 2])


@pytest.mark.parametrize("log_prob", [None, "-0.5", [], True])
def test_a_log_probability_that_is_no_number_is_our_error(log_prob):
    with pytest.raises(ScoringError, match="server"):
        read_scores(scores((1, -7.0), (2, log_prob)), 2, [[2]])


@pytest.mark.parametrize(
    "counts",
    [
        None,
        5,
        {},
        {"prompt_tokens": None, "completion_tokens": 3},
        {"prompt_tokens": "5"},
        {"prompt_tokens": -1, "completion_tokens": 2},
    ],
)
def test_usage_that_is_no_counts_is_unknown_and_costs_no_reply(counts):
    replied = {**answer(choice(0, "a", [3, 9]), tokens=2), "usage": counts}
    assert read_usage(replied) is None
    assert read_replies(replied, BODY, [1, 2])[0].text == "a"


@pytest.mark.parametrize(
    "wrong", [{}, None, {"tokens": "x"}, {"tokens": [1, None]}, {"tokens": [1], "max_model_len": "9"}]
)
def test_tokens_and_the_window_are_numbers(wrong):
    with pytest.raises(ScoringError, match=r"Is it a vLLM server\?"):
        read_tokens(wrong)


def test_replies_come_in_the_order_of_their_index():
    replies = read_replies(answer(choice(1, "b", [4, 9]), choice(0, "a", [3, 9]), tokens=4), BODY, [1, 2])
    assert [reply.text for reply in replies] == ["a", "b"]
    assert [reply.response_metadata["logprobs"]["token_ids"] for reply in replies] == [[3, 9], [4, 9]]
    assert all(reply.response_metadata["logprobs"]["complete"] for reply in replies)


def test_a_server_that_draws_behind_another_prompt_is_refused():
    with pytest.raises(ScoringError, match="other tokens than /tokenize"):
        read_replies(answer(choice(0, "a", [3, 9]), tokens=2), BODY, [1, 2, 3])


def test_a_count_that_differs_from_the_tokens_makes_all_replies_incomplete():
    replies = read_replies(answer(choice(0, "a", [3, 9]), choice(1, "b", [4, 9]), tokens=5), BODY, [1, 2])
    assert not any(reply.response_metadata["logprobs"]["complete"] for reply in replies)


def test_usage_that_the_server_does_not_send_is_unknown():
    assert read_usage({}) is None


def scores(*log_probs):
    return {"choices": [{"index": 0, "prompt_logprobs": [None, *({str(k): {"logprob": p}} for k, p in log_probs)]}]}


def test_a_score_is_the_sum_over_the_tokens_behind_the_prompt():
    assert read_scores(scores((1, -7.0), (2, -0.25), (3, -0.5)), 2, [[2, 3]]) == [-0.75]
    assert read_scores(scores((1, -7.0), (2, -9999.0), (3, -0.5)), 2, [[2, 3]]) == [-math.inf]


@pytest.mark.parametrize(("log_prob", "message"), [(0.5, "logits"), (math.nan, "logits")])
def test_a_number_that_is_no_log_probability_is_refused(log_prob, message):
    with pytest.raises(ScoringError, match=message):
        read_scores(scores((1, -7.0), (2, log_prob)), 2, [[2]])


def test_log_probabilities_of_other_tokens_are_refused():
    with pytest.raises(ScoringError, match="not of the tokens sent"):
        read_scores(scores((1, -7.0), (2, -0.5)), 2, [[5]])


def failure(status, text, path="/v1/completions", kind=ScoringError):
    request = httpx.Request("POST", f"http://gpu-7:8000{path}")
    error = httpx.HTTPStatusError("", request=request, response=httpx.Response(status, text=text, request=request))
    return read_failure(error, URL, kind, api_key="sk-secret", timeout=5.0)


@pytest.mark.parametrize(("status", "text", "path", "message"), [
    (401, "x", "/v1/completions", "refuses the API key"), (403, "x", "/v1/completions", "refuses the API key"),
    (404, "x", "/tokenize", "has no /tokenize"), (404, "x", "/v1/completions", "status 404: x"),
    (500, "CUDA sk-secret", "/v1/completions", "status 500: CUDA ***"),
    (500, "x" * 495 + "sk-secret", "/v1/completions", "xxx***"),
])  # fmt: skip
def test_a_refusal_says_what_to_do_and_never_the_key(status, text, path, message):
    error = failure(status, text, path)
    assert type(error) is ScoringError
    assert str(error).startswith(URL)
    assert message in str(error)
    assert "sk-" not in str(error)


@pytest.mark.parametrize("text", ["maximum context length is 8", "max_model_len=8", "the model length"])
def test_a_prompt_that_is_too_long_is_an_error_of_its_own(text):
    assert type(failure(400, text)) is ContextWindowError
    assert type(failure(500, text)) is ScoringError


@pytest.mark.parametrize(("error", "message", "kind"), [
    (httpx.ReadTimeout("x"), "did not answer within 5.0 s", ModelTimeoutError),
    (httpx.DecodingError("x"), "other than JSON", ModelAPIError),
    (httpx.ConnectError("refused"), "cannot be reached (refused). Start a server", ModelConnectionError),
])  # fmt: skip
def test_a_server_that_does_not_answer_is_an_error_of_the_kind_asked_for(error, message, kind):
    ours = read_failure(error, URL, CandidatesError, api_key=None, timeout=5.0)
    assert isinstance(ours, CandidatesError)
    assert isinstance(ours, kind)
    assert message in str(ours)


@pytest.mark.parametrize(("status", "kind"), [
    (400, ModelInvalidRequestError), (401, ModelAuthenticationError), (403, ModelPermissionDeniedError),
    (404, ModelNotFoundError), (422, ModelInvalidRequestError), (429, ModelRateLimitError), (500, ModelAPIError),
    (503, ModelAPIError),
])  # fmt: skip
def test_a_refused_draw_is_langchains_error_for_such_a_refusal_and_retried_if_that_is(status, kind):
    ours = failure(status, "no", kind=CandidatesError)
    assert isinstance(ours, CandidatesError)
    assert isinstance(ours, kind)
    assert ours.is_retryable is kind.is_retryable
    assert isinstance(CandidatesError("all failed", ours.causes), kind)


def test_messages_that_the_chat_template_refuses_are_a_setting():
    error = failure(400, "System role not supported", "/tokenize")
    assert type(error) is ConfigurationError
    assert "refuses these messages: System role not supported" in str(error)


def test_a_bias_may_draw_tokens_that_the_model_itself_hardly_ever_gives():
    """Without a bias, figures below -20 nats alone are logits."""
    content = [{"token": "token_id:7", "logprob": -25.0, "top_logprobs": [{"token": "token_id:9", "logprob": -9999.0}]}]
    cut = answer(choice(0, "x", [7], finish_reason="length", logprobs={"content": content}), tokens=1)
    biased = {**BODY, "max_tokens": 1, "logit_bias": {"7": 100.0}, "logprob_token_ids": [9]}
    (reply,) = read_replies(cut, biased, None)
    assert reply.response_metadata["logprobs"]["token_logprobs"] == [-25.0]
    assert reply.response_metadata["logprobs"]["of_tokens"] == [{9: -math.inf}]
    with pytest.raises(ScoringError, match="logits"):
        read_replies(cut, {**BODY, "max_tokens": 1}, None)


def test_the_first_token_of_a_text_comes_with_its_letters():
    assert read_first({"tokens": [900, 3], "token_strs": ["\u0120gui", "tar"]}) == (900, "gui")
    assert read_first({"tokens": [], "token_strs": []}) is None
