"""Clients that do not keep the rules: each is dropped, memory stays bounded, and nobody else notices."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import suppress

import aiohttp
import pytest

from channels.limits import Limits
from channels.protocol import MAX_FRAME_BYTES
from server.door import DoorPolicy
from tests.channels.fakes import until
from tests.server.live_server import LiveServer, RawSocket, client_frame, handshake, live_server

TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 0x1, 0x2, 0x0, 0x8, 0x9, 0xA


@pytest.fixture(autouse=True)
async def _no_connection_left() -> AsyncIterator[None]:
    yield
    await RawSocket.close_all()


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.uvicorn_protocol.CLOSE_GRACE_SECONDS", 0.5)


@pytest.fixture
async def live() -> AsyncIterator[LiveServer]:
    async with live_server(Limits(max_buffered_bytes=256 * 1024), DoorPolicy()) as server:
        yield server
        # Whatever the test did, the server lives and has let go of everybody.
        async with aiohttp.ClientSession() as http:
            async with http.get(f"http://127.0.0.1:{server.port}/") as response:
                assert await response.text() == "hello"


async def opened(live: LiveServer, who: str = "customer:ada", **options: int) -> RawSocket:
    raw = await RawSocket.open(live.port, receive_buffer_bytes=options.get("receive_buffer_bytes"))
    raw.send_json({"jsonrpc": "2.0", "id": 1, "method": "session.connect", "params": {"token": who}})
    opcode, payload = await raw.frame()
    assert opcode == TEXT
    assert b'"result"' in payload
    return raw


async def gone(live: LiveServer) -> None:
    await until(lambda: live.door.slots.taken == 0)
    assert live.house.realtime.sockets == 0


# Frames


async def test_a_message_over_the_limit_is_refused_by_its_header(live: LiveServer) -> None:
    raw = await opened(live)
    head = client_frame(TEXT, b"x" * (MAX_FRAME_BYTES + 1))[:14]
    raw.send(head)
    assert await raw.close_code() == 1009
    await raw.ended()
    await gone(live)


async def test_a_message_of_exactly_the_limit_is_read(live: LiveServer) -> None:
    raw = await opened(live)
    start = b'{"jsonrpc":"2.0","id":2,"method":"test.echo","params":{"x":"'
    raw.send(client_frame(TEXT, start + b"x" * (MAX_FRAME_BYTES - len(start) - 3) + b'"}}'))
    opcode, payload = await raw.frame()
    assert (opcode, len(payload) > 60_000) == (TEXT, True)
    raw.writer.close()


async def test_fragments_count_together(live: LiveServer) -> None:
    raw = await opened(live)
    raw.send(client_frame(TEXT, b"x" * 40_000, fin=False))
    raw.send(client_frame(CONTINUATION, b"x" * 40_000, fin=True))
    assert await raw.close_code() == 1009


async def test_a_fragmented_message_is_put_together(live: LiveServer) -> None:
    raw = await opened(live)
    message = '{"jsonrpc":"2.0","id":2,"method":"test.echo","params":{"x":"é"}}'.encode()
    middle = message.index("é".encode()) + 1
    raw.send(client_frame(TEXT, message[:10], fin=False))
    raw.send(client_frame(PING, b"between"))
    raw.send(client_frame(CONTINUATION, message[10:middle], fin=False))
    raw.send(client_frame(CONTINUATION, message[middle:]))
    assert await raw.frame() == (PONG, b"between")
    assert "é".encode() in (await raw.frame())[1]
    raw.writer.close()


async def test_deflate_is_not_offered_and_a_compressed_frame_is_refused(live: LiveServer) -> None:
    raw = await RawSocket.tcp(live.port)
    offer = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
    raw.writer.write(handshake(live.port, **offer))
    answer = await raw.reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 101")
    assert b"deflate" not in answer.lower()
    bomb = zlib.compress(b"\0" * 10_000_000)[:60_000]
    raw.send(client_frame(TEXT, bomb, rsv1=True))
    assert await raw.close_code() == 1002


async def test_invalid_utf8_is_refused(live: LiveServer) -> None:
    raw = await opened(live)
    raw.send(client_frame(TEXT, b'{"x":"\xff\xfe"}'))
    assert await raw.close_code() == 1007
    await raw.ended()
    await gone(live)


@pytest.mark.parametrize(
    "frame",
    [
        b"\x81\x05hello",
        client_frame(0x3, b"x"),
        client_frame(CONTINUATION, b"x"),
        client_frame(PING, b"x" * 126),
        client_frame(PING, b"x", fin=False),
        client_frame(CLOSE, b"\x00"),
        client_frame(CLOSE, b"\x03\xed"),
    ],
    ids=["unmasked", "unknown opcode", "lone continuation", "long ping", "split ping", "short close", "bad close code"],
)
async def test_broken_framing_is_refused(live: LiveServer, frame: bytes) -> None:
    raw = await opened(live)
    raw.send(frame)
    assert await raw.close_code() == 1002
    await raw.ended()
    await gone(live)


async def test_bad_json_is_answered_and_the_session_lives(live: LiveServer) -> None:
    raw = await opened(live)
    for text in (b"{", b'{"jsonrpc":"2.0","id":1,"method":"a","params":{"x":NaN}}', b"[" * 5000, b'{"a":1,"a":2}'):
        raw.send(client_frame(TEXT, text))
        assert b'"error"' in (await raw.frame())[1]
    raw.send_json({"jsonrpc": "2.0", "id": 5, "method": "test.echo"})
    assert b'"result"' in (await raw.frame())[1]
    raw.writer.close()


async def test_a_close_is_answered_with_a_close(live: LiveServer) -> None:
    raw = await opened(live)
    raw.send(client_frame(CLOSE, b"\x03\xe8bye"))
    assert await raw.close_code() == 1000
    await raw.ended()
    await gone(live)


# Floods


async def test_a_ping_flood_without_reading_is_dropped_with_flat_memory(live: LiveServer) -> None:
    raw = await opened(live, receive_buffer_bytes=4096)
    (session,) = live.house.realtime._node.sessions
    transport = session._transport
    peak = 0
    flood = client_frame(PING, b"x" * 100) * 500

    def ended() -> bool:
        nonlocal peak
        peak = max(peak, transport.buffered_bytes())
        return live.door.slots.taken == 0

    for _ in range(50):
        raw.send(flood)
        await asyncio.sleep(0)
        if ended():
            break
    await until(ended, 10)
    assert peak < 64 * 1024


async def test_empty_fragments_without_end_are_dropped(live: LiveServer) -> None:
    raw = await opened(live)
    raw.send(client_frame(TEXT, b"", fin=False) + client_frame(CONTINUATION, b"", fin=False) * 10_000)
    assert await raw.close_code() == 4006


async def test_a_peer_that_sends_on_after_the_close_frame_is_cut_off(live: LiveServer) -> None:
    raw = await opened(live)
    raw.send(client_frame(TEXT, b"", fin=False) + client_frame(CONTINUATION, b"", fin=False) * 100_000)
    await raw.ended()
    await gone(live)


async def test_fragments_that_come_slowly_are_bounded_too(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.uvicorn_protocol.SMALL_FRAMES_PER_SECOND", 10_000)
    raw = await opened(live)
    raw.send(client_frame(TEXT, b"", fin=False) + client_frame(CONTINUATION, b"", fin=False) * 200)
    assert await raw.close_code() == 4006


async def test_tiny_messages_are_answered_and_then_the_socket_is_closed(live: LiveServer) -> None:
    raw = await opened(live)
    raw.send(client_frame(TEXT, b'{"jsonrpc":"2.0","id":1,"method":"ping"}') * 1000)
    assert await raw.close_code() == 4006


async def test_garbage_after_the_close_frame_is_not_read_for_ever(live: LiveServer) -> None:
    raw = await opened(live)
    raw.send(client_frame(BINARY, b"x"))
    assert await raw.close_code() == 4501
    try:
        for _ in range(100):
            raw.send(client_frame(TEXT, b"x" * 10_000))
            await raw.writer.drain()
    except ConnectionError:
        pass
    await until(lambda: live.door.slots.taken == 0, 1.5)


# Those who do not read


async def test_a_stalled_reader_is_closed_and_others_do_not_notice(live: LiveServer) -> None:
    house = live.house
    house.access.let("booking:b", "ada", "bo")
    stalled = await opened(live, "customer:ada", receive_buffer_bytes=4096)
    reading = await opened(live, "customer:bo")
    for raw in (stalled, reading):
        raw.send_json({"jsonrpc": "2.0", "id": 2, "method": "channel.subscribe", "params": {"channel": "booking:b"}})
        await raw.frame()
    slow = next(
        session for session in house.realtime._node.sessions if session.actor and session.actor.user_id == "ada"
    )
    peak = 0
    sent = 0
    while not slow.closed:
        await house.commit("booking:b", {"text": "x" * 20_000})
        sent += 1
        assert (await reading.frame())[0] == TEXT, "the other one has each event at once"
        if not slow.closed:
            peak = max(peak, slow._transport.buffered_bytes())
        assert sent < 2000
    assert peak <= 256 * 1024
    await until(lambda: live.door.slots.taken == 1, 6)
    await house.commit("booking:b")
    assert (await reading.frame())[0] == TEXT
    reading.writer.close()
    await gone(live)


async def test_a_slow_reader_that_reads_on_is_told_4003(live: LiveServer) -> None:
    house = live.house
    slow = await opened(live, receive_buffer_bytes=4096)
    (session,) = house.realtime._node.sessions
    while not session.closed:
        await house.commit("user:ada", {"text": "x" * 20_000})
        await asyncio.sleep(0)
    assert await slow.close_code() == 4003


async def test_a_peer_that_vanished_frees_its_slot(live: LiveServer) -> None:
    raw = await opened(live)
    raw.writer.transport.abort()
    await gone(live)


async def test_a_half_closed_peer_is_let_go(live: LiveServer) -> None:
    raw = await opened(live)
    raw.writer.write_eof()
    await raw.ended()
    await gone(live)


async def test_a_peer_that_ignores_the_close_frame_is_aborted(live: LiveServer) -> None:
    raw = await opened(live)
    raw.send(client_frame(BINARY, b"x"))
    assert await raw.close_code() == 4501
    await raw.ended()
    await gone(live)


async def test_stopping_does_not_wait_for_a_peer_that_never_reads() -> None:
    async with live_server(Limits(), drain_seconds=0.1) as server:
        await opened(server, receive_buffer_bytes=4096)
        (session,) = server.house.realtime._node.sessions
        while not session.congested:
            await server.house.commit("user:ada", {"text": "x" * 20_000})
            await asyncio.sleep(0)
        began = asyncio.get_running_loop().time()
        await server.stop()
        assert asyncio.get_running_loop().time() - began < 3


# HTTP before it


async def drip_until_cut_off(raw: RawSocket, piece: bytes, seconds: float = 3.0) -> None:
    """Whoever is cut off reads the end or hears of a reset."""
    ended = asyncio.ensure_future(raw.reader.read())
    try:
        async with asyncio.timeout(seconds):
            while not ended.done():
                raw.send(piece)
                await asyncio.sleep(0.02)
            with suppress(ConnectionError):
                await ended
    finally:
        ended.cancel()


async def test_unfinished_headers_are_cut_off() -> None:
    async with live_server(header_seconds=0.2) as live:
        raw = await RawSocket.tcp(live.port)
        raw.send(b"GET /socket HTTP/1.1\r\n")
        await drip_until_cut_off(raw, b"X-Slow: 1\r\n")
        raw.writer.close()


async def test_a_silent_connection_is_cut_off() -> None:
    async with live_server(header_seconds=0.1) as live:
        raw = await RawSocket.tcp(live.port)
        await asyncio.wait_for(raw.ended(), 2)
        raw.writer.close()


async def test_a_kept_connection_has_the_same_deadline_for_its_next_request() -> None:
    async with live_server(header_seconds=0.2) as live:
        raw = await RawSocket.tcp(live.port)
        raw.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await raw.reader.readline()).startswith(b"HTTP/1.1 200")
        await raw.reader.readuntil(b"hello")
        raw.send(b"GET / HTTP/1.1\r\nHost")
        await asyncio.wait_for(raw.ended(), 2)
        raw.writer.close()


async def test_a_body_that_drips_is_cut_off_and_one_that_ends_is_answered() -> None:
    async with live_server(body_seconds=0.3) as live:
        post = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n"
        slow, whole = await RawSocket.tcp(live.port), await RawSocket.tcp(live.port)
        whole.send(post + b" " * 1000)
        assert (await whole.reader.readline()).startswith(b"HTTP/1.1 200")
        slow.send(post)
        await drip_until_cut_off(slow, b" ")
        slow.writer.close()
        # The deadline of a body that has ended does not cut off what comes after it.
        await whole.reader.readuntil(b"hello")
        whole.send(post + b" " * 1000)
        assert (await whole.reader.readline()).startswith(b"HTTP/1.1 200")
        whole.writer.close()


async def test_headers_without_end_are_refused(live: LiveServer) -> None:
    raw = await RawSocket.tcp(live.port)
    raw.writer.write(b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 300_000)
    assert (await raw.reader.readline()).startswith(b"HTTP/1.1 431")
    raw.writer.close()


async def test_a_handshake_that_only_one_parser_takes_is_answered(live: LiveServer) -> None:
    raw = await RawSocket.tcp(live.port)
    many = {f"X-{n}": "1" for n in range(200)}
    raw.writer.write(handshake(live.port, **many))
    assert (await asyncio.wait_for(raw.reader.readline(), 2)).startswith(b"HTTP/1.1 400")
    assert await asyncio.wait_for(raw.reader.read(), 2) is not None
    raw.writer.close()


async def test_an_application_that_fails_frees_the_slot(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(transport: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(live.house.realtime, "open", fail)
        raw = await RawSocket.open(live.port)
        await raw.ended()
    await gone(live)
