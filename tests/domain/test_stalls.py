"""Drivers that stand still: told once to those who can act, by timers that survive a restart."""

from __future__ import annotations

from domain.types import Point
from tests.domain.marketplace import CENTRE, Firm, Marketplace, north_of

FAR = north_of(CENTRE, 5000)


async def on_the_way(market: Marketplace) -> tuple[Firm, str]:
    firm = await market.firm(position=FAR)
    return firm, await market.job(await market.customer(), firm, "en_route")


async def drive(market: Marketplace, firm: Firm, place: Point) -> None:
    await market.call(firm.person, "location.publish", **place.view(), fix_at=market.clock.now().isoformat())


async def stalls(market: Marketplace) -> int:
    return len(await market.events("booking.stalled"))


async def test_driver_that_moves_less_than_150_metres_in_three_minutes_is_told_once(market: Marketplace) -> None:
    firm, _ = await on_the_way(market)
    for minute in range(8):
        await drive(market, firm, north_of(FAR, 149 * (minute % 2)))
        assert await stalls(market) == (1 if minute >= 3 else 0), minute
        await market.advance(60)
    (told,) = await market.events("booking.stalled")
    assert told.channels == {"admin:bookings", f"organisation:{firm.organisation_id}"}, "the customer is not alarmed"
    assert told.data["stalled_since"] == "2026-11-24T09:00:00.000Z"


async def test_driver_that_gets_on_is_not_stalled_and_one_that_stops_later_is(market: Marketplace) -> None:
    firm, _ = await on_the_way(market)
    for minute in range(10):
        await drive(market, firm, north_of(FAR, 151 * minute))
        await market.advance(60)
    assert await stalls(market) == 0
    await market.advance(180)
    assert await stalls(market) == 1
    await drive(market, firm, FAR)
    await market.advance(60)
    await market.advance(240)
    assert await stalls(market) == 2, "it moved on and stopped again"


async def test_driver_that_sends_no_positions_is_stalled(market: Marketplace) -> None:
    await on_the_way(market)
    await market.advance(180)
    assert await stalls(market) == 1


async def test_offered_reassignment_starts_a_new_search_without_the_driver(market: Marketplace) -> None:
    _, booking_id = await on_the_way(market)
    other = await market.firm(position=FAR)
    await market.advance(180)
    (told,) = await market.events("booking.stalled")
    offer = told.data["reassign"]
    await market.call(await market.operator(), offer["method"], **offer["params"])
    await market.run_timers()
    assert await market.offer_id(other, booking_id)
    assert (await market.booking(booking_id)).status == "awaiting_assignment"
    assert f"stall:{booking_id}" not in await market.timer_names()


async def test_nobody_watches_after_arrival(market: Marketplace) -> None:
    firm, booking_id = await on_the_way(market)
    assert f"stall:{booking_id}" in await market.timer_names()
    await market.step(firm.person, booking_id, "arrived")
    await market.advance(1000)
    assert await stalls(market) == 0
