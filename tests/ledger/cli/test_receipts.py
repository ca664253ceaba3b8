"""`llm-auction verify`: receipts and views from files and from standard input."""

import io
import json
import re
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from langchain_core.load import dumpd

from llm_auction_chain import AuctionRunnable, Billing, Ledger
from llm_auction_chain.testing import MarkovChatModel
from tests.ledger.cli.conftest import AGENTS


@pytest.fixture
def saved(tmp_path):
    def save(value, name="receipt.json"):
        path = tmp_path / name
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
        return path

    return save


@pytest.fixture
def public(tmp_path):
    """Return a new private key and the file of its public one."""

    def make(name):
        key = Ed25519PrivateKey.generate()
        pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / name).write_bytes(pem)
        return key, tmp_path / name

    return make


def test_a_receipt_that_holds_is_shown_and_is_exit_code_0(say, saved, receipts):
    said = say("verify", saved(receipts[0].as_dict()))
    assert said.code == 0
    assert said.err == ""
    assert said.out.endswith("OK\n")
    wanted = [receipts[0].auction_id, receipts[0].time, "receipt", "auditor", "TuneTown", "EUR", receipts[0].revenue]
    for text in (*wanted, *(bid.charge for bid in receipts[0].agents)):
        assert text in said.out


def test_a_view_shows_whom_it_is_for_and_nobody_else(say, saved, receipts):
    said = say("verify", saved(receipts[0].view("B").as_dict()))
    assert (said.code, said.out.splitlines()[-1]) == (0, "OK")
    assert "for        TuneTown" in said.out
    assert receipts[0].agents[0].charge in said.out
    assert receipts[0].agents[1].charge not in said.out


def test_every_difference_is_printed_and_is_exit_code_1(say, saved, receipts):
    told = receipts[0].as_dict()
    said = say("verify", saved({**told, "winner": told["winner"] + 1, "revenue": "9.000000"}))
    assert said.code == 1
    assert "DIFFERS: 3" in said.out
    below = said.out[said.out.index("DIFFERS") :]
    for field in ("digest", "winner", "revenue"):
        assert f"\n  {field}" in below
    assert "OK" not in said.out.splitlines()


@pytest.mark.parametrize("value", ["{}", "[{}]", '{"agents": 3}', '[1, "two"]'])
def test_json_that_is_no_receipt_differs(say, saved, value):
    said = say("verify", saved(value))
    assert said.code == 1
    assert "Traceback" not in said.err


@pytest.fixture
def others(say, booked, receipts):
    """JSON that this package writes and that is no receipt, by what it is."""
    result = AuctionRunnable(model=MarkovChatModel(), agents=[], seed=7).run("Say something")
    told = receipts[0].as_dict()
    return {
        "outcome": result.reply.response_metadata["auction"],
        "stored result": result.as_dict(),
        "message": result.reply.model_dump(mode="json"),
        "statement": json.loads(say("ledger", "statement", "C", "--format", "json").out),
        "entry": json.loads(say("ledger", "export", "--format", "json").out),
        "account": json.loads(say("ledger", "balance", "--format", "json").out),
        "request": {"schema": "llm_auction_chain.bid_request/1", "request_id": "x", "prompt": [], "replies": []},
        "answer": {"rewards": [1.5, 0]},
        "LangChain's message": dumpd(result.reply),
        "metadata": result.reply.response_metadata,
        "state": {"messages": [], "auctions": [result.reply.response_metadata["auction"]]},
        "schema": json.loads((Path(__file__).parents[3] / "docs/schemas/receipt-1.json").read_text()),
        "verification": {name: told[name] for name in ("auction_id", "schema")} | {"ok": True, "differences": []},
    }


def test_other_json_of_ours_is_named_and_is_exit_code_2(say, saved, others):
    for name, value in others.items():
        for more in ([], ["--format", "json"]):
            said = say("verify", saved(value), *more)
            assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
            assert re.search(rf"receipt.json: this is .*{name.split()[-1]}.*, not a receipt", said.err)
    said = say("verify", saved({"schema": "llm_auction_chain.receipt/1", "digest": "sha256:0", "seq": 1}))
    assert (said.code, "DIFFERS" in said.out) == (1, True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no receipt"),
        ("[]", "holds no receipt"),
        ("nonsense", "is not JSON"),
        ('{"a": 1}\n{"a"', "is not JSON"),
        ('{"a": 1, "a": 2}', "twice"),
        ("[" * 100_000, "is not JSON"),
        ("1" * 10_000, "is not JSON"),
    ],
)
def test_input_that_cannot_be_read_is_one_line_and_exit_code_2(say, saved, text, says):
    said = say("verify", saved(text))
    assert said.code == 2
    assert says in said.err
    assert said.err.count("\n") == 1


def test_a_file_that_is_missing_or_no_text_is_exit_code_2(say, tmp_path):
    assert say("verify", tmp_path / "none.json").code == 2
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8" in say("verify", tmp_path / "binary").err
    said = say("verify", tmp_path)
    assert (said.code, "cannot be read" in said.err) == (2, True)


def test_standard_input_is_read(say, receipts, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(receipts[0].as_dict(), indent=2)))
    assert say("verify", "-").code == 0


@pytest.mark.parametrize("lines", [True, False])
def test_several_are_verified_each_and_summed_up(say, saved, receipts, lines):
    told = [receipt.as_dict() for receipt in receipts]
    told[1] = {**told[1], "winner": told[1]["winner"] + 1}
    text = "\n".join(["", *map(json.dumps, told), ""]) if lines else json.dumps(told, indent=1)
    said = say("verify", saved(text))
    assert said.code == 1
    assert said.out.splitlines()[0] == f"OK  {told[0]['auction_id']}"
    assert f"DIFFERS  {told[1]['auction_id']}\n  digest" in said.out
    assert said.out.endswith("3 receipts: 2 OK, 1 differ\n")
    good = saved(json.dumps([told[0], receipts[1].view("C").as_dict()]), "good.json")
    assert say("verify", good).out.endswith("2 receipts: all OK\n")


def test_several_files_are_verified_each_and_what_cannot_be_read_is_said_last(say, saved, receipts, others):
    files = [saved(receipt.as_dict(), f"{k}.json") for k, receipt in enumerate(receipts)]
    said = say("verify", *files)
    assert (said.code, said.err) == (0, "")
    lines = [f"OK  {receipt.auction_id}  {file}" for receipt, file in zip(receipts, files, strict=True)]
    assert said.out.splitlines() == [*lines, "3 receipts: all OK"]
    read = json.loads(say("verify", "--format", "json", *files).out)
    assert [(one["file"], one["ok"]) for one in read] == [(str(file), True) for file in files]
    outcome, forged = saved(others["outcome"], "run.json"), saved({**receipts[1].as_dict(), "winner": 0}, "forged.json")
    said = say("verify", files[0], outcome, "missing.json", forged, files[2])
    assert said.code == 2
    assert said.out.endswith("3 receipts: 2 OK, 1 differ\n")
    assert [line.split()[0] for line in said.err.splitlines()] == ["llm-auction:", "missing.json"]
    assert say("verify", files[0], forged).code == 1
    assert say("verify", outcome, outcome).code == 2


def test_a_valid_view_of_another_auction_differs_from_what_is_expected(say, saved, receipts):
    view = receipts[0].view("C")
    file = saved(view.as_dict())
    known = ["--auction-id", view.auction_id, "--opening", view.opening]
    assert say("verify", file, *known).code == 0
    other = ["--auction-id", receipts[1].auction_id, "--opening", receipts[1].opening]
    said = say("verify", file, *other)
    assert (said.code, "DIFFERS: 2" in said.out) == (1, True)
    for bad in (["--auction-id", ""], ["--opening", "none"]):
        said = say("verify", file, *bad)
        assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)


def test_json_tells_the_same(say, saved, receipts):
    told = receipts[0].as_dict()
    said = say("verify", saved(told), "--format", "json")
    assert json.loads(said.out) == {
        "auction_id": told["auction_id"],
        "schema": told["schema"],
        "ok": True,
        "differences": [],
        "more": 0,
        "signed_by": None,
    }
    said = say("verify", saved([told, {**told, "tau": float("nan")}]), "--format", "json")
    first, second = json.loads(said.out, parse_constant=pytest.fail)
    assert (said.code, first["ok"], second["ok"]) == (1, True, False)
    assert all({"field", "stated", "computed", "rule"} == set(difference) for difference in second["differences"])


def test_a_key_says_who_must_have_signed(say, saved, receipts, public):
    key, file = public("platform.pem")
    _, stranger = public("stranger.pem")
    signed = saved(receipts[0].signed(key).as_dict(), "signed.json")
    hexadecimal = key.public_key().public_bytes_raw().hex()
    said = say("verify", signed, "--key", file)
    assert (said.code, f"by {hexadecimal}, the key given" in said.out) == (0, True)
    assert "check it by --key" in say("verify", signed).out
    assert json.loads(say("verify", signed, "--format", "json").out)["signed_by"] == hexadecimal
    said = say("verify", signed, "--key", stranger)
    assert (said.code, "the key given" in said.out) == (1, False)
    said = say("verify", saved(receipts[0].as_dict()), "--key", file)
    assert (said.code, "signature" in said.out) == (1, True)
    assert say("verify", signed, "--key", "none.pem").code == 2


def test_who_signed_another_content_did_not_sign_this_one(say, saved, receipts, public):
    key, file = public("platform.pem")
    forged = saved({**receipts[0].signed(key).as_dict(), "revenue": "9.000000"})
    for more in ([], ["--key", file]):
        said = say("verify", forged, *more)
        assert said.code == 1
        assert "signed     not as it should be" in said.out
        assert key.public_key().public_bytes_raw().hex() not in said.out
    assert json.loads(say("verify", forged, "--format", "json").out)["signed_by"] is None


def test_a_hundred_differences_are_printed_and_the_others_counted(say, saved, receipts):
    told = {**receipts[0].as_dict(), **{f"more {k}": k for k in range(150)}}
    said = say("verify", saved(told))
    assert said.out.startswith("DIFFERS: 150 of its statements")
    assert said.out.endswith("  and 50 more\n")
    assert len(said.out.splitlines()) == 102
    found = json.loads(say("verify", saved(told), "--format", "json").out)
    assert (len(found["differences"]), found["more"]) == (100, 50)


def test_names_move_no_cursor_and_are_no_markup(say, saved, receipts):
    told = receipts[0].as_dict()
    told["agents"][0]["agent"] = "[red]\x1b[2J\u202eevil"
    told["currency"] = "EUR\x1b]0;title\x07"
    said = say("verify", saved(told))
    assert said.code == 1
    assert "\x1b" not in said.out
    assert "[red]\\x1b[2J\\u202eevil" in said.out


@pytest.mark.parametrize("width", [20, 35, 80])
def test_no_figure_is_broken_on_a_narrow_terminal(say_on_terminal, saved, receipts, width):
    said = say_on_terminal(width, "verify", saved(receipts[0].as_dict()))
    assert said.code == 0
    assert max(map(len, said.out.splitlines())) <= width
    for bid in receipts[0].agents:
        assert bid.charge in said.out


def test_a_line_is_a_line_to_other_programs(say, saved, receipts, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    said = say("verify", saved([receipt.as_dict() for receipt in receipts]))
    assert said.out.splitlines() == [*(f"OK  {one.auction_id}" for one in receipts), "3 receipts: all OK"]


def test_an_owner_checks_with_a_proof_and_a_head_that_the_ledger_contains_its_view(say, saved, path):
    with Ledger(f"sqlite:///{path}") as ledger:
        for owner in ("TuneTown", "C"):
            ledger.deposit(owner, 100, currency="EUR")
        billing = Billing(ledger=ledger, currency="EUR")
        auction = AuctionRunnable(model=MarkovChatModel(), agents=AGENTS, report_cap=5.0, billing=billing, seed=7)
        receipt = auction.run("Say something").receipt
        head, zero = ledger.head().hash, "sha256:" + "0" * 64
    view = saved(receipt.view("B").as_dict(), "view.json")
    said = say("ledger", "proof", receipt.auction_id, "--agent", "B", "--head", head)
    assert (said.code, said.err) == (0, "")
    proof = saved(said.out, "proof.json")
    said = say("verify", view, "--inclusion", proof, "--head", head)
    assert (said.code, said.out.splitlines()[-1]) == (0, "OK")
    said = say("verify", view, "--inclusion", proof, "--head", zero)
    assert (said.code, "the proof ends at another head" in said.out) == (1, True)
    stranger = saved(receipt.view("C").as_dict(), "stranger.json")
    said = say("verify", stranger, "--inclusion", proof, "--head", head, "--format", "json")
    assert (said.code, [one["field"] for one in json.loads(said.out)["differences"]]) == (1, ["head"])
    for wrong in (["--head", head], ["--inclusion", proof], ["--inclusion", view, "--head", head]):
        assert say("verify", view, *wrong).code == 2
    for proofs in ([], [{}, {}]):
        said = say("verify", view, "--inclusion", saved(proofs, "proofs.json"), "--head", head)
        assert (said.code, f"must contain one proof, got {len(proofs)}." in said.err) == (2, True)
    assert say("ledger", "proof", receipt.auction_id, "--agent", "B", "--head", "x").code == 2
    assert say("ledger", "proof", "unknown", "--agent", "B").code == 1
