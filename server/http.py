"""The small REST surface: login, health, specifications, and every command of the catalogue.

Errors are problem documents (RFC 9457) whose ``type`` is the same code as on the socket. Every answer carries
``X-Correlation-ID``, and so does every log line, event and error that follows from the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from math import ceil
from pathlib import Path
from typing import Any, Literal

import orjson
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from channels.ports import Doorman
from channels.session_methods import METHODS as SESSION_METHODS
from channels.streams import Streams
from domain.accounts import Accounts
from domain.commands import Desk, validated
from domain.credentials import Credentials
from domain.errors import FixnadoError, InvalidParams, TooManyRequests, UnknownMethod
from domain.identity import Actor
from domain.second_factor import SecondFactor
from domain.types import JSON, Origin, Point
from server.calendar_feed import CalendarFeeds
from server.forwarded import Forwarded, Network
from server.health import Degraded
from server.operations import OPERATIONS, Call, Operation
from server.requests import EVENTS_PATH, MethodNotAllowed, NoSuchPage, bearer_token, read_body
from server.telemetry import (
    METRICS_CONTENT_TYPE,
    Metrics,
    correlated,
    logger,
    sane_correlation_id,
    sane_traceparent,
)
from server.tokens import Tokens

log = logger(__name__)

CONSOLE = Path(__file__).parent / "console"
_CHECKOUT = Path(__file__).parent.parent / "clients" / "javascript" / "src"
CLIENT = _CHECKOUT if _CHECKOUT.is_dir() else Path(__file__).parent / "client"
"""The JavaScript client: beside the packages in a checkout, inside this one when installed."""

SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    ),
)

Check = Callable[[], Awaitable[str | None]]
"""Raises when the process cannot do its work without a dependency. A text says why it does it in a worse way."""


REQUEST_HEADERS = (
    "authorization",
    "content-type",
    "idempotency-key",
    "last-event-id",
    "traceparent",
    "x-correlation-id",
    "x-session",
)
"""What a page of an allowed origin may send."""


@dataclass(frozen=True, slots=True)
class Finding:
    """How a dependency is: ``ok``, ``degraded`` (still serving, and why not as it should), or ``failing``."""

    status: Literal["ok", "degraded", "failing"]
    why: str | None = None

    def shape(self) -> JSON:
        return {"status": self.status} if self.why is None else {"status": self.status, "why": self.why}


@dataclass(frozen=True, slots=True)
class Surface:
    """What the REST surface is made of.

    Attributes:
        checks: per dependency by name, for readiness.
        documents: what makes a specification, by path; called when it is first asked for.
        streams: finds the sessions of event streams, for the methods that they answer.
        events: serves those streams.
        callbacks: what carriers report to.
        spend: takes one request from a user's bucket, the one that counts on sockets too; seconds to wait, or 0.
    """

    accounts: Accounts
    second_factor: SecondFactor
    credentials: Credentials
    desk: Desk
    doorman: Doorman
    feeds: CalendarFeeds
    tokens: Tokens
    metrics: Metrics
    checks: Mapping[str, Check]
    documents: Mapping[str, Callable[[], JSON]]
    streams: Streams = field(default_factory=Streams)
    events: ASGIApp | None = None
    callbacks: Sequence[BaseRoute] = ()
    spend: Callable[[str], float] = lambda _: 0.0
    max_body_bytes: int = 65_536
    check_timeout_seconds: float = 2.0

    def routes(self) -> list[BaseRoute]:
        """Every route."""
        routes: list[BaseRoute] = [
            Route(operation.path, self._endpoint(operation), methods=[operation.method]) for operation in OPERATIONS
        ]
        routes += [
            Route("/commands/{method}", self._command, methods=["POST"]),
            Route("/calendars/{token}.ics", self._calendar),
            Route("/.well-known/jwks.json", self._jwks),
            Route("/health/live", self._live),
            Route("/health/ready", self._ready),
            Route("/metrics", self._metrics),
            Route("/", self._page),
            Mount("/console", StaticFiles(directory=CONSOLE)),
            Mount("/client", StaticFiles(directory=CLIENT)),
        ]
        if self.events is not None:
            routes.append(Route(EVENTS_PATH, self.events))
        routes += self.callbacks
        routes += [Route(path, _document(make)) for path, make in self.documents.items()]
        return routes

    def _endpoint(self, operation: Operation) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            actor = await self._signed_in(request) if operation.signed_in else None
            params = (
                validated(operation.params, await read_body(request, self.max_body_bytes)) if operation.params else None
            )
            call = Call(
                self.accounts,
                request.state.origin,
                params,
                dict(request.path_params),
                actor,
                self.second_factor,
                self.credentials,
            )
            result = await operation.run(call)
            return Response(status_code=204) if result is None else json_response(result, operation.status)

        return endpoint

    async def _command(self, request: Request) -> Response:
        actor = await self._signed_in(request)
        params = await read_body(request, self.max_body_bytes)
        method = request.path_params["method"]
        if method in SESSION_METHODS:
            return json_response(await self._of_session(request, actor, method, params))
        key = request.headers.get("idempotency-key")
        started = asyncio.get_running_loop().time()
        outcome = "internal"
        try:
            result = await self.desk.execute(method, params, actor, request.state.origin, key)
            outcome = "ok"
        except FixnadoError as error:
            outcome = error.type
            raise
        finally:
            self.metrics.command(method, outcome, asyncio.get_running_loop().time() - started)
        return json_response(result)

    async def _of_session(self, request: Request, actor: Actor, method: str, params: JSON) -> JSON:
        """A method of the event stream that ``X-Session`` names."""
        session_id = request.headers.get("x-session")
        if not session_id:
            raise UnknownMethod(f"{method} is about a session: name that of an event stream in X-Session.")
        return await self.streams.perform(session_id, actor.user_id, method, params, request.state.origin)

    async def _signed_in(self, request: Request) -> Actor:
        actor = (await self.doorman.authenticate(bearer_token(request))).actor
        wait_seconds = self.spend(actor.user_id)
        if wait_seconds > 0:
            raise TooManyRequests(wait_seconds)
        return actor

    async def _calendar(self, request: Request) -> Response:
        text = await self.feeds.text(request.path_params["token"])
        return Response(text, headers={"cache-control": "private, no-store"}, media_type="text/calendar")

    async def _jwks(self, _: Request) -> Response:
        return json_response(self.tokens.jwks(), headers={"cache-control": "public, max-age=300"})

    async def _live(self, _: Request) -> Response:
        return json_response({"status": "live"})

    async def _ready(self, _: Request) -> Response:
        found = await asyncio.gather(*map(self._check, self.checks.values()))
        dependencies = {name: finding.shape() for name, finding in zip(self.checks, found, strict=True)}
        well = all(finding.status != "failing" for finding in found)
        shape = {"status": "ready" if well else "not_ready", "dependencies": dependencies}
        return json_response(shape, 200 if well else 503)

    async def _check(self, check: Check) -> Finding:
        try:
            async with asyncio.timeout(self.check_timeout_seconds):
                why = await check()
        except TimeoutError:
            return Finding("failing", f"no answer in {self.check_timeout_seconds:g} s")
        except Degraded as error:
            return Finding("degraded", error.message)
        except FixnadoError as error:
            return Finding("failing", error.message)
        except Exception:
            log.exception("health_check_failed")
            return Finding("failing", "the check failed; the log says why")
        return Finding("ok") if why is None else Finding("degraded", why)

    async def _metrics(self, _: Request) -> Response:
        return Response(self.metrics.render(), media_type=METRICS_CONTENT_TYPE)

    async def _page(self, _: Request) -> Response:
        return FileResponse(CONSOLE / "index.html", headers={"cache-control": "no-cache"})


def _document(make: Callable[[], JSON]) -> Callable[[Request], Response]:
    made = cache(make)

    # Not a coroutine function, so it runs in a thread: the event loop does not wait while the document is made.
    def endpoint(_: Request) -> Response:
        return json_response(made())

    return endpoint


def json_response(shape: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON that nobody caches unless told so: much of it is personal."""
    headers = {"cache-control": "no-store"} | dict(headers or {})
    return Response(orjson.dumps(shape), status, headers, media_type="application/json")


def problem(error: BaseException, correlation_id: str) -> Response:
    """The problem document of an error; of an unknown one nothing but the correlation id."""
    refusal = error if isinstance(error, FixnadoError) else FixnadoError()
    shape = {
        "type": refusal.type,
        "title": HTTPStatus(refusal.status).phrase,
        "status": refusal.status,
        "detail": refusal.message,
        "retryable": refusal.retryable,
        "correlation_id": correlation_id,
        **refusal.details,
    }
    headers = {"cache-control": "no-store"}
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    if "retry_after_seconds" in refusal.details:
        headers["retry-after"] = str(max(1, ceil(refusal.details["retry_after_seconds"])))
    return Response(orjson.dumps(shape), refusal.status, headers, media_type="application/problem+json")


class Envelope:
    """Around every HTTP request: its origin in the log context and the answer, and security headers."""

    def __init__(self, app: ASGIApp, trusted_proxies: tuple[Network, ...] = ()) -> None:
        self._app = app
        self._forwarded = Forwarded(trusted_proxies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        address = self._forwarded.client(scope)
        origin = Origin(
            sane_correlation_id(_text(headers.get(b"x-correlation-id"))),
            sane_traceparent(_text(headers.get(b"traceparent"))),
            address=address,
            # Only where the connection comes from a trusted proxy: anybody else can claim to be anywhere.
            place=_place(headers) if self._forwarded.is_behind_proxy(scope) else None,
        )
        scope.setdefault("state", {})["origin"] = origin

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                correlation = (b"x-correlation-id", origin.correlation_id.encode())
                message["headers"] = [*message.get("headers", ()), correlation, *SECURITY_HEADERS]
            await send(message)

        with correlated(origin):
            await self._app(scope, receive, send_with_headers)


class Problems:
    """Errors as problem documents. Inside CORS, so that a page of an allowed origin can read why it was refused."""

    def __init__(self, app: ASGIApp) -> None:
        if isinstance(app, ExceptionMiddleware):
            # Its own answer to an unknown path or method is plain text.
            app.add_exception_handler(HTTPException, _refused_by_starlette)
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noting_start(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, noting_start)
        except ClientDisconnect:
            return
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            answer = problem(known(error), scope["state"]["origin"].correlation_id)
            await answer(scope, receive, send)


def _refused_by_starlette(request: Request, error: Exception) -> Response:
    answer = problem(known(error), request.state.origin.correlation_id)
    if isinstance(error, HTTPException) and error.headers:
        answer.headers.update(error.headers)
    return answer


def known(error: Exception) -> FixnadoError:
    """An exception as one of ours. What nobody foresaw is logged here, with everything, and leaves as ``internal``."""
    if isinstance(error, FixnadoError):
        return error
    if isinstance(error, HTTPException) and error.status_code == 404:
        return NoSuchPage()
    if isinstance(error, HTTPException) and error.status_code == 405:
        return MethodNotAllowed()
    if isinstance(error, UnicodeError):
        return InvalidParams.at("", "not valid UTF-8")
    log.error("unhandled_error", exc_info=error)
    return FixnadoError()


def middleware(allowed_origins: tuple[str, ...], trusted_proxies: tuple[Network, ...] = ()) -> list[Middleware]:
    """The layers around the routes, outermost first."""
    return [
        Middleware(Envelope, trusted_proxies=trusted_proxies),
        Middleware(
            CORSMiddleware,
            allow_origins=list(allowed_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=REQUEST_HEADERS,
            expose_headers=["x-correlation-id", "retry-after"],
        ),
        Middleware(Problems),
    ]


def _place(headers: Mapping[bytes, bytes]) -> Point | None:
    """Where the viewer's address is, as Amazon CloudFront tells its origin."""
    try:
        lat = float(headers[b"cloudfront-viewer-latitude"])
        lon = float(headers[b"cloudfront-viewer-longitude"])
    except (KeyError, ValueError):
        return None
    # NaN compares false, so it is out with the rest.
    return Point(lat, lon) if -90 <= lat <= 90 and -180 <= lon <= 180 else None


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
