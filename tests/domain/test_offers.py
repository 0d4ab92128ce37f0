"""Who is asked for a job, in which order, and what an offer shows. How waves follow each other: test_dispatch.py."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import offers
from domain.accounts import new_provider
from domain.geography import GreatCircleEta, distance_m
from domain.offers import WEIGHTS
from domain.providers import Provider, ProviderStatus
from domain.types import Point
from tests.domain.marketplace import CENTRE, START, Marketplace, north_of, refused

# --- who may get it ---------------------------------------------------------------------------------------------------

UNFIT: dict[str, dict[str, Any]] = {
    "not verified": {"verified": False},
    "lacks the skill": {"skills": ("gardening",)},
    "does not cover the zone": {"zones": ("elsewhere",)},
    "away": {"status": ProviderStatus.AWAY, "chosen_status": ProviderStatus.AWAY},
    "busy": {"status": ProviderStatus.BUSY},
    "offline": {"status": ProviderStatus.OFFLINE},
    "no jobs left today": {"max_daily_jobs": 0},
    "beyond the radius": {"position": north_of(CENTRE, 10_050)},
}


@pytest.mark.parametrize("flaw", UNFIT)
async def test_provider_with_one_flaw_is_not_asked(broadcast_market: Marketplace, flaw: str) -> None:
    market = broadcast_market
    await market.service("gardening")
    await market.zone("elsewhere", centre=Point(10, 10))
    fit = await market.firm()
    await market.firm(**UNFIT[flaw])
    assert await market.asked(await market.book(await market.customer())) == {fit.provider_id}


@pytest.mark.parametrize("position", [north_of(CENTRE, 9_950), None], ids=["just inside the radius", "unknown place"])
async def test_provider_at_the_edge_or_of_unknown_place_is_asked(market: Marketplace, position: Point | None) -> None:
    firm = await market.firm(position=position)
    assert await market.asked(await market.book(await market.customer())) == {firm.provider_id}


async def test_provider_on_a_job_is_not_asked_for_work_on_demand(market: Marketplace) -> None:
    customer, firm = await market.customer(), await market.firm()
    await market.job(customer, firm, "en_route")
    await market.alter(firm, status=ProviderStatus.ONLINE)  # as if its live status lagged behind
    assert await market.asked(await market.book(customer)) == set()


async def test_provider_that_declined_is_not_asked_again_for_that_booking_only(market: Marketplace) -> None:
    customer, firm = await market.customer(), await market.firm()
    booking_id = await market.book(customer)
    await market.call(firm.person, "offer.decline", offer_id=await market.offer_id(firm, booking_id), reason="no")
    await market.advance(100)
    assert len(await market.offers(booking_id)) == 1
    assert await market.asked(await market.book(customer)) == {firm.provider_id}


async def test_scheduled_work_goes_to_those_away_or_unconnected_but_not_to_those_who_chose_offline(
    broadcast_market: Marketplace,
) -> None:
    market = broadcast_market
    away = await market.firm(status=ProviderStatus.AWAY, chosen_status=ProviderStatus.AWAY)
    unconnected = await market.firm(status=ProviderStatus.OFFLINE)
    await market.firm(status=ProviderStatus.OFFLINE, chosen_status=ProviderStatus.OFFLINE)
    booking_id = await market.book_slot(await market.customer())
    assert await market.asked(booking_id) == {away.provider_id, unconnected.provider_id}


async def test_confirmed_job_keeps_its_slot_half_open(market: Marketplace) -> None:
    customer, firm = await market.customer(), await market.firm()
    await market.accept(firm, await market.book_slot(customer, 24, 1))
    for why, in_hours, hours, asked in [
        ("the same", 24, 1, False),
        ("into its start", 23.5, 1, False),
        ("into its end", 24.5, 1, False),
        ("around it", 23, 3, False),
        ("within it", 24.2, 0.1, False),
        ("right before", 23, 1, True),
        ("right after", 25, 1, True),
    ]:
        booking_id = await market.book_slot(customer, in_hours, hours)
        assert await market.asked(booking_id) == ({firm.provider_id} if asked else set()), why


async def test_confirmed_job_within_the_hour_keeps_work_on_demand_away(market: Marketplace) -> None:
    customer, soon, later = await market.customer(), await market.firm(rating=5.0), await market.firm(rating=1.0)
    await market.give(await market.book_slot(customer, 0.99), soon, "scheduled")
    await market.give(await market.book_slot(customer, 1.0), later, "scheduled")
    assert await market.asked(await market.book(customer)) == {later.provider_id}


async def test_daily_limit_counts_todays_jobs_and_not_cancelled_or_other_days(market: Marketplace) -> None:
    customer, firm = await market.customer(), await market.firm(max_daily_jobs=2)
    today = market.clock.now()
    for status, assigned_at in [
        ("completed", today),
        ("cancelled", today),
        ("completed", today - timedelta(days=1)),
        ("completed", today + timedelta(days=1)),
    ]:
        booking_id = await market.book(customer)
        await market.give(booking_id, firm, status)
        await market.put(booking_id, status, assigned_at=assigned_at)
    await market.give(await market.book_slot(customer, 24), firm, "scheduled")
    assert firm.provider_id in await market.asked(await market.book(customer))
    await market.give(await market.book_slot(customer, 10), firm, "scheduled")
    assert firm.provider_id not in await market.asked(await market.book(customer))


# --- in which order ---------------------------------------------------------------------------------------------------

PROVIDERS = st.builds(
    lambda rating, answered, accepted, taken, completed, idle: replace(
        new_provider("p", "o", "P", START - timedelta(seconds=idle)),
        rating=rating,
        offers_answered=answered + accepted,
        offers_accepted=accepted,
        jobs_taken=taken + completed,
        jobs_completed=completed,
    ),
    st.floats(0, 5),
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.integers(-100, 10**7),
)


def test_weights_are_those_of_the_description_and_sum_to_one() -> None:
    assert dict(WEIGHTS) == {
        "eta": 0.30,
        "rating": 0.20,
        "acceptance": 0.15,
        "completion": 0.15,
        "zone_priority": 0.10,
        "idle": 0.10,
    }
    assert sum(WEIGHTS.values()) == pytest.approx(1, abs=1e-12)


@given(PROVIDERS, st.one_of(st.none(), st.integers(0, 10**6)), st.floats(0, 1))
def test_rank_and_its_components_lie_between_0_and_1(provider: Provider, eta: int | None, priority: float) -> None:
    parts = offers.rank(provider, eta, priority, START)
    assert parts.keys() == WEIGHTS.keys()
    assert all(0 <= part <= 1 for part in parts.values()), parts
    assert 0 <= offers.weighted(parts) <= 1 + 1e-12


BETTER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nearer": ({"position": north_of(CENTRE, 500)}, {"position": north_of(CENTRE, 5000)}),
    "better rated": ({"rating": 4.9}, {"rating": 4.1}),
    "accepts more": ({"offers_answered": 10, "offers_accepted": 9}, {"offers_answered": 10, "offers_accepted": 2}),
    "completes more": ({"jobs_taken": 10, "jobs_completed": 9}, {"jobs_taken": 10, "jobs_completed": 5}),
    "idle for longer": ({"idle_since": START - timedelta(minutes=50)}, {"idle_since": START - timedelta(minutes=5)}),
}


@pytest.mark.parametrize("merit", BETTER)
async def test_better_provider_is_asked_first(market: Marketplace, merit: str) -> None:
    better, worse = BETTER[merit]
    # The worse one is older: a tie, broken by id, would go to it.
    await market.firm(**worse)
    market.clock.advance(0.002)
    first = await market.firm(**better)
    assert await market.asked(await market.book(await market.customer())) == {first.provider_id}


async def test_components_are_stored_and_shown_with_the_offer(market: Marketplace) -> None:
    firm = await market.firm(
        rating=4.5,
        offers_answered=9,
        offers_accepted=4,
        jobs_taken=4,
        jobs_completed=3,
        idle_since=START - timedelta(minutes=30),
        position=north_of(CENTRE, 1000),
    )
    booking_id = await market.book(await market.customer())
    (row,) = await market.offers(booking_id)
    eta_seconds = round(1000 * 1.3 / (25 / 3.6))
    expected = {"rating": 0.9, "acceptance": 0.5, "completion": 0.8, "zone_priority": 0.5, "idle": 0.5}
    assert row.rank_parts == pytest.approx(expected | {"eta": 1 - eta_seconds / 3600}, abs=1e-3)
    assert row.rank == pytest.approx(sum(WEIGHTS[name] * value for name, value in row.rank_parts.items()))
    assert row.eta_seconds == pytest.approx(eta_seconds, abs=1)
    (shown,) = (await market.call(firm.person, "offer.list"))["offers"]
    assert shown["rank_parts"] == pytest.approx(row.rank_parts, abs=1e-4)
    assert (shown["eta_seconds"], shown["wave"], shown["status"]) == (row.eta_seconds, 1, "sent")


def test_distance_and_eta_follow_the_great_circle() -> None:
    london, paris = Point(51.5074, -0.1278), Point(48.8566, 2.3522)
    assert distance_m(london, paris) == pytest.approx(343_500, rel=0.002)
    assert distance_m(paris, london) == distance_m(london, paris)
    assert distance_m(london, london) == 0
    assert distance_m(Point(0, 179.9), Point(0, -179.9)) == pytest.approx(22_239, rel=0.001)
    assert GreatCircleEta(1.3, 36).eta_seconds(Point(0, 0), north_of(Point(0, 0), 1000)) == 130


# --- what it shows ----------------------------------------------------------------------------------------------------


async def test_offer_tells_roughly_where_and_neither_place_nor_address_nor_customer(market: Marketplace) -> None:
    customer, firm = await market.customer(), await market.firm()
    place = {"lat": 51.53912, "lon": -0.14264, "address": "12 Secret Mews"}
    booking_id = await market.book(customer, location=place, notes="key under the mat")
    shown = (await market.call(firm.person, "offer.list"))["offers"]
    told = (await market.events("offer.made"))[0].data
    assert told["offer"] == shown[0]
    assert shown[0]["booking"]["area"] == {"name": "Camden", "lat": 51.54, "lon": -0.14}
    for secret in ("51.53912", "0.14264", "Secret", "mat", customer.user_id):
        assert secret not in json.dumps([shown, told])
    accepted = await market.accept(firm, booking_id)
    assert accepted["booking"]["location"] == place


@pytest.mark.parametrize(("price", "payout"), [(8_500, 7_225), (8_503, 7_228), (8_510, 7_233), (0, 0), (1, 1)])
async def test_payout_is_the_price_less_commission_rounded_half_up(
    empty_market: Marketplace, price: int, payout: int
) -> None:
    await empty_market.zone()
    await empty_market.service(price_minor=price)
    firm = await empty_market.firm()
    await empty_market.book(await empty_market.customer())
    (shown,) = (await empty_market.call(firm.person, "offer.list"))["offers"]
    assert shown["payout"] == {"amount_minor": payout, "currency": "GBP"}


async def test_live_offers_are_listed_soonest_to_expire_first_and_no_others(market: Marketplace) -> None:
    customer, firm, other = await market.customer(), await market.firm(rating=5.0), await market.firm(rating=1.0)
    scheduled = await market.book_slot(customer)
    market.clock.advance(1)
    on_demand = await market.book(customer)
    listed = (await market.call(firm.person, "offer.list"))["offers"]
    assert [offer["booking_id"] for offer in listed] == [on_demand, scheduled]
    assert (await market.call(other.person, "offer.list"))["offers"] == []
    market.clock.advance(30)  # past its time, though no timer has run yet
    listed = (await market.call(firm.person, "offer.list"))["offers"]
    assert [offer["booking_id"] for offer in listed] == [scheduled]


async def test_acked_offer_is_delivered_once_and_only_while_it_is_sent(market: Marketplace) -> None:
    customer, firm = await market.customer(), await market.firm()
    offer_id = await market.offer_id(firm, await market.book(customer))
    acked_at = market.clock.now()
    await market.write(lambda uow: uow.offers.delivered([offer_id], uow.now))
    market.clock.advance(1)
    await market.write(lambda uow: uow.offers.delivered([offer_id], uow.now))
    offer = await market.transactions.read(lambda uow: uow.offers.get(offer_id))
    assert offer is not None
    assert (offer.status, offer.delivered_at) == ("delivered", acked_at)
    await market.call(firm.person, "offer.accept", offer_id=offer_id)  # a delivered offer is still open
    await market.write(lambda uow: uow.offers.delivered([offer_id], uow.now))
    offer = await market.transactions.read(lambda uow: uow.offers.get(offer_id))
    assert offer is not None
    assert offer.status == "accepted"


async def test_nobody_answers_an_offer_to_somebody_else(market: Marketplace) -> None:
    customer, firm = await market.customer(), await market.firm(rating=5.0)
    offer_id = await market.offer_id(firm, await market.book(customer))
    other = await market.firm()
    assert await refused(market.call(other.person, "offer.accept", offer_id=offer_id)) == "not_found"
    assert await refused(market.call(other.person, "offer.decline", offer_id=offer_id, reason="x")) == "not_found"
