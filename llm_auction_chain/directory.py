"""Who bids: a directory of any number of agents, of which those that suit the query take part."""

import inspect
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from uuid import UUID, uuid5

from langchain_core.documents import Document
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, run_in_executor
from langchain_core.vectorstores import VectorStore
from typing_extensions import override

from llm_auction_chain.agents import Agent, check_agents
from llm_auction_chain.errors import AuctionWarning, ConfigurationError
from llm_auction_chain.messages import messages_of

__all__ = ["AgentDirectory"]

Agents = dict[str, Agent]
Query = Callable[[list[BaseMessage]], Any] | Runnable[Any, str]

# The namespace of the documents' ids: with another one, no directory would know again what stores hold.
_NAMES = UUID("4b1ab1e5-7c1d-5c0e-9d3e-0a6d2f9b8c11")


class AgentDirectory(Runnable[LanguageModelInput, list[Agent]]):
    """The `k` agents whose public descriptions (`Agent.context`) are most similar to the query, most similar first.

    `AuctionRunnable(agents=directory)` holds every auction among these. Nobody's reward is looked at, so no report
    changes who competes with whom. Agents of `always` come first and are not counted. Where there is nothing to search
    for (no human message, or one without text) only they take part. The search is traced as the retriever's run, with
    documents and without rewards.

    Agents may be added and removed while auctions run, from any thread: searches run side by side, and wait while the
    store is written. What a store, a retriever, `query` or `resolve` raises comes through as it is: its own type says
    what may be tried again.

    Attributes:
        k: the most agents that are found.
        always: who takes part in every auction: the user's satisfaction, rules of the house.

    Args:
        vector_store: any LangChain vector store; the directory writes its agents' descriptions into it.
        agents: the first to be added.
        k: as above.
        always: as above.
        query: from the messages to the text to search for, a function or a Runnable; None takes the last human
            message's text.
        retriever: in place of a vector store: finds documents that somebody else keeps, with the agent's name in
            `metadata["agent"]`.
        resolve: returns the agent of a document that names none of `agents`, or None; in `ainvoke` it runs in a thread.

    Raises:
        ConfigurationError: a setting that nobody can be found with, an agent without a description, or agents that
            cannot meet in one auction.

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
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ConfigurationError(f"k is {k!r}; it must be a whole number of at least 1.")
        self.k = k
        self.always = check_agents(always)
        self._store = vector_store
        self._retriever = _retriever(vector_store, retriever, k)
        self._query = None if query is None else _runnable(query)
        self._resolve = None if resolve is None else _plain(resolve)
        self._agents: Agents = {}
        self._gate = _Gate()
        self.add(agents)

    def __len__(self) -> int:
        return len(self._agents)

    def __contains__(self, name: object) -> bool:
        return name in self._agents

    @override
    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> list[Agent]:
        """Return who takes part; further arguments go to the retriever (a vector store's `filter`, for example)."""
        messages = messages_of(input)
        text = _checked(_question(messages) if self._query is None else self._query.invoke(messages, config))
        return self._found(text, config, kwargs) if text.strip() else list(self.always)

    @override
    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> list[Agent]:
        """Do as `invoke`: a retriever is awaited, a vector store searched in a thread."""
        messages = messages_of(input)
        text = _checked(_question(messages) if self._query is None else await self._query.ainvoke(messages, config))
        if not text.strip():
            return list(self.always)
        if self._store is not None:
            return await run_in_executor(config, self._found, text, config, kwargs)
        documents = await self._retriever.ainvoke(text, config, **kwargs)
        return await run_in_executor(config, self._chosen, documents, self._agents)

    def _found(self, text: str, config: RunnableConfig | None, kwargs: Mapping[str, Any]) -> list[Agent]:
        with nullcontext() if self._store is None else self._gate.searching():
            documents, agents = self._retriever.invoke(text, config, **kwargs), self._agents
        return self._chosen(documents, agents)

    def _chosen(self, documents: Sequence[Document], agents: Agents) -> list[Agent]:
        """Return `always` and the documents' agents, each once, in the order of the documents."""
        chosen = {agent.name: agent for agent in self.always}
        unknown = []
        for document in documents:
            name = document.metadata.get("agent")
            agent = agents.get(name) if isinstance(name, str) else None
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
        """Let agents join from the next search on; one of a name that is there already replaces it.

        A description that has not changed is not embedded again, whether this directory or an earlier one over the same
        store wrote it. Where the store fails, those whose descriptions were to be replaced are out until added again.
        """
        joining = self._joining(agents)
        with self._gate.writing():
            # Whom one query finds together must be able to meet.
            check_agents((*self.always, *{**self._agents, **joining}.values()))
            if self._store is not None and joining:
                stale, fresh = _changes(joining, self._stored(joining))
                if stale:
                    self._store.delete(_ids(stale))
                    self._agents = _without(self._agents, stale)
                if fresh:
                    self._store.add_documents(fresh, ids=[str(document.id) for document in fresh])
            self._agents = {**self._agents, **joining}

    async def aadd(self, agents: Iterable[Agent]) -> None:
        """Do as `add`, in a thread."""
        await run_in_executor(None, self.add, agents)

    def remove(self, names: Iterable[str]) -> None:
        """Let agents leave, and take their descriptions out of the store.

        Raises:
            ConfigurationError: a name that is neither in the directory nor in the store.
        """
        leaving = [names] if isinstance(names, str) else list(names)
        with self._gate.writing():
            stored = self._stored(leaving)
            unknown = [name for name in leaving if name not in self._agents and name not in stored]
            if unknown:
                raise ConfigurationError(f"There is no {', '.join(map(repr, unknown))} in the directory to remove.")
            if self._store is not None and stored:
                self._store.delete(_ids(stored))
            self._agents = _without(self._agents, leaving)

    async def aremove(self, names: Iterable[str]) -> None:
        """Do as `remove`, in a thread."""
        await run_in_executor(None, self.remove, names)

    def _joining(self, agents: Iterable[Agent]) -> Agents:
        joining = {agent.name: agent for agent in check_agents(agents)}
        for agent in joining.values():
            if self._store is not None and not agent.context.strip():
                raise ConfigurationError(
                    f"{agent.name!r} has no context, so no query can find it; describe it there, or put it into always."
                )
        return joining

    def _stored(self, names: Iterable[str]) -> dict[str, Document]:
        """Return what the store holds of these agents."""
        if self._store is None:
            return {}
        try:
            found = self._store.get_by_ids(_ids(names))
        except NotImplementedError:  # then what this directory has written
            return {name: _document(self._agents[name]) for name in names if name in self._agents}
        return {str(document.metadata.get("agent")): document for document in found}


class _Gate:
    """Many may search at once; who writes is alone, and goes before searches that come later.

    In-process stores cannot be searched while they are written: FAISS, for one, moves its vectors. Whoever is inside
    stays in its thread and waits for no other, so that no pool of threads can run dry.
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
        raise ConfigurationError("Give a vector_store, which the directory fills, or else a retriever.")
    if retriever is not None:
        if not isinstance(retriever, Runnable):
            raise ConfigurationError(f"retriever is {retriever!r}; give a LangChain retriever.")
        return retriever
    if not isinstance(store, VectorStore):
        raise ConfigurationError(f"vector_store is {store!r}; give a LangChain vector store.")
    return store.as_retriever(search_kwargs={"k": k})


def _runnable(query: Query) -> Runnable[Any, Any]:
    if isinstance(query, Runnable):
        return query
    if not callable(query):
        raise ConfigurationError(f"query is {query!r}; give a function or a Runnable from messages to text.")
    return RunnableLambda(query)


def _plain(resolve: Callable[[Document], Agent | None]) -> Callable[[Document], Agent | None]:
    if not callable(resolve) or inspect.iscoroutinefunction(resolve):
        raise ConfigurationError(f"resolve is {resolve!r}; give a function from a document to an Agent, not async.")
    return resolve


def _question(messages: Sequence[BaseMessage]) -> str:
    """Return the text of the last human message; empty where there is none."""
    return next((str(message.text) for message in reversed(messages) if isinstance(message, HumanMessage)), "")


def _checked(text: object) -> str:
    if not isinstance(text, str):
        raise ConfigurationError(f"query returned {type(text).__name__}; it must return the text to search for.")
    return text


def _ids(names: Iterable[str]) -> list[str]:
    """Return the agents' ids in the store: UUIDs, because some stores take nothing else."""
    return [str(uuid5(_NAMES, name)) for name in names]


def _document(agent: Agent) -> Document:
    metadata = {"agent": agent.name, "owner": agent.payer}
    return Document(id=_ids([agent.name])[0], page_content=agent.context, metadata=metadata)


def _changes(joining: Agents, stored: Mapping[str, Document]) -> tuple[list[str], list[Document]]:
    """Return whose descriptions must leave the store first, and what must be written."""

    def differs(name: str, new: Document) -> bool:
        old = stored.get(name)
        return old is None or (old.page_content, old.metadata) != (new.page_content, new.metadata)

    described = {name: _document(agent) for name, agent in joining.items()}
    fresh = {name: document for name, document in described.items() if differs(name, document)}
    return [name for name in fresh if name in stored], list(fresh.values())


def _without(agents: Agents, names: Iterable[str]) -> Agents:
    leaving = set(names)
    return {name: agent for name, agent in agents.items() if name not in leaving}
