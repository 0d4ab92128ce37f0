"""Positions on a job: how often, how fresh, for whom; arrival by geofence; when an ETA is told."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from channels import topics
from domain.identity import Actor
from domain.types import JSON, Point
from tests.domain.marketplace import CENTRE, Firm, Marketplace, north_of, refusal, refused

FAR = north_of(CENTRE, 3000)


async def job(market: Marketplace, *targets: str) -> tuple[Actor, Firm, str]:
    customer, firm = await market.customer(), await market.firm()
    return customer, firm, await market.job(customer, firm, *targets)


async def publish(
    market: Marketplace, firm: Firm, place: Point = FAR, fix_at: datetime | None = None, **params: Any
) -> JSON:
    fix_at = fix_at or market.clock.now()
    return await market.call(firm.person, "location.publish", **place.view(), fix_at=fix_at.isoformat(), **params)


async def test_fix_goes_out_to_the_bookings_people_only(market: Marketplace) -> None:
    _, firm, booking_id = await job(market, "en_route")
    assert await publish(market, firm, accuracy_m=5.0, heading_deg=90.0) == {"booking_id": booking_id, "shared": True}
    (moved,) = market.announcer.of("location.moved")
    assert moved.data == FAR.view() | {
        "booking_id": booking_id,
        "provider_id": firm.provider_id,
        "accuracy_m": 5.0,
        "heading_deg": 90.0,
        "fix_at": "2026-11-24T09:00:00.000Z",
    }
    assert moved.event_class == "ephemeral"
    assert topics.route(moved) == (f"booking:{booking_id}",)
    provider = await market.provider(firm)
    assert (provider.position, provider.fix_at) == (FAR, market.clock.now())


async def test_position_is_shared_from_setting_out_to_completion_and_at_no_other_time(market: Marketplace) -> None:
    _, firm, booking_id = await job(market)
    assert await refused(publish(market, firm)) == "not_on_a_job"
    for target in ("en_route", "arrived", "in_progress", "paused", "in_progress"):
        await market.step(firm.person, booking_id, target)
        market.clock.advance(3)
        assert (await publish(market, firm))["shared"], target
    await market.step(firm.person, booking_id, "completed")
    market.clock.advance(3)
    assert await refused(publish(market, firm)) == "not_on_a_job"
    assert len(market.announcer.of("location.moved")) == 5


async def test_one_fix_a_second_comes_in_and_one_in_three_seconds_goes_out(market: Marketplace) -> None:
    _, firm, _ = await job(market, "en_route")
    assert (await publish(market, firm))["shared"]
    market.clock.advance(0.999)
    error = await refusal(publish(market, firm))
    assert (error.type, error.details["retry_after_seconds"]) == ("too_many_requests", 0.001)
    shared = []
    for seconds in (0.001, 1, 1, 1, 1, 1):
        market.clock.advance(seconds)
        shared.append((await publish(market, firm))["shared"])
    assert shared == [False, False, True, False, False, True]


async def test_refused_fix_does_not_count_against_the_pace(market: Marketplace) -> None:
    _, firm, booking_id = await job(market)
    assert await refused(publish(market, firm)) == "not_on_a_job"
    await market.step(firm.person, booking_id, "en_route")
    assert (await publish(market, firm))["shared"]


@pytest.mark.parametrize(
    ("age_seconds", "type_"),
    [(60, None), (60.001, "stale_fix"), (-5, None), (-5.001, "stale_fix"), (86_400, "stale_fix")],
)
async def test_fix_older_than_a_minute_or_from_the_future_is_refused(
    market: Marketplace, age_seconds: float, type_: str | None
) -> None:
    _, firm, _ = await job(market, "en_route")
    attempt = publish(market, firm, fix_at=market.clock.now() - timedelta(seconds=age_seconds))
    if type_ is None:
        assert (await attempt)["shared"]
    else:
        assert await refused(attempt) == type_
        assert (await market.provider(firm)).position == CENTRE
        assert market.announcer.of("location.moved") == []


async def test_newest_fix_wins(market: Marketplace) -> None:
    _, firm, _ = await job(market, "en_route")
    now = market.clock.now()
    await publish(market, firm, fix_at=now)
    market.clock.advance(3)
    assert await refused(publish(market, firm, fix_at=now - timedelta(seconds=1))) == "stale_fix"
    assert await refused(publish(market, firm, fix_at=now)) == "stale_fix"
    await publish(market, firm, fix_at=now + timedelta(seconds=1))


async def test_newest_fix_wins_also_over_one_that_another_node_took(market: Marketplace) -> None:
    _, firm, _ = await job(market, "en_route")
    await market.alter(firm, fix_at=market.clock.now() + timedelta(seconds=1))
    assert await refused(publish(market, firm)) == "stale_fix"
    market.clock.advance(2)
    assert (await publish(market, firm))["shared"], "the refused one did not count against the pace"


@pytest.mark.parametrize(("metres", "arrives"), [(149, True), (151, False)])
async def test_provider_within_150_metres_has_arrived(market: Marketplace, metres: float, arrives: bool) -> None:
    _, firm, booking_id = await job(market, "en_route")
    version = (await market.booking(booking_id)).version
    await publish(market, firm, north_of(CENTRE, metres))
    booking = await market.booking(booking_id)
    assert (booking.status, booking.version) == (("arrived", version + 1) if arrives else ("en_route", version))
    told = await market.events("booking.arrived")
    assert [event.data["from"] for event in told] == (["en_route"] if arrives else [])
    assert booking.arrived_at == (market.clock.now() if arrives else None)


async def test_arrival_does_not_wait_for_the_pace_and_happens_once(market: Marketplace) -> None:
    _, firm, booking_id = await job(market, "en_route")
    await publish(market, firm)
    market.clock.advance(1)
    assert not (await publish(market, firm, CENTRE))["shared"]
    assert (await market.booking(booking_id)).status == "arrived"
    for _ in range(3):
        market.clock.advance(3)
        await publish(market, firm, CENTRE)
    assert len(await market.events("booking.arrived")) == 1


async def test_nobody_arrives_before_setting_out(market: Marketplace) -> None:
    _, firm, booking_id = await job(market)
    assert await refused(publish(market, firm, CENTRE)) == "not_on_a_job"
    assert (await market.booking(booking_id)).status == "assigned"


async def test_eta_is_told_at_first_then_on_100_metres_or_30_seconds(market: Marketplace) -> None:
    _, firm, booking_id = await job(market, "en_route")

    async def told(place: Point, after_seconds: float) -> bool:
        market.clock.advance(after_seconds)
        before = len(await market.events("eta.updated"))
        await publish(market, firm, place)
        return len(await market.events("eta.updated")) > before

    assert await told(FAR, 0)
    assert not await told(north_of(FAR, 99), 3)
    assert await told(north_of(FAR, 101), 3)
    assert not await told(north_of(FAR, 101), 29)
    assert await told(north_of(FAR, 101), 3)
    first = (await market.events("eta.updated"))[0]
    assert first.data == {
        "booking_id": booking_id,
        "provider_id": firm.provider_id,
        "distance_m": pytest.approx(3000, abs=2),
        "eta_seconds": pytest.approx(3000 * 1.3 / (25 / 3.6), abs=1),
        "computed_at": "2026-11-24T09:00:00.000Z",
    }
    assert first.channels == {f"booking:{booking_id}"}
    assert (first.event.event_class, first.event.key) == ("latest", booking_id)


async def test_no_eta_after_arrival(market: Marketplace) -> None:
    _, firm, _ = await job(market, "en_route", "arrived")
    await publish(market, firm)
    assert await market.events("eta.updated") == []


async def test_next_job_gets_its_eta_at_once(market: Marketplace) -> None:
    customer, firm, booking_id = await job(market, "en_route")
    await publish(market, firm)
    await market.walk(firm.person, booking_id, "arrived", "in_progress", "completed")
    following = await market.job(customer, firm, "en_route")
    market.clock.advance(3)
    await publish(market, firm)
    told = await market.events("eta.updated")
    assert [event.data["booking_id"] for event in told] == [booking_id, following]
