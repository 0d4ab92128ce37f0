"""A provider's calendar: when it works by its own plan, and what of that is still free.

What is open: the weekly rules and what was opened in addition, less what is closed. What is free of that: all but holds
and confirmed jobs, each with the travel buffer around it, and the busy times that the provider brought along from
elsewhere. Everything here is arithmetic on half-open UTC intervals; who may ask is in :mod:`domain.planning`,
who may take a time in :mod:`domain.slots`.

A provider without rules has no plan: no slots are shown for it, and scheduled work is offered to it at any time that it
has not closed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum

from domain.bookings import OCCUPYING, Status
from domain.recurrence import Recurrence, Recurrences
from domain.types import Interval

MAX_BUFFER = timedelta(hours=4)
MAX_RULES = 50


class ExceptionKind(StrEnum):
    """A time that differs from the rules. Where both meet, ``closed`` wins."""

    CLOSED = "closed"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Calendar:
    """A provider's plan.

    Attributes:
        travel_buffer: between a job and whatever comes before or after it.
    """

    provider_id: str
    organisation_id: str
    rules: tuple[Recurrence, ...]
    travel_buffer: timedelta
    version: int

    @property
    def tzid(self) -> str:
        """The time zone that the provider's days are in: that of its first rule, or UTC without any."""
        return self.rules[0].tzid if self.rules else "UTC"


@dataclass(frozen=True, slots=True)
class CalendarException:
    """A time at which a provider works, or does not, whatever its rules say."""

    id: str
    provider_id: str
    kind: ExceptionKind
    during: Interval
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """A provider's time that a customer has for a few minutes, to book it or not.

    Attributes:
        organisation_id: the provider's; the row's tenant.
        expires_at: from this instant on it counts for nothing, whether its timer has run or not.
    """

    id: str
    provider_id: str
    organisation_id: str
    customer_id: str
    service_id: str
    zone_id: str
    during: Interval
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Job:
    """What a calendar needs to know of a booking.

    Attributes:
        slot: its agreed time; work on demand has none.
        assigned_at: which day work on demand is one of the provider's.
    """

    id: str
    status: Status
    slot: Interval | None
    assigned_at: datetime | None

    @property
    def day(self) -> date | None:
        """The day (UTC) whose jobs it is one of."""
        when = self.slot.start if self.slot is not None else self.assigned_at
        return None if when is None else when.date()


@dataclass(frozen=True, slots=True)
class Plan:
    """What is in a provider's calendar around some time.

    Attributes:
        max_daily_jobs: more than so many the provider does not do on one day; what is held counts as well.
        holds: those that have not expired.
        jobs: whatever became of them but cancelled.
        busy: brought along from the provider's other calendars.
    """

    calendar: Calendar
    max_daily_jobs: int
    exceptions: Sequence[CalendarException] = ()
    holds: Sequence[Hold] = ()
    jobs: Sequence[Job] = ()
    busy: Sequence[Interval] = ()

    @property
    def has_rules(self) -> bool:
        return bool(self.calendar.rules)


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """The same instants in as few intervals as possible, in order; touching ones become one."""
    together: list[Interval] = []
    for interval in sorted(intervals, key=lambda each: each.start):
        if together and interval.start <= together[-1].end:
            last = together.pop()
            together.append(Interval(last.start, max(last.end, interval.end)))
        elif interval.start < interval.end:
            together.append(interval)
    return together


def without(intervals: Sequence[Interval], holes: Iterable[Interval]) -> list[Interval]:
    """What is left of merged intervals, in order."""
    left = list(intervals)
    for hole in merged(holes):
        rest: list[Interval] = []
        for interval in left:
            if not interval.overlaps(hole):
                rest.append(interval)
                continue
            if interval.start < hole.start:
                rest.append(Interval(interval.start, hole.start))
            if hole.end < interval.end:
                rest.append(Interval(hole.end, interval.end))
        left = rest
    return left


def cut(interval: Interval, within: Interval) -> Interval:
    """The part of an overlapping interval that lies within."""
    return Interval(max(interval.start, within.start), min(interval.end, within.end))


def widened(interval: Interval, by: timedelta) -> Interval:
    """The interval with so much before and after it."""
    return Interval(interval.start - by, interval.end + by)


def openings(plan: Plan, within: Interval, recurrences: Recurrences) -> list[Interval]:
    """When the provider works by its plan; without rules, whenever it has not closed."""
    closed = [each.during for each in plan.exceptions if each.kind is ExceptionKind.CLOSED]
    if not plan.has_rules:
        return without([within], closed)
    times = [time for rule in plan.calendar.rules for time in recurrences.overlapping(rule, within)]
    times += [each.during for each in plan.exceptions if each.kind is ExceptionKind.OPEN]
    return without(merged(cut(time, within) for time in times if time.overlaps(within)), closed)


def taken(plan: Plan, *, except_id: str = "") -> list[Interval]:
    """When the provider is on a job or somebody holds its time, travel included. ``except_id`` names a booking or a
    hold that does not count.
    """
    jobs = [job.slot for job in plan.jobs if job.slot and job.status in OCCUPYING and job.id != except_id]
    holds = [hold.during for hold in plan.holds if hold.id != except_id]
    return [widened(each, plan.calendar.travel_buffer) for each in [*jobs, *holds]]


def is_taken(plan: Plan, during: Interval, *, except_id: str = "") -> bool:
    """Whether a job or a hold is in the way."""
    return any(each.overlaps(during) for each in taken(plan, except_id=except_id))


def is_open(plan: Plan, during: Interval, recurrences: Recurrences) -> bool:
    """Whether the provider works all that time by its plan, and nothing it brought along is in the way."""
    if any(each.overlaps(during) for each in plan.busy):
        return False
    return any(each.start <= during.start and during.end <= each.end for each in openings(plan, during, recurrences))


def is_full(plan: Plan, start: datetime, *, except_id: str = "") -> bool:
    """Whether the provider has all the jobs that it may have on the day of this start (UTC, as dispatch counts), those
    that somebody holds the time of included. ``except_id`` names a booking or a hold that does not count.
    """
    return _jobs_per_day(plan, except_id)[start.astimezone(UTC).date()] >= plan.max_daily_jobs


def _jobs_per_day(plan: Plan, except_id: str = "") -> Counter[date]:
    jobs = (job.day for job in plan.jobs if job.id != except_id)
    return Counter(
        [
            *(day for day in jobs if day is not None),
            *(hold.during.start.date() for hold in plan.holds if hold.id != except_id),
        ]
    )


def free_starts(
    plan: Plan, within: Interval, length: timedelta, step: timedelta, recurrences: Recurrences
) -> list[datetime]:
    """When work of this length may start, every ``step`` from the beginning of each opening.

    Days that are full have none, see :func:`is_full`.
    """
    per_day = _jobs_per_day(plan)
    # Openings begin where the rules say, not where the question does: the same start is found by whoever asks.
    midnight = within.start.replace(hour=0, minute=0, second=0, microsecond=0)
    around = Interval(midnight - timedelta(days=1), within.end + timedelta(days=1))
    blocked = merged([*taken(plan), *plan.busy])
    starts = []
    for opening in openings(plan, around, recurrences):
        for free in without([opening], blocked):
            late = max(free.start, within.start) - opening.start
            start = opening.start - (-late // step) * step
            while start < within.end and start + length <= free.end:
                if per_day[start.date()] < plan.max_daily_jobs:
                    starts.append(start)
                start += step
    return starts
