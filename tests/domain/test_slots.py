"""Free times: what calendars leave, holds on it, and bookings made of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pytest

from domain import calendars, slots
from domain.errors import TooManyHolds
from domain.identity import Actor
from domain.providers import Provider
from domain.types import JSON, wire_time
from persistence import tables
from persistence.repositories.market import SqlMarket
from tests.domain.marketplace import CENTRE, START, Firm, Marketplace, refusal, refused

TOMORROW = START.replace(hour=0) + timedelta(days=1)
"""2026-11-25, a Wednesday; London is on UTC then."""

NINE_TO_TWELVE: JSON = {
    "rrule": "FREQ=WEEKLY;BYDAY=MO,TU,WE,TH,FR",
    "tzid": "Europe/London",
    "dtstart": "2026-01-05T09:00",
    "duration_minutes": 180,
}


def at(hours: float) -> datetime:
    return TOMORROW + timedelta(hours=hours)


async def plan(market: Marketplace, firm: Firm, *rules: JSON, buffer: int = 0) -> JSON:
    version = (await week(market, firm))["calendar"]["version"]
    params = {"rules": list(rules), "travel_buffer_minutes": buffer, "version": version}
    made = await market.call(firm.person, "availability.set_rules", provider_id=firm.provider_id, **params)
    calendar: JSON = made["calendar"]
    return calendar


async def planned_firm(market: Marketplace, buffer: int = 0, **traits: Any) -> Firm:
    """A firm that works from nine to twelve on weekdays."""
    firm = await market.firm(**traits)
    await plan(market, firm, NINE_TO_TWELVE, buffer=buffer)
    return firm


async def week(market: Marketplace, firm: Firm, **params: Any) -> JSON:
    return await market.call(firm.person, "availability.get", provider_id=firm.provider_id, **params)


async def starts(market: Marketplace, person: Actor, first: float = 0, last: float = 24, **params: Any) -> list[float]:
    """When an hour of plumbing may start, in hours after tomorrow's midnight."""
    wanted = {"service_id": "plumbing", "zone_id": "camden", "from": at(first).isoformat(), "to": at(last).isoformat()}
    answer = await market.call(person, "availability.slots", **wanted | params)
    return [(datetime.fromisoformat(slot["start"]) - TOMORROW) / timedelta(hours=1) for slot in answer["slots"]]


async def hold(market: Marketplace, person: Actor, hours: float, **params: Any) -> JSON:
    wanted = {"service_id": "plumbing", "zone_id": "camden", "start": at(hours).isoformat()}
    held: JSON = (await market.call(person, "slot.hold", **wanted | params))["hold"]
    return held


async def book_hold(market: Marketplace, person: Actor, held: JSON, **params: Any) -> JSON:
    wanted = {"service_id": "plumbing", "kind": "scheduled", "location": CENTRE.view(), "hold_id": held["id"]}
    booking: JSON = (await market.call(person, "booking.create", **wanted | params))["booking"]
    return booking


async def test_slots_are_what_rules_and_exceptions_leave(market: Marketplace) -> None:
    firm, customer = await planned_firm(market), await market.customer()
    assert await starts(market, customer) == [9, 9.5, 10, 10.5, 11]
    assert await starts(market, customer, 9.2, 10.6) == [9.5, 10, 10.5], "the steps do not depend on the question"
    assert await starts(market, customer, 72, 96) == [], "a Saturday"
    exception = {"provider_id": firm.provider_id, "kind": "closed"}
    closed = await market.call(
        firm.person, "availability.add_exception", **exception, start=at(10).isoformat(), end=at(10.5).isoformat()
    )
    assert await starts(market, customer) == [9, 10.5, 11]
    exception["kind"] = "open"
    await market.call(
        firm.person, "availability.add_exception", **exception, start=at(14).isoformat(), end=at(15).isoformat()
    )
    assert await starts(market, customer) == [9, 10.5, 11, 14]
    await market.call(firm.person, "availability.remove_exception", exception_id=closed["exception"]["id"])
    assert await starts(market, customer) == [9, 9.5, 10, 10.5, 11, 14]


async def test_slots_name_everybody_who_is_free_and_come_in_bounded_portions(market: Marketplace) -> None:
    good, better = await planned_firm(market, rating=3.0), await planned_firm(market, rating=4.0)
    await planned_firm(market, verified=False)
    await market.firm()  # without a calendar
    customer = await market.customer()
    question = {"service_id": "plumbing", "zone_id": "camden", "from": at(0).isoformat(), "to": at(24).isoformat()}
    answer = await market.call(customer, "availability.slots", **question, limit=2)
    assert [slot["provider_ids"] for slot in answer["slots"]] == [[better.provider_id, good.provider_id]] * 2
    assert answer["next_from"] == wire_time(at(10))
    more = await market.call(customer, "availability.slots", **question | {"from": answer["next_from"]})
    assert [slot["start"] for slot in more["slots"]] == [wire_time(at(hour)) for hour in (10, 10.5, 11)]
    assert "next_from" not in more
    only = await market.call(customer, "availability.slots", **question, provider_id=good.provider_id)
    assert {tuple(slot["provider_ids"]) for slot in only["slots"]} == {(good.provider_id,)}
    too_long = question | {"to": at(32 * 24).isoformat()}
    assert await refused(market.call(customer, "availability.slots", **too_long)) == "invalid_params"


async def test_a_provider_at_work_is_not_free_soon_as_it_could_not_be_held(market: Marketplace) -> None:
    today = START.replace(hour=0)
    firm, customer = await market.firm(), await market.customer()
    all_day = {"rrule": "FREQ=DAILY", "tzid": "UTC", "dtstart": "2026-01-05T00:00", "duration_minutes": 24 * 60}
    await plan(market, firm, all_day)
    question = {"service_id": "plumbing", "zone_id": "camden"}
    soon = question | {"from": START.isoformat(), "to": (START + timedelta(hours=2)).isoformat()}
    later = question | {"from": (START + timedelta(hours=2)).isoformat(), "to": (today + timedelta(days=1)).isoformat()}
    assert (await market.call(customer, "availability.slots", **soon))["slots"]
    await market.accept(firm, await market.book(customer))
    assert (await market.call(customer, "availability.slots", **soon))["slots"] == []
    assert (await market.call(customer, "availability.slots", **later))["slots"]


async def test_jobs_holds_and_the_way_between_them_are_not_free(market: Marketplace) -> None:
    firm, customer = await planned_firm(market, buffer=30), await market.customer()
    job = await market.book_slot(customer, (at(9) - START) / timedelta(hours=1))
    await market.accept(firm, job)
    assert await starts(market, customer) == [10.5, 11]
    held = await hold(market, customer, 10.5)
    assert await starts(market, customer) == []
    await market.call(customer, "slot.release", hold_id=held["id"])
    assert await starts(market, customer) == [10.5, 11]
    await market.call(customer, "booking.cancel", booking_id=job, reason="no")
    assert await starts(market, customer) == [9, 9.5, 10, 10.5, 11]


async def test_provider_with_all_the_jobs_it_may_have_has_no_slots_that_day(market: Marketplace) -> None:
    await planned_firm(market, max_daily_jobs=1)
    customer = await market.customer()
    await book_hold(market, customer, await hold(market, customer, 9))
    assert await starts(market, customer) == []
    assert await starts(market, customer, 24, 48) == [33, 33.5, 34, 34.5, 35]
    assert await refused(hold(market, customer, 11)) == "slot_closed"
    await hold(market, customer, 33)


async def test_held_time_is_booked_with_its_provider_at_once(market: Marketplace) -> None:
    firm, customer = await planned_firm(market), await market.customer()
    held = await hold(market, customer, 9)
    heard = await market.newest_event()
    booking = await book_hold(market, customer, held)
    assert (booking["status"], booking["provider_id"]) == ("scheduled", firm.provider_id)
    assert (booking["start"], booking["end"]) == (wire_time(at(9)), wire_time(at(10)))
    told = [event for event in await market.events(after=heard) if not event.type.startswith("sla.")]
    assert [event.type for event in told] == [
        "booking.created",
        "booking.dispatch_started",
        "booking.assigned",
        "slot.booked",
        "availability.changed",
    ]
    assert told[3].channels == {"availability:plumbing:camden"}
    assert "customer" not in str(told[3].data)
    assert told[4].channels == {f"provider:{firm.provider_id}"}
    assert await market.count(tables.slot_holds) == 0
    kinds = {name.partition(":")[0] for name in await market.timer_names()}
    assert not kinds & {"dispatch", "hold"}
    assert await refused(book_hold(market, customer, held)) == "hold_expired"
    assert (await market.provider(firm)).jobs_taken == 1


async def test_hold_runs_out_after_five_minutes_and_the_time_is_free_again(market: Marketplace) -> None:
    await planned_firm(market)
    customer, other = await market.customer(), await market.customer()
    held = await hold(market, customer, 9)
    assert held["expires_at"] == wire_time(START + timedelta(minutes=5))
    assert await refused(hold(market, other, 9.5)) == "slot_taken"
    market.clock.advance(300)
    assert await refused(book_hold(market, customer, held)) == "hold_expired", "whether the timer has run or not"
    assert await hold(market, other, 9.5)
    assert await market.run_timers() == [f"hold:{held['id']}"]
    opened = (await market.events("slot.opened"))[-1]
    assert (opened.data["start"], opened.event.event_class) == (wire_time(at(9)), "latest")
    assert await refused(market.call(customer, "slot.release", hold_id=held["id"])) == "not_found"


async def test_hold_of_somebody_else_is_not_there(market: Marketplace) -> None:
    await planned_firm(market)
    customer, other = await market.customer(), await market.customer()
    held = await hold(market, customer, 9)
    assert await refused(book_hold(market, other, held)) == "hold_expired"
    assert await refused(market.call(other, "slot.release", hold_id=held["id"])) == "not_found"


async def test_hold_is_for_what_it_was_asked_for(market: Marketplace) -> None:
    await planned_firm(market)
    customer = await market.customer()
    held = await hold(market, customer, 9)
    for params in ({"start": at(10).isoformat()}, {"end": at(11).isoformat()}):
        error = await refusal(book_hold(market, customer, held, **params))
        assert error.details["errors"][0]["where"] in {"hold_id", "end"}
    assert await refused(book_hold(market, customer, held, kind="on_demand")) == "invalid_params"
    assert await book_hold(market, customer, held, start=at(9).isoformat(), end=at(10).isoformat())


async def test_hold_takes_the_best_that_is_free_and_refuses_what_nobody_has(market: Marketplace) -> None:
    good, better = await planned_firm(market, rating=3.0), await planned_firm(market, rating=4.0)
    customer = await market.customer()
    assert (await hold(market, customer, 9))["provider_id"] == better.provider_id
    assert (await hold(market, customer, 9))["provider_id"] == good.provider_id
    assert await refused(hold(market, customer, 9)) == "slot_taken"
    assert await refused(hold(market, customer, 11.5)) == "slot_closed"
    assert (await hold(market, customer, 10, provider_id=good.provider_id))["provider_id"] == good.provider_id
    assert await refused(hold(market, customer, 11)) == "too_many_holds"
    unplanned = await market.firm()
    somebody = await market.customer()
    assert await refused(hold(market, somebody, 9, provider_id=unplanned.provider_id)) == "slot_taken"


async def test_scheduled_work_is_offered_only_to_those_whose_calendar_is_free(market: Marketplace) -> None:
    planned, unplanned = await planned_firm(market, rating=5.0), await market.firm(rating=1.0)
    customer = await market.customer()
    hours = (at(0) - START) / timedelta(hours=1)
    assert await market.asked(await market.book_slot(customer, hours + 15)) == {unplanned.provider_id}
    assert await market.asked(await market.book_slot(customer, hours + 9)) == {planned.provider_id}
    await hold(market, customer, 11)
    assert await market.asked(await market.book_slot(customer, hours + 10.5)) == {unplanned.provider_id}
    # Work on demand asks who is online, whatever the plan says.
    assert await market.asked(await market.book(customer)) == {planned.provider_id}


async def test_nobody_accepts_a_time_that_is_held(market: Marketplace) -> None:
    firm = await planned_firm(market)
    customer, other, operator = await market.customer(), await market.customer(), await market.operator()
    booking_id = await market.book_slot(customer, (at(9) - START) / timedelta(hours=1))
    held = await hold(market, other, 9.5)
    assert await refused(market.accept(firm, booking_id)) == "slot_taken"
    forced = market.call(operator, "booking.assign", booking_id=booking_id, provider_id=firm.provider_id)
    assert await refused(forced) == "slot_taken"
    await market.call(other, "slot.release", hold_id=held["id"])
    await market.accept(firm, booking_id)
    assert await refused(hold(market, other, 9.5)) == "slot_taken"


async def test_customer_moves_work_within_the_plan_and_the_provider_wherever_it_likes(market: Marketplace) -> None:
    firm, customer = await planned_firm(market), await market.customer()
    booking = await book_hold(market, customer, await hold(market, customer, 9))
    params = {"booking_id": booking["id"], "version": booking["version"], "start": at(14).isoformat()}
    assert await refused(market.call(customer, "booking.reschedule", **params)) == "slot_closed"
    heard = await market.newest_event()
    await market.call(firm.person, "booking.reschedule", **params)
    told = [
        (event.type, event.data["start"]) for event in await market.events("slot.opened", "slot.booked", after=heard)
    ]
    assert told == [("slot.opened", wire_time(at(9))), ("slot.booked", wire_time(at(14)))]


async def test_week_shows_rules_exceptions_holds_and_jobs(market: Marketplace) -> None:
    firm, customer = await planned_firm(market, buffer=15), await market.customer()
    booking = await book_hold(market, customer, await hold(market, customer, 9))
    held = await hold(market, customer, 10.5)
    note = {"kind": "closed", "note": "dentist", "start": at(33).isoformat(), "end": at(34).isoformat()}
    await market.call(firm.person, "availability.add_exception", provider_id=firm.provider_id, **note)
    shown = await week(market, firm, **{"from": at(0).isoformat(), "to": at(48).isoformat()})
    assert shown["calendar"]["rules"] == [NINE_TO_TWELVE | {"dtstart": "2026-01-05T09:00:00"}]
    assert (shown["calendar"]["travel_buffer_minutes"], shown["calendar"]["version"]) == (15, 2)
    assert [time["start"] for time in shown["openings"]] == [wire_time(at(9)), wire_time(at(34))]
    assert [each["note"] for each in shown["exceptions"]] == ["dentist"]
    assert [each["id"] for each in shown["holds"]] == [held["id"]]
    assert [each["id"] for each in shown["bookings"]] == [booking["id"]]
    assert (await week(market, await market.firm()))["calendar"]["version"] == 0


async def test_calendar_that_somebody_else_changed_is_a_conflict(market: Marketplace) -> None:
    firm = await planned_firm(market)
    params = {"provider_id": firm.provider_id, "rules": [], "version": 0}
    error = await refusal(market.call(firm.person, "availability.set_rules", **params))
    assert (error.type, error.details["version"]) == ("conflict", 1)
    changed = (await market.events("availability.changed"))[-1]
    assert (changed.data["reason"], changed.data["calendar_version"]) == ("rules_changed", 1)
    assert changed.channels == {f"provider:{firm.provider_id}"}


async def test_rules_that_are_none_are_refused_where_they_are(market: Marketplace) -> None:
    firm = await market.firm()
    for change, where in (({"rrule": "FREQ=SECONDLY"}, "rules.1.rrule"), ({"tzid": "Mars/Olympus"}, "rules.1.tzid")):
        error = await refusal(plan(market, firm, NINE_TO_TWELVE, NINE_TO_TWELVE | change))
        assert error.details["errors"][0]["where"] == where
    error = await refusal(plan(market, firm, NINE_TO_TWELVE | {"dtstart": "2026-01-05T09:00Z"}))
    assert error.details["errors"][0]["where"] == "rules.0.dtstart"


async def test_provider_that_takes_its_rules_back_is_asked_as_before(market: Marketplace) -> None:
    firm, customer = await planned_firm(market), await market.customer()
    await plan(market, firm)
    assert await starts(market, customer) == []
    booking_id = await market.book_slot(customer, (at(20) - START) / timedelta(hours=1))
    assert await market.asked(booking_id) == {firm.provider_id}


async def test_holds_that_a_customer_asks_for_at_once_are_counted_one_after_the_other(market: Marketplace) -> None:
    firms, customer = [await planned_firm(market) for _ in range(6)], await market.customer()
    await market.warm()
    answers = await asyncio.gather(
        *(hold(market, customer, 9, provider_id=firm.provider_id) for firm in firms), return_exceptions=True
    )
    assert Counter(type(each) for each in answers) == {dict: 3, TooManyHolds: 3}
    assert await market.count(tables.slot_holds) == 3


ALL_DAY: JSON = {"rrule": "FREQ=DAILY", "tzid": "UTC", "dtstart": "2026-01-05T00:00", "duration_minutes": 24 * 60}


async def test_held_time_counts_among_the_jobs_of_its_day(market: Marketplace) -> None:
    await planned_firm(market, max_daily_jobs=1)
    customer, other = await market.customer(), await market.customer()
    held = await hold(market, customer, 9)
    assert await starts(market, other) == []
    for person in (customer, other):
        assert await refused(hold(market, person, 11)) == "slot_closed"
    await hold(market, other, 33)
    assert await book_hold(market, customer, held), "one's own hold is not in the way"


async def test_work_on_demand_counts_among_the_jobs_of_the_day_it_was_taken(market: Marketplace) -> None:
    firm, customer = await market.firm(max_daily_jobs=1), await market.customer()
    await plan(market, firm, ALL_DAY)
    assert await starts(market, customer, -12, 0)
    job = await market.job(customer, firm, "en_route", "arrived", "in_progress", "completed")
    assert (await market.booking(job)).slot is None
    assert await starts(market, customer, -12, 0) == []
    assert await refused(hold(market, customer, -5)) == "slot_closed"
    assert await hold(market, customer, 5)


async def test_provider_that_is_named_is_found_however_many_are_better(
    market: Marketplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    await planned_firm(market, rating=5.0)
    low, customer = await planned_firm(market, rating=1.0), await market.customer()
    monkeypatch.setattr(slots, "MOST_PROVIDERS", 1)
    assert await starts(market, customer, provider_id=low.provider_id) == [9, 9.5, 10, 10.5, 11]
    assert (await hold(market, customer, 9, provider_id=low.provider_id))["provider_id"] == low.provider_id


async def test_search_ends_with_what_was_asked_for_and_lets_others_have_their_turn(
    market: Marketplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        await planned_firm(market)
    customer = await market.customer()
    turns, seen = 0, []

    def counted(*args: Any) -> list[datetime]:
        seen.append(turns)
        return calendars.free_starts(*args)

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(slots, "free_starts", counted)
    waiting = asyncio.create_task(others())
    try:
        month = {"last": 24 * 31, "limit": 500}
        whole = await starts(market, customer, **month)
        assert len(set(seen)) == len(seen), "a turn of the loop before each provider"
        searched = len(seen)
        assert await starts(market, customer, **month | {"limit": 4}) == whole[:4]
    finally:
        waiting.cancel()
    assert len(seen) - searched == 3, "one day of three calendars had enough"
    weekdays = [day for day in range(31) if (TOMORROW + timedelta(days=day)).weekday() < 5]
    assert whole == [24 * day + hour for day in weekdays for hour in (9, 9.5, 10, 10.5, 11)]


async def test_providers_are_locked_in_the_order_of_their_ids_and_chosen_by_rating(
    market: Marketplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    firms = [await planned_firm(market, rating=rating) for rating in (1.0, 3.0, 2.0)]
    customer = await market.customer()
    asked: list[str] = []
    lock = SqlMarket.lock_provider

    async def noted(market: SqlMarket, provider_id: str) -> Provider | None:
        asked.append(provider_id)
        return await lock(market, provider_id)

    monkeypatch.setattr(SqlMarket, "lock_provider", noted)
    assert (await hold(market, customer, 9))["provider_id"] == firms[1].provider_id
    assert asked == sorted(firm.provider_id for firm in firms)
