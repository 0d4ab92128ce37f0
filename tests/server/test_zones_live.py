"""Zones, their figures and deadlines on live sockets, and from the command line."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import count

import pytest

from domain.context import Context
from domain.identity import Role
from domain.providers import Service
from domain.types import JSON, Money, Origin
from domain.zones import announce_change
from persistence.geometry import ZoneIndex
from server.app import Application
from tests.server.running import running

PLACE = {"lat": 51.539, "lon": -0.1426}
ORIGIN = Origin("seed")


def around(zone_id: str, half_degrees: float) -> JSON:
    west, east = PLACE["lon"] - half_degrees, PLACE["lon"] + half_degrees
    south, north = PLACE["lat"] - half_degrees, PLACE["lat"] + half_degrees
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    feature = {"type": "Feature", "id": zone_id, "properties": {"name": zone_id.title()}, "geometry": geometry}
    return {"type": "FeatureCollection", "features": [feature]}


async def _service(app: Application) -> None:
    service = Service("plumbing", "Plumbing", Money(8_500, "GBP"), 60)
    await app.transactions.write(lambda uow: uow.market.add_service(service), ORIGIN)


async def test_imported_zone_takes_bookings_and_its_figures_and_deadlines_are_live(database_url: str) -> None:
    async with running(database_url) as server:
        await server.user("ops@x.test", Role.OPERATIONS)
        await server.user("ann@x.test", Role.CUSTOMER)
        await _service(server.app)
        ops_token, ann = await server.token("ops@x.test"), await server.token("ann@x.test")
        wanted = {"service_id": "plumbing", "kind": "on_demand", "location": PLACE}
        status, refused = await server.rest(ann, "booking.create", **wanted, key="k1")
        assert (status // 100, refused["type"]) == (4, "outside_zones")
        async with await server.socket(ops_token) as ops:
            outcome = await ops.call("zone.import", collection=around("camden", 0.1), key="k2")
            assert outcome == {"created": 1, "updated": 0, "unchanged": 0}
            await ops.call("sla.set_policy", zone_id="camden", response_seconds=1, key="k3")
            for channel in ("zone:camden", "admin:zones"):
                await ops.call("channel.subscribe", channel=channel)
            status, made = await server.rest(ann, "booking.create", **wanted, key="k4")
            assert status == 200
            booking_id = made["booking"]["id"]
            assert (made["booking"]["zone_id"], made["booking"]["sla"]["response"]["status"]) == ("camden", "running")
            breached = await ops.hears("sla.breached")
            assert breached["channel"] == "admin:bookings"
            assert breached["data"]["booking_id"] == booking_id
            figures = await ops.hears("zone.metrics_updated")
            assert figures["channel"] == "zone:camden"
            assert figures["data"]["metrics"]["open_demand"] == 1
            heat = await ops.hears("zone.heat_updated")
            assert [cell["demand"] for cell in heat["data"]["cells"]] == [1]
            assert (await ops.call("zone.recount", zone_id="camden"))["counted"]["sla_breaches"] == 1


async def test_zones_imported_elsewhere_count_on_a_node_that_serves(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It would look by itself in an hour: what it knows sooner, it heard on the control channel.
    monkeypatch.setattr("server.app.ZoneIndex", partial(ZoneIndex, 3600.0))
    async with running(database_url) as server:
        await server.user("ann@x.test", Role.CUSTOMER)
        await _service(server.app)
        ann = await server.token("ann@x.test")
        elsewhere = Application(server.app.settings)
        await elsewhere.transactions.write(lambda uow: uow.people.add_organisation("firm", "Firm"), ORIGIN)
        numbers = count()

        async def booked_in() -> str | None:
            wanted = {"service_id": "plumbing", "kind": "on_demand", "location": PLACE}
            _, made = await server.rest(ann, "booking.create", **wanted, key=f"k{next(numbers)}")
            return str(made["booking"]["zone_id"]) if "booking" in made else None

        async def put(zone_id: str, half_degrees: float, organisation_id: str | None) -> None:
            async def work(ctx: Context) -> None:
                await announce_change(ctx, await ctx.uow.zones.put_all(around(zone_id, half_degrees), organisation_id))

            await elsewhere.desk.run_as_system(work, ORIGIN)
            async with asyncio.timeout(10):
                while await booked_in() != zone_id:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

        try:
            assert await booked_in() is None
            await put("town", 0.2, None)
            await put("quarter", 0.1, "firm")
        finally:
            elsewhere.passwords.close()
            elsewhere.aws.close()
            await elsewhere.database.close()
