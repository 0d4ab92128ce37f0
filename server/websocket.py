"""The socket's endpoint: a connection that the door lets in becomes a WebSocket and is handed to a session.

What :mod:`server.door` refuses is refused before the upgrade. The subprotocol is looked at after it, with close 4506,
because a browser shows its page no other reason.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from channels.protocol import SUBPROTOCOL, CloseCode
from channels.realtime import Realtime
from domain.errors import FixnadoError
from server.door import Door
from server.forwarded import header_values
from server.http import problem
from server.requests import NoSuchPage
from server.telemetry import sane_correlation_id
from server.uvicorn_protocol import TRANSPORT, LentTransport

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class SocketEndpoint:
    """The ASGI application behind ``/socket``. Returns as soon as the session has the transport; no task stays."""

    def __init__(self, realtime: Realtime, door: Door) -> None:
        self._realtime = realtime
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        address = self._door.client(scope)
        refusal = self._door.refusal(scope, address)
        if refusal is not None:
            await refuse(scope, send, refusal)
            return
        transport: LentTransport = scope["extensions"][TRANSPORT]
        free = self._door.slots.take(address)
        try:
            wanted = SUBPROTOCOL in scope["subprotocols"]
            await send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL if wanted else None})
            # Nothing is awaited from here on, so no message can come before the session is attached.
            session = self._realtime.open(transport)
        except BaseException:
            free()
            raise
        transport.attach(session, free)
        if not wanted:
            session.close(CloseCode.UNSUPPORTED_SUBPROTOCOL)


class WithSocket:
    """An ASGI application with the socket in front, outside all middleware: a socket then holds on to none of it."""

    def __init__(self, app: ASGIApp, endpoint: SocketEndpoint, path: str = "/socket") -> None:
        self._app = app
        self._endpoint = endpoint
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
        elif scope["path"] == self._path:
            await self._endpoint(scope, receive, send)
        else:
            await receive()
            await refuse(scope, send, NoSuchPage("There is no socket here."))


async def refuse(scope: Scope, send: Send, error: FixnadoError) -> None:
    """Answer a handshake with a problem document (RFC 9457) in place of the upgrade."""
    given = header_values(scope, b"x-correlation-id")
    correlation_id = sane_correlation_id(given[0] if len(given) == 1 else None)
    answer = problem(error, correlation_id)
    headers = [*answer.raw_headers, (b"x-correlation-id", correlation_id.encode())]
    await send({"type": "websocket.http.response.start", "status": answer.status_code, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": answer.body})
