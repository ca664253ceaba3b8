"""The page on troubleshooting quotes messages. Each is one that the package raises, or that a result warns of, here."""

import re
import sys
import warnings
from decimal import Decimal
from importlib import metadata
from pathlib import Path

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda

from llm_auction_chain import (
    Agent,
    AuctionMiddleware,
    AuctionRunnable,
    Billing,
    ChatTransformers,
    ChatVLLM,
    ContextPrompt,
    Ledger,
    load_agents,
)
from llm_auction_chain.models.local import weights
from llm_auction_chain.receipts import Receipt
from llm_auction_chain.rewards import LogRatioReward, WebhookReward
from llm_auction_chain.testing import MarkovChatModel

PAGE = (Path(__file__).parents[2] / "docs" / "how_to" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTES = [
    re.sub(r"\s*\n> ?", " ", quote).removeprefix("> ").strip()
    for quote in re.findall(r"^> `.+(?:\n>.+)*", PAGE, re.MULTILINE)
]
LETTERS, PLAIN = MarkovChatModel(length=4), FakeListChatModel(responses=["a", "b"])
SECRET = "a long shared secret"  # noqa: S105 - of no bidder


def likes_b(prompt, reply):
    return 2.0 * reply.text.count("b")


def searches_content(prompt, reply):
    return float("b" in reply.content)


async def agents_later(_):
    return [SCHOOL]


SCHOOL, LIMITED = Agent("StringSchool", likes_b), Agent("StringSchool", likes_b, report_cap=100.0)
DESCRIBED = Agent("StringSchool", likes_b, context="StringSchool gives lessons.")


class Flat:
    def score(self, prompt, replies):
        return 1.0


def auction(**settings):
    return AuctionRunnable(**{"model": LETTERS, "agents": [SCHOOL], "seed": 7, **settings})


def result_with(reward, **settings):
    return auction(agents=[SCHOOL, Agent("TuneTown", reward)], **settings).run("Hi")


def agents_file(folder, text):
    path = folder / "agents.yaml"
    path.write_text(text)
    return load_agents(path)


def raises(error):
    def fail(*_, **__):
        raise error

    return fail


def without_weights(_):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metadata, "distribution", raises(metadata.PackageNotFoundError))
        weights.embedded_model_path()


def without_yaml(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "yaml", None)
        agents_file(folder, "agents: []")


def without_key(_):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OPENAI_API_KEY", raising=False)
        auction(model="openai:gpt-4o-mini")


@wrap_model_call
def answers_itself(request, handler):
    return AIMessage("I know.")


def holds_no_auction(_):
    agent = create_agent(LETTERS, middleware=[AuctionMiddleware([SCHOOL]), answers_itself])
    agent.invoke({"messages": [("human", "Hi")]})


def with_ledger(use, **settings):
    """Return a case that uses a ledger on which StringSchool has 10 euros."""

    def case(folder):
        with Ledger(f"sqlite:///{folder}/billing.db") as first:
            first.deposit("StringSchool", 10, currency="EUR", key="transfer 1")
        with Ledger(f"sqlite:///{folder}/billing.db", **settings) as ledger:
            return use(ledger)

    return case


def changes_its_report(ledger):
    config = {"configurable": {"idempotency_key": "request 1"}}
    for value in (0.1, 0.4):
        one = Agent("StringSchool", lambda _, reply, value=value: value * reply.text.count("b"), report_cap=1.0)
        billed = auction(agents=[one], billing=Billing(ledger=ledger, currency="EUR"), tau=0.1)
        billed.invoke("Hi", config)


def charges_late(ledger):
    ledger.hold("auction-1", {"StringSchool": Decimal(1)}, currency="EUR")
    ledger.void("auction-1")
    ledger.charge("auction-1", {"StringSchool": Decimal(1)}, currency="EUR")


def lacks_cover(ledger):
    return auction(agents=[LIMITED], billing=Billing(ledger=ledger, currency="EUR")).run("Hi")


def no_folder(folder):
    with Ledger(f"sqlite:///{folder}/nowhere/billing.db") as ledger:
        ledger.deposit("StringSchool", 1)


CASES = [
    without_weights,
    without_yaml,
    lambda _: auction(model="gpt-4o-mini"),
    without_key,
    lambda _: auction(min_ess=8),
    lambda _: auction(n_candidate=8),
    lambda _: auction(tau=0),
    lambda _: Agent("StringSchool", lambda reply: 1.0),
    lambda _: auction(agents=[SCHOOL, SCHOOL]),
    lambda folder: agents_file(folder, "agents: [{name: A, reward: {mention: {phrase: [b], value: 1}}}]"),
    lambda folder: agents_file(folder, "agents: [{name: A, reward: 'shop:likes'}]"),
    lambda _: auction().invoke({"wish": "learn the guitar"}),
    lambda _: auction().invoke(" "),
    lambda _: auction(model=LETTERS | StrOutputParser()).invoke("Hi"),
    lambda _: auction().invoke("Hi", tau=2.0),
    lambda _: auction().invoke("Hi", agents=[SCHOOL]),
    lambda _: auction().invoke("Hi", {"configurable": {"auction_agents": ["TuneTown"]}}),
    lambda _: auction(agents=agents_later).invoke("Hi"),
    lambda _: auction(model=auction()),
    lambda _: auction(model=RunnableLambda(raises(ConnectionError("refused")))).invoke("Hi"),
    lambda _: auction(model=ChatVLLM(base_url="http://127.0.0.1:9/v1", max_retries=0)).invoke("Hi"),
    lambda _: auction(policy=lambda prompt, reply: False).invoke("Hi"),
    lambda _: ChatTransformers(max_tokens=4).invoke("guitar " * 10_000),
    lambda _: auction(model=PLAIN, agents=[DESCRIBED], proposal=ContextPrompt()).invoke("Hi"),
    lambda _: auction(model=PLAIN, agents=[DESCRIBED]).run("Hi"),
    lambda _: result_with(lambda prompt, reply: None),
    lambda _: result_with(Flat()),
    lambda _: result_with(lambda prompt, reply: -1.0, payment_rule="proportional"),
    lambda _: result_with(lambda prompt, reply: 1.0),
    lambda _: result_with(
        searches_content, model=LETTERS | (lambda reply: AIMessage([{"type": "text", "text": reply.text}]))
    ),
    lambda _: result_with(LogRatioReward("Praise b."), model=PLAIN),
    lambda _: WebhookReward("http://songbook.example/bid", SECRET),
    lambda _: result_with(WebhookReward("https://127.0.0.1/bid", SECRET)),
    with_ledger(lambda ledger: auction(billing=ledger)),
    with_ledger(lacks_cover),
    with_ledger(lambda ledger: auction(agents=[LIMITED], billing=ledger, reward_timeout=3600)),
    lambda _: auction(
        agents=[Agent("StringSchool", likes_b, currency="EUR"), Agent("TuneTown", likes_b, currency="USD")]
    ).invoke("Hi"),
    with_ledger(lambda ledger: ledger.deposit("StringSchool", 0.1)),
    with_ledger(changes_its_report),
    with_ledger(lambda ledger: ledger.deposit("TuneTown", 10, currency="EUR", key="transfer 1")),
    with_ledger(charges_late),
    no_folder,
    lambda _: Ledger("billing.db"),
    with_ledger(lambda ledger: ledger.deposit("TuneTown", 1, currency="EUR"), scales={"EUR": 2}),
    lambda _: Receipt.from_dict({"winner": 0}),
    lambda _: auction().run("Hi").receipt.view("TuneTown"),
    lambda _: auction(model=FakeListChatModel(responses=["a"])).run("Hi"),
    holds_no_auction,
    lambda _: auction(model=ChatTransformers()).bind_tools([print]),
]


def messages_of(case, folder):
    """Return what a case says, each as the page quotes it: its kind and its text."""
    with warnings.catch_warnings(record=True, action="always") as caught:
        try:
            result = case(folder)
        except Exception as error:  # noqa: BLE001 - whatever it is, the page has its class
            return [f"`{type(error).__name__}`: {error}"]
    said = [f"`{warning.category.__name__}`: {warning.message}" for warning in caught]
    return [*said, *(f"`result.warnings`: {text}" for text in getattr(result, "warnings", ()))]


@pytest.fixture(scope="module")
def messages(tmp_path_factory):
    return [messages_of(case, tmp_path_factory.mktemp("case")) for case in CASES]


def matches(quote, message):
    pattern = ".*".join(map(re.escape, quote.split("...")))
    return re.fullmatch(pattern, message, re.DOTALL) is not None


@pytest.mark.parametrize("quote", QUOTES)
def test_a_message_that_the_page_quotes_is_said(quote, messages):
    assert any(matches(quote, message) for case in messages for message in case)


def test_the_page_quotes_what_every_case_says(messages):
    assert len(QUOTES) == len(CASES)
    for case in messages:
        assert any(matches(quote, message) for quote in QUOTES for message in case), case
