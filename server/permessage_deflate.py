"""permessage-deflate (RFC 7692) as this server negotiates it, for deployments that ask for it.

Neither side may refer to an earlier message: the server's events are deflated once for all sockets
(:mod:`channels.deflate`), and a client's message is inflated by itself, so an idle socket keeps no window.

What a client can have us do with few bytes is bounded three times, each time with close 1009: a message may become as
long as one that comes as it is; what it was before, its fragments together, may be as long, too, because it can inflate
to nothing; and all messages of a socket together may become as much in a second, twice as much at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import lru_cache

from websockets.exceptions import NegotiationError, PayloadTooBig
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.frames import CTRL_OPCODES, Frame, Opcode
from websockets.typing import ExtensionParameter

from channels.deflate import WINDOW_BITS


class TooMuchAtOnce(PayloadTooBig):
    """None of the messages was too long, but all together are."""

    def __str__(self) -> str:
        return f"deflated messages became more than {self.max_size} bytes in a second"


class Inflater(PerMessageDeflate):
    """Inflates what one client sends, until :meth:`stop`.

    Args:
        per_second: bytes that all messages together may become.
    """

    def __init__(
        self, client_max_window_bits: int, per_second: int, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(
            remote_no_context_takeover=True,
            local_no_context_takeover=True,
            remote_max_window_bits=client_max_window_bits,
            local_max_window_bits=WINDOW_BITS,
        )
        self._stopped = False
        self._monotonic = monotonic
        self._room = 0
        self._per_second = per_second
        # Whoever is new has room for one message of any length.
        self._budget = float(per_second)
        self._counted_at = monotonic()

    def stop(self) -> None:
        """Nobody reads the messages any more: make nothing of them, which costs nothing."""
        self._stopped = True

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:
        if frame.opcode in CTRL_OPCODES or not (frame.rsv1 or self.decode_cont_data):
            return super().decode(frame, max_size=max_size)
        if self._stopped:
            return Frame(frame.opcode, b"", frame.fin)
        if max_size is None:
            raise ValueError("what a message may become has to be bounded")
        if frame.opcode is not Opcode.CONT:
            self._room = max_size
        self._room -= len(frame.data)
        if self._room < 0:
            raise PayloadTooBig(None, max_size)
        # To websockets, 0 is no bound.
        inflated = super().decode(frame, max_size=max(1, max_size))
        if len(inflated.data) > max_size:
            raise PayloadTooBig(None, max_size)
        self._charge(max(len(frame.data), len(inflated.data)))
        return inflated

    def _charge(self, size: int) -> None:
        now = self._monotonic()
        refilled = self._budget + (now - self._counted_at) * self._per_second
        self._budget = min(refilled, 2 * self._per_second) - size
        self._counted_at = now
        if self._budget < 0:
            raise TooMuchAtOnce(None, self._per_second)


class Offers(ServerPerMessageDeflateFactory):
    """Takes the first offer of a client that can read what is deflated for all."""

    def __init__(self, max_message_bytes: int) -> None:
        super().__init__(server_no_context_takeover=True, client_no_context_takeover=True)
        self._max_message_bytes = max_message_bytes

    def process_request_params(
        self, params: Sequence[ExtensionParameter], accepted_extensions: Sequence[Extension]
    ) -> tuple[list[ExtensionParameter], PerMessageDeflate]:
        answer, agreed = super().process_request_params(params, accepted_extensions)
        if agreed.local_max_window_bits < WINDOW_BITS:
            raise NegotiationError("a smaller window than that of the frames all sockets share")
        return answer, Inflater(agreed.remote_max_window_bits, self._max_message_bytes)


@lru_cache
def offers(max_message_bytes: int) -> Sequence[Offers]:
    """What a server takes whose messages may be so long; the same for all its sockets."""
    return (Offers(max_message_bytes),)
