"""Where a provider is while on a job, and when it will arrive.

Fixes come in at most once a second and go out at most every three; they are never stored in the log. The newest one is
kept with the provider, for ranking and for the map. A provider within the arrival radius of the job has arrived.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import Field

from domain import bookings, moves
from domain.bookings import Booking, Party, Status
from domain.context import Context
from domain.errors import Forbidden, NotOnAJob, StaleFix, TooManyRequests
from domain.events import Audience, Event, EventClass
from domain.geography import distance_m
from domain.types import JSON, Point, new_id, wire_time
from domain.views import Moment, Params, View

FUTURE_TOLERANCE_SECONDS = 5.0
"""Phones' clocks are a little off; more than this is a fix from the future."""


@dataclass(slots=True)
class Track:
    """What a node remembers of one provider's fixes."""

    newest_fix_at: datetime
    accepted_at: datetime
    sent_at: datetime | None = None
    eta_at: datetime | None = None
    eta_from: Point | None = None
    eta_booking_id: str | None = None


class PositionFeed:
    """Per-node memory for the rate rules, bounded: the provider silent for longest is forgotten first.

    So the pace is each node's own: one that comes to another node may be heard once more at once, and one that keeps
    sockets on several nodes may be heard at the pace of each. Fixes go out in their order alone, whoever took them.
    """

    def __init__(self, capacity: int = 50_000) -> None:
        self._capacity = capacity
        self._tracks: OrderedDict[str, Track] = OrderedDict()

    def track(self, provider_id: str) -> Track | None:
        return self._tracks.get(provider_id)

    def remember(self, provider_id: str, track: Track) -> None:
        self._tracks[provider_id] = track
        self._tracks.move_to_end(provider_id)
        if len(self._tracks) > self._capacity:
            self._tracks.popitem(last=False)


class PublishLocation(Params):
    """One fix of the device."""

    lat: Annotated[float, Field(ge=-90, le=90)]
    lon: Annotated[float, Field(ge=-180, le=180)]
    accuracy_m: Annotated[float, Field(ge=0, le=100_000)] | None = None
    heading_deg: Annotated[float, Field(ge=0, lt=360)] | None = None
    fix_at: Moment


class LocationResult(View):
    """``shared`` says whether this fix went out, or waits behind the pace of one in three seconds."""

    booking_id: str
    shared: bool


class LocationMovedData(View):
    """Where the provider is."""

    booking_id: str
    provider_id: str
    lat: float
    lon: float
    accuracy_m: float | None = None
    heading_deg: float | None = None
    fix_at: str


class EtaUpdatedData(View):
    """Seconds and metres to go."""

    booking_id: str
    provider_id: str
    eta_seconds: int
    distance_m: int
    computed_at: str


async def publish(ctx: Context, params: PublishLocation) -> JSON:
    """Takes a fix of the caller's provider and shares it with the people of the job it is on.

    Raises:
        StaleFix: from the future, older than a minute, or older than one we have.
        TooManyRequests: more than one a second.
        NotOnAJob: nothing from ``en_route`` to completion.
    """
    policy = ctx.policy
    provider_id, job = await _tracked_job(ctx)
    age_seconds = (ctx.now - params.fix_at).total_seconds()
    if age_seconds > policy.fix_max_age_seconds or age_seconds < -FUTURE_TOLERANCE_SECONDS:
        raise StaleFix
    track = ctx.positions.track(provider_id)
    if track is not None:
        since = (ctx.now - track.accepted_at).total_seconds()
        if 0 <= since < policy.fix_in_seconds:
            raise TooManyRequests(policy.fix_in_seconds - since)
        if params.fix_at <= track.newest_fix_at:
            raise StaleFix
    place = Point(params.lat, params.lon)
    track = replace(track, newest_fix_at=params.fix_at, accepted_at=ctx.now) if track else Track(params.fix_at, ctx.now)
    if job.status is Status.EN_ROUTE and distance_m(place, job.location) <= policy.arrival_radius_m:
        job = await _arrive(ctx, job)
    share = track.sent_at is None or (ctx.now - track.sent_at).total_seconds() >= policy.fix_out_seconds
    if share:
        track.sent_at = ctx.now
        await _share(ctx, job, provider_id, place, params)
        if job.status is Status.EN_ROUTE:
            _estimate(ctx, job, provider_id, place, track)
    ctx.after_commit.append(lambda: ctx.positions.remember(provider_id, track))
    return {"booking_id": job.id, "shared": share}


async def _tracked_job(ctx: Context) -> tuple[str, Booking]:
    """The caller's provider that is on the way or at work, and the job."""
    if not ctx.actor.provider_ids:
        raise Forbidden
    for provider_id in sorted(ctx.actor.provider_ids):
        for job in await ctx.uow.bookings.under_way(provider_id):
            if job.status in bookings.TRACKED:
                return provider_id, job
    raise NotOnAJob


async def _arrive(ctx: Context, job: Booking) -> Booking:
    booking = await ctx.uow.bookings.lock(job.id)
    if booking is None or booking.status is not Status.EN_ROUTE:
        return booking or job
    return await moves.move(ctx, booking, Status.ARRIVED, frozenset({Party.SYSTEM}))


async def _share(ctx: Context, job: Booking, provider_id: str, place: Point, params: PublishLocation) -> None:
    provider = await ctx.uow.market.lock_provider(provider_id)
    if provider is not None:
        if provider.fix_at is not None and params.fix_at <= provider.fix_at:
            raise StaleFix  # another node, or the one before a restart, has taken a newer one
        await ctx.uow.market.save_provider(
            replace(provider, position=place, fix_at=params.fix_at, version=provider.version + 1)
        )
    data: JSON = {
        "booking_id": job.id,
        "provider_id": provider_id,
        "lat": place.lat,
        "lon": place.lon,
        "fix_at": wire_time(params.fix_at),
    }
    if params.accuracy_m is not None:
        data["accuracy_m"] = params.accuracy_m
    if params.heading_deg is not None:
        data["heading_deg"] = params.heading_deg
    ctx.announce(
        Event(
            id=new_id(ctx.now),
            type="location.moved",
            time=ctx.now,
            source=f"provider/{provider_id}",
            data=data,
            audience=Audience(booking=job.id),
            event_class=EventClass.EPHEMERAL,
            key=provider_id,
        )
    )


def _estimate(ctx: Context, job: Booking, provider_id: str, place: Point, track: Track) -> None:
    policy = ctx.policy
    due = (
        track.eta_at is None
        or track.eta_from is None
        or track.eta_booking_id != job.id
        or ctx.now - track.eta_at >= timedelta(seconds=policy.eta_interval_seconds)
        or distance_m(track.eta_from, place) >= policy.eta_distance_m
    )
    if not due:
        return
    track.eta_at, track.eta_from, track.eta_booking_id = ctx.now, place, job.id
    ctx.uow.record(
        Event(
            id=new_id(ctx.now),
            type="eta.updated",
            time=ctx.now,
            source=f"booking/{job.id}",
            data={
                "booking_id": job.id,
                "provider_id": provider_id,
                "eta_seconds": policy.eta.eta_seconds(place, job.location),
                "distance_m": round(distance_m(place, job.location)),
                "computed_at": wire_time(ctx.now),
            },
            audience=Audience(booking=job.id),
            event_class=EventClass.LATEST,
            key=job.id,
        )
    )
