"""The socket's door: what is checked before a connection becomes a WebSocket, and the handing over to a session.

In this order, and before the upgrade unless said otherwise: path, a token in the URL (400), the Origin (403),
draining (503), room in all (503) and for the address (429), the subprotocol (after the upgrade, with close 4506,
because a browser shows its page no other reason).

Cookies are not looked at: who a client is, it says in ``session.connect``.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from channels.protocol import SUBPROTOCOL, CloseCode
from channels.realtime import Realtime
from domain.errors import FixnadoError, TooManyRequests
from server.forwarded import Forwarded, Network, header_values, parse_ip
from server.http import NoSuchPage, problem
from server.telemetry import sane_correlation_id
from server.uvicorn_protocol import TRANSPORT, LentTransport

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

RETRY_AFTER_SECONDS = 5

_SECRET_PARAMETERS = frozenset(
    {"token", "access_token", "refresh_token", "id_token", "jwt", "auth", "authorization", "bearer", "key", "api_key"}
)
_LOOKS_LIKE_A_JWT = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]*")
_ORIGIN = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


class TokenInUrl(FixnadoError):
    """URLs end up in logs and histories."""

    type = "token_in_url"
    status = 400
    code = -32600
    default_message = "A token never goes into a URL: send it in session.connect."


class ForeignOrigin(FixnadoError):
    """A page of another site may not open a socket in a visitor's name."""

    type = "foreign_origin"
    status = 403
    code = -32003
    default_message = "This origin may not open a socket."


class NoRoom(FixnadoError):
    """This node takes no more sockets now; another may."""

    type = "no_room"
    status = 503
    retryable = True
    default_message = "Too many sockets are open."


def normal_origin(origin: str) -> str | None:
    """``scheme://host:port`` in lower case and with the port spelt out; ``None`` for what is no web origin
    (``null``).
    """
    match = _ORIGIN.fullmatch(origin.lower())
    if match is None:
        return None
    scheme, host, port = match.groups()
    return f"{scheme}://{host}:{port or _DEFAULT_PORTS[scheme]}"


@dataclass(frozen=True, slots=True)
class DoorPolicy:
    """Who may open a socket.

    Attributes:
        allowed_origins: besides the server's own, e.g. ``https://app.fixnado.com``.
        trusted_proxies: whose ``X-Forwarded-*`` headers count.
        max_sockets: on this node.
        max_sockets_per_address: of one IPv4 address or one IPv6 /64.
    """

    allowed_origins: frozenset[str] = frozenset()
    trusted_proxies: tuple[Network, ...] = ()
    max_sockets: int = 50_000
    max_sockets_per_address: int = 200


class Slots:
    """Counts open sockets, in all and by address."""

    def __init__(self, policy: DoorPolicy) -> None:
        self._policy = policy
        self._by_address: dict[str, int] = {}
        self.taken = 0

    def refusal(self, address: str) -> FixnadoError | None:
        """Why there is no slot for this address, if there is none."""
        if self.taken >= self._policy.max_sockets:
            return NoRoom(retry_after_seconds=RETRY_AFTER_SECONDS)
        if self._by_address.get(_block(address), 0) >= self._policy.max_sockets_per_address:
            return TooManyRequests(RETRY_AFTER_SECONDS, "Too many sockets are open from this address.")
        return None

    def take(self, address: str) -> Callable[[], None]:
        """Take a slot; call what is returned to free it, once."""
        block = _block(address)
        self.taken += 1
        self._by_address[block] = self._by_address.get(block, 0) + 1

        def free() -> None:
            self.taken -= 1
            self._by_address[block] -= 1
            if not self._by_address[block]:
                del self._by_address[block]

        return free


class SocketEndpoint:
    """The ASGI application behind ``/socket``. Returns as soon as the session has the transport; no task stays."""

    def __init__(self, realtime: Realtime, policy: DoorPolicy) -> None:
        self._realtime = realtime
        self._forwarded = Forwarded(policy.trusted_proxies)
        self._allowed = frozenset(origin for origin in map(normal_origin, policy.allowed_origins) if origin is not None)
        self.slots = Slots(policy)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        address = self._forwarded.client(scope)
        refusal = self._refusal(scope, address)
        if refusal is not None:
            await refuse(scope, send, refusal)
            return
        transport: LentTransport = scope["extensions"][TRANSPORT]
        free = self.slots.take(address)
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

    def _refusal(self, scope: Scope, address: str) -> FixnadoError | None:
        if _has_secret(scope["query_string"]):
            return TokenInUrl()
        if not self._origin_is_fine(scope):
            return ForeignOrigin()
        if self._realtime.draining:
            return NoRoom("The server is going away. Try again.", retry_after_seconds=RETRY_AFTER_SECONDS)
        return self.slots.refusal(address)

    def _origin_is_fine(self, scope: Scope) -> bool:
        origins = header_values(scope, b"origin")
        if not origins:
            # No browser: they always send one, and scripts cannot take it away.
            return True
        origin = normal_origin(origins[0]) if len(origins) == 1 else None
        if origin is None:
            return False
        hosts = header_values(scope, b"host")
        own = normal_origin(f"{self._forwarded.scheme(scope)}://{hosts[0]}") if len(hosts) == 1 else None
        return origin == own or origin in self._allowed


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


def _has_secret(query: bytes) -> bool:
    if not query:
        return False
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    return any(name.lower() in _SECRET_PARAMETERS or _LOOKS_LIKE_A_JWT.search(value) for name, value in pairs)


def _block(address: str) -> str:
    """What one subscriber line has: an IPv4 address, or an IPv6 /64."""
    ip = parse_ip(address)
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((ip, 64), strict=False))
    return address if ip is None else str(ip)
