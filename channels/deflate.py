"""Events deflated for those who negotiated it (permessage-deflate, RFC 7692): once on a node, the same bytes for all.

That is possible because a message never refers to the one before it (``server_no_context_takeover``), which also leaves
nothing to keep per socket. Only events are deflated. Replies, which may hold a token beside what somebody else wrote,
leave as they are, as any message may; so the length of a frame tells nothing of a secret.
"""

from __future__ import annotations

import zlib

from channels.protocol import deflated_frame, text_frame

LEVEL = 4
"""Of 1 to 9. An event is as short as at zlib's own 6, within a hundredth, and text made to be hard takes a tenth of the
time.
"""

WINDOW_BITS = 15
"""What a receiver must keep: 32 KiB while it inflates one message."""

_EMPTY_BLOCK = b"\x00\x00\xff\xff"


class Deflater:
    """Turns payloads of events into finished frames."""

    def __init__(self) -> None:
        self._compressor = _compressor()
        self._frames: dict[bytes, bytes] = {}

    def frame(self, payload: bytes) -> bytes:
        """One final text frame, deflated where that makes it shorter. A payload seen since :meth:`forget` costs
        nothing.
        """
        frame = self._frames.get(payload)
        if frame is None:
            frame = self._frames[payload] = self._deflated(payload)
        return frame

    def _deflated(self, payload: bytes) -> bytes:
        try:
            # A full flush forgets what came before it, as a new compressor would, for less.
            deflated = self._compressor.compress(payload) + self._compressor.flush(zlib.Z_FULL_FLUSH)
        except BaseException:
            # It may have kept something of this payload, which must not begin the next one's frame.
            self._compressor = _compressor()
            raise
        # RFC 7692 §7.2.1: the receiver puts the block back.
        deflated = deflated.removesuffix(_EMPTY_BLOCK)
        return deflated_frame(deflated) if len(deflated) < len(payload) else text_frame(payload)

    def forget(self) -> None:
        """Let go of what was kept for the rest of a turn."""
        self._frames.clear()


def _compressor() -> zlib._Compress:
    return zlib.compressobj(LEVEL, wbits=-WINDOW_BITS)
