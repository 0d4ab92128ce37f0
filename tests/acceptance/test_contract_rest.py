from __future__ import annotations

import asyncio
import json
import re
from typing import Any
from urllib.parse import quote

import pytest

from tests.acceptance.client import ADMIN, CAMDEN, CUSTOMER, PROVIDERS, Rest, new_key, signed_in
from tests.acceptance.demo import Demo
from tests.acceptance.shapes import TIME, ULID, assert_problem

# --- correlation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/health/live", "/auth/me", "/no/such/page", "/", "/metrics"])
async def test_a_sane_correlation_id_comes_back(rest: Rest, path: str) -> None:
    given = f"client-{new_key()}"
    answer = await rest.get(path, headers={"X-Correlation-ID": given})
    assert answer.headers["X-Correlation-ID"] == given


@pytest.mark.parametrize("bad", ["", "short", "x" * 65, "with space in it", "ümlaut-ümlaut", '{"a":"b"}', "a;b=c d,e"])
async def test_another_correlation_id_is_replaced(rest: Rest, bad: str) -> None:
    answer = await rest.get("/health/live", headers={"X-Correlation-ID": bad})
    assert answer.status == 200
    assert ULID.fullmatch(answer.headers["X-Correlation-ID"])


@pytest.mark.parametrize("forged", [b"abcdefgh\rX-Forged: 1", b"abcdefgh\n X-Forged: 1", b"abcdefgh\x00X-Forged: 1"])
async def test_line_ends_in_a_correlation_id_forge_no_header(demo_server: Demo, forged: bytes) -> None:
    answer = await raw_request(demo_server, b"GET /auth/me HTTP/1.1", b"X-Correlation-ID: " + forged)
    assert answer.startswith((b"HTTP/1.1 401", b"HTTP/1.1 400"))
    assert b"X-Forged" not in answer


async def test_line_ends_forge_no_log_line(rest: Rest, demo_server: Demo) -> None:
    forged = '\r\n{"event":"forged","level":"critical"}\r\n'
    await rest.post("/auth/login", {"email": forged, "password": forged, "device": {"id": forged}})
    await rest.get("/auth/me" + quote(forged), headers={"User-Agent": "forged"})
    token = (await rest.login(CUSTOMER))["access_token"]
    wish = {"service_id": forged, "kind": "on_demand", "location": CAMDEN}
    await rest.command("booking.create", wish, token, new_key())
    await rest.command(quote(forged, safe=""), {}, token)
    lines = [line for line in demo_server.output().splitlines() if line.startswith("{")]
    assert not any(json.loads(line)["event"] == "forged" for line in lines)


async def raw_request(demo: Demo, line: bytes, *headers: bytes) -> bytes:
    """One request, byte for byte; everything that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", demo.port)
    writer.write(b"\r\n".join([line, b"Host: x", b"Connection: close", *headers, b"", b""]))
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


async def test_the_correlation_id_reaches_error_event_and_log(rest: Rest, demo_server: Demo) -> None:
    given = f"trace-{new_key()}"
    trace = f"00-{'ab' * 16}-{'cd' * 8}-01"
    headers = {"X-Correlation-ID": given, "traceparent": trace, "Idempotency-Key": new_key()}
    async with signed_in(rest.base, CUSTOMER) as customer:
        token = (await rest.login(CUSTOMER))["access_token"]
        wish = {"service_id": "plumbing", "kind": "on_demand", "location": CAMDEN}
        made = await rest.post("/commands/booking.create", wish, token=token, headers=headers)
        booking = made.body["booking"]
        created = await customer.event("booking.created", booking_id=booking["id"])
        assert (created["correlationid"], created["traceparent"]) == (given, trace)
        cancel = {"booking_id": booking["id"], "reason": "only a test", "key": new_key()}
        await customer.call("booking.cancel", cancel)
    failed = await rest.get("/auth/me", headers={"X-Correlation-ID": given})
    assert failed.body["correlation_id"] == given


# --- health, metrics, documents, page ---------------------------------------------------------------------------------


async def test_health(rest: Rest) -> None:
    live = await rest.get("/health/live")
    assert (live.status, live.body) == (200, {"status": "live"})
    ready = await rest.get("/health/ready")
    assert ready.status == 200
    assert ready.body["status"] == "ready"
    assert ready.body["dependencies"]["database"] == {"status": "ok"}
    assert all(dependency == {"status": "ok"} for dependency in ready.body["dependencies"].values())


async def test_metrics_count_what_happens(rest: Rest) -> None:
    async def values() -> dict[str, float]:
        answer = await rest.get("/metrics")
        assert answer.status == 200
        assert answer.type == "text/plain"
        lines = [line for line in answer.raw.decode().splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    before = await values()
    async with signed_in(rest.base, ADMIN) as admin:
        await admin.call("zone.list")
        token = (await rest.login(ADMIN))["access_token"]
        await rest.command("zone.list", {}, token)
        await rest.command("no.such.method.at.all", {}, token)
        during = await values()
    assert during["fixnado_sockets"] == before["fixnado_sockets"] + 1
    listed = 'fixnado_commands_total{method="zone.list",outcome="ok"}'
    assert during[listed] == before.get(listed, 0) + 2
    assert during['fixnado_command_seconds_count{method="zone.list"}'] >= 2
    # Nobody can make labels up.
    assert not any("no.such.method" in name for name in during)
    for name in ("fixnado_deliveries_total", "fixnado_outbox_oldest_seconds", "fixnado_outbox_rows"):
        assert name in during
    assert "fixnado_commit_to_write_seconds_count" in during


async def test_the_page_and_its_client_are_served(rest: Rest) -> None:
    page = await rest.get("/")
    assert (page.status, page.type) == (200, "text/html")
    scripts = re.findall(r'(?:src|href)="(/(?:console|client)/[^"]+)"', page.raw.decode())
    assert scripts
    for path in scripts:
        assert (await rest.get(path)).status == 200, path
    for name, value in (
        ("X-Content-Type-Options", "nosniff"),
        ("X-Frame-Options", "DENY"),
        ("Referrer-Policy", "no-referrer"),
    ):
        assert page.headers[name] == value
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "path", ["/console/../http.py", "/console/%2e%2e/http.py", "/client/..%2f..%2f..%2fpyproject.toml"]
)
async def test_nothing_outside_is_served(demo_server: Demo, path: str) -> None:
    answer = await raw_request(demo_server, f"GET {path} HTTP/1.1".encode())
    assert answer.startswith(b"HTTP/1.1 404"), answer


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "type_"),
    [
        ("GET", "/no/such/page", 404, "no_such_page"),
        ("GET", "/auth", 404, "no_such_page"),
        ("GET", "/console/no-such-file.js", 404, "no_such_page"),
        ("GET", "/socket", 404, "no_such_page"),
        ("GET", "/auth/login", 405, "method_not_allowed"),
        ("PUT", "/auth/me", 405, "method_not_allowed"),
        ("POST", "/health/live", 405, "method_not_allowed"),
        ("GET", "/commands/booking.list", 405, "method_not_allowed"),
        ("DELETE", "/", 405, "method_not_allowed"),
    ],
)
async def test_wrong_addresses_are_problem_documents(
    rest: Rest, method: str, path: str, status: int, type_: str
) -> None:
    answer = await rest.send(method, path)
    assert_problem(answer, status, type_)
    if status == 405:
        assert answer.headers["Allow"]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"nonsense",
        b"[]",
        b'"text"',
        b"7",
        b"null",
        b"\xff\xfe{}",
        b'{"email": NaN}',
        b"[" * 30_000,
        b'{"a":' * 10_000,
        b'{"email":"\\ud800"}',
    ],
)
async def test_a_body_that_is_no_json_object_is_a_bad_request(rest: Rest, body: bytes) -> None:
    assert_problem(await rest.send("POST", "/auth/login", data=body), 400, "bad_request")


async def test_a_body_may_have_64_kib(rest: Rest) -> None:
    fits = json.dumps({"email": "a", "password": "b", "more": "x" * 65_000}).encode()
    assert_problem(await rest.send("POST", "/auth/login", data=fits), 422, "invalid_params")
    assert_problem(await rest.send("POST", "/auth/login", data=b" " * 65_537), 413, "too_large")


@pytest.mark.parametrize(
    ("params", "where"),
    [
        ({}, "booking_id"),
        ({"booking_id": 7}, "booking_id"),
        ({"booking_id": None}, "booking_id"),
        ({"booking_id": ["a"]}, "booking_id"),
        ({"booking_id": "x" * 65}, "booking_id"),
        ({"booking_id": "x", "extra": 1}, "extra"),
    ],
)
async def test_params_that_do_not_fit_are_named(rest: Rest, params: dict[str, Any], where: str) -> None:
    token = (await rest.login(CUSTOMER))["access_token"]
    answer = await rest.command("booking.get", params, token)
    assert_problem(answer, 422, "invalid_params")
    assert [error["where"] for error in answer.body["errors"]] == [where]


@pytest.mark.parametrize("member", ["customer_id", "status", "price", "id", "version", "provider_id", "zone_id"])
async def test_nobody_can_slip_in_an_owner_a_status_or_a_price(rest: Rest, member: str) -> None:
    token = (await rest.login(CUSTOMER))["access_token"]
    wish = {"service_id": "plumbing", "kind": "on_demand", "location": CAMDEN, member: "x"}
    answer = await rest.command("booking.create", wish, token, new_key())
    assert_problem(answer, 422, "invalid_params")
    assert [error["where"] for error in answer.body["errors"]] == [member]


@pytest.mark.parametrize("number", [2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 10**30, -1, 1.5, 1e308])
async def test_no_number_breaks_a_command(rest: Rest, number: float) -> None:
    token = (await rest.login(CUSTOMER))["access_token"]
    wish = {"service_id": "plumbing", "kind": "on_demand", "location": CAMDEN}
    booking_id = (await rest.command("booking.create", wish, token, new_key())).body["booking"]["id"]
    for method, params in (
        ("conversation.history", {"conversation_id": booking_id, "before": number}),
        ("conversation.history", {"conversation_id": booking_id, "limit": number}),
        ("booking.list", {"limit": number}),
        ("message.read", {"conversation_id": booking_id, "offset": number}),
        ("booking.transition", {"booking_id": booking_id, "to": "arrived", "version": number, "key": new_key()}),
    ):
        answer = await rest.command(method, params, token)
        assert answer.status in {200, 409, 422}, (method, answer)
    params = {"booking_id": booking_id, "reason": "only a test"}
    assert (await rest.command("booking.cancel", params, token, new_key())).status == 200


@pytest.mark.parametrize(
    "method", ["no.such", "session.connect", "channel.subscribe", "session.ack", "__init__", "x" * 999]
)
async def test_there_is_no_such_command_on_rest(rest: Rest, method: str) -> None:
    token = (await rest.login(CUSTOMER))["access_token"]
    assert_problem(await rest.command(method, {}, token), 404, "unknown_method")


async def test_a_role_that_may_not_is_told_what_a_stranger_is_told(rest: Rest) -> None:
    customer = (await rest.login(CUSTOMER))["access_token"]
    provider = (await rest.login(PROVIDERS[0]))["access_token"]
    for method, params, token in (
        ("provider.list", {}, customer),
        ("offer.list", {}, customer),
        ("booking.assign", {"booking_id": "x", "provider_id": "y", "key": new_key()}, provider),
        ("booking.create", {"service_id": "plumbing", "kind": "on_demand", "location": CAMDEN}, provider),
    ):
        assert_problem(await rest.command(method, params, token), 404, "not_found")


# --- commands and idempotency -----------------------------------------------------------------------------------------


async def test_a_command_over_rest_has_its_effect_once_per_key(rest: Rest) -> None:
    token = (await rest.login(CUSTOMER))["access_token"]
    wish = {"service_id": "plumbing", "kind": "on_demand", "location": CAMDEN, "notes": new_key()}
    key = new_key()
    answers = await asyncio.gather(*(rest.command("booking.create", wish, token, key) for _ in range(5)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.raw for answer in answers}) == 1
    listed = (await rest.command("booking.list", {"limit": 100}, token)).body["bookings"]
    assert [booking.get("notes") for booking in listed].count(wish["notes"]) == 1

    other = await rest.command("booking.create", wish | {"service_id": "electrical"}, token, key)
    assert_problem(other, 422, "key_reused")
    booking_id = answers[0].body["booking"]["id"]
    reused = await rest.command("booking.cancel", {"booking_id": booking_id, "reason": "x"}, token, key)
    assert_problem(reused, 422, "key_reused")

    # The key is the person's own: somebody else's same key is another key.
    stranger = (await rest.login(await rest.register()))["access_token"]
    theirs = await rest.command("booking.create", wish, stranger, key)
    assert theirs.status == 200
    assert theirs.body["booking"]["id"] != booking_id
    for who, made in ((token, booking_id), (stranger, theirs.body["booking"]["id"])):
        params = {"booking_id": made, "reason": "only a test"}
        assert (await rest.command("booking.cancel", params, who, new_key())).status == 200


async def test_the_key_may_travel_in_the_body_but_must_not_differ(rest: Rest) -> None:
    token = (await rest.login(CUSTOMER))["access_token"]
    wish = {"service_id": "plumbing", "kind": "on_demand", "location": CAMDEN}
    key = new_key()
    in_body = await rest.command("booking.create", wish | {"key": key}, token)
    in_header = await rest.command("booking.create", wish, token, key)
    assert in_body.status == in_header.status == 200
    assert in_body.body == in_header.body
    differs = await rest.command("booking.create", wish | {"key": key}, token, new_key())
    assert_problem(differs, 422, "invalid_params")
    missing = await rest.command("booking.create", wish, token)
    assert_problem(missing, 422, "invalid_params")
    assert [error["where"] for error in missing.body["errors"]] == ["key"]
    for bad in ("x" * 65, "a b", "ü"):
        assert_problem(await rest.command("booking.create", wish, token, bad), 422, "invalid_params")
    params = {"booking_id": in_body.body["booking"]["id"], "reason": "only a test"}
    await rest.command("booking.cancel", params, token, new_key())


async def test_a_booking_has_the_published_shape(rest: Rest) -> None:
    token = (await rest.login(CUSTOMER))["access_token"]
    wish = {
        "service_id": "electrical",
        "kind": "scheduled",
        "location": CAMDEN | {"address": "1 Camden High Street"},
        "start": "2099-05-01T09:00:00+01:00",
        "notes": "Ring twice",
    }
    booking = (await rest.command("booking.create", wish, token, new_key())).body["booking"]
    assert booking == {
        "id": booking["id"],
        "status": "awaiting_assignment",
        "version": 2,
        "kind": "scheduled",
        "service_id": "electrical",
        "zone_id": "camden",
        "customer_id": (await rest.get("/auth/me", token=token)).body["user"]["id"],
        "conversation_id": booking["id"],
        "location": CAMDEN | {"address": "1 Camden High Street"},
        "start": "2099-05-01T08:00:00.000Z",
        "end": "2099-05-01T09:00:00.000Z",
        "notes": "Ring twice",
        "price": {"amount_minor": 9500, "currency": "GBP"},
        "created_at": booking["created_at"],
        "updated_at": booking["updated_at"],
        "sla": booking["sla"],
    }
    assert ULID.fullmatch(booking["id"])
    assert TIME.fullmatch(booking["created_at"])
    got = await rest.command("booking.get", {"booking_id": booking["id"]}, token)
    assert got.body == {"booking": booking}
    params = {"booking_id": booking["id"], "reason": "only a test"}
    cancelled = (await rest.command("booking.cancel", params, token, new_key())).body["booking"]
    assert (cancelled["status"], cancelled["version"]) == ("cancelled", 3)


@pytest.mark.parametrize(
    ("change", "status", "type_"),
    [
        ({"service_id": "gardening"}, 422, "invalid_params"),
        ({"location": {"lat": 0, "lon": 0}}, 422, "outside_zones"),
        ({"location": {"lat": 91, "lon": 0}}, 422, "invalid_params"),
        ({"location": {"lat": "51.5", "lon": 0}}, 422, "invalid_params"),
        ({"location": {"lat": 51.5}}, 422, "invalid_params"),
        ({"kind": "sometime"}, 422, "invalid_params"),
        ({"kind": "scheduled"}, 422, "invalid_params"),
        ({"kind": "scheduled", "start": "2001-01-01T00:00:00Z"}, 422, "invalid_params"),
        ({"kind": "scheduled", "start": "2099-01-01T00:00:00"}, 422, "invalid_params"),
        ({"kind": "scheduled", "start": "9999-12-31T23:59:59Z"}, 422, "invalid_params"),
        ({"start": "2099-01-01T00:00:00Z"}, 422, "invalid_params"),
        ({"notes": "x" * 2001}, 422, "invalid_params"),
    ],
)
async def test_a_booking_that_cannot_be_is_refused(rest: Rest, change: dict[str, Any], status: int, type_: str) -> None:
    token = (await rest.login(CUSTOMER))["access_token"]
    wish = {"service_id": "plumbing", "kind": "on_demand", "location": CAMDEN}
    assert_problem(await rest.command("booking.create", wish | change, token, new_key()), status, type_)


# --- other origins ----------------------------------------------------------------------------------------------------

ALLOWED = "https://app.example.org"


async def test_a_page_of_an_allowed_origin_may_read_answers_and_refusals(rest: Rest) -> None:
    for path in ("/health/live", "/auth/me", "/no/such/page"):
        answer = await rest.get(path, headers={"Origin": ALLOWED})
        assert answer.headers.get("Access-Control-Allow-Origin") == ALLOWED, path
        assert "Access-Control-Allow-Credentials" not in answer.headers
    asked = await rest.send(
        "OPTIONS",
        "/commands/booking.list",
        headers={
            "Origin": ALLOWED,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,idempotency-key,content-type",
        },
    )
    assert asked.status == 200
    assert asked.headers["Access-Control-Allow-Origin"] == ALLOWED


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", f"{ALLOWED}.evil.example", "http://app.example.org", f"{ALLOWED}:8443"]
)
async def test_a_page_of_another_origin_may_read_nothing(rest: Rest, origin: str) -> None:
    answer = await rest.get("/health/live", headers={"Origin": origin})
    assert "Access-Control-Allow-Origin" not in answer.headers
    asked = await rest.send(
        "OPTIONS", "/commands/booking.list", headers={"Origin": origin, "Access-Control-Request-Method": "POST"}
    )
    assert "Access-Control-Allow-Origin" not in asked.headers
