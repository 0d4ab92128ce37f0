"""A provider's day as a route; see :mod:`domain.routing` for how the order is found."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, time, timedelta
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import Field

from domain import availability, planning, routing
from domain.bookings import UNDER_WAY, Booking, Status
from domain.context import Context
from domain.errors import Forbidden
from domain.providers import Provider
from domain.routing import Plan, Stop, Visit
from domain.sla import TICKING, ClockName
from domain.types import JSON, Interval, wire_time
from domain.views import Moment, Params, PointView, View

AT_THE_DOOR = frozenset({Status.ARRIVED, Status.IN_PROGRESS, Status.PAUSED})


class PlanRoute(Params):
    """``provider_id`` is needed by operations and by whoever speaks for several; ``day`` is any moment of a day,
    today by default. Days are the provider's own, in the time zone of its calendar's rules; in UTC where it has none.
    """

    provider_id: Annotated[str, Field(max_length=64)] | None = None
    day: Moment | None = None


class VisitView(View):
    """One stop: how far, when, and whether there is time to spare (``wait_seconds``) or none left (``late_seconds``).

    ``late_after`` is the deadline it is held against; ``why`` says the same in words.
    """

    booking_id: str
    location: PointView
    travel_seconds: int
    distance_m: int
    arrive_at: str
    leave_at: str
    wait_seconds: int
    late_seconds: int
    late_after: str | None = None
    pinned: bool
    why: str


class RouteTotals(View):
    """What an order costs."""

    late_seconds: int
    travel_seconds: int


class RoutePlan(View):
    """The order to do a day's jobs in. ``by_deadline`` is what doing them in the order of their deadlines would cost.

    ``method`` is ``exact`` when there is no better order, ``improved`` when there are too many stops to be sure.
    ``left_out`` are jobs beyond the twenty soonest.
    """

    provider_id: str
    day: str
    start: PointView | None = None
    method: str
    visits: list[VisitView]
    totals: RouteTotals
    by_deadline: RouteTotals
    left_out: list[str]


async def plan_route(ctx: Context, params: PlanRoute) -> JSON:
    """Puts the jobs of a day in order.

    Raises:
        Forbidden: not the caller's provider, and the caller is not operations.
    """
    provider = await _provider(ctx, params.provider_id)
    zone = ZoneInfo((await planning.calendar_of(ctx, provider)).tzid)
    today = ctx.now.astimezone(zone).date()
    day = params.day.astimezone(zone).date() if params.day else today
    # From midnight to midnight: a day on which clocks are changed has 23 or 25 hours.
    begins, ends = (datetime.combine(date, time.min, zone).astimezone(UTC) for date in (day, day + timedelta(days=1)))
    jobs = [
        job
        for job in await ctx.uow.bookings.committed(provider.id, Interval(begins, ends))
        if (job.status in UNDER_WAY and day == today) or (job.slot is not None and begins <= job.slot.start < ends)
    ]
    minutes = {service.id: service.duration_minutes for service in await ctx.uow.market.services()} if jobs else {}
    stops = [_stop(job, minutes.get(job.service_id, 60), ctx.now) for job in jobs]
    stops.sort(key=lambda stop: (not stop.pinned, stop.opens, stop.id))
    taken, left_out = stops[: routing.MOST_STOPS], stops[routing.MOST_STOPS :]
    start = provider.position if day == today else None
    depart_at = max(ctx.now, min((stop.opens for stop in taken), default=ctx.now)) if day != today else ctx.now
    eta = ctx.policy.eta
    # Some tens of milliseconds of arithmetic: other sockets do not wait for it.
    best = await asyncio.to_thread(routing.plan, start, depart_at, taken, eta)
    in_turn = sorted(taken, key=lambda stop: (not stop.pinned, stop.closes or datetime.max.replace(tzinfo=UTC)))
    plain = Plan(routing.visits(in_turn, start, depart_at, eta), "by_deadline")
    shape: JSON = {
        "provider_id": provider.id,
        "day": day.isoformat(),
        "method": best.method,
        "visits": [_visit_view(visit) for visit in best.visits],
        "totals": dict(zip(("late_seconds", "travel_seconds"), best.cost, strict=True)),
        "by_deadline": dict(zip(("late_seconds", "travel_seconds"), plain.cost, strict=True)),
        "left_out": [stop.id for stop in left_out],
    }
    if start is not None:
        shape["start"] = start.view()
    return shape


async def _provider(ctx: Context, asked_for: str | None) -> Provider:
    if asked_for is None or not ctx.actor.is_operations:
        asked_for = availability.own_provider_id(ctx, asked_for)
    provider = await ctx.uow.market.provider(asked_for)
    if provider is None:
        raise Forbidden
    return provider


def _stop(job: Booking, minutes: int, now: datetime) -> Stop:
    work_seconds = minutes * 60
    arrival = job.sla.clocks.get(ClockName.ARRIVAL)
    closes = arrival.due_at if arrival is not None and arrival.status in TICKING else None
    if job.status in AT_THE_DOOR:
        spent = (now - (job.arrived_at or job.updated_at)).total_seconds()
        return Stop(job.id, job.location, now, None, max(0, int(work_seconds - spent)), pinned=True)
    opens = now
    if job.slot is not None:
        opens = job.slot.start
        work_seconds = int((job.slot.end - job.slot.start).total_seconds())
    return Stop(job.id, job.location, opens, closes, work_seconds, pinned=job.status is Status.EN_ROUTE)


def _visit_view(visit: Visit) -> JSON:
    stop = visit.stop
    shape: JSON = {
        "booking_id": stop.id,
        "location": stop.place.view(),
        "travel_seconds": visit.travel_seconds,
        "distance_m": visit.distance_m,
        "arrive_at": wire_time(visit.arrive_at),
        "leave_at": wire_time(visit.leave_at),
        "wait_seconds": visit.wait_seconds,
        "late_seconds": visit.late_seconds,
        "pinned": stop.pinned,
        "why": _why(visit),
    }
    if stop.closes is not None:
        shape["late_after"] = wire_time(stop.closes)
    return shape


def _why(visit: Visit) -> str:
    parts = ["under way already" if visit.stop.pinned else f"{_minutes(visit.travel_seconds)} of driving"]
    if visit.late_seconds:
        parts.append(f"{_minutes(visit.late_seconds)} late")
    elif visit.wait_seconds:
        parts.append(f"{_minutes(visit.wait_seconds)} before the agreed time")
    elif visit.stop.closes is not None:
        parts.append(f"{_minutes((visit.stop.closes - visit.arrive_at).total_seconds())} to spare")
    return ", ".join(parts)


def _minutes(seconds: float) -> str:
    return f"{round(seconds / 60)} min"
