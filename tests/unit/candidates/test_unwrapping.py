"""The chat models in LangChain's wrappers, and which keywords reach them."""

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from langchain.chat_models import init_chat_model
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import (
    ConfigurableField,
    RouterRunnable,
    RunnableBranch,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
    RunnableSequence,
)

from llm_auction_chain import ConfigurationError
from llm_auction_chain.candidates import unwrapping
from llm_auction_chain.candidates.unwrapping import (
    Untraced,
    asks_for_format,
    chat_model_of,
    chat_models_in,
    innermost,
    inside,
    is_chosen_later,
    name_of,
    offers_tools,
    runnables_in,
    settings_of,
)
from llm_auction_chain.testing import MarkovChatModel

FIRST, SECOND = MarkovChatModel(length=2), MarkovChatModel(length=3)
TOOLS = [{"name": "note", "parameters": {}}]
WHICH = ConfigurableField(id="which")
OTHER = {"configurable": {"which": "other"}}


class Provided(MarkovChatModel):
    """A model with the fields by which providers' packages pass settings on."""

    model_kwargs: Any = None
    extra_body: Any = None
    output_config: Any = None
    response_mime_type: Any = None
    format: Any = None


class Nameless(MarkovChatModel):
    """A model that names no provider."""

    @property
    def _llm_type(self):
        return "none"

    def _get_ls_params(self, stop=None, **kwargs):
        return {}


WRAPPED = [
    FIRST.bind(stop=["x"]),
    FIRST.with_retry(),
    FIRST.with_config(tags=["a"]),
    FIRST.with_fallbacks([SECOND]),
    RunnablePassthrough() | FIRST,
    RunnableBranch((lambda _: True, FIRST), SECOND),
    RouterRunnable({"one": FIRST, "other": SECOND}),
    FIRST.configurable_alternatives(WHICH, default_key="first", other=SECOND),
    FIRST.configurable_fields(length=WHICH),
    (RunnablePassthrough() | FIRST.bind(stop=["x"])).with_retry(),
]


@pytest.mark.parametrize("model", WRAPPED)
def test_a_chat_model_is_found_in_every_wrapper(model):
    assert chat_model_of(model) is FIRST


@pytest.mark.parametrize("model", WRAPPED[:7])
def test_a_change_reaches_every_chat_model_and_keeps_the_wrappers(model):
    longer = inside(model, lambda chat: chat.model_copy(update={"length": chat.length + 10}))
    assert type(longer) is type(model)
    lengths = {chat.length for chat in runnables_in(longer) if isinstance(chat, MarkovChatModel)}
    assert lengths == {chat.length + 10 for chat in runnables_in(model) if isinstance(chat, MarkovChatModel)}
    assert chat_model_of(model).length == 2


def test_a_sequence_keeps_its_name():
    named = RunnableSequence(RunnablePassthrough(), FIRST, name="ads")
    assert inside(named, lambda chat: SECOND).get_name() == "ads"


def test_the_innermost_model_is_inside_bindings_and_not_inside_what_a_config_chooses():
    assert innermost(FIRST.bind(stop=["x"]).with_retry()) is FIRST
    fields = FIRST.configurable_fields(length=WHICH)
    assert innermost(fields.bind(stop=["x"])) is fields


def test_a_model_of_init_chat_model_is_its_default_until_a_config_chooses():
    model = init_chat_model("gpt-4o", model_provider="openai", api_key="x", configurable_fields="any")
    assert name_of(model) == "openai/gpt-4o"
    assert name_of(model, {"configurable": {"model": "gpt-4.1"}}) == "openai/gpt-4.1"


def test_a_change_is_made_to_the_model_that_a_call_chooses():
    fields, five = FIRST.configurable_fields(length=WHICH), {"configurable": {"which": 5}}
    longer = inside(fields, lambda chat: chat.model_copy(update={"length": chat.length + 1}))
    bound = inside(fields.with_retry(), lambda chat: chat.bind(stop=["x"]))
    assert [len(model.invoke("x").text) for model in (longer, bound)] == [3, 2]
    assert [len(model.invoke("x", five).text) for model in (longer, bound)] == [6, 5]
    assert is_chosen_later(bound)
    assert not is_chosen_later(inside(bound, lambda chat: chat, five))
    assert not is_chosen_later(FIRST.with_fallbacks([SECOND]))


def test_a_model_that_only_a_config_can_choose_says_so():
    model = init_chat_model(api_key="x")
    assert name_of(model, {"configurable": {"model": "gpt-4.1", "model_provider": "openai"}}) == "openai/gpt-4.1"
    unchosen = chat_model_of(model)
    with pytest.raises(ConfigurationError, match="The config of a call chooses this model"):
        unchosen.invoke("x")
    tools = inside(model, lambda chat: chat.bind_tools([{"name": "note", "description": "", "parameters": {}}]))
    assert name_of(tools, {"configurable": {"model": "gpt-4.1", "model_provider": "openai"}}) == "openai/gpt-4.1"
    assert type(chat_model_of(tools)) is type(unchosen)
    with pytest.raises(ValueError, match="Unsupported"):
        name_of(model, {"configurable": {"model": "some", "model_provider": "none"}})


def test_a_config_chooses_among_alternatives():
    model = FIRST.configurable_alternatives(WHICH, default_key="first", other=lambda: SECOND)
    chosen = []
    inside(model, lambda chat: chosen.append(chat) or chat, OTHER)
    assert chosen == [SECOND]
    later = inside(model, lambda chat: chat.model_copy(update={"length": 7}))
    assert len(later.with_config(OTHER).invoke("x").text) == 7


@pytest.mark.parametrize("wrap", [
    lambda model: model.with_config(OTHER), lambda model: model.with_retry().with_config(OTHER),
    lambda model: model.bind(stop=["x"]).with_retry().with_config(OTHER).with_fallbacks([FIRST]),
    lambda model: RunnableSequence(RunnablePassthrough(), model.with_retry().with_config(OTHER)),
])  # fmt: skip
def test_a_config_that_is_bound_chooses_until_the_call_chooses_otherwise(wrap):
    model = wrap(FIRST.configurable_alternatives(WHICH, default_key="first", other=SECOND.bind(tools=[{}])))
    back = {"configurable": {"which": "first"}}
    for config, chosen in (({}, SECOND), (back, FIRST)):
        assert chat_models_in(model, config)[0] is chosen
        assert chat_models_in(inside(model, lambda chat: chat, config))[0] is chosen
        assert offers_tools(model, config, {}) is (chosen is SECOND)


def test_without_a_chat_model_there_is_an_error():
    with pytest.raises(ConfigurationError, match="no chat model in RunnableLambda"):
        chat_model_of(RunnableLambda(lambda given: given))


@pytest.mark.parametrize("model", [
    FIRST.with_fallbacks([SECOND]), RunnableBranch((lambda _: True, FIRST), SECOND),
    RunnableParallel(one=FIRST, two=SECOND) | RunnableLambda(lambda both: both["one"]),
    FIRST.configurable_alternatives(WHICH, default_key="first", other=SECOND).bind(stop=["x"]),
])  # fmt: skip
def test_everything_in_the_wrappers_is_listed(model):
    assert [one for one in runnables_in(model) if isinstance(one, MarkovChatModel)] == [FIRST, SECOND]


def test_what_a_function_refers_to_is_not_searched():
    assert len(list(runnables_in(RunnableLambda(lambda given: FIRST.invoke(f"{given}!"))))) == 1


def test_the_name_of_a_model_lists_what_it_may_call_in_order():
    assert name_of(FIRST) == "markovchatmodel/markov"
    other = Nameless()
    assert name_of(FIRST.with_fallbacks([other, SECOND])) == "markovchatmodel/markov, Nameless/none"
    named = RunnableLambda(lambda given: given)
    assert name_of(named) == "RunnableLambda"


def test_the_outer_keyword_wins():
    model = FIRST.bind(stop=["x"], temperature=0.5).bind(stop=["y"])
    assert settings_of(model) == {"stop": ["y"], "temperature": 0.5}
    assert innermost(model) is FIRST
    assert settings_of(FIRST.bind(stop=["x"]).with_retry().with_config(tags=["a"])) == {"stop": ["x"]}


@pytest.mark.parametrize(("model", "kwargs", "offers"), [
    (FIRST, {}, False), (FIRST, {"tools": TOOLS}, True), (FIRST.bind(tools=TOOLS), {}, True),
    (FIRST.bind(tools=TOOLS), {"tools": None}, False), (FIRST.bind(functions=TOOLS).with_retry(), {}, True),
    (FIRST.with_fallbacks([SECOND.bind(tools=TOOLS)]), {}, True),
    (RunnableBranch((lambda _: True, FIRST), SECOND.bind(tools=TOOLS)), {}, True),
])  # fmt: skip
def test_tools_are_seen_where_they_are_bound_and_the_outer_keyword_wins(model, kwargs, offers):
    assert offers_tools(model, None, kwargs) is offers


def test_the_keywords_of_a_call_reach_the_first_step_of_a_sequence_alone():
    passes = RunnablePassthrough()
    assert offers_tools(passes | FIRST.bind(tools=TOOLS), None, {"tools": []})
    assert not offers_tools(FIRST.bind(tools=TOOLS) | passes, None, {"tools": []})
    routes = RouterRunnable({"one": FIRST})  # passes no keyword on
    assert not offers_tools(routes | passes, None, {"tools": TOOLS})


def test_the_config_of_a_call_may_choose_a_model_with_tools():
    model = FIRST.configurable_alternatives(WHICH, default_key="first", other=SECOND.bind(tools=TOOLS))
    assert offers_tools(model, OTHER, {})
    assert not offers_tools(model, {}, {})


SHAPE = {"type": "json_schema", "schema": {"type": "object"}}
ASKING = [
    {"response_format": {"type": "json_object"}},
    {"response_format": Provided},
    {"format": "json"},
    {"format": SHAPE["schema"]},
    {"response_mime_type": "application/json"},
    {"response_mime_type": "text/x.enum"},
    {"response_schema": SHAPE["schema"]},
    {"response_json_schema": SHAPE["schema"]},
    {"generation_config": {"responseMimeType": "application/json"}},
    {"output_config": {"format": SHAPE}},
    {"output_format": SHAPE},
    {"text": {"format": SHAPE, "verbosity": "low"}},
    {"guided_regex": "a+"},
    *({word: "a+"} for word in ("ebnf", "grammar", "regex", "structural_tag")),
    {"json_schema": SHAPE["schema"]},
    {"structured_outputs": {"choice": ["a", "b"]}},
    {"additional_model_request_fields": {"output_config": {"format": SHAPE}}},
    {"json_mode": True},
    {"options": {"format": "json"}},
    {"ls_structured_output_format": {"schema": {}}},
]
PLAIN = [
    {"response_format": {"type": "text"}}, {"response_format": None}, {"format": ""}, {"format": None},
    {"response_mime_type": "text/plain"}, {"output_config": {"effort": "low"}}, {"text": {"verbosity": "low"}},
    {"json_mode": False}, {"options": {"num_ctx": 9}}, {"text": {"format": {"type": "text"}}},
    {"reasoning_format": "parsed"}, {"tools": TOOLS},
]  # fmt: skip


@pytest.mark.parametrize("settings", [*ASKING, *PLAIN])
def test_a_format_is_asked_for_in_any_providers_words(settings):
    asks = settings in ASKING
    assert asks_for_format(FIRST, None, settings) is asks
    assert asks_for_format(FIRST.bind(**settings).with_retry(), None, {}) is asks
    assert asks_for_format(Provided(model_kwargs=settings), None, {}) is asks
    assert asks_for_format(Provided().with_fallbacks([Provided(extra_body=settings)]), None, {}) is asks
    assert asks_for_format(Provided(), None, {"extra_body": settings}) is asks


@pytest.mark.parametrize("fields", [
    {"format": "json"}, {"response_mime_type": "application/json"}, {"output_config": {"format": SHAPE}},
])  # fmt: skip
def test_a_format_is_seen_in_the_constructor_until_the_call_replaces_it(fields):
    model = Provided(**fields)
    assert asks_for_format(model, None, {})
    if "output_config" in fields:  # of which langchain-anthropic replaces what the call has
        assert asks_for_format(model, None, {"output_config": {"effort": "low"}})
    assert not asks_for_format(model, None, {"output_config": {"format": None}, "format": "", "response_mime_type": ""})


@pytest.mark.parametrize("name", ["tools", "functions"])
def test_tools_are_seen_in_model_kwargs(name):
    model = Provided(model_kwargs={name: TOOLS})
    assert offers_tools(model, None, {})
    assert not offers_tools(model, None, {name: []})
    assert offers_tools(Provided(extra_body={name: TOOLS}), None, {})


@pytest.mark.parametrize("name", ["tool_config", "toolConfig", "additional_model_request_fields"])
def test_tools_are_seen_in_what_bedrock_takes_them_in(name):
    assert offers_tools(Provided(), None, {name: {"tools": TOOLS}})
    assert offers_tools(Provided(model_kwargs={name: {"tools": TOOLS}}), None, {})
    assert not offers_tools(Provided(), None, {name: {"function_calling_config": {"mode": "NONE"}}})


async def test_an_untraced_call_is_counted_by_no_callback_and_hands_on_no_keyword_for_tracers():
    with get_usage_metadata_callback() as usage:
        model = Untraced(FIRST)
        assert len(model.invoke("x", structured_output_format={}).text) == 2
        assert len((await model.ainvoke("x", ls_structured_output_format={})).text) == 2
    assert usage.usage_metadata == {}


class WithoutRuns(MarkovChatModel):
    """Takes no run manager."""

    def _generate(self, messages, stop=None, **kwargs):
        assert "run_manager" not in kwargs
        return super()._generate(messages, stop)


class Counted(MarkovChatModel):
    """Does what LangChain's own method does, and counts it."""

    calls: int = 0

    def _generate_with_cache(self, messages, **kwargs):
        self.calls += 1
        return super()._generate_with_cache(messages, **kwargs)


async def test_an_untraced_call_does_what_langchain_does_in_a_call_of_the_model():
    for model in (FIRST, WithoutRuns(length=2), counted := Counted(length=2)):
        assert len(Untraced(model).invoke("x").text) == 2
    assert len((await Untraced(FIRST).ainvoke("x")).text) == 2
    assert counted.calls == 1


def test_the_signature_of_a_model_is_read_once_for_all_untraced_calls(monkeypatch):
    read, signature = [], inspect.signature
    model = Untraced(FIRST)
    model.invoke("x")
    monkeypatch.setattr(inspect, "_signature_from_function", lambda *a, **k: read.append(a) or signature(*a, **k))
    model.invoke("x")
    assert read == []


def test_an_untraced_call_finds_what_is_put_in_place_of_langchains_method_later(monkeypatch):
    calls, whole = [], BaseChatModel._generate_with_cache
    monkeypatch.setattr(
        BaseChatModel, "_generate_with_cache", lambda *args, **kwargs: calls.append(args) or whole(*args, **kwargs)
    )
    assert len(Untraced(FIRST).invoke("x").text) == 2
    assert len(calls) == 1


def test_a_signature_that_cannot_be_read_is_left_to_langchain(monkeypatch):
    def unreadable(method):  # as from Python 3.14 on, for annotations that only type checkers know
        raise NameError(method)

    monkeypatch.setattr(unwrapping, "inspect", SimpleNamespace(signature=unreadable))
    assert len(Untraced(FIRST).invoke("x").text) == 2
