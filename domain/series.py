"""Series: the same job again and again, as bookings that are made some weeks ahead.

An instance is known by its recurrence id: the instant at which the rule puts it, wherever it was moved to since.

Invariants: everything about a series happens under the lock of its row, and an instance is noted under its recurrence
    id in the transaction that makes its booking, so each is made once, whichever node's worker does it; a durable timer
    named after the series drives the making, so a restart delays it and loses nothing. A time that somebody holds is
    asked for again once the hold is over, booked or not. What was called off alone stays called off, whatever becomes
    of the series. What has begun is not touched by any change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from domain import availability, bookings, dispatch, lifecycle, moves, slots
from domain.bookings import Booking, Kind, Party, Status
from domain.calendars import Hold
from domain.context import Context
from domain.errors import Conflict, Forbidden, InvalidParams, OutsideZones, SlotClosed, SlotHeld, SlotTaken
from domain.events import Audience, Event
from domain.providers import Service, Zone
from domain.recurrence import Recurrence
from domain.series_shapes import (
    NOT_BEGUN,
    CancelSeries,
    CreateSeries,
    EditSeries,
    Instance,
    InstanceStatus,
    Scope,
    Series,
    SeriesCancelled,
    SeriesRef,
    SeriesStatus,
    TooManySeries,
    instance_view,
    series_view,
)
from domain.types import JSON, Interval, Point, new_id, wire_time
from domain.views import NoParams

SERIES = "series"
BATCH = 5
"""Instances made in one transaction."""
MOST_INSTANCES = 100
FARTHEST = timedelta(days=366)
"""How far ahead a change may name an occurrence: rules are not counted up to any time that somebody thinks of."""


# --- looking ----------------------------------------------------------------------------------------------------------


async def get(ctx: Context, params: SeriesRef) -> JSON:
    """One series, for its customer and operations."""
    series = await ctx.uow.series.get(params.series_id)
    if series is None or not (series.customer_id == ctx.actor.user_id or ctx.actor.is_operations):
        raise Forbidden
    return await _result(ctx, series)


async def list_own(ctx: Context, _: NoParams) -> JSON:
    """The caller's series."""
    return {"series": [series_view(each) for each in await ctx.uow.series.of_customer(ctx.actor.user_id, 100)]}


# --- changing ---------------------------------------------------------------------------------------------------------


async def create(ctx: Context, params: CreateSeries) -> JSON:
    """A customer books the same job again and again. Instances follow at once, in the background; a time that the
    customer holds is booked here and now, so that the series begins with it or not at all.

    Raises:
        InvalidParams: unknown service or provider, a rule that is none, or a hold of another time.
        OutsideZones: no zone covers the place.
        HoldExpired: the time is no longer held.
        TooManySeries: the customer has too many.
    """
    held = None if params.hold_id is None else await slots.own_hold(ctx, params.hold_id)
    service = await ctx.uow.market.service(params.service_id)
    if service is None:
        raise InvalidParams.at("service_id", "there is no such service")
    recurrence = _checked(ctx, params.recurrence.recurrence())
    place = Point(params.location.lat, params.location.lon)
    zone = await ctx.uow.market.zone_at(place)
    if zone is None:
        raise OutsideZones
    provider_id = params.provider_id
    if held is not None:
        provider_id = _provider_of_hold(ctx, held, provider_id, (service.id, zone.id), recurrence)
    if provider_id is not None and not await ctx.uow.calendars.offers(provider_id, service.id, zone.id):
        raise InvalidParams.at("provider_id", "there is no such provider for this service here")
    await _check_quota(ctx)
    series = Series(
        id=new_id(ctx.now),
        status=SeriesStatus.ACTIVE,
        version=1,
        customer_id=ctx.actor.user_id,
        service_id=service.id,
        zone_id=zone.id,
        provider_id=provider_id,
        location=place,
        address=params.location.address,
        notes=params.notes,
        recurrence=recurrence,
    )
    await _begin(ctx, series)
    if held is not None:
        booking = await lifecycle.place_wish(ctx, _wish(series, service, zone, held.during))
        await _note_booked(ctx, series, held.during.start, booking)
        await moves.assign(ctx, booking, await slots.redeem(ctx, held), frozenset({Party.PROVIDER}))
    return await _result(ctx, series)


def _provider_of_hold(
    ctx: Context, held: Hold, provider_id: str | None, wanted: tuple[str, str], recurrence: Recurrence
) -> str:
    if provider_id not in {None, held.provider_id}:
        raise InvalidParams.at("provider_id", "is not the one whose time is held")
    if (held.service_id, held.zone_id) != wanted:
        raise InvalidParams.at("hold_id", "is for another service or zone")
    if ctx.uow.recurrences.following(recurrence, ctx.now) != held.during:
        raise InvalidParams.at("hold_id", "is not for the first time of the rule")
    return held.provider_id


async def edit(ctx: Context, params: EditSeries) -> JSON:
    """Moves one instance, or gives the rest of the series another rule.

    Raises:
        Conflict: the series changed since the caller saw it.
        TooManySeries: it would be one more that goes on.
        InvalidParams: what the scope needs is missing, or there is no such occurrence.
        SlotTaken, SlotClosed, IllegalTransition: the one instance cannot be moved there.
    """
    series = await _locked(ctx, params.series_id)
    if series.version != params.version:
        raise Conflict(version=series.version)
    if series.status is SeriesStatus.CANCELLED:
        raise SeriesCancelled
    if params.scope is Scope.THIS:
        return await _result(ctx, await _move_one(ctx, series, params))
    if params.recurrence is None:
        raise InvalidParams.at("recurrence", "is needed for this scope")
    if params.scope is Scope.ALL:
        recurrence = _checked(ctx, params.recurrence.recurrence())
        if series.status is not SeriesStatus.ACTIVE:
            await _check_quota(ctx)
        after = replace(series, status=SeriesStatus.ACTIVE, recurrence=recurrence)
        after = await _save(ctx, after, "series.changed")
        await _clear(ctx, after, ctx.now, everything=True, keep=recurrence)
        await _wake(ctx, after, ctx.now)
        return await _result(ctx, after)
    since = await _beginning_of_rest(ctx, series, params.recurrence_id)
    recurrence = _checked(ctx, params.recurrence.recurrence(), since)
    first = ctx.uow.recurrences.following(recurrence, ctx.now)
    if first is not None and series.ends_before is not None and first.start >= series.ends_before:
        raise InvalidParams.at("recurrence.dtstart", "is after the end of the series")
    await _check_quota(ctx)
    await _save(ctx, replace(series, ends_before=since), "series.changed")
    await _clear(ctx, series, since)
    # What follows takes over the rest and no more: where this series ended, another may have begun.
    following = replace(
        series,
        id=new_id(ctx.now),
        status=SeriesStatus.ACTIVE,
        version=1,
        recurrence=recurrence,
        follows=series.id,
    )
    await _begin(ctx, following)
    return await _result(ctx, following)


async def cancel(ctx: Context, params: CancelSeries) -> JSON:
    """Calls off one instance, or the rest of the series."""
    series = await _locked(ctx, params.series_id)
    if params.scope is Scope.ALL:
        if series.status is not SeriesStatus.CANCELLED:
            series = await _save(ctx, replace(series, status=SeriesStatus.CANCELLED), "series.cancelled")
            await ctx.uow.timers.cancel(f"{SERIES}:{series.id}")
            await _clear(ctx, series, ctx.now, everything=True)
        return await _result(ctx, series)
    if params.scope is Scope.FUTURE:
        since = await _beginning_of_rest(ctx, series, params.recurrence_id)
        series = await _save(ctx, replace(series, ends_before=since), "series.changed")
        await _clear(ctx, series, since)
        return await _result(ctx, series)
    since = await _occurrence(ctx, series, params.recurrence_id)
    instance = await ctx.uow.series.instance(series.id, since)
    if instance is None or instance.status is not InstanceStatus.CANCELLED:
        if instance is not None:
            await _call_off(ctx, instance, "called off")
        booking_id = instance.booking_id if instance is not None else None
        await ctx.uow.series.put_instance(
            Instance(series.id, since, InstanceStatus.CANCELLED, booking_id, "called_off")
        )
        series = await _save(ctx, series, "series.changed")
    return await _result(ctx, series)


# --- making instances -------------------------------------------------------------------------------------------------


async def make_instances(ctx: Context, data: JSON) -> None:
    """The timer of a series: makes what is due within the next weeks, some at a time, and comes back for the rest."""
    series = await ctx.uow.series.lock(data["series_id"])
    if series is None or series.status is not SeriesStatus.ACTIVE:
        return
    customer = await ctx.uow.people.user(series.customer_id)
    if customer is None or customer.disabled_at is not None:
        # Whoever may come back finds the series going on.
        await _wake(ctx, series, ctx.now + timedelta(days=1))
        return
    horizon = ctx.now + timedelta(days=ctx.policy.series_days)
    due = await _to_make(ctx, series, Interval(ctx.now, horizon))
    service, zone = await ctx.uow.market.service(series.service_id), await ctx.uow.market.zone(series.zone_id)
    settled, held = 0, False
    if service is not None and zone is not None:
        for time in due:
            if settled == BATCH:
                # A moment later, or the timer would be taken for the one that is being done.
                await _wake(ctx, series, ctx.now + timedelta(milliseconds=10))
                return
            if await _make(ctx, series, service, zone, time):
                settled += 1
            else:
                held = True
    if held:
        await _wake(ctx, series, _holds_are_over(ctx))
        return
    following = ctx.uow.recurrences.following(series.recurrence, horizon)
    if following is None or _is_over_at(series, following.start):
        await _save(ctx, replace(series, status=SeriesStatus.ENDED), "series.ended")
        return
    ahead = timedelta(days=ctx.policy.series_days)
    await _wake(ctx, series, max(following.start - ahead, ctx.now + timedelta(milliseconds=10)))


async def _to_make(ctx: Context, series: Series, within: Interval) -> list[Interval]:
    known = await ctx.uow.series.instances(series.id, within.start, 10_000)
    done = {each.recurrence_id for each in known}
    return [
        time
        for time in ctx.uow.recurrences.overlapping(series.recurrence, within)
        if within.start < time.start and time.start not in done and not _is_over_at(series, time.start)
    ]


def _holds_are_over(ctx: Context) -> datetime:
    """When whatever is held now has become a booking or is free again."""
    return ctx.now + timedelta(seconds=ctx.policy.hold_seconds)


async def _make(ctx: Context, series: Series, service: Service, zone: Zone, time: Interval) -> bool:
    """Books an occurrence, or notes why not; returns whether that is settled, for somebody may just hold the time."""
    provider = None
    if series.provider_id is not None:
        try:
            provider = await ctx.uow.market.lock_provider(series.provider_id)
            if provider is None or not provider.verified:
                raise SlotClosed
            soon = availability.is_soon(ctx, time)
            await slots.require_free(ctx, provider.id, time, soon=soon, by_plan=True)
        except (SlotTaken, SlotClosed) as error:
            if isinstance(error, SlotHeld) and time.start > _holds_are_over(ctx):
                return False
            await ctx.uow.series.put_instance(
                Instance(series.id, time.start, InstanceStatus.SKIPPED, reason=error.type)
            )
            _tell_of_instance(ctx, series, time.start, "series.instance_skipped", reason=error.type)
            return True
    search_at = dispatch.search_time(ctx, time) if provider is None else ctx.now
    waits = search_at > ctx.now
    wish = _wish(series, service, zone, time)
    booking = await lifecycle.place_wish(ctx, wish, search_at=search_at if waits else None)
    await _note_booked(ctx, series, time.start, booking)
    if provider is not None:
        await moves.assign(ctx, booking, provider, frozenset({Party.PROVIDER}))
    elif not waits:
        await dispatch.send_wave(ctx, booking, zone, service)
    return True


# --- parts ------------------------------------------------------------------------------------------------------------


def _wish(series: Series, service: Service, zone: Zone, time: Interval) -> lifecycle.Wish:
    place, address = series.location, series.address
    return lifecycle.Wish(Kind.SCHEDULED, series.customer_id, service, zone, place, address, time, series.notes)


async def _note_booked(ctx: Context, series: Series, recurrence_id: datetime, booking: Booking) -> None:
    await ctx.uow.series.put_instance(Instance(series.id, recurrence_id, InstanceStatus.BOOKED, booking.id))
    _tell_of_instance(ctx, series, recurrence_id, "series.instance_created", booking_id=booking.id)


async def _begin(ctx: Context, series: Series) -> None:
    await ctx.uow.series.add(series)
    _tell(ctx, series, "series.created")
    await _wake(ctx, series, ctx.now)


async def _check_quota(ctx: Context) -> None:
    """Whether the customer may have one more that goes on; its row is locked from here on, so that none comes between.

    Raises:
        TooManySeries: it has as many as one may have.
    """
    await ctx.uow.people.lock_user(ctx.actor.user_id)
    if await ctx.uow.series.active(ctx.actor.user_id) >= ctx.policy.series_per_customer:
        raise TooManySeries


async def _wake(ctx: Context, series: Series, due_at: datetime) -> None:
    if series.status is SeriesStatus.ACTIVE:
        await ctx.uow.timers.set(f"{SERIES}:{series.id}", due_at, SERIES, {"series_id": series.id})


async def _save(ctx: Context, series: Series, type_: str) -> Series:
    after = replace(series, version=series.version + 1)
    await ctx.uow.series.save(after)
    _tell(ctx, after, type_)
    return after


async def _move_one(ctx: Context, series: Series, params: EditSeries) -> Series:
    if params.start is None:
        raise InvalidParams.at("start", "is needed for this scope")
    since = await _occurrence(ctx, series, params.recurrence_id)
    instance = await ctx.uow.series.instance(series.id, since)
    booking = None if instance is None or instance.booking_id is None else await _lock(ctx, instance.booking_id)
    if instance is None or booking is None:
        raise InvalidParams.at("recurrence_id", "has no booking (yet)")
    await lifecycle.move_to(ctx, booking, params.start, params.end)
    await ctx.uow.series.put_instance(replace(instance, reason="moved"))
    return await _save(ctx, series, "series.changed")


async def _clear(
    ctx: Context, series: Series, since: datetime, *, everything: bool = False, keep: Recurrence | None = None
) -> None:
    """Calls off and forgets the instances from here on that have not begun, but for those that another rule keeps.

    Args:
        everything: also earlier ones that were moved to later, or whose provider has not set out yet.
    """
    instances = list(await ctx.uow.series.instances(series.id, since, 10_000))
    if everything:
        instances += await ctx.uow.series.not_begun(series.id, since)
    instances = [each for each in instances if each.status is not InstanceStatus.CANCELLED]
    kept = _kept(ctx, keep, [each.recurrence_id for each in instances if each.booking_id is not None])
    # All bookings, then all providers, each by their ids: as everybody else does, see domain.ports.
    ids = sorted(each.booking_id for each in instances if each.booking_id is not None)
    found = {booking_id: await _lock(ctx, booking_id) for booking_id in ids}
    off: list[Booking] = []
    for instance in instances:
        booking = None if instance.booking_id is None else found[instance.booking_id]
        if booking is not None and booking.slot is not None:
            length = booking.slot.end - booking.slot.start
            if Interval(instance.recurrence_id, instance.recurrence_id + length) in kept:
                continue
            if booking.status not in NOT_BEGUN:
                continue
            off.append(booking)
        await ctx.uow.series.remove_instance(instance)
    for provider_id in sorted({each.provider_id for each in off if each.provider_id is not None}):
        await ctx.uow.market.lock_provider(provider_id)
    for booking in off:
        await _cancel_booking(ctx, booking, "the series changed")


def _kept(ctx: Context, keep: Recurrence | None, recurrence_ids: Sequence[datetime]) -> set[Interval]:
    """The occurrences of a rule from the first to the last of these; there are bookings of them, so they are near."""
    if keep is None or not recurrence_ids:
        return set()
    span = Interval(min(recurrence_ids), max(recurrence_ids) + timedelta(seconds=1))
    return set(ctx.uow.recurrences.overlapping(keep, span))


async def _call_off(ctx: Context, instance: Instance, reason: str) -> None:
    booking = None if instance.booking_id is None else await _lock(ctx, instance.booking_id)
    if booking is not None and booking.status is not Status.CANCELLED:
        await _cancel_booking(ctx, booking, reason)


async def _cancel_booking(ctx: Context, booking: Booking, reason: str) -> None:
    parties = bookings.parties_of(ctx.actor, booking)
    await moves.move(ctx, booking, Status.CANCELLED, parties, reason=reason)


async def _lock(ctx: Context, booking_id: str) -> Booking | None:
    return await ctx.uow.bookings.lock(booking_id)


async def _occurrence(ctx: Context, series: Series, recurrence_id: datetime | None) -> datetime:
    """The instant of an occurrence that the rule has, or of an instance that an earlier rule had."""
    if recurrence_id is None:
        raise InvalidParams.at("recurrence_id", "is needed for this scope")
    since = recurrence_id.astimezone(UTC)
    if since <= ctx.now:
        raise InvalidParams.at("recurrence_id", "must be in the future")
    if since > ctx.now + FARTHEST:
        raise InvalidParams.at("recurrence_id", f"at most {FARTHEST.days} days ahead")
    found = ctx.uow.recurrences.following(series.recurrence, since)
    in_rule = found is not None and found.start == since and not _is_over_at(series, since)
    if not in_rule and await ctx.uow.series.instance(series.id, since) is None:
        raise InvalidParams.at("recurrence_id", "there is no such occurrence")
    return since


async def _beginning_of_rest(ctx: Context, series: Series, recurrence_id: datetime | None) -> datetime:
    """The same, for what is to end the series there: one that ends earlier has no rest that could be parted from it."""
    since = await _occurrence(ctx, series, recurrence_id)
    if _is_over_at(series, since):
        raise InvalidParams.at("recurrence_id", "there is no such occurrence")
    return since


def _is_over_at(series: Series, start: datetime) -> bool:
    return series.ends_before is not None and start >= series.ends_before


def _checked(ctx: Context, recurrence: Recurrence, since: datetime | None = None) -> Recurrence:
    """The rule, if it is one that goes on; with ``since`` without what comes before that day."""
    ctx.uow.recurrences.check(recurrence, "recurrence")
    rest = recurrence if since is None else ctx.uow.recurrences.from_day_of(recurrence, since)
    if rest is None or ctx.uow.recurrences.following(rest, ctx.now) is None:
        raise InvalidParams.at("recurrence.rrule", "is over")
    return rest


async def _locked(ctx: Context, series_id: str) -> Series:
    series = await ctx.uow.series.lock(series_id)
    if series is None or series.customer_id != ctx.actor.user_id:
        raise Forbidden
    return series


async def _result(ctx: Context, series: Series) -> JSON:
    instances: Sequence[Instance] = await ctx.uow.series.instances(series.id, ctx.now, MOST_INSTANCES)
    return {"series": series_view(series), "instances": [instance_view(each) for each in instances]}


def _tell(ctx: Context, series: Series, type_: str) -> None:
    _record(ctx, series, type_, {"series_id": series.id, "series": series_view(series)})


def _tell_of_instance(ctx: Context, series: Series, recurrence_id: datetime, type_: str, **more: str) -> None:
    _record(ctx, series, type_, {"series_id": series.id, "recurrence_id": wire_time(recurrence_id), **more})


def _record(ctx: Context, series: Series, type_: str, data: JSON) -> None:
    ctx.uow.record(
        Event(
            id=new_id(ctx.now),
            type=type_,
            time=ctx.now,
            source=f"series/{series.id}",
            data=data,
            audience=Audience(users=(series.customer_id,)),
        )
    )
