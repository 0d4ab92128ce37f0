"""Moving scheduled work to another time."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import pytest

from domain.errors import FixnadoError
from domain.identity import Actor
from domain.types import JSON, wire_time
from tests.domain.marketplace import START, Firm, Marketplace, refusal, refused


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


async def move(market: Marketplace, actor: Actor, booking_id: str, hours: float, end: float | None = None) -> JSON:
    """Moves the booking so that it starts so many hours after the beginning."""
    params = {"start": at(hours).isoformat()} | ({"end": at(end).isoformat()} if end is not None else {})
    version = (await market.booking(booking_id)).version
    result = await market.call(actor, "booking.reschedule", booking_id=booking_id, version=version, **params)
    booking: JSON = result["booking"]
    return booking


async def planned(market: Marketplace, in_hours: float = 24, hours: float = 1.5) -> tuple[Actor, Firm, str]:
    customer, firm = await market.customer(), await market.firm()
    booking_id = await market.book_slot(customer, in_hours, hours)
    await market.accept(firm, booking_id)
    return customer, firm, booking_id


async def test_confirmed_work_moves_keeps_its_length_and_its_provider(market: Marketplace) -> None:
    customer, firm, booking_id = await planned(market)
    version, heard = (await market.booking(booking_id)).version, await market.newest_event()
    moved = await move(market, customer, booking_id, 30)
    assert (moved["start"], moved["end"]) == (wire_time(at(30)), wire_time(at(31.5)))
    assert (moved["version"], moved["status"], moved["provider_id"]) == (version + 1, "scheduled", firm.provider_id)
    (told,) = await market.events(after=heard)
    assert (told.type, told.data["from"], told.data["booking"]) == ("booking.rescheduled", "scheduled", moved)
    assert f"organisation:{firm.organisation_id}" in told.channels
    moved = await move(market, firm.person, booking_id, 40, 40.5)
    assert (moved["start"], moved["end"]) == (wire_time(at(40)), wire_time(at(40.5)))


async def test_moving_to_where_it_is_tells_nobody(market: Marketplace) -> None:
    customer, _, booking_id = await planned(market)
    before, heard = await market.booking(booking_id), await market.newest_event()
    await move(market, customer, booking_id, 24)
    assert await market.booking(booking_id) == before
    assert await market.events(after=heard) == []


async def test_slot_that_the_provider_has_given_away_is_taken(market: Marketplace) -> None:
    customer, firm, booking_id = await planned(market)
    other = await market.book_slot(customer, 30)
    await market.accept(firm, other)
    for hours in (29, 30, 30.9):
        assert await refused(move(market, customer, booking_id, hours)) == "slot_taken"
    await move(market, customer, booking_id, 31)
    await move(market, customer, booking_id, 31.5)  # into its own old time


async def test_moving_and_accepting_at_once_never_overlap(market: Marketplace) -> None:
    customer, firm, booking_id = await planned(market)
    other = await market.book_slot(customer, 30)
    attempts = [move(market, customer, booking_id, 30), market.accept(firm, other)]
    await market.warm()
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    refusals = [outcome.type for outcome in outcomes if isinstance(outcome, FixnadoError)]
    assert refusals == ["slot_taken"]
    assert len(outcomes) == 2


@pytest.mark.parametrize(
    ("hours", "end", "where"),
    [(-1, None, "start"), (0, None, "start"), (30, 30, "end"), (30, 29, "end"), (1, 170, "end")],
)
async def test_time_that_makes_no_sense_is_refused(
    market: Marketplace, hours: float, end: float | None, where: str
) -> None:
    customer, _, booking_id = await planned(market)
    error = await refusal(move(market, customer, booking_id, hours, end))
    assert (error.type, error.details["errors"][0]["where"]) == ("invalid_params", where)
    wanted = {
        "kind": "scheduled",
        "start": at(hours).isoformat(),
        "end": at(hours + 1 if end is None else end).isoformat(),
    }
    error = await refusal(market.book(customer, **wanted))
    assert (error.type, error.details["errors"][0]["where"]) == ("invalid_params", where)


async def test_scheduled_work_needs_a_start_and_work_on_demand_takes_none(market: Marketplace) -> None:
    customer = await market.customer()
    assert await refused(market.book(customer, kind="scheduled")) == "invalid_params"
    assert await refused(market.book(customer, start=at(3).isoformat())) == "invalid_params"
    booking_id = await market.book(customer, kind="scheduled", start=at(3).isoformat())
    slot = (await market.booking(booking_id)).slot
    assert slot is not None
    assert (slot.start, slot.end) == (at(3), at(4)), "as long as such work usually takes"


@pytest.mark.parametrize("status", ["en_route", "arrived", "in_progress", "completed", "cancelled", "unfulfilled"])
async def test_work_that_has_begun_or_ended_stays_where_it_is(market: Marketplace, status: str) -> None:
    customer, _, booking_id = await planned(market)
    await market.put(booking_id, status)
    assert await refused(move(market, customer, booking_id, 30)) == "illegal_transition"


async def test_work_on_demand_has_no_time_to_move(market: Marketplace) -> None:
    customer = await market.customer()
    booking_id = await market.book(customer)
    assert await refused(move(market, customer, booking_id, 30)) == "illegal_transition"


async def test_stale_version_is_a_conflict(market: Marketplace) -> None:
    customer, _, booking_id = await planned(market)
    params = {"booking_id": booking_id, "version": 1, "start": at(30).isoformat()}
    assert await refused(market.call(customer, "booking.reschedule", **params)) == "conflict"


async def test_another_time_is_another_search_also_after_operations_were_called(market: Marketplace) -> None:
    customer = await market.customer()
    booking_id = await market.book_slot(customer)
    await market.advance(market.policy.dispatch_limit_seconds + 60)
    assert f"rescue:{booking_id}" in await market.timer_names()
    firm = await market.firm()
    await move(market, customer, booking_id, 48)
    assert f"rescue:{booking_id}" not in await market.timer_names()
    await market.advance(1)
    assert await market.asked(booking_id, wave=1) == {firm.provider_id}
    await market.advance(market.policy.rescue_seconds)
    assert (await market.booking(booking_id)).status == "awaiting_assignment"
