"""Things that happen again and again at a local time: an RFC 5545 rule, where its clock hangs, and how long it lasts.

The local time of day is what stays the same, summer and winter; the instants follow from the zone. As RFC 5545
(section 3.3.5) has it, a local time that a clock change skips is read with the offset before the change, and one that
comes twice means the first. The length is exact (section 3.8.5.3): eight hours are eight hours in every night.

Rules are a bounded part of RFC 5545, so that no rule can keep the server searching: ``FREQ`` is ``DAILY``, ``WEEKLY``
(with ``BYDAY``) or ``MONTHLY`` (with ``BYDAY`` such as ``1MO`` or ``-1FR``, or with ``BYMONTHDAY``), and ``INTERVAL``,
``COUNT``, ``UNTIL`` and ``WKST`` go with each of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Protocol

from pydantic import AfterValidator, BeforeValidator, Field, NaiveDatetime, StringConstraints

from domain.types import JSON, Interval
from domain.views import Params, View

_LOCAL = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?")


@dataclass(frozen=True, slots=True)
class Recurrence:
    """A rule.

    Attributes:
        rrule: the value of an RRULE, without its name.
        tzid: of the IANA time zone database, such as ``Europe/London``.
        dtstart: local time of the first occurrence; nothing happens before it.
        duration: of each occurrence.
    """

    rrule: str
    tzid: str
    dtstart: datetime
    duration: timedelta


class Recurrences(Protocol):
    """Knows when rules apply."""

    def check(self, recurrence: Recurrence, where: str = "") -> None:
        """Raises ``InvalidParams`` when the rule is none, is not among those taken, or never applies; ``where`` is the
        path before ``rrule`` and its neighbours.
        """

    def overlapping(self, recurrence: Recurrence, within: Interval) -> list[Interval]:
        """The occurrences that share an instant with this time, in order. Keep the time bounded: so is the answer."""

    def following(self, recurrence: Recurrence, after: datetime) -> Interval | None:
        """The first occurrence that starts at this instant or later, if there is one."""

    def from_day_of(self, recurrence: Recurrence, instant: datetime) -> Recurrence | None:
        """The rule without its occurrences before the day of this instant in its own time zone; ``COUNT`` goes down by
        those left out. ``None`` when none is left.
        """


def _written_out(value: object) -> object:
    if isinstance(value, datetime) or (isinstance(value, str) and _LOCAL.fullmatch(value)):
        return value
    raise ValueError("must be a local time such as 2026-11-24T09:00, without an offset")


def _within_reason(value: datetime) -> datetime:
    if not 2000 <= value.year < 2200:
        raise ValueError("must be between the years 2000 and 2200")
    return value


LocalTime = Annotated[NaiveDatetime, BeforeValidator(_written_out), AfterValidator(_within_reason), Field(strict=False)]
"""A date and a time of day on a wall clock, without an offset."""

Rrule = Annotated[str, StringConstraints(min_length=1, max_length=200, to_upper=True, strip_whitespace=True)]
Tzid = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class RecurrenceParams(Params):
    """An RFC 5545 rule; see :mod:`domain.recurrence` for the parts of one that are taken."""

    rrule: Rrule
    tzid: Tzid
    dtstart: LocalTime
    duration_minutes: Annotated[int, Field(ge=1, le=24 * 60)]

    def recurrence(self) -> Recurrence:
        duration = timedelta(minutes=self.duration_minutes)
        return Recurrence(self.rrule, self.tzid, self.dtstart, duration)


class RecurrenceView(View):
    """An RFC 5545 rule. ``dtstart`` is a local time."""

    rrule: str
    tzid: str
    dtstart: str
    duration_minutes: int


def recurrence_view(recurrence: Recurrence) -> JSON:
    """The rule on the wire, and as it is stored."""
    return {
        "rrule": recurrence.rrule,
        "tzid": recurrence.tzid,
        "dtstart": recurrence.dtstart.isoformat(timespec="seconds"),
        "duration_minutes": int(recurrence.duration / timedelta(minutes=1)),
    }


def recurrence_from(shape: JSON) -> Recurrence:
    """The rule that :func:`recurrence_view` wrote down."""
    duration = timedelta(minutes=shape["duration_minutes"])
    return Recurrence(shape["rrule"], shape["tzid"], datetime.fromisoformat(shape["dtstart"]), duration)
