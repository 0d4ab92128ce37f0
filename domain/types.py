"""Small values that every subject uses: ids, money, places and half-open UTC intervals."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

JSON = dict[str, Any]
"""A JSON object as plain Python."""

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [first + second for first in _CROCKFORD for second in _CROCKFORD]


def new_id(now: datetime) -> str:
    """A ULID: 48 bits of milliseconds, 80 random bits, 26 characters that sort by time (github.com/ulid/spec)."""
    value = (int(now.timestamp() * 1000) << 80) | secrets.randbits(80)
    return "".join([_PAIRS[(value >> shift) & 1023] for shift in range(120, -1, -10)])


def wire_time(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds, e.g. ``2026-11-24T02:00:00.123Z``."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Money:
    """An amount in minor units (pence, cents) of an ISO 4217 currency."""

    amount_minor: int
    currency: str

    def view(self) -> JSON:
        return {"amount_minor": self.amount_minor, "currency": self.currency}


@dataclass(frozen=True, slots=True)
class Point:
    """A place in WGS 84 degrees."""

    lat: float
    lon: float

    def view(self) -> JSON:
        return {"lat": self.lat, "lon": self.lon}


@dataclass(frozen=True, slots=True)
class Interval:
    """Half-open in UTC: ``start`` belongs to it, ``end`` does not."""

    start: datetime
    end: datetime

    def overlaps(self, other: Interval) -> bool:
        """Whether some instant belongs to both; touching ends do not overlap."""
        return self.start < other.end and other.start < self.end


@dataclass(frozen=True, slots=True)
class Origin:
    """What a request brought along and everything that follows from it carries on.

    Attributes:
        correlation_id: the client's if it was sane, else made by the server.
        traceparent: W3C trace context of the request, if any.
        actor_id: the user behind it, or ``system``; audit columns record it.
        address: the client's IP address, read through trusted proxies alone; empty for what no client asked for.
        place: roughly where that address is, when a trusted proxy says so.
    """

    correlation_id: str
    traceparent: str | None = None
    actor_id: str = "system"
    address: str = ""
    place: Point | None = None
