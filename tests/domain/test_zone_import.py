"""Importing zones: all of a file or none of it, and what is wrong is said by number and name."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely import STRtree
from shapely.geometry import Point as Dot
from shapely.geometry import shape

from domain.errors import InvalidParams
from domain.providers import Strategy, Zone
from domain.types import JSON, Point
from persistence import tables, zone_import
from persistence.geometry import ZoneIndex
from persistence.zone_import import read_zones
from tests.domain.marketplace import Marketplace, refusal, square


def feature(zone_id: Any, at: Point, half_degrees: float = 0.5, **properties: Any) -> JSON:
    geometry = square(at, half_degrees)
    return {"type": "Feature", "id": zone_id, "properties": properties, "geometry": geometry}


def collection(*features: JSON) -> JSON:
    return {"type": "FeatureCollection", "name": "exported by some tool", "features": list(features)}


def ringed(*ring: Any, kind: str = "Polygon") -> JSON:
    made = feature("bad", Point(0, 0), name="Bad Place")
    return made | {"geometry": {"type": kind, "coordinates": [list(ring)]}}


WEST, EAST = feature("west", Point(10, 10), name="West"), feature("east", Point(10, 11), name="East")


async def do(market: Marketplace, *features: JSON, **params: Any) -> JSON:
    operator = await market.operator()
    return await market.call(operator, "zone.import", collection=collection(*features), **params)


async def problems(market: Marketplace, *features: JSON, **params: Any) -> list[tuple[str, str]]:
    before = await market.rows(tables.zones.select())
    error = await refusal(do(market, *features, **params))
    assert error.type == "invalid_params"
    assert await market.rows(tables.zones.select()) == before, "all or nothing"
    return [(problem["where"], problem["why"]) for problem in error.details["errors"]]


async def test_zones_are_created_then_unchanged_then_updated_by_their_ids(empty_market: Marketplace) -> None:
    market = empty_market
    assert await do(market, WEST, EAST) == {"created": 2, "updated": 0, "unchanged": 0}
    told = len(await market.events("zones.changed"))
    assert await do(market, WEST, EAST) == {"created": 0, "updated": 0, "unchanged": 2}
    assert len(await market.events("zones.changed")) == told == 1, "what did not change is not told"
    wider = feature("west", Point(10, 9.9), 0.6, name="West", strategy="sequential", priority=1)
    assert await do(market, wider) == {"created": 0, "updated": 1, "unchanged": 0}
    rows = {row.id: row for row in await market.rows(tables.zones.select())}
    assert (rows["west"].version, rows["west"].strategy, rows["west"].priority) == (2, "sequential", 1.0)
    assert (rows["east"].version, rows["east"].name, rows["east"].strategy) == (1, "East", "batched")
    zone = await market.transactions.read(lambda uow: uow.market.zone_at(Point(10, 9.31)))
    assert zone is not None
    assert zone.id == "west"


INVALID = [
    (ringed([0, 0], [1, 0], [0, 0]), "ring 0 needs at least four positions"),
    (ringed([0, 0], [1, 0], [1, 1], [0, 1]), "ring 0 must end where it begins"),
    (ringed([0, 0], [2, 2], [2, 0], [0, 2], [0, 0]), "self-intersection at [1, 1]"),
    (ringed([0, 0], [181, 0], [1, 1], [0, 0]), "position 1 [181, 0] is outside the globe"),
    (ringed([51.5, -0.1], [51.5, 95], [52, 0], [51.5, -0.1]), "position 1 [51.5, 95] is outside the globe"),
    (ringed([0, 0], ["1", 0], [1, 1], [0, 0]), "position 1 is not [lon, lat]"),
    (ringed([0, 0], [True, 0], [1, 1], [0, 0]), "position 1 is not [lon, lat]"),
    (ringed([0, 0], [1, 0], [1, 1], [0, 0], kind="LineString"), "type LineString: must be Polygon or MultiPolygon"),
    (WEST | {"id": "bad", "geometry": None}, "must be Polygon or MultiPolygon"),
    (WEST | {"id": "bad", "geometry": {"type": "Polygon", "coordinates": []}}, "empty geometry"),
    (WEST | {"id": "two words"}, "needs an id"),
    (feature("bad", Point(0, 0), strategy="loudest"), "strategy must be one of sequential, batched, broadcast"),
    (feature("bad", Point(0, 0), priority=2), "priority must be a number from 0 to 1"),
    (feature("bad", Point(0, 0), name=""), "name must be a text"),
    ({"type": "Point", "coordinates": [0, 0]}, "is no GeoJSON Feature"),
]


@pytest.mark.parametrize(("bad", "why"), INVALID)
def test_unfit_feature_is_named_with_the_reason(bad: JSON, why: str) -> None:
    with pytest.raises(InvalidParams) as caught:
        read_zones(collection(EAST, bad))
    (problem,) = caught.value.details["errors"]
    assert problem["where"] == "collection.features.1"
    assert why in problem["why"]


async def test_every_unfit_feature_is_told_at_once_with_its_name(empty_market: Marketplace) -> None:
    found = await problems(empty_market, INVALID[0][0], WEST, INVALID[2][0])
    assert found == [
        ("collection.features.0", "Bad Place: ring 0 needs at least four positions"),
        ("collection.features.2", "Bad Place: self-intersection at [1, 1]"),
    ]


def test_too_many_vertices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zone_import, "MOST_VERTICES", 4)
    with pytest.raises(InvalidParams) as caught:
        read_zones(collection(WEST))
    assert caught.value.details["errors"][0]["why"] == "West: has 5 vertices; at most 4"


async def test_overlap_names_both_and_a_common_border_is_none(empty_market: Marketplace) -> None:
    market = empty_market
    middle = feature("middle", Point(10, 10.5), name="Middle")
    assert [why.split(" by ")[0] for _, why in await problems(market, WEST, EAST, middle)] == [
        "West: overlaps feature 2 (Middle)",
        "East: overlaps feature 2 (Middle)",
    ]
    await do(market, WEST, EAST)
    found = await problems(market, middle)
    assert {why.split(" by ")[0] for _, why in found} == {
        "Middle: overlaps the zone west",
        "Middle: overlaps the zone east",
    }
    twice = feature("west", Point(-10, 10), name="Again")
    assert await problems(market, WEST, twice) == [("collection.features.1", "Again: has the id 'west' of feature 0")]


async def test_sets_of_different_organisations_may_overlap_but_share_no_ids(empty_market: Marketplace) -> None:
    market = empty_market
    await market.service()
    await do(market, WEST)
    firm = await market.firm(zones=())
    own = feature("quarter", Point(10, 10), 0.1, name="Quarter")
    await do(market, own, organisation_id=firm.organisation_id)
    zone = await market.transactions.read(lambda uow: uow.market.zone_at(Point(10, 10)))
    assert zone is not None
    assert zone.id == "quarter", "the smallest wins"
    elsewhere = feature("west", Point(40, 40), name="West")
    found = await problems(market, elsewhere, organisation_id=firm.organisation_id)
    assert found == [("collection.features.0", "West: the id 'west' is a zone of another set")]
    assert await problems(market, own, organisation_id="none") == [("organisation_id", "there is no such organisation")]


async def test_other_node_hears_that_its_zones_are_old(empty_market: Marketplace) -> None:
    market = empty_market
    index = ZoneIndex(fresh_seconds=3600)

    async def at(place: Point) -> str | None:
        async def work(uow: Any) -> Any:
            return await index.locate(place, uow.market)

        zone = await market.transactions.read(work)
        return None if zone is None else str(zone.id)

    await do(market, WEST)
    assert await at(Point(10, 10)) == "west"
    await do(market, EAST)
    assert await at(Point(10, 11)) is None, "its look is an hour away"
    (_, changed) = await market.events("zones.changed")
    assert changed.channels == {"control"}
    index.expect(changed.data["generation"])
    assert await at(Point(10, 11)) == "east"


class Grid:
    """Ten thousand zones, counting how often they are read."""

    def __init__(self) -> None:
        self.read = 0
        self.cells = [
            Zone(f"{row}-{column}", "", square(Point(row, column), 0.5), 1.0, Strategy.BATCHED)
            for row in range(-50, 50)
            for column in range(-50, 50)
        ]

    async def generation(self) -> int:
        return 7

    async def pages(self) -> Any:
        self.read += 1
        yield [(zone, shape_text(zone)) for zone in self.cells]


def shape_text(zone: Zone) -> str:
    return orjson.dumps(zone.geometry).decode()


async def test_ten_thousand_zones_are_read_once_and_a_lookup_looks_at_a_handful() -> None:
    grid, index = Grid(), ZoneIndex(fresh_seconds=0.0)
    for row in range(-50, 50, 7):
        for column in range(-50, 50, 7):
            zone = await index.locate(Point(row + 0.1, column - 0.2), grid)
            assert zone is not None
            assert zone.id == f"{row}-{column}"
    assert grid.read == 1, "the number of the newest change says that nothing is new"
    corner = await index.locate(Point(0.5, 0.5), grid)
    assert corner is not None
    assert corner.id == min("0-0", "0-1", "1-0", "1-1"), "a boundary is inside, and of equals one is chosen"
    tree = STRtree([shape(dict(zone.geometry)) for zone in grid.cells])
    assert len(tree.query(Dot(0.25, 0.25))) == 1, "shapes looked at, not zones there are"


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=3), st.lists, max_leaves=20))
def test_no_geometry_whatever_brings_the_reader_down(coordinates: Any) -> None:
    bad = WEST | {"geometry": {"type": "Polygon", "coordinates": coordinates}}
    with pytest.raises(InvalidParams):
        read_zones(collection(bad))
