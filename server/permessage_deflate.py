"""permessage-deflate (RFC 7692) as this server negotiates it, for deployments that ask for it.

Neither side may refer to an earlier message: the server's events are deflated once for all sockets
(:mod:`channels.deflate`), and a client's message is inflated by itself, so an idle socket keeps no window. A message
may become as long as one that comes as it is, and no longer: inflating stops there, and the socket is closed (1009).
"""

from __future__ import annotations

from collections.abc import Sequence

from websockets.exceptions import NegotiationError
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.frames import CTRL_OPCODES, Frame
from websockets.typing import ExtensionParameter

from channels.deflate import WINDOW_BITS


class Inflater(PerMessageDeflate):
    """Inflates what one client sends, until :meth:`stop`."""

    def __init__(self, client_max_window_bits: int) -> None:
        super().__init__(
            remote_no_context_takeover=True,
            local_no_context_takeover=True,
            remote_max_window_bits=client_max_window_bits,
            local_max_window_bits=WINDOW_BITS,
        )
        self._stopped = False

    def stop(self) -> None:
        """Nobody reads the messages any more: let them pass as they are, which costs nothing."""
        self._stopped = True

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:
        if self._stopped and frame.opcode not in CTRL_OPCODES:
            return Frame(frame.opcode, b"", frame.fin)
        return super().decode(frame, max_size=max_size)


class Offers(ServerPerMessageDeflateFactory):
    """Takes the first offer of a client that can read what is deflated for all."""

    def __init__(self) -> None:
        super().__init__(server_no_context_takeover=True, client_no_context_takeover=True)

    def process_request_params(
        self, params: Sequence[ExtensionParameter], accepted_extensions: Sequence[Extension]
    ) -> tuple[list[ExtensionParameter], PerMessageDeflate]:
        answer, agreed = super().process_request_params(params, accepted_extensions)
        if agreed.local_max_window_bits < WINDOW_BITS:
            raise NegotiationError("a smaller window than that of the frames all sockets share")
        return answer, Inflater(agreed.remote_max_window_bits)
