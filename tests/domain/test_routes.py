"""The order of a day's jobs: as little lateness as possible, then as little driving; and how a plan explains itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select

from domain import routing, snapshots
from domain.geography import GreatCircleEta
from domain.providers import Service
from domain.routing import Plan, Stop
from domain.types import Point
from persistence import tables
from persistence.repositories import SqlUnitOfWork
from persistence.repositories.market import SqlMarket
from tests.domain.marketplace import CENTRE, START, Marketplace, north_of, refused

ETA = GreatCircleEta()

places = st.builds(Point, st.floats(51.4, 51.6), st.floats(-0.3, 0.1))
stops = st.lists(
    st.builds(
        lambda place, opens, window: (place, opens, window),
        places,
        st.integers(0, 8 * 3600),
        st.one_of(st.none(), st.integers(0, 3600)),
    ),
    min_size=1,
    max_size=6,
).map(
    lambda rows: [
        Stop(
            str(number),
            place,
            START + timedelta(seconds=opens),
            None if window is None else START + timedelta(seconds=opens + window),
            1800,
        )
        for number, (place, opens, window) in enumerate(rows)
    ]
)


def cost(order: Any) -> tuple[int, int]:
    return Plan(routing.visits(order, CENTRE, START, ETA), "given").cost


@given(stops)
@settings(max_examples=60, deadline=None)
def test_exact_plan_is_as_good_as_the_best_of_all_orders(jobs: list[Stop]) -> None:
    plan = routing.plan(CENTRE, START, jobs, ETA)
    assert plan.method == "exact"
    assert plan.cost == min(cost(order) for order in permutations(jobs))
    assert sorted(visit.stop.id for visit in plan.visits) == sorted(stop.id for stop in jobs)


def test_improved_plan_visits_every_stop_and_is_no_worse_than_by_deadline() -> None:
    jobs = [
        Stop(str(n), north_of(CENTRE, (n * 7919) % 9000), START, START + timedelta(hours=(n * 5) % 9 + 1), 600)
        for n in range(routing.MOST_STOPS)
    ]
    plan = routing.plan(CENTRE, START, jobs, ETA)
    assert plan.method == "improved"
    assert {visit.stop.id for visit in plan.visits} == {stop.id for stop in jobs}
    assert plan.cost < cost(sorted(jobs, key=lambda stop: stop.closes or START))


def test_pinned_stop_stays_first_although_it_is_a_detour() -> None:
    near = Stop("near", north_of(CENTRE, 100), START, None, 60)
    far = Stop("far", north_of(CENTRE, 9000), START, None, 60, pinned=True)
    assert [visit.stop.id for visit in routing.plan(CENTRE, START, [far, near], ETA).visits] == ["far", "near"]


async def test_days_jobs_are_put_in_order_with_the_reasons(market: Marketplace) -> None:
    customer, firm = await market.customer(), await market.firm()
    later = await market.book_slot(customer, in_hours=4, location=north_of(CENTRE, 4000).view())
    await market.accept(firm, later)
    sooner = await market.book_slot(customer, in_hours=2)
    await market.accept(firm, sooner)
    tomorrow = await market.book_slot(customer, in_hours=30)
    await market.accept(firm, tomorrow)
    plan = await market.call(firm.person, "route.plan")
    assert [visit["booking_id"] for visit in plan["visits"]] == [sooner, later]
    first, second = plan["visits"]
    assert (first["wait_seconds"], first["why"]) == (2 * 3600, "0 min of driving, 120 min before the agreed time")
    assert second["travel_seconds"] == pytest.approx(4000 * 1.3 / (25 / 3.6), abs=2)
    assert (plan["method"], plan["totals"]["late_seconds"]) == ("exact", 0)
    operator = await market.operator()
    other_day = await market.call(operator, "route.plan", provider_id=firm.provider_id, day="2026-11-25T12:00:00Z")
    assert [visit["booking_id"] for visit in other_day["visits"]] == [tomorrow]
    assert await refused(market.call(firm.person, "route.plan", day="2026-11-25")) == "invalid_params"


async def test_day_is_the_providers_own_also_when_clocks_change(market: Marketplace) -> None:
    market.clock.moment = datetime(2026, 10, 24, 9, 0, tzinfo=UTC)
    customer, firm = await market.customer(), await market.firm()
    # In London clocks go back on the 25th, so it lasts from 23:00 UTC of the day before to the end of the day in UTC.
    before, first, last, after = [
        await market.book_slot(customer, in_hours=hours, hours=0.5) for hours in (13.5, 14.5, 38.5, 39.5)
    ]
    for job in (before, first, last, after):
        await market.accept(firm, job)

    async def planned(day: str) -> list[str]:
        plan = await market.call(firm.person, "route.plan", day=day)
        assert plan["day"] == "2026-10-25"
        return [visit["booking_id"] for visit in plan["visits"]]

    assert await planned("2026-10-25T12:00:00Z") == [last], "without rules a day is one in UTC"
    hours = {"rrule": "FREQ=DAILY", "tzid": "Europe/London", "dtstart": "2026-01-05T08:00", "duration_minutes": 540}
    await market.call(
        firm.person,
        "availability.set_rules",
        provider_id=firm.provider_id,
        rules=[hours],
        travel_buffer_minutes=0,
        version=0,
    )
    for moment in ("2026-10-24T23:00:00Z", "2026-10-25T12:00:00Z", "2026-10-25T23:59:59Z"):
        assert await planned(moment) == [first, last]


async def test_job_under_way_is_first_and_its_remaining_work_counts(market: Marketplace) -> None:
    customer, firm = await market.customer(), await market.firm()
    slot = await market.book_slot(customer, in_hours=3)
    await market.accept(firm, slot)
    job = await market.job(customer, firm, "en_route", "arrived", "in_progress")
    market.clock.advance(600)
    plan = await market.call(firm.person, "route.plan")
    assert [(visit["booking_id"], visit["pinned"]) for visit in plan["visits"]] == [(job, True), (slot, False)]
    assert plan["visits"][0]["leave_at"] == "2026-11-24T10:00:00.000Z"


async def test_todays_job_is_on_the_route_and_in_the_snapshot_however_many_were_agreed_before(
    market: Marketplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer, firm = await market.customer(), await market.firm(max_daily_jobs=1000)
    far = await market.book_slot(customer, in_hours=240)
    await market.give(far, firm, "scheduled")
    bookings = tables.bookings
    (row,) = await market.rows(select(bookings).where(bookings.c.id == far))
    rows = [row._asdict() | {"id": f"{far[:-4]}{number:04d}"} for number in range(100)]

    async def agreed_before(uow: SqlUnitOfWork) -> None:
        await uow.connection.execute(insert(bookings), rows)

    await market.write(agreed_before)
    today, now = await market.book_slot(customer, in_hours=5), await market.book(customer)
    await market.give(today, firm, "scheduled")
    await market.give(now, firm, "en_route")

    async def one_by_one(market: SqlMarket, service_id: str) -> Service | None:
        raise AssertionError("services are read once for all")

    monkeypatch.setattr(SqlMarket, "service", one_by_one)
    plan = await market.call(firm.person, "route.plan")
    assert ([visit["booking_id"] for visit in plan["visits"]], plan["left_out"]) == ([now, today], [])
    state = await market.as_system(lambda ctx: snapshots.of_provider(ctx, firm.provider_id))
    assert state is not None
    assert [job["id"] for job in state["bookings"]][:2] == [now, today]
    assert len(state["bookings"]) == 100
