"""Places: distance on the globe, and how long a drive takes."""

from __future__ import annotations

from math import asin, cos, radians, sin, sqrt
from typing import Protocol

from domain.types import Point

EARTH_RADIUS_M = 6_371_008.8
"""Mean radius in metres (IUGG 1980)."""


def distance_m(a: Point, b: Point) -> float:
    """Great-circle distance in metres (haversine)."""
    half_lat = radians(b.lat - a.lat) / 2
    half_lon = radians(b.lon - a.lon) / 2
    chord = sin(half_lat) ** 2 + cos(radians(a.lat)) * cos(radians(b.lat)) * sin(half_lon) ** 2
    return 2 * EARTH_RADIUS_M * asin(min(1.0, sqrt(chord)))


class EtaEstimator(Protocol):
    """How long from here to there."""

    def eta_seconds(self, start: Point, end: Point) -> int:
        """Whole seconds of driving."""


class GreatCircleEta:
    """Straight line times a detour factor, at a town's average speed. No traffic, no network, no surprise."""

    def __init__(self, detour_factor: float = 1.3, speed_kmh: float = 25.0) -> None:
        self._detour_factor = detour_factor
        self._metres_per_second = speed_kmh / 3.6

    def eta_seconds(self, start: Point, end: Point) -> int:
        return round(distance_m(start, end) * self._detour_factor / self._metres_per_second)
