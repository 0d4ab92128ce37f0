"""Live figures of a zone are what the database says: told once, to those who may hear them, and put right when not."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from statistics import median
from typing import Any

import h3
import pytest

from domain.context import Context
from domain.identity import Actor
from domain.providers import ProviderStatus
from domain.types import JSON
from domain.zones import recount
from persistence import tables
from tests.domain.marketplace import CENTRE, Firm, Marketplace, north_of, refused


async def meter(market: Marketplace) -> list[str]:
    """What a node does every other second: counts the zones that something happened in."""
    zone_ids, provider_ids = market.desk.pulse.take()
    if provider_ids:
        zone_ids |= set(await market.transactions.read(lambda uow: uow.zones.of_providers(provider_ids)))
    for zone_id in sorted(zone_ids):

        async def count(ctx: Context, zone_id: str = zone_id) -> None:
            await recount(ctx, zone_id)

        await market.as_system(count)
    return sorted(zone_ids)


async def told(market: Marketplace) -> JSON:
    """The newest figures told of Camden."""
    newest: JSON = (await market.events("zone.metrics_updated"))[-1].data
    return newest


async def by_hand(market: Marketplace) -> JSON:
    """Camden's figures, worked out from all rows."""
    bookings = await market.rows(tables.bookings.select())
    providers = Counter(row.status for row in await market.rows(tables.providers.select()) if row.verified)
    waiting = sum(row.status == "awaiting_assignment" for row in bookings)
    newest = sorted((row for row in bookings if row.assigned_at), key=lambda row: (row.assigned_at, row.id))[-50:]
    waits = [(row.assigned_at - row.dispatch_started_at).total_seconds() for row in newest]
    ended = {"completed", "cancelled", "unfulfilled", "no_show"}
    return {
        "open_demand": waiting,
        "providers_online": providers["online"],
        "providers_busy": providers["busy"],
        "ratio": round(waiting / providers["online"], 2) if providers["online"] else None,
        "median_accept_seconds": round(median(waits)) if waits else None,
        "sla_breaches": sum(row.sla_breached > 0 and row.status not in ended for row in bookings),
    }


async def test_figures_are_told_to_the_zone_and_heat_to_operations_only(market: Marketplace) -> None:
    firm = await market.firm()
    await market.book(await market.customer())
    assert await meter(market) == ["camden"]
    assert await told(market) == {
        "zone_id": "camden",
        "version": 1,
        "metrics": {
            "open_demand": 1,
            "providers_online": 1,
            "providers_busy": 0,
            "ratio": 1.0,
            "median_accept_seconds": None,
            "sla_breaches": 0,
        },
    }
    (metrics,), (heat,) = await market.events("zone.metrics_updated"), await market.events("zone.heat_updated")
    assert (metrics.channels, heat.channels) == ({"zone:camden"}, {"admin:zones"})
    assert metrics.event.event_class == heat.event.event_class == "latest"
    assert metrics.event.key != heat.event.key
    seen = await market.call(firm.person, "zone.metrics", zone_id="camden")
    assert seen == await told(market)


async def test_nothing_is_told_when_nothing_moved_and_each_change_has_a_version(market: Marketplace) -> None:
    firm, customer = await market.firm(), await market.customer()
    booking_id = await market.book(customer)
    await meter(market)
    assert await meter(market) == [], "nothing happened"
    market.clock.advance(12)
    await market.accept(firm, booking_id)
    await meter(market)
    assert (await told(market))["version"] == 2
    assert (await told(market))["metrics"] == {
        "open_demand": 0,
        "providers_online": 0,
        "providers_busy": 1,
        "ratio": None,
        "median_accept_seconds": 12,
        "sla_breaches": 0,
    }
    await market.step(firm.person, booking_id, "en_route")
    assert await meter(market) == ["camden"], "something happened"
    assert len(await market.events("zone.metrics_updated")) == 2, "and changed no figure"


async def test_breach_counts_until_the_booking_ends(market: Marketplace) -> None:
    customer = await market.customer()
    booking_id = await market.book(customer)
    await market.advance(300)
    await meter(market)
    assert (await told(market))["metrics"]["sla_breaches"] == 1
    await market.call(customer, "booking.cancel", booking_id=booking_id, reason="too slow")
    await meter(market)
    assert (await told(market))["metrics"]["sla_breaches"] == 0


@pytest.mark.parametrize("seed", [1, 2])
async def test_figures_equal_the_database_after_any_evening(market: Marketplace, seed: int) -> None:
    chance = random.Random(seed)
    firms = await market.firms(4)
    customers = [await market.customer() for _ in range(3)]
    bookings: list[str] = []
    for _ in range(40):
        await _anything(market, chance, firms, customers, bookings)
        await market.advance(chance.choice([0, 5, 40, 200]))
        if chance.random() < 0.4:
            await meter(market)
    await meter(market)
    assert (await told(market))["metrics"] == await by_hand(market)
    answer = await market.call(await market.operator(), "zone.recount", zone_id="camden")
    assert answer["equal"]
    versions = [event.data["version"] for event in await market.events("zone.metrics_updated")]
    assert versions == sorted(set(versions))


async def _anything(
    market: Marketplace, chance: random.Random, firms: list[Firm], customers: list[Actor], bookings: list[str]
) -> None:
    act = chance.choice(["book", "book", "accept", "accept", "go on", "presence", "cancel"])
    booking_id = chance.choice(bookings) if bookings else None
    if act == "book" or booking_id is None:
        bookings.append(await market.book(chance.choice(customers)))
        return
    booking = await market.booking(booking_id)
    owner = next(customer for customer in customers if customer.user_id == booking.customer_id)
    firm = next((firm for firm in firms if firm.provider_id == booking.provider_id), None)
    following = {"assigned": "en_route", "en_route": "arrived", "arrived": "in_progress", "in_progress": "completed"}
    if act == "accept":
        for row in await market.offers(booking_id, "sent"):
            asked = next(firm for firm in firms if firm.provider_id == row.provider_id)
            await market.call(asked.person, "offer.accept", offer_id=row.id)
            return
    elif act == "go on" and firm is not None and booking.status in following:
        await market.step(firm.person, booking_id, following[booking.status])
    elif act == "presence":
        await market.call(chance.choice(firms).person, "presence.set", status=chance.choice(["online", "away"]))
    elif act == "cancel" and booking.status == "awaiting_assignment":
        await market.call(owner, "booking.cancel", booking_id=booking_id, reason="no")


async def test_node_that_died_before_it_counted_is_made_up_for(market: Marketplace) -> None:
    await market.firm()
    await market.book(await market.customer())
    market.desk.pulse.take()  # the node dies with what it noted
    assert await market.transactions.read(lambda uow: uow.zones.drifted()) == {"camden"}
    answer = await market.call(await market.operator(), "zone.recount", zone_id="camden")
    assert (answer["told"], answer["equal"]) == (None, False)
    assert answer["counted"] == await by_hand(market)
    assert await market.transactions.read(lambda uow: uow.zones.drifted()) == set()
    again = await market.call(await market.operator(), "zone.recount", zone_id="camden")
    assert (again["told"], again["equal"]) == (answer["counted"], True)


async def test_two_nodes_that_count_at_once_tell_it_once(market: Marketplace) -> None:
    await market.book(await market.customer())

    async def count(ctx: Context) -> None:
        await recount(ctx, "camden")

    await asyncio.gather(*(market.as_system(count) for _ in range(4)))
    assert [event.data["version"] for event in await market.events("zone.metrics_updated")] == [1]


async def test_heat_counts_demand_and_free_providers_by_cell(market: Marketplace) -> None:
    north = north_of(CENTRE, 3000)
    await market.firm(position=north)
    await market.firm(position=None)
    await market.firm(position=north, status=ProviderStatus.BUSY)
    customer, operator = await market.customer(), await market.operator()
    for _ in range(2):
        await market.book(customer)
    heat = await market.call(operator, "zone.heat", zone_id="camden", resolution=8)
    found = {cell["cell"]: (cell["demand"], cell["supply"]) for cell in heat["cells"]}
    assert found == {
        h3.latlng_to_cell(CENTRE.lat, CENTRE.lon, 8): (2, 0),
        h3.latlng_to_cell(north.lat, north.lon, 8): (0, 1),
    }
    assert all(cell["outline"][0] == cell["outline"][-1] and len(cell["outline"]) >= 6 for cell in heat["cells"])
    coarse = await market.call(operator, "zone.heat", zone_id="camden", resolution=5)
    assert sum(cell["demand"] for cell in coarse["cells"]) == 2


async def test_only_providers_that_cover_a_zone_see_its_figures(market: Marketplace) -> None:
    await market.zone("isle", centre=north_of(CENTRE, 500_000))
    firm, stranger = await market.firm(), await market.firm(zones=("isle",))
    assert (await market.call(firm.person, "zone.metrics", zone_id="camden"))["version"] == 0
    calls: list[Any] = [(stranger.person, "zone.metrics"), (firm.person, "zone.heat"), (firm.person, "zone.recount")]
    for person, method in calls:
        assert await refused(market.call(person, method, zone_id="camden")) == "not_found"
