"""Zones as shapes: validation of GeoJSON, areas, and which zone a point lies in."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import cos, radians
from typing import Any

from shapely import STRtree
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
    """The zones of the database in an R-tree, kept by each process and read anew when older than ``fresh_seconds``."""

    def __init__(self, fresh_seconds: float = 5.0) -> None:
        self._fresh_seconds = fresh_seconds
        self._read_at = -fresh_seconds
        self._zones: Sequence[Zone] = ()
        self._tree = STRtree([])

    async def locate(self, place: Place, load: Callable[[], Awaitable[Sequence[Zone]]]) -> Zone | None:
        """The smallest zone that covers the place, its boundary included.

        Args:
            load: reads every zone, called when the index is stale.
        """
        if time.monotonic() - self._read_at >= self._fresh_seconds:
            self._zones = await load()
            self._tree = STRtree([shape(dict(zone.geometry)) for zone in self._zones])
            self._read_at = time.monotonic()
        hits = self._tree.query(Point(place.lon, place.lat), predicate="intersects")
        covering = [self._zones[int(hit)] for hit in hits]
        return min(covering, key=lambda zone: (zone.area_m2, zone.id), default=None)

    def forget(self) -> None:
        """The zones changed: read them at the next question."""
        self._read_at = -self._fresh_seconds
