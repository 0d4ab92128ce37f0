"""Whatever the race: one provider wins a booking, and one provider wins one job at a time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable
from itertools import pairwise
from typing import Any

from domain.errors import FixnadoError
from domain.types import JSON
from persistence import tables
from tests.domain.marketplace import Firm, Marketplace, refused

N = 50


async def outcome(attempt: Awaitable[JSON]) -> str:
    """Who has the job, or why not."""
    try:
        provider_id: str = (await attempt)["booking"]["provider_id"]
        return provider_id
    except FixnadoError as error:
        return error.type


def attempt(market: Marketplace, firm: Firm, offer_id: str, **params: Any) -> Awaitable[str]:
    return outcome(market.call(firm.person, "offer.accept", offer_id=offer_id, **params))


async def test_of_fifty_who_accept_at_once_one_wins_and_all_others_are_told_offer_taken(
    broadcast_market: Marketplace,
) -> None:
    market = broadcast_market
    firms = await market.firms(N)
    booking_id = await market.book(await market.customer())
    offer_of = {row.provider_id: row.id for row in await market.offers(booking_id)}
    assert len(offer_of) == N
    keys = {firm.provider_id: market.key() for firm in firms}
    await market.warm()
    outcomes = await asyncio.gather(
        *(attempt(market, firm, offer_of[firm.provider_id], key=keys[firm.provider_id]) for firm in firms)
    )
    winner_id = (await market.booking(booking_id)).provider_id
    assert winner_id is not None
    assert Counter(outcomes) == {winner_id: 1, "offer_taken": N - 1}
    winner = next(firm for firm in firms if firm.provider_id == winner_id)
    assert outcomes[firms.index(winner)] == winner_id, "whoever was told so is who has it"
    assert Counter(row.status for row in await market.offers(booking_id)) == {"accepted": 1, "withdrawn": N - 1}
    assert len(await market.events("booking.assigned")) == 1
    assert len(await market.events("offer.accepted")) == 1
    withdrawn = Counter(event.data["provider_id"] for event in await market.events("offer.withdrawn"))
    assert withdrawn == {firm.provider_id: 1 for firm in firms if firm is not winner}
    assert (await market.provider(winner)).jobs_taken == 1
    # The winner's retries, with the same key and with a new one, succeed and change nothing.
    heard, version = await market.newest_event(), (await market.booking(booking_id)).version
    retries = [attempt(market, winner, offer_of[winner_id], key=key) for key in (keys[winner_id], "new-1", "new-2")]
    assert await asyncio.gather(*retries) == [winner_id] * 3
    assert await market.events(after=heard) == []
    assert (await market.booking(booking_id)).version == version
    # A loser's retry with the same key loses again.
    loser = next(firm for firm in firms if firm is not winner)
    assert await attempt(market, loser, offer_of[loser.provider_id], key=keys[loser.provider_id]) == "offer_taken"


async def test_provider_that_accepts_two_jobs_at_once_gets_one(market: Marketplace) -> None:
    customer, firm = await market.customer(), await market.firm()
    booked = [await market.book(customer) for _ in range(6)]
    offer_ids = [await market.offer_id(firm, booking_id) for booking_id in booked]
    await market.warm()
    outcomes = await asyncio.gather(*(attempt(market, firm, offer_id) for offer_id in offer_ids))
    assert Counter(outcomes) == {firm.provider_id: 1, "slot_taken": 5}
    statuses = Counter([(await market.booking(booking_id)).status.value for booking_id in booked])
    assert statuses == {"assigned": 1, "awaiting_assignment": 5}


async def test_provider_that_accepts_overlapping_slots_at_once_gets_one_of_each_time(market: Marketplace) -> None:
    customer, firm = await market.customer(), await market.firm()
    booked = [await market.book_slot(customer, in_hours) for in_hours in (24, 24.5, 24.9, 26, 26.5)]
    offer_ids = [await market.offer_id(firm, booking_id) for booking_id in booked]
    await market.warm()
    await asyncio.gather(*(attempt(market, firm, offer_id) for offer_id in offer_ids))
    taken = [booking for booking in [await market.booking(one) for one in booked] if booking.status == "scheduled"]
    slots = sorted((booking.slot.start, booking.slot.end) for booking in taken if booking.slot)
    assert all(before[1] <= after[0] for before, after in pairwise(slots))
    assert len(slots) == 2


async def test_cancelling_and_accepting_at_once_leave_one_truth(market: Marketplace) -> None:
    customer, firm = await market.customer(), await market.firm()
    for _ in range(5):
        booking_id = await market.book(customer)
        offer_id = await market.offer_id(firm, booking_id)
        told = await asyncio.gather(
            attempt(market, firm, offer_id),
            outcome(market.call(customer, "booking.cancel", booking_id=booking_id, reason="no")),
            return_exceptions=True,
        )
        booking = await market.booking(booking_id)
        assert booking.status == "cancelled"
        (offer,) = await market.offers(booking_id)
        if booking.provider_id:  # accepted first, cancelled then
            assert (told[0], offer.status) == (firm.provider_id, "accepted")
        else:
            assert (told[0], offer.status) == ("offer_withdrawn", "withdrawn")
        assert (await market.provider(firm)).status == "online"


async def test_accept_at_the_very_end_of_its_time_is_too_late(market: Marketplace) -> None:
    firm = await market.firm()
    booking_id = await market.book(await market.customer())
    market.clock.advance(30)
    assert await refused(market.accept(firm, booking_id)) == "offer_expired", "no timer has run yet"
    market.clock.advance(-0.001)
    assert (await market.accept(firm, booking_id))["booking"]["provider_id"] == firm.provider_id


async def test_accept_after_its_time_says_expired_or_taken_once_somebody_else_has_it(market: Marketplace) -> None:
    first, second = await market.firm(rating=5.0), await market.firm(rating=1.0)
    booking_id = await market.book(await market.customer())
    offer_id = await market.offer_id(first, booking_id)
    await market.advance(31)
    assert await attempt(market, first, offer_id) == "offer_expired"
    await market.accept(second, booking_id)
    assert await attempt(market, first, offer_id) == "offer_taken"
    assert await market.count(tables.idempotency_keys) == 2  # the booking and the winner


async def test_winner_of_a_booking_cancelled_since_still_hears_of_its_success(market: Marketplace) -> None:
    customer, firm = await market.customer(), await market.firm()
    booking_id = await market.job(customer, firm)
    await market.call(customer, "booking.cancel", booking_id=booking_id, reason="no")
    assert (await market.accept(firm, booking_id))["booking"]["status"] == "cancelled"


async def test_timers_answers_and_choices_at_once_wait_for_each_other_and_all_get_through(
    broadcast_market: Marketplace,
) -> None:
    market = broadcast_market
    customer, firms = await market.customer(), await market.firms(6)
    booked = [await market.book(customer) for _ in range(6)]
    offers = {booking_id: await market.offers(booking_id) for booking_id in booked}
    person_of = {firm.provider_id: firm.person for firm in firms}
    market.clock.advance(30)  # every offer has just run out, and every booking's timer is due

    async def ignoring_refusals(attempts: list[Awaitable[Any]]) -> list[str]:
        results = await asyncio.gather(*attempts, return_exceptions=True)
        return [getattr(result, "type", repr(result)) for result in results if isinstance(result, Exception)]

    attempts: list[Awaitable[Any]] = [market.run_timers() for _ in range(3)]
    for booking_id, rows in offers.items():
        for number, row in enumerate(rows):
            answer = {"offer_id": row.id} | ({"reason": "no"} if number % 2 else {})
            method = "offer.decline" if number % 2 else "offer.accept"
            attempts.append(market.call(person_of[row.provider_id], method, **answer))
        attempts.append(market.call(customer, "booking.cancel", booking_id=booking_id, reason="no"))
    for firm in firms:
        attempts += [market.call(firm.person, "presence.set", status=status) for status in ("away", "online")]
    await market.warm()
    refusals = await ignoring_refusals(attempts)
    assert set(refusals) <= {"offer_expired", "offer_withdrawn", "offer_taken"}, "nobody was told to come again"
    assert {(await market.booking(booking_id)).status.value for booking_id in booked} == {"cancelled"}
    assert await market.timer_names() == set()
