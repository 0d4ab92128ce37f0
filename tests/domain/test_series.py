"""Series: instances weeks ahead, each once; another rule for one, the rest or all; what cannot be booked is said."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from domain.bookings import Booking, Status
from domain.context import Context
from domain.errors import Conflict, Forbidden, IllegalTransition
from domain.identity import Actor
from domain.series import make_instances
from domain.series_shapes import TooManySeries
from domain.types import JSON, wire_time
from persistence import tables
from tests.domain.marketplace import CENTRE, START, Firm, Marketplace, refusal, refused
from tests.domain.test_slots import book_hold, plan

TUESDAYS: JSON = {
    "rrule": "FREQ=WEEKLY;BYDAY=TU",
    "tzid": "America/New_York",
    "dtstart": "2026-12-01T10:00",
    "duration_minutes": 60,
}
"""From a week after the beginning on, at 15:00 UTC."""

ALL_DAY: JSON = {"rrule": "FREQ=DAILY", "tzid": "UTC", "dtstart": "2026-01-01T00:00", "duration_minutes": 1440}
DAY = 86_400.0


async def begin(market: Marketplace, customer: Actor, recurrence: JSON = TUESDAYS, **params: Any) -> JSON:
    wanted = {"service_id": "plumbing", "location": CENTRE.view(), "recurrence": recurrence} | params
    made: JSON = (await market.call(customer, "series.create", **wanted))["series"]
    await settle(market)
    return made


async def settle(market: Marketplace) -> None:
    """Lets the background make what there is to make."""
    await market.advance(1)


async def shown(market: Marketplace, customer: Actor, series_id: str) -> JSON:
    return await market.call(customer, "series.get", series_id=series_id)


async def edit(market: Marketplace, customer: Actor, series_id: str, scope: str, **params: Any) -> JSON:
    version = (await shown(market, customer, series_id))["series"]["version"]
    edited = await market.call(customer, "series.edit", series_id=series_id, scope=scope, version=version, **params)
    await settle(market)
    return edited


async def booked(market: Marketplace, *statuses: str) -> list[Booking]:
    """Bookings that are not cancelled, or of these statuses, in the order of their times."""
    rows = await market.rows(tables.bookings.select().order_by(tables.bookings.c.start))
    found = [await market.booking(row.id) for row in rows]
    return [each for each in found if (each.status in statuses if statuses else each.status is not Status.CANCELLED)]


def times(bookings: list[Booking]) -> list[datetime]:
    return [each.slot.start for each in bookings if each.slot]


def tuesday(weeks: int, hour: int = 15) -> datetime:
    return datetime(2026, 12, 1, hour, tzinfo=UTC) + timedelta(weeks=weeks)


async def planned_firm(market: Marketplace) -> Firm:
    firm = await market.firm(max_daily_jobs=100)
    await plan(market, firm, ALL_DAY)
    return firm


async def test_instances_are_made_sixty_days_ahead_and_the_next_ones_when_they_come_near(market: Marketplace) -> None:
    firm, customer = await planned_firm(market), await market.customer()
    series = await begin(market, customer, provider_id=firm.provider_id, notes="the back door")
    jobs = await booked(market)
    assert times(jobs) == [tuesday(week) for week in range(8)], "the ninth is more than sixty days away"
    assert {(job.status, job.provider_id, job.notes) for job in jobs} == {
        ("scheduled", firm.provider_id, "the back door")
    }
    answer = await shown(market, customer, series["id"])
    assert [each["recurrence_id"] for each in answer["instances"]] == [wire_time(tuesday(week)) for week in range(8)]
    assert [each["booking_id"] for each in answer["instances"]] == [job.id for job in jobs]
    assert f"series:{series['id']}" in await market.timer_names()
    await market.advance(4 * DAY)
    assert len(await booked(market)) == 9
    await market.advance(7 * DAY)
    assert times(await booked(market))[-1] == tuesday(9)


async def test_instances_without_a_provider_look_for_one_each(market: Marketplace) -> None:
    firm, customer = await planned_firm(market), await market.customer()
    await begin(market, customer, TUESDAYS | {"rrule": "FREQ=DAILY;COUNT=2", "dtstart": "2026-11-25T10:00"})
    jobs = await booked(market, "awaiting_assignment")
    assert [await market.asked(job.id) for job in jobs] == [{firm.provider_id}] * 2
    ended = (await market.events("series.ended"))[-1]
    assert (ended.data["series"]["status"], ended.channels) == ("ended", {f"user:{customer.user_id}"})


async def test_instances_without_a_provider_look_for_one_three_days_before(market: Marketplace) -> None:
    firm, customer = await planned_firm(market), await market.customer()
    daily = TUESDAYS | {"rrule": "FREQ=DAILY", "dtstart": "2026-11-24T10:00"}
    series = await begin(market, customer, daily)
    statuses = Counter(job.status for job in await booked(market))
    assert statuses == {"awaiting_assignment": 3, "pending": 57}
    listed = (await market.call(customer, "booking.list", limit=100))["bookings"]
    assert Counter(each["status"] for each in listed) == statuses
    await market.advance(95)
    provider = await market.provider(firm)
    assert (provider.status, provider.misses_in_a_row) == ("online", 1), "three offers at one moment are one miss"
    ahead = await booked(market, "pending")
    assert ahead[0].slot is not None
    begins = ahead[0].slot.start - timedelta(days=3)
    assert ahead[0].sla.clocks == {}
    await market.advance((begins - market.clock.now()).total_seconds() - 1)
    assert await market.asked(ahead[0].id) == set()
    await market.advance(2)
    assert (await market.booking(ahead[0].id)).status == "awaiting_assignment"
    assert await market.asked(ahead[0].id) == {firm.provider_id}
    moved_job, forced, *_ = ahead[1:]
    soon = (market.clock.now() + timedelta(days=1)).isoformat()
    await market.call(customer, "booking.reschedule", booking_id=moved_job.id, version=moved_job.version, start=soon)
    await market.run_timers()
    assert await market.asked(moved_job.id) == {firm.provider_id}, "near now, it is searched for at once"
    operator = await market.operator()
    await market.call(operator, "booking.assign", booking_id=forced.id, provider_id=firm.provider_id)
    await market.call(customer, "series.cancel", series_id=series["id"], scope="all")
    assert {job.status for job in await booked(market)} <= {"unfulfilled"}
    assert not [name for name in await market.timer_names() if name.startswith(("dispatch:", "series:"))]


async def test_a_held_time_is_the_first_of_a_series_or_there_is_none(market: Marketplace) -> None:
    firm, customer = await planned_firm(market), await market.customer()
    wanted = {"service_id": "plumbing", "location": CENTRE.view(), "recurrence": TUESDAYS}
    held = await hold_time(market, customer, tuesday(0))
    made = await market.call(customer, "series.create", **wanted, hold_id=held["id"])
    assert made["series"]["provider_id"] == firm.provider_id
    (first,) = made["instances"]
    assert (first["recurrence_id"], first["status"]) == (wire_time(tuesday(0)), "booked")
    (job,) = await booked(market)
    assert (job.id, job.status, job.provider_id) == (first["booking_id"], "scheduled", firm.provider_id)
    assert [event.data["booking_id"] for event in await market.events("series.instance_created")] == [job.id]
    assert await market.count(tables.slot_holds) == 0
    await settle(market)
    assert times(await booked(market)) == [tuesday(week) for week in range(8)], "the first is not made twice"
    assert await refused(market.call(customer, "series.create", **wanted, hold_id=held["id"])) == "hold_expired"
    assert await market.count(tables.series) == 1


async def test_a_hold_of_something_else_begins_no_series(market: Marketplace) -> None:
    firm, other, customer = await planned_firm(market), await planned_firm(market), await market.customer()
    wanted = {"service_id": "plumbing", "location": CENTRE.view(), "recurrence": TUESDAYS}
    held = await hold_time(market, customer, tuesday(1), provider_id=firm.provider_id)
    params = wanted | {"hold_id": held["id"]}
    error = await refusal(market.call(customer, "series.create", **params))
    assert error.details["errors"][0]["where"] == "hold_id", "it is the second time of the rule"
    later = params | {"recurrence": TUESDAYS | {"dtstart": "2026-12-08T10:00"}}
    error = await refusal(market.call(customer, "series.create", **later, provider_id=other.provider_id))
    assert error.details["errors"][0]["where"] == "provider_id"
    await market.service("gardening")
    error = await refusal(market.call(customer, "series.create", **later | {"service_id": "gardening"}))
    assert error.details["errors"][0]["where"] == "hold_id"
    longer = TUESDAYS | {"dtstart": "2026-12-08T10:00", "duration_minutes": 90}
    assert await refused(market.call(customer, "series.create", **params | {"recurrence": longer})) == "invalid_params"
    stranger = await market.customer()
    assert await refused(market.call(stranger, "series.create", **later)) == "hold_expired"
    assert await market.count(tables.series) == 0
    assert await market.call(customer, "series.create", **later, provider_id=firm.provider_id)


async def hold_time(market: Marketplace, customer: Actor, start: datetime, **params: Any) -> JSON:
    wanted = {"service_id": "plumbing", "zone_id": "camden", "start": start.isoformat()}
    held: JSON = (await market.call(customer, "slot.hold", **wanted | params))["hold"]
    return held


async def test_workers_at_once_and_again_make_each_instance_once(market: Marketplace) -> None:
    firm, customer = await planned_firm(market), await market.customer()
    wanted = {"service_id": "plumbing", "location": CENTRE.view(), "recurrence": TUESDAYS}
    made = await market.call(customer, "series.create", **wanted, provider_id=firm.provider_id)
    data = {"series_id": made["series"]["id"]}

    async def worker() -> None:
        """A node that believes the timer is its own, as one does that was thought dead."""
        for _ in range(3):

            async def step(ctx: Context) -> None:
                await make_instances(ctx, data)

            await market.as_system(step)

    await market.warm()
    await asyncio.gather(*(worker() for _ in range(4)), market.run_timers())
    await settle(market)
    assert times(await booked(market)) == [tuesday(week) for week in range(8)]
    assert len(await market.events("series.instance_created")) == 8
    assert await market.count(tables.series_instances) == 8


async def test_instance_whose_provider_is_not_free_is_skipped_and_said(market: Marketplace) -> None:
    firm, customer = await planned_firm(market), await market.customer()
    closed = {"kind": "closed", "start": tuesday(1, 0).isoformat(), "end": tuesday(1, 23).isoformat()}
    await market.call(firm.person, "availability.add_exception", provider_id=firm.provider_id, **closed)
    job = await market.book_slot(customer, (tuesday(2) - START) / timedelta(hours=1))
    await market.accept(firm, job)
    series = await begin(market, customer, provider_id=firm.provider_id)
    skipped = {
        event.data["recurrence_id"]: event.data["reason"] for event in await market.events("series.instance_skipped")
    }
    assert skipped == {wire_time(tuesday(1)): "slot_closed", wire_time(tuesday(2)): "slot_taken"}
    statuses = Counter(each["status"] for each in (await shown(market, customer, series["id"]))["instances"])
    assert statuses == {"booked": 6, "skipped": 2}


async def hold(market: Marketplace, customer: Actor, start: datetime) -> JSON:
    wanted = {"service_id": "plumbing", "zone_id": "camden", "start": start.isoformat()}
    held: JSON = (await market.call(customer, "slot.hold", **wanted))["hold"]
    return held


async def test_instance_whose_time_is_held_waits_for_what_becomes_of_the_hold(market: Marketplace) -> None:
    firm, customer, other = await planned_firm(market), await market.customer(), await market.customer()
    given_up, kept = await hold(market, other, tuesday(1)), await hold(market, other, tuesday(2))
    series = await begin(market, customer, TUESDAYS | {"rrule": "FREQ=WEEKLY;COUNT=8"}, provider_id=firm.provider_id)
    assert times(await booked(market)) == [tuesday(week) for week in (0, 3, 4, 5, 6, 7)], "more than a batch"
    assert await market.events("series.instance_skipped") == []
    assert await market.events("series.ended") == []
    await book_hold(market, other, kept)
    await market.advance(300)
    assert (await refused(book_hold(market, other, given_up))) == "hold_expired"
    answer = await shown(market, customer, series["id"])
    assert [each["status"] for each in answer["instances"]] == ["booked", "booked", "skipped"] + ["booked"] * 5
    told = await market.events("series.instance_skipped")
    assert [(event.data["recurrence_id"], event.data["reason"]) for event in told] == [
        (wire_time(tuesday(2)), "slot_taken")
    ]
    assert len(await market.events("series.ended")) == 1


async def test_instance_too_soon_to_wait_for_a_hold_is_skipped_and_said(market: Marketplace) -> None:
    firm, customer, other = await planned_firm(market), await market.customer(), await market.customer()
    await market.advance((tuesday(0) - START).total_seconds() - 120)
    await hold(market, other, tuesday(0))
    await begin(market, customer, TUESDAYS | {"rrule": "FREQ=WEEKLY;COUNT=1"}, provider_id=firm.provider_id)
    assert [event.data["reason"] for event in await market.events("series.instance_skipped")] == ["slot_taken"]


@pytest.mark.parametrize("has_calendar", [True, False])
async def test_instance_on_a_day_that_is_full_is_skipped_and_said(market: Marketplace, has_calendar: bool) -> None:
    firm, customer = await market.firm(max_daily_jobs=1), await market.customer()
    if has_calendar:
        await plan(market, firm, ALL_DAY)
    job = await market.book_slot(customer, (tuesday(1, 20) - START) / timedelta(hours=1))
    await market.accept(firm, job)
    await begin(market, customer, provider_id=firm.provider_id)
    told = await market.events("series.instance_skipped")
    assert {event.data["recurrence_id"]: event.data["reason"] for event in told} == {
        wire_time(tuesday(1)): "slot_closed"
    }
    assert len(await booked(market)) == 8


async def test_one_instance_moves_and_the_others_stay(market: Marketplace) -> None:
    firm, customer = await planned_firm(market), await market.customer()
    series = await begin(market, customer, provider_id=firm.provider_id)
    this = {"recurrence_id": tuesday(1).isoformat(), "start": tuesday(1, 17).isoformat()}
    answer = await edit(market, customer, series["id"], "this", **this)
    assert times(await booked(market))[:3] == [tuesday(0), tuesday(1, 17), tuesday(2)]
    moved = answer["instances"][1]
    assert (moved["recurrence_id"], moved["reason"]) == (wire_time(tuesday(1)), "moved")
    await market.advance(5 * DAY)
    assert len(await booked(market)) == 9, "the moved one is not made again"


async def test_one_instance_is_called_off_for_good(market: Marketplace) -> None:
    firm, customer = await planned_firm(market), await market.customer()
    series = await begin(market, customer, provider_id=firm.provider_id)
    far = tuesday(9)
    for recurrence_id in (tuesday(1), far):
        params = {"scope": "this", "recurrence_id": recurrence_id.isoformat()}
        await market.call(customer, "series.cancel", series_id=series["id"], **params)
    assert times(await booked(market, "cancelled")) == [tuesday(1)]
    await edit(market, customer, series["id"], "all", recurrence=TUESDAYS)
    await market.advance(20 * DAY)
    assert not {tuesday(1), far} & set(times(await booked(market)))
    assert tuesday(10) in times(await booked(market))


async def test_new_rule_for_all_keeps_what_fits_and_replaces_the_rest(market: Marketplace) -> None:
    firm, customer = await planned_firm(market), await market.customer()
    series = await begin(market, customer, provider_id=firm.provider_id)
    before = {job.id for job in await booked(market)}
    every_other = TUESDAYS | {"rrule": "FREQ=WEEKLY;INTERVAL=2;BYDAY=TU,TH"}
    await edit(market, customer, series["id"], "all", recurrence=every_other)
    jobs = await booked(market)
    thursdays = [each for each in jobs if each.slot and each.slot.start.weekday() == 3]
    assert times(jobs)[:3] == [tuesday(0), tuesday(0) + timedelta(days=2), tuesday(2)]
    assert {job.id for job in jobs} & before == {job.id for job in jobs if job not in thursdays}
    assert len(await booked(market, "cancelled")) == 4


async def test_rest_of_a_series_becomes_a_series_of_its_own(market: Marketplace) -> None:
    firm, customer = await planned_firm(market), await market.customer()
    series = await begin(market, customer, provider_id=firm.provider_id)
    later = TUESDAYS | {"dtstart": "2026-12-22T12:00"}
    answer = await edit(
        market, customer, series["id"], "future", recurrence_id=tuesday(3).isoformat(), recurrence=later
    )
    assert answer["series"]["follows"] == series["id"]
    assert times(await booked(market))[:5] == [tuesday(0), tuesday(1), tuesday(2), tuesday(3, 17), tuesday(4, 17)]
    old = await shown(market, customer, series["id"])
    assert (old["series"]["ends_before"], len(old["instances"])) == (wire_time(tuesday(3)), 3)
    assert old["series"]["status"] == "active"
    await market.advance(5 * DAY)
    assert (await shown(market, customer, series["id"]))["series"]["status"] == "ended"
    listed = (await market.call(customer, "series.list"))["series"]
    assert [each["id"] for each in listed] == [answer["series"]["id"], series["id"]]


@pytest.mark.parametrize("act", ["edit", "cancel"])
async def test_series_that_ends_is_not_ended_again_at_a_later_time(market: Marketplace, act: str) -> None:
    firm, customer = await planned_firm(market), await market.customer()
    series = await begin(market, customer, provider_id=firm.provider_id)
    end = {"series_id": series["id"], "scope": "future"}
    await market.call(customer, "series.cancel", **end, recurrence_id=tuesday(2).isoformat())
    for week in (2, 5):
        past = end | {"recurrence_id": tuesday(week).isoformat()}
        if act == "edit":
            past |= {"version": 2, "recurrence": TUESDAYS}
        error = await refusal(market.call(customer, f"series.{act}", **past))
        assert error.details["errors"] == [{"where": "recurrence_id", "why": "there is no such occurrence"}]
    this = {"series_id": series["id"], "scope": "this", "recurrence_id": tuesday(4).isoformat()}
    assert await refused(market.call(customer, "series.cancel", **this)) == "invalid_params"
    await market.call(customer, "series.cancel", **end, recurrence_id=tuesday(1).isoformat())
    await market.advance(5 * DAY)
    assert times(await booked(market)) == [tuesday(0)], "what was called off is not booked again"


async def test_parts_of_a_series_that_is_parted_twice_do_not_overlap(market: Marketplace) -> None:
    firm, customer = await planned_firm(market), await market.customer()
    series = await begin(market, customer, provider_id=firm.provider_id)
    for week, hour in ((5, 12), (3, 14)):
        rest = {
            "recurrence_id": tuesday(week).isoformat(),
            "recurrence": TUESDAYS | {"dtstart": f"2026-12-01T{hour}:00"},
        }
        await edit(market, customer, series["id"], "future", **rest)
    await market.advance(5 * DAY)
    hours = [15, 15, 15, 19, 19, 17, 17, 17, 17]
    assert times(await booked(market)) == [tuesday(week, hour) for week, hour in enumerate(hours)]
    rest = {"recurrence_id": tuesday(2).isoformat(), "recurrence": TUESDAYS | {"dtstart": "2027-01-05T12:00"}}
    error = await refusal(edit(market, customer, series["id"], "future", **rest))
    assert error.details["errors"][0]["where"] == "recurrence.dtstart"


@pytest.mark.parametrize("hour", [9, 12])
async def test_rest_of_a_series_begins_on_its_day_whatever_its_rule_says_of_earlier_ones(
    market: Marketplace, hour: int
) -> None:
    firm, customer = await planned_firm(market), await market.customer()
    series = await begin(market, customer, provider_id=firm.provider_id)
    rule = TUESDAYS | {"rrule": "FREQ=WEEKLY;COUNT=7", "dtstart": f"2026-12-01T{hour:02}:00"}
    rest = {"recurrence_id": tuesday(3).isoformat(), "recurrence": rule}
    answer = await edit(market, customer, series["id"], "future", **rest)
    assert answer["series"]["recurrence"] == rule | {
        "rrule": "FREQ=WEEKLY;COUNT=4",
        "dtstart": f"2026-12-22T{hour:02}:00:00",
    }
    parted = [tuesday(week) for week in range(3)] + [tuesday(week, hour + 5) for week in range(3, 7)]
    assert times(await booked(market)) == parted


@pytest.mark.parametrize(("scope", "left"), [("future", 3), ("all", 0)])
async def test_rest_of_a_series_is_called_off_and_no_more_is_made(market: Marketplace, scope: str, left: int) -> None:
    firm, customer = await planned_firm(market), await market.customer()
    series = await begin(market, customer, provider_id=firm.provider_id)
    since = {"recurrence_id": tuesday(3).isoformat()} if scope == "future" else {}
    await market.call(customer, "series.cancel", series_id=series["id"], scope=scope, **since)
    await market.advance(30 * DAY)
    assert len(await booked(market)) == left
    if scope == "all":
        assert await refused(edit(market, customer, series["id"], "all", recurrence=TUESDAYS)) == "series_cancelled"
        assert (await market.events("series.cancelled"))[-1].data["series"]["status"] == "cancelled"


async def test_work_that_has_begun_is_not_touched(market: Marketplace) -> None:
    firm, customer = await planned_firm(market), await market.customer()
    series = await begin(market, customer, provider_id=firm.provider_id)
    first = (await booked(market))[0]
    await market.step(firm.person, first.id, "en_route")
    await market.call(customer, "series.cancel", series_id=series["id"], scope="all")
    assert [job.id for job in await booked(market)] == [first.id]


@pytest.mark.parametrize("act", ["cancel", "edit"])
async def test_instance_moved_to_a_later_day_is_part_of_all(market: Marketplace, act: str) -> None:
    firm, customer = await planned_firm(market), await market.customer()
    series = await begin(market, customer, provider_id=firm.provider_id)
    this = {"recurrence_id": tuesday(0).isoformat(), "start": tuesday(1, 20).isoformat()}
    await edit(market, customer, series["id"], "this", **this)
    await market.advance((tuesday(0) - market.clock.now()).total_seconds() + 3600)
    if act == "cancel":
        await market.call(customer, "series.cancel", series_id=series["id"], scope="all")
        assert await booked(market) == []
    else:
        await edit(market, customer, series["id"], "all", recurrence=TUESDAYS)
        assert tuesday(1, 20) in times(await booked(market)), "its recurrence id is in the rule"
        await edit(market, customer, series["id"], "all", recurrence=TUESDAYS | {"dtstart": "2026-12-08T12:00"})
        assert times(await booked(market))[:2] == [tuesday(1, 17), tuesday(2, 17)]


async def test_calling_a_series_off_and_giving_its_jobs_back_do_not_wait_for_each_other(market: Marketplace) -> None:
    assert [await _call_off_and_give_back(market) for _ in range(3)] == [0, 0, 0]


async def _call_off_and_give_back(market: Marketplace) -> int:
    """How many transactions had to be tried again."""
    firm, customer = await planned_firm(market), await market.customer()
    series = await begin(market, customer, TUESDAYS | {"rrule": "FREQ=DAILY"}, provider_id=firm.provider_id)
    jobs = [job.id for job in await booked(market)]
    await market.warm()
    market.database.retries.clear()

    async def give_back(job_ids: list[str]) -> None:
        for job_id in job_ids:
            try:
                await market.step(firm.person, job_id, "awaiting_assignment", reason="ill")
            except (Conflict, Forbidden, IllegalTransition):
                return

    cancelled = market.call(customer, "series.cancel", series_id=series["id"], scope="all")
    await asyncio.gather(cancelled, *(give_back(jobs[first::-2]) for first in (-1, -2)))
    assert await booked(market) == []
    return market.database.retries.total()


async def test_series_of_somebody_who_is_out_rests(market: Marketplace) -> None:
    firm, customer = await planned_firm(market), await market.customer()
    await market.write(lambda uow: uow.people.disable(customer.user_id, START))
    await begin(market, customer, provider_id=firm.provider_id)
    assert await booked(market) == []
    await market.write(lambda uow: uow.people.disable(customer.user_id, None))
    await market.advance(DAY)
    assert len(await booked(market)) == 8


async def test_series_that_go_on_are_counted_one_after_the_other_and_when_one_is_parted_or_goes_on_again(
    market: Marketplace,
) -> None:
    market = Marketplace(market.database, replace(market.policy, series_per_customer=2))
    customer = await market.customer()
    over = await begin(market, customer, TUESDAYS | {"rrule": "FREQ=WEEKLY;COUNT=1"})
    wanted = {"service_id": "plumbing", "location": CENTRE.view(), "recurrence": TUESDAYS}
    await market.warm()
    answers = await asyncio.gather(
        *(market.call(customer, "series.create", **wanted) for _ in range(6)), return_exceptions=True
    )
    assert Counter(type(each) for each in answers) == {dict: 2, TooManySeries: 4}
    (made,) = [each["series"]["id"] for each in answers if isinstance(each, dict)][:1]
    rest = {"recurrence_id": tuesday(3).isoformat(), "recurrence": TUESDAYS}
    assert await refused(edit(market, customer, made, "future", **rest)) == "too_many_series"
    assert await refused(edit(market, customer, over["id"], "all", recurrence=TUESDAYS)) == "too_many_series"
    await edit(market, customer, made, "all", recurrence=TUESDAYS)


@pytest.mark.parametrize("scope", ["this", "future"])
async def test_occurrence_in_the_far_future_is_refused(market: Marketplace, scope: str) -> None:
    customer = await market.customer()
    series = await begin(market, customer, TUESDAYS | {"rrule": "FREQ=DAILY", "tzid": "UTC"})
    far = {"series_id": series["id"], "scope": scope, "recurrence_id": "2199-12-30T10:00:00Z"}
    error = await refusal(market.call(customer, "series.cancel", **far))
    assert error.details["errors"] == [{"where": "recurrence_id", "why": "at most 366 days ahead"}]


async def test_edits_that_make_no_sense_are_refused(market: Marketplace) -> None:
    customer = await market.customer()
    series = await begin(market, customer)
    for params, where in (
        ({"scope": "this", "recurrence_id": tuesday(1).isoformat()}, "start"),
        ({"scope": "this", "start": tuesday(1, 17).isoformat()}, "recurrence_id"),
        ({"scope": "future", "recurrence_id": tuesday(1, 16).isoformat(), "recurrence": TUESDAYS}, "recurrence_id"),
        ({"scope": "all"}, "recurrence"),
        ({"scope": "all", "recurrence": TUESDAYS | {"rrule": "FREQ=HOURLY"}}, "recurrence.rrule"),
        (
            {"scope": "all", "recurrence": TUESDAYS | {"rrule": "FREQ=DAILY;COUNT=1", "dtstart": "2026-01-01T00:00"}},
            "recurrence.rrule",
        ),
    ):
        error = await refusal(market.call(customer, "series.edit", series_id=series["id"], version=1, **params))
        assert error.details["errors"][0]["where"] == where
    stale = market.call(customer, "series.edit", series_id=series["id"], version=7, scope="all", recurrence=TUESDAYS)
    assert await refused(stale) == "conflict"
    wanted = {"service_id": "plumbing", "location": CENTRE.view(), "recurrence": TUESDAYS, "provider_id": "nobody"}
    error = await refusal(market.call(customer, "series.create", **wanted))
    assert error.details["errors"][0]["where"] == "provider_id"


async def test_local_time_stays_through_a_clock_change(market: Marketplace) -> None:
    customer = await market.customer()
    nine = TUESDAYS | {"tzid": "Europe/London", "dtstart": "2027-03-16T09:00"}
    await begin(market, customer, nine)
    assert await booked(market) == [], "all of it is too far away"
    await market.advance(77 * DAY)
    made = [f"{each:%m-%d %H}" for each in times(await booked(market, "pending"))]
    assert made == ["03-16 09", "03-23 09", "03-30 08", "04-06 08"]
