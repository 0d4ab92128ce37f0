from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest

from benchmarks.native import Miscounted, Sink, TooSlow
from benchmarks.wire import split_frames
from channels.protocol import text_frame
from hatch_build import find_compiler

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler")

PAYLOADS = [b"", b"x" * 125, b"y" * 126, b"z" * 65_535, b"w" * 65_536, b"{}"]
PING = b"\x89\x03abc"


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Three connections: the server's end and the sink's."""
    made = [socket.socketpair() for _ in range(3)]
    yield made
    for ours, theirs in made:
        ours.close()
        theirs.close()


@pytest.fixture
def sink(pairs: list[tuple[socket.socket, socket.socket]]) -> Iterator[Sink]:
    sink = Sink([theirs.fileno() for _, theirs in pairs])
    yield sink
    sink.close()


@pytest.mark.parametrize("seed", range(20))
def test_frames_are_counted_wherever_the_stream_is_cut(sink: Sink, seed: int) -> None:
    chance = random.Random(seed)
    payloads = chance.choices(PAYLOADS, k=30)
    stream = b"".join(text_frame(payload) + (PING if chance.random() < 0.3 else b"") for payload in payloads)
    fed = stream
    while fed:
        size = chance.choice([1, 2, 3, 100, 70_000])
        sink.feed(0, fed[:size])
        fed = fed[size:]
    parsed, rest = split_frames(stream)
    texts = [payload for opcode, payload in parsed if opcode == 1]
    assert not rest
    assert texts == payloads
    assert sink.frames(0) == len(texts)
    assert sink.payload_bytes(0) == sum(map(len, texts))


def test_the_last_arrival_is_told(sink: Sink, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    for ours, _ in pairs:
        ours.sendall(text_frame(b"hello") * 4)
    assert sink.until(4, 5.0) > 0
    sink.check_exact()


def test_what_is_missing_is_no_figure(sink: Sink, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    for ours, _ in pairs[1:]:
        ours.sendall(text_frame(b"hello"))
    with pytest.raises(TooSlow):
        sink.until(1, 0.2)


def test_what_came_twice_is_no_figure(sink: Sink, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    for ours, _ in pairs:
        ours.sendall(text_frame(b"hello"))
    pairs[0][0].sendall(text_frame(b"hello"))
    sink.until(1, 5.0)
    with pytest.raises(Miscounted, match="socket 0 got 2 frames in place of 1"):
        sink.check_exact()


@pytest.mark.parametrize("end", [b"", b"\x88\x02\x0f\xa0"])
def test_a_closed_socket_is_no_figure(sink: Sink, pairs: list[tuple[socket.socket, socket.socket]], end: bytes) -> None:
    pairs[2][0].sendall(end)
    if not end:
        pairs[2][0].shutdown(socket.SHUT_WR)
    with pytest.raises(Miscounted):
        sink.until(1, 5.0)


def test_a_stalled_socket_is_not_waited_for(sink: Sink, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    sink.mute(0)
    for ours, _ in pairs[1:]:
        ours.sendall(text_frame(b"hello"))
    stamps = sink.stamped(1, 5.0)
    assert stamps[0] == [0]
    assert all(stamp > 0 for (stamp,) in stamps[1:])
    pairs[0][0].sendall(text_frame(b"late"))
    sink.mute(0, False)
    sink.drain(0.1)
    assert sink.frames(0) == 1
