"""An experiment on a real vLLM server: what it scores, it weighs; what it cannot do is left out."""

import numpy as np
import pytest

from llm_auction_chain.errors import AuctionWarning
from llm_auction_chain.experiments import ExperimentConfig, run
from llm_auction_chain.models.vllm.chat_model import ChatVLLM


def test_an_experiment_measures_what_a_server_can_do(server, tmp_path):
    config = ExperimentConfig(experiment="convergence", n_questions=1, draws=4, n_candidates=(1, 4))
    with pytest.warns(AuctionWarning, match="ChatVLLM does not expose .*: product, strength 1/4"):
        study = run(config, model=ChatVLLM(base_url=server.url, max_tokens=8), out=tmp_path)
    ((pool,),) = study.units
    assert study.config.proposals == ("reference", "context prompt")
    assert pool.shares["context prompt"][:2].tolist() == [0.0, 1.0]
    assert np.isfinite(pool.log_probs).all()
    assert pool.log_probs.shape == (2 + len(pool.own), pool.counts.sum())
    assert [table.title.split(":")[0] for table in study.summary().findings.tables][1:] == ["The model's replies"] * 2
    again = run(study.config, model=ChatVLLM(base_url=server.url, max_tokens=8), out=tmp_path)
    assert (again.cost.measured, again.cost.reused) == (1, 1)
