"""One request for replies, from its place in the queue to the last byte of its answer."""

import asyncio
import hashlib
import hmac
import json
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from inspect import ismethod
from time import monotonic
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from llm_auction_chain.agents import AGENTS_OF_CALL, Agent
from llm_auction_chain.auction.billing import Delivery
from llm_auction_chain.auction.result import AuctionResult
from llm_auction_chain.errors import ConfigurationError
from llm_auction_chain.interfaces.base import within
from llm_auction_chain.interfaces.runnable import AuctionRunnable
from llm_auction_chain.messages import json_of
from llm_auction_chain.receipts import Receipt
from llm_auction_chain.receipts.records import message_digest
from llm_auction_chain.server.access import Key
from llm_auction_chain.server.failures import error_response, wire_error
from llm_auction_chain.server.limits import Capacity, Limits
from llm_auction_chain.server.metrics import Metrics
from llm_auction_chain.server.wire import Answer, ReplyRequest, WireError, invalid
from llm_auction_chain.validators import refuse, text

__all__ = ["MODEL_ID", "AuctionResponse", "Auctions", "auctions_by_model"]

MODEL_ID = "llm-auction"
"""Of the model, where one auction is given without an id."""
_logger = logging.getLogger(__name__)
_ROUNDS = 8  # of the event loop, in which a hang-up that has arrived reaches the application
_SEED_BYTES = 6
_PATIENCE = 10.0  # seconds that a stop waits for the ledger


def auctions_by_model(name: str, auctions: Any) -> dict[str, AuctionRunnable]:
    """Return auctions by the model ids that clients name.

    Args:
        name: of the argument, for errors.
        auctions: one auction, or several by their ids.

    Raises:
        ConfigurationError: they are neither.
    """
    by_model = {MODEL_ID: auctions} if isinstance(auctions, AuctionRunnable) else auctions
    if not isinstance(by_model, Mapping) or not by_model:
        raise refuse(name, "an AuctionRunnable, or a mapping from model ids to some", auctions)
    for model, auction in by_model.items():
        text("The id of a model", model)
        if not isinstance(auction, AuctionRunnable):
            raise refuse(f"{name}[{model!r}]", "an AuctionRunnable", auction)
    return dict(by_model)


@dataclass(kw_only=True)
class Auctions:
    """The auctions of a server, and what bounds and records them.

    Attributes:
        by_model: the auctions by the model ids that clients name.
        limits: of the server.
        capacity: the auctions' queue.
        metrics: of the server.
        secret: makes the seeds that clients send unpredictable to agents, where money is charged.
        recent: the latest receipts by auction id, for those that no ledger keeps.
        under_way: requests whose answer is not complete, or whose charges are being taken back.
    """

    by_model: Mapping[str, AuctionRunnable]
    limits: Limits
    capacity: Capacity
    metrics: Metrics
    secret: bytes
    recent: OrderedDict[str, Receipt] = field(default_factory=OrderedDict)
    under_way: "set[asyncio.Task[None]]" = field(default_factory=set)

    def named(self, model: str) -> AuctionRunnable:
        """Return the auction of a model id.

        Raises:
            WireError: 404, there is none.
        """
        if (auction := self.by_model.get(model)) is None:
            ids = ", ".join(map(repr, self.by_model))
            raise WireError(
                404, f"There is no such model. This server has {ids}.", param="model", code="model_not_found"
            )
        return auction

    def check(self, answer: Answer) -> None:
        """Refuse a request that is beyond the limits, or combines what no model can do.

        Raises:
            WireError: 400, with the field.
        """
        limits, request = self.limits, answer.request
        for name, value, most in (
            ("messages", len(request.messages), limits.messages),
            ("n", request.n, min(limits.n, limits.auctions + limits.queue)),
            ("max_tokens", request.keywords.get("max_tokens", 0), limits.max_tokens),
        ):
            if value > most:
                name = answer.fields.get(name, name)  # noqa: PLW2901
                raise WireError(400, f"{name} must be at most {most} on this server, got {value}.", param=name)
        if request.tools and (request.response_format or {}).get("type") == "json_object":
            raise invalid(
                answer.fields.get("response_format", "response_format"), "must be a json_schema beside tools."
            )

    async def replies(
        self, request: ReplyRequest, caller: Key, identifier: str, delivery: Delivery
    ) -> Sequence[AIMessage]:
        """Run the auctions of a request and return their replies. If one fails, none of them is charged.

        Args:
            request: of the client.
            caller: who sent it.
            identifier: of the request; a repeated one has the same.
            delivery: takes the charges back where the replies do not reach the client.
        """
        auction = self.named(request.model)
        agents = _agents_of(request, caller)
        seed = request.seed
        if seed is not None and auction.billing.ledger is not None and caller.role != "operator":
            seed = self._unpredictable(seed, request, caller)
        _bound(auction, request)  # refuses what the model cannot do before the request waits
        start = monotonic()

        async def run(i: int) -> AIMessage:
            config: Any = {"configurable": {"idempotency_key": f"{identifier}:{i}"}}
            if agents is not None:
                config["configurable"][AGENTS_OF_CALL] = agents
            seeds = {} if seed is None else {"seed": seed + i}
            async with self.capacity.slot():
                # an agent that is slow abstains, however long the request has waited, and ends it for no other agent
                rest = self.limits.timeout - (monotonic() - start)
                reward_timeout = min(auction.reward_timeout or rest, rest / 2)
                in_time = auction.model_copy(update={"reward_timeout": reward_timeout})
                runnable, keywords = _bound(within(in_time, delivery), request)
                return _message_of(await runnable.ainvoke(list(request.messages), config, **keywords, **seeds))

        async with self.capacity.admit(request.n):
            if request.n == 1:
                return [await run(0)]
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(run(i)) for i in range(request.n)]
            except BaseExceptionGroup as failures:
                raise failures.exceptions[0] from None
            return [task.result() for task in tasks]

    def record(self, model: str, results: Sequence[AuctionResult]) -> None:
        """Note auctions whose replies were delivered."""
        for result in results:
            self.metrics.count_auction(model, result.reply)
            self.recent[result.auction_id] = result.receipt
        while len(self.recent) > self.limits.receipts:
            self.recent.popitem(last=False)

    async def end(self) -> None:
        """Wait until what the server cancelled when it stopped is released and taken back."""
        if self.under_way:
            await asyncio.wait(self.under_way, timeout=_PATIENCE)

    def _unpredictable(self, seed: int, request: ReplyRequest, caller: Key) -> int:
        """Return a seed that follows from the client's, for this caller and these messages only.

        An agent that knows the draw could bid by it. Where a client sends one seed with each request, the draw of one
        request says nothing about that of another.
        """
        message = f"{caller.name}\n{request.model}\n{seed}\n{message_digest('', *request.messages)}"
        digest = hmac.digest(self.secret, message.encode(), hashlib.sha256)
        return int.from_bytes(digest[:_SEED_BYTES], "big")


class AuctionResponse(Response):
    """The answer to one request: runs its auctions, and sends their replies.

    The replies are delivered when the last byte is handed to a connection that is still open. Where the client hangs up
    before, the deadline passes, or the server stops, the auctions are cancelled: holds are released, and charges are
    taken back.
    """

    def __init__(self, auctions: Auctions, answer: Answer, caller: Key, *, details: bool, request_id: str) -> None:
        super().__init__()
        self._auctions, self._answer, self._caller = auctions, answer, caller
        self._details, self._request_id = details, request_id
        self._started = self._delivered = self._hung_up = False

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self._work(receive, send))
        self._auctions.under_way.add(work)
        work.add_done_callback(self._auctions.under_way.discard)
        hang_up = asyncio.create_task(self._await_hang_up(receive, work))
        try:
            await work
        except asyncio.CancelledError:
            if (own := asyncio.current_task()) is not None and own.cancelling():  # the server stops
                raise
            _logger.info("The client of request %s hung up; its auction is cancelled.", self._request_id)
        finally:
            hang_up.cancel()
            if not work.done():
                work.cancel()
                with suppress(asyncio.CancelledError):
                    await work

    async def _await_hang_up(self, receive: Receive, work: "asyncio.Task[None]") -> None:
        """Cancel the work where the client goes away."""
        while (await receive())["type"] != "http.disconnect":
            pass
        if not self._delivered:
            self._hung_up = True
            work.cancel()

    async def _work(self, receive: Receive, send: Send) -> None:
        answer, request = self._answer, self._answer.request
        delivery = Delivery(self._auctions.named(request.model).billing.ledger)
        deadline = asyncio.get_running_loop().time() + self._auctions.limits.timeout
        comments = asyncio.create_task(self._comment(send)) if request.stream else None
        try:
            async with delivery:
                try:
                    async with asyncio.timeout_at(deadline):
                        replies = await self._auctions.replies(request, self._caller, answer.identifier, delivery)
                finally:
                    if comments is not None:
                        comments.cancel()
                        with suppress(asyncio.CancelledError):
                            await comments
                await self._deliver(replies, deadline, receive, send)
        except Exception as error:  # noqa: BLE001 - every failure is an answer
            await self._fail(wire_error(error, self._request_id, details=self._details), receive, send)
        else:
            self._auctions.record(request.model, delivery.results)

    async def _deliver(self, replies: Sequence[AIMessage], deadline: float, receive: Receive, send: Send) -> None:
        """Send the replies, the last part only once the connection is open and no earlier byte waits for its client."""
        fields = [_field_of(reply, details=self._details) for reply in replies]
        if self._answer.request.stream:
            body = b"".join(self._answer.events(replies, fields))
            await self._start(send)
        else:
            body = json.dumps(self._answer.body(replies, fields), separators=(",", ":"), allow_nan=False).encode()
            await self._start(send, length=len(body))
        async with asyncio.timeout_at(deadline):
            await send({"type": "http.response.body", "body": b"", "more_body": True})
        for _ in range(_ROUNDS):
            await asyncio.sleep(0)
        if self._hung_up or _has_hung_up(receive):  # which the task that waits for it has not seen yet
            raise asyncio.CancelledError
        self._delivered = True
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _start(self, send: Send, *, length: int | None = None) -> None:
        """Send the status and the headers, and the events of a stream that need no reply; later calls do nothing."""
        if self._started:
            return
        self._started = True
        if length is None:
            headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
            headers["x-accel-buffering"] = "no"  # nginx sends each event at once
        else:
            headers = {"content-type": "application/json", "content-length": str(length)}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        if length is None and (opening := b"".join(self._answer.opening())):
            await send({"type": "http.response.body", "body": opening, "more_body": True})

    async def _comment(self, send: Send) -> None:
        """Keep a waiting stream open. Until its first comment an error has a status of its own."""
        while True:
            await asyncio.sleep(self._auctions.limits.keep_alive)
            await self._start(send)
            await send({"type": "http.response.body", "body": b": the auction runs\n\n", "more_body": True})

    async def _fail(self, error: WireError, receive: Receive, send: Send) -> None:
        self._delivered = True
        if not self._started:
            await error_response(error)({"type": "http"}, receive, send)
            return
        body = b"".join(self._answer.failure(error))
        await send({"type": "http.response.body", "body": body, "more_body": False})


def _has_hung_up(receive: Receive) -> bool:
    """Return whether the server knows at this very moment that the client is gone.

    The one step is by hand, because Starlette's `Request.is_disconnected` lets other tasks run: the client could go
    between its answer and the reply, and be charged.
    """
    if not ismethod(receive):  # that of a middleware, which cannot be left halfway
        return False
    waiting = receive().__await__()
    try:
        next(waiting)
    except StopIteration as arrived:
        return bool(arrived.value["type"] == "http.disconnect")
    waiting.close()
    return False


def _field_of(reply: AIMessage, *, details: bool) -> dict[str, Any]:
    """Return the field `auction` of an answer: what users may see, or all of the metadata."""
    auction = reply.response_metadata["auction"]
    public = {
        "id": auction["auction_id"],
        "sponsored": auction["sponsored"],
        "sponsors": auction["sponsors"],
        "disclosure": auction["disclosure"],
    }
    return {**auction, **public} if details else public


def _agents_of(request: ReplyRequest, caller: Key) -> list[Agent] | None:
    """Return the agents that an operator sends with a request; None where the server's own bid."""
    if request.extra is None:
        return None
    if caller.role != "operator":
        raise WireError(
            403, "auction needs an operator's key: the server's configuration says who bids.", param="auction"
        )
    extra = dict(request.extra)
    agents = extra.pop("agents", None)
    if extra or not isinstance(agents, list):
        raise WireError(400, "auction must have `agents`, a list of agents as in an agents file.", param="auction")
    try:
        return [Agent.from_dict(agent) for agent in agents]
    except ConfigurationError as error:
        raise WireError(400, str(error), param="auction.agents") from error


def _bound(auction: AuctionRunnable, request: ReplyRequest) -> tuple[Runnable[Any, Any], dict[str, Any]]:
    """Return the auction with the request's tools and format, and the keywords of its calls."""
    keywords, form = dict(request.keywords), request.response_format
    if request.tools:
        tools, choice = list(request.tools), request.tool_choice
        if form is not None:
            tools = [{**tool, "function": {**tool["function"], "strict": True}} for tool in tools]
            return auction.bind_tools(tools, tool_choice=choice, response_format=_strict(form)), keywords
        return auction.bind_tools(tools, tool_choice=choice), keywords
    if form is not None:
        auction = auction.model_copy(update={"model": auction.model.bind(**keywords)}) if keywords else auction
        return _formatted(auction, form), {}
    return auction, keywords


def _formatted(auction: AuctionRunnable, form: Mapping[str, Any]) -> Runnable[Any, Any]:
    """Return the auction among replies of a format, by the means that its model has for that."""
    if form["type"] == "json_object":
        return auction.with_structured_output(None, method="json_mode", include_raw=True)
    structured = partial(auction.with_structured_output, _schema_of(form), include_raw=True)
    strict = form["json_schema"].get("strict")
    with suppress(TypeError, ValueError):  # not every model has this method, or takes `strict`
        return structured(method="json_schema", **({} if strict is None else {"strict": strict}))
    return structured()


def _strict(form: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema's format as LangChain's agents give it beside tools."""
    return {**form, "json_schema": {**form["json_schema"], "schema": _schema_of(form)}}


def _schema_of(form: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema with its name, as LangChain's models read it."""
    named = form["json_schema"]
    return {"title": named["name"], "description": named.get("description") or named["name"], **named["schema"]}


def _message_of(reply: Any) -> AIMessage:
    """Return the message of a reply. A format that the model gives by calling a tool becomes its text."""
    if isinstance(reply, AIMessage):
        return reply
    message: AIMessage = reply["raw"]
    if not message.tool_calls:
        return message
    return message.model_copy(update={"content": json_of(message.tool_calls[0]["args"]), "tool_calls": []})
