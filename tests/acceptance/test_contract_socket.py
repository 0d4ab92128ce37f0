from __future__ import annotations

import json

import aiohttp
import pytest

from tests.acceptance.client import (
    ADMIN,
    CUSTOMER,
    JSON,
    PROVIDERS,
    SUBPROTOCOL,
    Closed,
    Rest,
    Socket,
    new_key,
    signed_in,
)
from tests.acceptance.demo import Demo
from tests.acceptance.shapes import NOBODY, TIME, ULID, assert_error
from tests.acceptance.town import refusal, token_of

# --- connecting -------------------------------------------------------------------------------------------------------


async def test_the_result_of_connecting(demo_server: Demo) -> None:
    async with Rest(demo_server.base) as rest:
        user = (await rest.login(PROVIDERS[0]))["user"]
    async with signed_in(demo_server.base, PROVIDERS[0]) as socket:
        assert socket.websocket.protocol == SUBPROTOCOL
        # A compressed frame can be small and become large: not offered.
        assert not socket.websocket.compress
        result = socket.connected
        assert result.keys() == {
            "session",
            "user",
            "heartbeat_seconds",
            "expires_in_seconds",
            "server_time",
            "channels",
        }
        assert ULID.fullmatch(result["session"])
        assert result["user"] == {"id": user["id"], "roles": ["provider"]}
        assert result["heartbeat_seconds"] == 25
        assert 890 <= result["expires_in_seconds"] <= 900
        assert TIME.fullmatch(result["server_time"])
        assert result["channels"].keys() == {f"user:{user['id']}", f"provider:{user['provider_ids'][0]}"}
        mine = result["channels"][f"user:{user['id']}"]
        assert mine.keys() == {"epoch", "offset", "recovered", "events"}
        assert (mine["recovered"], mine["events"]) == (False, [])
        provider = result["channels"][f"provider:{user['provider_ids'][0]}"]
        assert provider.keys() == {"epoch", "offset", "recovered", "events", "state"}
        assert provider["state"].keys() == {"provider", "offers", "bookings"}
        assert provider["state"]["provider"]["id"] == user["provider_ids"][0]


@pytest.mark.parametrize(
    ("email", "kinds"), [(CUSTOMER, {"user"}), (PROVIDERS[1], {"user", "provider"}), (ADMIN, {"user", "admin"})]
)
async def test_everybody_gets_their_own_channels(demo_server: Demo, email: str, kinds: set[str]) -> None:
    async with signed_in(demo_server.base, email) as socket:
        channels = socket.connected["channels"]
        assert {name.partition(":")[0] for name in channels} == kinds
        if "admin" in kinds:
            state = channels["admin:bookings"]["state"]
            assert state.keys() == {"bookings", "offers", "providers", "rescues", "stalls", "zones"}
            assert state["zones"][0]["geometry"]["type"] == "Polygon"


async def test_a_native_app_without_origin_is_let_in_and_so_is_an_allowed_page(demo_server: Demo) -> None:
    for origin in (None, demo_server.base, "https://app.example.org", "https://APP.example.org:443"):
        async with signed_in(demo_server.base, CUSTOMER, origin=origin) as socket:
            assert socket.connected["session"]


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "https://evil.example",
        "http://app.example.org",
        "https://app.example.org.evil.example",
        "https://app.example.org:8443",
        "https://evil-app.example.org",
        "https://app.example.org@evil.example",
        "https://аpp.example.org",
        "http://127.0.0.1",
        "http://localhost:{port}",
        "https://127.0.0.1:{port}",
        "file://",
        "http://127.0.0.1:{port}, http://evil.example",
    ],
)
async def test_another_origin_is_refused_before_the_upgrade(demo_server: Demo, origin: str) -> None:
    headers = {"Origin": origin.format(port=demo_server.port)}
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await Socket.open(demo_server.base, headers=headers)
    assert caught.value.status == 403


async def test_a_refused_upgrade_carries_the_correlation_id(demo_server: Demo) -> None:
    headers = {"Origin": "https://evil.example", "X-Correlation-ID": "correlation-1"}
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await Socket.open(demo_server.base, headers=headers)
    assert caught.value.headers is not None
    assert caught.value.headers.get("X-Correlation-ID") == "correlation-1"


async def test_a_socket_elsewhere_is_not_there(demo_server: Demo) -> None:
    for path in ("/", "/sockets", "/socket/", "/auth/login"):
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await Socket.open(demo_server.base, path=path)
        assert caught.value.status == 404, path


@pytest.mark.parametrize("query", ["token={}", "access_token={}", "Authorization=Bearer%20{}", "x={}", "t=1&a={}"])
async def test_a_token_in_the_url_is_refused_and_never_logged(demo_server: Demo, query: str) -> None:
    token = await token_of(demo_server, CUSTOMER)
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await Socket.open(demo_server.base, path=f"/socket?{query.format(token)}")
    assert caught.value.status == 400
    assert token not in demo_server.output()
    assert token.rpartition(".")[2] not in demo_server.output()


async def test_a_cookie_or_a_header_authenticates_no_socket(demo_server: Demo) -> None:
    token = await token_of(demo_server, CUSTOMER)
    headers = {"Cookie": f"token={token}; session={token}", "Authorization": f"Bearer {token}"}
    socket = await Socket.open(demo_server.base, headers=headers)
    assert_error(await refusal(socket, "booking.list"), -32001, "not_authenticated", 401)
    await socket.close()


async def test_another_subprotocol_is_closed_4506(demo_server: Demo) -> None:
    for protocols in ((), ("fixnado.v2",), ("graphql-ws", "soap")):
        socket = await Socket.open(demo_server.base, protocols=protocols)
        assert await socket.close_code() == 4506
        await socket.close()
    socket = await Socket.open(demo_server.base, protocols=("other", SUBPROTOCOL))
    assert socket.websocket.protocol == SUBPROTOCOL
    await socket.close()


@pytest.mark.parametrize("token", ["nonsense", "a.b.c", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.", "x" * 8000])
async def test_an_invalid_token_is_answered_and_closed_4500(demo_server: Demo, token: str) -> None:
    socket = await Socket.open(demo_server.base)
    assert_error(await refusal(socket, "session.connect", {"token": token}), -32001, "invalid_token", 401)
    assert await socket.close_code() == 4500
    await socket.close()


async def test_a_token_that_was_signed_out_is_closed_4500(demo_server: Demo, rest: Rest) -> None:
    token = (await rest.login(await rest.register()))["access_token"]
    await rest.post("/auth/logout", token=token)
    socket = await Socket.open(demo_server.base)
    assert_error(await refusal(socket, "session.connect", {"token": token}), -32001, "invalid_token", 401)
    assert await socket.close_code() == 4500
    await socket.close()


@pytest.mark.parametrize(
    ("params", "where"),
    [
        ({}, "token"),
        ({"token": 7}, "token"),
        ({"token": "t", "client": 7}, "client"),
        ({"token": "t", "client": "x" * 101}, "client"),
        ({"token": "t", "password": "p"}, "password"),
        ({"token": "t", "resume": []}, "resume"),
        ({"token": "t", "resume": {"user:1": 7}}, "resume.user:1"),
        ({"token": "t", "resume": {"user:1": {"epoch": "e"}}}, "resume.user:1"),
        ({"token": "t", "resume": {"user:1": {"epoch": "e", "offset": -1}}}, "resume.user:1.offset"),
        ({"token": "t", "resume": {"user:1": {"epoch": 1, "offset": 1}}}, "resume.user:1.epoch"),
        ({"token": "t", "resume": {"user:1": {"epoch": "e", "offset": True}}}, "resume.user:1.offset"),
    ],
)
async def test_connecting_with_wrong_params_says_where(demo_server: Demo, params: JSON, where: str) -> None:
    socket = await Socket.open(demo_server.base)
    error = await refusal(socket, "session.connect", params)
    assert_error(error, -32602, "invalid_params", 422, "errors")
    assert [problem["where"] for problem in error["data"]["errors"]] == [where]
    # It may try again: nothing has happened.
    await socket.connect(await token_of(demo_server, CUSTOMER))
    await socket.close()


async def test_before_connecting_no_method_has_an_effect(demo_server: Demo, rest: Rest) -> None:
    paths = (await rest.get("/openapi/fixnado.v1.json")).body["paths"]
    methods = [path.removeprefix("/commands/") for path in paths if path.startswith("/commands/")]
    assert len(methods) > 15
    others = ["session.refresh", "session.ack", "channel.subscribe", "channel.presence", "no.such"]
    # A stranger may send only so many frames, hence a socket for each ten.
    for some in (*(methods[start : start + 10] for start in range(0, len(methods), 10)), others):
        socket = await Socket.open(demo_server.base)
        for method in some:
            error = await refusal(socket, method, {"channel": "admin:bookings"})
            assert_error(error, -32001, "not_authenticated", 401)
        # A notification gets no answer either way; the socket lives.
        await socket.send('{"jsonrpc":"2.0","method":"booking.list","params":{}}')
        await socket.connect(await token_of(demo_server, CUSTOMER))
        assert socket.stray == []
        await socket.close()


async def test_connecting_twice_is_refused_and_harmless(demo_server: Demo) -> None:
    async with signed_in(demo_server.base, CUSTOMER) as socket:
        token = await token_of(demo_server, ADMIN)
        assert_error(await refusal(socket, "session.connect", {"token": token}), -32000, "refused", 409)
        assert_error(await refusal(socket, "provider.list"), -32003, "not_found", 404)
        assert "services" in await socket.call("service.list")


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code", "type_"),
    [
        ("nonsense", -32700, "parse_error"),
        ("", -32700, "parse_error"),
        ('{"jsonrpc":"2.0","id":1,"method":"service.list"', -32700, "parse_error"),
        ('{"jsonrpc":"2.0","id":1,"method":"service.list","params":{"a":NaN}}', -32700, "parse_error"),
        ('{"jsonrpc":"2.0","id":1,"method":"service.list","params":{"a":-Infinity}}', -32700, "parse_error"),
        ('{"jsonrpc":"2.0","id":1,"method":"service.list","params":{"a":"\\ud800"}}', -32700, "parse_error"),
        ("[" * 20_000, -32700, "parse_error"),
        ("7", -32600, "invalid_request"),
        ("null", -32600, "invalid_request"),
        ("[]", -32600, "invalid_request"),
        ('[{"jsonrpc":"2.0","id":1,"method":"service.list"}]', -32600, "invalid_request"),
        ("{}", -32600, "invalid_request"),
        ('{"id":1,"method":"service.list"}', -32600, "invalid_request"),
        ('{"jsonrpc":"1.0","id":1,"method":"service.list"}', -32600, "invalid_request"),
        ('{"jsonrpc":"2.0","id":1}', -32600, "invalid_request"),
        ('{"jsonrpc":"2.0","id":1,"method":7}', -32600, "invalid_request"),
        ('{"jsonrpc":"2.0","id":1,"method":"service.list","params":[]}', -32600, "invalid_request"),
        ('{"jsonrpc":"2.0","id":1.5,"method":"service.list"}', -32600, "invalid_request"),
        ('{"jsonrpc":"2.0","id":true,"method":"service.list"}', -32600, "invalid_request"),
        ('{"jsonrpc":"2.0","id":{},"method":"service.list"}', -32600, "invalid_request"),
        ('{"jsonrpc":"2.0","id":1,"method":"service.list","extra":1}', -32600, "invalid_request"),
        ('{"jsonrpc":"2.0","id":1,"id":2,"method":"service.list"}', -32600, "invalid_request"),
        ('{"jsonrpc":"2.0","id":1,"method":"service.list","params":{"a":1,"a":2}}', -32600, "invalid_request"),
        (
            '{"jsonrpc":"2.0","id":1,"method":"service.list","params":{"a":' + "[" * 60 + "]" * 60 + "}}",
            -32600,
            "invalid_request",
        ),
    ],
)
async def test_a_bad_frame_gets_a_typed_error_and_the_socket_lives(
    demo_server: Demo, text: str, code: int, type_: str
) -> None:
    async with signed_in(demo_server.base, CUSTOMER) as socket:
        reply = await socket.raw_reply(text)
        assert_error(reply["error"], code, type_, 400)
        assert reply["jsonrpc"] == "2.0"
        assert reply["id"] in {None, 1, 2}
        assert "services" in await socket.call("service.list")


async def test_an_error_reaches_the_request_it_belongs_to(demo_server: Demo) -> None:
    async with signed_in(demo_server.base, CUSTOMER) as socket:
        for request_id in (0, -5, 2**53, "text", ""):
            reply = await socket.ask(
                request_id, json.dumps({"jsonrpc": "2.0", "id": request_id, "method": "service.list", "params": []})
            )
            assert reply["id"] == request_id
            reply = await socket.ask(
                request_id, json.dumps({"jsonrpc": "2.0", "id": request_id, "method": "service.list"})
            )
            assert reply.keys() == {"jsonrpc", "id", "result"}


@pytest.mark.parametrize(
    ("method", "params", "code", "type_", "status", "more"),
    [
        ("no.such", {}, -32601, "unknown_method", 404, ()),
        ("__class__", {}, -32601, "unknown_method", 404, ()),
        ("booking.get", {}, -32602, "invalid_params", 422, ("errors",)),
        ("booking.get", {"booking_id": 1}, -32602, "invalid_params", 422, ("errors",)),
        ("service.list", {"surprise": 1}, -32602, "invalid_params", 422, ("errors",)),
        ("channel.subscribe", {}, -32602, "invalid_params", 422, ("errors",)),
        ("channel.subscribe", {"channel": 7}, -32602, "invalid_params", 422, ("errors",)),
        ("channel.subscribe", {"channel": "user:1", "resume": 7}, -32602, "invalid_params", 422, ("errors",)),
        ("channel.unsubscribe", {"surprise": 1}, -32602, "invalid_params", 422, ("errors",)),
        ("channel.presence", {}, -32602, "invalid_params", 422, ("errors",)),
        ("session.ack", {"user:1": "x"}, -32602, "invalid_params", 422, ("errors",)),
        ("session.ack", {"user:1": -1}, -32602, "invalid_params", 422, ("errors",)),
        ("session.refresh", {}, -32602, "invalid_params", 422, ("errors",)),
        ("session.refresh", {"token": "nonsense"}, -32001, "invalid_token", 401, ()),
        ("booking.get", {"booking_id": NOBODY}, -32003, "not_found", 404, ()),
        ("provider.list", {}, -32003, "not_found", 404, ()),
        ("channel.presence", {"channel": "admin:bookings"}, -32003, "not_found", 404, ()),
    ],
)
async def test_each_refusal_has_its_code(
    demo_server: Demo, method: str, params: JSON, code: int, type_: str, status: int, more: tuple[str, ...]
) -> None:
    async with signed_in(demo_server.base, CUSTOMER) as socket:
        error = await refusal(socket, method, params)
        assert_error(error, code, type_, status, *more)
        for problem in error["data"].get("errors", []):
            assert problem.keys() == {"where", "why"}
        assert not socket.ended


async def test_a_domain_refusal_is_the_same_on_the_socket_and_on_rest(demo_server: Demo, rest: Rest) -> None:
    async with signed_in(demo_server.base, CUSTOMER) as socket:
        token = await token_of(demo_server, CUSTOMER)
        wish = {"service_id": "plumbing", "kind": "on_demand", "location": {"lat": 0.0, "lon": 0.0}, "key": new_key()}
        error = await refusal(socket, "booking.create", wish)
        assert_error(error, -32000, "outside_zones", 422)
        body = (await rest.command("booking.create", wish, token)).body
        assert (body["type"], body["status"], body["retryable"]) == ("outside_zones", 422, False)
        assert body["detail"] == error["message"]


async def test_a_binary_frame_is_closed_4501(demo_server: Demo) -> None:
    async with signed_in(demo_server.base, CUSTOMER) as socket:
        await socket.websocket.send_bytes(b"\x00\x01")
        assert await socket.close_code() == 4501


async def test_frame_after_bad_frame_is_answered_and_then_closed_4501(demo_server: Demo) -> None:
    async with signed_in(demo_server.base, CUSTOMER) as socket:
        for _ in range(50):
            await socket.send("garbage")
            if socket.ended:
                break
        assert await socket.close_code() == 4501
        assert {reply["error"]["code"] for reply in socket.stray} == {-32700}


async def test_a_frame_over_64_kib_is_closed_1009(demo_server: Demo) -> None:
    async with signed_in(demo_server.base, CUSTOMER) as socket:
        head, tail = '{"jsonrpc":"2.0","id":1,"method":"service.list","params":{"a":"', '"}}'
        most = head + "x" * (65_536 - len(head) - len(tail)) + tail
        reply = await socket.ask(1, most)
        assert reply["error"]["code"] == -32602
        with pytest.raises(Closed):
            await socket.ask(1, most.replace("x", "xx", 1))
        assert await socket.close_code() == 1009


async def test_text_that_is_not_utf8_is_closed_1007(demo_server: Demo) -> None:
    async with signed_in(demo_server.base, CUSTOMER) as socket:
        await socket.websocket.send_frame(b'{"jsonrpc":"2.0","id":1,"method":"\xff\xfe"}', aiohttp.WSMsgType.TEXT)
        assert await socket.close_code() == 1007
    async with signed_in(demo_server.base, CUSTOMER) as socket:
        assert "services" in await socket.call("service.list")


async def test_huge_offsets_do_no_harm(demo_server: Demo) -> None:
    for offset in (2**31, 2**63 - 1, 2**63, 2**64 - 1):
        async with signed_in(demo_server.base, PROVIDERS[0]) as socket:
            channel = socket.own("provider")
            assert await socket.call("session.ack", {channel: offset}) == {}
            for name in (channel, socket.own("user")):
                resumed = await socket.call(
                    "channel.subscribe",
                    {"channel": name, "resume": {"epoch": socket.positions[name]["epoch"], "offset": offset}},
                )
                assert resumed["recovered"] is False
