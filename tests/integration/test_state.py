"""An auction's state: checkpoints that are read as they were written, plain JSON, fields, alternatives and copies."""

import copy
import json
import logging
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from llm_auction_chain import (
    Agent,
    AuctionMiddleware,
    AuctionRunnable,
    Billing,
    ChatAuction,
    ConfigurationError,
    Disclosure,
    Policy,
    Sampling,
)
from llm_auction_chain.rewards import ClickReward, MentionReward, Reward
from llm_auction_chain.testing import MarkovChatModel

INTERFACES = [AuctionRunnable, ChatAuction]
RULES = ["expected", "proportional", "influence", "pivot"]
WORDS = MarkovChatModel(length=9)  # so many replies that four draws differ


@dataclass(frozen=True)
class Letters(Reward):
    """So much money for every letter, in NumPy's own numbers."""

    letter: str
    value: float = 1.0

    def score(self, prompt, replies):
        return [np.float64(self.value) * reply.text.count(self.letter) for reply in replies]


TWO = [Agent("B", Letters("b", 2.0)), Agent("C", Letters("c"), owner="c-group")]


def auction(interface, **settings):
    return interface(**{"model": WORDS, "agents": TWO, "n_candidates": 4, "seed": 7, **settings})


def outcome(reply):
    """Return all of a reply that does not depend on when it was given."""
    fresh = ("auction_id", "commitment")
    told = {name: value for name, value in reply.response_metadata["auction"].items() if name not in fresh}
    return reply.text, reply.usage_metadata, told


# State


def graph_of(part, saver):
    """Return a graph that speaks by the part: an agent's middleware, or a node with a model."""
    if isinstance(part, AuctionMiddleware):
        return create_agent(WORDS, middleware=[part], checkpointer=saver)

    async def aspeak(state):
        return {"messages": [await part.ainvoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("speak", RunnableLambda(lambda state: {"messages": [part.invoke(state["messages"])]}, aspeak))
    return builder.add_edge(START, "speak").compile(checkpointer=saver)


PARTS = {
    "runnable": lambda: auction(AuctionRunnable),
    "chat model": lambda: auction(ChatAuction),
    "middleware": lambda: AuctionMiddleware(TWO, n_candidates=4, seed=7),
}
GIVEN = {"messages": [("human", "Speak")]}
THREAD = {"configurable": {"thread_id": "1"}}


@pytest.fixture(params=PARTS)
def part(request):
    return PARTS[request.param]()


def check_read_again(written, read, part):
    assert read["messages"] == written["messages"]
    replies = [message for message in read["messages"] if isinstance(message, AIMessage)]
    told = [reply.response_metadata["auction"] for reply in replies]
    assert len({one["auction_id"] for one in told}) == 2
    assert all(one["payments"] for one in told)
    if isinstance(part, AuctionMiddleware):
        assert read["auctions"] == written["auctions"] == told


@pytest.fixture
def serializer(caplog):
    """LangGraph's serializer, which must know every type that it meets."""
    with caplog.at_level(logging.WARNING, logger="langgraph"):
        yield
    assert not caplog.records


@pytest.mark.usefixtures("serializer")
def test_a_new_saver_on_the_same_file_reads_equal_messages_and_auctions(part, tmp_path):
    file = str(tmp_path / "state.sqlite")
    with SqliteSaver.from_conn_string(file) as saver:
        graph_of(part, saver).invoke(GIVEN, THREAD)
        written = graph_of(part, saver).invoke(GIVEN, THREAD)
    with SqliteSaver.from_conn_string(file) as saver:
        check_read_again(written, graph_of(part, saver).get_state(THREAD).values, part)


@pytest.mark.usefixtures("serializer")
async def test_a_new_async_saver_on_the_same_file_reads_equal_messages_and_auctions(part, tmp_path):
    file = str(tmp_path / "state.sqlite")
    async with AsyncSqliteSaver.from_conn_string(file) as saver:
        await graph_of(part, saver).ainvoke(GIVEN, THREAD)
        written = await graph_of(part, saver).ainvoke(GIVEN, THREAD)
    async with AsyncSqliteSaver.from_conn_string(file) as saver:
        check_read_again(written, (await graph_of(part, saver).aget_state(THREAD)).values, part)


@pytest.mark.usefixtures("serializer")
def test_a_saver_in_memory_gives_equal_messages_and_auctions_back(part):
    saver = InMemorySaver()
    graph_of(part, saver).invoke(GIVEN, THREAD)
    written = graph_of(part, saver).invoke(GIVEN, THREAD)
    check_read_again(written, graph_of(part, saver).get_state(THREAD).values, part)


def asking(interface, question, **settings):
    """Return a graph whose auction asks somebody outside of it, and a thread to begin it in."""
    return graph_of(auction(interface, **settings), InMemorySaver()), {"configurable": {"thread_id": question}}


@pytest.mark.parametrize("interface", INTERFACES)
def test_an_interrupt_in_a_reward_is_that_agents_error_and_pauses_nothing(interface):
    asks = Agent("A", lambda prompt, reply: float(interrupt("What is it worth?")))
    graph, thread = asking(interface, "reward", agents=[asks, TWO[1]])
    state = graph.invoke(GIVEN, thread)
    assert "__interrupt__" not in state
    told = state["messages"][-1].response_metadata["auction"]["agents"]
    assert [(agent["agent"], agent["status"]) for agent in told] == [("A", "error"), ("C", "reported")]


@pytest.mark.parametrize("interface", INTERFACES)
def test_an_interrupt_where_agents_are_chosen_pauses_and_is_resumed(interface):
    graph, thread = asking(interface, "agents", agents=lambda given: TWO[: interrupt("How many?")])
    (asked,) = graph.invoke(GIVEN, thread)["__interrupt__"]
    assert asked.value == "How many?"
    state = graph.invoke(Command(resume=1), thread)
    assert [agent["agent"] for agent in state["messages"][-1].response_metadata["auction"]["agents"]] == ["B"]


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_checkpoint_keeps_the_key_of_a_call(interface):
    saver = InMemorySaver()
    graph = graph_of(auction(interface), saver)
    graph.invoke(GIVEN, {"configurable": {"thread_id": "1", "idempotency_key": "request 1"}})
    assert all(kept.metadata["idempotency_key"] == "request 1" for kept in saver.list(THREAD))


# Plain JSON


def broken(prompt, reply):
    raise ValueError(np.float64(1.0))


def priced(value):
    return [Agent("B", Letters("b", value)), Agent("C", Letters("c", value)), Agent("U", Letters("a"), pays=False)]


CASES = {
    "a tiny tau": {"tau": 1e-100},
    "a huge tau": {"tau": 1e100},
    "a tau of NumPy": {"tau": np.float64(0.5)},
    "a billion": {"agents": priced(1e9)},
    "the largest rewards, the smallest tau": {"agents": priced(1e99), "tau": 1e-100},
    "the smallest rewards": {"agents": priced(5e-324)},
    "losses": {"agents": priced(-1e9)},
    "clicks": {"agents": [Agent("B", ClickReward(1e9, Letters("b", 0.1))), *priced(2.0)[1:]]},
    "who breaks": {"agents": [*TWO, Agent("X", broken)]},
    "a cap": {"report_cap": 1.5},
    "a filter that excludes some": {"policy": lambda prompt, reply: reply.text.count("b") > 2},
    "a fallback": {"policy": Policy(candidate_filter=lambda prompt, reply: False, fallback="Nothing.")},
    "nobody": {"agents": []},
    "several rounds": {"sampling": Sampling(min_ess=6.0)},
    "a disclosure": {"disclosure": Disclosure(text="By {sponsors}", place="end"), "billing": Billing(currency="EUR")},
    "a rival left out": {
        "agents": [Agent(name, Letters("b"), categories=["cars"]) for name in "BC"],
        "policy": Policy(exclusive_categories=["cars"]),
    },
    "contexts": {"agents": [Agent("B", Letters("b"), context="B sells letters.")]},
    "tools": {"tools": True},
}


def told_by_all(rule, *, tools=False, **settings):
    """Yield what every interface says of the same auction; a middleware also in the state."""
    settings = {"agents": TWO, "n_candidates": 4, "seed": 7, "payment_rule": rule, **settings}
    model = WORDS.bind(tools=[{"name": "note"}]) if tools else WORDS
    for interface in INTERFACES:
        yield interface(model=model, **settings).invoke("Speak").response_metadata
    agent = create_agent(model, middleware=[AuctionMiddleware(**settings)])
    state = agent.invoke(GIVEN)
    yield state["messages"][-1].response_metadata
    yield {"auction": state["auctions"][0]}


def strange(value, where=()):
    """Return the places of what is not exactly a JSON type of Python's own."""
    if type(value) is dict:
        odd = [(*where, name) for name in value if type(name) is not str]
        return odd + [place for name, item in value.items() for place in strange(item, (*where, name))]
    if type(value) is list:
        return [place for k, item in enumerate(value) for place in strange(item, (*where, k))]
    return [] if value is None or type(value) in (str, int, float, bool) else [(*where, type(value))]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES)
def test_the_metadata_is_finite_json_of_pythons_own_types(case, rule):
    for told in told_by_all(rule, **CASES[case]):
        assert strange(told) == []
        assert json.loads(json.dumps(told, allow_nan=False)) == told
        assert told["auction"]["bypassed"] == (case == "tools")


# Fields, alternatives, copies

FIELDS = {name: ConfigurableField(f"the_{name}") for name in ("tau", "n_candidates", "agents", "model")}
CHOSEN = {"the_tau": 0.5, "the_n_candidates": 3, "the_agents": TWO[:1], "the_model": MarkovChatModel(length=5)}


async def both(runnable, **chosen):
    """Return the reply, which is the same in both colours."""
    config = {"configurable": chosen}
    reply, areply = runnable.invoke("Speak", config), await runnable.ainvoke("Speak", config)
    assert outcome(areply) == outcome(reply)
    return reply


@pytest.mark.parametrize("interface", INTERFACES)
async def test_a_call_chooses_tau_candidates_agents_and_model_by_its_config(interface):
    plain = auction(interface)
    runnable = plain.configurable_fields(**FIELDS)
    assert outcome(await both(runnable)) == outcome(plain.invoke("Speak"))
    assert outcome(await both(runnable, the_tau=0.5)) == outcome(auction(interface, tau=0.5).invoke("Speak"))
    reply = await both(runnable, **CHOSEN)
    wanted = {name: CHOSEN[field.id] for name, field in FIELDS.items()}
    assert outcome(reply) == outcome(auction(interface, **wanted).invoke("Speak"))
    assert len(reply.text) == 5
    with pytest.raises(ConfigurationError, match="tau must be a number above 0"):
        runnable.invoke("Speak", {"configurable": {"the_tau": -1.0}})


@pytest.mark.parametrize("interface", INTERFACES)
async def test_an_alternative_of_the_model_is_chosen_through_the_auction_in_every_call_style(interface):
    short, field = MarkovChatModel(length=2), ConfigurableField("llm")
    runnable = auction(interface, model=WORDS.configurable_alternatives(field, default_key="long", short=short))
    configs = [{"configurable": {"llm": llm}} for llm in ("long", "short")]
    wanted = [auction(interface).invoke("Speak").text, auction(interface, model=short).invoke("Speak").text]
    assert [len(text) for text in wanted] == [9, 2]
    assert [(await both(runnable, llm=llm)).text for llm in ("long", "short")] == wanted
    assert [reply.text for reply in runnable.batch(["Speak"] * 2, configs)] == wanted
    assert [reply.text for reply in await runnable.abatch(["Speak"] * 2, configs)] == wanted
    assert ["".join(chunk.text for chunk in runnable.stream("Speak", config)) for config in configs] == wanted
    assert ["".join([chunk.text async for chunk in runnable.astream("Speak", config)]) for config in configs] == wanted
    assert runnable.with_config(configs[1]).invoke("Speak").text == wanted[1]


COPIES = {"pickle": lambda value: pickle.loads(pickle.dumps(value)), "deepcopy": copy.deepcopy}  # noqa: S301
MENTIONS = [Agent("B", MentionReward(["aa"], value=2.0))]
WRAPS = {
    "as it is": lambda runnable: runnable,
    "bound": lambda runnable: runnable.bind(stop=["x"]).with_config(tags=["mine"]),
    "retried": lambda runnable: runnable.with_retry(),
    "configurable": lambda runnable: runnable.configurable_fields(tau=FIELDS["tau"]),
}


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("interface", INTERFACES)
async def test_a_copy_holds_the_same_auction_as_its_original(interface, wrap, copies):
    original = WRAPS[wrap](auction(interface, model=MarkovChatModel(), agents=MENTIONS, n_candidates=8))
    reply = await both(original)
    assert reply.response_metadata["auction"]["payments"][0]["expected"] > 0
    copied = COPIES[copies](original)
    assert copied is not original
    assert outcome(await both(copied)) == outcome(reply)


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_lambda_cannot_be_pickled_and_the_error_names_it(interface):
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        pickle.dumps(auction(interface, agents=[Agent("L", lambda prompt, reply: 1.0)]))
