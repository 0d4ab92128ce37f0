"""iCalendar texts (RFC 5545): jobs written for calendar programs, busy times read from theirs.

What is read was written by strangers: its size is bounded by the caller, rules are the bounded ones of
:mod:`persistence.recurrence`, and events that repeat in another way are counted instead of worked out.
"""

from __future__ import annotations

import asyncio
import re
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
_FOLD = re.compile(r"\r?\n[ \t]")
_TIMES = frozenset(
    [
        "BEGIN",
        "END",
        "VERSION",
        "PRODID",
        "UID",
        "DTSTART",
        "DTEND",
        "DURATION",
        "RRULE",
        "RDATE",
        "EXDATE",
        "RECURRENCE-ID",
        "STATUS",
        "TRANSP",
        "TZID",
        "TZNAME",
        "TZOFFSETFROM",
        "TZOFFSETTO",
    ]
)
_MALFORMED = (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, InvalidParams)
"""What values of a kind that a property does not have, or out of all bounds, come to."""


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

    def times_only(self, text: str) -> str:
        lines = _FOLD.sub("", text).splitlines()
        return "\r\n".join(line for line in lines if re.split("[:;]", line, maxsplit=1)[0].upper() in _TIMES)


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
    moved: set[tuple[str, datetime]] = set()
    readable: list[Any] = []
    for event in events:
        try:
            if "RECURRENCE-ID" in event:
                moved.add((str(event.get("UID")), _instant(event["RECURRENCE-ID"].dt, zone)))
        except _MALFORMED:
            continue
        readable.append(event)
    times: list[Interval] = []
    skipped = len(events) - len(readable)
    ends = monotonic() + LONGEST_SECONDS
    for event in readable:
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
        except _MALFORMED:
            skipped += 1
        if len(times) > MOST_EVENTS:
            raise UnreadableCalendar("The calendar has too many events.")
    return Busy(times, skipped)


def _times(event: Any, within: Interval, zone: ZoneInfo) -> Iterator[Interval]:
    first = event["DTSTART"].dt
    start = _instant(first, zone)
    duration = _duration(event, first, start, zone)
    if duration <= timedelta() or duration > timedelta(days=366):
        return
    times = [Interval(start, start + duration), *_added(event, duration, zone)]
    if "RRULE" in event:
        rules = event["RRULE"]
        if isinstance(rules, list):
            raise ValueError("more than one rule")
        tzid = _name_of(first.tzinfo if isinstance(first, datetime) else None, zone)
        on_the_wall = start.astimezone(ZoneInfo(tzid)).replace(tzinfo=None)
        rule = _rule(rules.to_ical().decode(), on_the_wall, ZoneInfo(tzid))
        recurrence = Recurrence(rule, tzid, on_the_wall, duration)
        _RECURRENCES.check(recurrence)
        times[:1] = _RECURRENCES.overlapping(recurrence, within)
    left_out = _left_out(event, zone)
    for time in times:
        if time.overlaps(within) and time.start not in left_out:
            yield time


def _added(event: Any, duration: timedelta, zone: ZoneInfo) -> list[Interval]:
    """The times of RDATE: starts, or periods with a length of their own."""
    times = []
    for each in _listed(event, "RDATE"):
        start, end = each if isinstance(each, tuple) else (each, duration)
        begins = _instant(start, zone)
        ends = begins + end if isinstance(end, timedelta) else _instant(end, zone)
        if begins < ends:
            times.append(Interval(begins, ends))
    return times


def _duration(event: Any, first: Any, start: datetime, zone: ZoneInfo) -> timedelta:
    if "DTEND" in event:
        return _instant(event["DTEND"].dt, zone) - start
    if "DURATION" in event:
        length: timedelta = event["DURATION"].dt
        return length
    return timedelta() if isinstance(first, datetime) else _DAY


def _left_out(event: Any, zone: ZoneInfo) -> set[datetime]:
    return {_instant(each, zone) for each in _listed(event, "EXDATE")}


def _listed(event: Any, name: str) -> Iterator[Any]:
    found = event.get(name, [])
    lists = found if isinstance(found, list) else [found]
    return (each.dt for dates in lists for each in dates.dts)


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


def _rule(text: str, start: datetime, zone: ZoneInfo) -> str:
    """The same rule in the words that :mod:`persistence.recurrence` takes, where there are such."""
    parts = dict(part.split("=", 1) for part in text.upper().split(";") if part)
    until = parts.get("UNTIL", "")
    if until >= "22":
        # Some programs write "for ever" as the year 9999, which is beyond every clock in zones east of Greenwich.
        del parts["UNTIL"]
    elif until and not until.endswith("Z"):
        # A date is the whole day, a floating time the time, where the event is (RFC 5545, section 3.3.10).
        local = datetime.strptime(until if "T" in until else f"{until}T235959", "%Y%m%dT%H%M%S").replace(tzinfo=zone)
        parts["UNTIL"] = local.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    if parts.get("FREQ") == "YEARLY" and parts.keys() <= {"FREQ", "INTERVAL", "COUNT", "UNTIL", "WKST"}:
        every = 12 * int(parts.get("INTERVAL", 1))
        parts |= {"FREQ": "MONTHLY", "INTERVAL": str(every), "BYMONTHDAY": str(start.day)}
    if parts.get("FREQ") == "DAILY" and "BYDAY" in parts and parts.get("INTERVAL", "1") == "1":
        parts["FREQ"] = "WEEKLY"
    return ";".join(f"{name}={value}" for name, value in parts.items())
