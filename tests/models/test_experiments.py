"""Every experiment on a model that does not say how likely its replies are."""

import json
import random
from itertools import count

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from llm_auction_chain.errors import AuctionWarning
from llm_auction_chain.experiments import EXPERIMENTS, builtin_questions, run
from llm_auction_chain.experiments.study import experiment_of

COUNT = count()


class Plain(GenericFakeChatModel):
    """A chat model that says nothing of probabilities: its replies are words that sponsors pay for."""

    def _generate(self, *args, **kwargs):
        words = [phrase for sponsor in builtin_questions(limit=1)[0].sponsors for phrase in sponsor.phrases]
        text = " ".join(random.Random(next(COUNT)).sample(words, 5))
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "proposals"])  # it compares what needs logits
def test_every_experiment_runs_on_any_chat_model(name):
    config = experiment_of(name).config.changed(**{**experiment_of(name).quick, "n_questions": 1, "taus": (0.5, 1.0)})
    with pytest.warns(AuctionWarning, match="Plain does not expose what these need, so they are left out: .*log_ratio"):
        study = run(config, model=Plain(messages=iter([])))
    assert study.config.families == ("mentions",)
    summary = study.summary()
    assert json.loads(summary.json_line)["experiment"] == name
    assert summary.findings.tables
