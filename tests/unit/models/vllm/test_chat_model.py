"""ChatVLLM against a real HTTP server on the loopback that answers as vLLM does, or as a script says."""

import asyncio
import json
import math
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from tenacity import wait_none

from llm_auction_chain import http_client
from llm_auction_chain.errors import (
    CandidatesError,
    ConfigurationError,
    ContextWindowError,
    LogProbError,
    MissingDependencyError,
    PromptError,
    ScoringError,
)
from llm_auction_chain.models.vllm.chat_model import ChatVLLM

KEY = "sk-very-secret"
END = 99
PROMPT = [SystemMessage("Be brief."), HumanMessage("How do I learn the guitar?")]
PLAIN = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def log_p(token):
    """Return the scripted model's log-probability of a token: the same whatever stands before it."""
    return -(token % 7) / 10 - 0.1


class ScriptedVLLM(ThreadingHTTPServer):
    """Answers as vLLM 0.32 does; `script` holds, by path, functions of the body that answer first."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.headers, self.script, self.served = [], [], {}, ["smol"]
        self.delay, self.busy, self.busiest, self.lock = 0.0, 0, 0, threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def bodies(self, path):
        return [body for requested, body in self.requests if requested == path]

    def answer(self, path, body):
        scripted = self.script.get(path)
        if scripted:
            step = scripted.pop(0) if isinstance(scripted, list) else scripted
            return step(body)
        return {
            "/v1/models": self.models,
            "/tokenize": self.tokenize,
            "/v1/chat/completions": self.chat,
            "/v1/completions": self.complete,
        }[path](body)

    def models(self, body):
        return 200, {"data": [{"id": name} for name in self.served]}

    def tokenize(self, body):
        tokens = prompt_of(body)
        return 200, {"tokens": tokens, "count": len(tokens), "max_model_len": 1024}

    def chat(self, body):
        choices = [choice(index, body.get("seed", 0), body) for index in range(body["n"])]
        written = sum(len(one["ids"]) for one in choices)
        for one in choices:
            del one["ids"]
        return 200, whole(body, choices, written)

    def complete(self, body):
        entries = [[None, *({str(t): {"logprob": log_p(t)}} for t in prompt[1:])] for prompt in body["prompt"]]
        return 200, {"choices": [{"index": k, "prompt_logprobs": given} for k, given in enumerate(entries)]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits for the one before to be acknowledged

    def do_GET(self):
        self.respond(None)

    def do_POST(self):
        self.respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def respond(self, body):
        server = self.server
        with server.lock:
            server.requests.append((self.path, body))
            server.headers.append(dict(self.headers))
            server.busy += 1
            server.busiest = max(server.busiest, server.busy)
        time.sleep(server.delay)
        with server.lock:
            status, answer = server.answer(self.path, body)
            server.busy -= 1
        sent = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)
        except OSError:
            self.close_connection = True

    def log_message(self, *args):
        pass


def prompt_of(body):
    return [ord(letter) for turn in body["messages"] for letter in turn["content"]]


def whole(body, choices, written):
    """Return a chat completion around its choices."""
    prompt = prompt_of(body) if body["return_token_ids"] else None
    usage = {"prompt_tokens": 20, "completion_tokens": written}
    return {"choices": choices, "usage": usage, "prompt_token_ids": prompt}


def choice(index, seed, body):
    """Return the reply number seed + index: two letters, and the end token."""
    ids = [65 + (seed + index) % 26, 97 + (seed + index) % 5, END]
    answer = {
        "index": index,
        "message": {"role": "assistant", "content": chr(ids[0]) + chr(ids[1])},
        "finish_reason": "stop",
        "stop_reason": None,
        "token_ids": ids if body["return_token_ids"] else None,
        "ids": ids,
    }
    if body["logprobs"]:
        texts = [chr(ids[0]), chr(ids[1]), "<|im_end|>"]
        answer["logprobs"] = {"content": [{"token": t, "logprob": log_p(i)} for t, i in zip(texts, ids, strict=True)]}
    return answer


def changed(**changes):
    """Return a script step: the usual chat answer, with every choice changed."""

    def step(body):
        choices = [{**choice(k, 0, body), **changes} for k in range(body["n"])]
        return 200, whole(body, choices, 3 * body["n"])

    return step


def refuse(status, said="no"):
    return lambda body: (status, {"error": {"message": said}})


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch):
    for name in ("wait_exponential", "wait_random"):
        monkeypatch.setattr(http_client, name, lambda *_, **__: wait_none())


@pytest.fixture
def server():
    with ScriptedVLLM() as scripted:
        thread = threading.Thread(target=scripted.serve_forever, args=(0.01,))
        thread.start()
        yield scripted
        scripted.shutdown()
        thread.join()


@pytest.fixture
def model(server):
    return ChatVLLM(base_url=server.url, api_key=KEY, seed=5)


def draw(model, n=1, messages=PROMPT, **kwargs):
    return model.generate([messages], n=n, **kwargs).generations[0]


def drawn(model, n, **kwargs):
    return [generation.message for generation in draw(model, n, logprobs=True, **kwargs)]


# What is sent.


def test_one_request_draws_all_replies_and_says_every_sampling_setting(server, model):
    draw(model, 4)
    (body,) = server.bodies("/v1/chat/completions")
    assert body["n"] == 4
    assert body["model"] == "smol"
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How do I learn the guitar?"},
    ]
    assert {name: body[name] for name in PLAIN} == PLAIN
    assert body["max_tokens"] == 256
    assert (body["logprobs"], body["return_token_ids"]) == (False, False)
    assert not body.keys() & {"stop", "watermarking"}


def test_variables_of_the_chat_template_are_sent_wherever_it_is_rendered(server, model):
    quiet = model.model_copy(update={"chat_template_kwargs": {"enable_thinking": False}})
    quiet.score(PROMPT, drawn(quiet, 1))
    for path in ("/v1/chat/completions", "/tokenize"):
        assert {json.dumps(body["chat_template_kwargs"]) for body in server.bodies(path)} == {
            '{"enable_thinking": false}'
        }
    drawn(model, 1)
    assert "chat_template_kwargs" not in server.bodies("/v1/chat/completions")[-1]


def test_tokens_are_counted_by_the_server(server, model):
    server.script["/tokenize"] = lambda body: (200, {"tokens": [1] * (3 if "prompt" in body else 11)})
    assert model.get_num_tokens("Hi") == 3
    assert model.get_num_tokens_from_messages(PROMPT) == 11
    text, messages = server.bodies("/tokenize")
    assert text == {"model": "smol", "prompt": "Hi"}
    assert messages["add_generation_prompt"] is True
    server.script["/tokenize"] = [refuse(400, "roles must alternate"), lambda body: (200, {"tokens": [1, 2]})]
    assert model.get_num_tokens_from_messages(PROMPT[:1]) == 2


def test_scores_that_a_cache_has_made_stale_are_refused(server, model):
    """A server that does not score what it has cached returns what stands in its memory: what it scored before."""
    memory, cached = [], []

    def complete(body):
        choices = []
        for index, prompt in enumerate(body["prompt"]):
            if (prompt, body.get("cache_salt")) not in cached:
                memory[:] = [50 * log_p(token) for token in prompt]
                cached.append((prompt, body.get("cache_salt")))
            entries = [{str(token): {"logprob": p}} for token, p in zip(prompt, memory, strict=True)]
            choices.append({"index": index, "prompt_logprobs": entries})
        return 200, {"choices": choices}

    replies = drawn(model, 2)
    server.script["/v1/completions"] = complete
    with pytest.raises(ScoringError, match=r"once it is cached\. Start the server with --no-enable-prefix-caching"):
        model.score(PROMPT, replies)


def test_a_servers_cache_is_checked_once_and_again_for_texts_twice_as_long(server, model):
    replies = drawn(model, 2)

    def checks():
        bodies = [body for body in server.bodies("/v1/completions") if "cache_salt" in body]
        server.requests.clear()
        assert len({body["cache_salt"] for body in bodies}) == bool(bodies)
        return [body["prompt"] for body in bodies]

    model.score(PROMPT, replies)
    first, second, third = checks()
    assert first == third != second
    copied = model.model_copy()
    copied.score(PROMPT, replies)
    assert not checks()
    copied.score([*PROMPT, HumanMessage("word " * 30)], replies)
    assert len(checks()) == 3
    model.score([*PROMPT, HumanMessage("word " * 30)], replies)
    assert not checks()


def test_replies_to_weigh_carry_no_watermark(server, model):
    drawn(model, 1)
    assert server.bodies("/v1/chat/completions")[0]["watermarking"] is False


def test_a_call_replaces_the_fields(server, model):
    draw(model, 1, temperature=0.5, top_p=0.9, top_k=3, max_tokens=7, stop=["\n", ""])
    (body,) = server.bodies("/v1/chat/completions")
    assert [body[name] for name in ("temperature", "top_p", "top_k", "max_tokens", "stop")] == [0.5, 0.9, 3, 7, ["\n"]]


def test_without_a_seed_none_is_sent(server):
    draw(ChatVLLM(base_url=server.url))
    assert "seed" not in server.bodies("/v1/chat/completions")[0]


def test_a_seed_of_any_size_becomes_one_that_the_server_takes_and_neighbours_share_no_reply(server, model):
    for seed in (0, 1, 2**64 + 1):
        draw(model, 2, seed=seed)
    seeds = [body["seed"] for body in server.bodies("/v1/chat/completions")]
    assert all(0 <= seed < 2**62 for seed in seeds)
    assert len({seed + k for seed in seeds for k in range(1000)}) == 3000


def test_the_key_is_sent_and_never_shown(server, model):
    draw(model)
    assert {headers.get("Authorization") for headers in server.headers} == {f"Bearer {KEY}"}
    assert KEY not in repr(model) + str(model)
    server.script["/v1/chat/completions"] = refuse(400, f"who is {KEY}?")
    with pytest.raises(CandidatesError, match=r"who is \*\*\*\?") as failed:
        draw(model)
    server.script["/v1/chat/completions"] = refuse(401, "Unauthorized")
    with pytest.raises(CandidatesError, match="refuses the API key") as unauthorized:
        draw(model)
    server.script["/v1/chat/completions"] = lambda body: (200, {"choices": [{"token_ids": KEY}], KEY: "x" * 180 + KEY})
    with pytest.raises(ScoringError, match=r"said: .*\*\*\*") as odd:
        draw(model)
    for error in (failed.value, unauthorized.value, odd.value):
        assert KEY not in f"{error} {error!r} {error.__cause__}"


@pytest.mark.parametrize("ending", ["", "/"])
def test_the_url_is_taken_with_or_without_its_version(server, ending):
    assert draw(ChatVLLM(base_url=server.url.removesuffix("/v1") + ending))[0].text
    assert draw(ChatVLLM(base_url=server.url + ending))[0].text


# What comes back.


def test_usage_is_counted_once(server, model):
    first, *others = [generation.message for generation in draw(model, 3)]
    assert first.usage_metadata == {"input_tokens": 20, "output_tokens": 9, "total_tokens": 29}
    assert [reply.usage_metadata for reply in others] == [None, None]
    assert {reply.response_metadata["model_name"] for reply in (first, *others)} == {"smol"}
    assert {reply.response_metadata["finish_reason"] for reply in (first, *others)} == {"stop"}
    both = model.generate([PROMPT, PROMPT]).llm_output
    assert both["token_usage"] == {"input_tokens": 40, "output_tokens": 6, "total_tokens": 46}


def test_a_server_that_sends_fewer_is_asked_for_the_rest_with_fresh_seeds(server, model):
    progress = []

    def few(body):
        return server.chat({**body, "n": min(body["n"], 2)})

    server.script["/v1/chat/completions"] = few
    replies = draw(model, 5, progress=lambda done, total: progress.append((done, total)))
    bodies = server.bodies("/v1/chat/completions")
    assert len(replies) == 5
    assert sorted(body["n"] for body in bodies) == [1, 2, 5]
    assert len({body["seed"] for body in bodies}) == 3
    assert replies[0].message.usage_metadata["input_tokens"] == 60
    assert progress == [(2, 5), (5, 5)]


def test_no_reply_at_all_is_an_error(server, model):
    server.script["/v1/chat/completions"] = lambda body: (200, {"choices": []})
    with pytest.raises(CandidatesError, match="0 of 2"):
        draw(model, 2)


def test_replies_of_temperature_zero_are_asked_for_one_by_one(server, model):
    assert len(draw(model, 3, temperature=0)) == 3
    assert [body["n"] for body in server.bodies("/v1/chat/completions")] == [1, 1, 1]


def test_log_probs_hold_every_token_and_their_law(model):
    (reply,) = drawn(model, 1)
    given = reply.response_metadata["logprobs"]
    assert given["token_ids"][-1] == END
    assert given["token_logprobs"] == [log_p(token) for token in given["token_ids"]]
    assert (given["basis"], given["complete"]) == ("sampler", True)
    (other,) = drawn(model, 1, temperature=0.7)
    assert other.response_metadata["logprobs"]["basis"] == "unknown"


@pytest.mark.parametrize(
    "changes",
    [
        {"token_ids": [65, 97]},
        {"token_ids": [65, 97, 98, END]},
        {"logprobs": {"content": [{"token": t, "logprob": -1.0} for t in ("x", "A", "a")]}},
        {"logprobs": {"content": [{"token": "", "logprob": -1.0}] * 3}},
        {"logprobs": {"content": [{"token": "A"}, {"token": "a", "logprob": -1.0}, {"token": "$", "logprob": -1.0}]}},
        {"stop_reason": 98},
        {"finish_reason": "abort"},
    ],
    ids=["one token less", "one more", "the text's own end", "nameless", "one unknown", "another end", "aborted"],
)
def test_what_is_not_whole_is_not_called_complete_nor_scored(server, model, changes):
    server.script["/v1/chat/completions"] = changed(**changes)
    (reply,) = drawn(model, 1)
    assert reply.response_metadata["logprobs"]["complete"] is False
    with pytest.raises(LogProbError, match="every token"):
        model.score(PROMPT, [reply])


@pytest.mark.parametrize(
    "changes", [{"stop_reason": END}, {"stop_reason": "a"}, {"finish_reason": "length"}], ids=["id", "string", "length"]
)
def test_the_other_ways_to_end_are_whole(server, model, changes):
    server.script["/v1/chat/completions"] = changed(**changes)
    (reply,) = drawn(model, 1, max_tokens=3)
    assert reply.response_metadata["logprobs"]["complete"] is True


def test_a_count_that_differs_from_the_bill_is_not_complete(server, model):
    def bill(body):
        status, answer = server.chat(body)
        answer["usage"]["completion_tokens"] += 1
        return status, answer

    server.script["/v1/chat/completions"] = bill
    assert not any(reply.response_metadata["logprobs"]["complete"] for reply in drawn(model, 2))


def test_a_reply_cut_by_the_window_cannot_be_weighed(server, model):
    server.script["/v1/chat/completions"] = changed(finish_reason="length")
    with pytest.raises(ContextWindowError, match="Lower max_tokens to at most 3"):
        drawn(model, 1)
    assert draw(model)[0].text == "Aa"


def test_a_server_without_token_ids_is_named(server, model):
    server.script["/v1/chat/completions"] = changed(token_ids=None)
    with pytest.raises(ScoringError, match="return_token_ids"):
        drawn(model, 1)


def test_logits_are_not_taken_for_log_probabilities(server, model):
    replies = drawn(model, 2)
    server.script["/v1/chat/completions"] = changed(logprobs={"content": [{"token": "x", "logprob": 12.5}] * 3})
    with pytest.raises(ScoringError, match="logits"):
        drawn(model, 1)
    server.script["/v1/completions"] = lambda body: (
        200,
        {"choices": [{"prompt_logprobs": [{str(t): {"logprob": 9.0}} for t in ids]} for ids in body["prompt"]]},
    )
    with pytest.raises(ScoringError, match="logits"):
        model.score(PROMPT, replies)


def test_negative_logits_are_not_taken_for_log_probabilities_either(server, model):
    server.script["/v1/chat/completions"] = changed(logprobs={"content": [{"token": "x", "logprob": -31.0}] * 3})
    with pytest.raises(ScoringError, match="logits"):
        drawn(model, 1)


def test_what_is_not_a_number_is_no_log_probability(server, model):
    replies = drawn(model, 1)
    server.script["/v1/completions"] = lambda body: (
        200,
        {"choices": [{"prompt_logprobs": [{str(t): {"logprob": math.nan}} for t in body["prompt"][0]]}]},
    )
    with pytest.raises(ScoringError):
        model.score(PROMPT, replies)
    server.script["/v1/chat/completions"] = changed(logprobs={"content": [{"token": "x", "logprob": math.nan}] * 3})
    with pytest.raises(ScoringError):
        drawn(model, 1)


def test_replies_drawn_behind_other_tokens_than_they_would_be_scored_behind_are_refused(server, model):
    def harmony(body):
        status, answer = server.chat(body)
        return status, {**answer, "prompt_token_ids": [7, *prompt_of(body)]}

    server.script["/v1/chat/completions"] = harmony
    with pytest.raises(ScoringError, match=r"other tokens than /tokenize .*=Reference\(\)"):
        drawn(model, 2)
    assert len(draw(model, 2)) == 2


# Scoring.


def test_scores_are_the_sums_of_the_reply_tokens_behind_the_prompt(server, model):
    replies = drawn(model, 5)
    server.requests.clear()
    scores = model.score(PROMPT, replies)
    expected = [sum(reply.response_metadata["logprobs"]["token_logprobs"]) for reply in replies]
    assert scores == pytest.approx(expected, abs=1e-12)
    (asked,) = server.bodies("/tokenize")
    assert asked["add_generation_prompt"] is True
    prompt = [ord(letter) for letter in "Be brief.How do I learn the guitar?"]
    checks = [body for body in server.bodies("/v1/completions") if "cache_salt" in body]
    sent = [ids for body in server.bodies("/v1/completions") for ids in body["prompt"] if body not in checks]
    tokens = [reply.response_metadata["logprobs"]["token_ids"] for reply in replies]
    assert sorted(sent) == sorted([*prompt, *ids] for ids in tokens)
    assert all((body["max_tokens"], body["prompt_logprobs"]) == (1, 0) for body in server.bodies("/v1/completions"))


def test_replies_keep_their_order_and_their_repeats(server, model):
    first, second, *_ = drawn(model, 8)
    small = model.model_copy(update={"max_concurrency": 3})
    order = [second, first, second, second, first, second, first]
    apart = {id(one): small.score(PROMPT, [one])[0] for one in (first, second)}
    server.requests.clear()
    assert small.score(PROMPT, order) == [apart[id(one)] for one in order]
    sent = [body["prompt"] for body in server.bodies("/v1/completions") if "cache_salt" not in body]
    assert sorted(map(len, sent)) == [1, 3, 3]


def test_nothing_to_score_asks_nothing(server, model):
    assert model.score(PROMPT, []) == []
    assert server.requests == []


def test_what_the_server_calls_impossible_has_probability_zero(server, model):
    replies = drawn(model, 1)
    server.script["/v1/completions"] = lambda body: (
        200,
        {"choices": [{"prompt_logprobs": [{str(t): {"logprob": -9999.0}} for t in body["prompt"][0]]}]},
    )
    assert model.score(PROMPT, replies) == [-math.inf]


@pytest.mark.parametrize("setting", [{"temperature": 0.9}, {"top_p": 0.9}, {"top_k": 20}])
def test_a_sampler_that_is_not_the_model_is_not_scored(server, model, setting):
    replies = drawn(model, 1)
    with pytest.raises(LogProbError, match="temperature=1"):
        model.model_copy(update=setting).score(PROMPT, replies)
    with pytest.raises(LogProbError, match="temperature=1"):
        model.score(PROMPT, replies, **setting)


def test_replies_without_tokens_name_the_remedy(server, model):
    with pytest.raises(LogProbError, match="Draw with ChatVLLM as the auction's model"):
        model.score(PROMPT, [AIMessage("Practise.")])
    assert server.requests == []


def test_the_tokens_of_another_model_are_not_scored(model):
    (reply,) = drawn(model, 1)
    reply.response_metadata["model_name"] = "other"
    with pytest.raises(LogProbError, match="drawn from other"):
        model.score(PROMPT, [reply])


def test_a_prompt_that_leaves_no_room_to_score_is_refused_with_its_length(server, model):
    (reply,) = drawn(model, 1)
    server.script["/tokenize"] = lambda body: (200, {"tokens": [1] * 1021, "max_model_len": 1024})
    with pytest.raises(ContextWindowError, match=r"1021 tokens, a reply of 3 .* 1024"):
        model.score(PROMPT, [reply])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"choices": [{"text": ""}]}, "no prompt_logprobs"),
        ({"choices": [{"prompt_logprobs": [None] * 3}]}, "no prompt_logprobs"),
        ({"choices": [{"prompt_logprobs": [{"1": {"logprob": -1.0}}] * 38}]}, "not of the tokens sent"),
        ({"choices": []}, "0 of 1 replies"),
        ({"object": "error"}, "has no 'choices'"),
        ([], "has no 'choices'"),
        ("<html>", "other than JSON"),
    ],
)
def test_a_server_without_the_feature_gives_no_number(server, model, answer, said):
    (reply,) = drawn(model, 1)
    server.script["/v1/completions"] = lambda body: (200, answer)
    with pytest.raises(ScoringError, match=said):
        model.score(PROMPT, [reply])


def test_a_server_without_tokenize_is_named(server, model):
    replies = drawn(model, 1)
    server.script["/tokenize"] = refuse(404, "Not Found")
    with pytest.raises(ScoringError, match="has no /tokenize"):
        model.score(PROMPT, replies)


# Which model.


def test_the_only_model_served_is_asked_for_once_by_a_model_and_its_copies(server, model):
    draw(model)
    draw(model.model_copy(update={"cache": False}))
    assert len(server.bodies("/v1/models")) == 1
    assert model._get_ls_params()["ls_model_name"] == "smol"


def test_another_model_than_asked_lists_what_is_served(server):
    server.served = ["smol", "smol-legal"]
    with pytest.raises(ScoringError, match=r"serves smol, smol-legal, and not 'big'"):
        draw(ChatVLLM(base_url=server.url, model="big"))
    with pytest.raises(ScoringError, match=r"serves smol, smol-legal; say which"):
        draw(ChatVLLM(base_url=server.url))
    (reply,) = draw(ChatVLLM(base_url=server.url, model="smol-legal"))
    assert reply.message.response_metadata["model_name"] == "smol-legal"


# What fails.


def test_a_passing_failure_is_repeated(server, model):
    server.script["/v1/chat/completions"] = [refuse(503), refuse(429)]
    assert draw(model)[0].text
    assert len(server.bodies("/v1/chat/completions")) == 3


# 504: what took too long for a proxy is not drawn again until a shorter reply comes.
@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 504])
def test_a_refusal_is_not_repeated(server, model, status):
    server.script["/v1/chat/completions"] = refuse(status)
    with pytest.raises(CandidatesError) as failed:
        draw(model)
    assert str(status) in str(failed.value)
    assert failed.value.__cause__.response.status_code == status
    assert len(server.bodies("/v1/chat/completions")) == 1


def test_a_lasting_failure_ends_after_max_retries(server):
    server.script["/v1/chat/completions"] = refuse(500, "CUDA out of memory")
    with pytest.raises(CandidatesError, match=r"status 500: .*CUDA out of memory"):
        draw(ChatVLLM(base_url=server.url, max_retries=1))
    assert len(server.bodies("/v1/chat/completions")) == 2


def test_a_silent_server_times_out_and_is_not_asked_for_a_shorter_reply(server, model):
    draw(model)
    server.requests.clear()
    server.delay = 0.5
    with pytest.raises(CandidatesError, match=r"did not answer within 0.1 s"):
        draw(model.model_copy(update={"timeout": 0.1}))
    assert len(server.requests) == 1


def test_no_server_names_the_url_and_how_to_start_one(model):
    replies = drawn(model, 1)
    gone = ChatVLLM(base_url="http://127.0.0.1:9/v1", max_retries=0)
    with pytest.raises(CandidatesError, match=r"127.0.0.1:9/v1 cannot be reached .* vllm serve"):
        draw(gone)
    with pytest.raises(ScoringError, match=r"127.0.0.1:9/v1 cannot be reached .* vllm serve"):
        gone.score(PROMPT, replies)


@pytest.mark.parametrize("said", ["This model's maximum context length is 8.", "max_tokens=9 > max_model_len=8"])
def test_a_prompt_longer_than_the_window_is_a_context_window_error(server, model, said):
    server.script["/v1/chat/completions"] = refuse(400, said)
    with pytest.raises(ContextWindowError, match="Shorten the prompt"):
        draw(model)


@pytest.mark.parametrize("error", [{"temperature": 2.0}, {"tools": []}, {"tool_choice": "any"}, {"top_q": 1}])
def test_what_is_no_argument_is_refused(server, model, error):
    if "temperature" in error:
        assert draw(model, **error)
    else:
        with pytest.raises(ConfigurationError, match=next(iter(error))):
            draw(model, **error)
        assert server.requests == []


@pytest.mark.parametrize(
    "setting",
    [
        {"max_tokens": 0},
        {"temperature": -1.0},
        {"temperature": math.inf},
        {"top_p": 0.0},
        {"top_k": -1},
        {"seed": -1},
        {"timeout": 0.0},
        {"max_retries": -1},
        {"max_concurrency": 0},
        {"base_url": "localhost:8000"},
    ],
)
def test_a_setting_that_means_nothing_is_named(setting):
    with pytest.raises(ConfigurationError, match=next(iter(setting))):
        ChatVLLM(**setting)


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], PromptError),
        ([ToolMessage("4", tool_call_id="1")], ConfigurationError),
        ([AIMessage("", tool_calls=[{"name": "add", "args": {}, "id": "1"}])], ConfigurationError),
        ([HumanMessage([{"type": "text", "text": "What is this?"}, {"type": "image"}])], ConfigurationError),
    ],
)
def test_a_prompt_that_cannot_be_sent_is_refused(server, model, messages, error):
    with pytest.raises(error):
        draw(model, messages=messages)
    assert server.requests == []


# Sync and async.


def test_sync_keeps_to_max_concurrency(server, model):
    server.delay = 0.03
    model = model.model_copy(update={"max_concurrency": 2})
    replies = drawn(model, 8, temperature=1)
    draw(model, 6, temperature=0)
    model.score(PROMPT, replies)
    assert server.busiest == 2


async def test_async_keeps_to_max_concurrency(server, model):
    server.delay = 0.03
    model = model.model_copy(update={"max_concurrency": 2})
    result = await model.agenerate([PROMPT], n=6, temperature=0)
    assert len(result.generations[0]) == 6
    assert server.busiest == 2


async def test_async_calls_return_the_same(model):
    replies = drawn(model, 6)
    result = await model.agenerate([PROMPT], n=6, logprobs=True)
    same = [generation.message for generation in result.generations[0]]
    assert [reply.model_dump(exclude={"id"}) for reply in same] == [
        reply.model_dump(exclude={"id"}) for reply in replies
    ]
    assert await model.ascore(PROMPT, replies) == model.score(PROMPT, replies)
    assert await model.ascore(PROMPT, []) == []


async def test_async_calls_fail_the_same(server, model):
    replies = drawn(model, 3)
    server.script["/v1/completions"] = refuse(401, "Unauthorized")
    with pytest.raises(ScoringError, match="refuses the API key"):
        await model.ascore(PROMPT, replies)
    server.script["/v1/chat/completions"] = [refuse(503)]
    assert (await model.ainvoke(PROMPT)).text
    server.script["/v1/chat/completions"] = lambda body: (200, "<html>")
    with pytest.raises(CandidatesError, match="other than JSON"):
        await model.ainvoke(PROMPT)


def test_one_model_serves_many_event_loops(model):
    texts = {asyncio.run(model.ainvoke(PROMPT)).text for _ in range(3)}
    assert texts == {model.invoke(PROMPT).text}


# In LangChain.


def test_a_stream_falls_back_to_the_whole_reply(model):
    assert "".join(chunk.text for chunk in model.stream(PROMPT)) == model.invoke(PROMPT).text


def test_tracing_shows_the_settings_of_a_call(server, model):
    assert model._llm_type == "chat-vllm"
    assert model._get_ls_params(stop=["\n"], max_tokens=4) == {
        "ls_provider": "vllm",
        "ls_model_type": "chat",
        "ls_temperature": 1.0,
        "ls_max_tokens": 4,
        "ls_stop": ["\n"],
    }
    assert KEY not in str(model._identifying_params)
    assert model._combine_llm_outputs([None]) == {}


def test_without_httpx_the_extra_is_named(monkeypatch, model):
    monkeypatch.setitem(sys.modules, "httpx", None)
    monkeypatch.delitem(sys.modules, "llm_auction_chain.http_client", raising=False)
    with pytest.raises(MissingDependencyError, match=r"llm-auction-chain\[vllm\]"):
        model.invoke(PROMPT)


def test_the_module_does_not_import_httpx_by_itself():
    code = (
        "import sys, langchain_core.language_models, tenacity\n"
        "before = 'httpx' in sys.modules\n"
        "import llm_auction_chain.models.vllm.chat_model\n"
        "sys.exit(('httpx' in sys.modules) and not before)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0  # noqa: S603
