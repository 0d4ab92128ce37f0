"""Facts, in the past tense.

A use case records events in its transaction. An event says *what* happened and *whom it concerns*; which channels that
means is decided in one place, :mod:`channels.topics`, so that leaks can be audited on one page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any


class EventClass(StrEnum):
    """What may happen to an event that a slow socket cannot take.

    ``durable``: never dropped; the socket is closed and resumes. ``latest``: an older value gives way to a newer one
        with the same key. ``ephemeral``: dropped first, has no offset, is never stored.
    """

    DURABLE = "durable"
    LATEST = "latest"
    EPHEMERAL = "ephemeral"


@dataclass(frozen=True, slots=True)
class Audience:
    """Whom an event concerns, in ids. :func:`channels.topics.route` turns it into channels."""

    users: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    organisations: tuple[str, ...] = ()
    booking: str | None = None
    conversation: str | None = None
    zones: tuple[str, ...] = ()
    slots: tuple[tuple[str, str], ...] = ()
    """Pairs of service and zone."""


@dataclass(frozen=True, slots=True)
class Event:
    """One fact.

    Attributes:
        id: a ULID, unique; consumers deduplicate by it (CloudEvents ``id``).
        type: ``subject.past_tense`` (CloudEvents ``type``).
        time: when it happened, UTC.
        source: the aggregate, ``booking/01J…`` (CloudEvents ``source``); events of one source keep their order.
        data: the public content; everybody in the audience may see all of it.
        event_class: what a slow socket does with it.
        key: for ``latest`` events: newer values with the same key on the same channel replace older ones.
    """

    id: str
    type: str
    time: datetime
    source: str
    data: Mapping[str, Any]
    audience: Audience = field(default_factory=Audience)
    event_class: EventClass = EventClass.DURABLE
    key: str | None = None
