"""Who bids depends on the query and on public descriptions, and on nothing that an agent reports."""

import asyncio
import importlib
import random
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore

from llm_auction_chain import Agent, AuctionRunnable, AuctionWarning, ConfigurationError, PromptError
from llm_auction_chain.directory import AgentDirectory
from llm_auction_chain.models.local.embeddings import StaticEmbeddings
from llm_auction_chain.testing import MarkovChatModel

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # the package announces its own end
    community = importlib.import_module("langchain_community.vectorstores")
    docstores = importlib.import_module("langchain_community.docstore.in_memory")
    faiss = importlib.import_module("faiss")

DESCRIPTIONS = {
    "StringSchool": "Online guitar lessons for beginners.",
    "TuneTown": "Used pianos, tuned and delivered.",
    "SongBook": "Song books with guitar chords.",
    "Tyres": "Winter tyres for lorries, fitted on the road.",
    "Plumber": "Emergency plumbing: burst pipes and blocked drains.",
}
GUITAR = "Who gives guitar lessons to beginners?"
PIPES = "Water is running out of a burst pipe"


class Counting(StaticEmbeddings):
    """Remembers what it was asked to embed."""

    def __init__(self):
        self.documents, self.queries = [], []

    def embed_documents(self, texts):
        self.documents += texts
        return super().embed_documents(texts)

    def embed_query(self, text):
        self.queries.append(text)
        return StaticEmbeddings().embed_query(text)


class Mute(InMemoryVectorStore):
    """Cannot be asked what it holds, as some stores cannot."""

    def get_by_ids(self, ids, /):
        raise NotImplementedError


class Fixed(BaseRetriever):
    """Finds the same documents whatever it is asked."""

    documents: list[Document]

    def _get_relevant_documents(self, query, *, run_manager):
        return self.documents


def in_faiss(embedding, index=None):
    return community.FAISS(embedding, index or faiss.IndexFlatL2(256), docstores.InMemoryDocstore(), {})


def held(store):
    """Return the texts that a store holds."""
    if isinstance(store, InMemoryVectorStore):
        return sorted(entry["text"] for entry in store.store.values())
    assert store.index.ntotal == len(store.index_to_docstore_id)
    return sorted(store.docstore.search(key).page_content for key in store.index_to_docstore_id.values())


def agent(name, context=None, reward=lambda prompt, reply: 0.0, owner=None):
    return Agent(name, reward, owner=owner, context=DESCRIPTIONS[name] if context is None else context)


def agents():
    return [agent(name) for name in DESCRIPTIONS]


def names(found):
    return [one.name for one in found]


def document(name):
    return Document(page_content="described elsewhere", metadata={"agent": name})


@pytest.fixture(params=["sync", "async"])
def call(request):
    """Call a method of a directory from sync or async code."""
    if request.param == "sync":
        return lambda directory, verb, *arguments: getattr(directory, verb)(*arguments)

    def call(directory, verb, *arguments):
        if verb == "invoke":
            return asyncio.run(directory.ainvoke(*arguments))
        return asyncio.run(asyncio.to_thread(getattr(directory, verb), *arguments))

    return call


@pytest.fixture(
    params=[InMemoryVectorStore, in_faiss, Mute], ids=["in memory", "FAISS", "a store that cannot be asked"]
)
def store(request):
    return request.param(Counting())


def test_the_most_similar_take_part_and_come_in_order(store, call):
    directory = AgentDirectory(store, k=2)
    call(directory, "add", agents())
    assert len(directory) == 5
    assert "Tyres" in directory
    assert names(call(directory, "invoke", GUITAR)) == ["StringSchool", "SongBook"]
    assert names(call(directory, "invoke", PIPES))[0] == "Plumber"


def test_fewer_agents_than_k_all_take_part(store, call):
    directory = AgentDirectory(store, agents(), k=50)
    assert sorted(names(call(directory, "invoke", GUITAR))) == sorted(DESCRIPTIONS)


def test_an_empty_directory_finds_nobody(store, call):
    assert call(AgentDirectory(store), "invoke", GUITAR) == []


def test_a_new_description_replaces_the_old_one_and_its_vector(store, call):
    directory = AgentDirectory(store, agents(), k=1)
    new = agent("Tyres", "Guitar lessons for beginners, and tyres.")
    call(directory, "add", [new])
    assert held(store) == sorted({**DESCRIPTIONS, "Tyres": new.context}.values())
    assert len(directory) == 5
    assert call(directory, "invoke", "Winter tyres for lorries, fitted on the road.") == [new]


def test_a_description_that_stays_is_not_embedded_again(store, call):
    directory = AgentDirectory(store, agents(), k=1)
    raised = agent("StringSchool", reward=lambda prompt, reply: 2.0)
    call(directory, "add", [raised])
    assert store.embeddings.documents == list(DESCRIPTIONS.values())
    assert held(store) == sorted(DESCRIPTIONS.values())
    assert call(directory, "invoke", GUITAR) == [raised]


def test_an_owner_that_changes_is_written(store, call):
    directory = AgentDirectory(store, agents())
    call(directory, "add", [agent("Tyres", owner="SongBook")])
    found = {one.metadata["agent"]: one.metadata["owner"] for one in store.similarity_search(GUITAR, k=10)}
    assert found == {**{name: name for name in DESCRIPTIONS}, "Tyres": "SongBook"}


@pytest.mark.parametrize("make", [InMemoryVectorStore, in_faiss])
def test_a_store_that_an_earlier_directory_filled_is_gone_on_with(make, call):
    store = make(Counting())
    AgentDirectory(store, agents())
    later = AgentDirectory(store, k=1)
    described = {**DESCRIPTIONS, "Plumber": "Plumbing for hotels."}
    call(later, "add", [agent(*both) for both in described.items()])
    assert store.embeddings.documents == [*DESCRIPTIONS.values(), "Plumbing for hotels."]
    assert held(store) == sorted(described.values())
    assert names(call(later, "invoke", "plumbing for a hotel")) == ["Plumber"]


def test_who_has_left_is_not_found_and_leaves_nothing_behind(store, call):
    directory = AgentDirectory(store, agents(), k=5)
    call(directory, "remove", ["StringSchool", "Tyres"])
    call(directory, "remove", "SongBook")
    assert sorted(names(call(directory, "invoke", GUITAR))) == ["Plumber", "TuneTown"]
    assert held(store) == sorted(DESCRIPTIONS[name] for name in ("Plumber", "TuneTown"))
    assert "Tyres" not in directory
    call(directory, "add", [agent("Tyres")])
    assert len(directory) == 3


def test_names_are_those_of_agents_however_they_are_spelled(store, call):
    directory = AgentDirectory(store, [agent("Caf\u00e9", "Coffee and cake.")])
    assert "Cafe\u0301" in directory
    call(directory, "remove", ["Cafe\u0301"])
    assert len(directory) == len(held(store)) == 0


def test_who_is_not_there_cannot_be_removed(store, call):
    directory = AgentDirectory(store, agents())
    with pytest.raises(ConfigurationError, match="There is no 'Bakery', 'Inn' in the directory to remove"):
        call(directory, "remove", ["Tyres", "Bakery", "Inn"])
    assert len(held(store)) == 5


def test_what_an_earlier_directory_left_is_skipped_with_a_warning_until_removed(call):
    store = in_faiss(StaticEmbeddings())
    AgentDirectory(store, agents())
    directory = AgentDirectory(store, [agent("SongBook")], k=2)
    with pytest.warns(AuctionWarning, match="not in the directory: 'StringSchool'"):
        assert names(call(directory, "invoke", GUITAR)) == ["SongBook"]
    call(directory, "remove", set(DESCRIPTIONS) - {"SongBook"})
    assert held(store) == [DESCRIPTIONS["SongBook"]]
    assert names(call(directory, "invoke", GUITAR)) == ["SongBook"]


def test_always_comes_first_and_is_not_counted(store, call):
    house = [Agent("user", lambda prompt, reply: 1.0), Agent("rules", lambda prompt, reply: 1.0)]
    directory = AgentDirectory(store, agents(), k=2, always=house)
    assert names(call(directory, "invoke", GUITAR)) == ["user", "rules", "StringSchool", "SongBook"]
    with pytest.raises(ConfigurationError, match="Two agents are called 'user'"):
        call(directory, "add", [agent("user", "A user.")])


def test_agents_that_cannot_meet_do_not_join_one_directory(store, call):
    directory = AgentDirectory(store, agents())
    never_pays = Agent("Inn", lambda prompt, reply: 1.0, owner="Tyres", context="An inn.", pays=False)
    with pytest.raises(ConfigurationError, match="'Tyres' has agents that pay and agents that do not"):
        call(directory, "add", [never_pays])
    assert "Inn" not in directory
    assert held(store) == sorted(DESCRIPTIONS.values())


@pytest.mark.parametrize(
    "given",
    [
        GUITAR,
        [("system", "Be brief."), ("human", PIPES), ("ai", "Call a plumber."), ("human", GUITAR)],
        [HumanMessage(GUITAR), AIMessage(PIPES)],
        [{"role": "user", "content": GUITAR}],
        [HumanMessage([{"type": "text", "text": GUITAR}])],
        ChatPromptTemplate.from_messages([("human", "{wish}")]).invoke({"wish": GUITAR}),
    ],
    ids=["text", "tuples", "a reply at the end", "mappings", "blocks", "a prompt value"],
)
def test_the_last_human_message_is_searched_for(given, call):
    store = InMemoryVectorStore(Counting())
    directory = AgentDirectory(store, agents(), k=1)
    assert names(call(directory, "invoke", given)) == ["StringSchool"]
    assert store.embeddings.queries == [GUITAR]


def test_an_input_that_is_no_prompt_is_named(call):
    directory = AgentDirectory(InMemoryVectorStore(StaticEmbeddings()), agents())
    with pytest.raises(PromptError, match="The input is int"):
        call(directory, "invoke", 3)


@pytest.mark.parametrize(
    "given", [" ", [SystemMessage(GUITAR)], [HumanMessage([{"type": "image", "url": "http://x"}])]]
)
def test_without_a_text_to_search_for_only_always_takes_part(given, call):
    store = InMemoryVectorStore(Counting())
    house = Agent("user", lambda prompt, reply: 1.0)
    directory = AgentDirectory(store, agents(), always=[house])
    assert call(directory, "invoke", given) == [house]
    assert store.embeddings.queries == []


def all_humans(messages):
    return " ".join(message.text for message in messages if message.type == "human")


async def awaited(messages):
    return all_humans(messages)


@pytest.mark.parametrize("query", [all_humans, RunnableLambda(all_humans), awaited])
def test_the_search_text_may_be_made_of_all_messages(query):
    store = InMemoryVectorStore(Counting())
    directory = AgentDirectory(store, agents(), k=1, query=query)
    prompt = [("human", GUITAR), ("ai", "I do."), ("human", "For how much?")]
    found = [asyncio.run(directory.ainvoke(prompt))]
    if query is not awaited:
        found.append(directory.invoke(prompt))
    assert [names(one) for one in found] == [["StringSchool"]] * len(found)
    assert set(store.embeddings.queries) == {f"{GUITAR} For how much?"}


def test_a_search_text_that_is_none_is_named(call):
    directory = AgentDirectory(InMemoryVectorStore(StaticEmbeddings()), agents(), query=len)
    with pytest.raises(ConfigurationError, match="query returned int; it must return the text"):
        call(directory, "invoke", GUITAR)


def test_a_retriever_decides_in_its_order_each_agent_once(call):
    found = [document(name) for name in ("Tyres", "SongBook", "Tyres", "Plumber", "TuneTown")]
    directory = AgentDirectory(None, agents(), k=3, retriever=Fixed(documents=found))
    assert names(call(directory, "invoke", GUITAR)) == ["Tyres", "SongBook", "Plumber"]


def test_a_wrapped_retriever_is_one_too(call):
    class Flaky(Fixed):
        def _get_relevant_documents(self, query, *, run_manager):
            asked.append(query)
            if len(asked) == 1:
                raise ConnectionError("try again")
            return self.documents

    asked = []
    retriever = Flaky(documents=[document("Tyres")]).with_retry(wait_exponential_jitter=False)
    assert names(call(AgentDirectory(None, agents(), retriever=retriever), "invoke", GUITAR)) == ["Tyres"]
    assert asked == [GUITAR, GUITAR]


def test_agents_behind_a_retriever_may_join_and_leave(call):
    found = [document(name) for name in ("Tyres", "Inn")]
    directory = AgentDirectory(retriever=Fixed(documents=found))
    call(directory, "add", [agent("Tyres"), agent("Inn", "")])  # described by documents that somebody else keeps
    assert names(call(directory, "invoke", GUITAR)) == ["Tyres", "Inn"]
    call(directory, "remove", ["Inn"])
    with pytest.warns(AuctionWarning, match="'Inn'"):
        assert names(call(directory, "invoke", GUITAR)) == ["Tyres"]


def test_documents_of_nobody_are_skipped_with_a_warning(call):
    found = [document("Inn"), Document(page_content="of nobody"), document(["Tyres"]), document("Tyres")]
    directory = AgentDirectory(None, agents(), retriever=Fixed(documents=found))
    with pytest.warns(AuctionWarning, match=r"not in the directory: 'Inn', None, \['Tyres'\]\. They do not take part"):
        assert names(call(directory, "invoke", GUITAR)) == ["Tyres"]


def test_agents_that_live_elsewhere_are_resolved(call):
    def resolve(found):
        asked.append((found.metadata["agent"], threading.current_thread()))
        return agent(found.metadata["agent"], "elsewhere") if found.metadata["agent"] == "Inn" else None

    asked = []
    found = [document(name) for name in ("Inn", "Tyres", "Bakery")]
    directory = AgentDirectory(None, agents(), retriever=Fixed(documents=found), resolve=resolve)
    with pytest.warns(AuctionWarning, match="'Bakery'"):
        assert names(call(directory, "invoke", GUITAR)) == ["Inn", "Tyres"]
    assert [name for name, _ in asked] == ["Inn", "Bakery"]


def test_resolving_does_not_stop_the_loop():
    threads = []
    directory = AgentDirectory(
        retriever=Fixed(documents=[document("Inn")]),
        resolve=lambda found: threads.append(threading.current_thread()) or agent("Inn", "An inn."),
    )
    assert names(asyncio.run(directory.ainvoke(GUITAR))) == ["Inn"]
    assert threads[0] is not threading.main_thread()


def test_what_is_resolved_to_something_else_is_named(call):
    directory = AgentDirectory(retriever=Fixed(documents=[document("Inn")]), resolve=lambda found: "Inn")
    with pytest.raises(ConfigurationError, match="resolve returned 'Inn' for 'Inn'; it must return an Agent or None"):
        call(directory, "invoke", GUITAR)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "Give either a vector_store, which the directory fills, or a retriever"),
        ({"vector_store": InMemoryVectorStore(None), "retriever": Fixed(documents=[])}, "Give either a vector_store"),
        ({"vector_store": [agent("Tyres")]}, "vector_store must be a LangChain vector store, got"),
        ({"retriever": len}, "retriever must be a LangChain retriever, got"),
        ({"vector_store": InMemoryVectorStore(None), "k": 0}, "k must be a whole number of at least 1, got 0"),
        ({"vector_store": InMemoryVectorStore(None), "k": True}, "got True"),
        ({"vector_store": InMemoryVectorStore(None), "k": 2.5}, "got 2.5"),
        ({"vector_store": InMemoryVectorStore(None), "query": "text"}, "query must be a function .*, got 'text'"),
        ({"vector_store": InMemoryVectorStore(None), "resolve": awaited}, "resolve must be .* not async, got"),
        (
            {"vector_store": InMemoryVectorStore(None), "agents": ["Tyres"]},
            "agents must be a list of Agent, got 'Tyres'",
        ),
        ({"vector_store": InMemoryVectorStore(None), "always": [agent("Tyres")] * 2}, "Two agents are called 'Tyres'"),
        ({"vector_store": InMemoryVectorStore(None), "agents": [agent("Tyres")] * 2}, "Two agents are called 'Tyres'"),
        (
            {"vector_store": InMemoryVectorStore(None), "agents": [agent("Tyres", " ")]},
            "'Tyres' has no context, so no query",
        ),
    ],
)
def test_settings_that_nobody_can_be_found_with_are_named(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        AgentDirectory(**settings)


def test_what_a_store_raises_comes_through_as_it_is(call):
    class Broken(Counting):
        broken = False

        def embed_documents(self, texts):
            if self.broken:
                raise ConnectionError("no route to the embeddings")
            return super().embed_documents(texts)

        def embed_query(self, text):
            raise ConnectionError("no route to the store")

    store = InMemoryVectorStore(Broken())
    directory = AgentDirectory(store, agents())
    with pytest.raises(ConnectionError, match="no route to the store"):
        call(directory, "invoke", GUITAR)
    store.embedding.broken = True
    with pytest.raises(ConnectionError, match="no route to the embeddings"):
        call(directory, "add", [agent("Inn", "An inn."), agent("Tyres", "Tyres for bicycles.")])
    assert "Inn" not in directory
    assert "Tyres" not in directory
    store.embedding.broken = False
    call(directory, "add", [agent("Inn", "An inn."), agent("Tyres", "Tyres for bicycles.")])
    assert held(store) == sorted({**DESCRIPTIONS, "Inn": "An inn.", "Tyres": "Tyres for bicycles."}.values())


def test_a_store_that_cannot_delete_stays_as_it_was(call):
    store = in_faiss(StaticEmbeddings(), faiss.IndexHNSWFlat(256, 8))
    directory = AgentDirectory(store, agents(), k=1)
    with pytest.raises(RuntimeError, match="remove_ids not implemented"):
        call(directory, "add", [agent("StringSchool", "Nothing any more.")])
    raised = agent("StringSchool", reward=lambda prompt, reply: 2.0)
    call(directory, "add", [raised, agent("Inn", "An inn.")])
    assert call(directory, "invoke", GUITAR) == [raised]
    assert names(call(directory, "invoke", "Is there an inn?")) == ["Inn"]


class Secret:
    """A reward that nobody may look at."""

    def score(self, prompt, replies):
        raise AssertionError("asked")

    def __eq__(self, other):
        raise AssertionError("compared")

    __hash__ = None

    def __repr__(self):
        raise AssertionError("shown")


def test_whatever_is_reported_the_same_agents_take_part(store, call):
    secret = AgentDirectory(store, [agent(name, reward=Secret()) for name in DESCRIPTIONS], k=3)
    rich = AgentDirectory(
        InMemoryVectorStore(StaticEmbeddings()),
        [agent(name, reward=lambda prompt, reply: 1e9) for name in DESCRIPTIONS],
        k=3,
    )
    for question in (GUITAR, PIPES, "Where do I buy a piano?"):
        assert names(call(secret, "invoke", question)) == names(call(rich, "invoke", question))


class Traced(BaseCallbackHandler):
    """Keeps who ran under whom, and what came out."""

    def __init__(self):
        self.roots, self.searches, self.outputs = [], [], []

    def on_chain_start(self, serialized, inputs, *, run_id, parent_run_id=None, **kwargs):
        self.roots.append(run_id)

    def on_chain_end(self, outputs, **kwargs):
        self.outputs.append(outputs)

    def on_retriever_start(self, serialized, query, *, run_id, parent_run_id=None, **kwargs):
        self.searches.append((query, parent_run_id))

    def on_retriever_end(self, documents, **kwargs):
        self.outputs += documents


def test_an_auction_is_held_among_those_found_and_the_search_is_traced_below_it(store):
    def likes_b(prompt, reply):
        return 2.0 * reply.text.count("b")

    directory = AgentDirectory(store, [agent(name, reward=likes_b) for name in DESCRIPTIONS], k=2)
    auction = AuctionRunnable(model=MarkovChatModel(), agents=directory, n_candidates=4, seed=7)
    trace = Traced()
    result = auction.run(GUITAR, {"callbacks": [trace]})
    assert names(result.agents) == ["StringSchool", "SongBook"]
    assert trace.searches == [(GUITAR, trace.roots[0])]
    assert not [found for found in trace.outputs if isinstance(found, Agent | list)]
    again = asyncio.run(auction.arun(GUITAR))
    assert again.agents == result.agents
    assert again.reply.text == result.reply.text


async def test_no_event_of_a_stream_shows_a_reward():
    directory = AgentDirectory(in_faiss(StaticEmbeddings()), [agent("StringSchool"), agent("Tyres")], k=1)
    auction = AuctionRunnable(model=MarkovChatModel(), agents=directory, n_candidates=4, seed=7)
    events = [event async for event in auction.astream_events(GUITAR, version="v2")]
    assert events[-1]["data"]["output"].response_metadata["auction"]["agents"][0]["agent"] == "StringSchool"
    assert "Agent(" not in repr(events)
    assert not [event for event in events if event["event"].startswith("on_retriever")]  # a tracer hears of it


class Slow(InMemoryVectorStore):
    """Searches of `meeting` wait for each other, and then until they may go on."""

    def __init__(self, embedding):
        super().__init__(embedding)
        self.meeting, self.go_on = threading.Barrier(3), threading.Event()

    def similarity_search(self, query, k=4, **kwargs):
        if query == "meeting":
            self.meeting.wait(30)
            assert self.go_on.wait(30)
        return super().similarity_search(query, k, **kwargs)


def test_searches_run_side_by_side_and_writing_waits_for_them():
    store = Slow(StaticEmbeddings())
    directory = AgentDirectory(store, agents(), k=1)
    with ThreadPoolExecutor(4) as pool:
        early = [pool.submit(directory.invoke, "meeting") for _ in range(2)]
        store.meeting.wait(30)  # both are inside
        joining = pool.submit(directory.add, [agent("Inn", "An inn with a garden.")])
        while not directory._gate._entrance.locked():  # the writer is at the gate, and no search is past it
            threading.Event().wait(0.001)
            assert not joining.done()
        with pytest.raises(TimeoutError):
            joining.result(timeout=0.2)
        assert "An inn with a garden." not in held(store)
        late = pool.submit(directory.invoke, "an inn with a garden")
        store.go_on.set()
        assert all(one.result(timeout=30) for one in early)
        assert names(late.result(timeout=30)) == ["Inn"]  # it came after who joins


def test_agents_come_and_go_while_others_search():
    """FAISS moves its vectors when it grows or shrinks, and keeps three tables in step."""
    directory = AgentDirectory(in_faiss(StaticEmbeddings()), agents(), k=3)
    failed = []

    def write(worker):
        rng = random.Random(worker)
        for turn in range(40):
            name = f"passer-by {worker}.{turn % 4}"
            if name in directory and rng.random() < 0.5:
                directory.remove([name])
            else:
                directory.add([agent(name, f"Passer-by number {turn} of {worker}, who has guitars.")])

    def search(_):
        for _ in range(150):
            found = names(directory.invoke(GUITAR))
            if len(found) != 3 or len(set(found)) != 3:
                failed.append(found)

    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(write, k) for k in range(4)] + [pool.submit(search, k) for k in range(4)]
        for one in done:
            one.result(timeout=60)
    assert failed == []
    assert all(name in directory for name in DESCRIPTIONS)
    assert len(held(directory._store)) == len(directory)


def test_two_threads_are_enough_for_any_number_at_once():
    async def everybody():
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        directory = AgentDirectory(in_faiss(StaticEmbeddings()), agents(), k=1)
        new = [agent(f"passer-by {k}", f"Passer-by number {k}.") for k in range(20)]
        joining = [asyncio.to_thread(directory.add, [one]) for one in new]
        searching = [directory.ainvoke(GUITAR) for _ in range(20)]
        mixed = [one for pair in zip(joining, searching, strict=True) for one in pair]
        found = (await asyncio.wait_for(asyncio.gather(*mixed), 60))[1::2]
        assert all(names(one) == ["StringSchool"] for one in found)
        assert len(directory) == 25

    asyncio.run(everybody())
