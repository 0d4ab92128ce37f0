"""Services, zones and providers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.mysql import insert as mysql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from domain.availability import LINGER
from domain.bookings import OCCUPYING, UNDER_WAY, Booking, Kind
from domain.ports import Candidate
from domain.providers import Provider, ProviderStatus, Service, Strategy, Zone
from domain.types import Interval, Money, Point
from persistence.geometry import ZoneIndex, area_m2, parse_geometry
from persistence.repositories.audit import created, updated
from persistence.repositories.zones import bump, generation, pages
from persistence.tables import (
    booking_declines,
    bookings,
    calendars,
    offers,
    provider_skills,
    provider_sockets,
    provider_zones,
    providers,
    services,
    timers,
    zones,
)
from persistence.unit_of_work import UnitOfWork

_PROVIDER = select(providers).where(providers.c.id == bindparam("provider"))
_LOCK_PROVIDER = _PROVIDER.with_for_update()
_SERVICE = select(services).where(services.c.id == bindparam("service"))
_ZONE = select(zones).where(zones.c.id == bindparam("zone"))

_sqlite_hold = sqlite_insert(provider_sockets)
_mysql_hold = mysql_insert(provider_sockets)
_HOLD = {
    "sqlite": _sqlite_hold.on_conflict_do_update(
        index_elements=["provider_id", "node_id"], set_={"expires_at": _sqlite_hold.excluded.expires_at}
    ),
    "mysql": _mysql_hold.on_duplicate_key_update(expires_at=_mysql_hold.inserted.expires_at),
}


def clash(provider_id: ColumnElement[str], *, soon: bool) -> ColumnElement[bool]:
    """Whether a provider has a confirmed job between the bind parameters ``from_`` and ``until``.

    For work that is soon any job under way clashes as well. ``except_`` names the booking that does not count.
    """
    in_the_slot = and_(
        bookings.c.status.in_(sorted(OCCUPYING)),
        bookings.c.start < bindparam("until"),
        bookings.c.end > bindparam("from_"),
    )
    under_way = bookings.c.status.in_(sorted(UNDER_WAY))
    return exists().where(
        bookings.c.provider_id == provider_id,
        bookings.c.id != bindparam("except_"),
        or_(in_the_slot, under_way) if soon else in_the_slot,
    )


def _candidates(*, on_demand: bool, soon: bool) -> Select[Any]:
    jobs_today = (
        select(func.count())
        .select_from(bookings)
        .where(
            bookings.c.provider_id == providers.c.id,
            bookings.c.status != "cancelled",
            or_(
                and_(bookings.c.start >= bindparam("day"), bookings.c.start < bindparam("next_day")),
                and_(
                    bookings.c.start.is_(None),
                    bookings.c.assigned_at >= bindparam("day"),
                    bookings.c.assigned_at < bindparam("next_day"),
                ),
            ),
        )
        .scalar_subquery()
    )
    asked = exists().where(offers.c.booking_id == bindparam("except_"), offers.c.provider_id == providers.c.id)
    has_calendar = exists().where(calendars.c.provider_id == providers.c.id)
    available = (
        providers.c.status == ProviderStatus.ONLINE.value
        if on_demand
        else providers.c.chosen_status != ProviderStatus.OFFLINE.value
    )
    return (
        select(
            providers,
            jobs_today.label("jobs_today"),
            asked.label("asked"),
            has_calendar.label("has_calendar"),
        )
        .join(provider_skills, provider_skills.c.provider_id == providers.c.id)
        .join(provider_zones, provider_zones.c.provider_id == providers.c.id)
        .where(
            provider_skills.c.service_id == bindparam("service"),
            provider_zones.c.zone_id == bindparam("zone"),
            providers.c.verified,
            available,
            ~exists().where(
                booking_declines.c.booking_id == bindparam("except_"),
                booking_declines.c.provider_id == providers.c.id,
            ),
            ~clash(providers.c.id, soon=soon),
        )
    )


_CANDIDATES = {
    (on_demand, soon): _candidates(on_demand=on_demand, soon=soon)
    for on_demand in (True, False)
    for soon in (True, False)
}


class SqlMarket:
    """See :class:`domain.ports.Market`."""

    def __init__(self, unit: UnitOfWork, index: ZoneIndex) -> None:
        self._unit = unit
        self._connection = unit.connection
        self._index = index

    async def service(self, service_id: str) -> Service | None:
        row = (await self._connection.execute(_SERVICE, {"service": service_id})).one_or_none()
        return None if row is None else _service(row)

    async def services(self) -> Sequence[Service]:
        return [_service(row) for row in await self._connection.execute(select(services).order_by(services.c.id))]

    async def add_service(self, service: Service) -> None:
        row = {
            "id": service.id,
            "name": service.name,
            "price_minor": service.price.amount_minor,
            "currency": service.price.currency,
            "duration_minutes": service.duration_minutes,
        }
        await self._connection.execute(insert(services), row | created(self._unit))

    async def zone(self, zone_id: str) -> Zone | None:
        row = (await self._connection.execute(_ZONE, {"zone": zone_id})).one_or_none()
        return None if row is None else _zone(row)

    async def zones(self) -> Sequence[Zone]:
        return [_zone(row) for row in await self._connection.execute(select(zones).order_by(zones.c.id))]

    async def add_zone(self, zone: Zone) -> None:
        row = {
            "id": zone.id,
            "name": zone.name,
            "geometry": dict(zone.geometry),
            "area_m2": area_m2(parse_geometry(zone.geometry)),
            "strategy": zone.strategy.value,
            "priority": zone.priority,
        }
        await self._connection.execute(insert(zones), row | {"version": 1} | created(self._unit))
        await bump(self._connection, 1)
        self._index.forget()

    async def zone_at(self, place: Point) -> Zone | None:
        return await self._index.locate(place, self)

    async def generation(self) -> int:
        """See :class:`persistence.geometry.ZoneSource`."""
        return await generation(self._connection)

    def pages(self) -> AsyncIterator[Sequence[tuple[Zone, str]]]:
        """See :class:`persistence.geometry.ZoneSource`."""
        return pages(self._connection)

    async def add_provider(self, provider: Provider, skills: Collection[str], zones: Collection[str]) -> None:
        row = {"id": provider.id, "organisation_id": provider.organisation_id} | _provider_row(provider)
        await self._connection.execute(insert(providers), row | created(self._unit))
        if skills:
            rows = [{"provider_id": provider.id, "service_id": skill} | created(self._unit) for skill in skills]
            await self._connection.execute(insert(provider_skills), rows)
        if zones:
            rows = [{"provider_id": provider.id, "zone_id": zone} | created(self._unit) for zone in zones]
            await self._connection.execute(insert(provider_zones), rows)

    async def provider(self, provider_id: str) -> Provider | None:
        row = (await self._connection.execute(_PROVIDER, {"provider": provider_id})).one_or_none()
        return None if row is None else provider_of(row)

    async def lock_provider(self, provider_id: str) -> Provider | None:
        row = (await self._connection.execute(_LOCK_PROVIDER, {"provider": provider_id})).one_or_none()
        return None if row is None else provider_of(row)

    async def providers(self) -> Sequence[Provider]:
        return [
            provider_of(row) for row in await self._connection.execute(select(providers).order_by(providers.c.name))
        ]

    async def save_provider(self, provider: Provider) -> None:
        await self._connection.execute(
            update(providers).where(providers.c.id == provider.id).values(_provider_row(provider) | updated(self._unit))
        )

    async def candidates(self, booking: Booking, during: Interval, *, soon: bool) -> Sequence[Candidate]:
        day = during.start.replace(hour=0, minute=0, second=0, microsecond=0)
        rows = await self._connection.execute(
            _CANDIDATES[booking.kind is Kind.ON_DEMAND, soon],
            {
                "service": booking.service_id,
                "zone": booking.zone_id,
                "except_": booking.id,
                "from_": during.start,
                "until": during.end,
                "day": day,
                "next_day": day + timedelta(days=1),
            },
        )
        return [Candidate(provider_of(row), row.jobs_today, bool(row.asked), bool(row.has_calendar)) for row in rows]

    async def hold_socket(self, provider_id: str, node_id: str, until: datetime) -> None:
        row = {"provider_id": provider_id, "node_id": node_id, "expires_at": until}
        await self._connection.execute(_HOLD[self._connection.dialect.name], row)

    async def release_socket(self, provider_id: str, node_id: str) -> None:
        await self._connection.execute(
            delete(provider_sockets).where(
                provider_sockets.c.provider_id == provider_id, provider_sockets.c.node_id == node_id
            )
        )

    async def renew_sockets(self, node_id: str, until: datetime) -> None:
        await self._connection.execute(
            update(provider_sockets).where(provider_sockets.c.node_id == node_id).values(expires_at=until)
        )

    async def has_socket(self, provider_id: str, now: datetime) -> bool:
        held = exists().where(provider_sockets.c.provider_id == provider_id, provider_sockets.c.expires_at > now)
        return bool((await self._connection.execute(select(held))).scalar_one())

    async def unreachable(self, now: datetime) -> Sequence[str]:
        held = exists().where(provider_sockets.c.provider_id == providers.c.id, provider_sockets.c.expires_at > now)
        lingering = exists().where(timers.c.name == literal(f"{LINGER}:") + providers.c.id)
        rows = await self._connection.execute(
            select(providers.c.id)
            .where(providers.c.status != ProviderStatus.OFFLINE.value, ~held, ~lingering)
            .order_by(providers.c.id)
        )
        return list(rows.scalars())


def _service(row: Row[Any]) -> Service:
    return Service(row.id, row.name, Money(row.price_minor, row.currency), row.duration_minutes)


def _zone(row: Row[Any]) -> Zone:
    return Zone(row.id, row.name, row.geometry, row.area_m2, Strategy(row.strategy), row.priority)


def provider_of(row: Row[Any]) -> Provider:
    """The provider of a row of the table."""
    return Provider(
        id=row.id,
        organisation_id=row.organisation_id,
        name=row.name,
        verified=row.verified,
        rating=row.rating,
        offers_answered=row.offers_answered,
        offers_accepted=row.offers_accepted,
        jobs_taken=row.jobs_taken,
        jobs_completed=row.jobs_completed,
        max_daily_jobs=row.max_daily_jobs,
        chosen_status=ProviderStatus(row.chosen_status),
        status=ProviderStatus(row.status),
        misses_in_a_row=row.misses_in_a_row,
        idle_since=row.idle_since,
        position=None if row.lat is None else Point(row.lat, row.lon),
        fix_at=row.fix_at,
        version=row.version,
    )


def _provider_row(provider: Provider) -> dict[str, Any]:
    position = provider.position
    return {
        "name": provider.name,
        "verified": provider.verified,
        "rating": provider.rating,
        "offers_answered": provider.offers_answered,
        "offers_accepted": provider.offers_accepted,
        "jobs_taken": provider.jobs_taken,
        "jobs_completed": provider.jobs_completed,
        "max_daily_jobs": provider.max_daily_jobs,
        "chosen_status": provider.chosen_status.value,
        "status": provider.status.value,
        "misses_in_a_row": provider.misses_in_a_row,
        "idle_since": provider.idle_since,
        "lat": position.lat if position else None,
        "lon": position.lon if position else None,
        "fix_at": provider.fix_at,
        "version": provider.version,
    }
