"""Free times: finding them, holding one for a few minutes, and the one rule that keeps jobs from overlapping.

Invariants: whoever takes a provider's time, by a hold, an accepted offer, an assignment, another time or a booking made
    of a hold, asks :func:`require_free` under the lock of the provider's row. So two holds or confirmed jobs of one
    provider never overlap, and neither comes nearer than the travel buffer.

A hold ends by a durable timer, and counts for nothing from its last instant on, whether the timer has run or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import Field

from domain.availability import is_soon
from domain.calendars import Hold, Plan, free_starts, is_full, is_open, is_taken
from domain.context import Context
from domain.errors import Forbidden, HoldExpired, InvalidParams, SlotClosed, SlotHeld, SlotTaken, TooManyHolds
from domain.events import Audience, Event, EventClass
from domain.ports import Candidate
from domain.providers import Provider, Service
from domain.types import JSON, Interval, new_id, wire_time
from domain.views import Key, Moment, Params, View

HOLD = "hold"
MOST_PROVIDERS = 100
MOST_CHANNELS = 64
LONGEST_HOLD = timedelta(hours=12)

Id = Annotated[str, Field(max_length=64)]


# --- the wire ---------------------------------------------------------------------------------------------------------


class FindSlots(Params):
    """Starts between ``from`` and ``to``, at most 31 days apart."""

    service_id: Id
    zone_id: Id
    from_: Annotated[Moment, Field(alias="from")]
    to: Moment
    provider_id: Id | None = None
    limit: Annotated[int, Field(ge=1, le=500)] = 200


class SlotView(View):
    """A time at which these providers are free, the best rated first."""

    start: str
    end: str
    provider_ids: list[str]


class SlotList(View):
    """Free times in order. ``next_from`` is there when there are more: ask again from it."""

    slots: list[SlotView]
    next_from: str | None = None


class HoldSlot(Params):
    """Without a provider the best rated one that is free is chosen, without ``end`` the service's usual length."""

    service_id: Id
    zone_id: Id
    provider_id: Id | None = None
    start: Moment
    end: Moment | None = None
    key: Key


class ReleaseSlot(Params):
    """Gives a held time back."""

    hold_id: Id
    key: Key


class HoldView(View):
    """A held time. ``server_time`` lets a client count down whatever its own clock says."""

    id: str
    provider_id: str
    service_id: str
    zone_id: str
    start: str
    end: str
    expires_at: str
    server_time: str


class HoldResult(View):
    """One hold."""

    hold: HoldView


class Released(View):
    """The hold that is no more."""

    hold_id: str


class SlotEventData(View):
    """A provider's time from ``start`` to ``end`` was held, booked, or is free again. A provider on the way needs its
    travel buffer too, so times that are near may have changed with it.
    """

    provider_id: str
    start: str
    end: str


def hold_view(hold: Hold, now: datetime) -> JSON:
    """A hold, for who has it and for the provider's people."""
    return {
        "id": hold.id,
        "provider_id": hold.provider_id,
        "service_id": hold.service_id,
        "zone_id": hold.zone_id,
        "start": wire_time(hold.during.start),
        "end": wire_time(hold.during.end),
        "expires_at": wire_time(hold.expires_at),
        "server_time": wire_time(now),
    }


# --- finding ----------------------------------------------------------------------------------------------------------


async def find(ctx: Context, params: FindSlots) -> JSON:
    """When a service can be had in a zone, from the calendars of those who offer it.

    Raises:
        InvalidParams: unknown service or zone, or too long a time.
    """
    service = await _service(ctx, params.service_id)
    if await ctx.uow.market.zone(params.zone_id) is None:
        raise InvalidParams.at("zone_id", "there is no such zone")
    within = bounded(params.from_, params.to, ctx.policy.slot_days)
    providers = await ctx.uow.calendars.planned(service.id, params.zone_id, MOST_PROVIDERS, params.provider_id)
    start = max(within.start, ctx.now)
    if start >= within.end:
        return {"slots": []}
    within = Interval(start, within.end)
    length, step = timedelta(minutes=service.duration_minutes), timedelta(minutes=ctx.policy.slot_step_minutes)
    # Nobody knows when work under way will end, so whoever does some cannot be held for a time that is soon.
    any_soon = is_soon(ctx, within)
    busy = await ctx.uow.bookings.busy([each.id for each in providers]) if any_soon else frozenset()
    free: dict[datetime, list[str]] = {}
    for part in _in_growing_parts(within):
        plans = await ctx.uow.calendars.plans([each.id for each in providers], part, ctx.now)
        for provider in providers:
            # Arithmetic that nothing interrupts: whoever else is served by this loop gets a turn in between.
            await asyncio.sleep(0)
            plan = plans.get(provider.id)
            if plan is not None:
                for each in free_starts(plan, part, length, step, ctx.uow.recurrences):
                    if provider.id not in busy or not is_soon(ctx, Interval(each, each + length)):
                        free.setdefault(each, []).append(provider.id)
        if len(free) > params.limit:
            break
    starts = sorted(free)
    shape: JSON = {
        "slots": [
            {"start": wire_time(each), "end": wire_time(each + length), "provider_ids": free[each]}
            for each in starts[: params.limit]
        ]
    }
    if len(starts) > params.limit:
        shape["next_from"] = wire_time(starts[params.limit])
    return shape


def _in_growing_parts(within: Interval) -> Iterator[Interval]:
    """A day, two days, four and so on: a question that soon has its answer costs little, and one that has none costs
    few queries and hardly more arithmetic than all of it at once.
    """
    start, length = within.start, timedelta(days=1)
    while start < within.end:
        end = min(start + length, within.end)
        yield Interval(start, end)
        start, length = end, 2 * length


def bounded(start: datetime, end: datetime, most_days: int) -> Interval:
    """The time between, checked.

    Raises:
        InvalidParams: reversed, or too long.
    """
    if end <= start:
        raise InvalidParams.at("to", "must be after from")
    if end - start > timedelta(days=most_days):
        raise InvalidParams.at("to", f"at most {most_days} days after from")
    return Interval(start, end)


async def free_in_slot(
    ctx: Context, candidates: Sequence[Candidate], during: Interval, *, by_plan: bool
) -> list[Candidate]:
    """Those of the candidates whose calendars leave this time free.

    Args:
        by_plan: whether rules, exceptions and the most jobs of a day count. For work on demand they do not: whoever is
            online is at work.
    """
    with_calendar = [each.provider.id for each in candidates if each.has_calendar]
    if not with_calendar:
        return list(candidates)
    plans = await ctx.uow.calendars.plans(with_calendar, during, ctx.now)

    def free(plan: Plan | None) -> bool:
        if plan is None:
            return True
        return not is_taken(plan, during) and (not by_plan or _is_open(ctx, plan, during))

    return [each for each in candidates if free(plans.get(each.provider.id))]


# --- taking -----------------------------------------------------------------------------------------------------------


async def require_free(
    ctx: Context,
    provider_id: str,
    during: Interval,
    *,
    soon: bool,
    by_plan: bool = False,
    except_id: str = "",
) -> None:
    """Asks whether a provider, whose row is locked, can be given this time.

    Args:
        soon: whether any job under way is in the way as well, see :func:`domain.availability.is_soon`.
        by_plan: whether it must be a time at which the provider works by its calendar, if it has rules, on a day on
            which it has not all the jobs that it does in one. For whoever asks nobody of the provider.
        except_id: the booking or the hold that is to have the time.

    Raises:
        SlotTaken: a job is in the way.
        SlotHeld: a hold is in the way, and no job.
        SlotClosed: it is not such a time.
    """
    if await ctx.uow.bookings.clashes(provider_id, during, soon=soon, except_id=except_id):
        raise SlotTaken
    # Without a calendar there is nothing to find but how many jobs there are.
    plan = (await ctx.uow.calendars.plans([provider_id], during, ctx.now, everybody=by_plan)).get(provider_id)
    if plan is None:
        return
    if is_taken(replace(plan, holds=()), during, except_id=except_id):
        raise SlotTaken
    if is_taken(plan, during, except_id=except_id):
        raise SlotHeld
    if by_plan and not _is_open(ctx, plan, during, except_id):
        raise SlotClosed


def _is_open(ctx: Context, plan: Plan, during: Interval, except_id: str = "") -> bool:
    return is_open(plan, during, ctx.uow.recurrences) and not is_full(plan, during.start, except_id=except_id)


async def hold(ctx: Context, params: HoldSlot) -> JSON:
    """A customer has a provider's time for five minutes; nobody else gets it meanwhile.

    Raises:
        InvalidParams: unknown service, or a time that makes no sense.
        SlotTaken, SlotClosed: nobody who was asked for is free then.
        TooManyHolds: the customer holds other times.
    """
    service = await _service(ctx, params.service_id)
    during = _wanted(params, service, ctx.now)
    # Those that the same person asks for at once are counted one after the other.
    await ctx.uow.people.lock_user(ctx.actor.user_id)
    if await ctx.uow.calendars.holds_of(ctx.actor.user_id, ctx.now) >= ctx.policy.holds_per_customer:
        raise TooManyHolds
    providers = await ctx.uow.calendars.planned(service.id, params.zone_id, MOST_PROVIDERS, params.provider_id)
    provider = await _first_free(ctx, providers, during)
    held = Hold(
        id=new_id(ctx.now),
        provider_id=provider.id,
        organisation_id=provider.organisation_id,
        customer_id=ctx.actor.user_id,
        service_id=service.id,
        zone_id=params.zone_id,
        during=during,
        expires_at=ctx.now + timedelta(seconds=ctx.policy.hold_seconds),
    )
    await ctx.uow.calendars.add_hold(held)
    await ctx.uow.timers.set(f"{HOLD}:{held.id}", held.expires_at, HOLD, {"hold_id": held.id})
    await tell(ctx, provider, "slot.held", during)
    return {"hold": hold_view(held, ctx.now)}


async def release(ctx: Context, params: ReleaseSlot) -> JSON:
    """Gives a held time back."""
    held = await ctx.uow.calendars.hold(params.hold_id)
    if held is None or held.customer_id != ctx.actor.user_id:
        raise Forbidden
    await _end(ctx, held)
    return {"hold_id": held.id}


async def ran_out(ctx: Context, data: JSON) -> None:
    """The timer of a hold."""
    held = await ctx.uow.calendars.hold(data["hold_id"])
    if held is not None:
        await _end(ctx, held)


async def own_hold(ctx: Context, hold_id: str) -> Hold:
    """A hold that the caller may book.

    Raises:
        HoldExpired: it ran out, or is none of the caller's; the two look the same.
    """
    held = await ctx.uow.calendars.hold(hold_id)
    if held is None or held.customer_id != ctx.actor.user_id or held.expires_at <= ctx.now:
        raise HoldExpired
    return held


async def redeem(ctx: Context, held: Hold) -> Provider:
    """Ends a hold in favour of a booking; the provider's row is locked from here on.

    Raises:
        HoldExpired: somebody was quicker, the customer itself or the clock.
    """
    provider = await ctx.uow.market.lock_provider(held.provider_id)
    if provider is None or await ctx.uow.calendars.hold(held.id) is None:
        raise HoldExpired
    # Whatever is under way was taken on while this time was held.
    await require_free(ctx, provider.id, held.during, soon=False, except_id=held.id)
    await ctx.uow.calendars.remove_hold(held.id)
    await ctx.uow.timers.cancel(f"{HOLD}:{held.id}")
    return provider


async def tell(ctx: Context, provider: Provider, type_: str, during: Interval) -> None:
    """Tells whoever looks for free times, and the provider's people, that a time was taken or is free again; nobody
    looks at the times of a provider without a calendar.
    """
    calendar = await ctx.uow.calendars.get(provider.id)
    if calendar is None:
        return
    start, end = wire_time(during.start), wire_time(during.end)
    reach = await ctx.uow.calendars.reach(provider.id, MOST_CHANNELS) if calendar.rules else ()
    if reach:
        ctx.uow.record(
            Event(
                id=new_id(ctx.now),
                type=type_,
                time=ctx.now,
                source=f"provider/{provider.id}",
                data={"provider_id": provider.id, "start": start, "end": end},
                audience=Audience(slots=tuple(reach)),
                event_class=EventClass.LATEST,
                key=f"{provider.id}/{start}/{end}",
            )
        )
    ctx.uow.record(calendar_changed(provider, calendar.version, type_.replace(".", "_"), ctx.now))


def calendar_changed(provider: Provider, version: int, reason: str, now: datetime) -> Event:
    """The provider's week is another one."""
    return Event(
        id=new_id(now),
        type="availability.changed",
        time=now,
        source=f"provider/{provider.id}",
        data={
            "provider_id": provider.id,
            "status": provider.status.value,
            "reason": reason,
            "calendar_version": version,
        },
        audience=Audience(providers=(provider.id,)),
        event_class=EventClass.LATEST,
        key=f"{provider.id}/calendar",
    )


async def _end(ctx: Context, held: Hold) -> None:
    provider = await ctx.uow.market.lock_provider(held.provider_id)
    if provider is None or await ctx.uow.calendars.hold(held.id) is None:
        return
    await ctx.uow.calendars.remove_hold(held.id)
    await ctx.uow.timers.cancel(f"{HOLD}:{held.id}")
    await tell(ctx, provider, "slot.opened", held.during)


async def _first_free(ctx: Context, providers: Sequence[Provider], during: Interval) -> Provider:
    """The first that is free, locked. Who is free is asked without locks first, and of those only some with."""
    candidates = [Candidate(each, 0, already_asked=False, has_calendar=True) for each in providers]
    free = await free_in_slot(ctx, candidates, during, by_plan=True)
    refusal: SlotTaken | SlotClosed = SlotTaken()
    # A provider that was named is asked in any case, so that the refusal says why.
    asked = [each.provider.id for each in free[:3] or candidates[:1]]
    # Locked in the order of their ids, as everywhere; chosen in the order of their ratings.
    locked = {each: await ctx.uow.market.lock_provider(each) for each in sorted(asked)}
    for each in asked:
        provider = locked[each]
        if provider is None or not provider.verified:
            continue
        try:
            await require_free(ctx, provider.id, during, soon=is_soon(ctx, during), by_plan=True)
        except (SlotTaken, SlotClosed) as error:
            refusal = error
        else:
            return provider
    raise refusal


def _wanted(params: HoldSlot, service: Service, now: datetime) -> Interval:
    end = params.end or params.start + timedelta(minutes=service.duration_minutes)
    if params.start <= now:
        raise InvalidParams.at("start", "must be in the future")
    if not timedelta() < end - params.start <= LONGEST_HOLD:
        raise InvalidParams.at("end", "must be after start, at most twelve hours")
    return Interval(params.start, end)


async def _service(ctx: Context, service_id: str) -> Service:
    service = await ctx.uow.market.service(service_id)
    if service is None:
        raise InvalidParams.at("service_id", "there is no such service")
    return service
