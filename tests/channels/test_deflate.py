"""Deflated frames: each is read by itself, by whoever keeps to RFC 7692."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame
from websockets.streams import StreamReader

from channels.deflate import WINDOW_BITS, Deflater

EVENT = b'{"jsonrpc":"2.0","method":"event","params":{"channel":"booking:1","offset":%d,"data":{"text":"%b"}}}'


def read(data: bytes) -> list[tuple[bool, bytes]]:
    """Frames as a client reads them: whether they were deflated, and the payload."""
    reader = StreamReader()
    reader.feed_data(data)
    found = []
    while reader.buffer:
        # One of its own for each frame: nothing may be needed of the one before.
        extension = PerMessageDeflate(True, True, WINDOW_BITS, WINDOW_BITS)
        deflated = bool(reader.buffer[0] & 0x40)
        parsing = Frame.parse(reader.read_exact, mask=False, max_size=None, extensions=[extension])
        try:
            while True:
                next(parsing)
        except StopIteration as stop:
            found.append((deflated, bytes(stop.value.data)))
    return found


def test_a_frame_is_read_without_those_before_it() -> None:
    deflater = Deflater()
    payloads = [EVENT % (offset, b"the same words again and again " * 20) for offset in range(50)]
    frames = [deflater.frame(payload) for payload in payloads]
    assert frames[20] == Deflater().frame(payloads[20]), "none is shorter for what came before"
    assert read(b"".join(reversed(frames))) == [(True, payload) for payload in reversed(payloads)]


def test_it_is_shorter_or_as_it_was() -> None:
    deflater = Deflater()
    noise = random.Random(1).randbytes(400)
    assert read(deflater.frame(b"{}")) == [(False, b"{}")]
    assert read(deflater.frame(noise)) == [(False, noise)]
    booking = EVENT % (7, b"plumbing camden plumbing camden")
    assert len(deflater.frame(booking)) < len(booking)


def test_frames_of_every_length_are_told() -> None:
    deflater = Deflater()
    for size in (200, 5_000, 300_000):
        text = "".join(random.Random(size).choices("abcdefgh", k=size)).encode()
        assert read(deflater.frame(EVENT % (1, text))) == [(True, EVENT % (1, text))]


@given(st.lists(st.binary(max_size=2_000) | st.text(max_size=500).map(str.encode), max_size=8))
def test_whatever_goes_in_comes_out(payloads: list[bytes]) -> None:
    deflater = Deflater()
    assert [payload for _, payload in read(b"".join(map(deflater.frame, payloads)))] == payloads


def test_a_payload_is_deflated_once_a_turn() -> None:
    deflater = Deflater()
    payload = EVENT % (1, b"x" * 100)
    first = deflater.frame(payload)
    assert deflater.frame(bytes(bytearray(payload))) is first
    deflater.forget()
    again = deflater.frame(payload)
    assert again is not first
    assert again == first


def test_what_failed_half_way_is_in_nobody_elses_frame() -> None:
    class Failing:
        """A compressor that keeps what it is given and then finds no memory."""

        def __init__(self) -> None:
            self._real = zlib.compressobj(wbits=-WINDOW_BITS)

        def compress(self, data: bytes) -> bytes:
            return self._real.compress(data)

        def flush(self, mode: int) -> bytes:
            raise MemoryError

    deflater = Deflater()
    deflater._compressor = Failing()  # type: ignore[assignment]
    with pytest.raises(MemoryError):
        deflater.frame(EVENT % (1, b"for Ada's eyes only " * 10))
    assert read(deflater.frame(EVENT % (2, b"y" * 100))) == [(True, EVENT % (2, b"y" * 100))]


def test_a_browser_inflates_what_follows_the_payload_of_a_full_flush() -> None:
    """The block that RFC 7692 §7.2.1 takes away is the one that a full flush ends with, whatever zlib is underneath."""
    deflater = Deflater()
    for size in range(100, 3_000, 37):
        payload = EVENT % (size, b"y" * size)
        frame = deflater.frame(payload)
        body = frame[4:] if frame[1] == 126 else frame[2:]
        inflater = zlib.decompressobj(-WINDOW_BITS)
        assert inflater.decompress(body + b"\x00\x00\xff\xff") == payload
        assert not inflater.eof
