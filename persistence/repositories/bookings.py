"""Bookings, and who is not asked again for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Row, and_, bindparam, case, exists, func, insert, literal, or_, select, update

from domain.bookings import ENDED, OCCUPYING, UNDER_WAY, Booking, Kind, Status
from domain.deadlines import EVERY, SlaPolicy
from domain.errors import Conflict
from domain.identity import Actor
from domain.offers import LIVE
from domain.sla import Clock, ClockName, ClockStatus, Sla, Targets
from domain.types import Interval, Money, Point
from persistence.race import start_over_if_taken
from persistence.repositories.audit import created, updated
from persistence.repositories.market import clash
from persistence.tables import booking_declines, bookings, offers, provider_skills, provider_zones, sla_policies
from persistence.unit_of_work import UnitOfWork

_GET = select(bookings).where(bookings.c.id == bindparam("booking"))
_LOCK = _GET.with_for_update()
_ADD = insert(bookings)
_CLASH = {soon: select(clash(bindparam("provider"), soon=soon)) for soon in (True, False)}
_UNDER_WAY = (
    select(bookings)
    .where(bookings.c.provider_id == bindparam("provider"), bookings.c.status.in_(sorted(UNDER_WAY)))
    .order_by(bookings.c.id)
)
_COMMITTED = (
    select(bookings)
    .where(bookings.c.provider_id == bindparam("provider"), bookings.c.status.in_(sorted(OCCUPYING)))
    .order_by(case((bookings.c.status.in_(sorted(UNDER_WAY)), 0), else_=1), bookings.c.start, bookings.c.id)
    .limit(100)
)
_OPEN = (
    select(bookings)
    .where(bookings.c.status.not_in(sorted(ENDED)))
    .order_by(func.coalesce(bookings.c.start, bookings.c.created_at), bookings.c.id)
    .limit(bindparam("most"))
)
_COMMITTED_WITHIN = _COMMITTED.where(
    or_(
        bookings.c.status.in_(sorted(UNDER_WAY)),
        and_(bookings.c.start >= bindparam("from_"), bookings.c.start < bindparam("until")),
    )
)
_IN_SLOTS = (
    select(bookings)
    .where(
        bookings.c.provider_id == bindparam("provider"),
        bookings.c.end > bindparam("from_"),
        bookings.c.start < bindparam("until"),
        bookings.c.status != Status.CANCELLED.value,
    )
    .order_by(bookings.c.start, bookings.c.id)
)
_MUTABLE = (
    "status",
    "version",
    "provider_id",
    "organisation_id",
    "start",
    "end",
    "wave",
    "dispatch_started_at",
    "assigned_at",
    "arrived_at",
    "completed_at",
    "sla",
    "sla_due_at",
    "sla_breached",
)
_SAVE = (
    update(bookings)
    .where(bookings.c.id == bindparam("booking"), bookings.c.version == bindparam("version_before"))
    .values({column: bindparam(f"new_{column}") for column in (*_MUTABLE, "updated_at", "updated_by")})
)
_SAVE_WAVE = (
    update(bookings)
    .where(bookings.c.id == bindparam("booking"))
    .values({column: bindparam(f"new_{column}") for column in ("wave", "updated_at", "updated_by")})
)
_WAITING = (
    select(bookings.c.id)
    .join(provider_skills, provider_skills.c.service_id == bookings.c.service_id)
    .join(provider_zones, provider_zones.c.zone_id == bookings.c.zone_id)
    .where(
        bookings.c.status == Status.AWAITING_ASSIGNMENT.value,
        bookings.c.wave >= 0,
        provider_skills.c.provider_id == bindparam("provider"),
        provider_zones.c.provider_id == bindparam("provider"),
        ~exists().where(offers.c.booking_id == bookings.c.id, offers.c.status.in_(sorted(LIVE))),
        ~exists().where(
            booking_declines.c.booking_id == bookings.c.id,
            booking_declines.c.provider_id == bindparam("provider"),
        ),
    )
    .order_by(bookings.c.id)
    .limit(100)
)

_POLICY_COLUMNS = tuple(field.name for field in fields(SlaPolicy))


class SqlBookings:
    """See :class:`domain.ports.Bookings`."""

    def __init__(self, unit: UnitOfWork) -> None:
        self._unit = unit
        self._connection = unit.connection

    async def add(self, booking: Booking) -> None:
        row = {
            "id": booking.id,
            "kind": booking.kind.value,
            "service_id": booking.service_id,
            "zone_id": booking.zone_id,
            "customer_id": booking.customer_id,
            "lat": booking.location.lat,
            "lon": booking.location.lon,
            "address": booking.address,
            "notes": booking.notes,
            "price_minor": booking.price.amount_minor,
            "currency": booking.price.currency,
        }
        await self._connection.execute(_ADD, row | _mutable(booking) | created(self._unit))

    async def get(self, booking_id: str) -> Booking | None:
        row = (await self._connection.execute(_GET, {"booking": booking_id})).one_or_none()
        return None if row is None else booking_of(row)

    async def lock(self, booking_id: str) -> Booking | None:
        row = (await self._connection.execute(_LOCK, {"booking": booking_id})).one_or_none()
        return None if row is None else booking_of(row)

    async def save(self, booking: Booking) -> None:
        values = {f"new_{name}": value for name, value in (_mutable(booking) | updated(self._unit)).items()}
        saved = await self._connection.execute(
            _SAVE, values | {"booking": booking.id, "version_before": booking.version - 1}
        )
        if saved.rowcount != 1:
            raise Conflict

    async def save_wave(self, booking: Booking) -> None:
        values = {f"new_{name}": value for name, value in ({"wave": booking.wave} | updated(self._unit)).items()}
        await self._connection.execute(_SAVE_WAVE, values | {"booking": booking.id})

    async def of(self, actor: Actor, status: Status | None, before: str | None, limit: int) -> Sequence[Booking]:
        query = select(bookings).order_by(bookings.c.id.desc()).limit(limit)
        if not actor.is_operations:
            mine = [bookings.c.customer_id == actor.user_id]
            if actor.provider_ids:
                tenants = sorted({membership.organisation_id for membership in actor.memberships})
                mine.append(
                    and_(
                        bookings.c.provider_id.in_(sorted(actor.provider_ids)), bookings.c.organisation_id.in_(tenants)
                    )
                )
            query = query.where(or_(*mine))
        if status is not None:
            query = query.where(bookings.c.status == status.value)
        if before is not None:
            query = query.where(bookings.c.id < literal(before))
        return [booking_of(row) for row in await self._connection.execute(query)]

    async def open(self, limit: int) -> Sequence[Booking]:
        return [booking_of(row) for row in await self._connection.execute(_OPEN, {"most": limit})]

    async def clashes(self, provider_id: str, during: Interval, *, soon: bool, except_id: str) -> bool:
        bound = {"provider": provider_id, "from_": during.start, "until": during.end, "except_": except_id}
        return bool((await self._connection.execute(_CLASH[soon], bound)).scalar_one())

    async def under_way(self, provider_id: str) -> Sequence[Booking]:
        return [booking_of(row) for row in await self._connection.execute(_UNDER_WAY, {"provider": provider_id})]

    async def busy(self, provider_ids: Sequence[str]) -> set[str]:
        under_way = bookings.c.status.in_(sorted(UNDER_WAY))
        query = select(bookings.c.provider_id).where(bookings.c.provider_id.in_(provider_ids), under_way).distinct()
        return set((await self._connection.execute(query)).scalars())

    async def committed(self, provider_id: str, starting: Interval | None = None) -> Sequence[Booking]:
        bound = {"provider": provider_id}
        if starting is None:
            return [booking_of(row) for row in await self._connection.execute(_COMMITTED, bound)]
        within = bound | {"from_": starting.start, "until": starting.end}
        return [booking_of(row) for row in await self._connection.execute(_COMMITTED_WITHIN, within)]

    async def in_slots(self, provider_id: str, within: Interval) -> Sequence[Booking]:
        bound = {"provider": provider_id, "from_": within.start, "until": within.end}
        return [booking_of(row) for row in await self._connection.execute(_IN_SLOTS, bound)]

    async def waiting_in_reach_of(self, provider_id: str) -> Sequence[str]:
        return list((await self._connection.execute(_WAITING, {"provider": provider_id})).scalars())

    async def decline(self, booking_id: str, provider_id: str) -> None:
        there = exists().where(
            booking_declines.c.booking_id == booking_id, booking_declines.c.provider_id == provider_id
        )
        if not (await self._connection.execute(select(there))).scalar_one():
            row = {"booking_id": booking_id, "provider_id": provider_id}
            await self._connection.execute(insert(booking_declines), row | created(self._unit))

    async def save_sla(self, booking: Booking) -> None:
        values = _sla_columns(booking.sla) | updated(self._unit)
        await self._connection.execute(update(bookings).where(bookings.c.id == booking.id).values(values))

    async def soonest_due(self, zone_id: str | None, now: datetime, limit: int) -> Sequence[Booking]:
        query = select(bookings).where(bookings.c.sla_due_at > now).order_by(bookings.c.sla_due_at, bookings.c.id)
        if zone_id is not None:
            query = query.where(bookings.c.zone_id == zone_id)
        return [booking_of(row) for row in await self._connection.execute(query.limit(limit))]

    async def sla_policies(self, service_id: str | None = None, zone_id: str | None = None) -> Sequence[SlaPolicy]:
        query = select(sla_policies)
        if service_id is not None:
            query = query.where(sla_policies.c.service_id.in_((service_id, EVERY)))
        if zone_id is not None:
            query = query.where(sla_policies.c.zone_id.in_((zone_id, EVERY)))
        return [_sla_policy(row) for row in await self._connection.execute(query)]

    async def put_sla_policy(self, policy: SlaPolicy) -> SlaPolicy:
        same = and_(sla_policies.c.service_id == policy.service_id, sla_policies.c.zone_id == policy.zone_id)
        version = (
            await self._connection.execute(select(sla_policies.c.version).where(same).with_for_update())
        ).scalar()
        policy = replace(policy, version=(version or 0) + 1)
        values = {name: getattr(policy, name) for name in _POLICY_COLUMNS}
        if version is None:
            with start_over_if_taken("the policy"):
                await self._connection.execute(insert(sla_policies), values | created(self._unit))
        else:
            await self._connection.execute(update(sla_policies).where(same).values(values | updated(self._unit)))
        return policy


def booking_of(row: Row[Any]) -> Booking:
    """The booking of a row of the table."""
    return Booking(
        id=row.id,
        status=Status(row.status),
        version=row.version,
        kind=Kind(row.kind),
        service_id=row.service_id,
        zone_id=row.zone_id,
        customer_id=row.customer_id,
        location=Point(row.lat, row.lon),
        address=row.address,
        slot=None if row.start is None else Interval(row.start, row.end),
        notes=row.notes,
        price=Money(row.price_minor, row.currency),
        created_at=row.created_at,
        updated_at=row.updated_at,
        provider_id=row.provider_id,
        organisation_id=row.organisation_id,
        wave=row.wave,
        dispatch_started_at=row.dispatch_started_at,
        assigned_at=row.assigned_at,
        arrived_at=row.arrived_at,
        completed_at=row.completed_at,
        sla=_sla(row.sla),
    )


def _mutable(booking: Booking) -> dict[str, Any]:
    slot = booking.slot
    return {
        "status": booking.status.value,
        "version": booking.version,
        "provider_id": booking.provider_id,
        "organisation_id": booking.organisation_id,
        "start": slot.start if slot else None,
        "end": slot.end if slot else None,
        "wave": booking.wave,
        "dispatch_started_at": booking.dispatch_started_at,
        "assigned_at": booking.assigned_at,
        "arrived_at": booking.arrived_at,
        "completed_at": booking.completed_at,
        **_sla_columns(booking.sla),
    }


def _sla_columns(sla: Sla) -> dict[str, Any]:
    targets = sla.targets
    document = {
        "version": sla.version,
        "targets": targets and [targets.response, targets.arrival, targets.grace, targets.completion],
        "clocks": {
            name.value: {
                "status": clock.status.value,
                "started_at": clock.started_at,
                "due_at": clock.due_at,
                "warned": clock.warned,
                "paused_at": clock.paused_at,
                "ended_at": clock.ended_at,
            }
            for name, clock in sla.clocks.items()
        },
    }
    return {"sla": document, "sla_due_at": sla.due_at, "sla_breached": sla.breached}


def _sla(document: dict[str, Any]) -> Sla:
    def moment(text: str | None) -> datetime | None:
        return None if text is None else datetime.fromisoformat(text)

    clocks = {
        ClockName(name): Clock(
            status=ClockStatus(clock["status"]),
            started_at=datetime.fromisoformat(clock["started_at"]),
            due_at=datetime.fromisoformat(clock["due_at"]),
            warned=clock["warned"],
            paused_at=moment(clock["paused_at"]),
            ended_at=moment(clock["ended_at"]),
        )
        for name, clock in document["clocks"].items()
    }
    targets = document["targets"]
    return Sla(None if targets is None else Targets(*targets), clocks, document["version"])


def _sla_policy(row: Row[Any]) -> SlaPolicy:
    return SlaPolicy(
        row.service_id,
        row.zone_id,
        row.response_seconds,
        row.arrival_seconds,
        row.grace_seconds,
        row.completion_seconds,
        row.version,
    )
