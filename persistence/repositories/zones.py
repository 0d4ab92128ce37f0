"""Zones as a set that is imported, and the figures that are counted for each.

Invariants: whoever changes zones holds the one row of ``zone_generation``, so no two imports check for overlaps against
    each other's past; the generation rises with each change and tells nodes that their index is old.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Any

import h3
from sqlalchemy import Text, and_, bindparam, exists, func, insert, select, type_coerce, update
from sqlalchemy.dialects.mysql import insert as mysql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.bookings import ENDED, Status
from domain.errors import InvalidParams
from domain.providers import ProviderStatus, Strategy, Zone
from domain.types import JSON, Point
from domain.zones import ACCEPTANCES, Counted, Figures, Imported
from persistence.geometry import ZoneIndex, parse_geometry
from persistence.race import start_over_if_taken
from persistence.repositories.audit import created, updated
from persistence.tables import bookings, provider_zones, providers, zone_figures, zone_generation, zones
from persistence.unit_of_work import UnitOfWork
from persistence.zone_import import ReadZone, overlaps, problem, read_zones, shortened

PAGE = 500
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

_UNDER_WAY = sorted(status.value for status in Status if status not in ENDED)
_WAITING = Status.AWAITING_ASSIGNMENT.value

_here = bookings.c.zone_id == bindparam("zone")
_DEMAND = select(bookings.c.lat, bookings.c.lon).where(_here, bookings.c.status == _WAITING).order_by(bookings.c.id)
_BREACHES = select(func.count()).where(_here, bookings.c.status.in_(_UNDER_WAY), bookings.c.sla_breached > 0)
_ACCEPTED = (
    select(bookings.c.dispatch_started_at, bookings.c.assigned_at)
    .where(_here, bookings.c.assigned_at.is_not(None), bookings.c.dispatch_started_at.is_not(None))
    .order_by(bookings.c.assigned_at.desc(), bookings.c.id.desc())
    .limit(ACCEPTANCES)
)
_SUPPLY = (
    select(providers.c.status, providers.c.lat, providers.c.lon)
    .join(provider_zones, provider_zones.c.provider_id == providers.c.id)
    .where(
        provider_zones.c.zone_id == bindparam("zone"),
        providers.c.verified,
        providers.c.status.in_([ProviderStatus.ONLINE.value, ProviderStatus.BUSY.value]),
    )
    .order_by(providers.c.id)
)
_FIGURES = select(zone_figures).where(zone_figures.c.zone_id == bindparam("zone"))


async def bump(connection: AsyncConnection, by: int) -> int:
    """Locks the zones' generation until the transaction ends, raises it, and returns it."""
    row = {"id": 1, "generation": by}
    if connection.dialect.name == "sqlite":
        statement: Any = sqlite_insert(zone_generation).values(row)
        statement = statement.on_conflict_do_update(
            index_elements=["id"], set_={"generation": zone_generation.c.generation + by}
        )
    else:
        statement = mysql_insert(zone_generation).values(row)
        statement = statement.on_duplicate_key_update(generation=zone_generation.c.generation + by)
    await connection.execute(statement)
    return await generation(connection)


async def generation(connection: AsyncConnection) -> int:
    """How often zones were changed."""
    return int((await connection.execute(select(zone_generation.c.generation))).scalar() or 0)


async def pages(connection: AsyncConnection) -> AsyncIterator[Sequence[tuple[Zone, str]]]:
    """Every zone with its outline as GeoJSON text, some at a time, so that other work gets its turn."""
    last = ""
    columns = (zones, type_coerce(zones.c.geometry, Text).label("text"))
    while True:
        query = select(*columns).where(zones.c.id > last).order_by(zones.c.id).limit(PAGE)
        rows = (await connection.execute(query)).all()
        if rows:
            yield [
                (Zone(row.id, row.name, row.geometry, row.area_m2, Strategy(row.strategy), row.priority), row.text)
                for row in rows
            ]
        if len(rows) < PAGE:
            return
        last = rows[-1].id


class SqlZones:
    """See :class:`domain.ports.Zones`."""

    def __init__(self, unit: UnitOfWork, index: ZoneIndex) -> None:
        self._unit = unit
        self._connection = unit.connection
        self._index = index

    async def put_all(
        self,
        collection: Mapping[str, Any],
        organisation_id: str | None,
        told: Progress = lambda what, done, total: None,
    ) -> Imported:
        """See the port.

        Args:
            told: for a person who waits.
        """
        wanted = read_zones(collection, lambda done, total: told("checking", done, total))
        now_at = await bump(self._connection, 0)
        known = {row.id: row for row in await self._connection.execute(select(zones).order_by(zones.c.id))}
        self._check_set(wanted, known, organisation_id)
        fresh = [zone for zone in wanted if zone.id not in known]
        changed = [zone for zone in wanted if zone.id in known and not _same(zone, known[zone.id])]
        done = 0
        for start in range(0, len(fresh), PAGE):
            page = fresh[start : start + PAGE]
            mine = {"version": 1, "organisation_id": organisation_id} | created(self._unit)
            await self._connection.execute(insert(zones), [_row(zone) | mine for zone in page])
            done += len(page)
            told("writing", done, len(fresh) + len(changed))
        for zone in changed:
            values = _row(zone) | {"version": known[zone.id].version + 1} | updated(self._unit)
            await self._connection.execute(update(zones).where(zones.c.id == zone.id).values(values))
            done += 1
            told("writing", done, len(fresh) + len(changed))
        if fresh or changed:
            now_at = await bump(self._connection, 1)
            self._index.forget()
        return Imported(len(fresh), len(changed), len(wanted) - len(fresh) - len(changed), now_at)

    @staticmethod
    def _check_set(wanted: Sequence[ReadZone], known: Mapping[str, Any], organisation_id: str | None) -> None:
        problems = [
            problem(zone.number, zone.name, f"the id {zone.id!r} is a zone of another set")
            for zone in wanted
            if zone.id in known and known[zone.id].organisation_id != organisation_id
        ]
        named = {zone.id for zone in wanted}
        stays = {
            zone_id: parse_geometry(row.geometry)
            for zone_id, row in known.items()
            if zone_id not in named and row.organisation_id == organisation_id
        }
        problems += overlaps(wanted, stays)
        if problems:
            raise InvalidParams(shortened(problems))

    async def covered_by(self, zone_id: str, provider_ids: Collection[str]) -> bool:
        if not provider_ids:
            return False
        mine = and_(provider_zones.c.zone_id == zone_id, provider_zones.c.provider_id.in_(sorted(provider_ids)))
        return bool((await self._connection.execute(select(exists().where(mine)))).scalar_one())

    async def of_providers(self, provider_ids: Collection[str]) -> Collection[str]:
        query = select(provider_zones.c.zone_id).where(provider_zones.c.provider_id.in_(sorted(provider_ids)))
        return set((await self._connection.execute(query.distinct())).scalars())

    async def count(self, zone_id: str) -> Counted:
        of = {"zone": zone_id}
        demand = (await self._connection.execute(_DEMAND, of)).all()
        breaches = (await self._connection.execute(_BREACHES, of)).scalar_one()
        accepted = (await self._connection.execute(_ACCEPTED, of)).all()
        supply = (await self._connection.execute(_SUPPLY, of)).all()
        online = [row for row in supply if row.status == ProviderStatus.ONLINE.value]
        return Counted(
            open_demand=len(demand),
            providers_online=len(online),
            providers_busy=len(supply) - len(online),
            sla_breaches=breaches,
            accept_seconds=tuple((row.assigned_at - row.dispatch_started_at).total_seconds() for row in accepted),
            demand_at=tuple(Point(row.lat, row.lon) for row in demand),
            supply_at=tuple(Point(row.lat, row.lon) for row in online if row.lat is not None),
        )

    def cells(self, counted: Counted, resolution: int) -> list[JSON]:
        demand = Counter(h3.latlng_to_cell(place.lat, place.lon, resolution) for place in counted.demand_at)
        supply = Counter(h3.latlng_to_cell(place.lat, place.lon, resolution) for place in counted.supply_at)
        made = []
        for cell in sorted(demand.keys() | supply.keys()):
            corners = [[round(lon, 6), round(lat, 6)] for lat, lon in h3.cell_to_boundary(cell)]
            made.append(
                {"cell": cell, "demand": demand[cell], "supply": supply[cell], "outline": [*corners, corners[0]]}
            )
        return made

    async def figures(self, zone_id: str) -> Figures | None:
        row = (await self._connection.execute(_FIGURES, {"zone": zone_id})).one_or_none()
        return None if row is None else Figures(row.version, row.metrics, row.heat, row.counted_at)

    async def lock_figures(self, zone_id: str) -> Figures | None:
        row = (await self._connection.execute(_FIGURES.with_for_update(), {"zone": zone_id})).one_or_none()
        return None if row is None else Figures(row.version, row.metrics, row.heat, row.counted_at)

    async def save_figures(self, zone_id: str, figures: Figures) -> None:
        values = {
            "version": figures.version,
            "metrics": figures.metrics,
            "heat": figures.heat,
            "counted_at": figures.counted_at,
        }
        if figures.version == 1:
            with start_over_if_taken(f"the figures of {zone_id}"):
                await self._connection.execute(insert(zone_figures), values | {"zone_id": zone_id})
        else:
            await self._connection.execute(update(zone_figures).where(zone_figures.c.zone_id == zone_id).values(values))

    async def drifted(self) -> Collection[str]:
        demand = (
            select(bookings.c.zone_id, func.count()).where(bookings.c.status == _WAITING).group_by(bookings.c.zone_id)
        )
        supply = (
            select(provider_zones.c.zone_id, providers.c.status, func.count())
            .join(providers, providers.c.id == provider_zones.c.provider_id)
            .where(providers.c.verified, providers.c.status.in_(["online", "busy"]))
            .group_by(provider_zones.c.zone_id, providers.c.status)
        )
        counted: dict[str, list[int]] = {}
        for zone_id, number in await self._connection.execute(demand):
            counted.setdefault(zone_id, [0, 0, 0])[0] = number
        for zone_id, status, number in await self._connection.execute(supply):
            counted.setdefault(zone_id, [0, 0, 0])[1 if status == ProviderStatus.ONLINE.value else 2] = number
        told = {}
        for row in await self._connection.execute(select(zone_figures.c.zone_id, zone_figures.c.metrics)):
            told[row.zone_id] = [row.metrics[name] for name in ("open_demand", "providers_online", "providers_busy")]
        nothing = [0, 0, 0]
        return {
            zone_id
            for zone_id in counted.keys() | told.keys()
            if counted.get(zone_id, nothing) != told.get(zone_id, nothing)
        }


def _row(zone: ReadZone) -> dict[str, Any]:
    return {
        "id": zone.id,
        "name": zone.name,
        "geometry": zone.geometry,
        "area_m2": zone.area_m2,
        "strategy": zone.strategy.value,
        "priority": zone.priority,
    }


def _same(zone: ReadZone, row: Any) -> bool:
    there = (row.name, row.geometry, row.strategy, row.priority)
    return (zone.name, zone.geometry, zone.strategy.value, zone.priority) == there
