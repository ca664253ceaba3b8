"""A LangChain chat model that draws replies on a vLLM server and scores them there."""

import math
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import PrivateAttr, SecretStr
from typing_extensions import override

from llm_auction_chain.candidates.logprobs import read_log_probs
from llm_auction_chain.candidates.proposals import Condition
from llm_auction_chain.candidates.tilts import spellings_of
from llm_auction_chain.descriptions import Keywords
from llm_auction_chain.errors import AuctionError, CandidatesError, ContextWindowError, LogProbError, ScoringError
from llm_auction_chain.messages import total_usage
from llm_auction_chain.models.sampling import SAMPLER, SamplingChatModel
from llm_auction_chain.models.vllm.responses import (
    is_plain,
    read_failure,
    read_first,
    read_names,
    read_replies,
    read_scores,
    read_tokens,
    read_usage,
    without_key,
)
from llm_auction_chain.models.vllm.tilting import (
    ServerTilts,
    beginnings_of,
    check_drawable,
    is_processed,
    probe_of,
)
from llm_auction_chain.validators import Check, number, optional, refuse, whole_number
from llm_auction_chain.waiting import AWAITING, BLOCKING, Waiter, WaitingChatModel, run

if TYPE_CHECKING:
    from langchain_core.messages.ai import UsageMetadata

    from llm_auction_chain.http_client import JsonSession

__all__ = ["ChatVLLM"]

_CHECKED = 1024  # tokens of a text that has blocks of every cache
_ROUNDED = 0.5  # nats by which two scores may differ, times the root of their tokens (docs/how_to/scaling.md: Rounding)


def _url(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.startswith(("http://", "https://")):
        raise refuse(name, "a URL: http://HOST:PORT/v1", value)
    return value


class ChatVLLM(WaitingChatModel, SamplingChatModel):
    """Draws `n` independent replies from a vLLM server, in one request.

    Every request sends all sampling settings, so the server's own defaults never apply. Replies drawn with
    `logprobs=True` carry their tokens and no watermark. `score` returns their log-probabilities under any other prompt.

    Attributes:
        base_url: where the server listens.
        model: a name that it serves. None is the only one.
        api_key: the server's `--api-key`.
        max_tokens: the most tokens of a reply. The server clips it to the model's window.
        temperature: 0 takes the likeliest token each time.
        top_p: nucleus truncation below 1.
        top_k: truncation to the likeliest tokens above 0.
        stop: strings before which a reply is cut.
        seed: None lets the server choose.
        chat_template_kwargs: variables of the model's chat template, such as `{"enable_thinking": False}`.
        timeout: seconds that the server may keep silent. It sends nothing until all replies of a request are there.
        max_retries: how often a request is repeated that lost its connection, or got status 429, 500, 502 or 503.
        max_concurrency: the most requests of one call that run at the same time.

    Raises:
        ConfigurationError: a setting that cannot be sampled with; the message names the field.

    Example:
        >>> ChatVLLM(base_url="http://gpu-7:8000/v1", temperature=0.7).temperature
        0.7
    """

    provider: ClassVar[str] = "vllm"
    static_tilts: ClassVar[bool] = True
    checks: ClassVar[Mapping[str, Check]] = {
        **SamplingChatModel.checks,
        "base_url": _url,
        "timeout": optional(partial(number, above=0)),
        "max_retries": whole_number,
        "max_concurrency": partial(whole_number, least=1),
    }

    base_url: str = "http://127.0.0.1:8000/v1"
    model: str | None = None
    api_key: SecretStr | None = None
    timeout: float | None = 600.0
    max_retries: int = 2
    max_concurrency: int = 8

    # Shared by the copies that every auction makes: what a server serves, and the length of the text whose scores its
    # cache did not change.
    _served: dict[tuple[str, str | None], str] = PrivateAttr(default_factory=dict)
    _checked: dict[tuple[str, str], int] = PrivateAttr(default_factory=dict)
    # The tokens that begin an agent's keywords, and whether log-probabilities contain a logit bias.
    _beginnings: dict[tuple[str, str, Keywords], list[int]] = PrivateAttr(default_factory=dict)
    _modes: dict[tuple[str, str], bool] = PrivateAttr(default_factory=dict)

    @property
    @override
    def _model_name(self) -> str | None:
        return self.model or self._served.get((self.base_url, None))

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {
            name: getattr(self, name)
            for name in ("base_url", "model", *SAMPLER, "stop", "seed", "chat_template_kwargs")
        }

    def score(self, prompt: Sequence[BaseMessage], replies: Sequence[AIMessage], **kwargs: Any) -> list[float]:
        """Return `log pi(reply | prompt)` in nats, (M,), the end token included; `-inf` where the server says so.

        Args:
            prompt: system, human and AI messages of text.
            replies: M, drawn from this model with `logprobs=True`, so that their tokens are known.
            **kwargs: `temperature`, `top_p`, `top_k` replace the fields of the same names.

        Raises:
            ContextWindowError: prompt and reply do not fit into the model's window.
            LogProbError: a reply's tokens are unknown, or those of another model; or there is a temperature or
                truncation, under which the server cannot score.
            ScoringError: the server is unreachable, refuses, serves another model or lacks the feature.
        """
        return run(self._score(BLOCKING, prompt, replies, kwargs))

    async def ascore(self, prompt: Sequence[BaseMessage], replies: Sequence[AIMessage], **kwargs: Any) -> list[float]:
        """Return what `score` returns, awaiting."""
        return await self._score(AWAITING, prompt, replies, kwargs)

    @override
    async def _reply(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run_manager: Any,
        waiter: Waiter,
        /,
        *,
        n: int = 1,
        seed: int | None = None,
        logprobs: bool = False,
        conditions: Sequence[tuple[Condition, int]] | None = None,
        progress: Callable[[int, int], None] | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        """Draw `n` replies in one request, and in further ones where the server returns fewer.

        Args:
            messages: system, human and AI messages of text.
            stop: replaces the field of the same name.
            run_manager: unused. A whole request reports nothing before its end.
            waiter: how the caller waits.
            n: how many replies.
            seed: replaces the field of the same name.
            logprobs: puts tokens and log-probabilities into `response_metadata["logprobs"]`. They are the model's or
                the sampler's, by the server's `--logprobs-mode`, and it does not say which. So the basis is "sampler"
                at temperature 1 without truncation, where both are equal, and "unknown" otherwise.
            conditions: (condition, count), in place of messages and `n`: the prompt as it stands, and tilts of whole
                replies. Each reply carries its log-probability under every condition.
            progress: called with (finished, n) each time replies arrive.
            **kwargs: `max_tokens`, `temperature`, `top_p`, `top_k` replace the fields of the same names.

        Returns:
            `n` generations; the first message's usage is that of all requests, the others have none.

        Raises:
            CandidatesError: the server is unreachable or refuses; `__cause__` is httpx's own error.
            ConfigurationError: a setting, a message or a condition that cannot be sampled with.
            ContextWindowError: the prompt does not fit into the model's window, or with `logprobs` a reply does not.
            LogProbError: there are conditions, and a temperature or truncation.
            PromptError: there is no message.
            ScoringError: the server serves another model; or `logprobs` needs tokens, and it sends none, or none that
                could be scored.
        """
        body = self._body(stop, seed, n, kwargs)
        body |= self._shown(self._turns(messages if conditions is None else conditions[0][0].prompts[0]))
        if conditions is not None:
            _check_scorable(body)
            check_drawable([condition for condition, _ in conditions])
        async with self._session(waiter, CandidatesError) as session:
            body["model"] = name = await self._name(session)
            if conditions is None:
                replies, usages = await self._draw(session, body, n, logprobs=logprobs, progress=progress)
            else:
                replies, usages = await self._draw_conditions(session, body, conditions, progress)
        replies[0].usage_metadata = usage = total_usage(usages)
        generations = [ChatGeneration(message=reply) for reply in replies]
        return ChatResult(generations=generations, llm_output={"model_name": name, "token_usage": usage})

    async def _draw(
        self,
        session: "JsonSession",
        body: dict[str, Any],
        n: int,
        *,
        logprobs: bool,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[list[AIMessage], list["UsageMetadata | None"]]:
        """Return `n` replies to a request's body, and the usage of each request that it took."""
        body = {**body, "logprobs": logprobs, "return_token_ids": logprobs}
        prompt = None
        if logprobs:
            names = {"messages", "chat_template_kwargs"}
            prompt, _ = await _tokenize(session, body["model"], {name: body[name] for name in names & body.keys()})
            body["watermarking"] = False  # log-probabilities do not show a watermark
        replies: list[AIMessage] = []
        usages: list[UsageMetadata | None] = []
        # vLLM refuses more than one reply per request at temperature 0.
        requested, at_once = 0, n if body["temperature"] > 0 else 1
        while (missing := n - len(replies)) > 0:
            answers = await session.answers("/v1/chat/completions", _portions(body, requested, missing, at_once))
            requested += missing
            portions = [read_replies(answer, body, prompt) for answer in answers]
            if not (at_once := max(map(len, portions))):
                raise CandidatesError(f"{self.base_url} sent no reply; {len(replies)} of {n} had been drawn.")
            replies += [reply for portion in portions for reply in portion]
            usages += [read_usage(answer) for answer in answers]
            if progress is not None:
                progress(min(len(replies), n), n)
        return replies[:n], usages

    async def _draw_conditions(
        self,
        session: "JsonSession",
        body: dict[str, Any],
        conditions: Sequence[tuple[Condition, int]],
        progress: Callable[[int, int], None] | None,
    ) -> tuple[list[AIMessage], list["UsageMetadata | None"]]:
        """Return replies drawn under tilts of one prompt, with their log-probabilities under each condition."""
        tilts = await self._tilts(session, body["model"], [condition for condition, _ in conditions])
        processed = bool(len(tilts.columns)) and await self._processed(session, body, tilts)
        calls, finished, total = [], [0] * len(conditions), sum(count for _, count in conditions)

        def advance(place: int, arrived: int, _count: int) -> None:
            finished[place] = arrived
            if progress is not None:
                progress(sum(finished), total)

        for place, (condition, count) in enumerate(conditions):
            own = {**body, **tilts.settings(condition)}
            if "seed" in own:
                own["seed"] += place << 32  # no two conditions share a stream
            if count:
                calls.append(partial(self._draw, session, own, count, logprobs=True, progress=partial(advance, place)))
        results = await session.waiter.together(calls)
        drawn_from = [condition for condition, count in conditions if count]
        for condition, (drawn, _) in zip(drawn_from, results, strict=True):
            for reply in drawn:
                tilts.complete(reply, condition, processed=processed)
        return [reply for drawn, _ in results for reply in drawn], [one for _, usages in results for one in usages]

    async def _tilts(self, session: "JsonSession", name: str, conditions: Sequence[Condition]) -> ServerTilts:
        """Return the tilts of conditions in the server's tokens. Each agent's keywords are tokenized once."""
        agents = sorted({own for one in conditions if one.tilt is not None for own in one.tilt.keywords})
        for keywords in [own for own in agents if (self.base_url, name, own) not in self._beginnings]:
            spellings = [spelling for word in keywords.words for spelling in spellings_of(word)]
            common = {"model": name, "add_special_tokens": False, "return_token_strs": True}
            answers = await session.answers("/tokenize", [{**common, "prompt": spelling} for spelling in spellings])
            firsts = zip(spellings, map(read_first, answers), strict=True)
            tokens = {spelling: first for spelling, first in firsts if first is not None}
            self._beginnings[self.base_url, name, keywords] = beginnings_of(keywords, tokens)
        beginnings = {own: self._beginnings[self.base_url, name, own] for own in agents}
        return ServerTilts(conditions=conditions, beginnings=beginnings)

    async def _processed(self, session: "JsonSession", body: Mapping[str, Any], tilts: ServerTilts) -> bool:
        """Return whether the server's figures contain a logit bias. The first auction finds out."""
        key = (self.base_url, str(body["model"]))
        if key not in self._modes:
            probes = [{**body, **probe, "max_tokens": 1} for probe in probe_of(tilts.columns)]
            replies = [(await self._draw(session, probe, 1, logprobs=True))[0][0] for probe in probes]
            self._modes[key] = is_processed(replies)
        return self._modes[key]

    async def _score(
        self, waiter: Waiter, prompt: Sequence[BaseMessage], replies: Sequence[AIMessage], kwargs: dict[str, Any]
    ) -> list[float]:
        """Send the tokens of the prompt and of each reply, and read the log-probabilities of the reply's."""
        settings = self._settings(None, None, 1, kwargs)
        if not replies:
            return []
        _check_scorable(settings)
        turns, tokens = self._turns(prompt), [_token_ids(reply) for reply in replies]
        async with self._session(waiter, ScoringError) as session:
            name = await self._name(session)
            _check_origin(replies, name)
            prefix, window = await _tokenize(session, name, self._shown(turns))
            _check_room(len(prefix), max(map(len, tokens)), window)
            size = math.ceil(len(tokens) / self.max_concurrency)
            groups = [tokens[first : first + size] for first in range(0, len(tokens), size)]
            body = {"model": name, "max_tokens": 1, "prompt_logprobs": 0}
            bodies = [{**body, "prompt": [[*prefix, *reply] for reply in group]} for group in groups]
            answers = await session.answers("/v1/completions", bodies)
            await self._check_cache(session, body, prefix, tokens)
        scores = [read_scores(answer, len(prefix), group) for answer, group in zip(answers, groups, strict=True)]
        return [score for group in scores for score in group]

    async def _check_cache(
        self, session: "JsonSession", body: Mapping[str, Any], prefix: list[int], replies: Sequence[list[int]]
    ) -> None:
        """Raise ScoringError if the server scores a reply otherwise once it is cached.

        The first scores of a server are checked, and again those of texts twice as long. Between the two scores of a
        reply another one is scored, whose figures would stand where the cache leaves some out.
        """
        longest = max(replies, key=len)
        others = [reply for reply in replies if reply != longest]
        key, size = (self.base_url, str(body["model"])), len(prefix) + len(longest)
        before = self._checked.get(key, 0)
        if not others or size <= 2 * before or before >= _CHECKED:
            return
        salt, scores = secrets.token_hex(8), []
        for reply in (longest, max(others, key=len), longest):
            checked = {**body, "prompt": [[*prefix, *reply]], "cache_salt": salt}
            scores += read_scores(await session.answer("/v1/completions", checked), len(prefix), [reply])
        fresh, _, cached = scores
        if fresh != cached and not abs(fresh - cached) <= _ROUNDED * math.sqrt(len(longest)):
            raise ScoringError(
                f"{self.base_url} scores a reply with {fresh:.2f} nats, and with {cached:.2f} once it is cached. Start "
                "the server with --no-enable-prefix-caching."
            )
        self._checked[key] = size

    @asynccontextmanager
    async def _session(self, waiter: Waiter, kind: type[AuctionError]) -> AsyncIterator["JsonSession"]:
        """Open connections to the server; what httpx raises becomes an error of this kind."""
        from llm_auction_chain.http_client import HTTPError, JsonSession

        url = self.base_url.rstrip("/").removesuffix("/v1")
        key = self.api_key.get_secret_value() if self.api_key else None
        patience = {name: getattr(self, name) for name in ("timeout", "max_retries", "max_concurrency")}
        try:
            async with JsonSession(url, waiter, api_key=key, **patience) as session:
                yield session
        except HTTPError as error:
            raise read_failure(error, self.base_url, kind, api_key=key, timeout=self.timeout) from error
        except ScoringError as error:  # which may quote the server
            error.args = (without_key(str(error), key),)
            raise

    def _body(self, stop: list[str] | None, seed: int | None, n: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the sampling settings of a request."""
        settings = self._settings(stop, seed, n, kwargs)
        # Left out, these would be the server's own.
        settings |= {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
        if not settings["stop"]:
            del settings["stop"]
        if (seed := settings.pop("seed")) is not None:
            # The server gives reply i the seed plus i. Hashed, neighbouring seeds share no reply; shifted, i has room.
            settings["seed"] = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]) >> 2
        return settings

    def _shown(self, turns: list[dict[str, str]]) -> dict[str, Any]:
        """Return what the chat template gets."""
        variables = {"chat_template_kwargs": self.chat_template_kwargs} if self.chat_template_kwargs else {}
        return {"messages": turns, **variables}

    @override
    def _tokens(self, content: str | list[dict[str, str]]) -> list[int]:
        return run(self._tokenized(BLOCKING, {"prompt": content} if isinstance(content, str) else self._shown(content)))

    async def _tokenized(self, waiter: Waiter, content: Mapping[str, Any]) -> list[int]:
        async with self._session(waiter, ScoringError) as session:
            tokens, _ = await _tokenize(session, await self._name(session), content)
        return tokens

    async def _name(self, session: "JsonSession") -> str:
        """Return the model's name at the server. One request finds out, for this model and its copies."""
        key = (self.base_url, self.model)
        if key not in self._served:
            names = read_names(await session.answer("/v1/models"))
            serves = f"{self.base_url} serves {', '.join(names) or 'nothing'}"
            if self.model is None and len(names) != 1:
                raise ScoringError(f"{serves}; say which: ChatVLLM(model=...).")
            if self.model is not None and self.model not in names:
                raise ScoringError(f"{serves}, and not {self.model!r}; set model to what it serves, or base_url.")
            self._served[key] = self.model or names[0]
        return self._served[key]


async def _tokenize(session: "JsonSession", name: str, content: Mapping[str, Any]) -> tuple[list[int], int | None]:
    """Return the tokens of a text or of a prompt before its reply, and how many tokens the model reads."""
    behind = {"add_generation_prompt": True} if "messages" in content else {}
    return read_tokens(await session.answer("/tokenize", {**content, **behind, "model": name}))


def _portions(body: Mapping[str, Any], requested: int, missing: int, at_once: int) -> list[dict[str, Any]]:
    """Return requests for the `missing` replies after the first `requested`, no two with the same seed."""
    bodies = []
    for first in range(requested, requested + missing, at_once):
        seed = {"seed": body["seed"] + first} if "seed" in body else {}
        bodies.append({**body, "n": min(at_once, requested + missing - first), **seed})
    return bodies


def _check_scorable(settings: Mapping[str, Any]) -> None:
    if not is_plain(settings):
        raise LogProbError(
            "A vLLM server scores under the model's own distribution, without temperature or truncation. Draw at "
            "temperature=1, top_p=1 and top_k=0, or use proposal=Reference()."
        )


def _check_origin(replies: Sequence[AIMessage], name: str) -> None:
    if others := {str(reply.response_metadata.get("model_name")) for reply in replies} - {name}:
        raise LogProbError(
            f"A reply was drawn from {', '.join(sorted(others))}; {name} may read its tokens as other words. Draw and "
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
    """Return the tokens of a reply as they were drawn. Its text alone does not determine them."""
    log_probs = read_log_probs(reply)
    if log_probs is None or log_probs.token_ids is None:
        raise LogProbError(
            "A reply's tokens are unknown, and the same text may be written in other tokens. Draw with ChatVLLM as the "
            "auction's model (logprobs=True), or use proposal=Reference()."
        )
    if not log_probs.complete:
        raise LogProbError(
            "The server did not send every token of a reply, the end token included, so its probability is unknown. "
            "Draw without tool and reasoning parsers, or use proposal=Reference()."
        )
    return list(log_probs.token_ids)
