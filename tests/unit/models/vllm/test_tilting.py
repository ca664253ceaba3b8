"""What a server's figures say of tilts, for figures before a logit bias and after it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage

from llm_auction_chain.candidates import Condition, KeywordTilt, ProposalInputs, Reference
from llm_auction_chain.descriptions import Keywords
from llm_auction_chain.errors import ConfigurationError, ScoringError
from llm_auction_chain.models.vllm.tilting import (
    ServerTilts,
    beginnings_of,
    check_drawable,
    is_processed,
    probe_of,
)

SIZE = 12
ONE, TWO = Keywords(("one",)), Keywords(("two",))
TOKENS = {ONE: [5, 2], TWO: [7, 5]}
INPUTS = ProposalInputs(prompt=(HumanMessage("Hi"),), keywords=(ONE, TWO))


def reply_of(ids, values, places):
    figures = {"token_ids": ids, "token_logprobs": values, "of_tokens": places}
    return AIMessage("Hi", response_metadata={"logprobs": figures})


@given(
    st.integers(0, 5),
    st.lists(st.floats(0.1, 6), min_size=1, max_size=2, unique=True),
    st.integers(0, 2),
    st.booleans(),
    st.integers(0, 999),
)
def test_figures_before_and_after_the_bias_give_the_same_log_probabilities(length, strengths, own, processed, seed):
    rng = np.random.default_rng(seed)
    tilted = [KeywordTilt(strength, until_said=False).condition(INPUTS) for strength in strengths]
    conditions = [Reference().condition(INPUTS), *tilted]
    condition = conditions[min(own, len(tilted))]
    tilts = ServerTilts(conditions=conditions, beginnings=TOKENS)
    columns = tilts.columns.tolist()
    assert columns == [2, 5, 7]
    reference = rng.dirichlet(np.ones(SIZE), length).reshape(length, SIZE)
    ids = rng.integers(0, SIZE, length).tolist()

    def under(strength):
        raised = reference.copy()
        raised[:, columns] *= np.exp(strength)
        return raised / raised.sum(axis=1, keepdims=True)

    laws = [reference, *(under(strength) for strength in strengths)]
    exact = [float(np.log(law[range(length), ids]).sum()) for law in laws]
    figures = np.log(laws[conditions.index(condition)] if processed else reference)
    places = [{token: row[token] for token in columns} for row in figures]
    reply = reply_of(ids, figures[range(length), ids].tolist(), places)
    tilts.complete(reply, condition, processed=processed)
    known = reply.response_metadata["logprobs"]
    assert known["condition_totals"] == pytest.approx(exact, abs=1e-9)
    assert sum(known["token_logprobs"]) == pytest.approx(exact[conditions.index(condition)], abs=1e-9)
    assert "of_tokens" not in known


def test_a_request_biases_the_tokens_of_its_tilt_and_asks_for_those_of_all():
    tilt = KeywordTilt(1.5, until_said=False).condition(INPUTS)
    tilts = ServerTilts(conditions=[Reference().condition(INPUTS), tilt], beginnings=TOKENS)
    figures = {"logprob_token_ids": [2, 5, 7], "return_tokens_as_token_ids": True}
    assert tilts.settings(Reference().condition(INPUTS)) == figures
    assert tilts.settings(tilt) == {**figures, "logit_bias": {"2": 1.5, "5": 1.5, "7": 1.5}}


def test_a_server_whose_figures_contain_the_bias_is_certain_of_biased_tokens():
    probes = probe_of(np.array([4, 9]))
    assert [probe["logit_bias"] for probe in probes] == [{"9": 100.0}, {"4": 100.0}]
    assert len(probe_of(np.array([4]))) == 2
    assert is_processed([reply_of([9], [-1e-9], []), reply_of([4], [0.0], [])])
    assert not is_processed([reply_of([9], [-1e-9], []), reply_of([4], [-7.0], [])])  # certain by itself


def test_a_server_that_leaves_out_a_keyword_is_refused():
    tilt = KeywordTilt(1.0, until_said=False).condition(INPUTS)
    tilts = ServerTilts(conditions=[tilt], beginnings=TOKENS)
    with pytest.raises(ScoringError, match="does not know logprob_token_ids"):
        tilts.complete(reply_of([1], [-1.0], [{2: -1.0}]), tilt, processed=False)


def test_marks_of_chat_templates_are_no_keywords():
    words = ("<|im_end|>", "[INST]", "blue")
    tokens = {"<|im_end|>": (2001, "<|im_end|>"), "[INST]": (2002, "[INST]"), "blue": (2003, "blue")}
    assert beginnings_of(Keywords(words), tokens) == [2003]


def test_all_agents_share_the_tokens_that_a_server_writes():
    agents = [Keywords((f"word{k:03}",)) for k in range(100)]
    inputs = ProposalInputs(prompt=(HumanMessage("Hi"),), keywords=tuple(agents))
    tilt = KeywordTilt(1.0, until_said=False).condition(inputs)
    many = ServerTilts(conditions=[tilt], beginnings={own: [k, k + 1000] for k, own in enumerate(agents)})
    assert many.columns.tolist() == list(range(64))


@pytest.mark.parametrize(
    ("conditions", "says"),
    [
        ([KeywordTilt(2.0).condition(INPUTS)], "whole replies only"),
        (
            [
                KeywordTilt(2.0, until_said=False).condition(INPUTS),
                Condition(name="other", prompts=((HumanMessage("Bye"),),)),
            ],
            "with the reference alone",
        ),
        ([Condition(name="two", prompts=((HumanMessage("Hi"),), (HumanMessage("Bye"),)))], "with the reference alone"),
    ],
)
def test_what_a_server_cannot_draw_is_refused_with_a_remedy(conditions, says):
    with pytest.raises(ConfigurationError, match=says):
        check_drawable(conditions)
