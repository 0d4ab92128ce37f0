"""RFC 5545 rules: local time stays through clock changes, as other implementations have it, and no rule runs away."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from zoneinfo import ZoneInfo

import pytest
from dateutil import rrule, tz
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.errors import InvalidParams
from domain.recurrence import Recurrence
from domain.types import Interval
from persistence.recurrence import RruleRecurrences, _remembered

local = datetime.fromisoformat
RECURRENCES = RruleRecurrences()
HOUR = timedelta(hours=1)
DAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
ZONES = ("Europe/London", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Santiago", "UTC")


def overlapping(
    rule: str, tzid: str, dtstart: datetime, within: Interval, duration: timedelta = HOUR
) -> list[Interval]:
    recurrence = Recurrence(rule, tzid, dtstart, duration)
    return RECURRENCES.overlapping(recurrence, within)


def starts(rule: str, tzid: str, dtstart: datetime, first: datetime, last: datetime) -> list[datetime]:
    within = Interval(first.replace(tzinfo=UTC), last.replace(tzinfo=UTC))
    return [each.start for each in overlapping(rule, tzid, dtstart, within)]


@settings(max_examples=60)
@given(
    rule=st.one_of(
        st.builds(
            "FREQ=WEEKLY;INTERVAL={};WKST={};BYDAY={}".format,
            st.integers(1, 4),
            st.sampled_from(DAYS),
            st.lists(st.sampled_from(DAYS), min_size=1, unique=True).map(",".join),
        ),
        st.builds("FREQ=DAILY;INTERVAL={}".format, st.integers(1, 20)),
        st.builds("FREQ=DAILY;COUNT={}".format, st.integers(1, 999)),
        st.builds("FREQ=MONTHLY;BYDAY={}{}".format, st.sampled_from([1, 2, -1, 5]), st.sampled_from(DAYS)),
        st.builds("FREQ=MONTHLY;BYMONTHDAY={}".format, st.sampled_from([1, 28, 31, -1])),
        st.builds("FREQ=WEEKLY;UNTIL=2026{:02}15T120000Z".format, st.integers(1, 12)),
    ),
    tzid=st.sampled_from(ZONES),
    dtstart=st.datetimes(local("2023-01-01T00:00"), local("2026-01-14T00:00")).map(
        lambda each: each.replace(second=0, microsecond=0)
    ),
    first=st.datetimes(local("2025-01-01T00:00"), local("2027-01-01T00:00")),
    days=st.integers(1, 70),
    minutes=st.integers(1, 1440),
)
def test_occurrences_are_those_that_dateutil_counts_up_from_the_beginning_on_its_own_zones(
    rule: str, tzid: str, dtstart: datetime, first: datetime, days: int, minutes: int
) -> None:
    within = Interval(first.replace(tzinfo=UTC), first.replace(tzinfo=UTC) + timedelta(days=days))
    duration = timedelta(minutes=minutes)
    zone = tz.gettz(tzid)
    counted = rrule.rrulestr(rule, dtstart=dtstart.replace(tzinfo=zone))
    expected = []
    for local in takewhile(lambda each: each.replace(tzinfo=UTC) < within.end + timedelta(days=2), counted):
        # What a clock change skips is read with the offset before the change (RFC 5545, section 3.3.5).
        start = (local if tz.datetime_exists(local) else tz.resolve_imaginary(local)).astimezone(UTC)
        if start < within.end and start + duration > within.start:
            expected.append(Interval(start, start + duration))
    assert overlapping(rule, tzid, dtstart, within, duration) == expected


@settings(max_examples=60)
@given(
    rule=st.one_of(
        st.builds(
            "FREQ=WEEKLY;INTERVAL={};BYDAY={}".format,
            st.integers(1, 4),
            st.lists(st.sampled_from(DAYS), min_size=1, unique=True).map(",".join),
        ),
        st.builds("FREQ=DAILY;INTERVAL={};COUNT={}".format, st.integers(1, 20), st.integers(1, 99)),
        st.builds("FREQ=MONTHLY;INTERVAL={};COUNT={}".format, st.integers(1, 5), st.integers(1, 30)),
        st.builds("FREQ=MONTHLY;INTERVAL={};BYDAY=-1FR".format, st.integers(1, 5)),
        st.builds("FREQ=WEEKLY;UNTIL=2026{:02}15T120000Z".format, st.integers(1, 12)),
    ),
    tzid=st.sampled_from(ZONES),
    dtstart=st.datetimes(local("2025-06-01T00:00"), local("2026-06-01T00:00")).map(
        lambda each: each.replace(second=0, microsecond=0)
    ),
    instant=st.datetimes(local("2026-01-01T00:00"), local("2026-07-01T00:00")),
)
def test_rule_from_a_day_on_is_the_rule_without_what_comes_before(
    rule: str, tzid: str, dtstart: datetime, instant: datetime
) -> None:
    recurrence, instant = Recurrence(rule, tzid, dtstart, HOUR), instant.replace(tzinfo=UTC)
    day = instant.astimezone(ZoneInfo(tzid)).replace(hour=0, minute=0, second=0, microsecond=0).astimezone(UTC)
    whole = Interval(datetime(2025, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
    expected = [each for each in RECURRENCES.overlapping(recurrence, whole) if each.start >= day]
    rest = RECURRENCES.from_day_of(recurrence, instant)
    assert (RECURRENCES.overlapping(rest, whole) if rest else []) == expected
    assert rest is None or rest.dtstart >= dtstart


@given(tzid=st.sampled_from(ZONES), hour=st.integers(0, 23), minute=st.integers(0, 59))
def test_local_time_of_day_is_the_same_all_year(tzid: str, hour: int, minute: int) -> None:
    within = Interval(datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
    zone = ZoneInfo(tzid)
    found = overlapping("FREQ=DAILY", tzid, local(f"2025-12-01T{hour:02}:{minute:02}"), within)
    on_the_wall = [each.start.astimezone(zone) for each in found]
    differing = [each for each in on_the_wall if (each.hour, each.minute) != (hour, minute)]
    assert len(found) in {364, 365, 366}
    assert len(differing) <= 1, "at most the one that a clock change skips"


def test_nine_in_london_is_eight_or_nine_utc() -> None:
    found = starts(
        "FREQ=WEEKLY;BYDAY=SU",
        "Europe/London",
        local("2026-01-04T09:00"),
        local("2026-03-22T00:00"),
        local("2026-04-01T00:00"),
    )
    assert found == [datetime(2026, 3, 22, 9, tzinfo=UTC), datetime(2026, 3, 29, 8, tzinfo=UTC)]
    found = starts(
        "FREQ=DAILY", "Europe/London", local("2026-01-01T01:30"), local("2026-03-28T00:00"), local("2026-03-31T00:00")
    )
    assert [each.hour for each in found] == [1, 1, 0], (
        "half past one is skipped on the 29th, and is half past two there"
    )


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("", "FREQ must be"),
        ("FREQ=SECONDLY", "FREQ must be"),
        ("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30", "FREQ must be"),
        ("FREQ=DAILY;BYDAY=MO;INTERVAL=7", "BYDAY is not taken with FREQ=DAILY"),
        ("FREQ=WEEKLY;BYHOUR=1,2,3", "BYHOUR is not taken"),
        ("FREQ=MONTHLY;BYSETPOS=400;BYDAY=1MO", "BYSETPOS is not taken"),
        ("FREQ=MONTHLY;BYDAY=6MO", "BYDAY is not valid"),
        ("FREQ=WEEKLY;BYDAY=1MO", "BYDAY is not valid"),
        ("FREQ=WEEKLY;INTERVAL=0", "INTERVAL is not valid"),
        ("FREQ=WEEKLY;COUNT=100000", "COUNT is not valid"),
        ("FREQ=WEEKLY;UNTIL=20261301T000000Z", "is no RFC 5545"),
        ("FREQ=WEEKLY;UNTIL=20261201", "UNTIL is not valid"),
        ("FREQ=WEEKLY;UNTIL=20251201T000000Z", "never applies"),
        ("FREQ=WEEKLY;COUNT=3;UNTIL=20271201T000000Z", "exclude each other"),
        ("FREQ=WEEKLY;FREQ=DAILY", "twice"),
        ("FREQ=MONTHLY;INTERVAL=12;BYMONTHDAY=31", "never applies"),
        ("FREQ=MONTHLY;INTERVAL=24;BYDAY=5MO", "never applies"),
        ("FREQ=MONTHLY;INTERVAL=24;BYMONTHDAY=29", "never applies"),
        ("FREQ=WEEKLY\nRRULE:FREQ=DAILY", "FREQ must be"),
        ("DTSTART:20200101T000000\nRRULE:FREQ=DAILY", "FREQ must be"),
    ],
)
def test_rule_that_is_not_taken_is_refused_with_the_reason_and_at_once(rule: str, why: str) -> None:
    began = time.monotonic()
    with pytest.raises(InvalidParams) as caught:
        RECURRENCES.check(Recurrence(rule, "Europe/London", local("2026-02-02T09:00"), HOUR), "rules.0")
    (problem,) = caught.value.details["errors"]
    assert problem["where"] == "rules.0.rrule"
    assert why in problem["why"]
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("tzid", ["Mars/Olympus", "../../etc/passwd", "/etc/localtime", "Europe", "", "a\0b"])
def test_zone_that_is_none_is_refused(tzid: str) -> None:
    with pytest.raises(InvalidParams) as caught:
        RECURRENCES.check(Recurrence("FREQ=DAILY", tzid, local("2026-02-02T09:00"), HOUR))
    assert caught.value.details["errors"][0]["where"] == "tzid"


def test_old_rule_costs_no_more_than_a_young_one() -> None:
    within = Interval(datetime(2190, 1, 1, tzinfo=UTC), datetime(2190, 1, 8, tzinfo=UTC))
    began = time.monotonic()
    for _ in range(100):
        assert len(overlapping("FREQ=DAILY", "UTC", local("2000-01-01T09:00"), within)) == 7
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(("days", "kept"), [(60, 1), (400, 0)])
def test_long_times_are_not_remembered(days: int, kept: int) -> None:
    before = _remembered.cache_info()
    daily = Recurrence("FREQ=DAILY", "UTC", local("2019-01-01T10:00"), timedelta(minutes=days))
    first = datetime(2026, 3, 1, tzinfo=UTC)
    assert len(RECURRENCES.overlapping(daily, Interval(first, first + timedelta(days=days)))) == days
    assert _remembered.cache_info().misses - before.misses == kept
