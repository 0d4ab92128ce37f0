"""Two confirmed jobs of one provider never overlap, however they came about and whoever was quicker."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable
from datetime import timedelta
from itertools import combinations
from typing import Any

from sqlalchemy import select

from domain.bookings import OCCUPYING
from domain.errors import FixnadoError
from domain.identity import Actor
from domain.types import Interval
from persistence import tables
from tests.domain.marketplace import CENTRE, START, Firm, Marketplace
from tests.domain.test_slots import NINE_TO_TWELVE, at, book_hold, hold, plan

BUFFER = timedelta(minutes=15)
EXPECTED = {
    "slot_taken",
    "slot_closed",
    "too_many_holds",
    "hold_expired",
    "offer_taken",
    "offer_withdrawn",
    "offer_expired",
    "conflict",
    "illegal_transition",
    "not_found",
}
"""Clear answers. ``unavailable`` (too many collisions) would be honest too, and is counted apart."""


async def overlaps(market: Marketplace) -> list[tuple[Any, Any]]:
    """The checker: pairs of confirmed jobs and live holds of one provider that are nearer than the travel buffer."""
    jobs = await market.rows(select(tables.bookings).where(tables.bookings.c.status.in_(sorted(OCCUPYING))))
    holds = await market.rows(select(tables.slot_holds).where(tables.slot_holds.c.expires_at > market.clock.now()))
    times = [(row.provider_id, row.id, Interval(row.start, row.end)) for row in [*jobs, *holds] if row.start]
    return [
        (one, other)
        for one, other in combinations(times, 2)
        if one[0] == other[0] and one[2].overlaps(Interval(other[2].start - BUFFER, other[2].end + BUFFER))
    ]


class Crowd:
    """People who all want the same morning."""

    def __init__(self, market: Marketplace, firms: list[Firm], customers: list[Actor], operator: Actor) -> None:
        self.market = market
        self.firms = firms
        self.customers = customers
        self.operator = operator
        self.chance = random.Random(7)
        self.waiting: list[str] = []
        self.planned: list[str] = []

    def when(self) -> float:
        return 9 + self.chance.randrange(5) / 2

    async def hold_and_book(self, customer: Actor, hours: float) -> None:
        held = await hold(self.market, customer, hours)
        await book_hold(self.market, customer, held)

    async def hold_and_leave(self, customer: Actor, hours: float) -> None:
        held = await hold(self.market, customer, hours)
        await self.market.call(customer, "slot.release", hold_id=held["id"])

    async def reschedule(self, booking_id: str, hours: float) -> None:
        booking = await self.market.booking(booking_id)
        params = {"booking_id": booking_id, "version": booking.version, "start": at(hours).isoformat()}
        await self.market.call(self.operator, "booking.reschedule", **params)

    async def assign(self, booking_id: str, firm: Firm) -> None:
        params = {"booking_id": booking_id, "provider_id": firm.provider_id}
        await self.market.call(self.operator, "booking.assign", **params)

    async def acts(self) -> list[Awaitable[Any]]:
        acts: list[Awaitable[Any]] = [self.hold_and_book(customer, self.when()) for customer in self.customers]
        acts += [self.hold_and_leave(customer, self.when()) for customer in self.customers[::2]]
        acts += [hold(self.market, customer, self.when()) for customer in self.customers[::3]]
        for booking_id in self.waiting:
            acts += [
                self.market.call(firm.person, "offer.accept", offer_id=row.id)
                for row in await self.market.offers(booking_id)
                for firm in self.firms
                if firm.provider_id == row.provider_id
            ]
            acts.append(self.assign(booking_id, self.chance.choice(self.firms)))
        acts += [self.reschedule(booking_id, self.when()) for booking_id in self.planned]
        acts += [plan(self.market, firm, NINE_TO_TWELVE, buffer=15) for firm in self.firms]
        self.chance.shuffle(acts)
        return acts


async def test_holds_bookings_accepts_moves_and_assignments_at_once_never_overlap(
    broadcast_market: Marketplace,
) -> None:
    market = broadcast_market
    firms = await market.firms(3)
    for firm in firms:
        await plan(market, firm, NINE_TO_TWELVE, buffer=15)
    crowd = Crowd(market, firms, [await market.customer() for _ in range(8)], await market.operator())
    customer = crowd.customers[0]
    for number in range(6):
        hours = (at(9 + number / 2) - START) / timedelta(hours=1)
        crowd.waiting.append(await market.book_slot(customer, hours))
    for number, firm in enumerate(firms):
        # Elsewhere in the day, so that they can only be moved into the crowd.
        booking_id = await market.book_slot(customer, (at(15 + 3 * number) - START) / timedelta(hours=1))
        await market.call(crowd.operator, "booking.assign", booking_id=booking_id, provider_id=firm.provider_id)
        crowd.planned.append(booking_id)
    assert await overlaps(market) == []
    await market.warm()
    outcomes = await asyncio.gather(*await crowd.acts(), return_exceptions=True)
    told = Counter(
        each.type if isinstance(each, FixnadoError) else repr(each) for each in outcomes if isinstance(each, Exception)
    )
    assert set(told) <= EXPECTED | {"unavailable"}, told
    assert told["unavailable"] <= len(outcomes) // 10, told
    assert await overlaps(market) == []
    taken = [booking for booking in await _confirmed(market) if at(9) <= booking.start < at(12)]
    assert len(taken) >= len(firms), "somebody got through at each of them"


async def test_of_many_who_hold_the_same_time_at_once_one_per_provider_gets_it(market: Marketplace) -> None:
    firms = await market.firms(2)
    for firm in firms:
        await plan(market, firm, NINE_TO_TWELVE)
    customers = [await market.customer() for _ in range(12)]
    await market.warm()
    outcomes = await asyncio.gather(*(hold(market, each, 9) for each in customers), return_exceptions=True)
    held = [each for each in outcomes if isinstance(each, dict)]
    assert {each["provider_id"] for each in held} == {firm.provider_id for firm in firms}
    assert Counter(getattr(each, "type", "held") for each in outcomes) == {"held": 2, "slot_taken": 10}


async def test_booking_and_running_out_at_once_leave_one_truth(market: Marketplace) -> None:
    firm = await market.firm()
    await plan(market, firm, NINE_TO_TWELVE)
    customer = await market.customer()
    held = await hold(market, customer, 9)
    market.clock.advance(299.9)
    attempts = [book_hold(market, customer, held), market.call(customer, "slot.release", hold_id=held["id"])]
    await market.warm()
    booked, _ = await asyncio.gather(*attempts, return_exceptions=True)
    jobs = await _confirmed(market)
    assert len(jobs) == (1 if isinstance(booked, dict) else 0)
    assert await market.count(tables.slot_holds) == 0
    assert {name for name in await market.timer_names() if name.startswith("hold")} == set()


async def test_a_hold_becomes_a_booking_or_a_series_never_both(market: Marketplace) -> None:
    firm = await market.firm()
    await plan(market, firm, NINE_TO_TWELVE)
    customer = await market.customer()
    held = await hold(market, customer, 9)
    rule = {"rrule": "FREQ=WEEKLY", "tzid": "UTC", "dtstart": held["start"][:16], "duration_minutes": 60}
    wish = {"service_id": "plumbing", "location": CENTRE.view(), "recurrence": rule, "hold_id": held["id"]}
    await market.warm()
    outcomes = await asyncio.gather(
        *(book_hold(market, customer, held) for _ in range(3)),
        *(market.call(customer, "series.create", **wish) for _ in range(3)),
        return_exceptions=True,
    )
    kinds = Counter(getattr(each, "type", "made") for each in outcomes)
    assert kinds == {"made": 1, "hold_expired": 5}
    assert len(await _confirmed(market)) == 1
    assert await market.count(tables.series) == int(any(isinstance(each, dict) for each in outcomes[3:]))


async def _confirmed(market: Marketplace) -> list[Any]:
    wanted = select(tables.bookings).where(tables.bookings.c.status.in_(sorted(OCCUPYING)))
    return list(await market.rows(wanted))
