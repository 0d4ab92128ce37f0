"""Calendars, their exceptions, holds on slots, and busy times brought along."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Executable,
    Row,
    Select,
    Table,
    and_,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    union_all,
    update,
)

from domain.bookings import Status
from domain.calendars import Calendar, CalendarException, ExceptionKind, Hold, Job, Plan
from domain.providers import Provider
from domain.recurrence import recurrence_from, recurrence_view
from domain.types import Interval
from persistence.repositories.audit import created, updated
from persistence.repositories.market import provider_of
from persistence.tables import (
    bookings,
    busy_times,
    calendar_exceptions,
    calendars,
    provider_skills,
    provider_zones,
    providers,
    slot_holds,
)
from persistence.unit_of_work import UnitOfWork

_AROUND = timedelta(days=1)
"""More than the longest travel buffer, and enough to count the jobs of a whole day."""

_GET = select(calendars).where(calendars.c.provider_id == bindparam("provider"))
_HOLD = select(slot_holds).where(slot_holds.c.id == bindparam("hold"))
_EXCEPTION = select(calendar_exceptions).where(calendar_exceptions.c.id == bindparam("exception"))
_PROVIDER_IDS: BindParameter[Any] = bindparam("providers", expanding=True)
_CALENDARS = (
    select(
        providers.c.id,
        providers.c.organisation_id,
        providers.c.max_daily_jobs,
        calendars.c.rules,
        calendars.c.travel_buffer_minutes,
        calendars.c.version,
    )
    .outerjoin(calendars, calendars.c.provider_id == providers.c.id)
    .where(providers.c.id.in_(_PROVIDER_IDS))
)


def _overlapping(table: Table) -> ColumnElement[bool]:
    return and_(
        table.c.provider_id.in_(_PROVIDER_IDS),
        table.c.end > bindparam("from_"),
        table.c.start < bindparam("until"),
    )


_EXCEPTIONS = select(calendar_exceptions).where(_overlapping(calendar_exceptions)).order_by(calendar_exceptions.c.start)
_HOLDS = (
    select(slot_holds)
    .where(_overlapping(slot_holds), slot_holds.c.expires_at > bindparam("now"))
    .order_by(slot_holds.c.start)
)
_JOB = (
    bookings.c.id,
    bookings.c.provider_id,
    bookings.c.status,
    bookings.c.start,
    bookings.c.end,
    bookings.c.assigned_at,
)
_JOBS = union_all(
    select(*_JOB).where(_overlapping(bookings), bookings.c.status != Status.CANCELLED.value),
    # On demand: no agreed time, so it is by the index of (provider_id, end) that these are found.
    select(*_JOB).where(
        bookings.c.provider_id.in_(_PROVIDER_IDS),
        bookings.c.end.is_(None),
        bookings.c.assigned_at > bindparam("from_"),
        bookings.c.assigned_at < bindparam("until"),
        bookings.c.status != Status.CANCELLED.value,
    ),
)
_BUSY = select(busy_times).where(_overlapping(busy_times)).order_by(busy_times.c.start)
_PLANNED_PROVIDER: BindParameter[Any] = bindparam("provider")
_PLANNED = (
    select(providers)
    .join(provider_skills, provider_skills.c.provider_id == providers.c.id)
    .join(provider_zones, provider_zones.c.provider_id == providers.c.id)
    .join(calendars, calendars.c.provider_id == providers.c.id)
    .where(
        provider_skills.c.service_id == bindparam("service"),
        provider_zones.c.zone_id == bindparam("zone"),
        providers.c.verified,
        calendars.c.rules != [],
        or_(_PLANNED_PROVIDER.is_(None), providers.c.id == _PLANNED_PROVIDER),
    )
    .order_by(providers.c.rating.desc(), providers.c.id)
    .limit(bindparam("most"))
)
_OFFERS = (
    select(func.count())
    .select_from(providers)
    .join(provider_skills, provider_skills.c.provider_id == providers.c.id)
    .join(provider_zones, provider_zones.c.provider_id == providers.c.id)
    .where(
        providers.c.id == bindparam("provider"),
        providers.c.verified,
        provider_skills.c.service_id == bindparam("service"),
        provider_zones.c.zone_id == bindparam("zone"),
    )
)
_REACH = (
    select(provider_skills.c.service_id, provider_zones.c.zone_id)
    .join(provider_zones, provider_zones.c.provider_id == provider_skills.c.provider_id)
    .where(provider_skills.c.provider_id == bindparam("provider"))
    .order_by(provider_skills.c.service_id, provider_zones.c.zone_id)
    .limit(bindparam("most"))
)


class SqlCalendars:
    """See :class:`domain.ports.Calendars`."""

    def __init__(self, unit: UnitOfWork) -> None:
        self._unit = unit
        self._connection = unit.connection

    async def get(self, provider_id: str) -> Calendar | None:
        row = (await self._connection.execute(_GET, {"provider": provider_id})).one_or_none()
        return None if row is None else _calendar(row.provider_id, row)

    async def save(self, calendar: Calendar) -> None:
        values = {
            "rules": [recurrence_view(rule) for rule in calendar.rules],
            "travel_buffer_minutes": int(calendar.travel_buffer / timedelta(minutes=1)),
            "version": calendar.version,
        }
        # Not an upsert: under the provider's lock nobody else writes this row.
        saved = await self._connection.execute(
            update(calendars)
            .where(calendars.c.provider_id == calendar.provider_id)
            .values(values | updated(self._unit))
        )
        if saved.rowcount == 0:
            whose = {"provider_id": calendar.provider_id, "organisation_id": calendar.organisation_id}
            await self._connection.execute(insert(calendars), whose | values | created(self._unit))

    async def exception(self, exception_id: str) -> CalendarException | None:
        row = (await self._connection.execute(_EXCEPTION, {"exception": exception_id})).one_or_none()
        return None if row is None else _exception(row)

    async def add_exception(self, exception: CalendarException) -> None:
        row = {
            "id": exception.id,
            "provider_id": exception.provider_id,
            "kind": exception.kind.value,
            "start": exception.during.start,
            "end": exception.during.end,
            "note": exception.note,
        }
        await self._connection.execute(insert(calendar_exceptions), row | created(self._unit))

    async def remove_exception(self, exception_id: str) -> None:
        await self._connection.execute(delete(calendar_exceptions).where(calendar_exceptions.c.id == exception_id))

    async def exceptions_to_come(self, provider_id: str, now: datetime) -> int:
        return await self._count(
            select(func.count()).where(
                calendar_exceptions.c.provider_id == provider_id, calendar_exceptions.c.end > now
            )
        )

    async def plans(
        self, provider_ids: Collection[str], within: Interval, now: datetime, *, everybody: bool = False
    ) -> Mapping[str, Plan]:
        if not provider_ids:
            return {}
        rows = await self._connection.execute(_CALENDARS, {"providers": list(provider_ids)})
        found = {row.id: row for row in rows if everybody or row.version is not None}
        if not found:
            return {}
        bound = {
            "providers": list(found),
            "from_": within.start - _AROUND,
            "until": within.end + _AROUND,
        }
        exceptions = await self._by_provider(_EXCEPTIONS, bound)
        holds = await self._by_provider(_HOLDS, bound | {"now": now})
        jobs = await self._by_provider(_JOBS, bound)
        busy = await self._by_provider(_BUSY, bound)
        return {
            provider_id: Plan(
                _calendar(provider_id, row),
                row.max_daily_jobs,
                tuple(map(_exception, exceptions[provider_id])),
                tuple(map(_hold, holds[provider_id])),
                tuple(map(_job, jobs[provider_id])),
                tuple(Interval(row.start, row.end) for row in busy[provider_id]),
            )
            for provider_id, row in found.items()
        }

    async def planned(
        self, service_id: str, zone_id: str, limit: int, provider_id: str | None = None
    ) -> Sequence[Provider]:
        bound = {"service": service_id, "zone": zone_id, "most": limit, "provider": provider_id}
        return [provider_of(row) for row in await self._connection.execute(_PLANNED, bound)]

    async def offers(self, provider_id: str, service_id: str, zone_id: str) -> bool:
        bound = {"provider": provider_id, "service": service_id, "zone": zone_id}
        return bool((await self._connection.execute(_OFFERS, bound)).scalar_one())

    async def reach(self, provider_id: str, limit: int) -> Sequence[tuple[str, str]]:
        rows = await self._connection.execute(_REACH, {"provider": provider_id, "most": limit})
        return [(row.service_id, row.zone_id) for row in rows]

    async def hold(self, hold_id: str) -> Hold | None:
        row = (await self._connection.execute(_HOLD, {"hold": hold_id})).one_or_none()
        return None if row is None else _hold(row)

    async def add_hold(self, hold: Hold) -> None:
        row = {
            "id": hold.id,
            "provider_id": hold.provider_id,
            "organisation_id": hold.organisation_id,
            "customer_id": hold.customer_id,
            "service_id": hold.service_id,
            "zone_id": hold.zone_id,
            "start": hold.during.start,
            "end": hold.during.end,
            "expires_at": hold.expires_at,
        }
        await self._connection.execute(insert(slot_holds), row | created(self._unit))

    async def remove_hold(self, hold_id: str) -> None:
        await self._connection.execute(delete(slot_holds).where(slot_holds.c.id == hold_id))

    async def holds_of(self, customer_id: str, now: datetime) -> int:
        return await self._count(
            select(func.count()).where(slot_holds.c.customer_id == customer_id, slot_holds.c.expires_at > now)
        )

    async def _by_provider(self, query: Executable, bound: dict[str, Any]) -> Mapping[str, list[Row[Any]]]:
        rows: defaultdict[str, list[Row[Any]]] = defaultdict(list)
        for row in await self._connection.execute(query, bound):
            rows[row.provider_id].append(row)
        return rows

    async def _count(self, query: Select[Any]) -> int:
        return int((await self._connection.execute(query)).scalar_one())


def _calendar(provider_id: str, row: Any) -> Calendar:
    rules = tuple(recurrence_from(shape) for shape in row.rules or ())
    buffer = timedelta(minutes=row.travel_buffer_minutes or 0)
    return Calendar(provider_id, row.organisation_id, rules, buffer, row.version or 0)


def _exception(row: Row[Any]) -> CalendarException:
    return CalendarException(row.id, row.provider_id, ExceptionKind(row.kind), Interval(row.start, row.end), row.note)


def _job(row: Row[Any]) -> Job:
    slot = None if row.start is None else Interval(row.start, row.end)
    return Job(row.id, Status(row.status), slot, row.assigned_at)


def _hold(row: Row[Any]) -> Hold:
    return Hold(
        id=row.id,
        provider_id=row.provider_id,
        organisation_id=row.organisation_id,
        customer_id=row.customer_id,
        service_id=row.service_id,
        zone_id=row.zone_id,
        during=Interval(row.start, row.end),
        expires_at=row.expires_at,
    )
