"""The door and the session on real sockets, with a client library that shares no code with the server's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from channels.limits import Limits
from channels.topics import CONTROL
from domain.types import JSON
from server.door import DoorPolicy, normal_origin
from server.forwarded import Forwarded, networks
from tests.channels.fakes import until
from tests.server.live_server import LiveServer, RawSocket, handshake, live_server


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture(autouse=True)
async def _no_connection_left() -> AsyncIterator[None]:
    yield
    await RawSocket.close_all()


@pytest.fixture
async def live() -> AsyncIterator[LiveServer]:
    async with live_server(Limits(), DoorPolicy(allowed_origins=frozenset({"https://app.fixnado.com"}))) as server:
        yield server


Socket = aiohttp.ClientWebSocketResponse


async def connect(http: aiohttp.ClientSession, live: LiveServer, who: str = "customer:ada", **options: Any) -> Socket:
    socket: Socket = await http.ws_connect(live.url, protocols=["fixnado.v1"], **options)
    await call(socket, "session.connect", {"token": who})
    return socket


async def call(socket: Socket, method: str, params: JSON | None = None) -> JSON:
    await socket.send_json({"jsonrpc": "2.0", "id": method, "method": method, "params": params or {}})
    while True:
        message: JSON = await socket.receive_json(timeout=5)
        if message.get("id") == method:
            return message


async def close_code(socket: Socket) -> int | None:
    while (await socket.receive(timeout=10)).type not in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED):
        pass
    return socket.close_code


def kill(socket: Socket) -> None:
    """End the connection as a crash of the client would."""
    transport = socket._writer.transport
    assert transport is not None
    transport.abort()


async def refused_with(http: aiohttp.ClientSession, url: str, **options: Any) -> int:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await http.ws_connect(url, protocols=["fixnado.v1"], **options)
    return refused.value.status


# The door


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.test",
        "null",
        "https://app.fixnado.com.evil.test",
        "https://app.fixnado.com:8443",
        "http://app.fixnado.com",
        "https://app.fixnado.com@evil.test",
        "https://app.fixnado.com/",
        "https://app-fixnado.com",
        "http://127.0.0.1",
        "file://",
        "",
    ],
)
async def test_a_foreign_origin_is_refused_before_the_upgrade(
    http: aiohttp.ClientSession, live: LiveServer, origin: str
) -> None:
    assert await refused_with(http, live.url, headers={"Origin": origin}) == 403
    assert live.door.slots.taken == 0


async def test_two_origins_are_refused(http: aiohttp.ClientSession, live: LiveServer) -> None:
    raw = await RawSocket.tcp(live.port)
    request = handshake(live.port, Origin="https://app.fixnado.com")
    raw.writer.write(request.replace(b"\r\n\r\n", b"\r\nOrigin: https://evil.test\r\n\r\n"))
    # The WebSocket parser refuses it even before the endpoint does.
    assert (await raw.reader.readline()).split()[1] in (b"400", b"403")
    raw.writer.close()


async def test_own_and_allowed_origins_and_none_are_let_in(http: aiohttp.ClientSession, live: LiveServer) -> None:
    own = f"http://127.0.0.1:{live.port}"
    for headers in ({}, {"Origin": own}, {"Origin": own.upper()}, {"Origin": "https://app.fixnado.com"}):
        socket = await connect(http, live, headers=headers)
        assert socket.protocol == "fixnado.v1"
        await socket.close()


@pytest.mark.parametrize("query", ["token=x", "access_token=x", "TOKEN=x", "a=1&jwt=", "x=eyJhbGciOi.eyJzdWIi.sig"])
async def test_a_token_in_the_url_is_refused_and_not_logged(
    http: aiohttp.ClientSession, live: LiveServer, query: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    # The client of this test may log what it asks for; the server may not.
    assert await refused_with(http, f"{live.url}?{query}") == 400
    assert query not in caplog.text


async def test_a_query_without_secrets_is_not_logged_either(
    http: aiohttp.ClientSession, live: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    socket = await http.ws_connect(f"{live.url}?client=ios", protocols=["fixnado.v1"])
    await socket.close()
    assert "client=ios" not in caplog.text


async def test_a_cookie_signs_nobody_in(http: aiohttp.ClientSession, live: LiveServer) -> None:
    socket = await http.ws_connect(
        live.url, protocols=["fixnado.v1"], headers={"Cookie": "session=customer:ada; token=customer:ada"}
    )
    assert (await call(socket, "test.echo"))["error"]["code"] == -32001
    await socket.close()


@pytest.mark.parametrize("protocols", [[], ["fixnado.v2"], ["graphql-ws", "FIXNADO.V1"]])
async def test_another_subprotocol_is_closed_4506(
    http: aiohttp.ClientSession, live: LiveServer, protocols: list[str]
) -> None:
    socket = await http.ws_connect(live.url, protocols=protocols)
    assert await close_code(socket) == 4506
    await until(lambda: live.door.slots.taken == 0)


async def test_one_of_several_subprotocols_is_chosen(http: aiohttp.ClientSession, live: LiveServer) -> None:
    socket = await http.ws_connect(live.url, protocols=["graphql-ws", "fixnado.v1"])
    assert socket.protocol == "fixnado.v1"
    await socket.close()


async def test_another_path_has_no_socket(http: aiohttp.ClientSession, live: LiveServer) -> None:
    assert await refused_with(http, live.url + "s") == 404


async def test_caps_per_address_and_in_all_and_a_killed_client_frees_its_slot(http: aiohttp.ClientSession) -> None:
    proxy = DoorPolicy(max_sockets=3, max_sockets_per_address=2, trusted_proxies=networks(["127.0.0.0/8"]))
    async with live_server(policy=proxy) as live:

        def of(address: str) -> dict[str, Any]:
            return {"headers": {"X-Forwarded-For": address}}

        first = await connect(http, live, **of("192.0.2.1"))
        second = await connect(http, live, "customer:bo", **of("192.0.2.1"))
        assert await refused_with(http, live.url, **of("192.0.2.1")) == 429
        third = await connect(http, live, "customer:cy", **of("2001:db8:1:2::3"))
        assert await refused_with(http, live.url, **of("192.0.2.9")) == 503
        kill(first)
        await until(lambda: live.door.slots.taken == 2)
        fourth = await connect(http, live, **of("192.0.2.1"))
        assert not any(socket.closed for socket in (second, third, fourth))


async def test_forwarded_headers_of_strangers_do_not_count(http: aiohttp.ClientSession) -> None:
    async with live_server(policy=DoorPolicy(max_sockets_per_address=1)) as live:
        socket = await connect(http, live, headers={"X-Forwarded-For": "192.0.2.1"})
        assert await refused_with(http, live.url, headers={"X-Forwarded-For": "192.0.2.2"}) == 429
        assert not socket.closed


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.5", ["198.51.100.1"], "203.0.113.5"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["6.6.6.6, 198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["6.6.6.6", "198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["6.6.6.6, nonsense"], "10.0.0.1"),
        ("::ffff:10.0.0.1", ["2001:db8::7"], "2001:db8::7"),
    ],
)
def test_the_client_is_the_last_hop_that_is_no_trusted_proxy(peer: str, forwarded: list[str], client: str) -> None:
    scope = {"client": (peer, 1), "headers": [(b"x-forwarded-for", value.encode()) for value in forwarded]}
    assert Forwarded(networks(["10.0.0.0/8"])).client(scope) == client


@pytest.mark.parametrize(
    ("peer", "forwarded", "scheme"),
    [("10.0.0.1", b"https", "https"), ("9.9.9.9", b"https", "http"), ("10.0.0.1", b"gopher", "http")],
)
def test_the_scheme_is_told_by_trusted_proxies_only(peer: str, forwarded: bytes, scheme: str) -> None:
    scope = {"scheme": "ws", "client": (peer, 1), "headers": [(b"x-forwarded-proto", forwarded)]}
    assert Forwarded(networks(["10.0.0.0/8"])).scheme(scope) == scheme


@pytest.mark.parametrize(
    ("origin", "normal"),
    [
        ("https://App.Fixnado.com", "https://app.fixnado.com:443"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("null", None),
        ("https://a b", None),
        ("https://user@host", None),
        ("chrome-extension://abc", None),
    ],
)
def test_origins_are_compared_in_one_form(origin: str, normal: str | None) -> None:
    assert normal_origin(origin) == normal


# The session through it


async def test_events_reach_an_independent_client_and_a_dropped_one_resumes(
    http: aiohttp.ClientSession, live: LiveServer
) -> None:
    house = live.house
    house.access.let("booking:b", "ada")
    socket = await connect(http, live)
    first = (await call(socket, "channel.subscribe", {"channel": "booking:b"}))["result"]
    await house.commit("booking:b")
    event = (await socket.receive_json(timeout=5))["params"]
    assert (event["channel"], event["offset"]) == ("booking:b", 1)
    kill(socket)
    await until(lambda: house.realtime.sockets == 0)
    for _ in range(3):
        await house.commit("booking:b")
    again = await connect(http, live)
    resume = {"epoch": first["epoch"], "offset": event["offset"]}
    result = (await call(again, "channel.subscribe", {"channel": "booking:b", "resume": resume}))["result"]
    assert result["recovered"] is True
    assert [missed["offset"] for missed in result["events"]] == [2, 3, 4]


async def test_close_codes_reach_the_client(http: aiohttp.ClientSession, live: LiveServer) -> None:
    forged = await http.ws_connect(live.url, protocols=["fixnado.v1"])
    assert (await call(forged, "session.connect", {"token": "forged"}))["error"]["code"] == -32001
    assert await close_code(forged) == 4500
    revoked = await connect(http, live)
    await live.house.commit(CONTROL, {"session_ids": ["sign-in-ada"]}, event_type="session.revoked")
    assert await close_code(revoked) == 4503
    binary = await connect(http, live)
    await binary.send_bytes(b"x")
    assert await close_code(binary) == 4501


async def test_time_limits_close_real_sockets(http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("channels.heartbeat.TICK_SECONDS", 0.05)
    limits = Limits(connect_seconds=0.2, heartbeat_seconds=0.3, heartbeat_grace_seconds=0.2, token_grace_seconds=0.1)
    async with live_server(limits) as live:
        silent = await http.ws_connect(live.url, protocols=["fixnado.v1"])
        expiring = await connect(http, live, "customer:ada;0.4")
        mute = await connect(http, live, "customer:bo")
        seen = []
        while True:
            message = await expiring.receive(timeout=5)
            if message.type is not aiohttp.WSMsgType.TEXT:
                break
            seen.append(message.json()["method"])
            await expiring.send_json({"jsonrpc": "2.0", "method": "pong"})
        assert "session.expiring" in seen
        assert "ping" in seen
        assert expiring.close_code == 4002
        assert await close_code(mute) == 4005
        assert await close_code(silent) == 4502


async def test_no_task_stays_for_an_idle_socket(http: aiohttp.ClientSession, live: LiveServer) -> None:
    before = len(live.server.server_state.tasks)
    sockets = [await connect(http, live, f"customer:u{n}") for n in range(5)]
    await until(lambda: not live.house.realtime._node.tasks)
    assert len(live.server.server_state.tasks) == before
    assert len(live.server.server_state.connections) >= len(sockets)


# Draining


async def test_a_stopping_server_sends_clients_away_and_waits_for_their_answers(http: aiohttp.ClientSession) -> None:
    async with live_server(drain_seconds=0.3) as live:
        socket = await connect(http, live)
        await socket.send_json({"jsonrpc": "2.0", "id": 7, "method": "test.wait"})
        await live.house.desk.started.wait()
        live.server.should_exit = True
        assert (await socket.receive_json(timeout=5)) == {
            "jsonrpc": "2.0",
            "method": "drain",
            "params": {"reconnect_after_ms": 300},
        }
        with pytest.raises(aiohttp.ClientConnectorError):
            await http.ws_connect(live.url, protocols=["fixnado.v1"])
        await asyncio.sleep(0.4)
        live.house.desk.gate.set()
        assert (await socket.receive_json(timeout=5))["id"] == 7
        assert await close_code(socket) == 4000


async def test_a_kept_connection_cannot_open_a_socket_while_draining(http: aiohttp.ClientSession) -> None:
    async with live_server() as live:
        raw = await RawSocket.tcp(live.port)
        live.house.realtime.draining = True
        raw.writer.write(handshake(live.port))
        head = await raw.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503")
        assert b"retry-after" in head.lower()
        raw.writer.close()
