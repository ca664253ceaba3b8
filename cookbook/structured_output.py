"""Structured output, auctioned: agents bid on the parsed object, and only the drawn reply is parsed for the caller.

Needs: pip install llm-auction-chain. The tutorial "Structured output" explains each step.
"""

from langchain_core.messages import AIMessage
from langchain_core.output_parsers import PydanticOutputParser
from pydantic import BaseModel, Field

from llm_auction_chain import Agent, AuctionRunnable
from llm_auction_chain.rewards import ParsedReward
from llm_auction_chain.testing import ScriptedChatModel


class Plan(BaseModel):
    """A plan for the first month with a guitar."""

    school: str = Field(description="where the lessons are")
    lessons: int = Field(description="lessons in the month", ge=0)
    price: float = Field(description="of the whole month", ge=0)


def plan(**args):
    return AIMessage("", tool_calls=[{"name": "Plan", "args": args, "id": str(args)}])


model = ScriptedChatModel(
    turns=[
        [
            plan(school="StringSchool", lessons=8, price=240),
            plan(school="StringSchool", lessons=4, price=140),
            plan(school="TuneTown", lessons=4, price=110),
            plan(school="TuneTown", lessons=2, price=60),
            plan(school="TuneTown", lessons="two", price=60),
        ]
    ]
)
question = "Plan my first month with a guitar, for at most 150 euros."


def per_lesson(school, value):
    return ParsedReward(Plan, lambda prompt, plan: value * plan.lessons if plan.school == school else 0.0)


def in_budget(prompt, plan):
    return 2.0 if plan.price <= 150 else 0.0


agents = [
    Agent("StringSchool", per_lesson("StringSchool", 0.5)),
    Agent("TuneTown", per_lesson("TuneTown", 0.4)),
    Agent("user", ParsedReward(Plan, in_budget), pays=False),
]
auction = AuctionRunnable(model=model, agents=agents, n_candidates=16, seed=1)
planner = auction.with_structured_output(Plan)
print(planner.invoke(question))

answer = auction.with_structured_output(Plan, include_raw=True).invoke(question)
print(answer["parsed"].school, answer["parsing_error"])
for payment in answer["raw"].response_metadata["auction"]["payments"]:
    print(payment["agent"], payment["amount_decimal"])

texts = [message.tool_calls[0]["args"] for message in model.turns[0]]
writer = ScriptedChatModel(turns=[[str(args).replace("'", '"') for args in texts]])
chain = auction.model_copy(update={"model": writer}) | PydanticOutputParser(pydantic_object=Plan)
print(chain.invoke(question))
