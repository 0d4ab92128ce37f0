"""What a provider's managers do with its calendar: look at a week, set the rules, close a day, open another.

Invariants: a calendar changes under the lock of its provider's row, as does everything that takes the provider's time;
    what is booked already stays booked, whatever the plan says afterwards.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Annotated

from pydantic import Field

from domain import bookings, slots
from domain.bookings import BookingView
from domain.calendars import (
    MAX_BUFFER,
    MAX_RULES,
    Calendar,
    CalendarException,
    ExceptionKind,
    openings,
)
from domain.context import Context
from domain.errors import Conflict, Forbidden, InvalidParams, Refused
from domain.identity import Permission
from domain.providers import Provider
from domain.recurrence import RecurrenceParams, RecurrenceView, recurrence_view
from domain.slots import HoldView, Id, bounded, hold_view
from domain.types import JSON, Interval, new_id, wire_time
from domain.views import Key, Moment, Params, Text, View

MOST_EXCEPTIONS = 500
LONGEST_EXCEPTION_DAYS = 366
WEEK = timedelta(days=7)


class CalendarFull(Refused):
    """Too many exceptions that are not over."""

    type = "calendar_full"
    default_message = "The calendar has as many exceptions as it may. Remove some first."


# --- the wire ---------------------------------------------------------------------------------------------------------


class GetAvailability(Params):
    """A provider's calendar between ``from`` and ``to``, at most 31 days apart; without them, the coming week."""

    provider_id: Id
    from_: Annotated[Moment | None, Field(alias="from")] = None
    to: Moment | None = None


class SetRules(Params):
    """All rules at once, in place of those before. ``version`` is that of the calendar the caller saw, 0 for none."""

    provider_id: Id
    rules: Annotated[list[RecurrenceParams], Field(max_length=MAX_RULES)]
    travel_buffer_minutes: Annotated[int, Field(ge=0, le=int(MAX_BUFFER / timedelta(minutes=1)))] = 0
    version: Annotated[int, Field(ge=0)]
    key: Key


class AddException(Params):
    """A time that differs from the rules: ``closed``, or ``open`` in addition."""

    provider_id: Id
    kind: Annotated[ExceptionKind, Field(strict=False)]
    start: Moment
    end: Moment
    note: Text | None = None
    key: Key


class RemoveException(Params):
    """Back to the rules."""

    exception_id: Id
    key: Key


class TimeView(View):
    """A half-open time."""

    start: str
    end: str


class CalendarView(View):
    """A provider's rules; ``version`` is 0 while there are none yet."""

    provider_id: str
    rules: list[RecurrenceView]
    travel_buffer_minutes: int
    version: int


class ExceptionView(View):
    """A time that differs from the rules."""

    id: str
    provider_id: str
    kind: ExceptionKind
    start: str
    end: str
    note: str | None = None


class CalendarResult(View):
    """A provider's rules after a change."""

    calendar: CalendarView


class ExceptionResult(View):
    """An exception, and the version of the calendar with it or without."""

    exception: ExceptionView
    version: int


class AvailabilityView(View):
    """Everything in a provider's calendar in some time. ``openings`` is what follows from rules and exceptions."""

    calendar: CalendarView
    start: str
    end: str
    openings: list[TimeView]
    exceptions: list[ExceptionView]
    holds: list[HoldView]
    bookings: list[BookingView]
    busy: list[TimeView]


def calendar_view(calendar: Calendar) -> JSON:
    """The rules on the wire."""
    return {
        "provider_id": calendar.provider_id,
        "rules": [recurrence_view(rule) for rule in calendar.rules],
        "travel_buffer_minutes": int(calendar.travel_buffer / timedelta(minutes=1)),
        "version": calendar.version,
    }


def _time_view(time: Interval) -> JSON:
    return {"start": wire_time(time.start), "end": wire_time(time.end)}


def exception_view(exception: CalendarException) -> JSON:
    """An exception on the wire."""
    shape: JSON = {
        "id": exception.id,
        "provider_id": exception.provider_id,
        "kind": exception.kind.value,
        **_time_view(exception.during),
    }
    if exception.note:
        shape["note"] = exception.note
    return shape


# --- looking ----------------------------------------------------------------------------------------------------------


async def get(ctx: Context, params: GetAvailability) -> JSON:
    """A provider's week, for its members and staff: rules, exceptions, holds, jobs, and what is open."""
    provider = await ctx.uow.market.provider(params.provider_id)
    if provider is None or not ctx.actor.may(Permission.SEE_ORGANISATION, provider.organisation_id):
        raise Forbidden
    start = params.from_ or ctx.now
    within = bounded(start, params.to or start + WEEK, ctx.policy.slot_days)
    plans = await ctx.uow.calendars.plans([provider.id], within, ctx.now, everybody=True)
    plan = plans[provider.id]
    times = openings(plan, within, ctx.uow.recurrences) if plan.has_rules else []
    jobs = await ctx.uow.bookings.in_slots(provider.id, within)
    return {
        "calendar": calendar_view(plan.calendar),
        **_time_view(within),
        "openings": [_time_view(time) for time in times],
        "exceptions": [exception_view(each) for each in plan.exceptions if each.during.overlaps(within)],
        "holds": [hold_view(each, ctx.now) for each in plan.holds if each.during.overlaps(within)],
        "bookings": [bookings.view(job) for job in jobs],
        "busy": [_time_view(time) for time in plan.busy if time.overlaps(within)],
    }


# --- changing ---------------------------------------------------------------------------------------------------------


async def set_rules(ctx: Context, params: SetRules) -> JSON:
    """Says when the provider works. Jobs and holds that are there stay.

    Raises:
        Conflict: somebody changed the calendar since the caller saw it.
        InvalidParams: a rule is none, or is not among those taken.
    """
    provider = await managed(ctx, params.provider_id)
    before = await calendar_of(ctx, provider)
    if before.version != params.version:
        raise Conflict(version=before.version)
    rules = tuple(rule.recurrence() for rule in params.rules)
    for number, rule in enumerate(rules):
        ctx.uow.recurrences.check(rule, f"rules.{number}")
    buffer = timedelta(minutes=params.travel_buffer_minutes)
    after = await change(ctx, provider, replace(before, rules=rules, travel_buffer=buffer), "rules_changed")
    return {"calendar": calendar_view(after)}


async def add_exception(ctx: Context, params: AddException) -> JSON:
    """Closes a time, or opens one in addition.

    Raises:
        CalendarFull: there are too many.
    """
    provider = await managed(ctx, params.provider_id)
    during = Interval(params.start, params.end)
    if during.end <= max(during.start, ctx.now):
        raise InvalidParams.at("end", "must be in the future, after start")
    if during.end - during.start > timedelta(days=LONGEST_EXCEPTION_DAYS):
        raise InvalidParams.at("end", f"at most {LONGEST_EXCEPTION_DAYS} days after start")
    if await ctx.uow.calendars.exceptions_to_come(provider.id, ctx.now) >= MOST_EXCEPTIONS:
        raise CalendarFull
    exception = CalendarException(new_id(ctx.now), provider.id, params.kind, during, params.note)
    await ctx.uow.calendars.add_exception(exception)
    after = await change(ctx, provider, await calendar_of(ctx, provider), "exception_added")
    return {"exception": exception_view(exception), "version": after.version}


async def remove_exception(ctx: Context, params: RemoveException) -> JSON:
    """Takes an exception back."""
    exception = await ctx.uow.calendars.exception(params.exception_id)
    if exception is None:
        raise Forbidden
    provider = await managed(ctx, exception.provider_id)
    # Looked up again under the lock: two who remove it at once remove it once.
    if await ctx.uow.calendars.exception(exception.id) is None:
        raise Forbidden
    await ctx.uow.calendars.remove_exception(exception.id)
    after = await change(ctx, provider, await calendar_of(ctx, provider), "exception_removed")
    return {"exception": exception_view(exception), "version": after.version}


async def managed(ctx: Context, provider_id: str) -> Provider:
    """The provider, locked, for somebody who may change its calendar.

    Raises:
        Forbidden: no such provider, or not theirs to plan; the two look the same.
    """
    provider = await ctx.uow.market.provider(provider_id)
    if provider is None or not ctx.actor.may(Permission.MANAGE_AVAILABILITY, provider.organisation_id):
        raise Forbidden
    locked = await ctx.uow.market.lock_provider(provider_id)
    if locked is None:
        raise Forbidden
    return locked


async def calendar_of(ctx: Context, provider: Provider) -> Calendar:
    """The provider's calendar, or the empty one that it begins with."""
    found = await ctx.uow.calendars.get(provider.id)
    return found or Calendar(provider.id, provider.organisation_id, (), timedelta(), 0)


async def change(ctx: Context, provider: Provider, calendar: Calendar, reason: str) -> Calendar:
    """Saves the calendar under its next version, and says so to the provider's people."""
    after = replace(calendar, version=calendar.version + 1)
    await ctx.uow.calendars.save(after)
    ctx.uow.record(slots.calendar_changed(provider, after.version, reason, ctx.now))
    return after
