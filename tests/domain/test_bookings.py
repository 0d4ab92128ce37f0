"""The booking's table: what it allows happens, with the right event; what it does not allow changes nothing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import product
from typing import Any

import pytest
from sqlalchemy import select

from domain import bookings, moves
from domain.bookings import TRANSITIONS, Booking, Party, Status
from domain.context import Context
from domain.errors import Conflict, IllegalTransition
from domain.identity import Actor
from persistence import tables
from tests.domain.booking_table import (
    CUSTOMER,
    EVENT_OF,
    OPERATIONS,
    PARTIES_OF,
    PROVIDER,
    STATUSES,
    STEPS,
    SYSTEM,
    WITHOUT_PROVIDER,
)
from tests.domain.marketplace import Firm, Marketplace, refusal, refused

REASON_NEEDED = {step for step in EVENT_OF if EVENT_OF[step] == "booking.cancelled"}


@dataclass(frozen=True)
class Scene:
    """A booking in some status and everybody who may have to do with it."""

    market: Marketplace
    booking_id: str
    people: dict[str, Actor]
    firm: Firm

    async def step(self, party: str, target: str, **params: Any) -> Any:
        """The step as this party takes it: by the command that is there for it, or by the system itself."""
        market, reason = self.market, params.get("reason")
        if party == SYSTEM:

            async def move(ctx: Context) -> Booking:
                booking = await ctx.uow.bookings.lock(self.booking_id)
                assert booking is not None
                return await moves.move(ctx, booking, Status(target), frozenset({Party.SYSTEM}), reason=reason)

            return await market.as_system(move)
        return await market.step(self.people[party], self.booking_id, target, **params)


async def scene(market: Marketplace, status: str, kind: str = "on_demand") -> Scene:
    customer, operator, firm = await market.customer(), await market.operator(), await market.firm()
    booking_id = await (market.book(customer) if kind == "on_demand" else market.book_slot(customer))
    if status in WITHOUT_PROVIDER:
        await market.put(booking_id, status)
    else:
        since = {"arrived_at": market.clock.now() - timedelta(minutes=11), "completed_at": None}
        if status == "completed":
            since["completed_at"] = market.clock.now()
        await market.give(booking_id, firm, status, **since)
    people = {CUSTOMER: customer, PROVIDER: firm.person, OPERATIONS: operator}
    return Scene(market, booking_id, people, firm)


def test_table_is_the_one_of_the_description() -> None:
    ours = {
        (source.value, row.target.value, party.value): row.event
        for row in TRANSITIONS
        for source in row.sources
        for party in row.parties
    }
    assert ours == {(source, target, party): EVENT_OF[source, target] for source, target, party in STEPS}
    assert {status.value for status in Status} == set(STATUSES)
    needing = {(source.value, row.target.value) for row in TRANSITIONS if row.needs_reason for source in row.sources}
    assert needing == REASON_NEEDED


@pytest.mark.parametrize("party", [CUSTOMER, PROVIDER, OPERATIONS, SYSTEM])
def test_no_step_outside_the_table_is_found_for_any_party(party: str) -> None:
    booking = object.__new__(Booking)
    for source, target in product(STATUSES, STATUSES):
        object.__setattr__(booking, "status", Status(source))
        if party in PARTIES_OF.get((source, target), frozenset()):
            row = bookings.find_transition(booking, Status(target), frozenset({Party(party)}))
            assert row.event == EVENT_OF[source, target]
        else:
            with pytest.raises(IllegalTransition):
                bookings.find_transition(booking, Status(target), frozenset({Party(party)}))


@pytest.mark.parametrize("status", STATUSES)
async def test_command_outside_the_table_is_refused_and_changes_nothing(market: Marketplace, status: str) -> None:
    setting = await scene(market, status)
    before = await market.rows(select(tables.bookings, tables.providers.c.version).join_from(*_BOTH, _EVERY))
    heard, timers = await market.newest_event(), await market.timer_names()
    for target, (party, actor) in product(STATUSES, setting.people.items()):
        if party in PARTIES_OF.get((status, target), frozenset()) and target not in {"assigned", "scheduled"}:
            continue
        error = await refusal(market.step(actor, setting.booking_id, target, reason="because"))
        if party == PROVIDER and status in WITHOUT_PROVIDER:
            assert error.type == "not_found", f"{party}: {status} -> {target}"
        else:
            assert error.type == "illegal_transition", f"{party}: {status} -> {target}"
            assert error.details["status_now"] == status
    assert await market.rows(select(tables.bookings, tables.providers.c.version).join_from(*_BOTH, _EVERY)) == before
    assert await market.events(after=heard) == []
    assert await market.timer_names() == timers


_BOTH = (tables.bookings, tables.providers)
_EVERY = tables.bookings.c.id.is_not(None)


@pytest.mark.parametrize(
    ("source", "target", "party"),
    # Nobody is the provider of a waiting booking yet, but for whoever accepts it.
    [step for step in STEPS if step[0] not in WITHOUT_PROVIDER or step[1:] != ("cancelled", PROVIDER)],
    ids=lambda part: part,
)
async def test_legal_step_is_taken_and_told(market: Marketplace, source: str, target: str, party: str) -> None:
    setting = await scene(market, source, "scheduled" if "scheduled" in {source, target} else "on_demand")
    firm, booking_id = setting.firm, setting.booking_id
    before, heard = await market.booking(booking_id), await market.newest_event()
    if party == PROVIDER and target in {"assigned", "scheduled"}:
        await market.accept(firm, booking_id)
    elif party == OPERATIONS and target in {"assigned", "scheduled"}:
        command = {"booking_id": booking_id, "provider_id": firm.provider_id}
        await market.call(setting.people[party], "booking.assign", **command)
    else:
        await setting.step(party, target, **({"reason": "because"} if (source, target) in REASON_NEEDED else {}))
    after = await market.booking(booking_id)
    assert after.status == target
    assert after.version == before.version + 1
    told = [event for event in await market.events(after=heard) if event.type.startswith(("booking.", "dispute."))]
    assert [event.type for event in told] == [EVENT_OF[source, target]]
    (event,) = told
    assert (event.data["from"], event.data["booking_id"]) == (source, booking_id)
    shown = event.data["booking"]
    assert (shown["status"], shown["version"]) == (target, after.version)
    assert event.data.get("reason") == ("because" if (source, target) in REASON_NEEDED else None)
    hearing = {f"booking:{booking_id}", f"user:{before.customer_id}", "admin:bookings"}
    concerned = source not in WITHOUT_PROVIDER or target in {"assigned", "scheduled"}
    assert event.channels == hearing | ({f"organisation:{firm.organisation_id}"} if concerned else set())


async def test_work_on_demand_is_assigned_and_scheduled_work_is_scheduled(market: Marketplace) -> None:
    customer, firm = await market.customer(), await market.firm()
    later, now = await market.book_slot(customer), await market.book(customer)
    assert (await market.accept(firm, later))["booking"]["status"] == "scheduled"
    assert (await market.accept(firm, now))["booking"]["status"] == "assigned"


@pytest.mark.parametrize("party", [CUSTOMER, PROVIDER, OPERATIONS])
async def test_cancelling_needs_a_reason(market: Marketplace, party: str) -> None:
    setting = await scene(market, "assigned")
    actor, booking_id = setting.people[party], setting.booking_id
    error = await refusal(market.step(actor, booking_id, "cancelled"))
    assert (error.type, error.details["errors"][0]["where"]) == ("invalid_params", "reason")
    assert await refused(market.call(actor, "booking.cancel", booking_id=booking_id)) == "invalid_params"
    assert await refused(market.call(actor, "booking.cancel", booking_id=booking_id, reason=" ")) == "invalid_params"
    assert (await market.booking(booking_id)).status == "assigned"
    await market.call(actor, "booking.cancel", booking_id=booking_id, reason=" changed plans ")
    assert (await market.events("booking.cancelled"))[0].data["reason"] == "changed plans"


async def test_cancelling_what_is_cancelled_says_so_and_tells_nobody_again(market: Marketplace) -> None:
    customer = await market.customer()
    booking_id = await market.book(customer)
    first = await market.call(customer, "booking.cancel", booking_id=booking_id, reason="one")
    second = await market.call(customer, "booking.cancel", booking_id=booking_id, reason="two")
    assert second == first
    assert len(await market.events("booking.cancelled")) == 1


@pytest.mark.parametrize("party", [CUSTOMER, PROVIDER])
async def test_no_show_counts_after_ten_minutes_and_not_before(market: Marketplace, party: str) -> None:
    setting = await scene(market, "en_route")
    await setting.step(PROVIDER, "arrived")
    market.clock.advance(599.999)
    assert await refused(setting.step(party, "no_show")) == "too_early"
    market.clock.advance(0.001)
    await setting.step(party, "no_show")
    assert (await market.booking(setting.booking_id)).status == "no_show"


@pytest.mark.parametrize("party", [CUSTOMER, PROVIDER])
async def test_completed_work_is_disputed_for_fourteen_days_and_no_longer(market: Marketplace, party: str) -> None:
    setting = await scene(market, "in_progress")
    await setting.step(PROVIDER, "completed")
    market.clock.advance(14 * 86_400 + 0.001)
    assert await refused(setting.step(party, "disputed")) == "too_late"
    market.clock.advance(-0.001)
    await setting.step(party, "disputed")
    assert (await market.booking(setting.booking_id)).status == "disputed"


async def test_work_in_progress_is_disputed_however_long_it_takes(market: Marketplace) -> None:
    setting = await scene(market, "in_progress")
    market.clock.advance(20 * 86_400)
    await setting.step(CUSTOMER, "disputed")
    assert (await market.booking(setting.booking_id)).status == "disputed"


async def test_settled_dispute_does_not_count_the_completion_twice(market: Marketplace) -> None:
    setting = await scene(market, "in_progress")
    await setting.step(PROVIDER, "completed")
    await setting.step(CUSTOMER, "disputed")
    await setting.step(OPERATIONS, "completed")
    assert (await market.provider(setting.firm)).jobs_completed == 1


async def test_stale_version_is_a_conflict_that_names_the_newest(market: Marketplace) -> None:
    setting = await scene(market, "assigned")
    version, heard = (await market.booking(setting.booking_id)).version, await market.newest_event()
    for seen in (version - 1, version + 1):
        error = await refusal(setting.step(PROVIDER, "en_route", version=seen))
        assert (error.type, error.details["version"]) == ("conflict", version)
    assert await market.events(after=heard) == []


async def test_save_over_another_version_is_a_conflict(market: Marketplace) -> None:
    booking = await market.booking(await market.book(await market.customer()))
    for version in (booking.version, booking.version + 2):
        with pytest.raises(Conflict):
            await market.write(lambda uow, v=version: uow.bookings.save(replace(booking, version=v)))  # type: ignore[misc]


async def test_of_two_people_at_once_one_takes_the_step(market: Marketplace) -> None:
    setting = await scene(market, "arrived")
    version = (await market.booking(setting.booking_id)).version
    first = market.step(setting.people[PROVIDER], setting.booking_id, "in_progress", version=version)
    second = market.step(
        setting.people[CUSTOMER], setting.booking_id, "cancelled", version=version, reason="not needed"
    )
    await market.warm()
    outcomes = await _outcomes(first, second)
    assert sorted(outcomes) == ["conflict", "done"]
    assert (await market.booking(setting.booking_id)).version == version + 1


async def test_versions_rise_by_one_from_creation_to_completion(market: Marketplace) -> None:
    customer, firm = await market.customer(), await market.firm()
    targets = ("en_route", "arrived", "in_progress", "paused", "in_progress", "completed")
    booking_id = await market.job(customer, firm, *targets)
    told = [event.data for event in await market.events() if event.type.startswith("booking.")]
    assert [data["booking"]["version"] for data in told] == list(range(1, 10))
    assert [data["from"] for data in told] == [None, *(data["booking"]["status"] for data in told[:-1])]
    assert (await market.booking(booking_id)).version == 9


@pytest.mark.parametrize("source", ["assigned", "scheduled", "en_route"])
@pytest.mark.parametrize("party", [PROVIDER, OPERATIONS, SYSTEM])
async def test_reassignment_takes_access_away_after_the_last_word(market: Marketplace, source: str, party: str) -> None:
    setting = await scene(market, source, "scheduled" if source == "scheduled" else "on_demand")
    firm, booking_id, heard = setting.firm, setting.booking_id, await market.newest_event()
    await setting.step(party, "awaiting_assignment")
    told = await market.events(after=heard)
    assert [event.type for event in told[:2]] == ["booking.reassignment_started", "access.revoked"]
    last_word, revoked = told[:2]
    assert f"organisation:{firm.organisation_id}" in last_word.channels
    assert "provider_id" not in last_word.data["booking"]
    assert revoked.channels == {"control"}
    assert revoked.data["channels"] == [f"booking:{booking_id}", f"conversation:{booking_id}"]
    assert revoked.data["provider_ids"] == [firm.provider_id]
    assert await refused(market.call(firm.person, "booking.get", booking_id=booking_id)) == "not_found"
    assert (await market.booking(booking_id)).organisation_id is None


async def test_reassignment_and_revocation_stand_or_fall_together(market: Marketplace) -> None:
    setting = await scene(market, "assigned")
    heard = await market.newest_event()

    async def fail_after_the_step(ctx: Context) -> None:
        booking = await ctx.uow.bookings.lock(setting.booking_id)
        assert booking is not None
        await moves.move(ctx, booking, Status.AWAITING_ASSIGNMENT, frozenset({Party.SYSTEM}))
        raise RuntimeError("the process dies here")

    with pytest.raises(RuntimeError):
        await market.as_system(fail_after_the_step)
    assert await market.events(after=heard) == []
    assert (await market.booking(setting.booking_id)).provider_id == setting.firm.provider_id
    assert await market.count(tables.booking_declines) == 0


async def test_reassignment_searches_again_but_never_asks_that_provider(market: Marketplace) -> None:
    customer, first = await market.customer(), await market.firm()
    booking_id = await market.job(customer, first, "en_route")
    other = await market.firm()
    asked_before = len(await market.offers(booking_id))
    market.clock.advance(1)
    await market.step(first.person, booking_id, "awaiting_assignment")
    await market.run_timers()
    again = (await market.offers(booking_id))[asked_before:]
    assert [offer.provider_id for offer in again] == [other.provider_id]
    # Not even when it is the only one left, or comes back online.
    await market.call(other.person, "offer.decline", offer_id=again[0].id, reason="too far")
    for status in ("away", "online"):
        await market.call(first.person, "presence.set", status=status)
    await market.advance(1200)
    assert len(await market.offers(booking_id)) == asked_before + 1
    assert (await market.booking(booking_id)).status == "unfulfilled"


async def test_reassigned_provider_is_free_and_its_old_offer_is_worth_nothing(market: Marketplace) -> None:
    customer, firm = await market.customer(), await market.firm()
    booking_id = await market.job(customer, firm)
    assert (await market.provider(firm)).status == "busy"
    await market.step(firm.person, booking_id, "awaiting_assignment")
    assert (await market.provider(firm)).status == "online"
    assert await refused(market.accept(firm, booking_id)) == "offer_withdrawn"


async def test_provider_has_one_job_under_way_at_a_time(market: Marketplace) -> None:
    customer, firm, operator = await market.customer(), await market.firm(), await market.operator()
    disputed = await market.job(customer, firm, "en_route", "arrived", "in_progress", "disputed")
    planned = await market.book_slot(customer)
    await market.accept(firm, planned)
    current = await market.job(customer, firm)
    assert await refused(market.step(operator, disputed, "in_progress")) == "slot_taken"
    assert await refused(market.step(firm.person, planned, "en_route")) == "slot_taken"
    await market.walk(firm.person, current, "en_route", "arrived", "in_progress", "completed")
    await market.step(operator, disputed, "in_progress")
    assert (await market.provider(firm)).status == "busy"


async def _outcomes(*attempts: Any) -> list[str]:
    results = await asyncio.gather(*attempts, return_exceptions=True)
    return [getattr(result, "type", "failed") if isinstance(result, Exception) else "done" for result in results]
