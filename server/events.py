"""``/events``: what the socket says, as Server-Sent Events, for networks that let no WebSocket through.

The rules are the socket's, because the session is the same: :class:`EventStream` is its transport. What a client says,
it says with ``POST /commands/{method}``; requests for the session itself name it in ``X-Session``.

The token comes in ``Authorization``, so browsers' ``EventSource`` cannot be used; clients read the body with ``fetch``.
What is refused before the stream is open is a problem document; one that means the end of a session has its ``close``
code in it. Where the client stands it says in ``Last-Event-ID``, see :mod:`channels.event_stream`, or, when that would
be longer than proxies take, in ``resume`` of the body of a POST.

Headers keep what is between from storing, compressing or collecting the stream. A peer that vanished is found by TCP:
heartbeats that nobody acknowledges end the connection after as long as a silent socket is given.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from channels.event_stream import HEARTBEAT, Encoder, closing, message, read_places
from channels.limits import Limits
from channels.params import expect_only
from channels.protocol import CloseCode, encode_result
from channels.realtime import Realtime
from channels.session import Session
from channels.streams import Streams
from domain.errors import FixnadoError, InvalidParams
from domain.types import JSON
from server.door import Door
from server.requests import MethodNotAllowed, bearer_token, read_body
from server.uvicorn_protocol import CLOSE_GRACE_SECONDS, LEND

METHODS = ("GET", "POST")

HEADERS = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
    # The stream ends with its connection: nobody should wait for room on it, and it may have to be aborted.
    (b"connection", b"close"),
)


class EventStream:
    """One response as the live side sees it; implements :class:`channels.ports.Transport`.

    Before the response has begun, what is written is kept; the session bounds how much that may be.

    Attributes:
        fd: none, because frames do not leave as they are.
        closed_with: why this side ended it, if it did.
        over: set when there is nothing more to stream.
    """

    def __init__(self, encode: Encoder, lend: Callable[[EventStream], asyncio.Transport]) -> None:
        self._encode = encode
        self._early: list[bytes] | None = []
        self._session: Session | None = None
        self._abort_timer: asyncio.TimerHandle | None = None
        self._written_bytes = 0
        self._taken_bytes = 0
        self.closed_with: CloseCode | None = None
        self.over = asyncio.Event()
        self.fd = -1
        self.deflates = False
        self._connection = lend(self)

    def attach(self, session: Session) -> None:
        """Whom to tell how the connection is."""
        self._session = session

    def begin(self, hello: bytes, silence_seconds: float) -> None:
        """The head of the response is out: send ``hello``, and then all that was kept."""
        early, self._early = self._early, None
        self._chunk(b"".join([message(hello), *(early or ())]))
        # An unread end is TCP's to notice, see the module. Elsewhere than on Linux it takes the system's own time.
        if (name := getattr(socket, "TCP_USER_TIMEOUT", None)) is not None:
            connection = self._connection.get_extra_info("socket")
            with suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, name, int(silence_seconds * 1000))
        if self.closed_with is not None:
            self._abort_later()

    def _chunk(self, data: bytes) -> None:
        if self._early is not None:
            self._early.append(data)
        elif not self._connection.is_closing():
            self._written_bytes += len(data)
            self._connection.write(b"%x\r\n%b\r\n" % (len(data), data))

    # The session writes

    def write(self, data: bytes) -> None:
        self._chunk(self._encode(data))

    def beat(self) -> bool:
        """Send a comment. The peer is there when it has taken anything since the last one."""
        taken = self._written_bytes - self._connection.get_write_buffer_size()
        alive, self._taken_bytes = taken > self._taken_bytes, max(taken, self._taken_bytes)
        self._chunk(HEARTBEAT)
        return alive

    def buffered_bytes(self) -> int:
        early = sum(map(len, self._early)) if self._early else 0
        return self._connection.get_write_buffer_size() + early

    def close(self, code: int, reason: str) -> None:
        self.closed_with = CloseCode(code)
        self._chunk(closing(self.closed_with))
        self.over.set()
        if self._early is None:
            self._abort_later()

    def _abort_later(self) -> None:
        # The end of the response waits for what is buffered, which may never be read.
        self._abort_timer = asyncio.get_running_loop().call_later(CLOSE_GRACE_SECONDS, self.abort)

    def abort(self) -> None:
        self._connection.abort()

    # The connection tells

    def paused(self) -> None:
        if self._session is not None:
            self._session.paused()

    def resumed(self) -> None:
        if self._session is not None:
            self._session.resumed()

    def lost(self) -> None:
        if self._abort_timer is not None:
            self._abort_timer.cancel()
        if self._session is not None:
            self._session.lost()
        self.over.set()


class EventsEndpoint:
    """The ASGI application behind ``/events``."""

    def __init__(self, realtime: Realtime, streams: Streams, door: Door, limits: Limits) -> None:
        self._realtime = realtime
        self._streams = streams
        self._door = door
        self._silence_seconds = limits.heartbeat_seconds + limits.heartbeat_grace_seconds
        self._encode = Encoder(realtime.hub.epoch)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in METHODS:
            raise MethodNotAllowed
        request = Request(scope, receive)
        address = self._door.client(scope)
        refusal = self._door.refusal(scope, address)
        if refusal is not None:
            raise refusal
        free = self._door.slots.take(address)
        try:
            params = {"token": bearer_token(request), **await _read_params(request)}
            await self._stream(request, params, send)
        finally:
            free()

    async def _stream(self, request: Request, params: JSON, send: Send) -> None:
        stream = EventStream(self._encode, request.scope["extensions"][LEND])
        session = self._realtime.open(stream, self._streams.tag)
        stream.attach(session)
        try:
            hello = await self._connect(session, stream, params, request)
            self._streams.add(session)
            await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
            stream.begin(encode_result("session.connect", hello), self._silence_seconds)
            await stream.over.wait()
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._streams.remove(session)
            session.lost()

    async def _connect(self, session: Session, stream: EventStream, params: JSON, request: Request) -> JSON:
        try:
            return await session.perform("session.connect", params, request.state.origin)
        except FixnadoError as error:
            if stream.closed_with is not None:
                code = stream.closed_with
                error.details = {**error.details, "close": {"code": int(code), "reason": code.reason}}
            raise


async def _read_params(request: Request) -> JSON:
    places = request.headers.get("last-event-id")
    if request.method == "GET":
        return {"resume": read_places(places)} if places else {}
    body = await read_body(request)
    expect_only(body, ("client", "resume"))
    if places is not None:
        raise InvalidParams.at("Last-Event-ID", "a POST says it in resume")
    return body
