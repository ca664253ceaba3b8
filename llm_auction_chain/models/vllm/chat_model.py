"""A LangChain chat model behind a vLLM server, which draws replies and says how likely they are."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, model_validator
from typing_extensions import override

from llm_auction_chain.candidates.logprobs import read_log_probs
from llm_auction_chain.errors import (
    CandidatesError,
    ConfigurationError,
    ContextWindowError,
    LogProbError,
    ScoringError,
)
from llm_auction_chain.messages import as_turns
from llm_auction_chain.models.vllm.client import Request, Server, Steps
from llm_auction_chain.models.vllm.responses import (
    is_plain,
    listed,
    read_replies,
    read_scores,
    read_usage,
    total_usage,
)

if TYPE_CHECKING:
    from langchain_core.messages.ai import UsageMetadata

__all__ = ["ChatVLLM"]

_SAMPLER = ("max_tokens", "temperature", "top_p", "top_k")
_CONNECTION = ("base_url", "timeout", "max_retries", "max_concurrency")
# What LangChain itself passes on for tracing and routing; it says nothing about the reply.
_LANGCHAIN = frozenset({"ls_structured_output_format", "structured_output_format", "stream"})


class ChatVLLM(BaseChatModel):
    """A chat model whose `n` replies are independent draws, made by a vLLM server in one request.

    The server's own sampling defaults never apply: every request says all of them. Replies drawn with `logprobs=True`
    carry their tokens and no watermark, and `score` says how likely the same model finds them under any other prompt.

    Attributes:
        base_url: where the server listens.
        model: a name it serves; None is the only one.
        api_key: what the server was given as `--api-key`.
        max_tokens: the most tokens of a reply; the server clips it to the model's window.
        temperature: 0 takes the likeliest token each time.
        top_p: nucleus truncation below 1.
        top_k: truncation to the likeliest tokens above 0.
        stop: strings before which a reply is cut.
        seed: None lets the server draw as it likes.
        timeout: seconds that the server may keep silent; a request is silent until all its replies are there.
        max_retries: how often a request is repeated that lost its connection, or found status 429, 500, 502 or 503.
        max_concurrency: requests of one call that are under way at the same time.

    Raises:
        ConfigurationError: a setting that cannot be sampled with; the message names the field.

    Example:
        >>> ChatVLLM(base_url="http://gpu-7:8000/v1", temperature=0.7).temperature
        0.7
    """

    model_config = ConfigDict(populate_by_name=True)

    native_n: ClassVar[bool] = True

    base_url: str = "http://127.0.0.1:8000/v1"
    model: str | None = None
    api_key: SecretStr | None = None
    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: list[str] | None = Field(default=None, alias="stop_sequences")
    seed: int | None = None
    timeout: float | None = 600.0
    max_retries: int = 2
    max_concurrency: int = 8

    # Shared by the copies that every auction makes, so that a server is asked once what it serves.
    _served: dict[tuple[str, str | None], str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        _check(**{name: getattr(self, name) for name in (*_SAMPLER, *_CONNECTION, "seed")})
        return self

    @property
    def _llm_type(self) -> str:
        return "chat-vllm"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("base_url", "model", *_SAMPLER, "stop", "seed")}

    @override
    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = LangSmithParams(
            ls_provider="vllm",
            ls_model_type="chat",
            ls_temperature=kwargs.get("temperature", self.temperature),
            ls_max_tokens=kwargs.get("max_tokens", self.max_tokens),
        )
        if name := self.model or self._served.get((self.base_url, None)):
            params["ls_model_name"] = name
        if strings := self.stop if stop is None else stop:
            params["ls_stop"] = strings
        return params

    @override
    def _combine_llm_outputs(self, llm_outputs: list[dict[str, Any] | None]) -> dict[str, Any]:
        outputs = [output for output in llm_outputs if output]
        usage = total_usage([output["token_usage"] for output in outputs])
        return {"model_name": outputs[0]["model_name"], "token_usage": usage} if outputs else {}

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        n: int = 1,
        seed: int | None = None,
        logprobs: bool = False,
        progress: Callable[[int, int], None] | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        """Draw `n` replies in one request, and in further ones where the server returns fewer.

        Args:
            messages: system, human and AI messages of text.
            stop: replaces the field of the same name.
            run_manager: unused; a whole request reports nothing on the way.
            n: how many replies.
            seed: replaces the field of the same name.
            logprobs: puts tokens and log-probabilities into `response_metadata["logprobs"]`. The server's are the
                model's or the sampler's, by its `--logprobs-mode`, and it does not say which: the basis is "sampler" at
                temperature 1 without truncation, where both are one, and else "unknown".
            progress: called with (finished, n) each time replies arrive.
            **kwargs: `max_tokens`, `temperature`, `top_p`, `top_k` replace the fields of the same names.

        Returns:
            `n` generations; the first message's usage is that of all requests, the others have none.

        Raises:
            CandidatesError: the server is unreachable or refuses; `__cause__` is httpx's own error.
            ConfigurationError: a setting or a message that cannot be sampled with.
            ContextWindowError: the prompt does not fit into the model's window, or with `logprobs` a reply does not.
            PromptError: there is no message.
            ScoringError: the server serves another model, or `logprobs` asks for tokens and it sends none, or none
                that could be scored.
        """
        settings = self._settings(stop, seed, n, kwargs)
        return self._server().run(self._draw(messages, settings, n, progress, tokens=logprobs), drawing=True)

    @override
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        *,
        n: int = 1,
        seed: int | None = None,
        logprobs: bool = False,
        progress: Callable[[int, int], None] | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        """Do as `_generate`, awaiting."""
        settings = self._settings(stop, seed, n, kwargs)
        return await self._server().arun(self._draw(messages, settings, n, progress, tokens=logprobs), drawing=True)

    def score(self, prompt: Sequence[BaseMessage], replies: Sequence[AIMessage], **kwargs: Any) -> list[float]:
        """Return `log pi(reply | prompt)` in nats, (M,), the end token included; `-inf` where the server says so.

        Args:
            prompt: system, human and AI messages of text.
            replies: M, drawn from this model with `logprobs=True`, so that their tokens are known.
            **kwargs: `temperature`, `top_p`, `top_k` replace the fields of the same names.

        Raises:
            ContextWindowError: prompt and reply do not fit into the model's window.
            LogProbError: a reply's tokens are unknown or another model's; or there is a temperature or truncation,
                under which the server cannot score.
            ScoringError: the server is unreachable, refuses, serves another model or lacks the feature.
        """
        return self._server().run(self._score(prompt, replies, self._settings(None, None, 1, kwargs)), drawing=False)

    async def ascore(self, prompt: Sequence[BaseMessage], replies: Sequence[AIMessage], **kwargs: Any) -> list[float]:
        """Do as `score`, awaiting."""
        steps = self._score(prompt, replies, self._settings(None, None, 1, kwargs))
        return await self._server().arun(steps, drawing=False)

    def _server(self) -> Server:
        key = self.api_key.get_secret_value() if self.api_key else None
        return Server(api_key=key, **{name: getattr(self, name) for name in _CONNECTION})

    def _settings(self, stop: list[str] | None, seed: int | None, n: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return what a request says of the sampler: the fields, replaced by what this call passes."""
        if unknown := kwargs.keys() - _LANGCHAIN - set(_SAMPLER):
            hint = "; it draws text, without tools" if unknown & {"tools", "tool_choice"} else ""
            raise ConfigurationError(f"{', '.join(sorted(unknown))}: not an argument of {type(self).__name__}{hint}")
        settings = {name: kwargs.get(name, getattr(self, name)) for name in _SAMPLER}
        seed = self.seed if seed is None else seed
        _check(n=n, seed=seed, **settings)
        strings = [string for string in (self.stop if stop is None else stop) or () if string]
        # Left out, these would be the server's own.
        settings |= {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
        if strings:
            settings["stop"] = strings
        if seed is not None:
            # The server gives reply i the seed plus i: hashed, neighbouring seeds share no reply; shifted, i has room.
            settings["seed"] = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]) >> 2
        return settings

    def _name(self) -> Steps[str]:
        """Return the model's name at the server, which is asked once what it serves."""
        if (known := self._served.get((self.base_url, self.model))) is not None:
            return known
        (answer,) = yield [Request("/v1/models")]
        names = [str(card.get("id")) for card in listed(answer, "data")]
        serves = f"{self.base_url} serves {', '.join(names) or 'nothing'}"
        if self.model is None and len(names) != 1:
            raise ScoringError(f"{serves}; say which: ChatVLLM(model=...).")
        if self.model is not None and self.model not in names:
            raise ScoringError(f"{serves}, and not {self.model!r}; set model to what it serves, or base_url.")
        return self._served.setdefault((self.base_url, self.model), self.model or names[0])

    def _draw(
        self,
        messages: Sequence[BaseMessage],
        settings: Mapping[str, Any],
        n: int,
        progress: Callable[[int, int], None] | None,
        *,
        tokens: bool,
    ) -> Steps[ChatResult]:
        """Ask for replies until there are n."""
        turns = as_turns(messages, type(self).__name__)
        name = yield from self._name()
        body = {**settings, "model": name, "messages": turns, "logprobs": tokens, "return_token_ids": tokens}
        prompt = None
        if tokens:
            prompt, _ = yield from _tokenize(name, turns)
            # No log-probability would tell of a watermark.
            body["watermarking"] = False
        replies: list[AIMessage] = []
        usages: list[UsageMetadata | None] = []
        # A server of vLLM's refuses more than one reply at temperature 0.
        asked, at_once = 0, n if settings["temperature"] > 0 else 1
        while (missing := n - len(replies)) > 0:
            answers = yield _portions(body, asked, missing, at_once)
            asked += missing
            drawn = [read_replies(answer, body, prompt) for answer in answers]
            if not (at_once := max(map(len, drawn))):
                raise CandidatesError(f"{self.base_url} sent no reply; {len(replies)} of {n} had been drawn.")
            replies += [reply for part in drawn for reply in part]
            usages += [read_usage(answer) for answer in answers]
            if progress is not None:
                progress(min(len(replies), n), n)
        replies[0].usage_metadata = usage = total_usage(usages)
        generations = [ChatGeneration(message=reply) for reply in replies[:n]]
        return ChatResult(generations=generations, llm_output={"model_name": name, "token_usage": usage})

    def _score(
        self, prompt: Sequence[BaseMessage], replies: Sequence[AIMessage], settings: Mapping[str, Any]
    ) -> Steps[list[float]]:
        """Ask for the prompt's tokens, then for the log-probabilities of every reply behind them."""
        if not replies:
            return []
        _check_scorable(settings)
        turns, tokens = as_turns(prompt, type(self).__name__), [_token_ids(reply) for reply in replies]
        name = yield from self._name()
        _check_origin(replies, name)
        prefix, window = yield from _tokenize(name, turns)
        _check_room(len(prefix), max(map(len, tokens)), window)
        size = math.ceil(len(tokens) / self.max_concurrency)
        groups = [tokens[first : first + size] for first in range(0, len(tokens), size)]
        body = {"model": name, "max_tokens": 1, "prompt_logprobs": 0}
        answers = yield [
            Request("/v1/completions", {**body, "prompt": [[*prefix, *reply] for reply in group]}) for group in groups
        ]
        scored = [read_scores(answer, len(prefix), group) for answer, group in zip(answers, groups, strict=True)]
        return [score for part in scored for score in part]


def _tokenize(name: str, turns: list[dict[str, str]]) -> Steps[tuple[list[int], int | None]]:
    """Return the tokens of a prompt before its reply, and how many tokens the model reads."""
    (answer,) = yield [Request("/tokenize", {"model": name, "messages": turns, "add_generation_prompt": True})]
    return listed(answer, "tokens"), answer.get("max_model_len")


def _portions(body: Mapping[str, Any], asked: int, missing: int, at_once: int) -> list[Request]:
    """Return requests for `missing` replies after the first `asked`, so many at once, no two with the same seed."""
    requests = []
    for first in range(asked, asked + missing, at_once):
        portion = {**body, "n": min(at_once, asked + missing - first)}
        if "seed" in body:
            portion["seed"] = body["seed"] + first
        requests.append(Request("/v1/chat/completions", portion))
    return requests


def _check(**settings: Any) -> None:
    """Raise ConfigurationError naming the first setting that cannot be sampled with."""
    laws: dict[str, tuple[Callable[[Any], bool], str]] = {
        "n": (lambda value: value >= 1, "at least 1"),
        "seed": (lambda value: value is None or value >= 0, "None or at least 0"),
        "max_tokens": (lambda value: value >= 1, "at least 1"),
        "temperature": (lambda value: 0 <= value < math.inf, "finite and at least 0"),
        "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
        "top_k": (lambda value: value >= 0, "at least 0; 0 truncates nothing"),
        "base_url": (lambda value: value.startswith(("http://", "https://")), "a URL: http://HOST:PORT/v1"),
        "timeout": (lambda value: value is None or value > 0, "None or above 0 seconds"),
        "max_retries": (lambda value: value >= 0, "at least 0"),
        "max_concurrency": (lambda value: value >= 1, "at least 1"),
    }
    for name, value in settings.items():
        holds, law = laws[name]
        if not holds(value):
            raise ConfigurationError(f"{name}={value!r}; it must be {law}")


def _check_scorable(settings: Mapping[str, Any]) -> None:
    if not is_plain(settings):
        raise LogProbError(
            "A vLLM server scores under the model's own law, not under a temperature or truncation. Draw at "
            "temperature=1, top_p=1 and top_k=0, or use proposal=Reference()."
        )


def _check_origin(replies: Sequence[AIMessage], name: str) -> None:
    if strange := {str(reply.response_metadata.get("model_name")) for reply in replies} - {name}:
        raise LogProbError(
            f"A reply was drawn from {', '.join(sorted(strange))}; {name} may read its tokens as other words. Draw and "
            "score with the same ChatVLLM, or use proposal=Reference()."
        )


def _check_room(prompt: int, reply: int, window: int | None) -> None:
    # The server draws one token more, which is thrown away: it cannot draw none.
    if window is not None and prompt + reply + 1 > window:
        raise ContextWindowError(
            f"A prompt of {prompt} tokens, a reply of {reply} and one more, which the server must draw, do not fit "
            f"into the {window} that the model reads. Shorten the prompt or lower max_tokens."
        )


def _token_ids(reply: AIMessage) -> list[int]:
    """Return the tokens a reply was drawn as; its text alone does not tell them."""
    known = read_log_probs(reply)
    if known is None or known.token_ids is None:
        raise LogProbError(
            "A reply's tokens are unknown, and the same text may be written in other tokens. Draw with ChatVLLM as the "
            "auction's model (logprobs=True), or use proposal=Reference()."
        )
    if not known.complete:
        raise LogProbError(
            "The server did not send every token of a reply, the end token included, so its probability is unknown. "
            "Draw without tool and reasoning parsers, or use proposal=Reference()."
        )
    return list(known.token_ids)
