"""Feeds of calendars, and sources of busy times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Row, bindparam, delete, insert, select, update

from domain.bookings import Booking
from domain.calendar_sync import READ_EVERY, Source, SourceKind
from domain.types import Interval
from persistence.repositories.audit import created, updated
from persistence.repositories.bookings import booking_of
from persistence.tables import bookings, busy_times, calendar_feeds, calendar_sources, memberships, providers, users
from persistence.unit_of_work import UnitOfWork

_FEED = (
    select(calendar_feeds.c.provider_id)
    .join(providers, providers.c.id == calendar_feeds.c.provider_id)
    .join(
        memberships,
        (memberships.c.organisation_id == providers.c.organisation_id)
        & (memberships.c.user_id == calendar_feeds.c.user_id),
    )
    .join(users, users.c.id == calendar_feeds.c.user_id)
    .where(calendar_feeds.c.token_hash == bindparam("token"), users.c.disabled_at.is_(None))
)
_JOBS = select(bookings).where(bookings.c.provider_id == bindparam("provider")).limit(bindparam("most"))
_JOBS_TO_COME = _JOBS.where(bookings.c.end > bindparam("now"), bookings.c.start < bindparam("until")).order_by(
    bookings.c.start, bookings.c.id
)
_JOBS_BEFORE = _JOBS.where(bookings.c.end > bindparam("from_"), bookings.c.end <= bindparam("now")).order_by(
    bookings.c.end.desc(), bookings.c.id.desc()
)
_WITHOUT_TEXT = [column for column in calendar_sources.c if column.name != "text"]
_SOURCE = select(*_WITHOUT_TEXT).where(calendar_sources.c.id == bindparam("source"))
_SOURCES = (
    select(*_WITHOUT_TEXT)
    .where(calendar_sources.c.provider_id == bindparam("provider"))
    .order_by(calendar_sources.c.name)
)
_DUE = (
    select(calendar_sources)
    .where(calendar_sources.c.next_fetch_at <= bindparam("now"))
    .order_by(calendar_sources.c.next_fetch_at)
    .limit(bindparam("most"))
)
_CLAIM = (
    update(calendar_sources)
    .where(calendar_sources.c.id == bindparam("source"), calendar_sources.c.next_fetch_at == bindparam("due"))
    .values(next_fetch_at=bindparam("again_at"))
)
_TIMES = (
    select(busy_times.c.start, busy_times.c.end)
    .where(busy_times.c.source_id == bindparam("source"))
    .order_by(busy_times.c.number)
)


class SqlCalendarSync:
    """See :class:`domain.ports.CalendarSync`."""

    def __init__(self, unit: UnitOfWork) -> None:
        self._unit = unit
        self._connection = unit.connection

    async def put_feed(self, provider_id: str, user_id: str, token_hash: str) -> None:
        await self.remove_feed(provider_id, user_id)
        row = {"provider_id": provider_id, "user_id": user_id, "token_hash": token_hash}
        await self._connection.execute(insert(calendar_feeds), row | created(self._unit))

    async def remove_feed(self, provider_id: str, user_id: str) -> None:
        await self._connection.execute(
            delete(calendar_feeds).where(
                calendar_feeds.c.provider_id == provider_id, calendar_feeds.c.user_id == user_id
            )
        )

    async def provider_of_feed(self, token_hash: str) -> str | None:
        found: str | None = (await self._connection.execute(_FEED, {"token": token_hash})).scalar_one_or_none()
        return found

    async def jobs(self, provider_id: str, within: Interval, now: datetime, limit: int) -> Sequence[Booking]:
        bound = {"provider": provider_id, "now": now}
        ahead = {"until": within.end, "most": limit}
        rows = list((await self._connection.execute(_JOBS_TO_COME, bound | ahead)).all())
        past = {"from_": within.start, "most": limit - len(rows)}
        rows += (await self._connection.execute(_JOBS_BEFORE, bound | past)).all()
        return [booking_of(row) for row in sorted(rows, key=lambda row: (row.start, row.id))]

    async def source(self, source_id: str) -> Source | None:
        row = (await self._connection.execute(_SOURCE, {"source": source_id})).one_or_none()
        return None if row is None else _source(row)

    async def sources(self, provider_id: str) -> Sequence[Source]:
        return [_source(row) for row in await self._connection.execute(_SOURCES, {"provider": provider_id})]

    async def add_source(self, source: Source) -> None:
        row = {
            "id": source.id,
            "provider_id": source.provider_id,
            "organisation_id": source.organisation_id,
            "name": source.name,
        }
        row |= _place(source) | _findings(source) | created(self._unit)
        await self._connection.execute(insert(calendar_sources), row)

    async def replace_source(self, source: Source) -> None:
        await self._connection.execute(
            update(calendar_sources)
            .where(calendar_sources.c.id == source.id)
            .values(_place(source) | _findings(source) | updated(self._unit))
        )

    async def save_source(self, source: Source) -> None:
        await self._connection.execute(
            update(calendar_sources)
            .where(calendar_sources.c.id == source.id)
            .values(_findings(source) | updated(self._unit))
        )

    async def remove_source(self, source_id: str) -> None:
        await self._connection.execute(delete(busy_times).where(busy_times.c.source_id == source_id))
        await self._connection.execute(delete(calendar_sources).where(calendar_sources.c.id == source_id))

    async def replace_times(self, source: Source, times: Sequence[Interval]) -> bool:
        rows = await self._connection.execute(_TIMES, {"source": source.id})
        if [Interval(row.start, row.end) for row in rows] == list(times):
            return False
        await self._connection.execute(delete(busy_times).where(busy_times.c.source_id == source.id))
        if times:
            fresh = [
                {
                    "source_id": source.id,
                    "number": number,
                    "provider_id": source.provider_id,
                    "start": time.start,
                    "end": time.end,
                }
                for number, time in enumerate(times)
            ]
            await self._connection.execute(insert(busy_times), fresh)
        return True

    async def claim_due(self, limit: int) -> Sequence[Source]:
        """Sources that are due, with their texts; they are due again when :data:`READ_EVERY` says."""
        claimed = []
        for row in (await self._connection.execute(_DUE, {"now": self._unit.now, "most": limit})).all():
            again_at = self._unit.now + READ_EVERY[SourceKind(row.kind)]
            bound = {"source": row.id, "due": row.next_fetch_at, "again_at": again_at}
            if (await self._connection.execute(_CLAIM, bound)).rowcount == 1:
                claimed.append(replace(_source(row), next_fetch_at=again_at))
        return claimed

    async def give_back(self, claimed: Source) -> None:
        """Makes a claimed source due again that was not read."""
        bound = {"source": claimed.id, "due": claimed.next_fetch_at, "again_at": self._unit.now}
        await self._connection.execute(_CLAIM, bound)


def _source(row: Row[Any]) -> Source:
    return Source(
        id=row.id,
        provider_id=row.provider_id,
        organisation_id=row.organisation_id,
        name=row.name,
        kind=SourceKind(row.kind),
        url=row.url,
        times=row.times,
        skipped=row.skipped,
        problem=row.problem,
        fetched_at=row.fetched_at,
        next_fetch_at=row.next_fetch_at,
        text=getattr(row, "text", None),
    )


def _place(source: Source) -> dict[str, Any]:
    return {
        "kind": source.kind.value,
        "url": source.url,
        "text": source.text,
        "next_fetch_at": source.next_fetch_at,
    }


def _findings(source: Source) -> dict[str, Any]:
    return {
        "times": source.times,
        "skipped": source.skipped,
        "problem": source.problem,
        "fetched_at": source.fetched_at,
    }
