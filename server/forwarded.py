"""Who a request comes from: through configured proxies, and no others."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def networks(proxies: Iterable[str]) -> tuple[Network, ...]:
    """Addresses and CIDR blocks of trusted proxies.

    Raises:
        ValueError: one of them is neither.
    """
    return tuple(ipaddress.ip_network(proxy) for proxy in proxies)


class Forwarded:
    """Reads who a request comes from, through configured proxies and no others."""

    def __init__(self, trusted_proxies: tuple[Network, ...]) -> None:
        self._trusted = trusted_proxies

    def _is_trusted(self, address: str) -> bool:
        ip = parse_ip(address)
        return ip is not None and any(ip in network for network in self._trusted)

    def is_behind_proxy(self, scope: Scope) -> bool:
        """Whether the connection comes from a trusted proxy, whose own headers count."""
        return bool(self._trusted) and self._is_trusted(_peer(scope))

    def client(self, scope: Scope) -> str:
        """The client's address: the last one in ``X-Forwarded-For`` that is not a trusted proxy, read from the
        right.
        """
        address = _peer(scope)
        if not self._trusted or not self._is_trusted(address):
            return address
        hops = [hop.strip() for value in header_values(scope, b"x-forwarded-for") for hop in value.split(",")]
        for hop in reversed(hops):
            if parse_ip(hop) is None:
                break
            address = hop
            if not self._is_trusted(hop):
                break
        return address

    def scheme(self, scope: Scope) -> str:
        """``http`` or ``https``, as the client sees it."""
        scheme = "https" if scope.get("scheme") in ("wss", "https") else "http"
        if self._trusted and self._is_trusted(_peer(scope)):
            forwarded = [value.strip().lower() for value in header_values(scope, b"x-forwarded-proto")]
            if forwarded in (["http"], ["https"], ["ws"], ["wss"]):
                scheme = "https" if forwarded[0] in ("https", "wss") else "http"
        return scheme


def header_values(scope: Scope, name: bytes) -> list[str]:
    """Every value of a header; its name in lower case."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


def parse_ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address, an IPv4 one in IPv6 clothes as what it is; ``None`` for what is none."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return None
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip
