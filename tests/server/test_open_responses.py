"""Compliance with the Open Responses specification and with OpenAI's schema of chat completions, over real sockets.

llm-comply sends the cases of the specification's suite; `docs/reference/open_responses.md` lists what comes of them.
"""

import re
from pathlib import Path

import llm_comply
import pytest
from llm_comply.tests import get_tests

from llm_auction_chain import AuctionRunnable
from llm_auction_chain.server import create_app
from tests.server.kitchen import Kitchen, agents, serving

ROOT = Path(__file__).parents[2]
PAGE = ROOT.joinpath("docs", "reference", "open_responses.md").read_text("utf-8")
SPECS = Path(llm_comply.__file__).with_name("specs")
MODEL = "gpt-5"  # of a name for which llm-comply asks for reasoning, too
FORMATS = {"open-responses": "openresponses.json", "openai-chat": "openai_chat.json"}
REFUSED = {"reasoning-summary": "reasoning.summary", "chat-reasoning-summary": "reasoning"}

# llm-comply resolves references by means that jsonschema no longer recommends, and takes its warning for a violation
pytestmark = pytest.mark.filterwarnings("ignore:jsonschema.RefResolver:DeprecationWarning")


@pytest.fixture(scope="module")
def url():
    auction = AuctionRunnable(model=Kitchen(gate=None), agents=agents(), n_candidates=2)
    with serving(create_app({MODEL: auction})) as address:
        yield address


@pytest.fixture(scope="module", params=FORMATS)
def suite(request, url):
    """Return the results of a format's cases by their ids, with the answers."""
    config = llm_comply.ComplianceConfig(base_url=f"{url}/v1", api_key="unused", model=MODEL, verbose=True)
    specification = llm_comply.SpecLoader(str(SPECS / FORMATS[request.param]))
    results = llm_comply.TestRunner(config, get_tests(request.param), specification).run_all().results
    return request.param, {result.id: result for result in results}


def test_every_case_passes_save_those_that_are_refused(suite):
    _, results = suite
    errors = {name: one.errors for name, one in results.items() if one.status.value != "passed"}
    assert errors.keys() == REFUSED.keys() & results.keys(), errors
    for name in errors:
        error = results[name].response["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", REFUSED[name])


def test_no_case_has_a_warning_save_of_the_endpoint_that_is_optional(suite):
    _, results = suite
    assert {name for name, one in results.items() if one.warnings} <= {"compact-response", *REFUSED}


def test_the_page_lists_every_case_and_what_comes_of_it(suite):
    kind, results = suite
    rows = re.findall(r"^\| `([a-z-]+)` \| [^|]+ \| (passes|refused)\b[^|]*\|$", PAGE, re.MULTILINE)
    listed = {name: outcome for name, outcome in rows if name.startswith("chat-") == (kind == "openai-chat")}
    assert listed == {name: "refused" if name in REFUSED else "passes" for name in results}
