"""Zones: which one a place lies in, and what is not a zone at all."""

from __future__ import annotations

from math import radians, sin
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import InvalidParams
from domain.providers import Strategy, Zone
from domain.types import JSON, Point
from persistence import tables
from persistence.geometry import area_m2, parse_geometry
from tests.domain.marketplace import CENTRE, Marketplace, refused, square

RING = [[0, 0], [2, 0], [2, 2], [0, 2], [0, 0]]


def polygon(*rings: Any) -> JSON:
    return {"type": "Polygon", "coordinates": list(rings)}


async def zone_at(market: Marketplace, lat: float, lon: float) -> str | None:
    zone = await market.transactions.read(lambda uow: uow.market.zone_at(Point(lat, lon)))
    return zone.id if zone else None


async def test_of_several_zones_the_smallest_wins_whatever_their_order(empty_market: Marketplace) -> None:
    market = empty_market
    for zone_id, half_degrees in [("b-town", 0.2), ("a-country", 2.0), ("c-quarter", 0.02)]:
        await market.zone(zone_id, half_degrees=half_degrees)
    for off, expected in [(0.0, "c-quarter"), (0.1, "b-town"), (1.0, "a-country"), (3.0, None)]:
        assert await zone_at(market, CENTRE.lat + off, CENTRE.lon) == expected


async def test_smallest_is_meant_on_the_ground_and_not_in_degrees(empty_market: Marketplace) -> None:
    market = empty_market
    # At 60° north a degree of longitude is half as long: wider in degrees, smaller in metres.
    await market.zone("wide", geometry=polygon([[0, 60], [1.5, 60], [1.5, 61], [0, 61], [0, 60]]))
    await market.zone("tall", geometry=polygon([[0, 0], [1, 0], [1, 61], [0, 61], [0, 0]]))
    assert await zone_at(market, 60.5, 0.5) == "wide"
    (wide,) = await market.rows(tables.zones.select().where(tables.zones.c.id == "wide"))
    assert wide.area_m2 == pytest.approx(1.5 * 0.5 * 111_319.49**2, rel=0.02)


async def test_boundary_and_corners_count_as_inside_and_a_hole_does_not(empty_market: Marketplace) -> None:
    market = empty_market
    hole = [[0.5, 0.5], [0.5, 1.5], [1.5, 1.5], [1.5, 0.5], [0.5, 0.5]]
    await market.zone("ring", geometry=polygon(RING, hole))
    for lat, lon, inside in [
        (0.25, 0.25, True),
        (0, 1, True),
        (2, 2, True),
        (0.5, 1, True),
        (1, 1, False),
        (2.000001, 1, False),
    ]:
        assert (await zone_at(market, lat, lon) == "ring") is inside, (lat, lon)


async def test_multipolygon_covers_each_of_its_parts(empty_market: Marketplace) -> None:
    market = empty_market
    parts = [square(Point(10, 10), 1)["coordinates"], square(Point(20, 20), 1)["coordinates"]]
    await market.zone("isles", geometry={"type": "MultiPolygon", "coordinates": parts})
    assert [await zone_at(market, at, at) for at in (10, 15, 20)] == ["isles", None, "isles"]


async def test_new_zone_counts_at_once(empty_market: Marketplace) -> None:
    market = empty_market
    await market.zone("old", half_degrees=1)
    assert await zone_at(market, CENTRE.lat, CENTRE.lon) == "old"
    await market.zone("new", half_degrees=0.5)
    assert await zone_at(market, CENTRE.lat, CENTRE.lon) == "new"


async def test_booking_outside_every_zone_is_refused(market: Marketplace) -> None:
    customer = await market.customer()
    assert await refused(market.book(customer, location={"lat": -40.0, "lon": 100.0})) == "outside_zones"
    assert await market.count(tables.bookings) == 0


async def test_booking_belongs_to_the_smallest_zone(market: Marketplace) -> None:
    await market.zone("quarter", half_degrees=0.01)
    firm = await market.firm(zones=("quarter",))
    booking_id = await market.book(await market.customer())
    assert (await market.booking(booking_id)).zone_id == "quarter"
    assert await market.asked(booking_id) == {firm.provider_id}


INVALID: list[tuple[JSON, str, str]] = [
    ({}, "geometry.type", "Polygon or MultiPolygon"),
    ({"type": "Point", "coordinates": [0, 0]}, "geometry.type", "Polygon or MultiPolygon"),
    (polygon([[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]), "geometry.coordinates", "Self-intersection[0.5 0.5]"),
    (polygon([[0, 0], [1, 0], [0, 0]]), "geometry.coordinates", "Too few points"),
    (polygon(RING, [[5, 5], [6, 5], [6, 6], [5, 5]]), "geometry.coordinates", "Hole lies outside shell"),
    (polygon([[0, 0], [200, 0], [200, 1], [0, 0]]), "geometry.coordinates", "outside the globe"),
    (polygon([[51, -0.1], [51, 95], [52, 95], [51, -0.1]]), "geometry.coordinates", "outside the globe"),
    (polygon(), "geometry.coordinates", "empty"),
    ({"type": "Polygon"}, "geometry.coordinates", "not readable"),
    ({"type": "Polygon", "coordinates": "here"}, "geometry.coordinates", "not readable"),
    (polygon([["a", "b"], [1, 0], [1, 1], ["a", "b"]]), "geometry.coordinates", "not readable"),
    ({"type": "MultiPolygon", "coordinates": [[RING], [RING]]}, "geometry.coordinates", "Self-intersection"),
]


@pytest.mark.parametrize(("geometry", "where", "why"), INVALID)
async def test_invalid_geometry_is_refused_and_says_where_and_why(
    empty_market: Marketplace, geometry: JSON, where: str, why: str
) -> None:
    with pytest.raises(InvalidParams) as caught:
        await empty_market.write(lambda uow: uow.market.add_zone(Zone("z", "Z", geometry, 0.0, Strategy.BATCHED)))
    (problem,) = caught.value.details["errors"]
    assert problem["where"] == where
    assert why in problem["why"]
    assert await empty_market.count(tables.zones) == 0


def test_open_ring_is_refused() -> None:
    with pytest.raises(InvalidParams):
        parse_geometry(polygon([[0, 0], [1, 0], [1, 1], [0, 1]]))


def test_type_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidParams):
        parse_geometry({"type": ["Polygon"], "coordinates": []})


@given(st.floats(-80, 80), st.floats(-170, 170), st.floats(0.001, 1))
def test_area_of_a_square_is_right_within_a_percent(lat: float, lon: float, half_degrees: float) -> None:
    north, south = radians(lat + half_degrees), radians(lat - half_degrees)
    on_the_sphere = 6_378_137.0**2 * (sin(north) - sin(south)) * radians(2 * half_degrees)
    assert area_m2(parse_geometry(square(Point(lat, lon), half_degrees))) == pytest.approx(on_the_sphere, rel=0.01)


async def test_lists_show_services_with_prices_and_zones_with_outlines(market: Marketplace) -> None:
    customer = await market.customer()
    assert await market.call(customer, "service.list") == {
        "services": [
            {
                "id": "plumbing",
                "name": "Plumbing",
                "price": {"amount_minor": 8500, "currency": "GBP"},
                "duration_minutes": 60,
            }
        ]
    }
    (zone,) = (await market.call(customer, "zone.list"))["zones"]
    assert (zone["id"], zone["geometry"]) == ("camden", square(CENTRE, 0.5))
