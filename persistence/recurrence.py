"""RFC 5545 rules, worked out by python-dateutil on the wall clock and put on the time line by the zone database."""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import takewhile
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dateutil.rrule import rrule, rrulestr

from domain.errors import InvalidParams
from domain.recurrence import Recurrence
from domain.types import Interval

_PARTS = {
    "DAILY": frozenset[str](),
    "WEEKLY": frozenset({"BYDAY"}),
    "MONTHLY": frozenset({"BYDAY", "BYMONTHDAY"}),
}
_ALWAYS = frozenset({"FREQ", "INTERVAL", "COUNT", "UNTIL", "WKST"})
_DAY = "(?:MO|TU|WE|TH|FR|SA|SU)"
_SHAPES = {
    "INTERVAL": re.compile(r"[1-9]\d?"),
    "COUNT": re.compile(r"[1-9]\d{0,2}"),
    "UNTIL": re.compile(r"\d{8}T\d{6}Z"),
    "WKST": re.compile(_DAY),
    "BYMONTHDAY": re.compile(r"-?(?:[1-9]|[12]\d|3[01])"),
    ("WEEKLY", "BYDAY"): re.compile(rf"{_DAY}(?:,{_DAY})*"),
    ("MONTHLY", "BYDAY"): re.compile(rf"-?[1-5]{_DAY}(?:,-?[1-5]{_DAY})*"),
}
_COMMON_YEAR = 2001
_LONGEST_REMEMBERED = timedelta(days=64)
"""A series looks sixty days ahead, free slots a month."""
_LONGEST_OFFSET = timedelta(days=1)
"""Clocks on earth are at most 14 hours from UTC."""


class RruleRecurrences:
    """See :class:`domain.recurrence.Recurrences`."""

    def check(self, recurrence: Recurrence, where: str = "") -> None:
        path = f"{where}." if where else ""
        try:
            _zone(recurrence.tzid)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise InvalidParams.at(f"{path}tzid", "must be a name of the IANA time zone database") from None
        why = _refused(recurrence.rrule)
        if why is not None:
            raise InvalidParams.at(f"{path}rrule", why)
        if _is_in_no_month(recurrence):
            raise InvalidParams.at(f"{path}rrule", "never applies")
        try:
            first = next(_local_starts(recurrence, recurrence.dtstart), None)
        except (ValueError, OverflowError):
            raise InvalidParams.at(f"{path}rrule", "is no RFC 5545 recurrence rule") from None
        if first is None:
            raise InvalidParams.at(f"{path}rrule", "never applies")

    def following(self, recurrence: Recurrence, after: datetime) -> Interval | None:
        zone = _zone(recurrence.tzid)
        for local in _local_starts(recurrence, after.astimezone(zone).replace(tzinfo=None) - _LONGEST_OFFSET):
            start = local.replace(tzinfo=zone).astimezone(UTC)
            if start >= after:
                return Interval(start, start + recurrence.duration)
        return None

    def from_day_of(self, recurrence: Recurrence, instant: datetime) -> Recurrence | None:
        day = instant.astimezone(_zone(recurrence.tzid)).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
        if recurrence.dtstart >= day:
            return recurrence
        first = next(_local_starts(recurrence, day), None)
        if first is None:
            return None
        # An occurrence keeps the rhythm: weeks, months and days are counted from it as from the one before.
        rule = re.sub(
            r"COUNT=(\d+)", lambda match: f"COUNT={int(match[1]) - _left_out(recurrence, first)}", recurrence.rrule
        )
        return replace(recurrence, rrule=rule, dtstart=first)

    def overlapping(self, recurrence: Recurrence, within: Interval) -> list[Interval]:
        # Whole days, so that those who ask about the same days share the work, whatever the time of day.
        first = (within.start - recurrence.duration).date()
        starts = _starts(recurrence, first, within.end.date())
        times = (Interval(start, start + recurrence.duration) for start in starts)
        return [time for time in times if time.overlaps(within)]


def _starts(recurrence: Recurrence, first: date, last: date) -> tuple[datetime, ...]:
    """Every start from the beginning of one day, UTC, to the end of another. Those of long times are not remembered, so
    that what is kept is bounded in size as well as in number.
    """
    return (_remembered if last - first <= _LONGEST_REMEMBERED else _counted)(recurrence, first, last)


def _counted(recurrence: Recurrence, first: date, last: date) -> tuple[datetime, ...]:
    zone = _zone(recurrence.tzid)
    begins = datetime(first.year, first.month, first.day, tzinfo=UTC)
    ends = datetime(last.year, last.month, last.day, tzinfo=UTC) + timedelta(days=1)
    found = []
    for local in _local_starts(recurrence, begins.replace(tzinfo=None) - _LONGEST_OFFSET):
        # fold=0: the offset before a change for a time that is skipped, the first of two that come twice.
        start = local.replace(tzinfo=zone).astimezone(UTC)
        if start >= ends:
            break
        if start >= begins:
            found.append(start)
    return tuple(found)


_remembered = lru_cache(maxsize=8192)(_counted)


def _left_out(recurrence: Recurrence, first: datetime) -> int:
    """How many occurrences of a rule with ``COUNT`` come before this one."""
    compiled = _compiled(recurrence.rrule, recurrence.tzid, recurrence.dtstart)
    return sum(1 for _ in takewhile(lambda start: start < first, compiled))


def _refused(text: str) -> str | None:
    """Why the rule is not taken."""
    pairs = [part.partition("=") for part in text.split(";")]
    values = {name: value for name, _, value in pairs}
    if len(values) != len(pairs):
        return "names a part twice"
    frequency = values.get("FREQ", "")
    if frequency not in _PARTS:
        return f"FREQ must be one of {', '.join(_PARTS)}"
    unknown = values.keys() - _ALWAYS - _PARTS[frequency]
    if unknown:
        return f"{min(unknown)} is not taken with FREQ={frequency}"
    if "COUNT" in values and "UNTIL" in values:
        return "COUNT and UNTIL exclude each other"
    if "BYDAY" in values and "BYMONTHDAY" in values:
        return "BYDAY and BYMONTHDAY are not taken together"
    for name, value in values.items():
        shape = _SHAPES.get((frequency, name)) or _SHAPES.get(name)
        if shape is not None and not shape.fullmatch(value):
            return f"{name} is not valid"
    return None


def _is_in_no_month(recurrence: Recurrence) -> bool:
    """Whether the rule asks for a day that its one month of the year never has: dateutil would look until year 9999."""
    parts = dict(part.split("=", 1) for part in recurrence.rrule.split(";"))
    interval, month = int(parts.get("INTERVAL", 1)), recurrence.dtstart.month
    if interval % 12 or parts["FREQ"] != "MONTHLY":
        return False
    # A fifth Monday is in no month of 28 days.
    weekdays = [7 * int(each[:-2].lstrip("-")) - 6 for each in parts.get("BYDAY", "1MO").split(",")]
    needed = abs(int(parts.get("BYMONTHDAY", recurrence.dtstart.day if "BYDAY" not in parts else min(weekdays))))
    every_leap_year = month == 2 and interval == 12
    longest = 29 if every_leap_year else monthrange(_COMMON_YEAR, month)[1]
    return needed > longest


@lru_cache(maxsize=512)
def _zone(tzid: str) -> ZoneInfo:
    return ZoneInfo(tzid)


@lru_cache(maxsize=4096)
def _compiled(rule: str, tzid: str, dtstart: datetime) -> rrule:
    # dateutil counts on the wall clock, so UNTIL, which RFC 5545 gives in UTC, is read on the same clock.
    text = re.sub(r"UNTIL=(\d{8}T\d{6})Z", lambda match: f"UNTIL={_on_the_wall(match[1], tzid)}", rule)
    compiled = rrulestr(text, dtstart=dtstart)
    assert isinstance(compiled, rrule)
    return compiled


def _on_the_wall(utc: str, tzid: str) -> str:
    moment = datetime.strptime(utc, "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    return moment.astimezone(_zone(tzid)).strftime("%Y%m%dT%H%M%S")


def _local_starts(recurrence: Recurrence, after: datetime) -> Iterator[datetime]:
    """Local starts from ``after`` on, and possibly some before it."""
    dtstart = recurrence.dtstart
    parts = dict(part.split("=", 1) for part in recurrence.rrule.split(";"))
    days = {"DAILY": 1, "WEEKLY": 7}.get(parts["FREQ"])
    if days is not None and "COUNT" not in parts:
        # An old rule need not be counted up from its beginning: a whole number of its periods later it is the same.
        period = timedelta(days=days * int(parts.get("INTERVAL", 1)))
        dtstart += max(0, (after - dtstart) // period - 1) * period
    compiled = _compiled(recurrence.rrule, recurrence.tzid, dtstart)
    return (start for start in compiled if start >= after) if dtstart < after else iter(compiled)
