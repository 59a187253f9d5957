"""The Open Inference Protocol over HTTP, as an ASGI application."""

from __future__ import annotations

import asyncio
import hmac
import re
import uuid
from collections.abc import Callable
from typing import Any

from google.protobuf.json_format import MessageToDict
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Lifespan, Receive, Scope, Send

from trtkp.serving.errors import BadRequest, ServeError, TooLarge, Unauthorised
from trtkp.serving.models.service import Service
from trtkp.serving.protocol import describe
from trtkp.serving.protocol.config import model_config
from trtkp.serving.protocol.wire import HEADER_LENGTH, decode, decompress, encode

__all__ = ["make_app"]

#: Request ids that are taken over from the client. They appear in headers and logs, so nothing else is allowed.
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
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
    return _Guard(app, token) if token else app


class _Endpoints:
    def __init__(self, service: Service) -> None:
        self._service = service

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
        return Response(generate_latest(self._service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def infer(self, request: Request) -> Response:
        service = self._service
        request_id = request.state.request_id = _request_id(request)
        with service.exchange("http", request_id) as exchange:
            # The cheap refusals come first: an overloaded server must not read bodies that it cannot queue.
            model = exchange.model = self._find(request)
            model.check_room()
            declared = self._declared(request)
            with service.holding(declared):
                body = await self._body(request)
                with service.holding(max(0, len(body) - declared)):  # the bytes that decompression added
                    decoded = decode(body, request.headers.get(HEADER_LENGTH))
                    outputs = await service.infer(model, decoded.inference)
            content, headers = encode(model.contract, decoded, outputs)
        return Response(content, headers={**headers, "X-Request-ID": request_id})

    def _find(self, request: Request) -> Any:
        return self._service.find(request.path_params["model"], request.path_params.get("version", ""))

    def _declared(self, request: Request) -> int:
        """Size to reserve for the body: what its Content-Length says, or the limit where there is no such header."""
        limit = self._service.options.body_bytes
        text = request.headers.get("content-length")
        size = int(text) if text is not None and text.isdecimal() else limit
        if size > limit:
            raise TooLarge(f"the body has {size} bytes, but only {limit} are allowed")
        return size

    async def _body(self, request: Request) -> bytes:
        limit = self._service.options.body_bytes
        body = bytearray()
        try:
            async with asyncio.timeout(self._service.options.timeout_s):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limit:
                        raise TooLarge(f"the body is larger than the {limit} bytes allowed")
        except ClientDisconnect:
            raise BadRequest("the body ended early") from None
        except TimeoutError:
            raise BadRequest("the body did not arrive in time") from None
        return decompress(bytes(body), request.headers.get("content-encoding", ""), limit)


class _Guard:
    """Refuses requests without the bearer token, before they reach the application."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["path"].startswith("/v2/health/"):
            given = dict(scope["headers"]).get(b"authorization", b"")
            # compare_digest takes the same time for any wrong token, so that timing does not reveal parts of it
            if not hmac.compare_digest(given, self._expected):
                refusal = _refuse(Request(scope), Unauthorised("no valid bearer token"))
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


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
