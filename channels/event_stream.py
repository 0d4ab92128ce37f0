"""The wire of an event stream (Server-Sent Events, WHATWG HTML §9.2), without any I/O.

Each message of the socket is one event, as it is: ``data:`` holds the same JSON-RPC object. Three things differ:

* an event with an offset also has an ``id:``, its *place*: ``user:42@k3.981;`` is channel, epoch and offset. The ids of
  several channels, one after the other, are a ``Last-Event-ID`` that resumes them all;
* a heartbeat is a comment, since there is nothing to answer it with;
* the end is an event named ``close`` with ``{code, reason}``, since HTTP has no close frame.

A place proves nothing and need not: who may hear a channel is asked anew, and an epoch or an offset that the log does
not know is answered with a snapshot. The semicolon at its end shows that it is whole, so that a header that was cut
short on its way is refused instead of resuming from a smaller offset.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import orjson

from channels.protocol import CloseCode
from domain.errors import InvalidParams
from domain.types import JSON

MAX_PLACES_BYTES = 8 * 1024
"""Of a ``Last-Event-ID``; what proxies let through. A longer state comes in the body of a POST."""

HEARTBEAT = b": ping\n\n"

_OFFSET = re.compile(rb'\{"jsonrpc":"2\.0","method":"event","params":\{"channel":"([^"\\]+)","offset":([0-9]+),')
_PLACE = re.compile(r"([A-Za-z0-9_:-]{1,160})@([A-Za-z0-9_-]{1,64})\.([0-9]{1,15});")


def payloads(frames: bytes) -> Iterator[bytes]:
    """What is in finished text frames, as :func:`channels.protocol.text_frame` makes them."""
    start, end = 0, len(frames)
    while start < end:
        length, start = frames[start + 1], start + 2
        if length == 126:
            length, start = int.from_bytes(frames[start : start + 2], "big"), start + 2
        elif length == 127:
            length, start = int.from_bytes(frames[start : start + 8], "big"), start + 8
        yield frames[start : start + length]
        start += length


def message(payload: bytes, event_id: bytes = b"") -> bytes:
    """One event with a message in it. JSON of ours has no line breaks, so it is one line."""
    return b"id: %b\ndata: %b\n\n" % (event_id, payload) if event_id else b"data: %b\n\n" % payload


def closing(code: CloseCode) -> bytes:
    """The last event of a stream."""
    return b"event: close\ndata: %b\n\n" % orjson.dumps({"code": int(code), "reason": code.reason})


class Encoder:
    """Turns frames into events. The streams of a node share one, so what all of them get is encoded once.

    Args:
        epoch_of: the epoch of a channel that this node holds.
    """

    def __init__(self, epoch_of: Callable[[str], str | None]) -> None:
        self._epoch_of = epoch_of
        self._frames = b""
        self._events = b""

    def __call__(self, frames: bytes) -> bytes:
        # A fan-out hands over the very same object for each of its receivers.
        if frames is not self._frames:
            self._events = b"".join([message(payload, self._place(payload)) for payload in payloads(frames)])
            self._frames = frames
        return self._events

    def _place(self, payload: bytes) -> bytes:
        found = _OFFSET.match(payload)
        if found is None:
            return b""
        channel = found[1].decode()
        epoch = self._epoch_of(channel)
        return b"" if epoch is None else f"{channel}@{epoch}.{int(found[2])};".encode()


def read_places(text: str) -> JSON:
    """The ``resume`` of ``session.connect`` from a ``Last-Event-ID``. Of a channel named twice, the later place counts.

    Raises:
        InvalidParams: it is not a row of whole places, or too long.
    """
    text = text.strip()
    resume: JSON = {}
    end = 0
    if len(text) <= MAX_PLACES_BYTES:
        for found in _PLACE.finditer(text):
            if found.start() != end:
                break
            channel, epoch, offset = found.groups()
            resume[channel] = {"epoch": epoch, "offset": int(offset)}
            end = found.end()
    if end != len(text):
        raise InvalidParams.at("Last-Event-ID", f"places such as user:42@k3.981; in at most {MAX_PLACES_BYTES} bytes")
    return resume
