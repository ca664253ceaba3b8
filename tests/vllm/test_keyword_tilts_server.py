"""Keyword tilts on a real vLLM server, whose figures contain the logit bias or not."""

import math

import numpy as np
import pytest
from langchain_core.messages import HumanMessage

from llm_auction_chain import Agent, AuctionRunnable, ContextPrompt, DefensiveMixture, KeywordTilt, Reference
from llm_auction_chain.candidates import ProposalInputs
from llm_auction_chain.candidates.proposals import conditions_of
from llm_auction_chain.descriptions import keywords_of
from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.models.vllm.chat_model import ChatVLLM
from llm_auction_chain.rewards import MentionReward
from tests.vllm.conftest import VLLMServer
from tests.vllm.test_real_server import TOKEN_SD

PROMPT = [HumanMessage("Name a colour and say why you like it.")]
WORDS = ["blue", "green", "paint"]
PAINTER = Agent("Teal", MentionReward(WORDS, value=2.0, at_most=2), keywords=WORDS)
MIXTURE = DefensiveMixture(
    [(Reference(), 2), (KeywordTilt(1.0, until_said=False), 1), (KeywordTilt(2.5, until_said=False), 1)]
)
LENGTH, M = 24, 32


@pytest.fixture(scope="module", params=["raw_logprobs", "processed_logprobs"])
def model(request, server, tmp_path_factory):
    """A model on a server of each kind."""
    if request.param == "raw_logprobs":
        yield ChatVLLM(base_url=server.url, max_tokens=LENGTH, seed=5)
        return
    other = VLLMServer(tmp_path_factory.mktemp("processed") / "log", "--logprobs-mode", request.param)
    other.wait()
    try:
        yield ChatVLLM(base_url=other.url, max_tokens=LENGTH, seed=5)
    finally:
        other.end()


@pytest.fixture(scope="module")
def draws(model):
    """Replies under each condition, and the conditions."""
    conditions, _ = conditions_of(MIXTURE, ProposalInputs(prompt=tuple(PROMPT), keywords=(keywords_of("", WORDS),)))
    result = model.generate([PROMPT], conditions=[(condition, M) for condition in conditions])
    return conditions, [generation.message for generation in result.generations[0]]


def totals_of(reply):
    return reply.response_metadata["logprobs"]["condition_totals"]


def test_the_figures_of_the_reference_are_those_that_the_server_scores(model, draws):
    _, replies = draws
    known, scored = np.array([totals_of(reply)[0] for reply in replies]), np.array(model.score(PROMPT, replies))
    lengths = np.array([len(reply.response_metadata["logprobs"]["token_ids"]) for reply in replies])
    errors = (known - scored) / (TOKEN_SD * np.sqrt(lengths))
    assert np.abs(errors).max() < 5  # of 96: by chance with probability below 1e-4
    assert abs(errors.mean()) < 5 / math.sqrt(len(errors))


def test_the_own_figure_is_among_the_totals(draws):
    for place, reply in enumerate(draws[1]):
        own = math.fsum(reply.response_metadata["logprobs"]["token_logprobs"])
        assert own == pytest.approx(totals_of(reply)[place // M], abs=1e-3)


def test_the_mean_weight_of_a_tilts_draws_is_one(draws):
    """E under the tilt of pi_ref / pi_tilt is 1, for the 32 draws of each; it misses by five standard errors with
    probability below 1e-5."""
    for tilt in (1, 2):
        own = [totals_of(reply) for reply in draws[1][M * tilt : M * (tilt + 1)]]
        weights = np.exp([figures[0] - figures[tilt] for figures in own])
        assert abs(weights.mean() - 1) < 5 * weights.std() / math.sqrt(M) + 1e-9
        assert weights.std() > 0


def test_a_tilt_draws_its_keywords_more_often(draws):
    _, replies = draws
    counts = [
        sum(any(word in reply.text.lower() for word in WORDS) for reply in replies[M * k : M * (k + 1)])
        for k in range(3)
    ]
    assert counts[2] > counts[0]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_auction_takes_half_of_its_candidates_from_the_tilt_by_default(model, asynchronous):
    auction = AuctionRunnable(model=model, agents=[PAINTER], n_candidates=16, seed=3)
    result = await auction.arun(PROMPT) if asynchronous else auction.run(PROMPT)
    assert result.components == (("reference", 8), ("tilt 1", 8))
    assert max(candidate.log_weight for candidate in result.candidates) <= math.log(2) + 1e-9
    assert result.settlement.diagnostics.ess_weights >= 8
    assert result.contexts == "used"
    assert result.usage["output_tokens"] > 16


def test_no_report_changes_a_candidate(model):
    texts = []
    for value in (0.0, 1e6):
        agent = Agent("Teal", MentionReward(WORDS, value=value), keywords=WORDS)
        result = AuctionRunnable(model=model, agents=[agent], n_candidates=6, seed=3).run(PROMPT)
        texts.append([candidate.message.text for candidate in result.candidates])
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("proposal", "says"),
    [
        (KeywordTilt(2.0), r"KeywordTilt\(1.0, until_said=False\)"),
        (DefensiveMixture([(KeywordTilt(1.0, until_said=False), 1), (ContextPrompt(), 1)]), "Leave one of the two out"),
    ],
)
def test_what_a_server_cannot_draw_is_refused_with_a_remedy(model, proposal, says):
    agent = Agent("Teal", PAINTER.reward, context="Teal Paints sells teal paint.")
    with pytest.raises(ConfigurationError, match=says):
        AuctionRunnable(model=model, agents=[agent], n_candidates=4, proposal=proposal).run(PROMPT)
