"""An auction over a chat model passes and skips those of LangChain's own tests that the model itself does.

The suites are in suites.py; a session of their own runs them, without a network.
"""

from collections import defaultdict
from pathlib import Path

import pytest

from tests.conformance.scripted import AuctionOverScripted
from tests.conformance.suites import AuctionAmongAgents, AuctionOfToolCalls

SUITES = {"Unit": 10, "ByCalling": 50, "BySchema": 9, "ByMode": 9}  # how many tests each has
ONCE = "not BySchema and not ByMode or structured"  # what no method of structured output concerns runs by one of them
CANNOT = {
    # It reads nothing from the environment.
    "test_init_from_env",
    # The weights in memory are the model.
    "test_invoke_with_model_override", "test_ainvoke_with_model_override",
    "test_stream_with_model_override", "test_astream_with_model_override",
    # It calls no tools,
    "test_tool_calling[model0]", "test_tool_calling[model1]", "test_tool_calling_async",
    "test_tool_calling_with_no_arguments", "test_tool_choice", "test_bind_runnables_as_tools",
    "test_tool_message_histories_string_content", "test_tool_message_histories_list_content",
    "test_tool_message_error_status", "test_structured_few_shot_examples", "test_agent_loop[model0]",
    "test_agent_loop[model1]", "test_unicode_tool_call_integration",
    # keeps to no schema,
    *(f"test_structured_output{kind}[{schema}]" for kind in ("", "_async")
      for schema in ("pydantic", "typeddict", "json_schema")),
    "test_structured_output_pydantic_2_v1", "test_structured_output_optional_param", "test_json_mode",
    # and reads text only.
    "test_pdf_inputs", "test_audio_inputs", "test_image_inputs", "test_image_tool_message", "test_pdf_tool_message",
    "test_anthropic_inputs",
}  # fmt: skip


class Outcomes:
    """A plugin that keeps what comes of each test, by the name of its class and its own."""

    def __init__(self):
        self.of = defaultdict(dict)

    def pytest_runtest_logreport(self, report):
        _, suite, test = report.nodeid.split("::", 2)
        if self.of[suite].get(test, "passed") == "passed":  # of its setup, its call and its end the first to go wrong
            self.of[suite][test] = "xfailed" if hasattr(report, "wasxfail") else report.outcome


@pytest.fixture(scope="module")
def outcomes():
    """Run the suites in this process, which has imported what they need."""
    suites, came = Path(__file__).with_name("suites.py"), Outcomes()
    options = ["-q", "-k", ONCE, "--benchmark-disable", "--disable-socket", "--allow-unix-socket", "--noconftest"]
    plugins = ["-p", "no:cacheprovider", "-p", "no:faulthandler", "-p", "no:unraisableexception"]
    pytest.main([str(suites), *options, *plugins], plugins=[came])
    return came.of


@pytest.mark.parametrize("suite", SUITES)
def test_the_scripted_model_passes_every_standard_test(outcomes, suite):
    came = outcomes[f"TestScripted{suite}"]
    assert set(came.values()) == {"passed"}
    assert len(came) >= SUITES[suite]


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("auction", ["Auction", "AuctionAmongAgents", "AuctionOfToolCalls"])
def test_an_auction_passes_and_skips_what_its_model_does(outcomes, auction, suite):
    assert outcomes[f"Test{auction}{suite}"] == outcomes[f"TestScripted{suite}"] != {}


def test_the_embedded_model_passes_all_but_what_it_is_declared_not_to_do(outcomes):
    unit, integration = outcomes["TestTransformersUnit"], outcomes["TestTransformersIntegration"]
    assert {test for test, outcome in {**unit, **integration}.items() if outcome == "skipped"} == CANNOT
    came = [outcome for test, outcome in (*unit.items(), *integration.items()) if test not in CANNOT]
    assert set(came) == {"passed"}
    assert len(came) >= 27


@pytest.mark.parametrize(("suite", "held"), [(AuctionAmongAgents, False), (AuctionOfToolCalls, True)])
def test_the_auctions_under_test_are_held(suite, held):
    """Those of tool calls too, where they are to be; what the suites asked was not passed by unbidden replies."""
    auction = AuctionOverScripted(**suite.chat_model_params)

    def price(number: int) -> None:
        """Say a price."""

    for model, sold in ((auction, True), (auction.bind_tools([price]), held)):
        metadata = model.invoke("What is the price of 3?").response_metadata["auction"]
        assert len(metadata["payments"]) == (2 if sold else 0)
        assert metadata["diagnostics"]["candidates"] == (3 if sold else 1)
