"""What is checked before a connection becomes a session's, be it a socket or an event stream.

In this order: a token in the URL (400), the Origin (403), draining (503), room in all (503) and for the address (429).
Sockets and event streams share the room, so that a client gains nothing by changing from one to the other.

Cookies are not looked at: who a client is, it says by its token.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

from domain.errors import FixnadoError, TooManyRequests
from server.forwarded import Forwarded, Network, header_values, parse_ip

Scope = MutableMapping[str, Any]

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
    default_message = "A token never goes into a URL: send it in session.connect, or in the Authorization header."


class ForeignOrigin(FixnadoError):
    """A page of another site may not connect in a visitor's name."""

    type = "foreign_origin"
    status = 403
    code = -32003
    default_message = "This origin may not connect."


class NoRoom(FixnadoError):
    """This node takes no more connections now; another may."""

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
    """Who may connect.

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
    """Counts open connections, in all and by address."""

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


class Door:
    """One node's door.

    Args:
        is_draining: nobody is let in any more.

    Attributes:
        slots: the room that is taken.
    """

    def __init__(self, policy: DoorPolicy, is_draining: Callable[[], bool]) -> None:
        self._forwarded = Forwarded(policy.trusted_proxies)
        self._allowed = frozenset(origin for origin in map(normal_origin, policy.allowed_origins) if origin is not None)
        self._is_draining = is_draining
        self.slots = Slots(policy)

    def client(self, scope: Scope) -> str:
        """The client's address."""
        return self._forwarded.client(scope)

    def refusal(self, scope: Scope, address: str) -> FixnadoError | None:
        """Why this one is not let in, if so."""
        if _has_secret(scope["query_string"]):
            return TokenInUrl()
        if not self._origin_is_fine(scope):
            return ForeignOrigin()
        if self._is_draining():
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


def _has_secret(query: bytes) -> bool:
    if not query:
        return False
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    return any(name.lower() in _SECRET_PARAMETERS or _LOOKS_LIKE_A_JWT.search(value) for name, value in pairs)


@lru_cache(maxsize=4096)
def _block(address: str) -> str:
    """What one subscriber line has: an IPv4 address, or an IPv6 /64."""
    ip = parse_ip(address)
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((ip, 64), strict=False))
    return address if ip is None else str(ip)
