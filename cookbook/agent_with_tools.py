"""An agent that books guitar lessons, and two schools that bid for its calls and its answers.

Needs: pip install 'llm-auction-chain[agents]'. The tutorial "An agent with tools" explains each step.
"""

from decimal import Decimal

from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver

from llm_auction_chain import Agent, AuctionMiddleware, ChatAuction
from llm_auction_chain.testing import ScriptedChatModel

booked = []


def book_lesson(school: str) -> str:
    """Book a guitar lesson at StringSchool or TuneTown."""
    booked.append(school)
    return f"Booked at {school}, Monday at 5 pm."


def booking(school):
    return AIMessage("", tool_calls=[{"name": "book_lesson", "args": {"school": school}, "id": school}])


model = ScriptedChatModel(
    turns=[
        [booking("StringSchool"), booking("TuneTown")],
        ["Done, see you on Monday!", "Done. TuneTown lends you a guitar.", "Done. StringSchool starts with a song."],
    ]
)
question = {"messages": [("human", "Book me a guitar lesson.")]}


def wants(school, per_booking, per_mention):
    def reward(prompt, reply):
        bookings = sum(call["args"]["school"] == school for call in reply.tool_calls)
        return per_booking * bookings + per_mention * (school in reply.text)

    return Agent(school, reward)


bidders = [wants("StringSchool", per_booking=3.0, per_mention=1.0), wants("TuneTown", per_booking=2.0, per_mention=1.5)]


middleware = AuctionMiddleware(bidders, n_candidates=12, on_tool_calls="auction", seed=3)
agent = create_agent(model, [book_lesson], middleware=[middleware], checkpointer=InMemorySaver())
thread = {"configurable": {"thread_id": "1"}}
state = agent.invoke(question, thread)
for message in state["messages"]:
    print(f"{message.type}:", message.text or message.tool_calls[0]["args"])


def payments(auction):
    return {payment["agent"]: payment["amount_decimal"] for payment in auction["payments"]}


for auction in state["auctions"]:
    print(auction["sponsors"], payments(auction))

state = agent.invoke({"messages": [("human", "What shall I bring?")]}, thread)
total = sum(Decimal(auction["revenue_decimal"]) for auction in state["auctions"])
print(len(state["auctions"]), "auctions,", total, "in all")

worker = create_agent(model, [book_lesson])
writer = ChatAuction(model=model, agents=bidders, n_candidates=12, seed=3)
*work, _ = worker.invoke(question)["messages"]
reply = writer.invoke(work)
print(reply.text, payments(reply.response_metadata["auction"]))
