"""The weights of a real transformers model, against plain forward passes over whole sequences."""

import math

import numpy as np
import pytest
import torch
from langchain_core.messages import AIMessage, HumanMessage

from llm_auction_chain import (
    Agent,
    AuctionRunnable,
    AuctionWarning,
    ChatTransformers,
    ContextProduct,
    ContextPrompt,
    DefensiveMixture,
    KeywordTilt,
    Reference,
)
from llm_auction_chain.candidates.proposals import ProposalInputs, conditions_of
from llm_auction_chain.descriptions import descriptions_of, keywords_of
from llm_auction_chain.models.local.engine import Engine
from llm_auction_chain.models.local.passes import SharedPasses
from tests.tiny import tokens_of_prompts

AGENTS = [
    Agent("A", lambda prompt, reply: reply.text.count("Hi") * 1.0, context="Hi Hi system"),
    Agent("B", lambda prompt, reply: reply.text.count("system") * 0.5, context="assistant no no"),
]
MIXTURE = DefensiveMixture([(Reference(), 2), (ContextPrompt(), 1), (ContextProduct(), 2), (ContextProduct(0.3), 1)])
LENGTH = 6


def laws_of(engine, condition, ids, temperature, top_p):
    """Return the distribution of each token of a reply (tokens, V): one full pass a prompt, nothing cached."""
    combined = 0
    for prompt, power in zip(condition.prompts, condition.powers, strict=True):
        roles = {"human": "user", "system": "system"}
        encoded = engine.encode([{"role": roles[one.type], "content": one.text} for one in prompt])
        with torch.inference_mode():
            logits = engine.model(torch.tensor([[*encoded, *ids]])).logits[0, len(encoded) - 1 : -1].double()
        combined = combined + power * logits.log_softmax(-1)
    law = (combined / temperature).softmax(-1)
    ranked, order = law.sort(descending=True)
    kept = ranked.cumsum(-1) - ranked < top_p
    kept[:, 0] = True
    law = torch.zeros_like(law).scatter(-1, order, ranked * kept)
    return law / law.sum(-1, keepdim=True)


def token_laws(engine, condition, ids, temperature, top_p):
    """Return the log-probability of a reply by the definition."""
    law = laws_of(engine, condition, ids, temperature, top_p)
    return law[range(len(ids)), ids].log().sum().item()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.85)])
def test_weights_are_those_of_full_forward_passes(seven_words, temperature, top_p):
    """Also where temperature and truncation make another law of the reference and of every component."""
    model = ChatTransformers(
        model=seven_words, dtype="float32", device="cpu", max_tokens=LENGTH, temperature=temperature, top_p=top_p
    )
    result = AuctionRunnable(model=model, agents=AGENTS, n_candidates=24, tau=2.0, seed=8, proposal=MIXTURE).run("Hi")
    engine = Engine.load(seven_words, "float32", "cpu")
    descriptions = descriptions_of(agent.context for agent in AGENTS)
    shuffle = int(np.random.SeedSequence(8).generate_state(2, np.uint64)[0]) >> 11  # the stream of candidates
    conditions, _ = conditions_of(
        MIXTURE, ProposalInputs(prompt=(HumanMessage("Hi"),), descriptions=tuple(descriptions), tau=2.0, seed=shuffle)
    )
    counts = dict(result.components)
    assert len(counts) == 4
    lengths = set()
    for candidate in result.candidates:
        ids = candidate.message.response_metadata["logprobs"]["token_ids"]
        lengths.add((len(ids), candidate.message.response_metadata["finish_reason"]))
        exact = {one.name: token_laws(engine, one, ids, temperature, top_p) for one in conditions}
        mixture = sum(n / 24 * math.exp(exact[name]) for name, n in counts.items())
        if not math.isfinite(exact["reference"]):
            assert candidate.log_weight == -math.inf
        else:
            assert candidate.log_weight == pytest.approx(exact["reference"] - math.log(mixture), abs=1e-4)
    assert (LENGTH, "length") in lengths, "some replies are cut: they have the probability of their prefix"
    assert any(reason == "stop" for _, reason in lengths) or top_p < 1, "truncation may take the end token away"


async def test_the_async_twin_draws_and_weighs_the_same(seven_words):
    model = ChatTransformers(model=seven_words, dtype="float32", device="cpu", max_tokens=LENGTH)
    auction = AuctionRunnable(model=model, agents=AGENTS, n_candidates=12, tau=2.0, seed=8, proposal=MIXTURE)
    here, there = auction.run("Hi"), await auction.arun("Hi")
    assert np.array_equal(here.log_weights, there.log_weights)
    assert here.reply.text == there.reply.text
    assert here.usage == there.usage


def test_what_drawing_told_is_not_scored_again(seven_words, monkeypatch):
    """Neither a reply under its own law, nor a product's replies under the reference, which is one of its prompts."""
    model = ChatTransformers(model=seven_words, dtype="float32", device="cpu", max_tokens=LENGTH)
    engine, asked = model._engine(), []
    score = engine.score

    def watched(*given, wanted, **settings):
        asked.append(wanted)
        return score(*given, wanted=wanted, **settings)

    monkeypatch.setattr(engine, "score", watched)
    proposal = DefensiveMixture([(Reference(), 1), (ContextProduct(), 1)])
    result = AuctionRunnable(model=model, agents=AGENTS, n_candidates=16, tau=4.0, seed=8, proposal=proposal).run("Hi")
    (wanted,) = asked
    assert len(result.components) == 2
    assert not wanted[0].any(), "the reference is one of the product's prompts"
    drawn_from = np.array([candidate.component for candidate in result.candidates])
    assert wanted[1].sum() <= (drawn_from == "reference").sum() < len(drawn_from)


def test_progress_counts_candidates_and_tells_how_fast_their_tokens_come(seven_words):
    model = ChatTransformers(model=seven_words, dtype="float32", device="cpu", max_tokens=LENGTH)
    auction, seen = AuctionRunnable(model=model, agents=AGENTS, n_candidates=12, tau=4.0, seed=8), []
    auction.run("Hi", progress=seen.append)
    drawing = [progress for progress in seen if progress.stage == "candidates"]
    assert [progress.done for progress in drawing] == sorted(progress.done for progress in drawing)
    assert drawing[-1].done == drawing[-1].total == 12
    assert all(progress.tokens_per_second is None for progress in seen if progress.stage != "candidates")
    assert max(progress.tokens_per_second or 0 for progress in drawing) > 0


def test_a_template_without_system_messages_draws_from_the_reference(seven_words, monkeypatch):
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system.') }}{% endif %}"
    template = refusal + "Hi {{ messages[0]['content'] }}"
    model = ChatTransformers(model=seven_words, dtype="float32", device="cpu", max_tokens=LENGTH)
    monkeypatch.setattr(model._engine().tokenizer, "chat_template", template)
    with pytest.warns(AuctionWarning, match=r"these are not used: The model's chat template refuses .* No system\."):
        result = AuctionRunnable(model=model, agents=AGENTS, n_candidates=4, seed=8, proposal=MIXTURE).run("Hi")
    assert result.components == (("reference", 4),)


@pytest.mark.parametrize("room", [1, 8, 20])
def test_descriptions_neither_cut_replies_nor_end_auctions_near_the_end_of_the_window(seven_words, room):
    """The window has 256 tokens. The descriptions need more than the room that the prompt leaves, or a part of it."""
    model = ChatTransformers(model=seven_words, dtype="float32", device="cpu", max_tokens=room)
    prompt = "Hi " * (256 - room - 4)
    with pytest.warns(AuctionWarning, match="these are not used: The "):
        result = AuctionRunnable(model=model, agents=AGENTS, n_candidates=12, seed=8, proposal=MIXTURE).run(prompt)
    plain = AuctionRunnable(model=model, agents=AGENTS, n_candidates=12, seed=8, proposal=Reference()).run(prompt)
    assert [each.message.text for each in result.candidates] == [each.message.text for each in plain.candidates]


TILTS = DefensiveMixture(
    [(Reference(), 2), (KeywordTilt(1.0, until_said=False), 1), (KeywordTilt(2.0), 2), (KeywordTilt(3.0), 1)]
)
BIDDERS = [
    Agent("A", lambda prompt, reply: reply.text.count("Hi") * 1.0, keywords=["Hi"]),
    Agent("B", lambda prompt, reply: reply.text.count("no") * 0.5, keywords=["no", "system"]),
]


def under_tilt(engine, condition, ids, temperature, top_p):
    """Return the log-probability of a reply under a tilt by the definition: one full pass, nothing cached."""
    total, begun = 0.0, [False, False]
    firsts = [set(tokens) for tokens in engine.keyword_tokens(condition.tilt)]
    for row, token in zip(laws_of(engine, condition, ids, temperature, top_p), ids, strict=True):
        active = set().union(
            *(own for own, done in zip(firsts, begun, strict=True) if not (done and condition.tilt.until_said))
        )
        raised = row.clone()
        raised[list(active)] *= math.exp(condition.tilt.strength)
        total += math.log(raised[token] / raised.sum()) if raised[token] > 0 else -math.inf
        begun = [done or token in own for own, done in zip(firsts, begun, strict=True)]
    return total


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.85)])
def test_weights_of_tilts_are_those_of_full_forward_passes(seven_words, temperature, top_p):
    model = ChatTransformers(
        model=seven_words, dtype="float32", device="cpu", max_tokens=LENGTH, temperature=temperature, top_p=top_p
    )
    result = AuctionRunnable(model=model, agents=BIDDERS, n_candidates=24, seed=8, proposal=TILTS).run("Hi")
    engine = Engine.load(seven_words, "float32", "cpu")
    keywords = tuple(sorted(keywords_of("", agent.keywords) for agent in BIDDERS))
    inputs = ProposalInputs(prompt=(HumanMessage("Hi"),), keywords=keywords)
    (reference, *tilted), _ = conditions_of(TILTS, inputs)
    counts = dict(result.components)
    assert set(counts) == {one.name for one in (reference, *tilted)}
    assert all(map(len, engine.keyword_tokens(tilted[0].tilt)))
    for candidate in result.candidates:
        ids = candidate.message.response_metadata["logprobs"]["token_ids"]
        exact = {one.name: under_tilt(engine, one, ids, temperature, top_p) for one in tilted}
        exact["reference"] = token_laws(engine, reference, ids, temperature, top_p)
        mixture = sum(n / 24 * math.exp(exact[name]) for name, n in counts.items())
        assert candidate.log_weight == pytest.approx(exact["reference"] - math.log(mixture), abs=1e-4)


def test_all_tilts_of_a_mixture_cost_one_pass(seven_words, monkeypatch):
    """A mixture of the reference and three tilts reads, steps and projects as often as the reference alone."""
    model = ChatTransformers(model=seven_words, dtype="float32", device="cpu", max_tokens=LENGTH)
    monkeypatch.setattr(model._engine(), "ends", set())  # all replies have LENGTH tokens
    calls = []

    def watch(kind, name, size):
        whole = getattr(kind, name)

        def watched(self, *given, **settings):
            calls.append((name, size(*given)))
            return whole(self, *given, **settings)

        monkeypatch.setattr(kind, name, watched)

    watch(SharedPasses, "read", len)
    watch(SharedPasses, "step", lambda sequences, tokens: len(tokens))
    watch(SharedPasses, "follow", len)
    watch(Engine, "score", lambda *given: 1)
    passes = {}
    for name, proposal in (("reference", Reference()), ("tilts", TILTS)):
        calls.clear()
        result = AuctionRunnable(model=model, agents=BIDDERS, n_candidates=24, seed=8, proposal=proposal).run("Hi")
        passes[name] = list(calls)
    assert len(result.components) == 4
    assert passes["tilts"] == passes["reference"] == [("read", 1), *[("step", 24)] * (LENGTH - 1)]


def test_replies_that_other_components_drew_are_scored_under_the_tilts(seven_words):
    """A product's draw gives no tilt: such figures are scored, and agree with those that draws give."""
    model = ChatTransformers(model=seven_words, dtype="float32", device="cpu", max_tokens=LENGTH)
    keywords = tuple(sorted(keywords_of("", agent.keywords) for agent in BIDDERS))
    inputs = ProposalInputs(prompt=(HumanMessage("Hi"),), descriptions=("Hi no.",), keywords=keywords)
    mixture = DefensiveMixture([(KeywordTilt(2.0), 1), (Reference(), 1), (ContextProduct(0.5), 1)])
    conditions, _ = conditions_of(mixture, inputs)
    drawn = model._generate([], seed=3, logprobs=True, conditions=[(one, 6) for one in conditions])
    replies = [generation.message for generation in drawn.generations]
    totals = [reply.response_metadata["logprobs"]["condition_totals"] for reply in replies]
    scores = np.array(model.score_conditions(conditions, replies))
    known = np.array([[math.nan if one is None else one for one in own] for own in totals]).T
    tilt = next(k for k, one in enumerate(conditions) if one.tilt is not None)
    product = next(k for k, one in enumerate(conditions) if len(one.prompts) > 1)
    assert np.isnan(known[tilt, 6 * product : 6 * product + 6]).all()
    assert np.isfinite(known[:, : 6 * product][:product]).all()
    filled = np.isfinite(known)
    assert scores[filled] == pytest.approx(known[filled], abs=1e-4)
    assert np.isfinite(scores).all()


def test_the_second_turn_of_a_chat_reads_only_what_is_new(seven_words, monkeypatch):
    """Every prompt of an auction is read once, for drawing and scoring. Behind each of them only the new turns are."""
    read = tokens_of_prompts(monkeypatch)
    keeping, forgetful = (
        ChatTransformers(model=seven_words, dtype="float32", device="cpu", max_tokens=LENGTH, max_cached_tokens=most)
        for most in (1000, 0)
    )
    options = {"agents": AGENTS, "n_candidates": 12, "tau": 2.0, "seed": 8, "proposal": MIXTURE}
    turns, counts = [HumanMessage("Hi no " * 10)], []
    for question in ("Hi", "no Hi", "system"):
        read.clear()
        result = AuctionRunnable(model=keeping, **options).run(turns)
        counts.append(sum(read))
        anew = AuctionRunnable(model=forgetful, **options).run(turns)
        assert [one.message.text for one in anew.candidates] == [one.message.text for one in result.candidates]
        assert anew.log_weights == pytest.approx(result.log_weights, abs=1e-5)
        turns = [*turns, AIMessage("Hi no no"), HumanMessage(question)]
    prompts = 4  # the reference's, the context prompt, and one for each agent of the product
    new = [keeping.get_num_tokens(f"Hi no no user: {question} assistant:") for question in ("Hi", "no Hi")]
    assert counts[0] >= prompts * 20
    assert counts[1:] == [prompts * tokens for tokens in new]
