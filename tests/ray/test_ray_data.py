"""Auctions for the rows of a Ray Dataset: every row answered once and charged once, whatever dies."""

import inspect
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pytest
import ray
from langchain_core.runnables import RunnableLambda
from ray import cloudpickle
from sqlalchemy import create_engine, text

from llm_auction_chain import (
    Agent,
    AuctionRunnable,
    Billing,
    ConfigurationError,
    Ledger,
    MissingDependencyError,
    map_auctions,
)
from llm_auction_chain.interfaces.ray_data import _Worker
from llm_auction_chain.receipts import Receipt, verify
from llm_auction_chain.testing import MarkovChatModel, ScriptedChatModel
from tests.documents import run_examples

pytestmark = pytest.mark.filterwarnings(r"ignore::Warning:ray\.")  # of Ray's own settings
# its functions travel to the actors by value: what is a test here is no module there
cloudpickle.register_pickle_by_value(inspect.getmodule(lambda: None))
COLUMNS = ("prompt", "key", "bids")
OWNERS = ("A", "B")
DEPOSIT = 1000
WAIT = 300  # seconds, for what must happen


@pytest.fixture
def ledger(url):
    with Ledger(url, keep_replies=True) as ledger:
        for owner in OWNERS:
            ledger.deposit(owner, DEPOSIT, key=f"bank-{owner}")
        yield ledger


def count_a(prompt, reply):
    return 0.3 * reply.text.count("a")


def maker(url, *, model=None, likes_a=count_a, keep_replies=True):
    """Return what makes the auction in each actor. It is pickled by value, with all that it reads."""

    def make():
        agents = [
            Agent("a", likes_a, owner="A"),
            Agent("b", lambda prompt, reply: 0.2 * reply.text.count("b"), owner="B"),
        ]
        return AuctionRunnable(
            model=model or MarkovChatModel(length=4),
            agents=agents,
            n_candidates=4,
            report_cap=1.0,
            reward_timeout=WAIT,
            billing=Billing(ledger=Ledger(url, keep_replies=keep_replies), on_error="raise"),
        )

    return make


def questions(count, **columns):
    return [{"key": f"request {n}", "prompt": f"Question {n}", **columns} for n in range(count)]


def answer_on_ray(rows, make, *, blocks, **settings):
    """Return the rows with their answers, by key."""
    dataset = ray.data.from_items(rows, override_num_blocks=blocks)
    answered = map_auctions(dataset, make, **settings).take_all()
    assert sorted(row["key"] for row in answered) == sorted(row["key"] for row in rows)
    return {row["key"]: row for row in answered}


def answer(rows, make, *, agents_of=None):
    """Return what a worker makes of one batch, here and not in an actor: each of those takes seconds to start."""
    worker = _Worker(make, COLUMNS, agents_of)
    return {row["key"]: row for row in worker(pa.Table.from_pylist(rows)).to_pylist()}


def bookings(url, kind):
    """Return the auctions of a kind of booking."""
    engine = create_engine(url)
    with engine.connect() as connection:
        found = connection.execute(text("SELECT auction_id FROM bookings WHERE kind = :kind"), {"kind": kind})
        auctions = found.scalars().all()
    engine.dispose()
    return auctions


def until(condition):
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def check_money(ledger, rows):
    """Every row was charged once, what it says it was, and nothing else was charged."""
    charges = {row["auction_id"]: ledger.charge_of(row["auction_id"]) for row in rows}
    assert len(charges) == len(rows)
    for row in rows:
        charge = charges[row["auction_id"]]
        assert charge.seq == row["charge"]
        paid = dict.fromkeys(OWNERS, Decimal(0))
        for payment in row["payments"]:
            paid[payment["owner"]] += Decimal(payment["amount"])
        assert {line.owner: line.amount for line in charge.lines} == paid
        assert verify(Receipt.from_dict(ledger.receipt_of(row["auction_id"]))).ok
    (totals,) = ledger.totals()
    assert totals.revenue == sum(charge.total for charge in charges.values()) > 0
    assert {ledger.balance(owner).held for owner in OWNERS} == {0}
    assert ledger.verify().ok


def test_a_job_that_dies_is_finished_by_a_second_run(cluster, url, ledger, tmp_path):
    def slowly(prompt, reply):
        time.sleep(0.1)
        return count_a(prompt, reply)

    job = tmp_path / "job"
    job.write_bytes(cloudpickle.dumps((cluster.address, questions(40), maker(url, likes_a=slowly))))
    program = f"""
import ray
from llm_auction_chain import map_auctions
address, rows, make = ray.cloudpickle.load(open({str(job)!r}, "rb"))
ray.init(address=address)
map_auctions(ray.data.from_items(rows, override_num_blocks=10), make, workers=2, batch_size=4).materialize()"""
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL) as driver:  # noqa: S603
        until(lambda: len(bookings(url, "charge")) > 6)
        driver.send_signal(signal.SIGKILL)
    assert len(bookings(url, "charge")) < 40
    rows = answer_on_ray(questions(40), maker(url), blocks=10, workers=2, batch_size=4)
    assert {row["error"] for row in rows.values()} == {None}
    check_money(ledger, rows.values())


def test_a_second_run_gives_the_same_replies_and_charges_nothing(url, ledger):
    first = answer(questions(12), maker(url))
    other = ScriptedChatModel(turns=[["Something else."]])
    again = answer(questions(12), maker(url, model=other))
    assert again == first
    assert len(bookings(url, "repeat")) == 12
    check_money(ledger, again.values())


def test_a_row_that_fails_becomes_a_row_with_its_error_and_a_second_run_answers_it(url, ledger):
    def fail(prompt):
        if "Question 3" in str(prompt):
            raise ConnectionError("no answer\ud800")
        return prompt

    def bids_of(name):
        return {"few": [], "one": [Agent("c", lambda prompt, reply: 0.1, owner="A")]}[name]

    rows = questions(6, bids="one")
    rows[1]["prompt"], rows[2]["key"], rows[4]["bids"] = "", " ", "nobody"
    failing = answer(rows, maker(url, model=RunnableLambda(fail) | MarkovChatModel()), agents_of=bids_of)
    errors = {row["prompt"]: row["error"] for row in failing.values() if row["error"]}
    assert errors.keys() == {"", "Question 2", "Question 3", "Question 4"}
    assert errors[""].startswith("PromptError: ")
    assert errors["Question 2"] == "ConfigurationError: key must be a text that is not blank, got ' '."
    assert errors["Question 3"].startswith("CandidatesError: ")
    assert errors["Question 4"] == "KeyError: 'nobody'"
    empty = {"reply": None, "payments": None, "auction_id": None, "charge": None, "metadata": None}
    assert [row for row in failing.values() if row["error"] and not empty.items() <= row.items()] == []

    repaired = [{**row, "bids": "one"} for row in failing.values() if row["prompt"] in ("Question 3", "Question 4")]
    answered = answer(repaired, maker(url), agents_of=bids_of)
    assert {row["error"] for row in answered.values()} == {None}
    whole = [row for row in failing.values() if not row["error"]] + [*answered.values()]
    assert len(bookings(url, "charge")) == len(whole) == 4


def test_each_row_has_the_agents_that_its_column_names_and_keeps_its_columns(url, ledger):
    def bids_of(names):
        return [Agent(name, lambda prompt, reply: 0.2 * reply.text.count("b"), owner="A") for name in names]

    rows = [{**row, "bids": ["x", "y"][: 1 + n % 2], "place": n} for n, row in enumerate(questions(6))]
    for row in answer(rows, maker(url), agents_of=bids_of).values():
        assert row["place"] == int(row["key"].split()[1])
        assert [payment["agent"] for payment in row["payments"]] == row["bids"] == ["x", "y"][: 1 + row["place"] % 2]
        metadata = json.loads(row["metadata"])
        assert (metadata["auction_id"], metadata["charge"]["seq"]) == (row["auction_id"], row["charge"])
        assert metadata["revenue_decimal"] == str(sum(Decimal(payment["amount"]) for payment in row["payments"]))


def test_a_prompt_may_be_a_conversation():
    def make():
        def polite(prompt, reply):
            return float([message.type for message in prompt] == ["system", "human", "ai", "human"])

        replies = [["First."], ["Second."]]  # of the first turn and the second
        return AuctionRunnable(model=ScriptedChatModel(turns=replies), agents=[Agent("p", polite)], n_candidates=2)

    turns = [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hello!"), ("user", "Goodbye")]
    (row,) = answer([{"key": "1", "prompt": [{"role": r, "content": c} for r, c in turns]}], make).values()
    assert (row["reply"], row["charge"], row["error"]) == ("Second.", None, None)
    assert row["payments"] == [{"agent": "p", "owner": "p", "amount": "0.000000"}]


def test_columns_have_the_same_types_where_every_row_fails(url):
    good, bad = ([{"key": "1", "prompt": prompt}] for prompt in ("Hello", ""))
    worker = _Worker(maker(url), COLUMNS, None)
    assert worker(pa.Table.from_pylist(bad)).schema == worker(pa.Table.from_pylist(good)).schema


def test_rows_that_have_been_answered_before_get_their_columns_anew(url, ledger):
    failed = answer(questions(1, error="KeyError: 'a'", reply=None), maker(url))
    assert failed["request 0"]["error"] is None
    assert failed["request 0"]["reply"]


def test_a_closed_auction_and_an_erased_reply_are_rows_with_errors_that_say_so(url, ledger):
    rows = answer(questions(2), maker(url))
    ledger.cancel(rows["request 0"]["auction_id"])
    ledger.erase_receipts(datetime(2100, 1, 1, tzinfo=UTC))
    other = ScriptedChatModel(turns=[[f"Reply {n}." for n in range(99)]])
    again = answer(questions(2), maker(url, model=other))
    assert again["request 0"]["error"].startswith("ChargeConflictError: ")
    assert again["request 1"]["error"].startswith("DeliveredError: ")
    assert len(bookings(url, "charge")) == 2


def test_a_reply_with_half_surrogates_is_written_with_escapes(url, ledger):
    model = ScriptedChatModel(turns=[[f"Reply {n} \ud800" for n in range(99)]])
    rows = answer(questions(2), maker(url, model=model)).values()
    assert {row["error"] for row in rows} == {None}
    assert all(row["reply"].endswith(r" \ud800") for row in rows)
    assert sorted(bookings(url, "charge")) == sorted(row["auction_id"] for row in rows)


def test_a_ledger_must_keep_replies(url):
    with pytest.raises(ConfigurationError, match="The ledger of auctions on Ray must keep replies"):
        answer(questions(1), maker(url, keep_replies=False))


def test_what_makes_the_auction_must_return_one():
    with pytest.raises(ConfigurationError, match="make_auction must be a function that returns an AuctionRunnable"):
        answer(questions(1), MarkovChatModel)


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("workers", 0), ("workers", (0, 2))])
def test_settings_are_checked_before_anything_runs(name, value):
    with pytest.raises(ConfigurationError, match=f"{name} must be a whole number of at least 1, got 0"):
        map_auctions(None, maker("sqlite://"), **{"workers": 1, name: value})


def test_an_auction_in_place_of_a_function_is_refused_before_anything_runs():
    with pytest.raises(ConfigurationError, match="Each actor calls it"):
        map_auctions(None, maker("sqlite://")(), workers=1)


def test_without_ray_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'llm-auction-chain\[postgresql,ray\]'"):
        map_auctions(None, maker("sqlite://"), workers=1)


def test_the_example_of_the_docstring_runs(cluster):
    (example,) = re.findall(r"```python\n(.*?)```", inspect.getdoc(map_auctions), re.DOTALL)
    exec(compile(example, "map_auctions", "exec"), {})  # noqa: S102


def test_the_recipe_runs(cluster, url, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_AUCTION_LEDGER", url)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run_examples("cookbook/auctions_on_ray.md")


def test_when_a_node_dies_every_row_is_answered_once_and_charged_once(cluster, url, ledger, tmp_path):
    """The last test: there is a node less after it."""
    hung = tmp_path / "node"

    def hang_once(prompt, reply):
        """Hang on one row, the first time."""
        if prompt[0].text == "Question 17" and not hung.exists():
            part = tmp_path / "part"
            part.write_text(ray.get_runtime_context().get_node_id())
            part.rename(hung)
            time.sleep(WAIT)
        return count_a(prompt, reply)

    def kill():
        until(hung.exists)
        until(lambda: len(bookings(url, "hold")) == len(bookings(url, "charge")) + 1)  # of the row that hangs
        (node,) = [node for node in cluster.worker_nodes if node.node_id == hung.read_text()]
        cluster.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    rows = answer_on_ray(questions(60), maker(url, likes_a=hang_once), blocks=10, workers=4, batch_size=6)
    killer.join()
    assert {row["error"] for row in rows.values()} == {None}
    assert bookings(url, "repeat")  # of the rows beside it, which were charged, and whose replies the node took along
    check_money(ledger, rows.values())
