"""Two days from end to end: a provider's good one, and an operator's bad one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from domain.providers import ProviderStatus
from tests.domain.marketplace import CENTRE, START, Firm, Marketplace, north_of, refused

TOMORROW = START + timedelta(days=1)
HOURS = {
    "rrule": "FREQ=WEEKLY;BYDAY=MO,TU,WE,TH,FR",
    "tzid": "UTC",
    "dtstart": "2026-01-01T08:00",
    "duration_minutes": 540,
}
WORK = {"service_id": "plumbing", "zone_id": "camden"}
AWAY = {"status": ProviderStatus.AWAY, "chosen_status": ProviderStatus.AWAY}


async def held(market: Marketplace, customer: Any, hour: float) -> str:
    """A customer looks at tomorrow's free times, takes one and books it; the booking's id."""
    start = (TOMORROW.replace(hour=0) + timedelta(hours=hour)).isoformat()
    question = {"from": TOMORROW.isoformat(), "to": (TOMORROW + timedelta(hours=9)).isoformat()}
    free = {slot["start"] for slot in (await market.call(customer, "availability.slots", **WORK, **question))["slots"]}
    assert start.replace("+00:00", ".000Z") in free
    hold = (await market.call(customer, "slot.hold", **WORK, start=start))["hold"]
    wish = {"service_id": "plumbing", "kind": "scheduled", "location": CENTRE.view(), "hold_id": hold["id"]}
    made = await market.call(customer, "booking.create", **wish)
    assert made["booking"]["status"] == "scheduled"
    return str(made["booking"]["id"])


async def arrive(market: Marketplace, firm: Firm, booking_id: str) -> None:
    """Drives to the door, minute by minute, and is there."""
    await market.step(firm.person, booking_id, "en_route")
    for metres in (1_600, 800, 100):
        place = north_of(CENTRE, metres)
        await market.call(firm.person, "location.publish", **place.view(), fix_at=market.clock.now().isoformat())
        await market.advance(60)
    assert (await market.booking(booking_id)).status == "arrived", "the door is near enough"


async def test_a_providers_day(market: Marketplace) -> None:
    firm, first, second = await market.firm(), await market.customer(), await market.customer()
    theirs = {"provider_id": firm.provider_id}
    await market.call(
        firm.person, "availability.set_rules", **theirs, rules=[HOURS], travel_buffer_minutes=30, version=0
    )
    lunch = {"start": TOMORROW.replace(hour=12).isoformat(), "end": TOMORROW.replace(hour=13).isoformat()}
    await market.call(firm.person, "availability.add_exception", **theirs, kind="closed", note="lunch", **lunch)

    late, early = await held(market, first, 14), await held(market, second, 9.5)
    week = await market.call(
        firm.person, "availability.get", **theirs, **{"from": TOMORROW.isoformat(), "to": lunch["end"]}
    )
    assert [booking["id"] for booking in week["bookings"]] == [early]
    taken = await market.call(
        first, "availability.slots", **WORK, **{"from": TOMORROW.isoformat(), "to": lunch["start"]}
    )
    assert all("T09:00" not in slot["start"] and "T10:30" not in slot["start"] for slot in taken["slots"])
    route = await market.call(firm.person, "route.plan", **theirs, day=TOMORROW.isoformat())
    assert [visit["booking_id"] for visit in route["visits"]] == [early, late]

    await market.advance((TOMORROW - market.clock.now()).total_seconds() + 25 * 60)
    await arrive(market, firm, early)
    await market.walk(firm.person, early, "in_progress", "paused", "in_progress", "completed")
    await market.advance((TOMORROW.replace(hour=13, minute=50) - market.clock.now()).total_seconds())
    await arrive(market, firm, late)
    await market.walk(firm.person, late, "in_progress", "completed")

    for booking_id in (early, late):
        clocks = (await market.booking(booking_id)).sla.clocks
        assert {name.value: clock.status.value for name, clock in clocks.items()} == dict.fromkeys(
            ("response", "arrival", "completion"), "met"
        )
    assert await market.events("sla.breached", "booking.stalled", "booking.rescue_needed") == []


async def test_an_operators_bad_day(market: Marketplace) -> None:
    operator, customer = await market.operator(), await market.customer()
    # A zone without providers: nobody can be asked, so operations are.
    slow, quick = await market.firms(2, **AWAY, position=north_of(CENTRE, 5_000))
    booking_id = await market.book(customer)
    await market.advance(605)
    (call,) = await market.events("booking.rescue_needed")
    assert (call.data["booking_id"], "admin:bookings" in call.channels) == (booking_id, True)
    (late,) = await market.events("sla.breached")
    assert late.data["booking_id"] == booking_id, "nobody answered"
    command = {"booking_id": booking_id, "provider_id": slow.provider_id}
    await market.call(operator, "booking.assign", **command)

    # The driver sets out, stands still, and is replaced.
    await market.step(slow.person, booking_id, "en_route")
    await market.advance(180)
    (stalled,) = await market.events("booking.stalled")
    offered = stalled.data["reassign"]
    await market.call(operator, offered["method"], **offered["params"])
    assert await refused(market.step(slow.person, booking_id, "arrived")) == "not_found"
    await market.call(quick.person, "presence.set", status="online")
    await market.run_timers()
    await market.accept(quick, booking_id)

    # At the door nobody opens.
    await arrive(market, quick, booking_id)
    assert await refused(market.step(quick.person, booking_id, "no_show")) == "too_early"
    await market.advance(600)
    await market.step(quick.person, booking_id, "no_show")
    (ended,) = await market.events("booking.no_show_recorded")
    assert ended.data["booking"]["provider_id"] == quick.provider_id
    at_risk = await market.call(operator, "sla.at_risk", zone_id="camden")
    assert at_risk["risks"] == [], "nothing is left to watch"
    assert await market.timer_names() == set()
