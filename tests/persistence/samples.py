"""Events, a clock and a sequencer for tests of a room that knows neither the channels' grammar nor the wire."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from domain.events import Audience, Event, EventClass
from domain.log import Entry
from domain.types import Origin, new_id
from persistence.database import Database
from persistence.sequencer import Sequencer, SequencerOptions
from persistence.unit_of_work import Transactions, UnitOfWork

ORIGIN = Origin("corr-1", "00-trace-01")


class WallClock:
    def now(self) -> datetime:
        return datetime.now(UTC)


def event(source: str, number: int = 0, event_class: EventClass = EventClass.DURABLE, **data: Any) -> Event:
    """An event that goes to its booking's channel and, being a booking's, to everybody's."""
    now = datetime.now(UTC)
    return Event(
        id=new_id(now),
        type="booking.changed",
        time=now,
        source=f"booking/{source}",
        data={"number": number, **data},
        audience=Audience(users=("u1",), booking=source, slots=(("s1", "z1"),)),
        event_class=event_class,
        key=source if event_class is EventClass.LATEST else None,
    )


def route(happened: Event) -> Sequence[str]:
    if happened.data.get("poison") == "route":
        raise ValueError("no channel carries this")
    return (f"booking:{happened.audience.booking}", "everybody")


def encode(happened: Event, channel: str, offset: int, origin: Origin, data_json: bytes) -> bytes:
    if happened.data.get("poison") == "encode" and channel == "everybody":
        raise ValueError("cannot be said")
    return b'{"channel":"%s","offset":%d,"correlationid":"%s","data":%s}' % (
        channel.encode(),
        offset,
        origin.correlation_id.encode(),
        data_json,
    )


def said(entry: Entry) -> dict[str, Any]:
    """What a frame says."""
    frame: dict[str, Any] = orjson.loads(entry.frame)
    return frame


class Published:
    """A broker that remembers. Tests wait for entries instead of sleeping."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._changed = asyncio.Condition()

    async def __call__(self, entries: Sequence[Entry]) -> None:
        async with self._changed:
            self.entries += entries
            self._changed.notify_all()

    async def count(self, at_least: int) -> None:
        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(lambda: len(self.entries) >= at_least)


def sequencer(
    database: Database,
    publish: Callable[[Sequence[Entry]], Awaitable[None]],
    holder: str = "node-1",
    partition: int = 0,
    routing: Callable[[Event], Sequence[str]] = route,
    **options: Any,
) -> Sequencer:
    return Sequencer(
        database,
        holder,
        route=routing,
        encode=encode,
        publish=publish,
        partition=partition,
        options=SequencerOptions(**options),
    )


def transactions(
    database: Database, on_commit: Callable[[], None] = lambda: None, partitions: int = 1
) -> Transactions[UnitOfWork]:
    return Transactions(database, WallClock(), UnitOfWork, on_commit, partitions)


async def commit(database: Database, *events: Event, partitions: int = 1) -> None:
    """One transaction that does nothing but record these events."""

    async def work(unit: UnitOfWork) -> None:
        for happened in events:
            unit.record(happened)

    await transactions(database, partitions=partitions).write(work, ORIGIN)
