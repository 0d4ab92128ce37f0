"""Fan-outs are written past the transports: no byte overtakes another, and none goes to a connection that has ended."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import orjson
import pytest

from channels.hub import MANY_SUBSCRIBERS
from channels.limits import Limits
from channels.ports import WriteEach
from server import fanout
from server.door import DoorPolicy
from server.uvicorn_protocol import CLOSE_GRACE_SECONDS
from tests.channels.fakes import until
from tests.server.live_server import LARGE_BYTES, LiveServer, RawSocket, client_frame, compiled, handshake, live_server

ROOM = "booking:b"
CROWD = MANY_SUBSCRIBERS + 4
TEXT, CLOSE, RESERVED = 0x1, 0x8, 0x3


class Watched:
    """A writer that remembers what it was asked for.

    Attributes:
        written: how many descriptors took all, so far.
        short: how many took a part, or nothing although there was a descriptor.
    """

    def __init__(self, write_each: WriteEach) -> None:
        self._write_each = write_each
        self.written = 0
        self.short = 0

    def __call__(self, fds: Sequence[int], data: bytes) -> Mapping[int, int]:
        short = self._write_each(fds, data)
        self.written += len(fds) - len(short)
        self.short += sum(fds[place] >= 0 for place in short)
        return short


@pytest.fixture(params=["C", "Python"])
def writer(request: pytest.FixtureRequest) -> Watched:
    return Watched(compiled() if request.param == "C" else fanout.in_python)


@pytest.fixture(autouse=True)
async def _no_connection_left() -> AsyncIterator[None]:
    yield
    await RawSocket.close_all()


@pytest.fixture
async def live(writer: Watched) -> AsyncIterator[LiveServer]:
    limits = Limits(max_buffered_bytes=64 << 20, user_burst_requests=100_000, user_requests_per_second=100_000.0)
    async with live_server(limits, DoorPolicy(max_sockets_per_address=10_000), write_each=writer) as server:
        yield server


async def listening(live: LiveServer, number: int = 0, **options: int) -> RawSocket:
    """A client that hears the room."""
    live.house.access.let(ROOM, *(f"c{each}" for each in range(CROWD + 1)))
    raw = await RawSocket.open(live.port, receive_buffer_bytes=options.get("receive_buffer_bytes"))
    raw.send_json({"jsonrpc": "2.0", "id": 1, "method": "session.connect", "params": {"token": f"customer:c{number}"}})
    raw.send_json({"jsonrpc": "2.0", "id": 2, "method": "channel.subscribe", "params": {"channel": ROOM}})
    assert [b'"result"' in (await raw.frame())[1] for _ in range(2)] == [True, True]
    return raw


async def test_those_who_read_get_it_past_the_transport(live: LiveServer, writer: Watched) -> None:
    crowd = [await listening(live, number) for number in range(CROWD)]
    await live.house.commit(ROOM, {"n": 1})
    for raw in crowd:
        assert orjson.loads((await raw.frame())[1])["params"]["offset"] == 1
    assert (writer.written, writer.short) == (CROWD, 0)


async def test_replies_and_events_of_one_who_reads_in_fits_stay_in_order(live: LiveServer, writer: Watched) -> None:
    """Buffers fill and drain over and over; replies take the transport, events the descriptor whenever they may."""
    events, every = 1_500, 10
    crowd = [await listening(live, number) for number in range(CROWD)]
    fitful = await listening(live, CROWD, receive_buffer_bytes=4096)
    heard: list[int] = []
    replies: list[int] = []

    async def read_in_fits() -> None:
        while len(heard) < events or len(replies) < events // every:
            opcode, payload = await fitful.frame()
            assert opcode == TEXT
            message = orjson.loads(payload)
            if "id" in message:
                replies.append(message["id"])
            elif message["method"] == "event":
                heard.append(message["params"]["offset"])
                if len(heard) % 200 == 0:
                    await asyncio.sleep(0.05)

    async def read_all(raw: RawSocket) -> list[int]:
        return [orjson.loads((await raw.frame())[1])["params"]["offset"] for _ in range(events)]

    reading = [asyncio.create_task(read_all(raw)) for raw in crowd]
    fits = asyncio.create_task(read_in_fits())
    for number in range(events):
        await live.house.commit(ROOM, {"text": "x" * 4_000})
        if number % every == 0:
            fitful.send_json({"jsonrpc": "2.0", "id": number, "method": "ping"})
        await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await fits
        everybody = await asyncio.gather(*reading)
    assert heard == list(range(1, events + 1))
    assert replies == list(range(0, events, every))
    assert everybody == [heard] * CROWD
    assert writer.written > events * CROWD / 2
    assert writer.short > 0, "nobody's buffer was ever full, so this has shown nothing"


async def leave(raw: RawSocket, how: int) -> None:
    """End a connection in one of the ways in which connections end."""
    match how:
        case 0:
            raw.writer.transport.abort()
        case 1:
            connection = raw.writer.get_extra_info("socket")
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)  # so that it ends with a reset
            raw.writer.transport.abort()
        case 2:
            raw.send(client_frame(CLOSE, struct.pack("!H", 1000)))
        case 3:
            raw.send(client_frame(RESERVED))
        case 4:
            raw.writer.write_eof()
        case _:
            raw.send_json("not a request")
            raw.send(client_frame(0x2, b"binary"))


class FreeNumbers:
    """Takes every number of a descriptor that becomes free, with sockets that nobody should write to."""

    def __init__(self) -> None:
        self._highest = max(int(number.name) for number in Path("/dev/fd").iterdir())
        self._pairs: list[tuple[socket.socket, socket.socket]] = []

    def take(self) -> None:
        while True:
            pair = socket.socketpair()
            if max(end.fileno() for end in pair) > self._highest:
                for end in pair:
                    end.close()
                return
            self._pairs.append(pair)

    def __len__(self) -> int:
        return 2 * len(self._pairs)

    def heard(self) -> bytes:
        """What came at any end; closes them."""
        data = b""
        for pair in self._pairs:
            for end in pair:
                end.setblocking(False)
                with suppress(BlockingIOError):
                    data += end.recv(65_536)
        for pair in self._pairs:
            for end in pair:
                end.close()
        return data


@pytest.mark.parametrize("how", range(6))
async def test_nothing_goes_to_whoever_has_the_number_of_an_ended_connection(
    how: int, writer: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strangers take every number that becomes free, while each turn of the loop has an event for everybody."""
    monkeypatch.setattr("server.uvicorn_protocol.CLOSE_GRACE_SECONDS", CLOSE_GRACE_SECONDS / 30)
    monkeypatch.setattr("channels.hub.MANY_SUBSCRIBERS", 1)
    strangers: FreeNumbers | None = None

    def take_free_numbers(fds: Sequence[int], data: bytes) -> Mapping[int, int]:
        if strangers is not None:
            strangers.take()
        return writer(fds, data)

    async with live_server(Limits(), DoorPolicy(), write_each=take_free_numbers) as live:
        stayed = await listening(live, 0)
        crowd = [await listening(live, number) for number in range(1, CROWD)]
        events = 0
        strangers = FreeNumbers()

        async def publish() -> None:
            nonlocal events
            while True:
                await live.house.commit(ROOM, {"n": events})
                events += 1
                await asyncio.sleep(0)

        publishing = asyncio.create_task(publish())
        try:
            for raw in crowd:
                await leave(raw, how)
                before = events
                await until(lambda before=before: events > before + 2)  # type: ignore[misc]
            await until(lambda: live.door.slots.taken == 1)
            before = events
            await until(lambda: events > before + 2)
        finally:
            publishing.cancel()
            with suppress(asyncio.CancelledError):
                await publishing
        offsets = [orjson.loads((await stayed.frame())[1])["params"]["offset"] for _ in range(events)]
        assert offsets == list(range(1, events + 1))
        taken, heard = len(strangers), strangers.heard()
    assert heard == b""
    assert taken >= CROWD - 2, "hardly a number became free, so this has shown nothing"


async def test_what_http_left_unread_is_not_overtaken(
    live: LiveServer, writer: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client gets a large response, reads none of it, and becomes a socket on the same connection."""
    monkeypatch.setattr("channels.hub.MANY_SUBSCRIBERS", 1)
    live.house.access.let(ROOM, "c0")
    raw = await RawSocket.tcp(live.port)
    raw.reader._transport.pause_reading()  # type: ignore[attr-defined]
    raw.send(b"GET /large HTTP/1.1\r\nHost: h\r\n\r\n")
    state = live.server.server_state
    await until(lambda: any(each.transport.get_write_buffer_size() for each in state.connections))
    raw.send(handshake(live.port))
    await until(lambda: live.house.realtime.sockets == 1)
    raw.send_json({"jsonrpc": "2.0", "id": 1, "method": "session.connect", "params": {"token": "customer:c0"}})
    raw.send_json({"jsonrpc": "2.0", "id": 2, "method": "channel.subscribe", "params": {"channel": ROOM}})
    await until(lambda: len(live.house.realtime.hub.subscribers(ROOM)) == 1)
    (session,) = live.house.realtime._node.sessions
    assert session.congested
    for number in range(20):
        await live.house.commit(ROOM, {"n": number})
        await asyncio.sleep(0)
    assert writer.written == 0
    raw.reader._transport.resume_reading()  # type: ignore[attr-defined]
    head = await raw.reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert await raw.reader.readexactly(LARGE_BYTES) == b"x" * LARGE_BYTES
    assert (await raw.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    messages = [orjson.loads((await raw.frame())[1]) for _ in range(22)]
    assert [message["params"]["offset"] for message in messages[2:]] == list(range(1, 21))
    await until(lambda: not session.congested)
    await live.house.commit(ROOM, {"n": 20})
    assert orjson.loads((await raw.frame())[1])["params"]["offset"] == 21
    assert writer.written == 1
