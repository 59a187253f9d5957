"""The Open Inference Protocol over HTTP, as an ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Lifespan, Receive, Scope, Send

from trtkp.serving.admission.deadlines import Deadlines
from trtkp.serving.admission.memory import Account
from trtkp.serving.admission.turns import Turns
from trtkp.serving.contract import Contract
from trtkp.serving.errors import BadRequest, ServeError, TooLarge, Unauthorised, Unavailable
from trtkp.serving.models.service import Service
from trtkp.serving.protocol import describe
from trtkp.serving.protocol.body import Body
from trtkp.serving.protocol.config import model_config
from trtkp.serving.protocol.connection import HEALTH_PATHS, HttpConnection
from trtkp.serving.protocol.wire import HEADER_LENGTH, decode, decompress, encode, inflater_of, largest_body

__all__ = ["make_app"]

#: Request ids that are taken over from the client. They appear in headers and logs, so nothing else is allowed.
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
#: Bytes of an answer that are handed to the transport at once.
_PIECE = 1 << 18
_MODEL = "/v2/models/{model}"
_VERSION = _MODEL + "/versions/{version}"


def make_app(service: Service, token: str | None = None, lifespan: Lifespan[Any] | None = None) -> ASGIApp:
    """Make the HTTP application of a service.

    Args:
        service: the models to serve.
        token: bearer token that every path except ``/v2/health/`` requires; None for no token.
        lifespan: Starlette's start and stop hook, for applications that start the service themselves.
    """
    endpoints = _Endpoints(service)
    routes = [
        Route("/v2", endpoints.server),
        Route("/v2/health/live", endpoints.live),
        Route("/v2/health/ready", endpoints.ready),
        Route("/v2/models/stats", endpoints.all_statistics),
        Route("/v2/repository/index", endpoints.index, methods=["POST"]),
        Route("/metrics", endpoints.metrics),
    ]
    for path in (_MODEL, _VERSION):
        routes += [
            Route(path, endpoints.metadata),
            Route(f"{path}/ready", endpoints.model_ready),
            Route(f"{path}/config", endpoints.config),
            Route(f"{path}/stats", endpoints.statistics),
            Route(f"{path}/infer", endpoints.infer, methods=["POST"]),
        ]
    handlers: dict[Any, Callable[[Request, Any], Response]] = {ServeError: _refuse, HTTPException: _refuse_http}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    return _Guard(app, token)


class _Endpoints:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._deadlines = Deadlines.of(service.options)
        self._metrics_turns = Turns()

    async def server(self, request: Request) -> Response:
        return JSONResponse(describe.server_metadata())

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        ready = self._service.ready
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def model_ready(self, request: Request) -> Response:
        model = self._find(request)
        ready = model.ready and not self._service.draining
        return JSONResponse({"name": model.contract.name, "ready": ready}, 200 if ready else 503)

    async def metadata(self, request: Request) -> Response:
        return JSONResponse(describe.model_metadata(self._service, self._find(request)))

    async def config(self, request: Request) -> Response:
        message = model_config(self._find(request).contract, self._service.options)
        return JSONResponse(MessageToDict(message, preserving_proto_field_name=True))

    async def statistics(self, request: Request) -> Response:
        return JSONResponse({"model_stats": [describe.model_statistics(self._find(request))]})

    async def all_statistics(self, request: Request) -> Response:
        return JSONResponse({"model_stats": [describe.model_statistics(model) for model in self._service.all_models]})

    async def index(self, request: Request) -> Response:
        return JSONResponse(describe.index(self._service))

    async def metrics(self, request: Request) -> Response:
        async with self._metrics_turns:  # 5 ms; requests do not wait behind those who ask for metrics
            text = generate_latest(self._service.metrics.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    async def infer(self, request: Request) -> Response:
        service = self._service
        request_id = request.state.request_id = _request_id(request)
        owner = getattr(request.state, "connection", request)  # of other servers, as in Ray, nothing is known
        with service.exchange("http", request_id) as exchange, contextlib.ExitStack() as stack:
            account = stack.enter_context(service.memory.account(owner))
            # The cheap refusals come first: an overloaded server must not read bodies that it cannot queue.
            model = exchange.model = self._find(request)
            model.check_room()
            body = await self._body(request, model.contract, account)
            decoded = await decode(body, request.headers.get(HEADER_LENGTH), model.contract, account, service.turns)
            outputs = await service.infer(model, decoded.inference)
            del body
            account.grow(sum(value.nbytes for value in outputs.values()))
            parts, headers = await encode(model.contract, decoded, outputs, account, service.turns)
            stack.pop_all()  # until the answer was sent
        return _Answer(parts, {**headers, "X-Request-ID": request_id}, account, self._deadlines, owner)

    def _find(self, request: Request) -> Any:
        return self._service.find(request.path_params["model"], request.path_params.get("version", ""))

    async def _body(self, request: Request, contract: Contract, account: Account) -> memoryview:
        """Read the body, counting what comes in and, if it is compressed, what comes out."""
        limit = min(self._service.options.body_bytes, largest_body(contract))
        text = request.headers.get("content-length", "")
        declared = int(text) if text.isdecimal() else limit
        if declared > limit:
            raise TooLarge(f"the body has {declared} bytes, but {contract.name} needs no more than {limit}")
        inflater = inflater_of(request.headers.get("content-encoding", ""))
        body, received = Body(limit), 0
        loop = asyncio.get_running_loop()
        step = self._deadlines.step_s
        end = loop.time() + self._deadlines.transfer_s(declared)
        try:
            async with asyncio.timeout(step) as alarm:
                async for chunk in request.stream():
                    alarm.reschedule(min(end, loop.time() + step))
                    received += len(chunk)
                    if received > limit:
                        raise TooLarge(f"the body has more than the {limit} bytes that {contract.name} needs at most")
                    if inflater is None:
                        account.grow(len(chunk))
                        body.append(chunk)
                        continue
                    async for piece in decompress(chunk, inflater, account, self._service.turns):
                        if len(body) + len(piece) > limit:
                            raise TooLarge(f"the decompressed body is larger than {limit} bytes")
                        body.append(piece)
        except ClientDisconnect:
            raise BadRequest("the body ended early") from None
        except TimeoutError:
            raise BadRequest("the body did not arrive in time") from None
        if inflater is not None and not inflater.eof:
            raise BadRequest("the compressed body is cut short")
        return body.view


class _Answer(Response):
    """An answer in parts, which are counted until the last was handed to the transport.

    Args:
        parts: the body.
        headers: its headers.
        account: counts it; closed at the end, whatever happens.
        deadlines: how long the client may take to read.
        connection: dropped if the client takes longer.
    """

    def __init__(
        self,
        parts: Sequence[bytes | memoryview],
        headers: Mapping[str, str],
        account: Account,
        deadlines: Deadlines,
        connection: Any,
    ) -> None:
        self._size = sum(map(len, parts))
        super().__init__(None, headers={**headers, "Content-Length": str(self._size)})
        self._parts = parts
        self._account = account
        self._deadlines = deadlines
        self._connection = connection

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._account:
            try:
                async with asyncio.timeout(self._deadlines.transfer_s(self._size)):
                    await self._send(send)
            except TimeoutError:
                if isinstance(self._connection, HttpConnection):
                    self._connection.drop()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if self._size <= _PIECE:
            await send({"type": "http.response.body", "body": b"".join(self._parts)})
            return
        for part in self._parts:
            for start in range(0, len(part), _PIECE):
                piece = bytes(part[start : start + _PIECE])  # a view would keep all of the answer while it is not read
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class _Guard:
    """Answers questions about the server's health, and refuses others where it must, before they reach the application.

    Others are refused without the bearer token, and on connections that were taken in beyond the limit.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = None if scope["type"] != "http" or scope["path"].startswith(HEALTH_PATHS) else self._error(scope)
        if error is None:
            await self._app(scope, receive, send)
        else:
            await _refuse(Request(scope), error)(scope, receive, send)

    def _error(self, scope: Scope) -> ServeError | None:
        connection = scope.get("state", {}).get("connection")
        if isinstance(connection, HttpConnection) and connection.health_only:
            return Unavailable("all connections are in use", remedy="try again later")
        given = dict(scope["headers"]).get(b"authorization", b"")
        # compare_digest takes the same time for any wrong token, so that timing does not reveal parts of it
        if self._expected is not None and not hmac.compare_digest(given, self._expected):
            return Unauthorised("no valid bearer token")
        return None


def _request_id(request: Request) -> str:
    given = request.headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _refuse(request: Request, error: ServeError) -> Response:
    headers = {}
    if error.status in (429, 503):
        headers["Retry-After"] = "1"
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if hasattr(request.state, "request_id"):
        headers["X-Request-ID"] = request.state.request_id
    return JSONResponse({"error": str(error)}, error.status, headers)


def _refuse_http(request: Request, error: HTTPException) -> Response:
    message = {404: f"no such path {request.url.path[:100]}", 405: f"{request.method} is not allowed here"}
    return JSONResponse({"error": message.get(error.status_code, error.detail)}, error.status_code, error.headers)
