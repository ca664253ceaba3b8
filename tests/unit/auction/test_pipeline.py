"""One auction from admission to charge: what it asks of agents, what it shows and what a failure does."""

import itertools
import json
import math
from decimal import Decimal

import numpy as np
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableLambda

from llm_auction_chain import (
    Agent,
    AuctionRunnable,
    AuctionWarning,
    ConfigurationError,
    PromptError,
    Reference,
    RewardError,
)
from llm_auction_chain.rewards import LogRatioReward, MentionReward
from llm_auction_chain.testing import MarkovChatModel


class Scripted(BaseChatModel):
    """Counts its calls; every reply is its number, every `fails_every`-th call fails."""

    fails_every: int = 0
    calls: list = []  # noqa: RUF012 - pydantic copies it

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self.calls.append(messages)
        number = len(self.calls)
        if self.fails_every and number % self.fails_every == 0:
            raise ConnectionError(f"call {number} broke")
        message = AIMessage(
            f"reply {number}",
            usage_metadata={"input_tokens": 3, "output_tokens": 2, "total_tokens": 5},
            response_metadata={"model_name": "scripted"},
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    @property
    def _llm_type(self):
        return "scripted"


def likes(letter, value=1.0):
    return lambda prompt, reply: value * reply.text.count(letter)


WORDS = MarkovChatModel(length=9)  # so many replies that four draws differ


def auction(model=None, agents=(), **settings):
    return AuctionRunnable(model=model or WORDS, agents=agents, **{"n_candidates": 4, "seed": 7, **settings})


TWO = [Agent("B", likes("b", 2.0)), Agent("C", likes("c"), owner="c-group")]


def test_the_metadata_is_plain_json_and_hides_rewards():
    reply = auction(agents=TWO).invoke("x")
    metadata = reply.response_metadata["auction"]
    assert json.loads(json.dumps(metadata, allow_nan=False)) == metadata
    amounts = {"amount", "expected", "contribution"}
    decimals = {f"{name}_decimal" for name in amounts}
    assert set(metadata["payments"][0]) == {"agent", "owner", "pays"} | amounts | decimals
    assert "rewards" not in json.dumps(metadata)
    assert metadata["payments"][1]["owner"] == "c-group"
    assert reply.response_metadata["model_name"] == "markov"


def test_no_agents_draw_one_reply_and_pay_nothing():
    model = Scripted()
    reply = auction(model).invoke("x")
    assert len(model.calls) == 1
    assert reply.response_metadata["auction"]["revenue"] == 0.0


@pytest.mark.parametrize("parts", [{"name": ""}, {"reward": 3}, {"owner": " "}, {"context": None}])
def test_an_agent_that_cannot_be_asked_is_refused(parts):
    with pytest.raises(ConfigurationError):
        Agent(**{"name": "A", "reward": max, **parts})


@pytest.mark.parametrize("given", [
    "", "  \n", [], [HumanMessage("")], [HumanMessage([{"type": "text", "text": " "}])],
    [SystemMessage("Be brief."), HumanMessage("")], [("nobody", "x")], [3], 3,
])  # fmt: skip
def test_an_empty_prompt_is_refused(given):
    with pytest.raises(PromptError):
        auction(agents=TWO).invoke(given)


def raises(prompt, reply):
    raise ZeroDivisionError("oh")


class Whole:
    def __init__(self, value):
        self.value = value

    def score(self, prompt, replies):
        return self.value


BAD = [lambda p, r: "1", lambda p, r: None, lambda p, r: math.nan, lambda p, r: 10**400,
       lambda p, r: 1j, lambda p, r: 1e101, Whole([1.0]), Whole("1234"), Whole(None), Whole(3)]  # fmt: skip


@pytest.mark.parametrize("reward", BAD)
async def test_nonsense_is_a_zero_report_that_pays_nothing(reward, caplog):
    agents = [Agent("bad", reward), Agent("B", likes("b"))]
    for result in (auction(agents=agents).run("x"), await auction(agents=agents).arun("x")):
        assert result.reports[0].status == "invalid"
        assert result.reports[0].rewards == (0.0,) * 4
        assert result.settlement.payments[0] == 0.0
        assert result.reports[1].status == "reported"
        assert result.reply.response_metadata["auction"]["agents"][0]["reason"]
    assert "abstains" in caplog.text
    with pytest.raises(RewardError):
        auction(agents=agents, on_agent_error="raise").invoke("x")


async def test_a_callback_that_raises_abstains_or_raises_as_set():
    agents = [Agent("bad", raises), Agent("B", likes("b"))]
    for result in (auction(agents=agents).run("x"), await auction(agents=agents).arun("x")):
        assert (result.reports[0].status, result.reports[0].reason) == ("error", "ZeroDivisionError: oh")
    with pytest.raises(RewardError, match="oh"):
        auction(agents=agents, on_agent_error="raise").invoke("x")


@pytest.mark.parametrize("number", [1, 1.0, np.float32(1.0), np.int64(1), Decimal(1), np.array(1.0)])
def test_numbers_of_every_kind_are_accepted(number):
    assert auction(agents=[Agent("A", lambda p, r: number)]).run("x").reports[0].rewards == (1.0,) * 4


async def test_rewards_may_be_sync_async_objects_or_runnables():
    async def one(prompt, reply):
        return 1.0

    class Slow:
        async def score(self, prompt, replies):
            return [1.0] * len(replies)

    class Called:
        def __call__(self, prompt, reply):
            return 1.0

    rewards = [one, Slow(), Called(), Whole([1.0] * 4), RunnableLambda(lambda pair: float(len(pair)) - 1.0),
               one]  # fmt: skip
    agents = [Agent(str(k), reward) for k, reward in enumerate(rewards)]
    for result in (auction(agents=agents).run("x"), await auction(agents=agents).arun("x")):
        assert [report.rewards for report in result.reports] == [(1.0,) * 4] * len(rewards), result.reports


def test_a_callback_that_mutates_its_arguments_changes_nothing_for_anybody():
    def vandal(prompt, reply):
        prompt[0].content = reply.content = "mine"
        return 0.0

    result = auction(agents=[Agent("V", vandal), Agent("B", likes("b"))]).run("x")
    assert result.prompt[0].content == "x"
    assert all(candidate.message.text != "mine" for candidate in result.candidates)


def test_a_negative_report_under_proportional_abstains():
    result = auction(agents=[Agent("N", lambda p, r: -1.0), TWO[0]], payment_rule="proportional").run("x")
    assert result.reports[0].status == "invalid"
    assert "proportional" in result.reports[0].reason


async def test_progress_counts_candidates_and_agents():
    for model in (Scripted(), MarkovChatModel()):
        seen, aseen = [], []
        auction(model, TWO).run("x", progress=seen.append)
        await auction(model, TWO).arun("x", progress=aseen.append)
        for events in (seen, aseen):
            assert (events[-1].stage, events[-1].done, events[-1].total) == ("rewards", 2, 2)
            assert max(event.done for event in events if event.stage == "candidates") == 4


def test_inner_messages_are_never_mutated():
    message = AIMessage("one")
    reply = auction(GenericFakeChatModel(messages=iter([message, AIMessage("two"), message, message])), TWO).invoke("x")
    assert "auction" in reply.response_metadata
    assert "auction" not in message.response_metadata


def test_the_same_seed_is_the_same_auction():
    one, two = auction(agents=TWO).run("x"), auction(agents=TWO).run("x")
    assert one.settlement.probabilities.tolist() == two.settlement.probabilities.tolist()
    assert one.auction_id != two.auction_id
    fresh = auction(agents=TWO, seed=None).run("x")
    assert auction(agents=TWO, seed=fresh.seed).run("x").reply.text == fresh.reply.text


def test_mentions_are_whole_words_in_any_case():
    replies = [AIMessage("Picks, pick; PICK!"), AIMessage("")]
    assert MentionReward(["pick"], value=2.0, at_most=9).score([], replies) == [4.0, 0.0]
    for bad in ({"phrases": "pick"}, {"phrases": []}, {"phrases": [""]}, {"phrases": ["a"], "value": "x"},
                {"phrases": ["a"], "at_most": 0}):  # fmt: skip
        with pytest.raises(ConfigurationError):
            MentionReward(**bad)


class Tracer(BaseCallbackHandler):
    def __init__(self):
        self.chains, self.models = [], []

    def on_chain_start(self, serialized, inputs, *, run_id, parent_run_id=None, **kwargs):
        self.chains.append(run_id)

    def on_chat_model_start(self, serialized, messages, *, run_id, parent_run_id=None, tags=None, **kwargs):
        self.models.append((parent_run_id, tags))


async def test_a_model_that_a_reward_or_a_directory_calls_is_hidden_from_streams_too():
    """What carries the tag `nostream` is left out of LangGraph's message streams."""
    judge = GenericFakeChatModel(messages=itertools.cycle([AIMessage("3")]))

    def judged(prompt, reply):
        return float(judge.invoke(prompt).text)

    async def ajudged(prompt, reply):
        return float((await judge.ainvoke(prompt)).text)

    def directory(given):
        judge.invoke(given)
        return [
            Agent("plain", judged),
            Agent("async", ajudged),
            Agent("runnable", RunnableLambda(lambda pair: judged(**pair))),
        ]

    for source in (directory, RunnableLambda(directory)):
        for call in ("sync", "async"):
            tracer = Tracer()
            runnable = auction(Scripted(), source)
            result = (
                runnable.run("x", {"callbacks": [tracer]})
                if call == "sync"
                else await runnable.arun("x", {"callbacks": [tracer]})
            )
            assert {report.status for report in result.reports} == {"reported"}
            assert len(tracer.models) == 4 + 1 + 3 * 4
            assert all("nostream" in tags for _, tags in tracer.models)


def test_draws_that_are_all_the_same_are_warned_about():
    model = GenericFakeChatModel(messages=itertools.cycle([AIMessage("always")]))
    with pytest.warns(AuctionWarning, match="temperature"):
        result = auction(model, TWO).run("x")
    assert result.reply.response_metadata["auction"]["warnings"] == list(result.warnings)
    assert (result.draws, result.distinct_replies) == (4, 1)


def test_equal_replies_are_shown_to_agents_once():
    seen = []

    class Watches:
        def score(self, prompt, replies):
            seen.append([reply.text for reply in replies])
            return [1.0] * len(replies)

    result = auction(MarkovChatModel(length=1), [Agent("W", Watches())], n_candidates=16).run("x")
    assert sorted(seen[0]) == ["a", "b", "c"]
    assert (result.draws, result.distinct_replies) == (16, 3)
    assert result.settlement.diagnostics.ess_weights == pytest.approx(16)


SHOP = {"context": "Bees sells honey.", "keywords": ["bees"]}


@pytest.mark.parametrize(
    ("agents", "settings", "reason"),
    [
        ([Agent("Bees", likes("b"))], {}, "no agent has a context or keywords"),
        ([Agent("Bees", likes("b"), **SHOP)], {}, "half of the draws lean towards the agents' keywords"),
        ([Agent("Bees", likes("b"), **SHOP)], {"report_cap": 0.5}, "by their caps, reports differ by at most 1 tau"),
        ([Agent("Bees", likes("b"), **SHOP)], {"report_cap": 0.5, "tau": 0.9}, "half of the draws"),
        ([Agent(n, likes("b"), report_cap=0.3, **SHOP) for n in "AB"], {}, "half of the draws"),
        ([Agent("Bees", likes("b"), report_cap=0.3, **SHOP), Agent("Ants", likes("a"))], {}, "half of the draws"),
        ([Agent("Bees", MentionReward(["b"], value=1e-9), **SHOP)], {}, "half of the draws"),
        ([Agent("Bees", LogRatioReward("Praise b."), **SHOP)], {}, "a reward is a log-ratio"),
        ([Agent("Bees", likes("b"), **SHOP)], {"proposal": Reference()}, "it is the auction's setting"),
    ],
)
def test_the_metadata_says_why_candidates_were_drawn_from_these_components(agents, settings, reason):
    """A cap counts, and bounds that follow from a bid do not."""
    result = auction(agents=agents, **settings).run("Speak")
    assert result.proposal_reason.startswith(reason)
    assert result.reply.response_metadata["auction"]["proposal"]["reason"] == result.proposal_reason


def test_one_agents_kind_of_reward_does_not_cost_the_others_their_draws():
    """With log-ratios alone a fifth of the draws is the reference's, with another agent beside them it is half."""
    ratio, mention = Agent("Bees", LogRatioReward("Praise b."), **SHOP), Agent("Ants", likes("a"), keywords=["ants"])
    alone = auction(agents=[ratio], n_candidates=20).run("Speak")
    beside = auction(agents=[ratio, mention], n_candidates=20).run("Speak")
    assert dict(alone.components)["reference"] == 4
    assert dict(beside.components) == {"reference": 10, "tilt 2 until said": 5, "context product 1": 5}
