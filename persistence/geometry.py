"""Zones as shapes: validation of GeoJSON, areas, and which zone a point lies in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from math import cos, radians
from typing import Any, Protocol

from shapely import STRtree, from_geojson, prepare
from shapely.errors import ShapelyError
from shapely.geometry import MultiPolygon, Point, Polygon, shape
from shapely.validation import explain_validity

from domain.errors import InvalidParams
from domain.providers import Zone
from domain.types import Point as Place

METRES_PER_DEGREE = 111_319.49
"""Of latitude, on a sphere with the equatorial radius of WGS 84."""


def parse_geometry(geometry: Mapping[str, Any]) -> Polygon | MultiPolygon:
    """A GeoJSON Polygon or MultiPolygon (RFC 7946 §3.1.6) as a shape.

    Raises:
        InvalidParams: another type, not closed, crossing itself, or outside the globe; says what and where.
    """
    kind: Any = geometry.get("type")
    coordinates: Any = geometry.get("coordinates")
    if kind not in ("Polygon", "MultiPolygon"):
        raise InvalidParams.at("geometry.type", "must be Polygon or MultiPolygon")
    try:
        rings = coordinates if kind == "Polygon" else [ring for part in coordinates for ring in part]
        if any(list(ring[0]) != list(ring[-1]) for ring in rings):
            raise InvalidParams.at("geometry.coordinates", "a ring must end where it begins")
        polygon = shape({"type": kind, "coordinates": coordinates})
    except (ShapelyError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise InvalidParams.at("geometry.coordinates", "not readable as GeoJSON") from error
    if not isinstance(polygon, Polygon | MultiPolygon) or polygon.is_empty:
        raise InvalidParams.at("geometry.coordinates", "must not be empty")
    if not polygon.is_valid:
        raise InvalidParams.at("geometry.coordinates", explain_validity(polygon))
    west, south, east, north = polygon.bounds
    if west < -180 or east > 180 or south < -90 or north > 90:
        raise InvalidParams.at("geometry.coordinates", "outside the globe; positions are [lon, lat]")
    return polygon


def area_m2(polygon: Polygon | MultiPolygon) -> float:
    """Area in square metres, flat around its own centre: within a percent for anything the size of a town."""
    scale = cos(radians(polygon.centroid.y))
    return float(polygon.area * METRES_PER_DEGREE**2 * scale)


class ZoneIndex:
    """The zones of the database in an R-tree, one per process.

    The database numbers every change of zones. The tree is built anew when that number is another one: it is looked at
    every ``fresh_seconds``, and at once after :meth:`expect` or :meth:`forget`.

    Concurrency: one event loop; of several lookups that find the tree old, one builds it and the others wait.
    """

    def __init__(self, fresh_seconds: float = 5.0) -> None:
        self._fresh_seconds = fresh_seconds
        self._looked_at = -fresh_seconds
        self._generation = -1
        self._expected = 0
        self._zones: Sequence[Zone] = ()
        self._tree = STRtree([])
        self._turn = asyncio.Lock()

    async def locate(self, place: Place, source: ZoneSource) -> Zone | None:
        """The smallest zone that covers the place, its boundary included."""
        if self._is_old():
            async with self._turn:
                if self._is_old():
                    await self._look(source)
        hits = self._tree.query(Point(place.lon, place.lat), predicate="intersects")
        covering = [self._zones[int(hit)] for hit in hits]
        return min(covering, key=lambda zone: (zone.area_m2, zone.id), default=None)

    def forget(self) -> None:
        """Zones are being changed: look at the next question."""
        self._looked_at = -self._fresh_seconds

    def expect(self, generation: int) -> None:
        """Zones were changed, and this is the number of the change: nothing older will do."""
        self._expected = max(self._expected, generation)

    def _is_old(self) -> bool:
        return self._generation < self._expected or time.monotonic() - self._looked_at >= self._fresh_seconds

    async def _look(self, source: ZoneSource) -> None:
        looked_at = time.monotonic()
        # Read before the zones, which may then be newer than it says and never older.
        generation = await source.generation()
        if generation != self._generation:
            rows = [row async for page in source.pages() for row in page]
            self._tree = await asyncio.to_thread(_tree, [text for _, text in rows])
            self._zones = [zone for zone, _ in rows]
            self._generation = generation
        self._looked_at = looked_at


class ZoneSource(Protocol):
    """Where an index reads zones."""

    async def generation(self) -> int:
        """The number of the newest change."""

    def pages(self) -> AsyncIterator[Sequence[tuple[Zone, str]]]:
        """Every zone with its outline as GeoJSON text."""


def _tree(outlines: Sequence[str]) -> STRtree:
    shapes = from_geojson(list(outlines))
    prepare(shapes)
    return STRtree(shapes)
