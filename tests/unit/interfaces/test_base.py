"""What both interfaces share: whole results, and a draw that nobody knows beforehand."""

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import (
    ConfigurableField,
    RouterRunnable,
    Runnable,
    RunnableBranch,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from langchain_core.tools import BaseTool

from llm_auction_chain import Agent, AuctionRunnable, ChatAuction, ConfigurationError
from llm_auction_chain.testing import MarkovChatModel
from tests.unit.interfaces.caller import Caller

AGENT = Agent("B", lambda prompt, reply: 2.0 * reply.text.count("b"))
BOTH = pytest.mark.parametrize("interface", [AuctionRunnable, ChatAuction])
NOTE = {"type": "function", "function": {"name": "note", "description": "Note it.", "parameters": {}}}
SEED = 7_310_934_551


class Holds(BaseChatModel):
    """A chat model of one's own around another."""

    held: Runnable

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        return ChatResult(generations=[ChatGeneration(message=self.held.invoke(messages))])

    @property
    def _llm_type(self):
        return "holds"


class Starts(BaseCallbackHandler):
    """Keeps all that a run is begun with."""

    def __init__(self):
        self.models, self.chains = [], []

    def on_chat_model_start(self, serialized, messages, **told):
        self.models.append((serialized, told))

    def on_chain_start(self, serialized, inputs, **told):
        self.chains.append((serialized, told))


@BOTH
async def test_run_returns_the_result_whose_reply_invoke_returns(interface):
    auction = interface(model=MarkovChatModel(length=6), agents=[AGENT], n_candidates=4, seed=7)
    counted = []
    for result in (auction.run("x", progress=counted.append), await auction.arun("x", progress=counted.append)):
        assert result.reply.text == auction.invoke("x").text
        assert [report.status for report in result.reports] == ["reported"]
        assert result.explain().agents[0].agent == "B"
    assert [step.total for step in counted if step.stage == "rewards"] == [1, 1]


@BOTH
def test_run_is_one_run_of_the_same_kind_as_invoke(interface):
    auction = interface(model=MarkovChatModel(), agents=[AGENT], n_candidates=4)
    invoked, run = Starts(), Starts()
    auction.invoke("x", {"callbacks": [invoked]})
    auction.run("x", {"callbacks": [run]})
    assert (len(run.models), len(run.chains)) == (len(invoked.models), len(invoked.chains)) == (1, len(run.chains))
    assert "results" not in repr(run.models)


@BOTH
async def test_run_is_given_what_is_bound_to_an_auction_as_invoke_is(interface):
    caller, hears = Caller(), Starts()
    own = interface(model=caller, agents=[AGENT], n_candidates=4, seed=7)
    told = {"callbacks": [hears], "configurable": {"agents": [Agent("C", lambda prompt, reply: 1.0)]}}
    for bound in (
        own.bind(seed=8, stop=["END"], tools=[NOTE]).with_config(told),
        own.with_config(told).bind(seed=8, stop=["END"], tools=[NOTE]),
        own.bind(seed=1).with_config(told).bind(seed=8, stop=["END"], tools=[NOTE]),
        own.bind_tools([NOTE]).with_config(told).bind(seed=8, stop=["END"]),
    ):
        for result in (bound.run("x"), await bound.arun("x")):
            assert (result.bypassed, result.agents, result.seed) == (True, (), 8)
        for result in (bound.run("x", seed=9, tools=[]), await bound.arun("x", seed=9, tools=[])):
            assert (result.bypassed, [agent.name for agent in result.agents], result.seed) == (False, ["C"], 9)
        assert [bool(call["tools"]) for call in caller.asked] == [True] * 2 + [False] * 8
        assert {tuple(call["stop"]) for call in caller.asked} == {("END",)}
        assert len(hears.models if interface is ChatAuction else hears.chains) == 4
        for heard in (caller.asked, hears.models, hears.chains):
            heard.clear()


@BOTH
async def test_neither_a_tracer_nor_an_agents_runnable_is_told_the_seed_before_the_draw(interface):
    """Whoever knows the seed knows the draw, and can gain by a report that is not true."""
    asked, hears = [], Starts()

    def report(pair, config):
        asked.append({**config, "callbacks": config["callbacks"].inheritable_metadata})
        return 1.0

    auction = interface(model=MarkovChatModel(), agents=[Agent("R", RunnableLambda(report))], n_candidates=4, seed=SEED)
    auction.invoke("x", {"callbacks": [hears]})
    await auction.ainvoke("x", {"callbacks": [hears]}, seed=SEED)
    assert len(asked) == 2 * len(set(map(repr, auction.run("x").candidates)))
    assert len(hears.models) == 2
    assert str(SEED) not in repr(asked) + repr(hears.models)


@BOTH
def test_an_auction_over_an_auction_is_refused_however_it_is_wrapped(interface):
    plain, choice = MarkovChatModel(), ConfigurableField(id="which")
    for inner in (AuctionRunnable, ChatAuction):
        held = inner(model=plain, agents=[AGENT])
        for wrapped in (
            held,
            held.bind(stop=["x"]),
            held.with_retry(),
            RunnableLambda(lambda given: given) | held,
            (RunnablePassthrough() | held).with_retry(),
            plain.with_fallbacks([held]),
            RunnableBranch((lambda given: True, held), plain),
            RunnableBranch((lambda given: True, plain), held),
            RunnablePassthrough() | RouterRunnable({"one": plain, "other": held}),
            RunnableParallel(one=held) | (lambda replies: replies["one"]),
            plain.configurable_alternatives(choice, default_key="plain", other=held),
        ):
            with pytest.raises(ConfigurationError, match="auction already"):
                interface(model=wrapped)


@BOTH
async def test_an_auction_that_only_a_call_shows_ends_the_auction_around_it(interface):
    def refers():
        return held

    held, choice = AuctionRunnable(model=MarkovChatModel(), agents=[AGENT], n_candidates=2), ConfigurableField(id="m")
    model = MarkovChatModel().configurable_alternatives(choice, default_key="plain", other=refers)
    assert interface(model=model, agents=[AGENT], n_candidates=2).invoke("x").response_metadata["auction"]
    for unseen, config in ((model, {"configurable": {"m": "other"}}), (Holds(held=held), {})):
        auction = interface(model=unseen, agents=[AGENT], n_candidates=2)
        with pytest.raises(ConfigurationError, match="an auction already"):
            auction.invoke("x", config)
        with pytest.raises(ConfigurationError, match="an auction already"):
            await auction.ainvoke("x", config)


def test_a_tool_may_be_an_auction():
    within = ChatAuction(model=MarkovChatModel(), agents=[AGENT])

    class Writes(BaseTool):
        name: str = "writes"
        description: str = "Write a text."
        writer: BaseChatModel = within

        def _run(self, given):
            return self.writer.invoke(given).text

    assert AuctionRunnable(model=MarkovChatModel().bind(tools=[Writes()]))
