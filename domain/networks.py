"""What an address says about who shares a line: one caller for limits, one neighbourhood for trust."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network


def line_of(address: str) -> str:
    """What one subscriber has: an IPv4 address, or the /64 of an IPv6 one. Text that is no address stays as it is."""
    ip = _ip(address)
    if ip is None:
        return address
    return str(ip) if isinstance(ip, IPv4Address) else str(ip_network((ip, 64), strict=False))


def network_of(address: str) -> str | None:
    """The neighbourhood in which a line's address changes by itself: an IPv4 /24, an IPv6 /48; ``None`` if unknown."""
    ip = _ip(address)
    if ip is None:
        return None
    return str(ip_network((ip, 24 if isinstance(ip, IPv4Address) else 48), strict=False))


def _ip(address: str) -> IPv4Address | IPv6Address | None:
    try:
        ip = ip_address(address)
    except ValueError:
        return None
    return ip.ipv4_mapped or ip if isinstance(ip, IPv6Address) else ip
