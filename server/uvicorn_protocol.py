"""uvicorn, guarded: its protocol classes with deadlines and bounds, and a server that drains before it shuts down.

:class:`SocketProtocol` lends the application its transport: ``scope["extensions"]["fixnado.transport"]`` is a
:class:`LentTransport`. Once a receiver is attached to it, messages go to the receiver directly, without a queue and
without a task; the ASGI call may return, and what the handshake left behind is dropped. That is what makes an idle
socket cheap and a fan-out fast.

What is guarded, each seen in uvicorn 0.54 and each with a probe in the tests:

* a peer that does not read keeps ``transport.close()`` waiting for ever → every close is followed by an abort;
* pings are answered without bound → a bounded number of control and continuation frames per second, and no pong while
  the peer does not read;
* a burst of tiny frames is parsed in one go → data is fed in slices, and parsing stops once the socket is closed;
* a request that its HTTP parser took and its WebSocket parser refuses stays open in silence → 400;
* no deadline for headers, for a silent connection and for headers without end → 5 s and 64 KiB;
* no deadline for a body that drips → 10 s;
* the access log shows query strings of sockets → it does not;
* a client that does not read its response keeps ``send()`` waiting for ever, and closing as well → whoever streams
  borrows the connection (:meth:`HttpProtocol.lend`), which tells what waits and can be aborted;
* shutdown closes all sockets at once with 1012, before the application hears of it → :class:`DrainingServer`.

Pinned to uvicorn 0.54 in pyproject.toml, because these are subclasses of what it does not promise.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Protocol, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import Server, ServerState
from websockets.exceptions import InvalidState
from websockets.frames import Frame, Opcode
from websockets.http11 import Request

from channels.protocol import MAX_FRAME_BYTES, PING, CloseCode
from server.permessage_deflate import Inflater, offers

logger = logging.getLogger(__name__)

TRANSPORT = "fixnado.transport"
"""The name of the extension in the scope of a socket: a :class:`LentTransport`."""

LEND = "fixnado.lend"
"""The name of the extension in the scope of a request: :meth:`HttpProtocol.lend`."""

HEADER_SECONDS = 5.0
"""From the first moment of a connection, or the first byte of a later request, to the end of its headers."""

LATE_LOOP_SECONDS = 0.05
"""From that deadline to the abort: at least one turn of the loop, in which it reads."""

BODY_SECONDS = 10.0
"""From the end of a request's headers to the end of its body, which is 64 KiB at most."""

MAX_HEADER_BYTES = 64 * 1024

CLOSE_GRACE_SECONDS = 3.0
"""From a close frame to the abort."""

SLICE_BYTES = 2048
"""Fed to the parser at once: at most 340 frames, which take it some 3 ms; deflated ones have a bound of their own."""

SMALL_FRAMES_PER_SECOND = 100
"""Control and continuation frames of one socket; a heartbeat needs one in twenty seconds."""

MAX_FRAGMENTS = 128
"""Frames that one message may come in."""

MAX_BYTES_AFTER_CLOSE = 64 * 1024
"""Read after our close frame while waiting for the peer's."""

_WIRE_LOGGER = logging.getLogger("server.wire")
# uvicorn and websockets write an INFO line or two for every socket, the query string in it.
_WIRE_LOGGER.setLevel(logging.WARNING)


class Receiver(Protocol):
    """Takes what arrives on a lent transport: a :class:`channels.session.Session`."""

    def received(self, text: str) -> None: ...

    def received_binary(self) -> None: ...

    def paused(self) -> None: ...

    def resumed(self) -> None: ...

    def lost(self) -> None:
        """Nothing can be sent any more. May be called again."""

    def close(self, code: CloseCode) -> None: ...


class LentTransport:
    """A socket as the live side sees it; implements :class:`channels.ports.Transport`."""

    __slots__ = ("_protocol", "deflates", "fd", "write")

    def __init__(self, protocol: SocketProtocol) -> None:
        self._protocol = protocol
        self.write: Callable[[bytes], None] = protocol.transport.write
        self.fd = _descriptor(protocol.transport)
        self.deflates = bool(protocol.conn.extensions)

    def attach(self, receiver: Receiver, gone: Callable[[], None]) -> None:
        """Send messages to ``receiver`` from now on; ``gone`` is called once, when the connection has ended."""
        self._protocol.attach(receiver, gone, self.fd)

    def beat(self) -> bool:
        self.write(PING)
        return False

    def buffered_bytes(self) -> int:
        return self._protocol.transport.get_write_buffer_size()

    def close(self, code: int, reason: str) -> None:
        self._protocol.close(code, reason)

    def abort(self) -> None:
        self._protocol.transport.abort()


def _descriptor(transport: asyncio.Transport) -> int:
    """Where plain bytes can be written past a transport; -1 where they cannot: TLS, or a system whose sockets are no
    files.
    """
    connection = transport.get_extra_info("socket")
    if os.name != "posix" or connection is None or transport.get_extra_info("sslcontext") is not None:
        return -1
    return cast(int, connection.fileno())


class StreamOwner(Protocol):
    """Writes the body of a response itself: a :class:`server.events.EventStream`."""

    def paused(self) -> None: ...

    def resumed(self) -> None: ...

    def lost(self) -> None:
        """The connection is gone."""


class _NoQueue(asyncio.Queue[Any]):
    """Stands in for a queue nobody reads any more; shared by all sockets."""

    def put_nowait(self, _item: Any) -> None:
        """Forget the item."""


class SocketProtocol(WebSocketsSansIOProtocol):
    """One WebSocket connection; see the module."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.logger = _WIRE_LOGGER
        self.conn.logger = _WIRE_LOGGER
        self.conn.debug = False
        # Whatever uvicorn makes of it: a frame beyond this is refused by its header, and nothing inflates to more.
        self.conn.max_message_size = config.ws_max_size
        self.conn.available_extensions = offers(config.ws_max_size) if config.ws_per_message_deflate else None
        self.receiver: Receiver | None = None
        self._gone: Callable[[], None] | None = None
        self._abort_timer: asyncio.TimerHandle | None = None
        self._small_frames = 0
        self._small_frames_since = 0.0
        self._bytes_after_close = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over from HTTP, which knows both ends' addresses: asking the socket again costs two system calls."""
        self.transport = cast(asyncio.Transport, transport)
        http = cast(HttpProtocol, self.transport.get_protocol())
        self.connections.add(self)
        self.server, self.client = http.server, http.client
        self.scheme = "wss" if http.scheme == "https" else "ws"

    # The loan

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if not self.close_sent:
            # The task that super() made has not begun yet.
            extensions = cast(dict[str, Any], self.scope["extensions"])
            extensions[TRANSPORT] = LentTransport(self)

    def attach(self, receiver: Receiver, gone: Callable[[], None], fd: int) -> None:
        """See :meth:`LentTransport.attach`. ``fd`` is where others may write past the transport, -1 when nowhere."""
        self.receiver = receiver
        self._gone = gone
        if fd < 0 or self.transport.is_closing():
            return
        # So it is paused exactly while something is buffered, which is when nobody may write past it.
        self.transport.set_write_buffer_limits(high=0)
        if self.transport.get_write_buffer_size() > 0:
            # It may have been paused as HTTP, with a response that is not read, and would not say so again.
            receiver.paused()

    async def run_asgi(self) -> None:
        try:
            await self.app(self.scope, self.receive, self.send)
        except ClientDisconnected:
            pass
        except Exception:
            logger.exception("the application failed on a socket")
            self.send_500_response()
            self._end_receiver()
        else:
            if not self.handshake_complete and self.initial_response is None:
                logger.error("the application returned without an answer to the handshake")
                self.send_500_response()
        closing_politely = self.close_sent and self.initial_response is None
        if self.receiver is None and not closing_politely:
            self._finish()
        else:
            # Also while our close frame waits for the peer's: ending at once could take the frame along.
            self._drop_leftovers()

    def _drop_leftovers(self) -> None:
        """Headers, scope, queue and the like: three kilobytes that an idle socket need not keep."""
        self.scope = None  # type: ignore[assignment]
        self.request = None  # type: ignore[assignment]
        self.response = None  # type: ignore[assignment]
        self.queue = _no_queue()
        self.app_state = {}

    def close(self, code: int, reason: str) -> None:
        """Send a close frame; abort when the peer's does not come in time."""
        self.receiver = None
        if self.close_sent or self.transport.is_closing():
            self._abort_later()
            return
        try:
            self.conn.send_close(code, reason)
        except InvalidState:
            self.transport.abort()
            return
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        for extension in self.conn.extensions:
            cast(Inflater, extension).stop()
        self._abort_later()

    # Bytes come in

    def data_received(self, data: bytes) -> None:
        if self.close_sent:
            self._bytes_after_close += len(data)
            if self._bytes_after_close > MAX_BYTES_AFTER_CLOSE:
                self.transport.abort()
                return
        for start in range(0, len(data), SLICE_BYTES):
            self.conn.receive_data(data[start : start + SLICE_BYTES])
            if self.conn.parser_exc is not None:
                self.handle_parser_exception()
                return
            self.handle_events()
            if self.transport.is_closing():
                return
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            # Its parser gave up on a request that the HTTP parser had taken, and says nothing by itself.
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            self.close_sent = True
            self._finish()

    def handle_events(self) -> None:
        for event in self.conn.events_received():
            if isinstance(event, Request):
                self.handle_connect(event)
            elif isinstance(event, Frame):
                self._handle_frame(event)

    def _handle_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CLOSE:
            self.handle_close(frame)
            return
        if self.close_sent or self.transport.is_closing():
            return
        if (frame.opcode not in (Opcode.TEXT, Opcode.BINARY) or not frame.fin) and self._too_many_small_frames():
            if self.receiver is not None:
                self.receiver.close(CloseCode.FLOODING)
            self.close(CloseCode.FLOODING, CloseCode.FLOODING.reason)
            return
        match frame.opcode:
            case Opcode.TEXT:
                self.handle_text(frame)
            case Opcode.BINARY:
                self.handle_bytes(frame)
            case Opcode.CONT:
                self.handle_cont(frame)
            case Opcode.PING:
                pongs = b"".join(self.conn.data_to_send())
                # RFC 6455 §5.5.3 lets a pong be left out; a peer that does not read would only pile them up.
                if self.transport.get_write_buffer_size() == 0:
                    self.transport.write(pongs)

    def _too_many_small_frames(self) -> bool:
        now = self.loop.time()
        if now - self._small_frames_since >= 1.0:
            self._small_frames_since = now
            self._small_frames = 0
        self._small_frames += 1
        return self._small_frames > SMALL_FRAMES_PER_SECOND or len(self.frames) >= MAX_FRAGMENTS

    def send_receive_event_to_app(self) -> None:
        data = self.frames[0] if len(self.frames) == 1 else b"".join(self.frames)
        self.frames = []
        if self.close_sent or self.receiver is None:
            return
        if self.curr_msg_data_type == "bytes":
            self.receiver.received_binary()
            return
        try:
            text = data.decode()
        except UnicodeDecodeError:
            self._end_receiver()
            self.close(1007, "text is UTF-8")
            # RFC 6455 §7.1.7: who fails a connection need not wait for the other's close frame.
            self._finish()
            return
        self.receiver.received(text)

    def handle_parser_exception(self) -> None:
        self._end_receiver()
        # The parser has put its close frame (1002, 1007, 1009) into the output itself.
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self._finish()

    def handle_close(self, _event: Frame) -> None:
        self._end_receiver()
        if not self.close_sent:
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": 1005})
        self._finish()

    # The end

    def _end_receiver(self) -> None:
        receiver, self.receiver = self.receiver, None
        if receiver is not None:
            receiver.lost()

    def _finish(self) -> None:
        """Close after what is buffered has left, or without it after the grace."""
        if not self.transport.is_closing():
            self.transport.close()
        self._abort_later()

    def _abort_later(self) -> None:
        if self._abort_timer is None and not self.disconnected:
            self._abort_timer = self.loop.call_later(CLOSE_GRACE_SECONDS, self.transport.abort)

    def eof_received(self) -> None:
        # The transport closes itself now, once everything buffered has left; which may be never.
        self._abort_later()

    def connection_lost(self, exc: Exception | None) -> None:
        # First of all: right after this the descriptor is closed, and its number is free for anybody.
        self._end_receiver()
        super().connection_lost(exc)
        if self._abort_timer is not None:
            self._abort_timer.cancel()
            self._abort_timer = None
        gone, self._gone = self._gone, None
        if gone is not None:
            gone()

    def shutdown(self) -> None:
        """The server stops and draining is over."""
        if self.receiver is not None:
            self.receiver.close(CloseCode.DRAIN)
            self.close(CloseCode.DRAIN, CloseCode.DRAIN.reason)
        elif self.handshake_complete:
            self._finish()
        else:
            self.send_500_response()
            self._finish()

    # Flow control

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.receiver is not None:
            self.receiver.paused()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.receiver is not None:
            self.receiver.resumed()


_queue: _NoQueue | None = None


def _no_queue() -> _NoQueue:
    global _queue
    if _queue is None:
        _queue = _NoQueue()
    return _queue


class HttpProtocol(HttpToolsProtocol):
    """HTTP/1.1 with deadlines for headers and body, and a bound for headers.

    Attributes:
        header_seconds, body_seconds: the deadlines; :func:`server_options` sets them.
    """

    header_seconds: ClassVar[float] = HEADER_SECONDS
    body_seconds: ClassVar[float] = BODY_SECONDS

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._header_timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0
        self._body_timer: asyncio.TimerHandle | None = None
        self._owner: StreamOwner | None = None

    # The loan

    def lend(self, owner: StreamOwner) -> asyncio.Transport:
        """Lend the connection to whoever answers the running request.

        It may write the body past uvicorn, chunk by chunk, between the start of the response and its end, which both
        are uvicorn's. So nothing it writes waits for the peer, how much waits can be told, and the connection can be
        aborted. It should not be used for another request afterwards (``connection: close``).
        """
        self._owner = owner
        return self.transport

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._owner is not None:
            self._owner.paused()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._owner is not None:
            self._owner.resumed()

    def eof_received(self) -> None:
        super().eof_received()
        if self._owner is not None:
            # Closing would wait for a flush, and whoever hung up may never read again.
            self.transport.abort()

    # Deadlines

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_are_here()
        self._body_is_here()
        super().connection_lost(exc)
        # The scope leads back here through the extension.
        self.scope = None  # type: ignore[assignment]
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.lost()

    def data_received(self, data: bytes) -> None:
        if self._header_timer is not None:
            self._header_bytes += len(data)
        super().data_received(data)
        if self._header_timer is not None and self._header_bytes > MAX_HEADER_BYTES:
            self._headers_are_here()
            self.transport.write(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            )
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_headers()

    def on_headers_complete(self) -> None:
        self._headers_are_here()
        self._body_timer = self.loop.call_later(self.body_seconds, self._abort)
        cast(dict[str, Any], self.scope)["extensions"] = {LEND: self.lend}
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._body_is_here()
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        self._body_is_here()
        super().handle_websocket_upgrade()
        # The parser and this object hold each other; without a collection neither would go.
        self.parser = None  # type: ignore[assignment]
        self.scope = None  # type: ignore[assignment]

    def _expect_headers(self) -> None:
        if self._header_timer is None:
            self._header_bytes = 0
            self._header_timer = self.loop.call_later(self.header_seconds, self._look_once_more)

    def _look_once_more(self) -> None:
        # When it is the loop that was late, in a storm, the headers are in the socket already: let them be read.
        self._header_timer = self.loop.call_later(LATE_LOOP_SECONDS, self._abort)

    def _abort(self) -> None:
        self._header_timer = None
        self.transport.abort()

    def _body_is_here(self) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    def _headers_are_here(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


class DrainingServer(Server):
    """A uvicorn server that sends sockets away before it shuts anything down.

    Args:
        drain: ends by itself within its own deadline; a second SIGINT cuts it short.
    """

    def __init__(self, config: Config, drain: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._drain = drain

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        draining = asyncio.ensure_future(self._drain())
        try:
            while not draining.done() and not self.force_exit:
                await asyncio.wait({draining}, timeout=0.1)
        finally:
            draining.cancel()
            (result,) = await asyncio.gather(draining, return_exceptions=True)
        if isinstance(result, Exception):
            logger.error("draining failed", exc_info=result)
        await super().shutdown(sockets)


def server_options(
    *,
    shutdown_seconds: int = 5,
    header_seconds: float = HEADER_SECONDS,
    body_seconds: float = BODY_SECONDS,
    max_frame_bytes: int = MAX_FRAME_BYTES,
    deflate: bool = False,
) -> dict[str, Any]:
    """What :class:`uvicorn.Config` must be given for the promises above.

    Args:
        header_seconds: from the first byte of a request, or of a connection, to the end of its headers.
        body_seconds: from there to the end of its body.
        max_frame_bytes: of a client's message, inflated.
        deflate: take offers of permessage-deflate.
        shutdown_seconds: after draining, for requests still running and sockets still closing.
    """
    deadlines = {"header_seconds": header_seconds, "body_seconds": body_seconds}
    return {
        "http": type("ConfiguredHttpProtocol", (HttpProtocol,), deadlines),
        "ws": SocketProtocol,
        "ws_max_size": max_frame_bytes,
        "ws_per_message_deflate": deflate,
        "ws_ping_interval": None,
        # Forwarded headers are read by server.websocket, from configured proxies only.
        "proxy_headers": False,
        "server_header": False,
        "access_log": False,
        "timeout_graceful_shutdown": shutdown_seconds,
    }
