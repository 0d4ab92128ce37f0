"""Drivers that do not get on: under way to a customer, and hardly moved for minutes.

Invariants: what was last seen to move is in a durable timer (``stall:{booking}``) and positions are the stored ones, so
    any node may look, and a restart forgets nothing. A stall is told once; only after moving on can the driver stall
    again. A driver who sends no positions does not move.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from domain import bookings
from domain.bookings import Booking, BookingView, Status
from domain.context import Context
from domain.events import Audience, Event
from domain.geography import distance_m
from domain.providers import Provider
from domain.types import JSON, Point, new_id, wire_time
from domain.views import PointView, View

TIMER = "stall"


class ReassignParams(View):
    """Parameters of the step that would search for somebody else."""

    booking_id: str
    to: Status
    version: int


class ReassignOffer(View):
    """The command that starts a reassignment; it needs a ``key`` besides."""

    method: str
    params: ReassignParams


class BookingStalledData(View):
    """Whose driver stands still since when and where; ``fix_at`` is the time of the newest position."""

    booking_id: str
    booking: BookingView
    provider_id: str
    stalled_since: str
    location: PointView | None = None
    fix_at: str | None = None
    reassign: ReassignOffer


async def follow(ctx: Context, before: Booking, after: Booking) -> None:
    """Watches from the moment a provider sets out until it is there, or no longer on its way."""
    if after.status is before.status:
        return
    if after.status is Status.EN_ROUTE and after.provider_id is not None:
        provider = await ctx.uow.market.provider(after.provider_id)
        await _look_later(ctx, after.id, provider.position if provider else None, ctx.now, told=False)
    elif before.status is Status.EN_ROUTE:
        await ctx.uow.timers.cancel(f"{TIMER}:{after.id}")


async def check(ctx: Context, data: JSON) -> None:
    """The timer: has the driver left the place where it was last seen to move?"""
    booking = await ctx.uow.bookings.lock(data["booking_id"])
    if booking is None or booking.status is not Status.EN_ROUTE or booking.provider_id is None:
        return
    provider = await ctx.uow.market.provider(booking.provider_id)
    here = provider.position if provider else None
    if _moved(ctx, data, here):
        await _look_later(ctx, booking.id, here, ctx.now, told=False)
        return
    since = datetime.fromisoformat(data["since"])
    stalled = ctx.now - since >= timedelta(seconds=ctx.policy.stall_seconds)
    if stalled and not data["told"]:
        data_told = _data(booking, since, here, provider.fix_at if provider else None)
        ctx.uow.record(_event(booking, data_told, ctx.now))
    await _look_later(ctx, booking.id, _anchor(data), since, told=stalled)


async def told(ctx: Context, among: Iterable[Booking], providers: Iterable[Provider]) -> list[JSON]:
    """What was told of drivers on their way to these bookings who still stand there; data of ``booking.stalled``."""
    on_the_way = {f"{TIMER}:{booking.id}": booking for booking in among if booking.status is Status.EN_ROUTE}
    timers = await ctx.uow.timers.get(list(on_the_way))
    by_id = {provider.id: provider for provider in providers}
    told = []
    for timer in timers:
        booking = on_the_way[timer.name]
        provider = by_id.get(booking.provider_id or "")
        if timer.data["told"] and provider is not None and not _moved(ctx, timer.data, provider.position):
            since = datetime.fromisoformat(timer.data["since"])
            told.append(_data(booking, since, provider.position, provider.fix_at))
    return told


def _anchor(data: JSON) -> Point | None:
    return Point(data["lat"], data["lon"]) if data["lat"] is not None else None


def _moved(ctx: Context, data: JSON, here: Point | None) -> bool:
    """Whether this place is another than that of the timer."""
    there = _anchor(data)
    return here is not None and (there is None or distance_m(there, here) >= ctx.policy.stall_radius_m)


async def _look_later(ctx: Context, booking_id: str, anchor: Point | None, since: datetime, *, told: bool) -> None:
    data: JSON = {
        "booking_id": booking_id,
        "lat": anchor.lat if anchor else None,
        "lon": anchor.lon if anchor else None,
        "since": since.isoformat(),
        "told": told,
    }
    due_at = ctx.now + timedelta(seconds=ctx.policy.stall_check_seconds)
    await ctx.uow.timers.set(f"{TIMER}:{booking_id}", due_at, TIMER, data)


def _data(booking: Booking, since: datetime, place: Point | None, fix_at: datetime | None) -> JSON:
    step = {"booking_id": booking.id, "to": Status.AWAITING_ASSIGNMENT.value, "version": booking.version}
    data: JSON = {
        "booking_id": booking.id,
        "booking": bookings.view(booking),
        "provider_id": booking.provider_id,
        "stalled_since": wire_time(since),
        "reassign": {"method": "booking.transition", "params": step},
    }
    if place is not None:
        data["location"] = place.view()
    if fix_at is not None:
        data["fix_at"] = wire_time(fix_at)
    return data


def _event(booking: Booking, data: JSON, now: datetime) -> Event:
    return Event(
        id=new_id(now),
        type="booking.stalled",
        time=now,
        source=f"booking/{booking.id}",
        data=data,
        # The driver's own dispatchers and operations act on it; the customer is not alarmed.
        audience=Audience(organisations=(booking.organisation_id,) if booking.organisation_id else ()),
    )
