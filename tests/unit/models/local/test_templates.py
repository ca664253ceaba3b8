"""A model reads all that a conversation says, as text or as blocks; what its template would drop is refused."""

import pytest
from langchain_core.messages import HumanMessage
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from llm_auction_chain import ChatTransformers
from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.models.local.engine import Engine
from llm_auction_chain.models.local.templates import as_lines, templated
from tests.families import build, words

TEXT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
BLOCKS = (
    "{% for m in messages %}[{{ m['role'] }}]{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}"
    "{% endif %}{% endfor %}{% endfor %}[assistant]"
)
EITHER = (
    "{% for m in messages %}[{{ m['role'] }}]{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}<{{ c['text'] }}>{% endfor %}{% endif %}{% endfor %}[assistant]"
)
BOTH = (  # the system's as text, the user's as blocks
    "{% for m in messages %}[{{ m['role'] }}]{% if m['role'] == 'system' %}{{ m['content'] + '' }}{% else %}"
    "{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endif %}{% endfor %}[assistant]"
)
FIRST_BLOCK = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'][0]['text'] + '' }}{% endfor %}[assistant]"
THINKS = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'].split('</think>')[-1] }}{% endfor %}[assistant]"
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] != 'system' %}[{{ m['role'] }}]{{ m['content'] }}{% endif %}{% endfor %}"
)
LAST = "{{ messages[-1]['content'] }}"
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TEXT
WRONG = "{{ messages[0]['role'] + 1 }}"
HI = HumanMessage("Hi")
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " How? "},
    {"role": "assistant", "content": "<think>Hm.</think>So."},
    {"role": "user", "content": ""},
]


@pytest.fixture
def letters():
    """A tokenizer of letters, which puts <s> before a text and </s> behind it."""

    def make(template=None):
        marks = ["<s>", "</s>", "<unk>"]
        letters = Tokenizer(models.BPE({token: k for k, token in enumerate([*marks, *map(chr, range(32, 127))])}, []))
        letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        special = [("<s>", 0), ("</s>", 1)]
        letters.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=special)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="</s>", unk_token="<unk>")  # noqa: S106
        tokenizer.chat_template = template
        return tokenizer

    return make


def read(tokenizer, turns=TALK, **variables):
    ids = templated(tokenizer, turns, add_generation_prompt=True, **variables)
    return "".join(tokenizer.convert_ids_to_tokens(ids))


@pytest.mark.parametrize("template", [TEXT, BLOCKS, EITHER, BOTH, FIRST_BLOCK, THINKS])
def test_all_that_is_said_is_read_as_text_or_as_blocks(letters, template):
    shown = read(letters(template))
    assert "Be brief." in shown
    assert "How?" in shown
    assert "So." in shown
    assert "[system]" in shown
    assert not set("{}<") & set(shown.replace("<think>", "").replace("</think>", ""))


@pytest.mark.parametrize("case", ["upper", "capitalize", "title"])
def test_a_template_may_change_the_case_of_letters(letters, case):
    assert read(letters(TEXT.replace("trim", case)), TALK[:1]) == f"[system]{getattr('Be brief.', case)()}[assistant]"


@pytest.mark.parametrize(("template", "role"), [(NO_SYSTEM, "system"), (LAST, "system")])
def test_a_template_that_would_drop_a_message_is_refused(letters, template, role):
    with pytest.raises(ConfigurationError, match=f"leaves out what the {role} says"):
        read(letters(template))
    assert "How?" in read(letters(template), TALK[1:2])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (REFUSES, "refuses .*: System role not supported"),
        (WRONG, "refuses .*: can only concatenate"),
        ("{% if", "refuses"),
    ],
)
def test_whatever_a_template_raises_is_ours(letters, template, message):
    with pytest.raises(ConfigurationError, match=message):
        read(letters(template))


def test_templates_with_names_and_no_default_are_refused(letters):
    with pytest.raises(ConfigurationError, match="multiple chat templates with no default"):
        read(letters({"rag": TEXT, "tool_use": TEXT}))


def test_a_template_gets_its_variables(letters):
    thinking = TEXT + "{% if enable_thinking is defined and enable_thinking is false %}nothink{% endif %}"
    assert not read(letters(thinking)).endswith("nothink")
    assert read(letters(thinking), enable_thinking=False).endswith("[assistant]nothink")


def test_a_model_passes_on_the_variables_of_its_template(seven_words, monkeypatch):
    template = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if quiet is defined %}no{% endif %}"
    plain = ChatTransformers(model=seven_words, dtype="float32", max_tokens=2, seed=1)
    monkeypatch.setattr(plain._engine().tokenizer, "chat_template", template)
    quiet = ChatTransformers(
        model=seven_words, dtype="float32", max_tokens=2, seed=1, chat_template_kwargs={"quiet": True}
    )
    counts = [chat.invoke("Hi").usage_metadata["input_tokens"] for chat in (plain, quiet)]
    assert counts == [1, 2]
    assert "".join(chunk.text for chunk in quiet.stream("Hi")) == quiet.invoke("Hi").text
    (reply,) = quiet._generate([HI], logprobs=True).generations
    own = sum(reply.message.response_metadata["logprobs"]["token_logprobs"])
    assert quiet.score([HI], [reply.message]) == pytest.approx([own], abs=1e-4)
    assert plain.score([HI], [reply.message]) != pytest.approx([own], abs=1e-3)


def test_a_prompt_without_a_template_does_not_end_with_the_end_token(letters):
    tokenizer = letters()
    assert tokenizer("Hi")["input_ids"][-1] == tokenizer.eos_token_id
    ids = as_lines(tokenizer, TALK[1:2])
    assert "".join(tokenizer.convert_ids_to_tokens(ids)) == "<s>user:  How? assistant:"


def test_a_token_that_the_model_does_not_know_is_named():
    tokenizer = words()
    tokenizer.add_tokens(["<|turn|>"], special_tokens=True)
    engine = Engine(build("llama"), tokenizer)
    with pytest.raises(ConfigurationError, match=r"writes '<\|turn\|>' as number 60, and the model knows 60 tokens"):
        engine.encode([{"role": "user", "content": "<|turn|>"}])
