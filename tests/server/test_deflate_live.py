"""permessage-deflate on real connections: who gets it, what is deflated for them, and what nobody can do with it."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
import zlib
from collections.abc import AsyncIterator

import aiohttp
import orjson
import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from channels.deflate import WINDOW_BITS
from channels.hub import MANY_SUBSCRIBERS
from channels.limits import Limits
from channels.protocol import MAX_FRAME_BYTES, SUBPROTOCOL
from server import fanout
from server.door import DoorPolicy
from tests.channels.fakes import until
from tests.server.live_server import LiveServer, RawSocket, client_frame, compiled, handshake, live_server

TEXT, CONTINUATION, PONG = 0x1, 0x0, 0xA
ROOM = "booking:b"
OFFER = "permessage-deflate; client_max_window_bits"
EMPTY_BLOCK = b"\x00\x00\xff\xff"


@pytest.fixture(autouse=True)
async def _no_connection_left() -> AsyncIterator[None]:
    yield
    await RawSocket.close_all()


@pytest.fixture(params=["C", "Python"])
async def live(request: pytest.FixtureRequest) -> AsyncIterator[LiveServer]:
    write_each = compiled() if request.param == "C" else fanout.in_python
    limits = Limits(max_buffered_bytes=64 << 20, user_burst_requests=10_000, user_requests_per_second=10_000.0)
    policy = DoorPolicy(max_sockets_per_address=10_000)
    async with live_server(limits, policy, write_each=write_each, deflate=True) as server:
        yield server
        async with aiohttp.ClientSession() as http:
            async with http.get(f"http://127.0.0.1:{server.port}/") as response:
                assert await response.text() == "hello"


def deflated(payload: bytes, window_bits: int = WINDOW_BITS) -> bytes:
    compressor = zlib.compressobj(wbits=-window_bits)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(EMPTY_BLOCK)


def inflated(payload: bytes) -> bytes:
    return zlib.decompressobj(-WINDOW_BITS).decompress(payload + EMPTY_BLOCK)


async def shake(live: LiveServer, offer: str) -> tuple[RawSocket, str]:
    """A WebSocket, and what the server said to the offer."""
    raw = await RawSocket.tcp(live.port)
    raw.writer.write(handshake(live.port, **{"Sec-WebSocket-Extensions": offer}))
    head = (await asyncio.wait_for(raw.reader.readuntil(b"\r\n\r\n"), 5)).decode()
    assert head.startswith("HTTP/1.1 101"), head
    headers = dict(line.split(": ", 1) for line in head.lower().splitlines()[1:] if line)
    return raw, headers.get("sec-websocket-extensions", "")


async def listening(live: LiveServer, who: str, offer: str | None = OFFER, **options: int) -> RawSocket:
    """A client in the room, with deflate or without."""
    live.house.access.let(ROOM, who)
    given = {} if offer is None else {"Sec-WebSocket-Extensions": offer}
    raw = await RawSocket.open(live.port, receive_buffer_bytes=options.get("receive_buffer_bytes"), **given)
    raw.send_json({"jsonrpc": "2.0", "id": 1, "method": "session.connect", "params": {"token": f"customer:{who}"}})
    raw.send_json({"jsonrpc": "2.0", "id": 2, "method": "channel.subscribe", "params": {"channel": ROOM}})
    # Replies are never deflated: frame() would say so.
    assert [b'"result"' in (await raw.frame())[1] for _ in range(2)] == [True, True]
    return raw


async def event(raw: RawSocket, *, as_deflated: bool) -> int:
    """The offset of the next event, which must come in this form."""
    was_deflated, opcode, payload = await raw.any_frame()
    assert (was_deflated, opcode) == (as_deflated, TEXT)
    message = orjson.loads(inflated(payload) if was_deflated else payload)
    assert message["method"] == "event"
    return int(message["params"]["offset"])


# Negotiation


@pytest.mark.parametrize(
    ("offer", "answer"),
    [
        ("permessage-deflate", "permessage-deflate; server_no_context_takeover; client_no_context_takeover"),
        (OFFER, "permessage-deflate; server_no_context_takeover; client_no_context_takeover"),
        (
            "permessage-deflate; client_max_window_bits=10",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover; client_max_window_bits=10",
        ),
        (
            "permessage-deflate; server_max_window_bits=15",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=15",
        ),
        # What is deflated for all needs the whole window.
        ("permessage-deflate; server_max_window_bits=10", ""),
        (
            "permessage-deflate; server_max_window_bits=10, permessage-deflate",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        ),
        ("x-webkit-deflate-frame", ""),
    ],
)
async def test_the_answer_to_an_offer(live: LiveServer, offer: str, answer: str) -> None:
    raw, said = await shake(live, offer)
    assert said == answer
    raw.writer.close()


@pytest.mark.parametrize("offer", ["permessage-deflate; nonsense=1", "permessage-deflate; server_max_window_bits=99"])
async def test_an_offer_that_makes_no_sense_is_not_taken(live: LiveServer, offer: str) -> None:
    raw, said = await shake(live, offer)
    assert said == ""
    raw.writer.close()


# What leaves


async def test_each_gets_events_in_the_form_it_asked_for(live: LiveServer) -> None:
    for size in (1, MANY_SUBSCRIBERS + 2):
        deflating = [await listening(live, f"d{size}-{number}") for number in range(size)]
        plain = [await listening(live, f"p{size}-{number}", offer=None) for number in range(size)]
        entry = await live.house.commit(ROOM, {"text": "on my way " * 10})
        assert [await event(raw, as_deflated=True) for raw in deflating] == [entry.offset] * size
        assert [await event(raw, as_deflated=False) for raw in plain] == [entry.offset] * size
        for raw in deflating + plain:
            raw.writer.transport.abort()
        await until(lambda: live.house.realtime.sockets == 0)


async def test_a_reply_is_not_deflated_whatever_is_in_it(live: LiveServer) -> None:
    """A token beside words that somebody else chose must not show in a length."""
    raw = await listening(live, "ada")
    raw.send_json({"jsonrpc": "2.0", "id": 3, "method": "test.echo", "params": {"x": "y" * 5_000}})
    assert b"y" * 5_000 in (await raw.frame())[1]
    raw.send_json({"jsonrpc": "2.0", "id": 4, "method": "no.such.method"})
    assert b'"error"' in (await raw.frame())[1]
    raw.writer.close()


async def test_one_who_reads_in_fits_gets_all_of_it_in_order(live: LiveServer) -> None:
    """Buffers fill and drain over and over; replies take the transport, events the descriptor whenever they may."""
    events, every = 1_000, 10
    crowd = [await listening(live, f"c{number}") for number in range(MANY_SUBSCRIBERS)]
    fitful = await listening(live, "fitful", receive_buffer_bytes=4096)
    noise = random.Random(1).randbytes(60_000).hex()
    heard: list[int] = []
    replies: list[int] = []

    async def read_in_fits() -> None:
        while len(heard) < events or len(replies) < events // every:
            was_deflated, _, payload = await fitful.any_frame()
            message = orjson.loads(inflated(payload) if was_deflated else payload)
            if "id" in message:
                assert not was_deflated
                replies.append(message["id"])
            elif message["method"] == "event":
                assert was_deflated
                heard.append(message["params"]["offset"])
                if len(heard) % 100 == 0:
                    await asyncio.sleep(0.02)

    async def read_all(raw: RawSocket) -> list[int]:
        return [await event(raw, as_deflated=True) for _ in range(events)]

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        fits = group.create_task(read_in_fits())
        reading = [group.create_task(read_all(raw)) for raw in crowd]
        session = next(
            each for each in live.house.realtime._node.sessions if each.actor and each.actor.user_id == "fitful"
        )
        congested = 0
        for number in range(events):
            await live.house.commit(ROOM, {"text": noise[number : number + 16_000]})
            congested += session.congested
            if number % every == 0:
                fitful.send_json({"jsonrpc": "2.0", "id": number, "method": "ping"})
            await asyncio.sleep(0)
    assert fits.done()
    assert congested > 0, "it was never slow, so nothing was shown"
    assert heard == list(range(1, events + 1))
    assert replies == list(range(0, events, every))
    assert [task.result() for task in reading] == [heard] * len(crowd)


async def test_a_client_of_another_make_reads_all_of_it(live: LiveServer) -> None:
    live.house.access.let(ROOM, "ada")
    url = live.url.replace("http", "ws")
    async with (
        connect(url, subprotocols=[Subprotocol(SUBPROTOCOL)], compression="deflate") as theirs,
        aiohttp.ClientSession() as http,
        http.ws_connect(live.url, protocols=[SUBPROTOCOL], compress=WINDOW_BITS) as other,
    ):
        assert other.compress
        for number, (method, params) in enumerate(
            (("session.connect", {"token": "customer:ada"}), ("channel.subscribe", {"channel": ROOM}))
        ):
            request = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            # Theirs leave deflated, too.
            await theirs.send(orjson.dumps(request).decode())
            await other.send_json(request)
            assert b'"result"' in await theirs.recv(decode=False)
            assert "result" in await other.receive_json()
        for number in range(50):
            await live.house.commit(ROOM, {"text": f"{number} " * number})
            mine, his = orjson.loads(await theirs.recv()), await other.receive_json()
            assert mine == his
            assert mine["params"]["data"]["text"] == f"{number} " * number


# What comes in


async def test_a_deflated_message_is_read(live: LiveServer) -> None:
    raw = await listening(live, "ada")
    message = b'{"jsonrpc":"2.0","id":3,"method":"test.echo","params":{"x":"%b"}}' % ("é" * 10_000).encode()
    raw.send(client_frame(TEXT, deflated(message), rsv1=True))
    assert ("é" * 10_000).encode() in (await raw.frame())[1]
    body = deflated(message)
    raw.send(client_frame(TEXT, body[:5], fin=False, rsv1=True))
    raw.send(client_frame(CONTINUATION, body[5:30], fin=False) + client_frame(CONTINUATION, body[30:]))
    assert ("é" * 10_000).encode() in (await raw.frame())[1]
    raw.writer.close()


@pytest.mark.parametrize("whole", [True, False])
async def test_a_bomb_is_refused_with_flat_memory(live: LiveServer, whole: bool) -> None:
    raw = await listening(live, "ada")
    bomb = deflated(b" " * 50_000_000)
    assert len(bomb) < MAX_FRAME_BYTES
    tracemalloc.start()
    try:
        raw.send(client_frame(TEXT, bomb if whole else bomb[:1_000], fin=whole, rsv1=True))
        assert await raw.close_code() == 1009
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000
    await until(lambda: live.house.realtime.sockets == 0)


async def test_a_message_may_become_as_long_as_a_plain_one_and_no_longer(live: LiveServer) -> None:
    raw = await listening(live, "ada")
    start = b'{"jsonrpc":"2.0","id":3,"method":"test.echo","params":{"x":"'
    longest = start + b"x" * (MAX_FRAME_BYTES - len(start) - 3) + b'"}}'
    raw.send(client_frame(TEXT, deflated(longest), rsv1=True))
    assert len((await raw.frame())[1]) > 60_000
    raw.send(client_frame(TEXT, deflated(longest + b" "), rsv1=True))
    assert await raw.close_code() == 1009


async def test_few_bytes_that_become_many_messages_are_cut_off(live: LiveServer) -> None:
    """Also of somebody unknown; what makes each of them costly is that all of it has to be looked at."""
    hollow = b'{"jsonrpc":"2.0","method":"pong","params":{":":[%b1]}}' % (b"[]," * 21_000)
    frame = client_frame(TEXT, deflated(hollow), rsv1=True)
    assert len(frame) < 250
    for known in (False, True):
        raw, _ = await shake(live, OFFER)
        if known:
            raw.send_json({"jsonrpc": "2.0", "id": 1, "method": "session.connect", "params": {"token": "customer:bo"}})
            await raw.frame()
        raw.send(frame * 20)
        assert await raw.close_code() == 1009
        await raw.ended()


async def test_fragments_that_inflate_to_nothing_are_bounded_too(live: LiveServer) -> None:
    """After the last block of a deflated stream zlib keeps whatever follows."""
    raw, _ = await shake(live, OFFER)
    tracemalloc.start()
    try:
        raw.send(client_frame(TEXT, b"\x03\x00", fin=False, rsv1=True))
        for _ in range(8):
            raw.send(client_frame(CONTINUATION, b"x" * 60_000, fin=False))
            await asyncio.sleep(0.02)
        assert await raw.close_code() == 1009
        _, peak = tracemalloc.get_traced_memory()
    except ConnectionError:
        # What it sent after the end can cost it the close frame.
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_500_000
    await until(lambda: live.door.slots.taken == 0)


@pytest.mark.parametrize(
    "frame",
    [
        client_frame(TEXT, b"\xff\xff\xff\xff", rsv1=True),
        client_frame(TEXT, deflated(b"{}")[:1], fin=False, rsv1=True) + client_frame(CONTINUATION, b"x", rsv1=True),
        client_frame(0x9, b"x", rsv1=True),
    ],
    ids=["no deflate", "bit on a continuation", "bit on a ping"],
)
async def test_broken_frames_are_refused(live: LiveServer, frame: bytes) -> None:
    raw = await listening(live, "ada")
    raw.send(frame)
    assert await raw.close_code() == 1002
    await raw.ended()


async def test_nothing_is_inflated_for_one_who_is_being_closed(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    inflations = 0
    made = zlib.decompressobj

    def counting(wbits: int) -> object:
        nonlocal inflations
        inflations += 1
        return made(wbits)

    monkeypatch.setattr("websockets.extensions.permessage_deflate.zlib.decompressobj", counting)
    raw = await listening(live, "ada")
    bad = client_frame(TEXT, deflated(b"[" * 200), rsv1=True)
    assert len(bad) < 50
    raw.send(bad * 400)
    code = await raw.close_code()
    # Of what came in the same slice as the last one that counted, all is inflated; after that, nothing.
    assert (code, 0 < inflations < 250) == (4501, True), inflations
    await raw.ended()


async def test_an_idle_socket_keeps_no_window(live: LiveServer) -> None:
    raw = await listening(live, "ada")
    raw.send(client_frame(TEXT, deflated(b'{"jsonrpc":"2.0","id":3,"method":"ping"}'), rsv1=True))
    await raw.frame()
    (session,) = live.house.realtime._node.sessions
    (extension,) = session._transport._protocol.conn.extensions  # type: ignore[attr-defined]
    assert vars(extension).keys().isdisjoint({"decoder", "encoder"})
    raw.writer.close()
