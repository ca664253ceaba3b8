"""A directory of any number of agents. Those that are most similar to the query take part in its auction."""

import inspect
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unicodedata import normalize
from uuid import UUID, uuid5

from langchain_core.documents import Document
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.vectorstores import VectorStore
from typing_extensions import override

from llm_auction_chain.agents import Agent, check_agents
from llm_auction_chain.errors import AuctionWarning, ConfigurationError
from llm_auction_chain.messages import messages_of
from llm_auction_chain.validators import refuse, whole_number
from llm_auction_chain.waiting import AWAITING, BLOCKING, Waiter, run

__all__ = ["AgentDirectory"]

Agents = dict[str, Agent]
Query = Callable[[list[BaseMessage]], Any] | Runnable[Any, str]

# The namespace of the documents' ids. With another one, stores that are already filled would be useless.
_NAMES = UUID("4b1ab1e5-7c1d-5c0e-9d3e-0a6d2f9b8c11")


class AgentDirectory(Runnable[LanguageModelInput, list[Agent]]):
    """Finds the `k` agents whose public descriptions (`Agent.context`) are most similar to the query.

    `AuctionRunnable(agents=directory)` holds every auction among these, the most similar first. The search reads no
    reward, so no report changes which agents compete. Agents of `always` come first and do not count. If there is
    nothing to search for (no human message, or one without text) only they take part. The search is traced as the
    retriever's run, with documents and without rewards.

    Agents may be added and removed while auctions run, from any thread: searches run side by side, and wait while the
    store is written. Async code calls `asyncio.to_thread(directory.add, agents)`. Errors of the store, the retriever,
    `query` and `resolve` are raised unchanged: their types say what a retry can help.

    Attributes:
        k: the most agents of one search.
        always: agents that take part in every auction: the user's satisfaction, rules of the house.

    Args:
        vector_store: any LangChain vector store. The directory writes its agents' descriptions into it.
        agents: the first agents.
        k: as above.
        always: as above.
        query: returns the text to search for, from the messages; a function or a Runnable. None takes the text of the
            last human message.
        retriever: instead of a vector store: returns documents that are kept elsewhere, each with an agent's name in
            `metadata["agent"]`.
        resolve: returns the agent of a document that names no agent of the directory, or None. It runs in a thread in
            `ainvoke`.

    Raises:
        ConfigurationError: a setting is wrong, an agent has no description, or two agents cannot meet in one auction.

    >>> from langchain_core.vectorstores import InMemoryVectorStore
    >>> from llm_auction_chain.models.local.embeddings import StaticEmbeddings
    >>> from llm_auction_chain.rewards import MentionReward
    >>> directory = AgentDirectory(InMemoryVectorStore(StaticEmbeddings()), k=1)
    >>> directory.add([
    ...     Agent("StringSchool", MentionReward(["lessons"]), context="Online guitar lessons."),
    ...     Agent("TuneTown", MentionReward(["piano"]), context="Used pianos, tuned and delivered."),
    ... ])
    >>> [agent.name for agent in directory.invoke("Who teaches me the guitar?")]
    ['StringSchool']
    """

    def __init__(
        self,
        vector_store: VectorStore | None = None,
        agents: Iterable[Agent] = (),
        *,
        k: int = 10,
        always: Iterable[Agent] = (),
        query: Query | None = None,
        retriever: Runnable[str, list[Document]] | None = None,
        resolve: Callable[[Document], Agent | None] | None = None,
    ) -> None:
        self.k = whole_number("k", k, least=1)
        self.always = check_agents(always)
        self._store = vector_store
        self._retriever = _retriever(vector_store, retriever, k)
        self._query = None if query is None else _runnable(query)
        if resolve is not None and (not callable(resolve) or inspect.iscoroutinefunction(resolve)):
            raise refuse("resolve", "a function from a document to an Agent, not async", resolve)
        self._resolve = resolve
        self._agents: Agents = {}
        self._gate = _Gate()
        self.add(agents)

    def __len__(self) -> int:
        return len(self._agents)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and normalize("NFKC", name) in self._agents

    @override
    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> list[Agent]:
        """Return the agents that take part. The retriever takes further arguments, for example a store's `filter`."""
        return run(self._agents_for(input, config, kwargs, BLOCKING))

    @override
    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> list[Agent]:
        """Do as `invoke`. A retriever is awaited, and a vector store is searched in a thread."""
        return await self._agents_for(input, config, kwargs, AWAITING)

    async def _agents_for(
        self, given: LanguageModelInput, config: RunnableConfig | None, kwargs: Mapping[str, Any], waiter: Waiter
    ) -> list[Agent]:
        messages, query, retriever = messages_of(given), self._query, self._retriever
        if query is None:
            texts = (str(message.text) for message in reversed(messages) if isinstance(message, HumanMessage))
            words: Any = next(texts, "")
        else:
            words = await waiter.either(lambda: query.invoke(messages, config), lambda: query.ainvoke(messages, config))
        if not isinstance(words, str):
            raise ConfigurationError(f"query returned {type(words).__name__}; it must return the text to search for.")
        if not words.strip():
            return list(self.always)
        if self._store is not None:
            return await waiter.in_thread(lambda: self._search(words, config, kwargs))
        documents = await waiter.either(
            lambda: retriever.invoke(words, config, **kwargs), lambda: retriever.ainvoke(words, config, **kwargs)
        )
        return await waiter.in_thread(lambda: self._chosen(documents, self._agents))

    def _search(self, words: str, config: RunnableConfig | None, kwargs: Mapping[str, Any]) -> list[Agent]:
        with self._gate.searching():
            documents, agents = self._retriever.invoke(words, config, **kwargs), self._agents
        return self._chosen(documents, agents)

    def _chosen(self, documents: Sequence[Document], agents: Agents) -> list[Agent]:
        """Return `always` and the documents' agents, each once, in the order of the documents."""
        chosen = {agent.name: agent for agent in self.always}
        unknown = []
        for document in documents:
            name = document.metadata.get("agent")
            agent = agents.get(normalize("NFKC", name)) if isinstance(name, str) else None
            if agent is None and self._resolve is not None:
                agent = self._resolve(document)
            if agent is None:
                unknown.append(repr(name))
            elif isinstance(agent, Agent):
                chosen.setdefault(agent.name, agent)
            else:
                raise ConfigurationError(f"resolve returned {agent!r} for {name!r}; it must return an Agent or None.")
        if unknown:
            warnings.warn(
                f"Documents name agents that are not in the directory: {', '.join(unknown)}. They do not take part; "
                "add them, or remove their documents from the store.",
                AuctionWarning,
                stacklevel=3,
            )
        return list(chosen.values())[: len(self.always) + self.k]

    def add(self, agents: Iterable[Agent]) -> None:
        """Add agents, which take part from the next search on. An agent replaces another one of its name.

        A description that is already in the store is not embedded again, even if an earlier directory wrote it. If the
        store fails, agents whose descriptions were about to be replaced are out until they are added again.
        """
        joining = {agent.name: agent for agent in check_agents(agents)}
        for agent in joining.values():
            if self._store is not None and not agent.context.strip():
                raise ConfigurationError(
                    f"{agent.name!r} has no context, so no query can find it; describe it there, or put it into always."
                )
        with self._gate.writing():
            # Any two agents may be results of one query.
            check_agents((*self.always, *{**self._agents, **joining}.values()))
            if self._store is not None and joining:
                stale, fresh = _changes(joining, self._stored(joining))
                if stale:
                    self._store.delete(_ids(stale))
                    self._agents = _without(self._agents, stale)
                if fresh:
                    self._store.add_documents(fresh, ids=[str(document.id) for document in fresh])
            self._agents = {**self._agents, **joining}

    def remove(self, names: Iterable[str]) -> None:
        """Remove agents, and their descriptions from the store.

        Raises:
            ConfigurationError: a name that is neither in the directory nor in the store.
        """
        leaving = dict.fromkeys(normalize("NFKC", name) for name in ([names] if isinstance(names, str) else names))
        with self._gate.writing():
            stored = self._stored(leaving)
            unknown = [name for name in leaving if name not in self._agents and name not in stored]
            if unknown:
                raise ConfigurationError(f"There is no {', '.join(map(repr, unknown))} in the directory to remove.")
            if self._store is not None and stored:
                self._store.delete(_ids(stored))
            self._agents = _without(self._agents, leaving)

    def _stored(self, names: Iterable[str]) -> dict[str, Document]:
        """Return the store's documents of these agents, by name."""
        if self._store is None:
            return {}
        try:
            documents = self._store.get_by_ids(_ids(names))
        except NotImplementedError:  # then it holds the documents of this directory
            return {name: _document(self._agents[name]) for name in names if name in self._agents}
        return {str(document.metadata.get("agent")): document for document in documents}


class _Gate:
    """Lets many threads search at once, or one thread write. Later searches wait for a thread that waits to write.

    In-process stores cannot be searched while they are written: FAISS, for example, moves its vectors. A thread inside
    waits for no other, so a small pool of threads cannot run dry.
    """

    def __init__(self) -> None:
        self._entrance = threading.Lock()
        self._left = threading.Condition()
        self._searching = 0

    @contextmanager
    def searching(self) -> Iterator[None]:
        with self._entrance, self._left:
            self._searching += 1
        try:
            yield
        finally:
            with self._left:
                self._searching -= 1
                self._left.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        with self._entrance:
            with self._left:
                self._left.wait_for(lambda: not self._searching)
            yield


def _retriever(
    store: VectorStore | None, retriever: Runnable[str, list[Document]] | None, k: int
) -> Runnable[str, list[Document]]:
    if (store is None) == (retriever is None):
        raise ConfigurationError("Give either a vector_store, which the directory fills, or a retriever.")
    if retriever is not None:
        if not isinstance(retriever, Runnable):
            raise refuse("retriever", "a LangChain retriever", retriever)
        return retriever
    if not isinstance(store, VectorStore):
        raise refuse("vector_store", "a LangChain vector store", store)
    return store.as_retriever(search_kwargs={"k": k})


def _runnable(query: Query) -> Runnable[Any, Any]:
    if isinstance(query, Runnable):
        return query
    if not callable(query):
        raise refuse("query", "a function or a Runnable from messages to text", query)
    return RunnableLambda(query)


def _ids(names: Iterable[str]) -> list[str]:
    """Return the agents' ids in the store. They are UUIDs, because some stores accept only those."""
    return [str(uuid5(_NAMES, name)) for name in names]


def _document(agent: Agent) -> Document:
    metadata = {"agent": agent.name, "owner": agent.payer}
    return Document(id=_ids([agent.name])[0], page_content=agent.context, metadata=metadata)


def _changes(joining: Agents, stored: Mapping[str, Document]) -> tuple[list[str], list[Document]]:
    """Return the names whose documents must be deleted first, and the documents to write."""
    stale, fresh = [], []
    for name, agent in joining.items():
        new, old = _document(agent), stored.get(name)
        if old is None or (old.page_content, old.metadata) != (new.page_content, new.metadata):
            fresh.append(new)
            if old is not None:
                stale.append(name)
    return stale, fresh


def _without(agents: Agents, names: Collection[str]) -> Agents:
    return {name: agent for name, agent in agents.items() if name not in names}
