"""What `ChatTransformers` does where LangChain would rather have a stream than a whole reply."""

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumpd

from llm_auction_chain import ChatAuction, ChatTransformers


class Hears(BaseCallbackHandler):
    def __init__(self):
        self.pieces = []

    def on_llm_new_token(self, token, **kwargs):
        self.pieces.append(token)


@pytest.fixture(scope="module")
def settings(seven_words):
    return {"model": seven_words, "dtype": "float32", "device": "cpu", "max_tokens": 12, "seed": 2}


@pytest.mark.parametrize("streaming", [False, True])
def test_callbacks_hear_the_pieces_of_a_reply_where_streaming_is_set(settings, streaming):
    heard = Hears()
    reply = ChatTransformers(**settings, streaming=streaming).invoke("Hi", {"callbacks": [heard]})
    assert (len(heard.pieces) > 1) == streaming
    assert "".join(heard.pieces) == (reply.text if streaming else "")
    assert reply.text == ChatTransformers(**settings).invoke("Hi").text


async def test_log_probabilities_come_under_a_stream_of_events_too(settings):
    """They are of whole replies, so that such a call is not made a stream."""
    model = ChatTransformers(**settings)
    events = [event async for event in model.astream_events("Hi", version="v2", logprobs=True)]
    reply = events[-1]["data"]["output"]
    assert reply.text == model.invoke("Hi").text
    assert reply.response_metadata["logprobs"] == model.invoke("Hi", logprobs=True).response_metadata["logprobs"]


def test_an_auction_over_it_is_serialised_with_it(settings):
    dumped = dumpd(ChatAuction(model=ChatTransformers(**settings)))
    assert dumped["kwargs"]["model"]["type"] == "constructor"
    assert dumped["kwargs"]["model"]["kwargs"]["model"] == settings["model"]
