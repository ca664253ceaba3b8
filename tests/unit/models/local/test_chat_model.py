"""The chat model keeps LangChain's promises and its own: n replies, one request, one seed."""

import subprocess
import sys

import pytest
import torch
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage, trim_messages
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llm_auction_chain import ChatAuction
from llm_auction_chain.errors import ConfigurationError, PromptError
from llm_auction_chain.models.local.chat_model import ChatTransformers
from llm_auction_chain.models.local.weights import embedded_model_path

HELLO = [HumanMessage("Name three fruits.")]


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """A random model with the embedded model's tokens and template: it replies at once."""
    path = tmp_path_factory.mktemp("models") / "random"
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path())
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(**layers, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    LlamaForCausalLM(config).save_pretrained(path)
    return ChatTransformers(model=str(path), max_tokens=8, seed=4, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def embedded():
    return ChatTransformers(max_tokens=2, seed=4, dtype="float32", device="cpu")


def test_importing_and_building_loads_neither_torch_nor_transformers():
    code = (
        "import sys; from llm_auction_chain.models.local.chat_model import ChatTransformers; ChatTransformers();"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603  our own code


def test_the_same_seed_gives_the_same_replies(chat):
    texts = [[each.text for each in chat._generate(HELLO, n=3).generations] for _ in range(2)]
    assert texts[0] == texts[1]
    assert [each.text for each in chat._generate(HELLO, n=3, seed=5).generations] != texts[0]
    assert chat.invoke(HELLO).text == texts[0][0]


def test_without_a_seed_every_request_draws_anew(chat):
    free = chat.model_copy(update={"seed": None})
    assert len({free.invoke(HELLO).text for _ in range(3)}) > 1


def test_the_first_generation_carries_the_usage_of_the_whole_request(chat):
    result = chat._generate(HELLO, n=3)
    first, *others = (generation.message for generation in result.generations)
    usage = first.usage_metadata
    assert usage["output_tokens"] == 24
    assert usage["total_tokens"] == usage["input_tokens"] + 24
    assert [other.usage_metadata for other in others] == [None, None]
    assert result.llm_output == {"model_name": chat.model, "token_usage": usage}
    for message in (first, *others):
        assert message.response_metadata["model_name"] == chat.model
        assert message.response_metadata["finish_reason"] == "length"


def test_usage_adds_up_over_prompts(chat):
    output = chat.generate([HELLO, HELLO], n=2, max_tokens=2).llm_output
    one = chat._generate(HELLO, n=2, max_tokens=2).llm_output["token_usage"]
    assert output["token_usage"]["total_tokens"] == 2 * one["total_tokens"]


def test_a_stream_joins_into_the_reply(chat):
    chunks = list(chat.stream(HELLO))
    assert len(chunks) > 3
    whole = sum(chunks[1:], chunks[0])
    reply = chat.invoke(HELLO)
    assert whole.text == reply.text
    assert whole.usage_metadata == reply.usage_metadata
    assert whole.response_metadata["finish_reason"] == "length"
    assert [chunk.chunk_position for chunk in chunks] == [None] * (len(chunks) - 1) + ["last"]


def test_a_stream_tells_the_callbacks(chat):
    class Heard(BaseCallbackHandler):
        tokens: list[str] = []  # noqa: RUF012

        def on_llm_new_token(self, token, **kwargs):
            self.tokens.append(token)

    heard = Heard()
    text = "".join(chunk.text for chunk in chat.stream(HELLO, config={"callbacks": [heard]}))
    assert "".join(heard.tokens) == text


async def test_async_agrees_with_sync(chat):
    assert (await chat.ainvoke(HELLO)).text == chat.invoke(HELLO).text
    assert "".join([chunk.text async for chunk in chat.astream(HELLO)]) == chat.invoke(HELLO).text


def test_a_call_overrides_the_fields(chat):
    reply = chat.invoke(HELLO, temperature=0, max_tokens=3, top_p=0.9, top_k=5, seed=9)
    assert reply.usage_metadata["output_tokens"] == 3
    assert reply.text == chat.invoke(HELLO, temperature=0, max_tokens=3).text


def test_a_stop_string_cuts_the_reply(chat):
    whole = chat.invoke(HELLO, temperature=0).text
    string = whole[5:8]
    cut = chat.invoke(HELLO, temperature=0, stop=[string])
    assert cut.text == whole[: whole.index(string)]
    assert cut.response_metadata["finish_reason"] == "stop"
    by_field = ChatTransformers(
        model=chat.model, max_tokens=8, temperature=0, stop_sequences=[string], dtype="float32", device="cpu"
    )
    assert by_field.invoke(HELLO).text == cut.text
    assert "".join(chunk.text for chunk in by_field.stream(HELLO)) == cut.text
    assert by_field._get_ls_params()["ls_stop"] == [string]


def test_progress_reaches_n(chat):
    seen = []
    chat._generate(HELLO, n=3, progress=lambda *told: seen.append(told), max_tokens=2)
    assert seen[-1][:2] == (3, 3)
    assert seen[-1][2] > 0


def test_every_role_but_tool_is_read(chat):
    turns = [SystemMessage("Be brief."), *HELLO, AIMessage("Apple."), HumanMessage([{"type": "text", "text": "More."}])]
    assert chat.invoke(turns, max_tokens=2).usage_metadata["input_tokens"] > 20
    with pytest.raises(ConfigurationError, match="a tool message"):
        chat.invoke([*HELLO, ToolMessage("x", tool_call_id="1")])
    with pytest.raises(ConfigurationError, match="calls tools"):
        chat.invoke([*HELLO, AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}])])
    with pytest.raises(ConfigurationError, match="image_url"):
        chat.invoke([HumanMessage([{"type": "image_url", "image_url": {"url": "data:,"}}])])
    with pytest.raises(PromptError, match="nothing to reply to"):
        chat._generate([])


def test_tokens_are_counted_by_the_models_own_tokenizer(chat):
    auction = ChatAuction(model=chat)
    for counter in (chat, auction):
        assert counter.get_token_ids("Hello there, how are you?") == [19556, 665, 28, 638, 359, 346, 47]
        assert counter.get_num_tokens("Hello there, how are you?") == 7
        read = chat.invoke(HELLO, max_tokens=1).usage_metadata["input_tokens"]
        assert counter.get_num_tokens_from_messages(HELLO) == read
        long = [HumanMessage("word " * 5000), AIMessage("b"), *HELLO]
        assert trim_messages(long, max_tokens=60, token_counter=counter) == long[1:]


def test_messages_that_the_model_cannot_read_are_counted_as_texts(chat):
    tool = [AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}]), ToolMessage("12", tool_call_id="1")]
    assert chat.get_num_tokens_from_messages(tool) > 5
    assert chat.get_num_tokens_from_messages([]) == 0
    own = ChatTransformers(custom_get_token_ids=lambda text: [0] * len(text))
    assert (own.get_num_tokens("four"), own.get_num_tokens_from_messages([HumanMessage("Hi")])) == (4, len("Human: Hi"))


BAD = [
    ("temperature", -0.1),
    ("temperature", float("nan")),
    ("top_p", 0.0),
    ("top_p", 1.1),
    ("max_tokens", 0),
    ("top_k", -1),
    ("seed", -1),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_setting_is_named(chat, name, value):
    with pytest.raises(ConfigurationError, match=f"^{name} must be"):
        ChatTransformers(**{name: value})
    with pytest.raises(ConfigurationError, match=f"^{name} must be"):
        chat.invoke(HELLO, **{name: value})


@pytest.mark.parametrize(("name", "value"), [
    ("temperature", "hot"), ("top_p", "most"), ("max_tokens", "x"), ("max_tokens", 2.5), ("top_k", []), ("seed", "s"),
    ("stop", 5),
])  # fmt: skip
def test_a_setting_of_the_wrong_type_is_named(chat, name, value):
    with pytest.raises(ConfigurationError, match=f"^{name} must be"):
        ChatTransformers(**{name: value})
    with pytest.raises(ConfigurationError, match=f"^{name} must be"):
        chat.invoke(HELLO, **{name: value})
    with pytest.raises(ConfigurationError, match=f"^{name} must be"):
        list(chat.stream(HELLO, **{name: value}))


@pytest.mark.parametrize(("name", "value"), [
    ("max_tokens", None), ("stop", [1]), ("model", 3), ("dtype", 16), ("max_cached_tokens", -1),
])  # fmt: skip
def test_a_field_of_the_wrong_type_is_named(name, value):
    with pytest.raises(ConfigurationError, match=rf"^{name} must be"):
        ChatTransformers(**{name: value})


def test_a_setting_that_there_is_not_is_named():
    with pytest.raises(ConfigurationError, match=r"^ChatTransformers has no setting 'best_of'\."):
        ChatTransformers(best_of=3)


def test_none_in_a_call_leaves_the_field(chat):
    names = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop")
    assert chat.invoke(HELLO, **dict.fromkeys(names)).text == chat.invoke(HELLO).text


def test_one_stop_string_is_a_list_of_one(chat):
    whole = chat.invoke(HELLO, temperature=0).text
    string = whole[5:8]
    assert chat.invoke(HELLO, temperature=0, stop=string).text == whole[: whole.index(string)]
    assert ChatTransformers(stop=string).stop == [string]
    assert chat._get_ls_params(stop=string)["ls_stop"] == [string]


def test_a_bad_n_is_named(chat):
    for n in ("2", None, True, 1.5):
        with pytest.raises(ConfigurationError, match=f"^n must be .*, got {n!r}"):
            chat.invoke(HELLO, n=n)
    with pytest.raises(ConfigurationError, match=r"^n must be a whole number of at least 1, got 0"):
        chat._generate(HELLO, n=0)
    with pytest.raises(ConfigurationError, match=r"^n must be 1, because a stream carries one reply, got 2"):
        list(chat._stream(HELLO, n=2))


def test_an_unknown_argument_is_named(chat):
    with pytest.raises(ConfigurationError, match="takes no keyword best_of in a call"):
        chat.invoke(HELLO, best_of=3)


def test_langchain_knows_what_it_talks_to(embedded):
    assert embedded._llm_type == "chat-transformers"
    assert embedded._identifying_params["model"] == "SmolLM2-135M-Instruct"
    assert embedded.invoke(HELLO).response_metadata["model_name"] == "SmolLM2-135M-Instruct"
    params = embedded._get_ls_params(stop=["x"], temperature=0.5)
    assert params["ls_provider"] == "transformers"
    assert params["ls_temperature"] == 0.5
    assert params["ls_stop"] == ["x"]
    assert ChatTransformers.native_n
