"""The REST surface by itself: what it does when what stands behind it fails. The contract is tests/acceptance."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import httpx
import pytest
from starlette.applications import Starlette
from structlog.testing import capture_logs

from channels.ports import SignedIn
from domain.accounts import Accounts
from domain.commands import Desk
from domain.credentials import Credentials
from domain.errors import Conflict, FixnadoError, InvalidToken, TooManyRequests, Unavailable
from domain.identity import Actor, Role
from domain.second_factor import SecondFactor
from domain.types import JSON, Origin
from server.calendar_feed import CalendarFeeds
from server.http import Check, Surface, middleware
from server.telemetry import Metrics
from server.tokens import KeyRing, SigningKey, Tokens

ALLOWED = "https://app.example.org"
SIGNED_IN = {"Authorization": "Bearer good"}


class Backroom:
    """Accounts, desk and doorman in one: answers or fails as told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answer: JSON | Exception = {}
        self.asked: list[tuple[str, JSON, str | None, Origin]] = []

    async def authenticate(self, token: str) -> SignedIn:
        if token != "good":
            raise InvalidToken
        actor = Actor("user", "User", frozenset({Role.CUSTOMER}), (), "session")
        return SignedIn(actor, datetime.now(UTC) + timedelta(minutes=1))

    async def execute(self, method: str, params: JSON, actor: Actor, origin: Origin, key: str | None = None) -> JSON:
        self.asked.append((method, params, key, origin))
        return self._answer()

    async def login(self, params: object, origin: Origin) -> JSON:
        return self._answer()

    async def logout(self, actor: Actor, origin: Origin) -> None:
        self._answer()

    def _answer(self) -> JSON:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def fine() -> None:
    """A dependency that is well."""


def client_of(backroom: Backroom, checks: Mapping[str, Check] | None = None, **limits: Any) -> httpx.AsyncClient:
    surface = Surface(
        accounts=cast(Accounts, backroom),
        second_factor=cast(SecondFactor, backroom),
        credentials=cast(Credentials, backroom),
        desk=cast(Desk, backroom),
        doorman=backroom,
        feeds=cast(CalendarFeeds, backroom),
        tokens=Tokens(KeyRing(SigningKey.generate()), life_seconds=60, leeway_seconds=0),
        metrics=Metrics(methods=["thing.do"]),
        checks=checks if checks is not None else {"database": fine},
        documents={"/openapi/fixnado.v1.json": lambda: {"openapi": "3.1.0"}},
        **limits,
    )
    app = Starlette(routes=surface.routes(), middleware=middleware((ALLOWED,)))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server", headers={})


@pytest.fixture
def backroom() -> Backroom:
    return Backroom()


@pytest.fixture
async def client(backroom: Backroom) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(backroom) as client:
        yield client


# --- commands ---------------------------------------------------------------------------------------------------------


async def test_a_command_gets_params_key_and_origin(client: httpx.AsyncClient, backroom: Backroom) -> None:
    backroom.answer = {"done": True}
    headers = SIGNED_IN | {
        "Idempotency-Key": "k-1",
        "X-Correlation-ID": "correlation-1",
        "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
    }
    answer = await client.post("/commands/thing.do", json={"a": 1}, headers=headers)
    assert (answer.status_code, answer.json()) == (200, {"done": True})
    assert answer.headers["cache-control"] == "no-store"
    assert backroom.asked == [
        ("thing.do", {"a": 1}, "k-1", Origin("correlation-1", f"00-{'a' * 32}-{'b' * 16}-01", address="127.0.0.1")),
    ]


async def test_no_body_is_no_params(client: httpx.AsyncClient, backroom: Backroom) -> None:
    assert (await client.post("/commands/thing.do", headers=SIGNED_IN)).status_code == 200
    assert backroom.asked[0][1] == {}


async def test_nobody_is_asked_before_the_token_is_checked(client: httpx.AsyncClient, backroom: Backroom) -> None:
    for headers in ({}, {"Authorization": "Bearer bad"}, {"Authorization": "Basic good"}):
        answer = await client.post("/commands/thing.do", content=b"{", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    assert backroom.asked == []
    # RFC 9110 §11.1: the name of a scheme is case-insensitive.
    assert (await client.post("/commands/thing.do", headers={"Authorization": "bEARER good"})).status_code == 200


@pytest.mark.parametrize(
    ("error", "status", "more"),
    [
        (Conflict(version=7), 409, {"version": 7, "retryable": False}),
        (Unavailable(), 503, {"retryable": True}),
        (TooManyRequests(1.5), 429, {"retry_after_seconds": 1.5, "retryable": True}),
    ],
)
async def test_a_refusal_becomes_a_problem_document(
    client: httpx.AsyncClient, backroom: Backroom, error: FixnadoError, status: int, more: JSON
) -> None:
    backroom.answer = error
    answer = await client.post("/commands/thing.do", headers=SIGNED_IN | {"Origin": ALLOWED})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert (body["type"], body["detail"], body["status"]) == (error.type, error.message, status)
    assert body.items() >= more.items()
    assert body["correlation_id"] == answer.headers["x-correlation-id"]
    # A page of an allowed origin must be able to read it.
    assert answer.headers["access-control-allow-origin"] == ALLOWED
    assert ("retry-after" in answer.headers) is (status == 429)


@pytest.mark.parametrize("error", [RuntimeError("hidden detail"), KeyError("hidden"), ValueError("hidden")])
async def test_a_crash_shows_the_correlation_id_and_nothing_else(
    client: httpx.AsyncClient, backroom: Backroom, error: Exception
) -> None:
    backroom.answer = error
    with capture_logs() as log:
        answer = await client.post("/commands/thing.do", headers=SIGNED_IN | {"X-Correlation-ID": "correlation-1"})
    assert answer.status_code == 500
    assert answer.json() == {
        "type": "internal",
        "title": "Internal Server Error",
        "status": 500,
        "detail": "Something went wrong on our side.",
        "retryable": False,
        "correlation_id": "correlation-1",
    }
    assert "hidden" not in answer.text
    assert [line["event"] for line in log] == ["unhandled_error"]
    assert log[0]["exc_info"] is error


async def test_commands_are_counted_by_result(client: httpx.AsyncClient, backroom: Backroom) -> None:
    await client.post("/commands/thing.do", headers=SIGNED_IN)
    for error in (Conflict(), RuntimeError()):
        backroom.answer = error
        await client.post("/commands/thing.do", headers=SIGNED_IN)
        await client.post("/commands/made.up", headers=SIGNED_IN)
    text = (await client.get("/metrics")).text
    for method, outcome, count in (("thing.do", "ok", 1), ("thing.do", "conflict", 1), ("other", "internal", 1)):
        assert f'fixnado_commands_total{{method="{method}",outcome="{outcome}"}} {count}.0' in text
    assert "made.up" not in text


# --- bodies -----------------------------------------------------------------------------------------------------------


async def test_a_large_body_is_refused_while_it_comes(backroom: Backroom) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 100
            yield b" " * 100

    async with client_of(backroom, max_body_bytes=1000) as client:
        answer = await client.post("/auth/login", content=endless())
    assert (answer.status_code, answer.json()["type"]) == (413, "too_large")
    assert sent <= 1200


@pytest.mark.parametrize(
    "body",
    [
        b'{"booking_id": "mine", "booking_id": "yours"}',
        b'{"location": {"lat": 1, "lat": 2}}',
        b"[" * 40 + b"]" * 40,
        b'{"a":' * 40 + b"1" + b"}" * 40,
        b'{"price": NaN}',
        b'{"name": "\xff"}',
        b'{"name": "\\ud800"}',
    ],
)
async def test_a_body_that_could_be_read_in_two_ways_is_refused(
    client: httpx.AsyncClient, backroom: Backroom, body: bytes
) -> None:
    answer = await client.post("/commands/thing.do", content=body, headers=SIGNED_IN)
    assert (answer.status_code, answer.json()["type"]) == (400, "bad_request")
    assert backroom.asked == []


# --- health -----------------------------------------------------------------------------------------------------------


async def test_readiness_names_what_is_failing(backroom: Backroom) -> None:
    async def away() -> None:
        raise Unavailable("The database does not answer.")

    async def hangs() -> None:
        await asyncio.sleep(60)

    checks = {"database": away, "broker": fine, "disk": hangs}
    async with client_of(backroom, checks, check_timeout_seconds=0.05) as client:
        ready = await client.get("/health/ready")
        live = await client.get("/health/live")
    assert ready.status_code == 503
    assert ready.json() == {
        "status": "not_ready",
        "dependencies": {
            "database": {"status": "failing", "why": "The database does not answer."},
            "broker": {"status": "ok"},
            "disk": {"status": "failing", "why": "no answer in 0.05 s"},
        },
    }
    assert live.status_code == 200


async def test_what_is_degraded_is_named_and_leaves_the_node_ready(backroom: Backroom) -> None:
    async def tailing() -> str:
        return "tailing: Redis is away"

    async with client_of(backroom, {"database": fine, "broker": tailing}) as client:
        ready = await client.get("/health/ready")
    assert ready.status_code == 200
    assert ready.json() == {
        "status": "ready",
        "dependencies": {
            "database": {"status": "ok"},
            "broker": {"status": "degraded", "why": "tailing: Redis is away"},
        },
    }


async def test_a_check_that_breaks_fails_readiness_and_hides_why(backroom: Backroom) -> None:
    async def breaks() -> None:
        raise RuntimeError("mysql://root:secret@host")

    async with client_of(backroom, {"database": fine, "schema": breaks}) as client:
        ready = await client.get("/health/ready")
    assert ready.status_code == 503
    assert ready.json()["dependencies"]["database"] == {"status": "ok"}
    assert ready.json()["dependencies"]["schema"]["status"] == "failing"
    assert "secret" not in ready.text


# --- envelope ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/auth/login", 405), ("GET", "/console/no.js", 404), ("POST", "/", 405)],
)
async def test_every_answer_carries_the_envelope(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    answer = await client.request(method, path, headers={"X-Correlation-ID": "correlation-1"})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-correlation-id"] == "correlation-1"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert ("allow" in answer.headers) is (status == 405)


async def test_head_is_answered_like_get_without_a_body(client: httpx.AsyncClient) -> None:
    answer = await client.head("/health/live")
    assert (answer.status_code, answer.content) == (200, b"")


async def test_documents_are_served_as_given(client: httpx.AsyncClient) -> None:
    assert (await client.get("/openapi/fixnado.v1.json")).json() == {"openapi": "3.1.0"}
