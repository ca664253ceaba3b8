"""The scripted model replies by turn, draws by seed, and takes tools and schemas as a provider's model does."""

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from pydantic import BaseModel

from llm_auction_chain import Agent, AuctionRunnable, ConfigurationError
from llm_auction_chain.testing import ScriptedChatModel


class Plan(BaseModel):
    """A plan."""

    school: str


def fills_in(school):
    return AIMessage("", tool_calls=[{"name": "Plan", "args": {"school": school}, "id": school}])


def test_the_turn_is_the_number_of_replies_in_the_prompt_and_the_last_one_repeats():
    model = ScriptedChatModel(turns=[["one"], ["two"]])
    prompt = [("human", "Hi")]
    for expected in ("one", "two", "two"):
        reply = model.invoke(prompt)
        assert reply.text == expected
        prompt += [reply, ("human", "More")]


def test_all_replies_of_a_turn_are_drawn_and_a_seed_repeats_the_draw():
    model = ScriptedChatModel(turns=[["a", "b", "c"]])

    def drawn(seed):
        return [one.text for one in model.generate([[HumanMessage("Hi")]], n=12, seed=seed).generations[0]]

    assert set(drawn(1)) == {"a", "b", "c"}
    assert drawn(1) == drawn(1) != drawn(2)


def test_a_drawn_message_is_a_copy():
    message = AIMessage("Hello")
    reply = ScriptedChatModel(turns=[[message]]).invoke("Hi")
    assert reply.text == "Hello"
    assert reply is not message


def test_an_auction_over_it_offers_tools_and_parses_the_drawn_call():
    model = ScriptedChatModel(turns=[[fills_in("StringSchool"), fills_in("TuneTown")]])
    agent = Agent("TuneTown", lambda prompt, reply: 9.0 * (reply.tool_calls[0]["args"]["school"] == "TuneTown"))
    auction = AuctionRunnable(model=model, agents=[agent], n_candidates=8, seed=1)
    assert auction.bind_tools([Plan]).invoke("Book").response_metadata["auction"]["bypassed"]
    assert auction.with_structured_output(Plan).invoke("Book") == Plan(school="TuneTown")


@pytest.mark.parametrize("turns", [[], [[]], [["a"], []], "ab", ["ab"]])
def test_a_turn_without_replies_is_refused(turns):
    with pytest.raises(ConfigurationError, match="turns must be a list of turns"):
        ScriptedChatModel(turns=turns)
