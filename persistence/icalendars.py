"""iCalendar texts (RFC 5545): jobs written for calendar programs, busy times read from theirs.

What is read was written by strangers: its size is bounded by the caller, rules are the bounded ones of
:mod:`persistence.recurrence`, and events that repeat in another way are counted instead of worked out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, tzinfo
from time import monotonic
from typing import Any
from zoneinfo import ZoneInfo

import icalendar
from icalendar import STATUS

from domain.bookings import Booking, Status
from domain.calendar_sync import Busy, FeedJobs, UnreadableCalendar
from domain.errors import InvalidParams
from domain.recurrence import Recurrence
from domain.types import Interval
from persistence.recurrence import RruleRecurrences

MOST_EVENTS = 5_000
LONGEST_SECONDS = 5.0
_DAY = timedelta(days=1)
_RECURRENCES = RruleRecurrences()


def write_jobs(feed: FeedJobs) -> bytes:
    """A provider's jobs as a calendar. An event keeps its UID for life, and its SEQUENCE rises with each change."""
    calendar = icalendar.Calendar()
    calendar.add("prodid", "-//Fixnado//Realtime//EN")
    calendar.add("version", "2.0")
    calendar.add("method", "PUBLISH")
    calendar.add("x-wr-calname", feed.name)
    calendar.add("refresh-interval", timedelta(minutes=15), parameters={"VALUE": "DURATION"})
    for job in feed.jobs:
        calendar.add_component(_event(job, feed.services.get(job.service_id, job.service_id)))
    text: bytes = calendar.to_ical()
    return text


def _event(job: Booking, service: str) -> icalendar.Event:
    assert job.slot is not None
    event = icalendar.Event()
    event.add("uid", f"{job.id}@fixnado")
    event.add("sequence", job.version)
    event.add("dtstamp", job.updated_at)
    event.add("last-modified", job.updated_at)
    event.add("dtstart", job.slot.start)
    event.add("dtend", job.slot.end)
    event.add("summary", service)
    event.add("status", STATUS.CANCELLED if job.status is Status.CANCELLED else STATUS.CONFIRMED)
    if job.address:
        event.add("location", job.address)
    event.add("geo", (job.location.lat, job.location.lon))
    if job.notes:
        event.add("description", job.notes)
    return event


class IcalendarReader:
    """See :class:`domain.calendar_sync.CalendarReader`."""

    async def busy(self, text: bytes, within: Interval, tzid: str) -> Busy:
        return await asyncio.to_thread(read_busy, text, within, tzid)


def read_busy(text: bytes, within: Interval, tzid: str) -> Busy:
    """See :meth:`IcalendarReader.busy`; takes a moment for a large text."""
    # One whole calendar: what was cut off on its way would look like a provider with more time.
    if not text.rstrip().upper().endswith(b"END:VCALENDAR"):
        raise UnreadableCalendar
    try:
        calendar = icalendar.Calendar.from_ical(text)
        events: list[Any] = list(calendar.walk("VEVENT"))
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableCalendar from error
    if len(events) > MOST_EVENTS:
        raise UnreadableCalendar("The calendar has too many events.")
    zone = ZoneInfo(tzid)
    moved = {(str(event.get("UID")), _instant(event["RECURRENCE-ID"].dt, zone)) for event in events if _is_moved(event)}
    times: list[Interval] = []
    skipped = 0
    ends = monotonic() + LONGEST_SECONDS
    for event in events:
        if monotonic() > ends:
            raise UnreadableCalendar("The calendar takes too long to read.")
        try:
            if str(event.get("TRANSP", "OPAQUE")).upper() == "TRANSPARENT":
                continue
            if str(event.get("STATUS", "CONFIRMED")).upper() == "CANCELLED":
                continue
            times += [
                time
                for time in _times(event, within, zone)
                if "RECURRENCE-ID" in event or (str(event.get("UID")), time.start) not in moved
            ]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, InvalidParams):
            skipped += 1
        if len(times) > MOST_EVENTS:
            raise UnreadableCalendar("The calendar has too many events.")
    return Busy(times, skipped)


def _is_moved(event: Any) -> bool:
    return "RECURRENCE-ID" in event and hasattr(event["RECURRENCE-ID"], "dt")


def _times(event: Any, within: Interval, zone: ZoneInfo) -> Iterator[Interval]:
    first = event["DTSTART"].dt
    start = _instant(first, zone)
    duration = _duration(event, first, start, zone)
    if duration <= timedelta() or duration > timedelta(days=366):
        return
    if "RRULE" not in event:
        once = Interval(start, start + duration)
        if once.overlaps(within):
            yield once
        return
    rules = event["RRULE"]
    if isinstance(rules, list):
        raise ValueError("more than one rule")
    tzid = _name_of(first.tzinfo if isinstance(first, datetime) else None, zone)
    on_the_wall = start.astimezone(ZoneInfo(tzid)).replace(tzinfo=None)
    recurrence = Recurrence(_rule(rules.to_ical().decode(), on_the_wall), tzid, on_the_wall, duration)
    _RECURRENCES.check(recurrence)
    left_out = _left_out(event, zone)
    for time in _RECURRENCES.overlapping(recurrence, within):
        if time.start not in left_out:
            yield time


def _duration(event: Any, first: Any, start: datetime, zone: ZoneInfo) -> timedelta:
    if "DTEND" in event:
        return _instant(event["DTEND"].dt, zone) - start
    if "DURATION" in event:
        length: timedelta = event["DURATION"].dt
        return length
    return timedelta() if isinstance(first, datetime) else _DAY


def _left_out(event: Any, zone: ZoneInfo) -> set[datetime]:
    exdates = event.get("EXDATE", [])
    lists = exdates if isinstance(exdates, list) else [exdates]
    return {_instant(each.dt, zone) for dates in lists for each in dates.dts}


def _instant(value: date | datetime, zone: ZoneInfo) -> datetime:
    """In UTC; whole days and floating times are read in the zone."""
    if not isinstance(value, datetime):
        return datetime(value.year, value.month, value.day, tzinfo=zone).astimezone(UTC)
    return (value if value.tzinfo is not None else value.replace(tzinfo=zone)).astimezone(UTC)


def _name_of(zone: tzinfo | None, otherwise: ZoneInfo) -> str:
    """The zone's name in the IANA database; one that a calendar defines by itself counts by its offset, as UTC."""
    if zone is None:
        return otherwise.key
    return zone.key if isinstance(zone, ZoneInfo) else "UTC"


def _rule(text: str, start: datetime) -> str:
    """The same rule in the words that :mod:`persistence.recurrence` takes, where there are such."""
    parts = dict(part.split("=", 1) for part in text.upper().split(";") if part)
    if "UNTIL" in parts and "T" not in parts["UNTIL"]:
        parts["UNTIL"] += "T235959Z"
    elif "UNTIL" in parts and not parts["UNTIL"].endswith("Z"):
        parts["UNTIL"] += "Z"
    if parts.get("FREQ") == "YEARLY" and parts.keys() <= {"FREQ", "INTERVAL", "COUNT", "UNTIL", "WKST"}:
        every = 12 * int(parts.get("INTERVAL", 1))
        parts |= {"FREQ": "MONTHLY", "INTERVAL": str(every), "BYMONTHDAY": str(start.day)}
    if parts.get("FREQ") == "DAILY" and "BYDAY" in parts and parts.get("INTERVAL", "1") == "1":
        parts["FREQ"] = "WEEKLY"
    return ";".join(f"{name}={value}" for name, value in parts.items())
