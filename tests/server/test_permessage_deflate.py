"""What one client may have inflated, frame by frame."""

from __future__ import annotations

import zlib

import pytest
from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.frames import Frame, Opcode

from channels.deflate import WINDOW_BITS
from server.permessage_deflate import Inflater

LIMIT = 1_000


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def inflater(clock: Clock) -> Inflater:
    return Inflater(WINDOW_BITS, LIMIT, clock)


def deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-WINDOW_BITS)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\x00\x00\xff\xff")


def first(data: bytes, *, fin: bool = True) -> Frame:
    return Frame(Opcode.TEXT, data, fin, rsv1=True)


def more(data: bytes, *, fin: bool = True) -> Frame:
    return Frame(Opcode.CONT, data, fin)


def test_a_message_is_inflated_whole_or_in_parts(inflater: Inflater) -> None:
    body = deflated(b"hello " * 20)
    whole = inflater.decode(first(body), max_size=LIMIT)
    assert (bytes(whole.data), whole.rsv1) == (b"hello " * 20, False)
    parts = [inflater.decode(first(body[:3], fin=False), max_size=LIMIT)]
    parts.append(inflater.decode(more(body[3:]), max_size=LIMIT - len(parts[0].data)))
    assert b"".join(bytes(part.data) for part in parts) == b"hello " * 20


def test_others_pass_as_they_are(inflater: Inflater) -> None:
    for frame in (Frame(Opcode.TEXT, b"plain"), Frame(Opcode.PING, b"ping"), Frame(Opcode.CONT, b"more")):
        assert inflater.decode(frame, max_size=LIMIT) is frame


def test_a_message_may_not_become_longer(inflater: Inflater) -> None:
    assert len(inflater.decode(first(deflated(b"x" * LIMIT)), max_size=LIMIT).data) == LIMIT
    with pytest.raises(PayloadTooBig):
        inflater.decode(first(deflated(b"x" * (LIMIT + 1))), max_size=LIMIT)


def test_nothing_comes_of_a_message_that_is_full(inflater: Inflater, clock: Clock) -> None:
    """zlib keeps up to 258 bytes that it could not put out."""
    body = deflated(b"x" * (LIMIT + 200))[:-4]
    begun = inflater.decode(first(body, fin=False), max_size=LIMIT)
    assert len(begun.data) == LIMIT
    clock.now += 10
    with pytest.raises(PayloadTooBig):
        inflater.decode(more(b""), max_size=0)


def test_a_message_may_not_have_been_longer(inflater: Inflater, clock: Clock) -> None:
    assert not inflater.decode(first(b"\x03\x00", fin=False), max_size=LIMIT).data
    assert not inflater.decode(more(b"x" * (LIMIT - 2), fin=False), max_size=LIMIT).data
    clock.now += 10
    with pytest.raises(PayloadTooBig):
        inflater.decode(more(b"x"), max_size=LIMIT)


def test_all_messages_of_a_second_become_so_much(inflater: Inflater, clock: Clock) -> None:
    full = first(deflated(b"x" * LIMIT))
    inflater.decode(full, max_size=LIMIT)
    for _ in range(5):
        clock.now += 1.0
        inflater.decode(full, max_size=LIMIT)
    # After a silence twice as much, and no more however long it was.
    clock.now += 100.0
    inflater.decode(full, max_size=LIMIT)
    inflater.decode(full, max_size=LIMIT)
    with pytest.raises(PayloadTooBig):
        inflater.decode(first(deflated(b"x")), max_size=LIMIT)


def test_somebody_new_has_one_message(inflater: Inflater) -> None:
    inflater.decode(first(deflated(b"x" * LIMIT)), max_size=LIMIT)
    with pytest.raises(PayloadTooBig, match="more than 1000 bytes in a second"):
        inflater.decode(first(deflated(b"x")), max_size=LIMIT)


def test_after_the_end_nothing_is_made_of_a_message(inflater: Inflater) -> None:
    inflater.stop()
    for frame in (first(deflated(b"x" * 900)), first(b"\xff\xff")):
        assert inflater.decode(frame, max_size=LIMIT).data == b""


def test_what_is_not_deflated_is_told(inflater: Inflater) -> None:
    with pytest.raises(ProtocolError):
        inflater.decode(first(b"\xff\xff\xff\xff"), max_size=LIMIT)


def test_a_bound_is_needed(inflater: Inflater) -> None:
    with pytest.raises(ValueError, match="bounded"):
        inflater.decode(first(deflated(b"x")))
