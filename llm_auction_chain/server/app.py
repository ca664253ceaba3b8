"""The FastAPI application: its routes, and what every request passes through."""

import asyncio
import ipaddress
import json
import logging
import secrets
import time
import warnings
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, uuid4, uuid5

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_auction_chain.candidates import chat_models_in
from llm_auction_chain.errors import AuctionWarning, ConfigurationError, LedgerError
from llm_auction_chain.interfaces.runnable import AuctionRunnable
from llm_auction_chain.receipts import Receipt
from llm_auction_chain.server import chat_completions, responses
from llm_auction_chain.server.access import Access, Key, Role
from llm_auction_chain.server.failures import error_response, wire_error
from llm_auction_chain.server.limits import Capacity, Limits
from llm_auction_chain.server.metrics import Metrics
from llm_auction_chain.server.serving import AuctionResponse, Auctions, auctions_by_model
from llm_auction_chain.server.wire import Answer, ReplyRequest, WireError, read_json
from llm_auction_chain.validators import name_of_account, refuse, text
from llm_auction_chain.waiting import AWAITING

__all__ = ["create_app"]

_logger = logging.getLogger(__name__)
_VERSION = version("llm-auction-chain")
_LONGEST_KEY = 255  # characters of an Idempotency-Key
_EXPIRY = 60.0  # seconds between two releases of expired holds
_LEDGER_PATIENCE = 5.0  # seconds that /readyz waits for the ledger
_LOCAL_NAMES = frozenset({"localhost", "testserver"})  # the second is that of Starlette's test client
_OF_PATHS = {404: "There is no such path.", 405: "The path has no such method."}
_LOGGED = ("/v1/", "/auctions/")  # probes come every few seconds, and a page has many files: those only if they fail
_SCOPE = "llm_auction_chain"  # where a request keeps what its log line says


def create_app(
    auctions: AuctionRunnable | Mapping[str, AuctionRunnable],
    *,
    keys: Collection[Key] | None = None,
    limits: Limits | None = None,
    cors_origins: Collection[str] = (),
    secret: str | None = None,
    playground: bool = False,
    open_to_all: bool = False,
) -> FastAPI:
    """Return an application that answers in the wire formats of OpenAI, each reply drawn by an auction.

    Routes: `POST /v1/chat/completions`, `POST /v1/responses`, `GET /v1/models`, `GET /v1/models/{id}`,
    `GET /auctions/{id}/receipt`, `GET /auctions/{id}/view`, `GET /healthz`, `GET /readyz`, `GET /metrics`.

    Args:
        auctions: by the model ids that clients name; one auction alone has the id `llm-auction`.
        keys: who may call. None serves callers on this machine only, unless `open_to_all` is set.
        limits: of requests, auctions at once, and waiting.
        cors_origins: web origins whose pages may call the server; empty for none.
        secret: makes the seeds that clients send unpredictable to agents, where money is charged. Workers with one
            secret repeat a seed's reply. None is a random one of each worker.
        playground: whether `/playground` shows auctions as they happen; with keys it asks for an operator's.
        open_to_all: whether callers on other machines need no key.

    Raises:
        ConfigurationError: a setting is invalid.
        MissingDependencyError: the playground needs gradio, which is not installed.

    >>> from fastapi.testclient import TestClient
    >>> from llm_auction_chain import Agent, AuctionRunnable
    >>> from llm_auction_chain.testing import MarkovChatModel
    >>> agent = Agent("B", lambda prompt, reply: 4.0 * reply.text.count("b"))
    >>> app = create_app(AuctionRunnable(model=MarkovChatModel(), agents=[agent], seed=7))
    >>> body = {"model": "llm-auction", "messages": [{"role": "user", "content": "Say something"}]}
    >>> answer = TestClient(app).post("/v1/chat/completions", json=body).json()
    >>> answer["choices"][0]["message"]["content"], answer["auction"]["sponsors"]
    ('bb', ['B'])
    """
    limits = limits or Limits()
    by_model = auctions_by_model("auctions", auctions)
    _check_auctions(by_model, limits)
    access, capacity = Access(keys), Capacity(limits)
    if playground and open_to_all and not access.needs_keys:
        raise ConfigurationError("The playground shows private reports, so others may open it only with keys.")
    metrics = Metrics(capacity)
    secret_bytes = secrets.token_bytes() if secret is None else text("secret", secret).encode()
    all_auctions = Auctions(by_model=by_model, limits=limits, capacity=capacity, metrics=metrics, secret=secret_bytes)
    ledgers = {id(one.billing.ledger): one.billing.ledger for one in by_model.values() if one.billing.ledger}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for auction in by_model.values():
            for model in chat_models_in(auction.model):
                if load := getattr(model, "load", None):
                    await AWAITING.in_thread(load)
        expiry = asyncio.create_task(_expire_holds(list(ledgers.values())))
        try:
            yield
        finally:
            await all_auctions.end()
            expiry.cancel()
            with suppress(asyncio.CancelledError):
                await expiry

    app = FastAPI(title="llm-auction", version=_VERSION, lifespan=lifespan, openapi_url=None)
    _add_replies(app, all_auctions, access)
    _add_receipts(app, all_auctions, access, list(ledgers.values()))
    _add_operations(app, access, metrics, list(ledgers.values()))
    app.add_exception_handler(WireError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_error)
    if playground:
        from llm_auction_chain.server.page import mount_playground

        mount_playground(app, by_model, keys=keys)
        app.add_api_route("/", lambda: RedirectResponse("/playground"), include_in_schema=False)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's JavaScript client sends a dozen of its own
            expose_headers=["x-request-id", "retry-after"],
        )
    app.add_middleware(_Front, metrics=metrics, local=not access.needs_keys and not open_to_all)
    return app


def _check_auctions(by_model: Mapping[str, AuctionRunnable], limits: Limits) -> None:
    """Refuse an auction that may outlast its request, and warn of a ledger that cannot answer a repeated one."""
    for auction in by_model.values():
        if auction.reward_timeout is None or auction.reward_timeout >= limits.timeout:
            hint = "Otherwise one slow agent ends the request."
            raise refuse(
                "reward_timeout",
                f"below the server's timeout, {limits.timeout:g} seconds",
                auction.reward_timeout,
                hint,
            )
        ledger = auction.billing.ledger
        if ledger is not None and not getattr(ledger, "keep_replies", False):
            message = "The ledger keeps no replies, so a repeated request gets an error. Use Ledger(keep_replies=True)."
            warnings.warn(message, AuctionWarning, stacklevel=3)


def _add_replies(app: FastAPI, auctions: Auctions, access: Access) -> None:
    """Add the routes of OpenAI's wire formats."""
    models = {
        name: {"id": name, "object": "model", "created": 0, "owned_by": "llm-auction-chain"}
        for name in auctions.by_model
    }

    async def reply(
        request: Request, read: Callable[[Mapping[str, Any]], ReplyRequest], kind: type[Answer]
    ) -> Response:
        caller = _caller(request, access, "client", "operator")
        content = await _json_of(request, auctions.limits)
        answer = kind(read(content), identifier=_identifier(request, caller, content), created=int(time.time()))
        auctions.check(answer)
        details = caller.role == "operator"
        return AuctionResponse(auctions, answer, caller, details=details, request_id=request.scope[_SCOPE]["request"])

    @app.post("/v1/chat/completions")
    async def chat_completion(request: Request) -> Response:
        return await reply(request, chat_completions.read_request, chat_completions.ChatCompletion)

    @app.post("/v1/responses")
    async def response(request: Request) -> Response:
        return await reply(request, responses.read_request, responses.ModelResponse)

    @app.get("/v1/models")
    async def list_models(request: Request) -> dict[str, Any]:
        _caller(request, access, "client", "operator")
        return {"object": "list", "data": [*models.values()]}

    @app.get("/v1/models/{model:path}")
    async def retrieve_model(request: Request, model: str) -> dict[str, Any]:
        _caller(request, access, "client", "operator")
        auctions.named(model)
        return models[model]


def _add_receipts(app: FastAPI, auctions: Auctions, access: Access, ledgers: list[Any]) -> None:
    """Add the routes of receipts, for operators and owners."""

    async def receipt_of(auction_id: str) -> Receipt:
        if recent := auctions.recent.get(auction_id):
            return recent
        for ledger in ledgers:
            if find := getattr(ledger, "receipt_of", None):
                with suppress(ConfigurationError):  # no ledger books under such an id
                    if record := await AWAITING.in_thread(partial(find, auction_id)):
                        return Receipt.from_dict(record)
        raise _unknown_auction()

    @app.get("/auctions/{auction_id}/receipt")
    async def receipt(request: Request, auction_id: str) -> dict[str, Any]:
        _caller(request, access, "operator")
        return (await receipt_of(auction_id)).as_dict()

    @app.get("/auctions/{auction_id}/view")
    async def view(request: Request, auction_id: str, owner: str = "") -> dict[str, Any]:
        caller = _caller(request, access, "owner", "operator")
        owner = _owner_of(owner, caller)
        whole = await receipt_of(auction_id)
        agent = next((bid.agent for bid in whole.agents if bid.owner == owner), None)
        if agent is None:
            raise _unknown_auction()
        return whole.view(agent).as_dict()


def _owner_of(owner: str, caller: Key) -> str:
    """Return the owner whose view a caller may read: the one of the query, else the caller's own."""
    try:
        owner = name_of_account("owner", owner or caller.owner)
    except ConfigurationError:
        message = "owner must be the name of an account, as in ?owner=EggCo."
        raise WireError(400, message, param="owner") from None
    if caller.role == "owner" and owner != caller.owner:
        raise WireError(403, "This key reads the views of its own owner only.", param="owner")
    return owner


def _unknown_auction() -> WireError:
    message = "There is no receipt of such an auction, or not with this owner. Without a charge it is kept for a while."
    return WireError(404, message, code="auction_not_found")


def _add_operations(app: FastAPI, access: Access, metrics: Metrics, ledgers: list[Any]) -> None:
    """Add the routes by which the server is watched."""
    probe: asyncio.Task[bool] | None = None

    @app.api_route("/healthz", methods=["GET", "HEAD"])
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.api_route("/readyz", methods=["GET", "HEAD"])
    async def readyz() -> dict[str, str]:
        nonlocal probe
        if probe is None or probe.done():  # callers at once share one, which a database that hangs does not multiply
            probe = asyncio.create_task(_reachable(ledgers))
        with suppress(TimeoutError):
            async with asyncio.timeout(_LEDGER_PATIENCE):
                if await asyncio.shield(probe):
                    return {"status": "ready"}
        raise WireError(503, "The ledger is unavailable.", code="unavailable", retry_after=1)

    @app.get("/metrics")
    async def prometheus(request: Request) -> Response:
        if access.needs_keys:
            _caller(request, access, "operator")
        return Response(metrics.text(), media_type=metrics.content_type)


def _caller(request: Request, access: Access, *roles: Role) -> Key:
    caller = access.caller(request.headers.get("authorization"))
    request.scope[_SCOPE]["caller"] = caller.name
    caller.require(*roles)
    return caller


def _identifier(request: Request, caller: Key, content: Mapping[str, Any]) -> str:
    """Return the identifier of a request: the same for the same caller, content and Idempotency-Key, else a fresh one.

    A stream and a whole answer have the same content.
    """
    key = request.headers.get("idempotency-key")
    if key is None:
        return uuid4().hex
    if not key.strip() or len(key) > _LONGEST_KEY:
        raise WireError(400, f"Idempotency-Key must have 1 to {_LONGEST_KEY} characters.", param="Idempotency-Key")
    form = json.dumps({name: content[name] for name in content if not name.startswith("stream")}, sort_keys=True)
    return uuid5(NAMESPACE_URL, f"llm_auction_chain.server:{caller.name}\n{key}\n{form}").hex


async def _json_of(request: Request, limits: Limits) -> Mapping[str, Any]:
    """Return the body of a request, an object of JSON.

    Raises:
        WireError: 400 for another content, 408 for a body that arrives too slowly, 413 for one that is too large.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        # a web page may send other types to another origin without asking
        raise WireError(400, "The Content-Type must be application/json.", code="invalid_content_type")
    body = bytearray()
    try:
        async with asyncio.timeout(limits.timeout):
            async for part in request.stream():
                body += part
                if len(body) > limits.body_bytes:
                    message = f"The body must have at most {limits.body_bytes} bytes."
                    raise WireError(413, message, code="body_too_large")
    except TimeoutError:
        raise WireError(408, "The body of the request did not arrive in time.", code="timeout") from None
    content = read_json(bytes(body))
    if not isinstance(content, dict):
        raise WireError(400, "The body must be a JSON object.", code="invalid_json")
    return content


async def _answer_error(_: Request, error: Exception) -> Response:
    """Answer an error of a route, or of a path that has none."""
    if isinstance(error, WireError):
        return error_response(error)
    if not isinstance(error, HTTPException):
        raise error
    status: Any = error.status_code
    response = error_response(WireError(status, _OF_PATHS.get(status, str(error.detail))))
    response.headers.update(error.headers or {})
    return response


async def _reachable(ledgers: list[Any]) -> bool:
    """Return whether all ledgers answer."""
    try:
        for ledger in ledgers:
            if head := getattr(ledger, "head", None):
                await AWAITING.in_thread(head)
    except LedgerError:
        return False
    return True


async def _expire_holds(ledgers: list[Any]) -> None:
    """Release, every minute, what auctions of a process that died have set aside."""
    while ledgers:
        await asyncio.sleep(_EXPIRY)
        for ledger in ledgers:
            if expire := getattr(ledger, "expire_holds", None):
                try:
                    await AWAITING.in_thread(expire)
                except LedgerError as error:
                    _logger.warning("Expired holds could not be released: %s", type(error).__name__)


class _Front:
    """Gives each request an id, counts and logs it, and answers whatever failed.

    The log has the id, the path's pattern, the status, the time and the caller's name: no body, no key, no query.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, local: bool) -> None:
        self._app, self._metrics, self._local = app, metrics, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, request_id, status = time.perf_counter(), f"req_{uuid4().hex}", 0
        scope[_SCOPE] = {"request": request_id, "caller": "-"}

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            if self._local:
                _check_local(scope)
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            pass  # before its request was complete
        except Exception as error:  # noqa: BLE001 - the server that runs this would log the error with its texts
            wire = wire_error(error, request_id)
            if not status:
                await error_response(wire)(scope, receive, send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.perf_counter() - start
            # a client that hung up has no status
            self._metrics.count_request(route, status or 499, seconds)
            caller, method = scope[_SCOPE]["caller"], scope["method"]
            level = logging.INFO if route.startswith(_LOGGED) or status >= 400 else logging.DEBUG  # noqa: PLR2004
            _logger.log(
                level, "%s %s %s %d %.0f ms %s", request_id, method, route, status or 499, 1000 * seconds, caller
            )


def _check_local(scope: Scope) -> None:
    """Refuse a caller on another machine, and a name that only a web page of another site would use.

    Raises:
        WireError: 403.
    """
    peer = scope["client"][0] if scope.get("client") else ""
    try:
        host = urlsplit(f"//{Headers(scope=scope).get('host', '')}").hostname or ""
    except ValueError:  # as in "["
        host = ""
    if not (_is_local(host) and (not peer or peer == "testclient" or _is_local(peer))):
        raise WireError(403, "This server has no keys, so it serves its own machine only.", code="keys_needed")


def _is_local(host: str) -> bool:
    if host in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
