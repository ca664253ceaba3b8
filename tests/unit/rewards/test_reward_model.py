"""A reward model rates a reply as if it were alone, reads all of it, and must have been trained to rate."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from llm_auction_chain import ConfigurationError, ContextWindowError, PromptError, RewardError
from llm_auction_chain.models.local.classifier import RewardModel
from llm_auction_chain.rewards.reward_model import RewardModelReward

WORDS = [
    "[PAD]",
    "[CLS]",
    "[SEP]",
    "[UNK]",
    "<s>",
    "</s>",
    "user",
    "assistant",
    ":",
    "guitar",
    "lessons",
    "are",
    "great",
    "fun",
    "Hi",
]
PROMPT = [HumanMessage("guitar lessons ?")]
REPLIES = [AIMessage(text) for text in ("guitar", "great", "lessons are great fun", "Hi guitar lessons are fun", "fun")]
WINDOW = 40
SIZES = {
    "vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": WINDOW, "initializer_range": 0.6, "num_labels": 1,
}  # fmt: skip
TEMPLATE = (
    "<s> {% for turn in messages %}{{ turn.role + ' : ' + turn.content + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
GPT = {"vocab_size": len(WORDS), "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": WINDOW,
       "initializer_range": 0.6, "bos_token_id": 4, "eos_token_id": 5}  # fmt: skip
XLNET = {"vocab_size": len(WORDS), "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32, "initializer_range": 0.6}
MAKE = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**SIZES)),
    "llama": lambda: LlamaForSequenceClassification(LlamaConfig(**SIZES)),
    "llama that pads": lambda: LlamaForSequenceClassification(LlamaConfig(**SIZES, pad_token_id=0)),
    "gpt": lambda: GPT2ForSequenceClassification(GPT2Config(**GPT, num_labels=3, pad_token_id=0)),
    "xlnet": lambda: XLNetForSequenceClassification(XLNetConfig(**XLNET, num_labels=1, pad_token_id=0)),
    "base": lambda: LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_labels": 2})),
}
CLASSIFIERS = sorted(MAKE.keys() - {"base"})


def tokenizer_for(kind):
    words = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="[UNK]"))  # noqa: S106
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "[UNK]", "bos_token": "<s>", "eos_token": "</s>"}
    if kind != "bert":
        template = TEMPLATE if kind.startswith("llama") else None
        return PreTrainedTokenizerFast(tokenizer_object=words, chat_template=template, **special)
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", model_input_names=names, **special)  # noqa: S106


def save(kind, folder, change=None):
    torch.manual_seed(5)
    model = MAKE[kind]()
    if change:
        change(model)
    model.save_pretrained(folder)
    tokenizer_for(kind).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folders of random reward models, by kind."""
    return {kind: save(kind, tmp_path_factory.mktemp("model")) for kind in MAKE}


def reward(folder, **settings):
    return RewardModelReward(folder, **{"dtype": "float32", "device": "cpu", **settings})


def logits(folder, prompt=PROMPT, replies=REPLIES, **settings):
    return reward(folder, squash="none", **settings).score(prompt, replies)


def label_of(kind):
    return 2 if kind == "gpt" else None


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_reply_is_rated_as_if_it_were_alone(saved, kind):
    together = logits(saved[kind], label=label_of(kind))
    alone = [logits(saved[kind], replies=[reply], label=label_of(kind))[0] for reply in REPLIES]
    one_by_one = logits(saved[kind], label=label_of(kind), max_batch_tokens=1)
    assert together == pytest.approx(alone, abs=1e-5)
    assert together == pytest.approx(one_by_one, abs=1e-5)
    assert max(together) - min(together) > 0.1


def test_models_that_can_share_a_padded_pass_do(saved):
    shares = {kind: RewardModel.load(saved[kind], "float32", "cpu")._pads for kind in CLASSIFIERS}
    assert shares == {"bert": True, "gpt": True, "llama": False, "llama that pads": True, "xlnet": False}


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_what_is_read_is_the_pair_or_the_chat_template(saved, kind):
    """Word for word, against transformers alone."""
    model = AutoModelForSequenceClassification.from_pretrained(saved[kind]).eval()
    tokenizer = AutoTokenizer.from_pretrained(saved[kind])
    texts = {
        "bert": "[CLS] guitar lessons ? [SEP] lessons are great fun [SEP]",
        "llama": "<s> user : guitar lessons ? </s> assistant : lessons are great fun </s>",
    }
    ids = tokenizer(texts[kind], add_special_tokens=False, return_tensors="pt")["input_ids"]
    types = {"token_type_ids": torch.tensor([[0] * 5 + [1] * 5])} if kind == "bert" else {}
    with torch.inference_mode():
        expected = model(input_ids=ids, **types).logits.item()
    assert logits(saved[kind], replies=REPLIES[2:3]) == pytest.approx([expected], abs=1e-5)


def test_texts_without_a_separator_are_lines(saved):
    scorer = RewardModel.load(saved["gpt"], "float32", "cpu")
    turns = [{"role": "system", "content": "Hi"}, {"role": "user", "content": "guitar"}]
    assert scorer.tokenizer.decode(scorer._encode(turns, "great")["input_ids"]).split() == [
        "[UNK]", "Hi", "[UNK]", "guitar", "great",
    ]  # fmt: skip


def test_the_worth_is_the_logit_or_its_sigmoid(saved):
    raw = logits(saved["bert"], value=2.0)
    assert reward(saved["bert"], value=3.0).score(PROMPT, REPLIES) == pytest.approx(
        (3.0 * torch.sigmoid(torch.tensor(raw) / 2.0)).tolist(), abs=1e-5
    )
    assert reward(saved["bert"]).score(PROMPT, []) == []


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt"])
def test_of_a_prompt_too_long_the_beginning_is_left_out_and_of_a_reply_nothing(saved, kind):
    one, other = ([HumanMessage("fun " * times + "guitar " * WINDOW)] for times in (1, 9))
    settings = {"label": label_of(kind)}
    assert logits(saved[kind], one, **settings) == pytest.approx(logits(saved[kind], other, **settings), abs=1e-5)
    ends = [AIMessage("guitar " * (WINDOW - 10) + last) for last in ("great", "fun")]
    told = logits(saved[kind], one, ends, **settings)
    assert abs(told[0] - told[1]) > 1e-3
    with pytest.raises(ContextWindowError, match="a shorter reply"):
        logits(saved[kind], PROMPT, [AIMessage("guitar " * WINDOW)], **settings)


def test_a_model_is_loaded_once_by_all_threads(saved):
    with ThreadPoolExecutor(4) as pool:
        models_loaded = list(pool.map(lambda _: RewardModel.load(saved["bert"], "float32", "cpu"), range(8)))
        told = list(pool.map(lambda _: logits(saved["bert"]), range(8)))
    assert len(set(map(id, models_loaded))) == 1
    assert all(each == pytest.approx(told[0], abs=1e-5) for each in told)


async def test_an_awaited_reward_is_the_same_and_a_cancelled_one_waits_for_nothing(saved):
    asked = reward(saved["bert"])
    assert not asked.awaits
    assert await asked.ascore(PROMPT, REPLIES) == pytest.approx(asked.score(PROMPT, REPLIES), abs=1e-6)
    with RewardModel.load(saved["bert"], "float32", "cpu")._turn:
        task = asyncio.create_task(asked.ascore(PROMPT, REPLIES))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)


def test_what_was_abandoned_takes_no_more_passes(saved):
    abandoned = threading.Event()
    abandoned.set()
    scorer = RewardModel.load(saved["bert"], "float32", "cpu")
    told = scorer.logits(
        [{"role": "user", "content": "Hi"}], ["fun"], label=None, max_batch_tokens=9, abandoned=abandoned
    )
    assert str(told) == "[nan]"


def test_a_model_that_was_not_trained_to_rate_is_refused(saved, tmp_path):
    with pytest.raises(ConfigurationError, match=r"a trained sequence classifier.*score\.weight"):
        logits(saved["base"])
    with pytest.raises(ConfigurationError, match="model must be a folder"):
        logits(str(tmp_path))
    with pytest.raises(ConfigurationError, match="dtype"):
        logits(saved["bert"], dtype="float8")


def test_of_several_labels_one_is_named(saved):
    assert logits(saved["gpt"], label=0) != pytest.approx(logits(saved["gpt"], label=1), abs=1e-3)
    for label in (None, 3):
        with pytest.raises(ConfigurationError, match=r"0 \(LABEL_0\), 1 \(LABEL_1\), 2 \(LABEL_2\)"):
            logits(saved["gpt"], label=label)


def test_a_logit_that_is_no_number_is_no_reward(tmp_path):
    folder = save("bert", tmp_path, change=lambda model: model.classifier.bias.data.fill_(torch.nan))
    with pytest.raises(RewardError, match="not finite"):
        logits(folder)


def test_what_a_reward_model_cannot_read_is_said(saved):
    calls = AIMessage("", tool_calls=[{"name": "buy", "args": {}, "id": "1"}])
    with pytest.raises(ConfigurationError, match="RewardModelReward reads"):
        logits(saved["bert"], replies=[calls])
    with pytest.raises(PromptError):
        logits(saved["bert"], prompt=[])
    strict = tokenizer_for("llama")
    strict.chat_template = "{{ raise_exception('no system') }}"
    scorer = RewardModel(MAKE["llama"]().eval(), strict)
    with pytest.raises(ConfigurationError, match="refuses"):
        scorer._encode([{"role": "system", "content": "Hi"}], "fun")
    assert len(logits(saved["bert"], [SystemMessage("Hi"), HumanMessage("\ud83d")], [AIMessage("\ud83d")])) == 1


def test_settings_that_rate_nothing_are_refused():
    for bad in ({"model": ""}, {"model": None}, {"value": "x"}, {"label": -1}, {"label": True}, {"squash": "tanh"},
                {"max_batch_tokens": 0}):  # fmt: skip
        with pytest.raises(ConfigurationError):
            RewardModelReward(**{"model": "m", **bad})
