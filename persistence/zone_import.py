"""A GeoJSON FeatureCollection (RFC 7946) as zones: every feature is checked, and what is wrong is said by its number
and name, with the place where it is wrong.

Nothing here touches the database. :func:`read_zones` looks at each feature by itself, :func:`overlaps` at all of them
together with the zones that are there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import cos, isfinite, radians
from typing import Any

import shapely
from shapely import STRtree
from shapely.geometry import MultiPolygon, Polygon

from domain.errors import InvalidParams
from domain.providers import Strategy
from domain.types import JSON
from domain.zones import MOST_FEATURES
from persistence.geometry import METRES_PER_DEGREE, area_m2

MOST_VERTICES = 10_000
"""Of one feature. A coastline in all its detail makes every lookup slow and no zone better."""

MOST_PROBLEMS = 50
"""Told at once; more help nobody."""

SLIVER_M2 = 1.0
"""Neighbours whose common border was drawn twice overlap by crumbs; up to this they do not count."""

Told = Callable[[int, int], None]
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class ReadZone:
    """A feature that is fit to be a zone."""

    number: int
    id: str
    name: str
    geometry: JSON
    shape: Polygon | MultiPolygon
    area_m2: float
    strategy: Strategy
    priority: float


class _Unfit(Exception):
    """Why a feature cannot be a zone."""


def read_zones(collection: Mapping[str, Any], told: Told = lambda done, total: None) -> list[ReadZone]:
    """The features of a collection as zones.

    Args:
        told: called with how many features are done, and how many there are.

    Raises:
        InvalidParams: one problem per unfit feature, at most :data:`MOST_PROBLEMS`.
    """
    features = collection.get("features")
    if collection.get("type") != "FeatureCollection" or not isinstance(features, list):
        raise InvalidParams.at("collection", "must be a GeoJSON FeatureCollection")
    if not 1 <= len(features) <= MOST_FEATURES:
        raise InvalidParams.at("collection.features", f"must be 1 to {MOST_FEATURES} features")
    zones: list[ReadZone] = []
    problems: list[JSON] = []
    seen: dict[str, int] = {}
    for number, feature in enumerate(features):
        try:
            zone = _zone(number, feature)
            if zone.id in seen:
                raise _Unfit(f"has the id {zone.id!r} of feature {seen[zone.id]}")
            seen[zone.id] = number
            zones.append(zone)
        except _Unfit as unfit:
            problems.append(problem(number, _name(feature), str(unfit)))
        told(number + 1, len(features))
    if problems:
        raise InvalidParams(shortened(problems))
    return zones


def overlaps(zones: Sequence[ReadZone], others: Mapping[str, Polygon | MultiPolygon]) -> list[JSON]:
    """One problem per pair that shares more than a sliver of ground. Common borders are no overlap.

    Args:
        others: zones that stay as they are, by id.
    """
    shapes = [zone.shape for zone in zones] + list(others.values())
    names = [f"feature {zone.number} ({zone.name})" for zone in zones] + [f"the zone {other}" for other in others]
    first, second = STRtree(shapes).query(shapes[: len(zones)], predicate="intersects")
    pairs = [(int(a), int(b)) for a, b in zip(first, second, strict=True) if a < b]
    if not pairs:
        return []
    # Only pieces of ground count: a common border is a line, and slivers have next to no area.
    common = [_ground_m2(shapes[a], shapes[b]) for a, b in pairs]
    return [
        problem(zones[a].number, zones[a].name, f"overlaps {names[b]} by {ground:.0f} m²")
        for (a, b), ground in zip(pairs, common, strict=True)
        if ground > SLIVER_M2
    ]


def _ground_m2(one: Polygon | MultiPolygon, other: Polygon | MultiPolygon) -> float:
    common = one.intersection(other)
    return float(common.area) * METRES_PER_DEGREE**2 * cos(radians(one.centroid.y))


def problem(number: int, name: str | None, why: str) -> JSON:
    """What is wrong with which feature."""
    return {"where": f"collection.features.{number}", "why": f"{name}: {why}" if name else why}


def shortened(problems: Sequence[JSON]) -> list[JSON]:
    """The first ones, and how many more there are."""
    if len(problems) <= MOST_PROBLEMS:
        return list(problems)
    more = {"where": "collection.features", "why": f"and {len(problems) - MOST_PROBLEMS} more problems"}
    return [*problems[:MOST_PROBLEMS], more]


def _zone(number: int, feature: Any) -> ReadZone:
    if not isinstance(feature, dict) or feature.get("type") != "Feature":
        raise _Unfit("is no GeoJSON Feature")
    properties = feature.get("properties") or {}
    if not isinstance(properties, dict):
        raise _Unfit("properties must be an object")
    zone_id = feature.get("id", properties.get("id"))
    zone_id = str(zone_id) if isinstance(zone_id, int) and not isinstance(zone_id, bool) else zone_id
    if not isinstance(zone_id, str) or not _ID.fullmatch(zone_id):
        raise _Unfit("needs an id of 1 to 64 letters, digits, - and _ (in `id` or in the properties)")
    name = properties.get("name", zone_id)
    if not isinstance(name, str) or not 1 <= len(name) <= 200:
        raise _Unfit("name must be a text of 1 to 200 characters")
    strategy = properties.get("strategy", Strategy.BATCHED.value)
    if strategy not in [known.value for known in Strategy]:
        raise _Unfit(f"strategy must be one of {', '.join(known.value for known in Strategy)}")
    priority = properties.get("priority", 0.5)
    if not _is_number(priority) or not 0 <= priority <= 1:
        raise _Unfit("priority must be a number from 0 to 1")
    shape, geometry = _shape(feature.get("geometry"))
    return ReadZone(number, zone_id, name, geometry, shape, area_m2(shape), Strategy(strategy), float(priority))


def _shape(geometry: Any) -> tuple[Polygon | MultiPolygon, JSON]:
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in ("Polygon", "MultiPolygon"):
        raise _Unfit(f"has a geometry of the type {kind!s:.40}: must be Polygon or MultiPolygon")
    coordinates = geometry.get("coordinates")
    parts = [coordinates] if kind == "Polygon" else coordinates
    if not isinstance(parts, list) or not parts or not all(isinstance(part, list) and part for part in parts):
        raise _Unfit("has an empty geometry")
    count = 0
    for part_number, part in enumerate(parts):
        for ring_number, ring in enumerate(part):
            where = f"ring {ring_number}" + (f" of part {part_number}" if len(parts) > 1 else "")
            count += _check_ring(ring, where)
    if count > MOST_VERTICES:
        raise _Unfit(f"has {count} vertices; at most {MOST_VERTICES}")
    polygons = [Polygon(_flat(part[0]), [_flat(hole) for hole in part[1:]]) for part in parts]
    shape = polygons[0] if kind == "Polygon" else MultiPolygon(polygons)
    if not shape.is_valid:
        raise _Unfit(_explained(shapely.is_valid_reason(shape)))
    return shape, {"type": kind, "coordinates": coordinates}


def _check_ring(ring: Any, where: str) -> int:
    if not isinstance(ring, list) or len(ring) < 4:
        raise _Unfit(f"{where} needs at least four positions")
    for number, position in enumerate(ring):
        if not isinstance(position, list) or not 2 <= len(position) <= 3 or not all(map(_is_number, position)):
            raise _Unfit(f"{where}: position {number} is not [lon, lat]")
        lon, lat = position[:2]
        if not (-180 <= lon <= 180 and -90 <= lat <= 90):
            raise _Unfit(f"{where}: position {number} [{lon}, {lat}] is outside the globe; positions are [lon, lat]")
    if ring[0] != ring[-1]:
        raise _Unfit(f"{where} must end where it begins")
    return len(ring)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _flat(ring: Iterable[Sequence[float]]) -> list[tuple[float, float]]:
    return [(position[0], position[1]) for position in ring]


def _explained(reason: str) -> str:
    """GEOS says ``Self-intersection[0.5 0.5]``; people read ``self-intersection at [0.5, 0.5]``."""
    match = re.fullmatch(r"(.+)\[(\S+) (\S+)\]", reason)
    return f"{match[1].strip().lower()} at [{match[2]}, {match[3]}]" if match else reason.lower()


def _name(feature: Any) -> str | None:
    if not isinstance(feature, dict):
        return None
    properties = feature.get("properties")
    name = properties.get("name", feature.get("id")) if isinstance(properties, dict) else feature.get("id")
    return str(name)[:80] if isinstance(name, str | int) else None
