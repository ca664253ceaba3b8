"""ChatVLLM keeps the laws of scorers, over a real HTTP server that speaks for an exactly solvable model."""

import math
import threading

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from llm_auction_chain import ChatVLLM
from llm_auction_chain.testing import MarkovChatModel, ScorerConformance
from tests.unit.models.vllm.test_chat_model import ScriptedVLLM, prompt_of

MARKOV = MarkovChatModel(tilts={"TuneTown": (0.0, 2.0, -1.0)})
END = 3  # behind the three words of the vocabulary; every reply ends with it
SHIFT = 1000  # what tells a token of the reply from a letter of the prompt


class MarkovVLLM(ScriptedVLLM):
    """Draws and scores as vLLM does, token by token, by the laws of the Markov model."""

    def chat(self, body):
        prompt = [HumanMessage("".join(map(chr, prompt_of(body))))]
        settings = {"n": body["n"], "seed": body["seed"], "logprobs": True}
        replies = [one.message for one in MARKOV.generate([prompt], **settings).generations[0]]
        choices = []
        for k, reply in enumerate(replies):
            ids = [SHIFT + MARKOV.vocabulary.index(letter) for letter in reply.text] + [SHIFT + END]
            log_probs = [*reply.response_metadata["logprobs"]["token_logprobs"], 0.0]
            content = [{"token": t, "logprob": p} for t, p in zip([*reply.text, "<|im_end|>"], log_probs, strict=True)]
            choices.append({
                "index": k, "message": {"content": reply.text}, "finish_reason": "stop", "stop_reason": None,
                "token_ids": ids, "logprobs": {"content": content},
            })  # fmt: skip
        usage = {"prompt_tokens": len(prompt_of(body)), "completion_tokens": sum(len(c["token_ids"]) for c in choices)}
        return 200, {"choices": choices, "usage": usage, "prompt_token_ids": prompt_of(body)}

    def complete(self, body):
        return 200, {"choices": [{"index": k, "prompt_logprobs": scored(ids)} for k, ids in enumerate(body["prompt"])]}


def scored(ids):
    """Return what vLLM says of a prompt's tokens; the laws of the reply's depend on the letters before them."""
    start = next(k for k, token in enumerate(ids) if token >= SHIFT)
    first, following = MARKOV.log_probabilities([[HumanMessage("".join(map(chr, ids[:start])))]])
    entries = [None, *({str(token): {"logprob": -1.0}} for token in ids[1:start])]
    last = None
    for token in (token - SHIFT for token in ids[start:]):
        ends = token == END
        log_p = (0.0 if ends else -9999.0) if last is not None and len(entries) - start == MARKOV.length else None
        if log_p is None:
            log_p = -9999.0 if ends else float((first if last is None else following[last])[token])
        entries.append({str(token + SHIFT): {"logprob": log_p}})
        last = token
    return entries


class TestChatVLLM(ScorerConformance):
    @pytest.fixture(autouse=True)
    def _server(self):
        with MarkovVLLM() as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            self.model = ChatVLLM(base_url=server.url, seed=6)
            yield
            server.shutdown()
            thread.join()

    def scorer(self):
        return self.model

    def prompts(self):
        return [HumanMessage("Hi")], [SystemMessage("TuneTown sells guitars."), HumanMessage("Hi")]

    def every_reply(self):
        return [reply(text) for text in MARKOV.enumerate()]

    def draw(self, prompt, n):
        return [one.message for one in self.model.generate([prompt], n=n, logprobs=True).generations[0]]


def reply(text):
    ids = [SHIFT + MARKOV.vocabulary.index(letter) for letter in text] + [SHIFT + END]
    log_probs = {"token_ids": ids, "token_logprobs": [-math.log(2)] * len(ids), "basis": "sampler", "complete": True}
    return AIMessage(text, response_metadata={"model_name": "smol", "logprobs": log_probs})
