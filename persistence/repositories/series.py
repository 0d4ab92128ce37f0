"""Series and their instances."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, bindparam, delete, func, insert, select, update

from domain.recurrence import recurrence_from, recurrence_view
from domain.series_shapes import NOT_BEGUN, Instance, InstanceStatus, Series, SeriesStatus
from domain.types import Point
from persistence.repositories.audit import created, updated
from persistence.tables import bookings
from persistence.tables import series as table
from persistence.tables import series_instances as instances
from persistence.unit_of_work import UnitOfWork

_GET = select(table).where(table.c.id == bindparam("series"))
_LOCK = _GET.with_for_update()
_INSTANCES = (
    select(instances)
    .where(instances.c.series_id == bindparam("series"), instances.c.recurrence_id >= bindparam("since"))
    .order_by(instances.c.recurrence_id)
    .limit(bindparam("most"))
)
_NOT_BEGUN = (
    select(instances)
    .join(bookings, bookings.c.id == instances.c.booking_id)
    .where(
        instances.c.series_id == bindparam("series"),
        instances.c.recurrence_id < bindparam("before"),
        bookings.c.status.in_(sorted(NOT_BEGUN)),
    )
    .order_by(instances.c.recurrence_id)
)
_INSTANCE = select(instances).where(
    instances.c.series_id == bindparam("series"), instances.c.recurrence_id == bindparam("recurrence")
)


class SqlSeries:
    """See :class:`domain.ports.SeriesOfBookings`."""

    def __init__(self, unit: UnitOfWork) -> None:
        self._unit = unit
        self._connection = unit.connection

    async def add(self, series: Series) -> None:
        row = {
            "id": series.id,
            "customer_id": series.customer_id,
            "service_id": series.service_id,
            "zone_id": series.zone_id,
            "provider_id": series.provider_id,
            "lat": series.location.lat,
            "lon": series.location.lon,
            "address": series.address,
            "notes": series.notes,
            "follows": series.follows,
        }
        await self._connection.execute(insert(table), row | _mutable(series) | created(self._unit))

    async def get(self, series_id: str) -> Series | None:
        row = (await self._connection.execute(_GET, {"series": series_id})).one_or_none()
        return None if row is None else _series(row)

    async def lock(self, series_id: str) -> Series | None:
        row = (await self._connection.execute(_LOCK, {"series": series_id})).one_or_none()
        return None if row is None else _series(row)

    async def save(self, series: Series) -> None:
        await self._connection.execute(
            update(table).where(table.c.id == series.id).values(_mutable(series) | updated(self._unit))
        )

    async def of_customer(self, customer_id: str, limit: int) -> Sequence[Series]:
        rows = await self._connection.execute(
            select(table)
            .where(table.c.customer_id == customer_id)
            .order_by(table.c.status != SeriesStatus.ACTIVE.value, table.c.id.desc())
            .limit(limit)
        )
        return [_series(row) for row in rows]

    async def active(self, customer_id: str) -> int:
        count = select(func.count()).where(
            table.c.customer_id == customer_id, table.c.status == SeriesStatus.ACTIVE.value
        )
        return int((await self._connection.execute(count)).scalar_one())

    async def instances(self, series_id: str, since: datetime, limit: int) -> Sequence[Instance]:
        bound = {"series": series_id, "since": since, "most": limit}
        return [_instance(row) for row in await self._connection.execute(_INSTANCES, bound)]

    async def not_begun(self, series_id: str, before: datetime) -> Sequence[Instance]:
        bound = {"series": series_id, "before": before}
        return [_instance(row) for row in await self._connection.execute(_NOT_BEGUN, bound)]

    async def instance(self, series_id: str, recurrence_id: datetime) -> Instance | None:
        bound = {"series": series_id, "recurrence": recurrence_id}
        row = (await self._connection.execute(_INSTANCE, bound)).one_or_none()
        return None if row is None else _instance(row)

    async def put_instance(self, instance: Instance) -> None:
        values = {"status": instance.status.value, "booking_id": instance.booking_id, "reason": instance.reason}
        # Not an upsert: under the lock of the series nobody else writes its instances.
        if await self.instance(instance.series_id, instance.recurrence_id) is None:
            key = {"series_id": instance.series_id, "recurrence_id": instance.recurrence_id}
            await self._connection.execute(insert(instances), key | values | created(self._unit))
        else:
            await self._connection.execute(
                update(instances)
                .where(instances.c.series_id == instance.series_id, instances.c.recurrence_id == instance.recurrence_id)
                .values(values | updated(self._unit))
            )

    async def remove_instance(self, instance: Instance) -> None:
        await self._connection.execute(
            delete(instances).where(
                instances.c.series_id == instance.series_id, instances.c.recurrence_id == instance.recurrence_id
            )
        )


def _series(row: Row[Any]) -> Series:
    return Series(
        id=row.id,
        status=SeriesStatus(row.status),
        version=row.version,
        customer_id=row.customer_id,
        service_id=row.service_id,
        zone_id=row.zone_id,
        provider_id=row.provider_id,
        location=Point(row.lat, row.lon),
        address=row.address,
        notes=row.notes,
        recurrence=recurrence_from(row.recurrence),
        ends_before=row.ends_before,
        follows=row.follows,
    )


def _instance(row: Row[Any]) -> Instance:
    return Instance(row.series_id, row.recurrence_id, InstanceStatus(row.status), row.booking_id, row.reason)


def _mutable(series: Series) -> dict[str, Any]:
    return {
        "status": series.status.value,
        "version": series.version,
        "recurrence": recurrence_view(series.recurrence),
        "ends_before": series.ends_before,
    }
