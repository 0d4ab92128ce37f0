"""What somebody sees who comes later: the state behind a channel."""

from __future__ import annotations

from typing import Any

import pytest

from domain import snapshots
from domain.types import JSON, Point
from tests.domain.marketplace import CENTRE, Marketplace, north_of

FAR = north_of(CENTRE, 5000)


async def feed(market: Marketplace) -> JSON:
    operator = await market.operator()

    async def work(uow: Any) -> JSON:
        return await snapshots.of_feed(market.desk.context(operator, uow))

    return await market.transactions.read(work)


async def test_operators_who_come_later_see_what_needs_them(market: Marketplace) -> None:
    customer = await market.customer()
    nobodys = await market.book(customer)
    await market.advance(600)
    assert (await feed(market))["rescues"] == [nobodys]
    firm = await market.firm()
    await market.call(await market.operator(), "booking.assign", booking_id=nobodys, provider_id=firm.provider_id)
    assert (await feed(market))["rescues"] == []


async def test_operators_who_come_later_see_a_driver_that_stands_until_it_moves(market: Marketplace) -> None:
    firm = await market.firm(position=FAR)
    booking_id = await market.job(await market.customer(), firm, "en_route")
    await market.advance(120)
    assert (await feed(market))["stalls"] == []
    await market.advance(60)
    (told,) = await market.events("booking.stalled")
    (stall,) = (await feed(market))["stalls"]
    assert stall == told.data

    async def drive(place: Point) -> None:
        market.clock.advance(30)  # a position is stored now and then, not each time
        await market.call(firm.person, "location.publish", **place.view(), fix_at=market.clock.now().isoformat())

    await drive(north_of(FAR, 100))
    (stall,) = (await feed(market))["stalls"]
    assert stall["stalled_since"] == told.data["stalled_since"]
    await drive(north_of(FAR, 200))
    assert (await feed(market))["stalls"] == []
    await market.step(firm.person, booking_id, "arrived")
    assert (await feed(market))["stalls"] == []


async def test_what_is_open_is_there_however_many_are_newer(
    market: Marketplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "FEED_LENGTH", 2)
    monkeypatch.setattr(snapshots, "OPEN_LENGTH", 3)
    customer = await market.customer()

    async def ended() -> str:
        market.clock.advance(1)
        booking_id = await market.book(customer)
        await market.call(customer, "booking.cancel", booking_id=booking_id, reason="x")
        return booking_id

    async def planned(days: int) -> str:
        market.clock.advance(1)
        return await market.book_slot(customer, in_hours=24 * days)

    at_once = await market.book(customer)
    await ended()
    third, first, second = [await planned(days) for days in (3, 1, 2)]
    newer, newest = await ended(), await ended()
    shown = [booking["id"] for booking in (await feed(market))["bookings"]]
    assert shown == [newest, newer, second, first, at_once], "the two newest, and of the open ones the three soonest"
    assert third not in shown
