"""What providers write about their tokens: the real ChatOpenAI where one speaks like it, else the documented shapes."""

import json
import math

import httpx
import numpy as np
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_openai import ChatOpenAI

from llm_auction_chain import ChatTransformers
from llm_auction_chain.candidates.logprobs import log_prob_matrix, read_log_probs
from llm_auction_chain.candidates.proposals import Condition, ContextProduct, ContextPrompt, ProposalInputs, Reference
from llm_auction_chain.errors import LogProbError, ScoringError
from llm_auction_chain.waiting import AWAITING, BLOCKING, run
from tests.integration.provider import complete, provider

OURS = {"token_ids": [5, 6], "token_logprobs": [-1.0, -0.5], "basis": "sampler", "complete": True}


def entry(token, log_prob=-0.5):
    """Return a token as OpenAI writes it."""
    return {"token": token, "logprob": log_prob, "bytes": list(token.encode()), "top_logprobs": []}


def reply(logprobs, text="Hi", *, billed=None, reason="stop", reasoning=None, **fields):
    """Return a message with such log-probabilities, billed for so many tokens."""
    usage = {"input_tokens": 3, "output_tokens": billed or 0, "total_tokens": 3 + (billed or 0)}
    if reasoning is not None:
        usage["output_token_details"] = {"reasoning": reasoning}
    metadata = {"logprobs": logprobs, "finish_reason": reason}
    return AIMessage(text, response_metadata=metadata, usage_metadata=None if billed is None else usage, **fields)


def openai(*tokens, **fields):
    """Return a message of such tokens, as many as were billed unless `billed` says otherwise."""
    given = {"content": [entry(token) for token in tokens], "refusal": None}
    return reply(given, **{"billed": len(tokens), **fields})


def invoke(answer, **settings):
    """Return what the real ChatOpenAI makes of an answer to a chat completion."""
    with provider() as server, httpx.Client() as client:
        server.answer = answer
        chat = ChatOpenAI(model="some", api_key="none", base_url=server.url, http_client=client, **settings)
        return chat.invoke("Hi")


def answering(text, logprobs, *, billed, reason="stop"):
    """Return an answer with one such choice."""

    def answer(body):
        status, said = complete(body, message={"role": "assistant", **text}, logprobs=logprobs, finish_reason=reason)
        said["usage"] = {"prompt_tokens": 3, "completion_tokens": billed, "total_tokens": 3 + billed}
        return status, said

    return answer


# OpenAI, by the real ChatOpenAI.


def test_openai_lists_and_bills_every_token_but_the_end():
    """The example in OpenAI's own reference: nine tokens, nine billed, and no end token among them."""
    tokens = ["Hello", "!", " How", " can", " I", " assist", " you", " today", "?"]
    listed = {"content": [entry(token, -k / 10) for k, token in enumerate(tokens)], "refusal": None}
    given = invoke(answering({"content": "".join(tokens)}, listed, billed=9), logprobs=True)
    known = read_log_probs(given)
    assert known.tokens == tuple(-k / 10 for k in range(9))
    assert (known.basis, known.complete, known.token_ids) == ("unknown", False, None)
    with pytest.raises(LogProbError, match="end token"):
        known.total(plain_sampler=True)


def test_a_reply_that_was_cut_has_no_end_and_is_complete():
    listed = {"content": [entry("Hello"), entry("!")], "refusal": None}
    given = invoke(answering({"content": "Hello!"}, listed, billed=2, reason="length"), logprobs=True)
    known = read_log_probs(given)
    assert known.complete is True
    assert known.total(plain_sampler=True) == -1.0
    with pytest.raises(LogProbError, match="unknown"):
        known.total()


def test_an_end_token_that_is_listed_and_billed_makes_it_complete():
    """So does vLLM: its list has the end token, spelled out, and the text has not."""
    listed = {"content": [entry("Hello"), entry("<|im_end|>", -0.25)], "refusal": None}
    known = read_log_probs(invoke(answering({"content": "Hello"}, listed, billed=2), logprobs=True))
    assert (known.tokens, known.complete) == ((-0.5, -0.25), True)


def test_where_no_tokens_are_billed_the_list_is_not_known_to_be_whole():
    uncounted = openai("Hi", "<end>").model_copy(update={"usage_metadata": {"total_cost": 0}})
    assert not read_log_probs(uncounted).complete


def test_a_refusal_has_its_own_list():
    listed = {"content": None, "refusal": [entry("I"), entry(" can't")]}
    cut = answering({"content": None, "refusal": "I can't"}, listed, billed=2, reason="length")
    known = read_log_probs(invoke(cut, logprobs=True))
    assert (known.tokens, known.complete) == ((-0.5, -0.5), True)


def test_text_and_refusal_together_are_not_complete():
    listed = {"content": [entry("Hi")], "refusal": [entry(" no")]}
    known = read_log_probs(reply(listed, billed=2, reason="length", additional_kwargs={"refusal": " no"}))
    assert (len(known.tokens), known.complete) == (2, False)


def test_without_log_probs_there_are_none():
    assert read_log_probs(invoke(answering({"content": "Hi"}, None, billed=1))) is None
    assert read_log_probs(AIMessage("Hi")) is None


def test_a_stream_that_is_joined_reads_the_same():
    parts = [
        AIMessageChunk("Hel", response_metadata={"logprobs": {"content": [entry("Hel")], "refusal": None}}),
        AIMessageChunk("lo", response_metadata={"logprobs": {"content": [entry("lo", -0.25)], "refusal": None}}),
        AIMessageChunk(
            "",
            response_metadata={"finish_reason": "length"},
            usage_metadata={"input_tokens": 3, "output_tokens": 2, "total_tokens": 5},
        ),
    ]
    known = read_log_probs(parts[0] + parts[1] + parts[2])
    assert (known.tokens, known.complete) == ((-0.5, -0.25), True)


# Together, by the real ChatOpenAI: langchain-together's class derives from its base.


@pytest.mark.parametrize(
    ("tokens", "reason", "complete"),
    [
        (["New", " York"], "length", True),
        (["New", " York"], "eos", False),
        (["New", " York", "<|eot_id|>"], "eos", True),
        (["New", " York", "<|eot_id|>"], "stop", True),
    ],
)
def test_together_lists_columns(tokens, reason, complete):
    listed = {
        "tokens": tokens,
        "token_logprobs": [-0.5] * len(tokens),
        "token_ids": [*range(7, 7 + len(tokens))],
        "top_logprobs": [{token: -0.5} for token in tokens],
    }
    given = invoke(answering({"content": "New York"}, listed, billed=len(tokens), reason=reason), logprobs=True)
    known = read_log_probs(given)
    assert known.tokens == (-0.5,) * len(tokens)
    assert known.token_ids == tuple(range(7, 7 + len(tokens)))
    assert (known.basis, known.complete) == ("unknown", complete)


def test_columns_of_other_lengths_are_left_out():
    listed = {"token_logprobs": [-0.5, -0.5], "tokens": ["Hi"], "token_ids": [1, 2, 3]}
    known = read_log_probs(reply(listed, billed=2, reason="length"))
    assert (known.tokens, known.complete, known.token_ids) == ((-0.5, -0.5), False, None)
    assert read_log_probs(reply({"token_logprobs": [-0.5, None]}, billed=2)) is None


# Ollama.


@pytest.mark.parametrize(
    ("reason", "billed", "complete"), [("stop", 3, False), ("stop", 2, False), ("length", 2, True)]
)
def test_ollama_sends_a_list_without_the_end_that_it_counts(reason, billed, complete):
    """As in ollama#12899: `eval_count` is 3 for "Paris.", and two tokens are listed."""
    listed = [{"token": "Paris", "logprob": -0.08, "bytes": [*b"Paris"]}, {"token": ".", "logprob": -0.5}]
    given = reply(listed, "Paris.", billed=billed)
    given.response_metadata = {"logprobs": listed, "done_reason": reason, "done": True, "model_name": "llama3.2"}
    known = read_log_probs(given)
    assert known.tokens == (-0.08, -0.5)
    assert (known.basis, known.complete) == ("unknown", complete)


# Ours.


def test_a_model_that_names_the_basis_is_taken_at_its_word():
    known = read_log_probs(reply(OURS))
    assert (known.tokens, known.basis, known.complete, known.token_ids) == ((-1.0, -0.5), "sampler", True, (5, 6))
    assert known.total() == -1.5
    without = read_log_probs(reply({**OURS, "basis": "model", "token_ids": None}))
    assert (without.basis, without.token_ids) == ("model", None)


def test_the_embedded_model_is_read_exactly():
    given = ChatTransformers(max_tokens=3, seed=5).invoke("Hi", logprobs=True)
    known = read_log_probs(given)
    assert known.exact
    assert len(known.tokens) == len(known.token_ids) == given.usage_metadata["output_tokens"]
    assert json.loads(json.dumps(known.tokens)) == list(known.tokens)


def test_numbers_of_numpy_become_plain_ones():
    known = read_log_probs(
        reply({**OURS, "token_logprobs": list(np.float32([-1, -0.5])), "token_ids": list(np.int64([5, 6]))})
    )
    assert [type(value) for value in (*known.tokens, *known.token_ids)] == [float, float, int, int]


def test_incomplete_figures_may_be_fewer_than_the_tokens():
    known = read_log_probs(reply({**OURS, "token_ids": [5, 6, 7], "complete": False}))
    assert (len(known.tokens), len(known.token_ids)) == (2, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"token_logprobs": None},
        {"token_logprobs": "-1"},
        {"token_logprobs": [-1.0, None]},
        {"token_logprobs": [-1.0, math.nan]},
        {"token_logprobs": [-1.0, 0.5]},
        {"token_logprobs": [-1.0, -0.5, -0.5]},
        {"basis": "softmax"},
        {"basis": None},
        {"basis": ["model"]},
        {"complete": None},
        {"complete": "yes"},
        {"token_ids": [5]},
        {"token_ids": ["a", "b"]},
        {"token_ids": 5},
    ],
)
def test_a_broken_promise_of_a_basis_names_the_promise(wrong):
    with pytest.raises(LogProbError, match=r"'token_logprobs': numbers up to 0.* Correct the model"):
        read_log_probs(reply({**OURS, **wrong}))


@pytest.mark.parametrize("missing", ["token_logprobs", "complete"])
def test_a_missing_key_is_a_broken_promise_and_missing_ids_are_none(missing):
    with pytest.raises(LogProbError):
        read_log_probs(reply({name: value for name, value in OURS.items() if name != missing}))
    without = {name: value for name, value in OURS.items() if name != "token_ids"}
    assert read_log_probs(reply(without)).token_ids is None


# What is not whole is not called complete.


WHOLE = ("Hi", "</s>")


def test_the_whole_is():
    assert read_log_probs(openai(*WHOLE)).complete is True


@pytest.mark.parametrize(
    "fields",
    [
        {"billed": None},
        {"billed": 1},
        {"billed": 3},
        {"reason": None},
        {"reason": "content_filter"},
        {"reason": "tool_calls"},
        {"reason": "length"},
        {"text": "H"},
        {"text": "Hi</s>"},
        {"text": ""},
        {"text": " Hi"},
        {"reasoning": 2},
        {"additional_kwargs": {"reasoning_content": "Well,"}},
        {"tool_calls": [{"name": "tune", "args": {}, "id": "1"}]},
        {"invalid_tool_calls": [{"name": "tune", "args": "{", "id": "1", "error": None}]},
    ],
    ids=str,
)
def test_what_may_miss_a_token_is_not_complete(fields):
    assert read_log_probs(openai(*WHOLE, **fields)).complete is False


@pytest.mark.parametrize("tokens", [("Hi", ""), ("Hi", "\n"), ("</s>", "Hi"), ("Hi", " you", "</s>"), ("Hi",)])
def test_an_end_that_cannot_be_told_is_not_complete(tokens):
    assert read_log_probs(openai(*tokens)).complete is False


def test_an_empty_reply_is_its_end_token():
    assert read_log_probs(openai("</s>", text="")).complete is True


def test_half_characters_are_put_together():
    halves = [
        {"token": "\\xc3", "logprob": -1.0, "bytes": [0xC3]},
        {"token": "\\xa9", "logprob": -1.0, "bytes": [0xA9]},
    ]
    assert read_log_probs(reply({"content": halves}, "é", billed=2, reason="length")).complete is True
    nameless = [{"token": "\ufffd", "logprob": -1.0, "bytes": None}] * 2
    assert read_log_probs(reply({"content": nameless}, "é", billed=2, reason="length")).complete is False


@pytest.mark.parametrize("floor", [-9999.0, -1e5, -math.inf])
def test_a_figure_that_only_says_very_unlikely_is_not_complete(floor):
    """OpenAI writes -9999.0 for a token outside the twenty likeliest."""
    listed = {"content": [entry("Hi", floor), entry("</s>")]}
    assert read_log_probs(reply(listed, billed=2)).complete is False


# Nonsense.


@pytest.mark.parametrize(
    "nonsense",
    [
        None,
        True,
        3,
        "logprobs",
        b"logprobs",
        [],
        {},
        [None],
        [[-1.0]],
        [-1.0],
        {"content": None},
        {"content": []},
        {"content": "Hi"},
        {"content": 3},
        {"content": {"token": "Hi"}},
        {"content": [{"token": "Hi"}]},
        {"content": [entry("Hi", None)]},
        {"content": [entry("Hi", "-1")]},
        {"content": [entry("Hi", math.nan)]},
        {"content": [entry("Hi", 0.5)]},
        {"content": [entry("Hi", log_prob=True)]},
        {"content": [entry("Hi", log_prob=False)]},
        {"content": [entry("Hi", -(10**400))]},
        {"content": [entry("Hi"), None]},
        {"token_logprobs": "Hi"},
        {"token_logprobs": [None, -1.0]},
        {"token_logprobs": []},
    ],
    ids=str,
)
def test_nonsense_is_no_log_probability(nonsense):
    assert read_log_probs(reply(nonsense, billed=1, reason="length")) is None


@pytest.mark.parametrize(
    "strange",
    [
        {"token": 3},
        {"token": None},
        {"token": "\ud83d"},
        {"token": "Hi", "bytes": [256]},
        {"token": "Hi", "bytes": [300]},
        {"token": "Ho", "bytes": ["H", "i"]},
        {"token": "Ho", "bytes": "Hi"},
    ],
)
def test_strange_spellings_are_not_taken_for_the_text(strange):
    known = read_log_probs(reply({"content": [{"logprob": -1.0, **strange}]}, "Hey", billed=1, reason="length"))
    assert (known.tokens, known.complete) == ((-1.0,), False)


# What a scorer is asked.

CONDITIONS = [
    part.condition(ProposalInputs(prompt=(HumanMessage("x"),), descriptions=("A shop.",)))
    for part in (Reference(), ContextPrompt())
]


async def matrix(scorer, waiter, *replies):
    """Return the log-probabilities of (condition, reply) pairs, in sync or not."""
    identities = [message.text for _, message in replies]
    scoring = log_prob_matrix(scorer, CONDITIONS, replies, waiter, identities=identities, law={"temperature": 0.5})
    return (run(scoring) if waiter is BLOCKING else await scoring).tolist()


class Logits:
    """Scores conditions of several prompts, and keeps what it is asked."""

    wanted, law = None, None

    def score(self, prompt, replies):
        raise AssertionError

    def score_conditions(self, conditions, replies, *, wanted, **law):
        self.wanted, self.law = wanted, law
        return [[-2.0] * len(replies), [-3.0] * len(replies)]


@pytest.mark.parametrize("waiter", [BLOCKING, AWAITING])
async def test_a_model_with_logits_is_asked_for_what_is_missing_alone(waiter):
    model = Logits()
    known, unknown = AIMessage("Hi", response_metadata={"logprobs": OURS}), AIMessage("Ho")
    assert await matrix(model, waiter, (0, known), (1, unknown)) == [[-1.5, -2.0], [-3.0, -3.0]]
    assert model.wanted == [[False, True], [True, True]]
    assert model.law == {"temperature": 0.5}


@pytest.mark.parametrize("waiter", [BLOCKING, AWAITING])
async def test_a_log_probability_that_rounding_lifted_above_0_is_0(waiter):
    class Rounded:
        def score(self, prompt, replies, **law):
            return [1e-7] * len(replies)

    assert await matrix(Rounded(), waiter, (0, AIMessage("Hi"))) == [[0.0], [0.0]]


class Twins:
    """Scores in sync and async, and keeps which was called with what."""

    def __init__(self):
        self.asked = []

    def score(self, prompt, replies, **law):
        self.asked.append(("score", law))
        return [-1.0] * len(replies)

    async def ascore(self, prompt, replies, **law):
        self.asked.append(("ascore", law))
        return [-1.0] * len(replies)


class LogitTwins(Logits):
    """The same for conditions of several prompts."""

    def __init__(self):
        self.asked = []

    def score_conditions(self, conditions, replies, *, wanted, **law):
        self.asked.append(("score_conditions", law))
        return [[-1.0] * len(replies)] * len(conditions)

    async def ascore_conditions(self, conditions, replies, *, wanted, **law):
        self.asked.append(("ascore_conditions", law))
        return [[-1.0] * len(replies)] * len(conditions)


@pytest.mark.parametrize(("kind", "verb", "calls"), [(Twins, "score", 2), (LogitTwins, "score_conditions", 1)])
async def test_an_async_caller_awaits_the_scorers_async_method(kind, verb, calls):
    scorer = kind()
    for waiter, name in ((BLOCKING, verb), (AWAITING, f"a{verb}")):
        assert await matrix(scorer, waiter, (0, AIMessage("Hi"))) == [[-1.0], [-1.0]]
        assert scorer.asked == [(name, {"temperature": 0.5})] * calls
        scorer.asked.clear()


@pytest.mark.parametrize("kind", [Twins, LogitTwins])
def test_an_error_names_the_scorer(kind, monkeypatch):
    answer = "likely" if kind is Twins else [["likely"]] * 2
    monkeypatch.setattr(kind, "score" if kind is Twins else "score_conditions", lambda *_, **__: answer)
    with pytest.raises(ScoringError, match=f"^{kind.__name__} returned "):
        run(log_prob_matrix(kind(), CONDITIONS, [(0, AIMessage("Hi"))], BLOCKING, identities=["Hi"], law={}))


def of_product(totals):
    """Return a reply that was drawn under several conditions, with its log-probability under those that are known."""
    return AIMessage("Hi", response_metadata={"logprobs": {**OURS, "condition_totals": totals}})


def test_figures_that_the_draw_gives_are_not_scored_again():
    class Unscored(Logits):
        def score_conditions(self, conditions, replies, *, wanted, **law):
            assert wanted == [[False], [False], [False], [True]]
            return [[-9.0]] * 4

    product = ContextProduct(0.5, joint=True).condition(
        ProposalInputs(prompt=(HumanMessage("x"),), descriptions=("A shop.",))
    )
    sharper = Condition(name="sharper", prompts=product.prompts[:1], powers=(2.0,))
    scores = run(
        log_prob_matrix(
            Unscored(),
            [*CONDITIONS, product, sharper],
            [(2, of_product([-3.0, -4.0, -1.5, None]))],
            BLOCKING,
            identities=["Hi"],
            law={},
        )
    )
    assert scores.tolist() == [[-3.0], [-4.0], [-1.5], [-9.0]]


@pytest.mark.parametrize("totals", [[1.0], ["likely"], -1.0, "-1", {-1.0: 1}])
def test_figures_under_each_condition_are_log_probabilities(totals):
    assert read_log_probs(of_product([-1, None, -2.5])).condition_totals == (-1.0, None, -2.5)
    with pytest.raises(LogProbError, match="declares the basis"):
        read_log_probs(of_product(totals))


def test_a_token_may_be_a_null_byte():
    assert read_log_probs(openai("H", "\0", "</s>", text="H\0")).complete
