"""A reward of structured output sees the object that the caller gets, whichever way the model gives it."""

from typing import TypedDict

import pytest
from langchain_core.messages import AIMessage
from pydantic import BaseModel, Field

from llm_auction_chain import Agent, ChatAuction, ConfigurationError
from llm_auction_chain.rewards import ParsedReward
from tests.conformance.scripted import ChatScripted


class Lesson(BaseModel):
    """A guitar lesson."""

    school: str
    price: int = Field(ge=0)


class LessonDict(TypedDict):
    """A guitar lesson."""

    school: str
    price: int


def price(prompt, lesson):
    return float(lesson.price if isinstance(lesson, BaseModel) else lesson["price"])


def calls(name, **args):
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": "1"}])


def scores(*replies, schema=Lesson):
    return ParsedReward(schema, price).score([], list(replies))


def test_the_object_is_in_a_call_of_the_schema_or_in_json():
    text = '{"school": "TuneTown", "price": 3}'
    blocks = [{"type": "text", "text": text}]
    call = calls("Lesson", school="TuneTown", price=4)
    assert scores(call, AIMessage(text), AIMessage(f"```json\n{text}\n```"), AIMessage(blocks)) == [4.0, 3.0, 3.0, 3.0]


def test_a_reply_without_such_an_object_is_worth_nothing():
    for reply in (
        AIMessage("no"), AIMessage(""), AIMessage("[1]"), AIMessage('{"price": 3}'),
        AIMessage('{"school": "TuneTown", "price": -1}'), calls("Lesson", price=3), calls("book", school="x", price=3),
    ):  # fmt: skip
        assert scores(reply) == [0.0]


@pytest.mark.parametrize("schema", [LessonDict, {"title": "Lesson", "type": "object", "properties": {}}])
def test_other_schemas_give_a_dict(schema):
    name = "LessonDict" if schema is LessonDict else "Lesson"
    assert scores(calls(name, price=4), AIMessage('{"price": 3}'), AIMessage("[]"), schema=schema) == [4.0, 3.0, 0.0]


@pytest.mark.parametrize("method", ["function_calling", "json_schema", "json_mode"])
def test_every_method_of_structured_output_is_auctioned_by_the_parsed_object(method):
    class Joke(BaseModel):
        """A joke."""

        setup: str
        punchline: str

    seen = []

    def number(prompt, joke):
        seen.append(joke)
        return 50.0 * int(joke.setup.split()[-1])

    agent = Agent("last", ParsedReward(Joke, number))
    auction = ChatAuction(model=ChatScripted(), agents=[agent], n_candidates=3, seed=1)
    drawn = auction.with_structured_output(Joke, method=method).invoke("Tell me a joke")
    assert len(seen) == 3
    assert drawn == max(seen, key=lambda joke: int(joke.setup.split()[-1]))


def test_what_is_no_schema_or_no_function_is_refused():
    for schema in (int, {}, "Lesson", None):
        with pytest.raises(ConfigurationError, match=r"ParsedReward\.schema must be a Pydantic class"):
            ParsedReward(schema, price)
    for worth in (3.0, lambda lesson: 1.0):
        with pytest.raises(ConfigurationError, match=r"ParsedReward\.worth must be a function"):
            ParsedReward(Lesson, worth)
