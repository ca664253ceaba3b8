"""LangChain's own test suites on our chat models; test_standard.py runs them and says what is to come out."""

import httpx
import pytest
from langchain_core.load import load
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests, chat_models

from llm_auction_chain import ChatAuction, ChatTransformers
from tests.conformance.scripted import AuctionOverScripted, ChatScripted, Directory

pytestmark = [
    pytest.mark.filterwarnings("ignore:The function .load. is in beta"),
    pytest.mark.filterwarnings("ignore:Benchmark fixture was not used at all"),  # nothing recorded, nothing to time
]
LOADABLE = [ChatAuction, ChatScripted, ChatTransformers, Directory]


@pytest.fixture(autouse=True)
def _files_without_a_network(monkeypatch):
    """Serve the pictures, sounds and documents that the suites fetch; nobody looks into them."""
    monkeypatch.setenv("LANGCHAIN_TESTS_USER_AGENT", "none")
    monkeypatch.setattr(httpx, "get", lambda url, **_: httpx.Response(200, content=b"a file"))


@pytest.fixture(autouse=True)
def _classes_that_may_be_loaded(monkeypatch):
    """Name our classes: by `allowed_objects="all"` LangChain loads those of its own partners only."""
    named = {"allowed_objects": LOADABLE, "valid_namespaces": ["llm_auction_chain", "tests"]}
    monkeypatch.setattr(chat_models, "load", lambda dumped, **asked: load(dumped, **{**asked, **named}))


class Scripted:
    """The scripted model can do all that the suites ask about."""

    chat_model_class = ChatScripted
    chat_model_params: dict = {}  # noqa: RUF012
    supports_json_mode = supports_anthropic_inputs = True
    supports_image_inputs = supports_image_urls = supports_image_tool_message = True
    supports_pdf_inputs = supports_pdf_tool_message = supports_audio_inputs = True
    model_override_value = "scripted-2"
    init_from_env_params = ({"SCRIPTED_API_KEY": "key"}, {}, {"api_key": "key"})
    enable_vcr_tests = True  # nothing goes over HTTP, so nothing is recorded

    @property
    def supported_usage_metadata_details(self):
        details = ["audio_input", "audio_output", "reasoning_output", "cache_read_input", "cache_creation_input"]
        return {"invoke": details, "stream": details}

    def invoke_with_audio_input(self, *, stream=False):
        model = self.chat_model_class(**self.chat_model_params)
        if not stream:
            return model.invoke("Hello")
        first, *others = model.stream("Hello")
        return sum(others, start=first)

    invoke_with_audio_output = invoke_with_reasoning_output = invoke_with_audio_input
    invoke_with_cache_read_input = invoke_with_cache_creation_input = invoke_with_audio_input


class Auction(Scripted):
    chat_model_class = AuctionOverScripted
    init_from_env_params = ({"SCRIPTED_API_KEY": "key"}, {}, {"model": ChatScripted(api_key="key")})


class AuctionAmongAgents(Auction):
    chat_model_params = {"agents": Directory()}  # noqa: RUF012


class AuctionOfToolCalls(Auction):
    chat_model_params = {"agents": Directory(), "on_tool_calls": "auction"}  # noqa: RUF012


METHODS = {"Calling": "function_calling", "Schema": "json_schema", "Mode": "json_mode"}


def suites_of(model):
    """Yield the unit tests of a model, and the integration tests with each method of structured output."""
    yield type(f"Test{model.__name__}Unit", (model, ChatModelUnitTests), {})
    for name, method in METHODS.items():
        said = {"structured_output_kwargs": {"method": method}}
        yield type(f"Test{model.__name__}By{name}", (model, ChatModelIntegrationTests), said)


for each in (Scripted, Auction, AuctionAmongAgents, AuctionOfToolCalls):
    globals().update((suite.__name__, suite) for suite in suites_of(each))


class Transformers:
    """The embedded model."""

    chat_model_class = ChatTransformers
    # 135M parameters neither call tools nor keep to a schema, and they read text only.
    has_tool_calling = has_tool_choice = has_structured_output = False
    # The weights in memory are the model: a call cannot choose another.
    supports_model_override = False
    enable_vcr_tests = True


class TestTransformersUnit(Transformers, ChatModelUnitTests):
    # There is no server to log in to, to wait for or to ask again: `api_key`, `timeout` and `max_retries` would be
    # promises that nothing keeps, and unknown settings are refused.
    standard_chat_model_params = {"temperature": 0, "max_tokens": 100, "stop": []}  # noqa: RUF012


class TestTransformersIntegration(Transformers, ChatModelIntegrationTests):
    chat_model_params = {"max_tokens": 2, "dtype": "float32", "device": "cpu"}  # noqa: RUF012
