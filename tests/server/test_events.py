"""The contract of an event stream, on real connections, with a client that shares no code with the server's."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import aiohttp
import orjson
import pytest

from channels.limits import Limits
from channels.protocol import CloseCode
from channels.session import Session
from channels.topics import CONTROL
from domain.errors import TooManyRequests
from domain.events import EventClass
from domain.types import JSON, Origin
from server.door import DoorPolicy
from tests.channels.fakes import ephemeral, until
from tests.server.live_server import LiveServer, live_server

ORIGIN = Origin("test-events")


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def live() -> AsyncIterator[LiveServer]:
    async with live_server(Limits(), DoorPolicy(allowed_origins=frozenset({"https://app.fixnado.com"}))) as server:
        yield server


class Stream:
    """A reader of one stream by the letter of the standard.

    Attributes:
        messages: what ``data`` held, events named ``close`` aside.
        ids: the newest id of each channel.
        closed: what the event ``close`` held.
    """

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer
        self.messages: list[JSON] = []
        self.ids: dict[str, str] = {}
        self.comments = 0
        self.closed: JSON | None = None
        self.ended = False
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        name, data, event_id = "", "", ""
        try:
            async for raw in self.answer.content:
                field, _, value = raw.decode().rstrip("\n").partition(":")
                value = value.removeprefix(" ")
                match field:
                    case "event":
                        name = value
                    case "data":
                        data = value
                    case "id":
                        event_id = value
                    case "" if value:
                        self.comments += 1
                    case "":
                        if name == "close":
                            self.closed = orjson.loads(data)
                        elif data:
                            self.messages.append(orjson.loads(data))
                        if event_id:
                            self.ids[event_id.partition("@")[0]] = event_id
                        name, data, event_id = "", "", ""
        except aiohttp.ClientError:
            pass
        self.ended = True

    @property
    def hello(self) -> JSON:
        result: JSON = self.messages[0]["result"]
        return result

    @property
    def places(self) -> str:
        return "".join(self.ids.values())

    def offsets(self, channel: str) -> list[int]:
        events = [message["params"] for message in self.messages if message.get("method") == "event"]
        return [event["offset"] for event in events if event["channel"] == channel]

    def said(self, method: str) -> list[JSON]:
        return [message["params"] for message in self.messages if message.get("method") == method]

    async def close(self) -> None:
        self.answer.close()
        await self._reading


async def stream(http: aiohttp.ClientSession, live: LiveServer, who: str = "customer:ada", **headers: str) -> Stream:
    given = {"Authorization": f"Bearer {who}", **headers}
    opened = Stream(await http.get(f"http://127.0.0.1:{live.port}/events", headers=given))
    assert opened.answer.status == 200, await opened.answer.text()
    await until(lambda: bool(opened.messages))
    return opened


async def refusal(http: aiohttp.ClientSession, live: LiveServer, who: str, **headers: str) -> JSON:
    given = {"Authorization": f"Bearer {who}", **headers}
    async with http.get(f"http://127.0.0.1:{live.port}/events", headers=given) as answer:
        assert answer.content_type == "application/problem+json"
        problem: JSON = await answer.json(content_type=None)
        assert problem["status"] == answer.status
        return problem


async def tell(
    live: LiveServer, opened: Stream, method: str, params: JSON | None = None, *, who: str = "ada", **more: Any
) -> JSON:
    return await live.streams.perform(opened.hello["session"], who, method, {**(params or {}), **more}, ORIGIN)


def session_of(live: LiveServer) -> Session:
    (session,) = live.house.realtime._node.sessions
    return session


# Opening


async def test_a_stream_begins_with_what_connect_answers_on_a_socket(
    http: aiohttp.ClientSession, live: LiveServer
) -> None:
    live.house.log.append("provider:p1")
    opened = await stream(http, live, "provider:bob:p1")
    assert opened.messages[0]["id"] == "session.connect"
    assert opened.hello["user"] == {"id": "bob", "roles": ["provider"]}
    assert opened.hello["channels"]["provider:p1"] == {
        "epoch": "e1",
        "offset": 1,
        "recovered": False,
        "events": [],
        "state": {"as_of": 1},
    }
    headers = opened.answer.headers
    assert headers["content-type"] == "text/event-stream"
    assert headers["cache-control"] == "no-store, no-transform"
    assert headers["x-accel-buffering"] == "no"
    assert headers["transfer-encoding"] == "chunked"
    assert "content-encoding" not in headers
    assert live.house.connections.heard == [("opened", "bob")]
    await opened.close()
    await until(lambda: ("closed", "bob") in live.house.connections.heard)


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Authorization": ""}, 401, None),
        ({"Authorization": "Bearer nobody"}, 401, 4500),
        ({"Origin": "https://evil.test"}, 403, None),
        ({"Origin": "null"}, 403, None),
        ({"Last-Event-ID": "user:ada@e1.3"}, 422, None),
        ({"Last-Event-ID": "user:ada@e1.3; and more"}, 422, None),
        ({"Last-Event-ID": "user:ada@e1.3;" * 800}, 422, None),
    ],
)
async def test_what_is_refused_is_a_problem_and_leaves_nothing_behind(
    http: aiohttp.ClientSession, live: LiveServer, headers: dict[str, str], status: int, code: int | None
) -> None:
    problem = await refusal(http, live, "customer:ada", **headers)
    assert problem["status"] == status
    assert problem.get("close", {}).get("code") == code
    await until(lambda: live.door.slots.taken == 0 and live.house.realtime.sockets == 0)


async def test_a_token_in_the_url_is_refused(http: aiohttp.ClientSession, live: LiveServer) -> None:
    async with http.get(f"http://127.0.0.1:{live.port}/events?token=customer:ada") as answer:
        assert (answer.status, (await answer.json(content_type=None))["type"]) == (400, "token_in_url")


async def test_sockets_and_streams_share_the_room(http: aiohttp.ClientSession) -> None:
    async with live_server(Limits(sockets_per_user=2), DoorPolicy(max_sockets_per_address=3)) as live:
        socket = await http.ws_connect(live.url, protocols=["fixnado.v1"])
        await socket.send_json(
            {"jsonrpc": "2.0", "id": 1, "method": "session.connect", "params": {"token": "customer:ada"}}
        )
        await socket.receive_json()
        first = await stream(http, live)
        problem = await refusal(http, live, "customer:ada")
        assert (problem["status"], problem["close"]["code"]) == (429, CloseCode.TOO_MANY_SOCKETS)
        second = await stream(http, live, "customer:bea")
        problem = await refusal(http, live, "customer:cay")
        assert problem["status"] == 429
        assert "close" not in problem
        for each in (first, second):
            await each.close()
        await socket.close()
        await until(lambda: live.door.slots.taken == 0)


async def test_an_allowed_origin_may_read_the_stream(http: aiohttp.ClientSession, live: LiveServer) -> None:
    opened = await stream(http, live, Origin="https://app.fixnado.com")
    assert opened.answer.headers["access-control-allow-origin"] == "https://app.fixnado.com"
    await opened.close()


# Events


async def test_live_events_carry_their_place_and_a_cut_stream_resumes_exactly(
    http: aiohttp.ClientSession, live: LiveServer
) -> None:
    live.house.access.let("booking:b1", "ada")
    opened = await stream(http, live)
    await tell(live, opened, "channel.subscribe", channel="booking:b1")
    for channel in ("user:ada", "booking:b1", "user:ada"):
        await live.house.commit(channel)
    await live.house.publish(ephemeral("booking:b1"))
    await until(lambda: len(opened.said("event")) == 4)
    assert opened.offsets("user:ada") == [1, 2]
    assert opened.ids == {"user:ada": "user:ada@e1.2;", "booking:b1": "booking:b1@e1.1;"}
    places = opened.places
    await opened.close()
    await until(lambda: live.house.realtime.sockets == 0)
    await live.house.commit("user:ada")
    await live.house.commit("booking:b1")
    again = await stream(http, live, **{"Last-Event-ID": places})
    channels = again.hello["channels"]
    assert {name: channels[name]["recovered"] for name in channels} == {"user:ada": True, "booking:b1": True}
    assert [event["offset"] for event in channels["user:ada"]["events"]] == [3]
    assert [event["offset"] for event in channels["booking:b1"]["events"]] == [2]
    await live.house.commit("booking:b1")
    await until(lambda: again.offsets("booking:b1") == [3])
    await again.close()


async def test_a_state_too_long_for_a_header_comes_in_a_body(http: aiohttp.ClientSession, live: LiveServer) -> None:
    for _ in range(2):
        live.house.log.append("user:ada")
    resume = {"user:ada": {"epoch": "e1", "offset": 1}} | {f"booking:b{n}": None for n in range(100)}
    answer = await http.post(
        f"http://127.0.0.1:{live.port}/events",
        json={"client": "web/1", "resume": resume},
        headers={"Authorization": "Bearer customer:ada"},
    )
    opened = Stream(answer)
    await until(lambda: bool(opened.messages))
    assert [event["offset"] for event in opened.hello["channels"]["user:ada"]["events"]] == [2]
    await opened.close()


async def test_what_is_committed_while_the_stream_opens_comes_once(
    http: aiohttp.ClientSession, live: LiveServer
) -> None:
    opening = asyncio.create_task(stream(http, live))
    for _ in range(200):
        await live.house.commit("user:ada")
        await asyncio.sleep(0)
    opened = await opening
    last = len(live.house.log.entries["user:ada"])
    await live.house.commit("user:ada")
    await until(lambda: last + 1 in opened.offsets("user:ada"))
    start = opened.hello["channels"]["user:ada"]["offset"]
    assert opened.offsets("user:ada") == list(range(start + 1, last + 2))
    await opened.close()


# Requests beside the stream


async def test_requests_of_the_session_do_what_they_do_on_a_socket(
    http: aiohttp.ClientSession, live: LiveServer
) -> None:
    live.house.access.let("booking:b1", "ada")
    live.house.log.append("booking:b1")
    opened = await stream(http, live)
    answer = await tell(live, opened, "channel.subscribe", channel="booking:b1")
    assert (answer["offset"], answer["state"]) == (1, {"as_of": 1})
    members = await tell(live, opened, "channel.presence", channel="booking:b1")
    assert [member["user_id"] for member in members["members"]] == ["ada"]
    await tell(live, opened, "session.ack", {"user:ada": 0, "booking:b1": 1})
    assert ("ada", "booking:b1", 1) in live.house.acknowledgements.acked_offsets
    await tell(live, opened, "channel.unsubscribe", channel="booking:b1")
    await live.house.commit("booking:b1")
    await live.house.commit("user:ada")
    await until(lambda: opened.offsets("user:ada") == [1])
    assert opened.offsets("booking:b1") == []
    renewed = await tell(live, opened, "session.refresh", token="customer:ada;1800")
    assert 1790 <= renewed["expires_in_seconds"] <= 1800
    await opened.close()


async def test_nobody_speaks_for_anothers_stream_or_one_that_is_over(
    http: aiohttp.ClientSession, live: LiveServer
) -> None:
    opened = await stream(http, live)
    with pytest.raises(Exception, match="This session is over"):
        await tell(live, opened, "session.ack", who="eve")
    await opened.close()
    await until(lambda: live.house.realtime.sockets == 0)
    with pytest.raises(Exception, match="This session is over"):
        await tell(live, opened, "session.ack")


async def test_requests_that_wait_are_bounded_and_end_with_the_session(
    http: aiohttp.ClientSession,
) -> None:
    async with live_server(Limits(requests_in_flight=2)) as live:
        opened = await stream(http, live)
        held = asyncio.Event()
        live.house.acknowledgements.acked = lambda *_: held.wait()  # type: ignore[assignment,method-assign]
        running = asyncio.create_task(tell(live, opened, "session.ack", {"user:ada": 1}))
        await asyncio.sleep(0.01)
        waiting = asyncio.create_task(tell(live, opened, "session.ack", {"user:ada": 2}))
        await asyncio.sleep(0)
        with pytest.raises(TooManyRequests):
            await tell(live, opened, "session.ack", {"user:ada": 3})
        session_of(live).close(CloseCode.REVOKED)
        with pytest.raises(Exception, match="This session is over"):
            await waiting
        held.set()
        assert await running == {}, "what has begun is finished"
        await until(lambda: opened.ended)


# The end


async def test_signing_out_ends_a_stream_at_once_and_says_why(http: aiohttp.ClientSession, live: LiveServer) -> None:
    opened = await stream(http, live)
    await live.house.commit(CONTROL, {"session_ids": ["sign-in-ada"]}, event_type="session.revoked")
    await until(lambda: opened.ended)
    assert opened.closed == {"code": 4503, "reason": "signed out"}
    assert live.house.realtime.sockets == 0


async def test_a_draining_server_tells_streams_when_to_come_back(http: aiohttp.ClientSession) -> None:
    async with live_server(drain_seconds=0.2) as live:
        opened = await stream(http, live)
        live.server.should_exit = True
        await until(lambda: opened.ended)
        assert opened.said("drain")[0]["reconnect_after_ms"] <= 200
        assert opened.closed is not None
        assert opened.closed["code"] == CloseCode.DRAIN


async def test_heartbeats_are_comments_and_an_ending_token_is_announced_and_ends_the_stream(
    http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("channels.heartbeat.TICK_SECONDS", 0.02)
    limits = Limits(heartbeat_seconds=0.1, heartbeat_grace_seconds=0.2, token_grace_seconds=0.1)
    async with live_server(limits) as live:
        opened = await stream(http, live, "customer:ada;1")
        await until(lambda: opened.comments >= 1 and bool(opened.said("session.expiring")))
        # Nothing came from the client, and yet it is no silent one: it takes what it is sent.
        await until(lambda: opened.ended)
        assert opened.closed is not None
        assert opened.closed["code"] == CloseCode.TOKEN_EXPIRED


async def _deaf(live: LiveServer) -> socket.socket:
    """A stream whose client reads its beginning and then nothing more."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", live.port))
    request = b"GET /events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer customer:ada\r\n\r\n"
    await loop.sock_sendall(sock, request)
    assert b"200 OK" in await loop.sock_recv(sock, 4096)
    return sock


async def test_a_client_that_never_reads_is_closed_within_its_bytes_and_delays_nobody(
    http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.events.CLOSE_GRACE_SECONDS", 0.1)
    async with live_server(Limits(max_buffered_bytes=300_000)) as live:
        deaf = await _deaf(live)
        session = session_of(live)
        other = await stream(http, live)
        most = 0
        for _ in range(200):
            await live.house.commit("user:ada", {"filler": "x" * 60_000})
            await asyncio.sleep(0)
            most = max(most, session._transport.buffered_bytes())
            if session.closed:
                break
        assert session.closed
        assert most <= 300_000
        # Aborted although the end of its response can never be sent.
        await until(lambda: live.door.slots.taken == 1)
        last = len(live.house.log.entries["user:ada"])
        await until(lambda: other.offsets("user:ada") == list(range(1, last + 1)))
        assert other.closed is None
        await other.close()
        deaf.close()


async def test_a_slow_client_gets_the_newest_of_each_kept_value_and_nothing_ephemeral(live: LiveServer) -> None:
    deaf = await _deaf(live)
    session = session_of(live)
    while not session.congested:
        await live.house.commit("user:ada", {"filler": "x" * 60_000})
        await asyncio.sleep(0)
    for number in range(3):
        await live.house.commit("user:ada", {"newest": number}, event_class=EventClass.LATEST, key="slot")
        await live.house.publish(ephemeral("user:ada"))
    received = b""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(10):
        while b'"newest":2' not in received:
            received = received[-1000:] + await loop.sock_recv(deaf, 2**20)
    assert b'"newest":1' not in received
    assert b"location.moved" not in received
    deaf.close()


async def test_a_peer_that_hung_up_leaves_nothing_behind(http: aiohttp.ClientSession, live: LiveServer) -> None:
    deaf = await _deaf(live)
    deaf.shutdown(socket.SHUT_WR)
    await until(lambda: live.door.slots.taken == 0 and live.house.realtime.sockets == 0)
    deaf.close()
    gc.collect()
    assert not live.streams._sessions


async def test_the_clock_of_the_hello_is_the_servers(http: aiohttp.ClientSession, live: LiveServer) -> None:
    opened = await stream(http, live)
    told = datetime.fromisoformat(opened.hello["server_time"])
    assert abs((datetime.now(UTC) - told).total_seconds()) < 5
    await opened.close()
