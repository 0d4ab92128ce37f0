"""What a session sends, and what becomes of it when the client does not take it.

Invariants:

* nothing written waits for the client. A congested connection is decided per frame: ephemeral ones are dropped,
  ``latest`` ones kept by key (newest wins) and sent when it breathes again, durable ones buffered up to
  ``max_buffered_bytes``, then close 4003;
* offsets of one channel never go backwards: kept ``latest`` frames leave before a durable one of their channel.

What it writes to is a :class:`channels.ports.Transport`: a WebSocket or an event stream, it does not know which.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

from channels.ports import Metrics, Transport
from channels.protocol import CloseCode, encode_notification, text_frame
from domain.events import EventClass
from domain.log import Entry
from domain.types import JSON


class Outlet:
    """The sending half of a session. A base class and no part, because every idle session pays for each object.

    Attributes:
        write: the transport's own; after the end it does nothing.
        congested: whether frames have to be offered instead of written: the kernel does not take all of them.
        fd: where the hub writes by itself; -1 while it must not: congested, closed, or the transport has none.
        deflates: whether events may leave deflated.
    """

    __slots__ = (
        "_held",
        "_max_buffered_bytes",
        "_metrics",
        "_transport",
        "closed",
        "congested",
        "deflates",
        "fd",
        "write",
    )

    def __init__(self, transport: Transport, metrics: Metrics, max_buffered_bytes: int) -> None:
        self._transport = transport
        self._metrics = metrics
        self._max_buffered_bytes = max_buffered_bytes
        self._held: dict[tuple[str, str], bytes] | None = None
        self.write: Callable[[bytes], None] = transport.write
        self.fd = transport.fd
        self.deflates = transport.deflates
        self.closed = False
        self.congested = False

    @abstractmethod
    def close(self, code: CloseCode) -> None:
        """End the session and tell the client why. A second call does nothing."""

    def send(self, data: bytes) -> None:
        """Write finished frames, or close when too much waits already."""
        if self.congested and self._too_much(len(data)):
            self.close(CloseCode.TOO_SLOW)
        elif data:
            self.write(data)

    def notify(self, method: str, params: JSON | None = None) -> None:
        """Send a notification."""
        self.send(text_frame(encode_notification(method, params)))

    def offer(self, entries: Sequence[Entry], frames: Sequence[bytes]) -> None:
        """Take entries, each with its finished frame, although congested; see the module's invariants."""
        leaving: list[bytes] = []
        dropped = 0
        for entry, frame in zip(entries, frames, strict=True):
            if entry.event_class is EventClass.EPHEMERAL:
                dropped += 1
            elif entry.event_class is EventClass.LATEST and entry.key is not None:
                if self._held is None:
                    self._held = {}
                # Out and in again: the dict stays in order of offsets.
                dropped += self._held.pop((entry.channel, entry.key), None) is not None
                self._held[entry.channel, entry.key] = frame
            else:
                leaving += self._release_held(entry.channel)
                leaving.append(frame)
        self._metrics.dropped(dropped)
        data = b"".join(leaving)
        held_bytes = sum(map(len, self._held.values())) if self._held else 0
        if self._too_much(len(data) + held_bytes):
            self.close(CloseCode.TOO_SLOW)
        elif data:
            self._metrics.delivered(len(leaving))
            self.write(data)

    def paused(self) -> None:
        """The transport's buffer is filling."""
        self.congested = True
        self.fd = -1

    def resumed(self) -> None:
        """The transport's buffer has drained."""
        self.congested = False
        self.fd = -1 if self.closed else self._transport.fd
        frames = self._release_held()
        self._held = None
        if frames and not self.closed:
            self._metrics.delivered(len(frames))
            self.write(b"".join(frames))

    def _too_much(self, more_bytes: int) -> bool:
        return self._transport.buffered_bytes() + more_bytes > self._max_buffered_bytes

    def _release_held(self, channel: str | None = None) -> list[bytes]:
        """Take the kept frames, of one channel or all, in order."""
        if not self._held:
            return []
        keys = [key for key in self._held if channel is None or key[0] == channel]
        return [self._held.pop(key) for key in keys]

    def _silence(self) -> None:
        """Nothing leaves from here on."""
        self.closed = True
        self.fd = -1
        self.write = _discard
        self._held = None


def _discard(_data: bytes) -> None:
    """Writes nothing: the session is closed."""
