"""The transactional outbox: events wait here, committed with what caused them, until a sequencer takes them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.events import Event
from domain.types import Origin
from persistence.database import Database, utc_now
from persistence.tables import outbox, outbox_parked

_APPEND = insert(outbox)


def partition_of(source: str, partitions: int) -> int:
    """The partition of an aggregate's events: the same on every node and for good, so that they keep their order."""
    return 0 if partitions == 1 else zlib.crc32(source.encode()) % partitions


async def append_to_outbox(
    connection: AsyncConnection, events: Sequence[Event], origin: Origin, partitions: int = 1
) -> None:
    """Write events in one statement. Must be the last statement of its transaction."""
    await connection.execute(
        _APPEND,
        [
            {
                "partition": partition_of(event.source, partitions),
                "event_id": event.id,
                "type": event.type,
                "source": event.source,
                "time": event.time,
                "event_class": event.event_class.value,
                "key": event.key,
                "audience": event.audience,
                "data": event.data,
                "correlation_id": origin.correlation_id,
                "traceparent": origin.traceparent,
            }
            for event in events
        ],
    )


@dataclass(frozen=True, slots=True)
class OutboxStats:
    """How the outbox stands.

    Attributes:
        rows: events that wait.
        oldest_age_seconds: age of the event that has waited longest; 0 when none waits.
        parked: poison events that an operator has to look at.
    """

    rows: int
    oldest_age_seconds: float
    parked: int


_STATS = {
    dialect: select(
        select(func.count()).select_from(outbox).scalar_subquery(),
        select(func.count()).select_from(outbox_parked).scalar_subquery(),
        select(outbox.c.time).order_by(outbox.c.id).limit(1).scalar_subquery(),
        utc_now(dialect),
    )
    for dialect in ("sqlite", "mysql")
}


async def outbox_stats(database: Database) -> OutboxStats:
    """Count what waits, for metrics and readiness."""

    async def work(connection: AsyncConnection) -> OutboxStats:
        rows, parked, oldest, now = (await connection.execute(_STATS[database.dialect])).one()
        age = (now - oldest).total_seconds() if oldest is not None else 0.0
        return OutboxStats(rows, max(age, 0.0), parked)

    return await database.read(work)
