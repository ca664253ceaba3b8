"""Both chat models take the same settings, refuse the same ones, and count tokens in the same way."""

import pytest

from llm_auction_chain import ChatTransformers, ChatVLLM
from llm_auction_chain.errors import ConfigurationError

BOTH = pytest.mark.parametrize("kind", [ChatTransformers, ChatVLLM])


@BOTH
@pytest.mark.parametrize(("name", "value"), [("max_tokens", "4"), ("temperature", -1), ("top_p", 0), ("stop", [1])])
def test_a_setting_that_cannot_be_sampled_with_is_named(kind, name, value):
    with pytest.raises(ConfigurationError, match=f"^{name} must be"):
        kind(**{name: value})


@BOTH
def test_a_misspelled_setting_is_named(kind):
    with pytest.raises(ConfigurationError, match=rf"^{kind.__name__} has no setting 'best_of'\."):
        kind(best_of=3)


@BOTH
def test_a_field_of_langchain_of_the_wrong_type_is_named(kind):
    with pytest.raises(ConfigurationError, match=r"^tags\b"):
        kind(tags=3)


@BOTH
def test_one_stop_string_is_a_list_of_one(kind):
    assert kind(stop="END").stop == kind(stop_sequences=["END"]).stop == ["END"]


@BOTH
def test_none_in_a_call_leaves_the_field(kind):
    settings = kind(temperature=0.5, seed=3)._settings(None, None, 1, {"temperature": None, "top_k": 7})
    assert (settings["temperature"], settings["top_k"], settings["seed"]) == (0.5, 7, 3)


@BOTH
def test_a_keyword_that_changes_no_reply_is_refused(kind):
    with pytest.raises(ConfigurationError, match=r"takes no keyword tools in a call\. It draws text, without tools"):
        kind()._settings(None, None, 1, {"tools": [], "stream": False})


@BOTH
@pytest.mark.parametrize(
    "value", [5, ["thinking"], {"messages": []}, {"tokenize": False}, {"x": object()}, {"x": float("nan")}]
)
def test_variables_that_no_chat_template_can_get_are_named(kind, value):
    with pytest.raises(ConfigurationError, match=r"^chat_template_kwargs must be a mapping"):
        kind(chat_template_kwargs=value)


@BOTH
@pytest.mark.parametrize("use", ["bind_tools", "with_structured_output"])
def test_tools_are_refused_in_words(kind, use):
    with pytest.raises(NotImplementedError, match=rf"{kind.__name__} has no tools; give a model that can call them"):
        getattr(kind(), use)([] if use == "bind_tools" else {"title": "Person", "type": "object"})
