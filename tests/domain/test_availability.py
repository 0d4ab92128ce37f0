"""Live status: what follows from sockets, jobs and choice; the linger time; claims of nodes that died."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import product
from typing import Any

from domain import availability
from domain.accounts import new_provider
from domain.availability import SOCKET_CLAIM_SECONDS, effective_status
from domain.context import Context
from domain.providers import ProviderStatus
from persistence import tables
from tests.domain.marketplace import FOREVER, START, Firm, Marketplace, refused

OFFLINE: dict[str, Any] = {"status": ProviderStatus.OFFLINE}


async def opened(market: Marketplace, firm: Firm, node: str = "node", *, stays: bool = True) -> None:
    """The first socket of the firm on a node; one that does not stay has its claim renewed by nobody."""

    async def work(ctx: Context) -> None:
        await availability.socket_opened(ctx, firm.provider_id, node)
        if stays:
            await ctx.uow.market.hold_socket(firm.provider_id, node, ctx.now + FOREVER)

    await market.as_system(work)


async def closed(market: Marketplace, firm: Firm, node: str = "node") -> None:
    await market.as_system(lambda ctx: availability.socket_closed(ctx, firm.provider_id, node))


async def choose(market: Marketplace, firm: Firm, status: str) -> str:
    result = await market.call(firm.person, "presence.set", status=status)
    shown: str = result["status"]
    return shown


async def status_of(market: Marketplace, firm: Firm) -> str:
    return (await market.provider(firm)).status.value


async def changes(market: Marketplace) -> list[tuple[str, str]]:
    return [(event.data["status"], event.data["reason"]) for event in await market.events("availability.changed")]


def test_status_follows_from_sockets_then_choice_then_jobs() -> None:
    provider = new_provider("p", "o", "P", START)
    seen = {}
    for chosen, connected, busy in product(("online", "away", "offline"), (True, False), (True, False)):
        object.__setattr__(provider, "chosen_status", ProviderStatus(chosen))
        seen[chosen, connected, busy] = effective_status(provider, connected=connected, busy=busy).value
    assert {key for key, status in seen.items() if status != "offline"} == {
        ("online", True, True),
        ("online", True, False),
        ("away", True, True),
        ("away", True, False),
    }
    assert [seen["online", True, True], seen["away", True, True]] == ["busy", "busy"]
    assert [seen["online", True, False], seen["away", True, False]] == ["online", "away"]


async def test_provider_is_offline_until_its_first_socket_and_then_online_by_itself(market: Marketplace) -> None:
    firm = await market.firm(**OFFLINE)
    await opened(market, firm)
    assert await status_of(market, firm) == "online"
    await opened(market, firm, "other-node")
    assert await changes(market) == [("online", "connected")], "the second socket changes nothing"
    (shown,) = market.announcer.of("presence.changed")
    assert shown.data == {
        "provider_id": firm.provider_id,
        "name": (await market.provider(firm)).name,
        "status": "online",
        "location": {"lat": 51.539, "lon": -0.1426},
    }
    assert shown.audience.organisations == (firm.organisation_id,)


async def test_provider_that_chose_offline_stays_so_when_it_connects(market: Marketplace) -> None:
    firm = await market.firm(**OFFLINE, chosen_status=ProviderStatus.OFFLINE)
    await opened(market, firm)
    assert await status_of(market, firm) == "offline"
    assert await choose(market, firm, "online") == "online"


async def test_provider_that_chose_away_stays_so_when_it_connects_again(market: Marketplace) -> None:
    firm = await market.firm()
    await choose(market, firm, "away")
    await closed(market, firm)
    await market.advance(60)
    await opened(market, firm)
    assert await status_of(market, firm) == "away"


async def test_provider_set_away_by_missed_offers_that_then_chose_away_stays_so(market: Marketplace) -> None:
    firm = await market.firm()
    await market.book(await market.customer())
    await market.advance(95)
    assert await choose(market, firm, "away") == "away"
    await closed(market, firm)
    await market.advance(46)
    await opened(market, firm)
    assert await status_of(market, firm) == "away"


async def test_provider_set_away_by_missed_offers_is_online_again_when_it_comes_back(market: Marketplace) -> None:
    firm = await market.firm()
    await market.book(await market.customer())
    await market.advance(95)
    assert await status_of(market, firm) == "away"
    await closed(market, firm)
    await market.advance(46)
    assert await status_of(market, firm) == "offline"
    await opened(market, firm)
    assert await status_of(market, firm) == "online"


async def test_provider_is_offline_45_seconds_after_its_last_socket(market: Marketplace) -> None:
    firm = await market.firm()
    await closed(market, firm)
    await market.advance(44.9)
    assert await status_of(market, firm) == "online"
    await market.advance(0.1)
    assert await status_of(market, firm) == "offline"
    assert await changes(market) == [("offline", "disconnected")]


async def test_provider_that_comes_back_within_the_linger_time_never_left(market: Marketplace) -> None:
    firm = await market.firm()
    await closed(market, firm)
    await market.advance(44)
    await opened(market, firm)
    assert await market.timer_names() == set()
    await market.advance(100)
    assert await status_of(market, firm) == "online"
    assert await changes(market) == []


async def test_socket_on_another_node_keeps_the_provider_online(market: Marketplace) -> None:
    firm = await market.firm()
    await opened(market, firm, "other-node")
    await closed(market, firm, "node")
    await market.advance(100)
    assert await status_of(market, firm) == "online"
    await closed(market, firm, "other-node")
    await market.advance(45)
    assert await status_of(market, firm) == "offline"


async def test_last_socket_counts_from_when_it_went_not_from_an_earlier_one(market: Marketplace) -> None:
    firm = await market.firm()
    await opened(market, firm, "other-node")
    await closed(market, firm, "node")
    await market.advance(40)
    await closed(market, firm, "other-node")
    await market.advance(44)
    assert await status_of(market, firm) == "online"
    await market.advance(1)
    assert await status_of(market, firm) == "offline"


async def test_provider_is_busy_while_on_a_job_and_only_then(market: Marketplace) -> None:
    customer, firm = await market.customer(), await market.firm()
    scheduled = await market.book_slot(customer)
    await market.accept(firm, scheduled)
    assert await status_of(market, firm) == "online", "a job to come keeps nobody busy"
    seen = []
    for target in ("en_route", "arrived", "in_progress", "paused", "in_progress", "completed"):
        await market.step(firm.person, scheduled, target)
        seen.append(await status_of(market, firm))
    assert seen == ["busy"] * 5 + ["online"]
    assert await changes(market) == [("busy", "job_en_route"), ("online", "job_completed")]
    provider = await market.provider(firm)
    assert (provider.jobs_taken, provider.jobs_completed) == (1, 1)


async def test_choice_made_on_a_job_counts_once_the_job_is_over(market: Marketplace) -> None:
    customer, firm = await market.customer(), await market.firm()
    booking_id = await market.job(customer, firm, "en_route", "arrived", "in_progress")
    assert await choose(market, firm, "away") == "busy"
    await market.step(firm.person, booking_id, "completed")
    assert await status_of(market, firm) == "away"


async def test_choosing_the_same_again_tells_nobody(market: Marketplace) -> None:
    firm = await market.firm()
    version = (await market.provider(firm)).version
    assert await choose(market, firm, "online") == "online"
    assert await changes(market) == []
    assert (await market.provider(firm)).version == version
    assert [await choose(market, firm, status) for status in ("away", "offline", "online")] == [
        "away",
        "offline",
        "online",
    ]
    assert await changes(market) == [("away", "chosen"), ("offline", "chosen"), ("online", "chosen")]
    assert (await market.provider(firm)).version == version + 3


async def test_without_a_socket_the_choice_is_kept_for_later(market: Marketplace) -> None:
    firm = await market.firm(**OFFLINE)
    assert await choose(market, firm, "online") == "offline"
    await opened(market, firm)
    assert await status_of(market, firm) == "online"


async def test_person_of_several_firms_names_the_one_meant(market: Marketplace) -> None:
    one, other = await market.firms(2)
    both = _merge(one, other)
    assert await refused(market.call(both.person, "presence.set", status="away")) == "not_found"
    await market.call(both.person, "presence.set", status="away", provider_id=other.provider_id)
    assert [await status_of(market, firm) for firm in (one, other)] == ["online", "away"]


def _merge(one: Firm, other: Firm) -> Firm:
    memberships = one.person.memberships + other.person.memberships
    return replace(one, person=replace(one.person, memberships=memberships))


async def test_idle_time_starts_when_the_provider_is_free(market: Marketplace) -> None:
    customer, firm = await market.customer(), await market.firm()
    booking_id = await market.job(customer, firm, "en_route", "arrived", "in_progress")
    market.clock.advance(600)
    await market.step(firm.person, booking_id, "completed")
    assert (await market.provider(firm)).idle_since == market.clock.now()


# --- nodes that died --------------------------------------------------------------------------------------------------


async def sweep(market: Marketplace, node: str) -> list[str]:
    """What each node does every few seconds; returns who was found unreachable."""

    async def work(ctx: Context) -> list[str]:
        await ctx.uow.market.renew_sockets(node, ctx.now + timedelta(seconds=SOCKET_CLAIM_SECONDS))
        gone = list(await ctx.uow.market.unreachable(ctx.now))
        for provider_id in gone:
            await availability.expect_offline(ctx, provider_id)
        return gone

    return await market.as_system(work)


async def test_provider_of_a_node_that_died_goes_offline_after_claim_and_linger(market: Marketplace) -> None:
    dead, alive = await market.firm(**OFFLINE), await market.firm(**OFFLINE)
    await opened(market, dead, "dead-node", stays=False)
    await opened(market, alive, "node", stays=False)
    await market.advance(SOCKET_CLAIM_SECONDS - 1)
    assert await sweep(market, "node") == []
    await market.advance(1)
    assert await sweep(market, "node") == [dead.provider_id]
    assert await sweep(market, "node") == [], "its linger time is running already"
    for _ in range(5):
        await market.advance(9)
        await sweep(market, "node")
    assert [await status_of(market, firm) for firm in (dead, alive)] == ["offline", "online"]
    assert await sweep(market, "node") == []


async def test_provider_of_a_dead_node_that_reconnects_elsewhere_stays(market: Marketplace) -> None:
    firm = await market.firm(**OFFLINE)
    await opened(market, firm, "dead-node", stays=False)
    await market.advance(SOCKET_CLAIM_SECONDS)
    assert await sweep(market, "node") == [firm.provider_id]
    await opened(market, firm, "node")
    await market.advance(100)
    assert await status_of(market, firm) == "online"
    assert await market.count(tables.timers) == 0


async def test_reconnecting_while_a_booking_waits_brings_its_offer(market: Marketplace) -> None:
    firm = await market.firm(**OFFLINE)
    booking_id = await market.book(await market.customer())
    await market.advance(2)
    await opened(market, firm)
    await market.run_timers()
    assert await market.asked(booking_id) == {firm.provider_id}
