"""SLA clocks: started and ended by a booking's steps, warned at 80 %, breached exactly once."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from domain import sla
from domain.identity import Actor
from domain.sla import ClockStatus
from domain.types import JSON, Point, wire_time
from tests.domain.marketplace import START, Firm, Marketplace, refused

MINUTE = 60


async def clocks(market: Marketplace, booking_id: str) -> dict[str, str]:
    """The status of each clock by its name, as the booking's people see it."""
    operator = await market.operator()
    shown: JSON = (await market.call(operator, "booking.get", booking_id=booking_id))["booking"]["sla"]
    return {name: clock["status"] for name, clock in shown.items() if name != "version"}


async def told(market: Marketplace, booking_id: str) -> list[tuple[str, str]]:
    """What was told of the booking's clocks, in order."""
    events = await market.events("sla.warned", "sla.breached", "sla.met")
    return [(event.data["clock"], event.type) for event in events if event.data["booking_id"] == booking_id]


async def people(market: Marketplace) -> tuple[Actor, Firm]:
    return await market.customer(), await market.firm()


# --- arithmetic -------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(["wait", "rest"]), st.floats(0.1, 400)), max_size=12))
def test_rests_do_not_count_and_a_clock_is_breached_once_its_own_time_is_over(steps: list[tuple[str, float]]) -> None:
    clock, now, used = sla.start(START, START + timedelta(seconds=1000)), START, timedelta()
    for kind, seconds in steps:
        before, length = clock, timedelta(seconds=seconds)
        clock = sla.pause(clock, now) if kind == "rest" else clock
        now += length
        used += length if kind == "wait" else timedelta()
        clock = sla.tick(sla.resume(clock, now), now)
        assert clock == before or before.status is not ClockStatus.BREACHED, "a breached clock never changes"
    seconds = used.total_seconds()
    expected = "breached" if seconds >= 1000 else "warned" if seconds >= 800 else "running"
    assert clock.status == expected


# --- the steps of a booking -------------------------------------------------------------------------------------------


async def test_job_done_in_time_meets_each_clock_and_tells_it_on_the_bookings_channel(market: Marketplace) -> None:
    customer, firm = await people(market)
    booking_id = await market.book(customer)
    assert await clocks(market, booking_id) == {"response": "running"}
    await market.accept(firm, booking_id)
    assert await clocks(market, booking_id) == {"response": "met", "arrival": "running"}
    await market.walk(firm.person, booking_id, "en_route", "arrived", "in_progress")
    assert await clocks(market, booking_id) == {"response": "met", "arrival": "met", "completion": "running"}
    await market.step(firm.person, booking_id, "completed")
    met = [(name, "sla.met") for name in ("response", "arrival", "completion")]
    assert await told(market, booking_id) == met
    assert {channel for event in await market.events("sla.met") for channel in event.channels} == {
        f"booking:{booking_id}"
    }
    assert not {name for name in await market.timer_names() if name.startswith("sla:")}


async def test_clock_is_warned_at_80_percent_then_breached_and_operations_hear_both(market: Marketplace) -> None:
    booking_id = await market.book(await market.customer())
    version = (await market.booking(booking_id)).version
    await market.advance(239)
    assert await told(market, booking_id) == []
    await market.advance(1)
    assert await told(market, booking_id) == [("response", "sla.warned")]
    await market.advance(59)
    assert await clocks(market, booking_id) == {"response": "warned"}
    await market.advance(1)
    assert await told(market, booking_id) == [("response", "sla.warned"), ("response", "sla.breached")]
    for event in await market.events("sla.warned", "sla.breached"):
        assert event.channels == {f"booking:{booking_id}", "admin:bookings"}
    sla_versions = [event.data["sla"]["version"] for event in await market.events("sla.warned", "sla.breached")]
    assert sla_versions == sorted(set(sla_versions)), "each change has a version of its own"
    assert (await market.booking(booking_id)).version == version, "nobody's next step runs into a conflict"


async def test_nodes_that_were_down_past_the_deadline_breach_once(market: Marketplace) -> None:
    booking_id = await market.book(await market.customer())
    # Nobody looks at a timer for an hour; then two nodes start at once.
    market.clock.advance(3600)
    await asyncio.gather(market.run_timers(), market.run_timers())
    assert await told(market, booking_id) == [("response", "sla.breached")]
    await market.advance(3600)
    assert await told(market, booking_id) == [("response", "sla.breached")]


async def test_step_after_the_deadline_finds_the_breach_before_the_timer_does(market: Marketplace) -> None:
    customer, firm = await people(market)
    booking_id = await market.job(customer, firm)
    market.clock.advance(2 * 3600)
    await market.walk(firm.person, booking_id, "en_route", "arrived")
    await market.advance(60)
    assert await told(market, booking_id) == [("response", "sla.met"), ("arrival", "sla.breached")]


async def test_completion_rests_while_work_is_paused_and_the_deadline_moves_along(market: Marketplace) -> None:
    customer, firm = await people(market)
    booking_id = await market.job(customer, firm, "en_route", "arrived", "in_progress")
    await market.advance(60 * MINUTE)  # of 90
    await market.step(firm.person, booking_id, "paused")
    shown = (await market.call(customer, "booking.get", booking_id=booking_id))["booking"]["sla"]["completion"]
    assert shown == {"status": "paused", "remaining_seconds": 30 * MINUTE}
    await market.advance(5 * 3600)
    assert ("completion", "sla.breached") not in await told(market, booking_id)
    await market.step(firm.person, booking_id, "in_progress")
    shown = (await market.call(customer, "booking.get", booking_id=booking_id))["booking"]["sla"]["completion"]
    assert shown == {"status": "running", "due_at": wire_time(market.clock.now() + timedelta(minutes=30))}
    await market.advance(12 * MINUTE)
    assert (await told(market, booking_id))[-1] == ("completion", "sla.warned")
    await market.advance(18 * MINUTE)
    assert (await told(market, booking_id))[-1] == ("completion", "sla.breached")


async def test_dispute_pauses_and_its_end_resumes_or_meets(market: Marketplace) -> None:
    customer, firm = await people(market)
    operator = await market.operator()
    booking_id = await market.job(customer, firm, "en_route", "arrived", "in_progress")
    await market.step(customer, booking_id, "disputed", reason="wrong tap")
    assert (await clocks(market, booking_id))["completion"] == "paused"
    await market.advance(24 * 3600)
    await market.step(operator, booking_id, "in_progress")
    assert (await clocks(market, booking_id))["completion"] == "running"
    await market.step(customer, booking_id, "disputed", reason="still the wrong tap")
    await market.step(operator, booking_id, "completed")
    assert (await clocks(market, booking_id))["completion"] == "met"


async def test_cancelling_cancels_what_runs_and_nothing_fires_later(market: Marketplace) -> None:
    customer, firm = await people(market)
    booking_id = await market.job(customer, firm)
    await market.call(customer, "booking.cancel", booking_id=booking_id, reason="never mind")
    assert await clocks(market, booking_id) == {"response": "met", "arrival": "cancelled"}
    await market.advance(24 * 3600)
    assert await told(market, booking_id) == [("response", "sla.met")]


async def test_reassignment_starts_the_response_clock_anew(market: Marketplace) -> None:
    customer, firm = await people(market)
    booking_id = await market.job(customer, firm)
    await market.advance(10 * MINUTE)
    await market.step(firm.person, booking_id, "awaiting_assignment")
    assert await clocks(market, booking_id) == {"response": "running"}
    await market.advance(299)
    assert ("response", "sla.breached") not in await told(market, booking_id)
    await market.advance(1)
    assert (await told(market, booking_id))[-1] == ("response", "sla.breached")


async def test_scheduled_work_has_a_quarter_of_an_hour_from_the_agreed_start(market: Marketplace) -> None:
    customer, firm = await people(market)
    booking_id = await market.book_slot(customer, in_hours=24)
    await market.accept(firm, booking_id)
    shown = (await market.call(customer, "booking.get", booking_id=booking_id))["booking"]["sla"]["arrival"]
    assert shown["due_at"] == wire_time(START + timedelta(hours=24, minutes=15))
    later = (START + timedelta(hours=30)).isoformat()
    version = (await market.booking(booking_id)).version
    await market.call(customer, "booking.reschedule", booking_id=booking_id, version=version, start=later)
    await market.advance(29 * 3600)
    assert ("arrival", "sla.breached") not in await told(market, booking_id)
    await market.advance(3600 + 15 * MINUTE)
    assert (await told(market, booking_id))[-1] == ("arrival", "sla.breached")


# --- operations -------------------------------------------------------------------------------------------------------


async def test_at_risk_lists_the_soonest_deadline_first_and_only_of_the_zone(market: Marketplace) -> None:
    customer, operator = await market.customer(), await market.operator()
    await market.zone("isle", centre=Point(10, 10))
    late = await market.book(customer)
    await market.advance(100)
    soon = await market.book(customer, location={"lat": 10.0, "lon": 10.0})
    await market.advance(150)
    risks = (await market.call(operator, "sla.at_risk"))["risks"]
    assert [(risk["booking"]["id"], risk["status"], risk["remaining_seconds"]) for risk in risks] == [
        (late, "warned", 50),
        (soon, "running", 150),
    ]
    in_zone = (await market.call(operator, "sla.at_risk", zone_id="isle"))["risks"]
    assert [risk["booking"]["id"] for risk in in_zone] == [soon]
    assert len((await market.call(operator, "sla.at_risk", limit=1))["risks"]) == 1
    assert await refused(market.call(operator, "sla.at_risk", zone_id="nowhere")) == "not_found"
    await market.advance(50)
    assert [risk["booking"]["id"] for risk in (await market.call(operator, "sla.at_risk"))["risks"]] == [soon]


async def test_closest_policy_wins_field_by_field_and_existing_bookings_keep_theirs(market: Marketplace) -> None:
    customer, operator = await market.customer(), await market.operator()
    here = {"service_id": "plumbing", "zone_id": "camden"}
    effective = await market.call(operator, "sla.get_policy", **here)
    assert effective == {
        "targets": {
            "response_seconds": 300.0,
            "arrival_seconds": 3600.0,
            "grace_seconds": 900.0,
            "completion_seconds": 5400.0,
        },
        "policies": [],
    }
    old = await market.book(customer)
    await market.call(operator, "sla.set_policy", response_seconds=600, arrival_seconds=1000)
    await market.call(operator, "sla.set_policy", zone_id="camden", response_seconds=500)
    await market.call(operator, "sla.set_policy", **here, completion_seconds=7200)
    again = await market.call(operator, "sla.set_policy", **here, completion_seconds=8000)
    assert again["policy"] == here | {"completion_seconds": 8000, "version": 2}
    effective = await market.call(operator, "sla.get_policy", **here)
    assert effective["targets"] == {
        "response_seconds": 500.0,
        "arrival_seconds": 1000.0,
        "grace_seconds": 900.0,
        "completion_seconds": 8000.0,
    }
    assert [policy.get("service_id") for policy in effective["policies"]] == ["plumbing", None, None]
    assert len((await market.call(operator, "sla.list_policies"))["policies"]) == 3
    new = await market.book(customer)
    seconds = {}
    for booking_id in (old, new):
        booking = await market.booking(booking_id)
        seconds[booking_id] = (booking.sla.clocks[sla.ClockName.RESPONSE].due_at - START).total_seconds()
    assert seconds == {old: 300, new: 500}


async def test_policy_for_what_is_not_there_is_refused(market: Marketplace) -> None:
    operator = await market.operator()
    for where in ("service_id", "zone_id"):
        assert await refused(market.call(operator, "sla.set_policy", **{where: "none"})) == "invalid_params"
    assert await refused(market.call(operator, "sla.set_policy", response_seconds=0)) == "invalid_params"


async def test_warning_is_told_once_however_often_the_work_rests(market: Marketplace) -> None:
    customer, firm = await people(market)
    booking_id = await market.job(customer, firm, "en_route", "arrived", "in_progress")
    targets = (await market.booking(booking_id)).sla.targets
    assert targets is not None
    await market.advance(targets.completion * 0.85)
    for _ in range(2):
        await market.step(firm.person, booking_id, "paused")
        await market.advance(10)
        await market.step(firm.person, booking_id, "in_progress")
        await market.advance(10)
    assert (await told(market, booking_id)).count(("completion", "sla.warned")) == 1
    await market.step(firm.person, booking_id, "completed")
    assert (await told(market, booking_id))[-1] == ("completion", "sla.met")
