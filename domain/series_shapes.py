"""What a series and its occurrences are, and how they look on the wire; :mod:`domain.series` does the rest."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from domain.bookings import PlaceParams, PlaceView, Status
from domain.errors import Refused
from domain.recurrence import Recurrence, RecurrenceParams, RecurrenceView, recurrence_view
from domain.types import JSON, Point, wire_time
from domain.views import Key, Moment, Params, View

NOT_BEGUN = frozenset({Status.PENDING, Status.AWAITING_ASSIGNMENT, Status.ASSIGNED, Status.SCHEDULED})


class SeriesStatus(StrEnum):
    """Whether more is to come."""

    ACTIVE = "active"
    ENDED = "ended"
    CANCELLED = "cancelled"


class InstanceStatus(StrEnum):
    """What became of an occurrence."""

    BOOKED = "booked"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


class Scope(StrEnum):
    """How much of a series a change is about."""

    THIS = "this"
    FUTURE = "future"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Series:
    """The same job again and again.

    Attributes:
        provider_id: who does all of it; without one, each instance finds its own.
        ends_before: occurrences from here on belong to the series that follows, or to none.
        follows: the series that this one took over from.
    """

    id: str
    status: SeriesStatus
    version: int
    customer_id: str
    service_id: str
    zone_id: str
    provider_id: str | None
    location: Point
    address: str | None
    notes: str | None
    recurrence: Recurrence
    ends_before: datetime | None = None
    follows: str | None = None


@dataclass(frozen=True, slots=True)
class Instance:
    """One occurrence. ``reason`` says why there is no booking, or that the booking was moved."""

    series_id: str
    recurrence_id: datetime
    status: InstanceStatus
    booking_id: str | None = None
    reason: str | None = None


class TooManySeries(Refused):
    """The customer has as many series as one may have."""

    type = "too_many_series"
    default_message = "You have as many series as one may have. Cancel one first."


class SeriesCancelled(Refused):
    """The series was called off."""

    type = "series_cancelled"
    default_message = "This series was called off. Book a new one."


# --- the wire ---------------------------------------------------------------------------------------------------------

Id = Annotated[str, Field(max_length=64)]
ScopeParam = Annotated[Scope, Field(strict=False)]


class CreateSeries(Params):
    """The same job again and again; with ``provider_id``, always by this provider. With ``hold_id`` the time held is
    the first of it, booked at once, and all of it is done by the provider whose time it is.
    """

    service_id: Id
    location: PlaceParams
    recurrence: RecurrenceParams
    provider_id: Id | None = None
    hold_id: Id | None = None
    notes: Annotated[str, Field(max_length=2000)] | None = None
    key: Key


class SeriesRef(Params):
    """Names a series."""

    series_id: Id


class EditSeries(SeriesRef):
    """``this`` takes ``start`` (and ``end``) for the instance of ``recurrence_id``; ``future`` begins a new series at
    ``recurrence_id``; ``all`` is everything that has not begun. The latter two take ``recurrence``.
    """

    version: Annotated[int, Field(ge=1)]
    scope: ScopeParam
    recurrence_id: Moment | None = None
    start: Moment | None = None
    end: Moment | None = None
    recurrence: RecurrenceParams | None = None
    key: Key


class CancelSeries(SeriesRef):
    """Calls one instance off, it and all later ones, or all that has not begun."""

    scope: ScopeParam
    recurrence_id: Moment | None = None
    key: Key


class SeriesView(View):
    """A series as its customer sees it."""

    id: str
    status: SeriesStatus
    version: int
    customer_id: str
    service_id: str
    zone_id: str
    provider_id: str | None = None
    location: PlaceView
    notes: str | None = None
    recurrence: RecurrenceView
    ends_before: str | None = None
    follows: str | None = None


class InstanceView(View):
    """One occurrence of a series; ``reason`` says why there is no booking, or that the booking was ``moved``."""

    recurrence_id: str
    status: InstanceStatus
    booking_id: str | None = None
    reason: str | None = None


class SeriesResult(View):
    """One series with those of its instances that are not over, and one hundred of them at most."""

    series: SeriesView
    instances: list[InstanceView]


class SeriesList(View):
    """The caller's series, those that go on first."""

    series: list[SeriesView]


class SeriesEventData(View):
    """What happened to a series."""

    series_id: str
    series: SeriesView


class InstanceEventData(View):
    """What became of an occurrence: ``reason`` of a skipped one is why its provider could not be booked."""

    series_id: str
    recurrence_id: str
    booking_id: str | None = None
    reason: str | None = None


def series_view(series: Series) -> JSON:
    """A series on the wire."""
    shape: JSON = {
        "id": series.id,
        "status": series.status.value,
        "version": series.version,
        "customer_id": series.customer_id,
        "service_id": series.service_id,
        "zone_id": series.zone_id,
        "location": series.location.view(),
        "recurrence": recurrence_view(series.recurrence),
    }
    if series.address:
        shape["location"]["address"] = series.address
    for name in ("provider_id", "notes", "follows"):
        if getattr(series, name):
            shape[name] = getattr(series, name)
    if series.ends_before is not None:
        shape["ends_before"] = wire_time(series.ends_before)
    return shape


def instance_view(instance: Instance) -> JSON:
    """An occurrence on the wire."""
    shape: JSON = {"recurrence_id": wire_time(instance.recurrence_id), "status": instance.status.value}
    for name in ("booking_id", "reason"):
        if getattr(instance, name):
            shape[name] = getattr(instance, name)
    return shape
