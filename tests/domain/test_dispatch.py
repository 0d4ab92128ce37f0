"""Waves of offers: sizes, strategies, lives, answers, and what happens when nobody answers."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta

import pytest

from domain.providers import ProviderStatus, Strategy
from persistence import tables
from tests.domain.marketplace import CENTRE, START, Firm, Marketplace, north_of, refusal, refused

AWAY = {"status": ProviderStatus.AWAY, "chosen_status": ProviderStatus.AWAY}


async def decline(market: Marketplace, firm: Firm, booking_id: str) -> None:
    offer_id = await market.offer_id(firm, booking_id)
    await market.call(firm.person, "offer.decline", offer_id=offer_id, reason="too far")


async def waves(market: Marketplace, booking_id: str) -> list[int]:
    """How many were asked in each wave."""
    numbers = [row.wave for row in await market.offers(booking_id)]
    return [numbers.count(wave) for wave in sorted(set(numbers))]


# --- waves ------------------------------------------------------------------------------------------------------------


async def test_waves_grow_from_one_to_three_to_eight_and_end_after_five(market: Marketplace) -> None:
    await market.firms(40)
    booking_id = await market.book(await market.customer())
    await market.advance(149.9)
    assert await waves(market, booking_id) == [1, 3, 8, 8, 8]
    asked = [row.provider_id for row in await market.offers(booking_id)]
    assert len(set(asked)) == 28, "nobody is asked twice while others were not asked at all"
    await market.advance(30)
    assert await waves(market, booking_id) == [1, 3, 8, 8, 8]


async def test_later_waves_reach_further(market: Marketplace) -> None:
    near = {firm.provider_id for firm in await market.firms(3)}
    at_15_km = (await market.firm(position=north_of(CENTRE, 15_000))).provider_id
    at_35_km = (await market.firm(position=north_of(CENTRE, 35_000))).provider_id
    await market.firm(position=north_of(CENTRE, 45_000))
    booking_id = await market.book(await market.customer())
    await market.advance(149)
    in_wave = {wave: await market.asked(booking_id, wave) for wave in range(1, 6)}
    assert in_wave[1] | in_wave[2] == near
    assert in_wave[3] == near, "those who were silent get another chance when nobody else is left"
    assert in_wave[4] == {at_15_km}
    assert in_wave[5] == {at_35_km}


async def test_provider_far_away_is_asked_when_nobody_is_near(market: Marketplace) -> None:
    far, farther = (
        await market.firm(position=north_of(CENTRE, 15_000)),
        await market.firm(position=north_of(CENTRE, 35_000)),
    )
    booking_id = await market.book(await market.customer())
    assert await market.asked(booking_id) == {far.provider_id}
    await market.alter(far, position=north_of(CENTRE, 45_000))
    await market.advance(30)
    assert await market.asked(booking_id, 2) == {farther.provider_id}, "nobody is within 20 km any more"


async def test_sequential_zone_asks_one_after_the_other_best_first(empty_market: Marketplace) -> None:
    market = empty_market
    await market.zone(strategy=Strategy.SEQUENTIAL)
    await market.service()
    firms = [await market.firm(rating=rating) for rating in (3.0, 5.0, 4.0, 2.0)]
    booking_id = await market.book(await market.customer())
    await market.advance(61)
    asked = [row.provider_id for row in await market.offers(booking_id)]
    assert asked == [firms[1].provider_id, firms[2].provider_id, firms[0].provider_id]


async def test_broadcasting_zone_asks_everybody_at_once(broadcast_market: Marketplace) -> None:
    firms = await broadcast_market.firms(12)
    booking_id = await broadcast_market.book(await broadcast_market.customer())
    assert await broadcast_market.asked(booking_id, 1) == {firm.provider_id for firm in firms}


@pytest.mark.parametrize(("kind", "seconds"), [("on_demand", 30), ("scheduled", 90)])
async def test_offer_lives_its_time_and_expires_then(market: Marketplace, kind: str, seconds: int) -> None:
    customer, firm = await market.customer(), await market.firm()
    booking_id = await (market.book(customer) if kind == "on_demand" else market.book_slot(customer))
    (offer,) = await market.offers(booking_id)
    assert offer.expires_at == START + timedelta(seconds=seconds)
    await market.advance(seconds - 0.001)
    assert await market.events("offer.expired") == []
    await market.advance(0.001)
    (told,) = await market.events("offer.expired")
    assert told.data == {"offer_id": offer.id, "booking_id": booking_id, "provider_id": firm.provider_id}
    assert told.channels == {f"provider:{firm.provider_id}", "admin:bookings"}
    assert (await market.provider(firm)).offers_answered == 1


async def test_empty_wave_is_tried_again_soon_and_does_not_count(market: Marketplace) -> None:
    booking_id = await market.book(await market.customer())
    await market.advance(23)
    assert (await market.booking(booking_id)).wave == 0
    firm = await market.firm()
    assert await market.asked(booking_id) == set()
    await market.advance(5)
    assert await market.asked(booking_id, 1) == {firm.provider_id}


async def test_timer_does_its_work_once_though_two_nodes_see_it(market: Marketplace) -> None:
    await market.firms(6)
    booking_id = await market.book(await market.customer())
    market.clock.advance(30)
    await market.warm()
    ran = await asyncio.gather(market.run_timers(), market.run_timers(), market.run_timers())
    assert [*ran[0], *ran[1], *ran[2]] == [f"dispatch:{booking_id}"]
    assert await waves(market, booking_id) == [1, 3]


async def test_search_goes_on_after_a_restart(market: Marketplace) -> None:
    await market.firms(3)
    booking_id = await market.book(await market.customer())
    restarted = Marketplace(market.database)
    restarted.clock.moment = market.clock.now() + timedelta(seconds=300)
    await restarted.run_timers()
    assert await waves(restarted, booking_id) == [1, 2]
    assert len(await restarted.events("offer.expired")) == 1


# --- answers ----------------------------------------------------------------------------------------------------------


async def test_decline_of_the_only_offer_starts_the_next_wave_at_once(market: Marketplace) -> None:
    first, second = await market.firm(rating=5.0), await market.firm(rating=1.0)
    booking_id = await market.book(await market.customer())
    market.clock.advance(2)
    await decline(market, first, booking_id)
    assert await market.asked(booking_id, 2) == {second.provider_id}
    (told,) = await market.events("offer.declined")
    assert told.data["reason"] == "too far"
    await market.advance(29)
    assert await market.events("offer.expired") == [], "the second one's time runs from when it was asked"


async def test_decline_of_one_among_several_waits_for_the_others(broadcast_market: Marketplace) -> None:
    market = broadcast_market
    firms = await market.firms(3)
    late = None
    booking_id = await market.book(await market.customer())
    late = await market.firm()
    for firm in firms[:2]:
        await decline(market, firm, booking_id)
    assert late.provider_id not in await market.asked(booking_id)
    await decline(market, firms[2], booking_id)
    assert await market.asked(booking_id, 2) == {late.provider_id}


async def test_declining_twice_is_declining_once(market: Marketplace) -> None:
    firm = await market.firm()
    booking_id = await market.book(await market.customer())
    await decline(market, firm, booking_id)
    await decline(market, firm, booking_id)
    assert len(await market.events("offer.declined")) == 1
    assert (await market.provider(firm)).offers_answered == 1
    assert await refused(market.accept(firm, booking_id)) == "offer_withdrawn"


async def test_declining_what_is_no_longer_open_is_refused(broadcast_market: Marketplace) -> None:
    market = broadcast_market
    winner, loser = await market.firms(2)
    booking_id = await market.book(await market.customer())
    await market.accept(winner, booking_id)
    offer_id = await market.offer_id(loser, booking_id)
    error = await refusal(market.call(loser.person, "offer.decline", offer_id=offer_id, reason="no"))
    assert error.type == "offer_withdrawn"


async def test_three_misses_in_a_row_set_a_provider_away_and_say_so(market: Marketplace) -> None:
    firm = await market.firm()
    await market.book(await market.customer())
    await market.advance(89)
    assert (await market.provider(firm)).status == "online"
    await market.advance(1)
    provider = await market.provider(firm)
    assert (provider.status, provider.chosen_status, provider.misses_in_a_row) == ("away", "away", 3)
    (told,) = await market.events("availability.changed")
    assert told.data == {"provider_id": firm.provider_id, "status": "away", "reason": "missed_offers"}
    assert told.channels == {f"provider:{firm.provider_id}"}
    (shown,) = market.announcer.of("presence.changed")
    assert shown.data["status"] == "away"


@pytest.mark.parametrize("answer", ["accept", "decline", "presence"])
async def test_an_answer_between_misses_starts_the_count_anew(market: Marketplace, answer: str) -> None:
    customer, firm = await market.customer(), await market.firm()
    booking_id = await market.book(customer)
    await market.advance(61)
    assert (await market.provider(firm)).misses_in_a_row == 2
    match answer:
        case "accept":
            await market.accept(firm, booking_id)
        case "decline":
            await decline(market, firm, booking_id)
        case _:
            await market.call(firm.person, "presence.set", status="online")
    assert (await market.provider(firm)).misses_in_a_row == 0


# --- nobody is found --------------------------------------------------------------------------------------------------


async def test_after_ten_minutes_operations_are_called_once_and_then_it_ends_unfulfilled(market: Marketplace) -> None:
    booking_id = await market.book(await market.customer())
    await market.advance(599)
    assert await market.events("booking.rescue_needed") == []
    await market.advance(5)
    (call,) = await market.events("booking.rescue_needed")
    assert call.event.time == START + timedelta(seconds=600)
    assert "admin:bookings" in call.channels
    assert (await market.booking(booking_id)).status == "awaiting_assignment"
    await market.advance(295)
    assert await market.events("booking.unfulfilled") == []
    await market.advance(1)
    (end,) = await market.events("booking.unfulfilled")
    assert end.event.time == START + timedelta(seconds=900)
    assert len(await market.events("booking.rescue_needed")) == 1
    assert await market.timer_names() == set()


async def test_after_five_waves_operations_are_called_and_nobody_else_is_asked(market: Marketplace) -> None:
    await market.firms(28)
    booking_id = await market.book(await market.customer())
    await market.advance(150)
    assert len(await market.events("booking.rescue_needed")) == 1
    late = await market.firm(**AWAY)
    await market.call(late.person, "presence.set", status="online")
    await market.advance(100)
    assert late.provider_id not in await market.asked(booking_id)
    await market.advance(200)
    assert (await market.booking(booking_id)).status == "unfulfilled"
    assert len(await market.events("booking.rescue_needed")) == 1


async def test_operations_come_to_the_rescue(market: Marketplace) -> None:
    operator, firm = await market.operator(), await market.firm(**AWAY)
    booking_id = await market.book(await market.customer())
    await market.advance(650)
    command = {"booking_id": booking_id, "provider_id": firm.provider_id}
    assert (await market.call(operator, "booking.assign", **command))["booking"]["status"] == "assigned"
    await market.advance(3600)
    assert (await market.booking(booking_id)).status == "assigned"
    assert await market.events("booking.unfulfilled") == []


async def test_accept_after_the_search_was_given_up_is_too_late(market: Marketplace) -> None:
    firm = await market.firm()
    booking_id = await market.book(await market.customer())
    await market.advance(1000)
    assert (await market.booking(booking_id)).status == "unfulfilled"
    assert await refused(market.accept(firm, booking_id)) == "offer_expired"


# --- who comes, who goes ----------------------------------------------------------------------------------------------


async def test_provider_that_comes_online_while_a_booking_waits_is_asked_at_once(market: Marketplace) -> None:
    firm = await market.firm(**AWAY)
    booking_id = await market.book(await market.customer())
    await market.advance(2)
    await market.call(firm.person, "presence.set", status="online")
    await market.run_timers()
    assert await market.asked(booking_id) == {firm.provider_id}


async def test_provider_that_finishes_a_job_is_asked_at_once_for_what_waits(market: Marketplace) -> None:
    customer, firm = await market.customer(), await market.firm()
    job = await market.job(customer, firm, "en_route", "arrived", "in_progress")
    waiting = await market.book(customer)
    await market.advance(2)
    await market.step(firm.person, job, "completed")
    await market.run_timers()
    assert await market.asked(waiting) == {firm.provider_id}


async def test_coming_online_does_not_cut_short_the_time_of_those_who_were_asked(market: Marketplace) -> None:
    await market.firm()
    late = await market.firm(**AWAY)
    booking_id = await market.book(await market.customer())
    await market.advance(10)
    await market.call(late.person, "presence.set", status="online")
    await market.run_timers()
    assert late.provider_id not in await market.asked(booking_id)
    await market.advance(20)
    assert late.provider_id in await market.asked(booking_id)


async def test_cancelling_withdraws_live_offers_and_ends_the_search(broadcast_market: Marketplace) -> None:
    market = broadcast_market
    customer, firms = await market.customer(), await market.firms(3)
    booking_id = await market.book(customer)
    await market.call(customer, "booking.cancel", booking_id=booking_id, reason="found a cousin")
    withdrawn = await market.events("offer.withdrawn")
    assert {event.data["provider_id"] for event in withdrawn} == {firm.provider_id for firm in firms}
    assert {event.data["reason"] for event in withdrawn} == {"cancelled"}
    assert {row.status for row in await market.offers(booking_id)} == {"withdrawn"}
    assert await market.timer_names() == set()
    assert await refused(market.accept(firms[0], booking_id)) == "offer_withdrawn"


async def test_withdrawal_goes_to_each_loser_and_never_names_the_winner(broadcast_market: Marketplace) -> None:
    market = broadcast_market
    customer, firms = await market.customer(), await market.firms(4)
    booking_id = await market.book(customer)
    await decline(market, firms[3], booking_id)
    heard = await market.newest_event()
    await market.accept(firms[0], booking_id)
    withdrawn = await market.events("offer.withdrawn")
    assert {event.data["provider_id"] for event in withdrawn} == {firm.provider_id for firm in firms[1:3]}
    for event in withdrawn:
        assert event.data["reason"] == "taken"
        said = json.dumps(event.data)
        assert not any(name in said for name in (firms[0].provider_id, firms[0].organisation_id))
    losers = {f"provider:{firm.provider_id}" for firm in firms[1:]}
    for event in await market.events(after=heard):
        if event.channels & losers:
            assert event.type == "offer.withdrawn", "a loser hears of nothing else"


async def test_moving_waiting_work_to_another_time_asks_anew(market: Marketplace) -> None:
    customer, first, second = await market.customer(), await market.firm(rating=5.0), await market.firm(rating=1.0)
    booking_id = await market.book_slot(customer)
    version = (await market.booking(booking_id)).version
    start = (START + timedelta(hours=30)).isoformat()
    await market.call(customer, "booking.reschedule", booking_id=booking_id, version=version, start=start)
    (told,) = await market.events("booking.rescheduled")
    assert (told.data["from"], told.data["booking"]["version"]) == ("awaiting_assignment", version + 1)
    assert [event.data["reason"] for event in await market.events("offer.withdrawn")] == ["rescheduled"]
    await market.run_timers()
    (live,) = await market.offers(booking_id, "sent")
    assert (live.provider_id, live.wave) == (second.provider_id, 1)
    assert await refused(market.accept(first, booking_id)) == "offer_withdrawn"
    assert (await market.accept(second, booking_id))["booking"]["start"] == "2026-11-25T15:00:00.000Z"


# --- by force ---------------------------------------------------------------------------------------------------------


async def test_force_takes_the_job_from_those_who_were_asked(broadcast_market: Marketplace) -> None:
    market = broadcast_market
    operator, asked, chosen = await market.operator(), await market.firm(), await market.firm(**AWAY)
    booking_id = await market.book(await market.customer())
    command = {"booking_id": booking_id, "provider_id": chosen.provider_id}
    first = await market.call(operator, "booking.assign", **command)
    assert first["booking"]["provider_id"] == chosen.provider_id
    assert await market.call(operator, "booking.assign", **command) == first
    assert len(await market.events("booking.assigned")) == 1
    assert await refused(market.accept(asked, booking_id)) == "offer_taken"
    # Nobody is searched for any longer; only the deadline for being there runs.
    assert await market.timer_names() == {f"sla:{booking_id}"}


async def test_force_does_not_reach_unverified_busy_or_unknown_providers_or_other_statuses(market: Marketplace) -> None:
    customer, operator = await market.customer(), await market.operator()
    busy, unverified, other = await market.firm(), await market.firm(verified=False), await market.firm(**AWAY)
    taken = await market.job(customer, busy)
    waiting = await market.book(customer)

    async def assign(booking_id: str, provider_id: str) -> str:
        return await refused(market.call(operator, "booking.assign", booking_id=booking_id, provider_id=provider_id))

    assert await assign(waiting, busy.provider_id) == "slot_taken"
    assert await assign(waiting, unverified.provider_id) == "not_verified"
    assert await assign(waiting, "nobody") == "not_found"
    assert await assign(taken, other.provider_id) == "illegal_transition"
    assert await market.count(tables.idempotency_keys) == 3  # two bookings and one accept


# --- what a provider is committed to ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("in_hours", "asked"), [(1, False), (3, True)])
async def test_a_slot_soon_is_not_offered_to_somebody_on_a_job(market: Marketplace, in_hours: int, asked: bool) -> None:
    customer, firm = await market.customer(), await market.firm()
    await market.job(customer, firm, "en_route")
    booking_id = await market.book_slot(customer, in_hours=in_hours)
    assert (firm.provider_id in await market.asked(booking_id)) is asked


async def test_a_provider_given_the_job_it_was_asked_for_may_still_say_yes(market: Marketplace) -> None:
    customer, firm, operator = await market.customer(), await market.firm(), await market.operator()
    booking_id = await market.book(customer)
    await market.call(operator, "booking.assign", booking_id=booking_id, provider_id=firm.provider_id)
    assert (await market.accept(firm, booking_id))["booking"]["provider_id"] == firm.provider_id
    assert await market.events("offer.withdrawn") == []
    assert len(await market.events("offer.accepted")) == 1


async def test_a_provider_taken_off_a_job_hears_it_on_its_own_channel(market: Marketplace) -> None:
    customer, firm, operator = await market.customer(), await market.firm(), await market.operator()
    booking_id = await market.job(customer, firm)
    await market.step(operator, booking_id, "awaiting_assignment")
    (told,) = await market.events("offer.withdrawn")
    assert told.data["reason"] == "reassigned"
    assert f"provider:{firm.provider_id}" in told.channels
    assert await market.offers(booking_id, "accepted") == []


async def test_a_fix_of_somebody_in_two_firms_goes_to_the_job_under_way(market: Marketplace) -> None:
    customer, working = await market.customer(), await market.firm()
    booking_id = await market.job(customer, working, "en_route")
    idle = await market.firm()
    person = replace(working.person, memberships=(*idle.person.memberships, *working.person.memberships))
    place = {"lat": 51.545, "lon": -0.15, "fix_at": market.clock.now().isoformat()}
    assert (await market.call(person, "location.publish", **place))["booking_id"] == booking_id
