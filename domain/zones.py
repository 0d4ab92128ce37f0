"""What operations do with zones: import them, look at what is going on in them, and have it counted again.

The live figures of a zone are counted from the database and stored with a version. :class:`ZonePulse` notes which
zones something happened in. Each node counts those again every other second, and now and then looks for zones whose
figures are not true (:mod:`server.zone_meter`).

Invariants: figures are counted and stored under one row lock per zone, so the version rises with every change and two
    nodes that count at once tell it once; no use case waits for a count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Annotated, Any

from pydantic import Field

from domain.context import Context
from domain.errors import Forbidden, InvalidParams
from domain.events import Audience, Event, EventClass
from domain.security import SecurityEvents, SecurityKind
from domain.types import JSON, Point, new_id
from domain.views import Key, Params, View

MOST_FEATURES = 10_000
HEAT_RESOLUTION = 8
"""H3 cells about a kilometre across."""

ACCEPTANCES = 50
"""Newest assignments of a zone that count for the median."""

Id = Annotated[str, Field(min_length=1, max_length=64)]


# --- import -----------------------------------------------------------------------------------------------------------


class ImportZones(Params):
    """A GeoJSON FeatureCollection of Polygons and MultiPolygons. A feature's id is the zone's; ``name``, ``strategy``
    and ``priority`` are read from its properties.

    The zones join the set of ``organisation_id``, or the marketplace's own. Within a set zones must not overlap.
    """

    collection: dict[str, Any]
    organisation_id: Id | None = None
    key: Key


class ImportOutcome(View):
    """How many zones are new, changed, and as they were."""

    created: int
    updated: int
    unchanged: int


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did; ``generation`` numbers the changes of all zones."""

    created: int
    updated: int
    unchanged: int
    generation: int


async def import_zones(ctx: Context, params: ImportZones) -> JSON:
    """Adds and changes zones: all of the collection's, or none. Zones that it does not name stay.

    Raises:
        InvalidParams: says for each unfit feature which one and why.
    """
    organisation_id = params.organisation_id
    if organisation_id is not None and await ctx.uow.organisations.get(organisation_id) is None:
        raise InvalidParams.at("organisation_id", "there is no such organisation")
    outcome = await ctx.uow.zones.put_all(params.collection, organisation_id)
    await announce_change(ctx, outcome)
    return {"created": outcome.created, "updated": outcome.updated, "unchanged": outcome.unchanged}


async def announce_change(ctx: Context, outcome: Imported) -> None:
    """Tells every node that its index of zones is old, if it is, and puts on record who changed them."""
    if outcome.created or outcome.updated:
        details = {"created": outcome.created, "updated": outcome.updated, "generation": outcome.generation}
        await SecurityEvents().record(ctx.uow, SecurityKind.ZONES_IMPORTED, ctx.uow.origin.actor_id, None, details)
        data = {"generation": outcome.generation}
        ctx.uow.record(Event(id=new_id(ctx.now), type="zones.changed", time=ctx.now, source="zones", data=data))


# --- live figures -----------------------------------------------------------------------------------------------------


class ZonePulse:
    """Zones and providers that something happened to since the last count: one node's memory."""

    def __init__(self) -> None:
        self._zones: set[str] = set()
        self._providers: set[str] = set()

    def zone(self, zone_id: str) -> None:
        self._zones.add(zone_id)

    def provider(self, provider_id: str) -> None:
        self._providers.add(provider_id)

    def take(self) -> tuple[set[str], set[str]]:
        """Zones and providers, which are then forgotten."""
        taken = self._zones, self._providers
        self._zones, self._providers = set(), set()
        return taken


@dataclass(frozen=True, slots=True)
class Counted:
    """What the database says about a zone; ``heat`` is what :func:`heat_view` shows at :data:`HEAT_RESOLUTION`."""

    open_demand: int
    providers_online: int
    providers_busy: int
    sla_breaches: int
    accept_seconds: tuple[float, ...]
    demand_at: tuple[Point, ...]
    supply_at: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Figures:
    """What was told last of a zone."""

    version: int
    metrics: JSON
    heat: list[JSON]
    counted_at: datetime


class MetricsView(View):
    """What goes on in a zone.

    ``ratio`` is open demand per provider online, null without one. ``median_accept_seconds`` is from the search to the
    assignment, over the newest fifty. ``sla_breaches`` counts bookings under way that missed a deadline.
    """

    open_demand: int
    providers_online: int
    providers_busy: int
    ratio: float | None
    median_accept_seconds: int | None
    sla_breaches: int


class ZoneMetrics(View):
    """A zone's figures; those of a higher version are newer."""

    zone_id: str
    version: int
    metrics: MetricsView


class CellView(View):
    """One H3 cell with its outline, a closed ring of ``[lon, lat]``."""

    cell: str
    demand: int
    supply: int
    outline: list[tuple[float, float]]


class ZoneHeat(View):
    """Where the open demand and the free providers of a zone are; cells with neither are left out."""

    zone_id: str
    resolution: int
    cells: list[CellView]


class HeatUpdatedData(ZoneHeat):
    """``version`` is that of the zone's figures."""

    version: int


class Recounted(View):
    """What was told last, and what the database says. When they differ, the difference is told now."""

    zone_id: str
    told: MetricsView | None
    counted: MetricsView
    equal: bool


class ZoneRef(Params):
    """Names a zone."""

    zone_id: Id


class HeatRef(ZoneRef):
    """``resolution`` of H3: 5 is the size of a town, 10 of a block."""

    resolution: Annotated[int, Field(ge=5, le=10)] = HEAT_RESOLUTION


def metrics_of(counted: Counted) -> JSON:
    """The figures of a zone."""
    supply, waits = counted.providers_online, counted.accept_seconds
    return {
        "open_demand": counted.open_demand,
        "providers_online": supply,
        "providers_busy": counted.providers_busy,
        "ratio": round(counted.open_demand / supply, 2) if supply else None,
        "median_accept_seconds": round(median(waits)) if waits else None,
        "sla_breaches": counted.sla_breaches,
    }


async def recount(ctx: Context, zone_id: str) -> tuple[Figures | None, Figures]:
    """Counts a zone and tells what changed; the figures before and after."""
    known = await ctx.uow.zones.lock_figures(zone_id)
    counted = await ctx.uow.zones.count(zone_id)
    metrics, heat = metrics_of(counted), ctx.uow.zones.cells(counted, HEAT_RESOLUTION)
    same_metrics, same_heat = known is not None and known.metrics == metrics, known is not None and known.heat == heat
    if known is not None and same_metrics and same_heat:
        return known, known
    figures = Figures(known.version + 1 if known else 1, metrics, heat, ctx.now)
    await ctx.uow.zones.save_figures(zone_id, figures)
    if not same_metrics:
        data = {"zone_id": zone_id, "version": figures.version, "metrics": metrics}
        ctx.uow.record(_event("zone.metrics_updated", zone_id, data, ctx.now))
    if not same_heat:
        data = {"zone_id": zone_id, "version": figures.version, "resolution": HEAT_RESOLUTION, "cells": heat}
        ctx.uow.record(_event("zone.heat_updated", zone_id, data, ctx.now))
    return known, figures


async def metrics(ctx: Context, params: ZoneRef) -> JSON:
    """The figures that were told last, for operations and for providers that cover the zone.

    Raises:
        Forbidden: no such zone, or none of one's own.
    """
    allowed = ctx.actor.is_operations or await ctx.uow.zones.covered_by(params.zone_id, ctx.actor.provider_ids)
    if not allowed or await ctx.uow.market.zone(params.zone_id) is None:
        raise Forbidden
    figures = await ctx.uow.zones.figures(params.zone_id)
    if figures is not None:
        return {"zone_id": params.zone_id, "version": figures.version, "metrics": figures.metrics}
    return {"zone_id": params.zone_id, "version": 0, "metrics": metrics_of(await ctx.uow.zones.count(params.zone_id))}


async def heat(ctx: Context, params: HeatRef) -> JSON:
    """Demand and supply by cell, counted now.

    Raises:
        Forbidden: no such zone.
    """
    if await ctx.uow.market.zone(params.zone_id) is None:
        raise Forbidden
    cells = ctx.uow.zones.cells(await ctx.uow.zones.count(params.zone_id), params.resolution)
    return {"zone_id": params.zone_id, "resolution": params.resolution, "cells": cells}


async def check(ctx: Context, params: ZoneRef) -> JSON:
    """Holds what was told against the database, and puts it right.

    Raises:
        Forbidden: no such zone.
    """
    if await ctx.uow.market.zone(params.zone_id) is None:
        raise Forbidden
    before, after = await recount(ctx, params.zone_id)
    told: Mapping[str, Any] | None = before.metrics if before else None
    return {
        "zone_id": params.zone_id,
        "told": told,
        "counted": after.metrics,
        "equal": told == after.metrics,
    }


def _event(type_: str, zone_id: str, data: JSON, now: datetime) -> Event:
    return Event(
        id=new_id(now),
        type=type_,
        time=now,
        source=f"zone/{zone_id}",
        data=data,
        audience=Audience(zones=(zone_id,)),
        event_class=EventClass.LATEST,
        key=f"{type_}:{zone_id}",
    )
