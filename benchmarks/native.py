"""``native.c`` as Python sees it: compiled on the spot, called through ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from hatch_build import FLAGS, compile_into, find_compiler

SOURCE = Path(__file__).with_name("native.c")


class CompilerMissing(RuntimeError):
    """There is no C compiler, so there is neither the yardstick nor a receiver that is cheap enough."""


@cache
def library_path() -> Path:
    """The compiled library. It is kept under the hash of its source, so it is built once per version.

    Raises:
        CompilerMissing: there is none.
    """
    if find_compiler() is None:
        raise CompilerMissing("no C compiler: type apt-get install gcc")
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
    directory = Path(tempfile.gettempdir()) / f"fixnado-bench-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise PermissionError(f"{directory} belongs to somebody else")
    target = directory / f"native-{digest}.so"
    if not target.exists():
        compile_into(target, SOURCE, scratch=directory)
    return target


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path()))
    pointer, integer, wide = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64
    for name, result, arguments in (
        ("sink_new", pointer, [ctypes.POINTER(integer), integer]),
        ("sink_free", None, [pointer]),
        ("sink_epoll", integer, [pointer]),
        ("sink_frames", wide, [pointer, integer]),
        ("sink_payload", wide, [pointer, integer]),
        ("sink_closed", integer, [pointer, integer]),
        ("sink_mute", None, [pointer, integer, integer]),
        ("sink_feed", wide, [pointer, integer, ctypes.c_char_p, ctypes.c_size_t]),
        ("sink_until", ctypes.c_int64, [pointer, wide, integer, integer, pointer, integer, wide]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class TooSlow(RuntimeError):
    """Not everything that was expected has arrived in time."""


class Miscounted(RuntimeError):
    """What arrived is not what was sent."""


class Sink:
    """Receives on many sockets and counts WebSocket frames. The sockets stay their owner's.

    Raises:
        CompilerMissing: see there.
    """

    def __init__(self, fds: Sequence[int]) -> None:
        self._library = _library()
        self._count = len(fds)
        self._sink = self._library.sink_new((ctypes.c_int * len(fds))(*fds), len(fds))
        self.expected = 0

    def close(self) -> None:
        """Give the memory back."""
        if self._sink:
            os.close(self._library.sink_epoll(self._sink))
            self._library.sink_free(self._sink)
            self._sink = None

    def mute(self, index: int, muted: bool = True) -> None:
        """Read this socket no longer, like a client whose network has stalled, or again."""
        self._library.sink_mute(self._sink, index, int(muted))

    def frames(self, index: int) -> int:
        """Data frames that came on a socket so far."""
        return int(self._library.sink_frames(self._sink, index))

    def payload_bytes(self, index: int) -> int:
        """Bytes of the payloads of those frames."""
        return int(self._library.sink_payload(self._sink, index))

    def closed(self, index: int) -> bool:
        """Whether the server has ended the connection."""
        return bool(self._library.sink_closed(self._sink, index))

    def feed(self, index: int, data: bytes) -> int:
        """Count frames in bytes from memory."""
        return int(self._library.sink_feed(self._sink, index, data, len(data)))

    def until(self, more: int, timeout_seconds: float, *, nap_seconds: float = 0.0) -> float:
        """Receive until every listened socket has that many more frames; returns the last arrival (monotonic s).

        Raises:
            TooSlow: not everything came.
            Miscounted: a socket was closed.
        """
        self.expected += more
        nap = int(nap_seconds * 1e6)
        last = self._library.sink_until(self._sink, self.expected, int(timeout_seconds * 1000), nap, None, 0, 0)
        self._check(last)
        return float(last) / 1e9

    def stamped(self, more: int, timeout_seconds: float) -> list[list[int]]:
        """As :meth:`until`; returns the arrival of each frame of each socket in monotonic ns (0: it did not come)."""
        stamps = (ctypes.c_int64 * (self._count * more))()
        first = self.expected
        self.expected += more
        timeout_ms = int(timeout_seconds * 1000)
        self._check(self._library.sink_until(self._sink, self.expected, timeout_ms, 0, stamps, more, first))
        return [list(stamps[i * more : (i + 1) * more]) for i in range(self._count)]

    def drain(self, seconds: float) -> None:
        """Receive whatever still comes for so long."""
        self._library.sink_until(self._sink, 2**62, int(seconds * 1000), 0, None, 0, 0)

    def check_exact(self, *, apart_from: Sequence[int] = ()) -> None:
        """Make sure that every socket is open and got what was expected and nothing else.

        Raises:
            Miscounted: one did not; the figures of this sink are worth nothing.
        """
        self.drain(0.05)
        for index in set(range(self._count)) - set(apart_from):
            if self.closed(index):
                raise Miscounted(f"socket {index} was closed after {self.frames(index)} frames")
            if self.frames(index) != self.expected:
                raise Miscounted(f"socket {index} got {self.frames(index)} frames in place of {self.expected}")

    def _check(self, last: int) -> None:
        if last == -3:
            raise Miscounted("the server has closed a socket")
        if last < 0:
            raise TooSlow("not everything that was sent has arrived")
