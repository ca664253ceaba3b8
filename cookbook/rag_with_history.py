"""Retrieval with history: documents are found, the answer is auctioned, and the documents' owners bid for it.

Needs: pip install 'llm-auction-chain[local,embeddings]'. The tutorial "RAG with history" explains each step.
"""

from langchain_core.documents import Document
from langchain_core.messages import HumanMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.vectorstores import InMemoryVectorStore

from llm_auction_chain import Agent, AuctionRunnable, ChatTransformers
from llm_auction_chain.models.local.embeddings import StaticEmbeddings
from llm_auction_chain.rewards import EmbeddingReward

texts = {
    "StringSchool": "StringSchool gives guitar lessons on Mondays. The first lesson is free.",
    "TuneTown": "TuneTown rents guitars for 10 euros a month.",
    "Library": "The town library lends books of songs.",
    "Pool": "The swimming pool opens at 8 am.",
}
embeddings = StaticEmbeddings()
documents = [Document(text, metadata={"owner": owner}) for owner, text in texts.items()]
retriever = InMemoryVectorStore.from_documents(documents, embeddings).as_retriever(search_kwargs={"k": 2})


def find(history, question):
    questions = [message.text for message in history if message.type == "human"]
    return retriever.invoke("\n".join([*questions[-2:], question]))


prompt = ChatPromptTemplate.from_messages(
    [MessagesPlaceholder("history"), ("human", "{facts}\n\nUsing this, answer in one sentence: {question}")]
)


def bidder(document):
    text = document.page_content
    return Agent(document.metadata["owner"], EmbeddingReward(embeddings, text, value=12.0), context=text)


model = ChatTransformers(temperature=0.5, max_tokens=32, dtype="float32")
auction = AuctionRunnable(model=model, n_candidates=8, tau=4.0, seed=1)


def answer(history, question):
    documents = find(history, question)
    facts = "\n".join(document.page_content for document in documents)
    messages = prompt.invoke({"history": history, "facts": facts, "question": question})
    bidders = [bidder(document) for document in documents]
    return auction.run(messages, {"configurable": {"auction_agents": bidders}})


history = []
for question in ("Where can I take guitar lessons?", "What does the first one cost?"):
    result = answer(history, question)
    history += [HumanMessage(question), result.reply]
    print(f"{question} {result.text}")
    print({agent: f"{amount:.2f}" for agent, amount in result.payments.items()})
