"""The booking: its table of transitions, and the use cases around it.

:data:`TRANSITIONS` is the only place that says which step leads where, who may take it and what the world hears.
Checks, documentation and diagrams are drawn from it.

Invariants: a booking changes only through :func:`move` under its row lock; every change raises ``version`` by one;
    whoever lost access through a change is put on the control channel in the same transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from domain.errors import Conflict, Forbidden, IllegalTransition, InvalidParams, Refused
from domain.events import Audience, Event
from domain.identity import Actor
from domain.sla import Sla, SlaView
from domain.sla import view as sla_view
from domain.types import Interval, Money, Point, new_id, wire_time
from domain.views import Key, Moment, MoneyView, Params, Text, View


class Status(StrEnum):
    """Where a booking stands."""

    PENDING = "pending"
    AWAITING_ASSIGNMENT = "awaiting_assignment"
    ASSIGNED = "assigned"
    SCHEDULED = "scheduled"
    EN_ROUTE = "en_route"
    ARRIVED = "arrived"
    IN_PROGRESS = "in_progress"
    PAUSED = "paused"
    COMPLETED = "completed"
    UNFULFILLED = "unfulfilled"
    CANCELLED = "cancelled"
    NO_SHOW = "no_show"
    DISPUTED = "disputed"


class Kind(StrEnum):
    """As soon as possible, or at an agreed time."""

    ON_DEMAND = "on_demand"
    SCHEDULED = "scheduled"


class Party(StrEnum):
    """In which capacity somebody takes a step."""

    CUSTOMER = "customer"
    PROVIDER = "provider"
    OPERATIONS = "operations"
    SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class Transition:
    """One row of the table: from any of ``sources`` to ``target``, by any of ``parties``, told as ``event``."""

    sources: frozenset[Status]
    target: Status
    parties: frozenset[Party]
    event: str
    needs_reason: bool = False


def _row(
    sources: Iterable[Status], target: Status, parties: Iterable[Party], event: str, *, needs_reason: bool = False
) -> Transition:
    return Transition(frozenset(sources), target, frozenset(parties), event, needs_reason)


_S, _P = Status, Party
TRANSITIONS: tuple[Transition, ...] = (
    _row([_S.PENDING], _S.AWAITING_ASSIGNMENT, [_P.SYSTEM], "booking.dispatch_started"),
    _row([_S.AWAITING_ASSIGNMENT], _S.ASSIGNED, [_P.PROVIDER, _P.OPERATIONS], "booking.assigned"),
    _row([_S.AWAITING_ASSIGNMENT], _S.SCHEDULED, [_P.PROVIDER, _P.OPERATIONS], "booking.assigned"),
    _row([_S.AWAITING_ASSIGNMENT], _S.UNFULFILLED, [_P.SYSTEM], "booking.unfulfilled"),
    _row([_S.SCHEDULED, _S.ASSIGNED], _S.EN_ROUTE, [_P.PROVIDER], "booking.en_route"),
    _row([_S.EN_ROUTE], _S.ARRIVED, [_P.PROVIDER, _P.SYSTEM], "booking.arrived"),
    _row([_S.ARRIVED], _S.IN_PROGRESS, [_P.PROVIDER], "booking.started"),
    _row([_S.IN_PROGRESS], _S.PAUSED, [_P.PROVIDER], "booking.paused"),
    _row([_S.PAUSED], _S.IN_PROGRESS, [_P.PROVIDER], "booking.resumed"),
    _row([_S.IN_PROGRESS], _S.COMPLETED, [_P.PROVIDER], "booking.completed"),
    _row(
        [_S.PENDING, _S.AWAITING_ASSIGNMENT, _S.ASSIGNED, _S.SCHEDULED, _S.EN_ROUTE, _S.ARRIVED],
        _S.CANCELLED,
        [_P.CUSTOMER, _P.PROVIDER, _P.OPERATIONS],
        "booking.cancelled",
        needs_reason=True,
    ),
    _row(
        [_S.SCHEDULED, _S.ASSIGNED, _S.EN_ROUTE],
        _S.AWAITING_ASSIGNMENT,
        [_P.PROVIDER, _P.OPERATIONS, _P.SYSTEM],
        "booking.reassignment_started",
    ),
    _row([_S.ARRIVED], _S.NO_SHOW, [_P.CUSTOMER, _P.PROVIDER], "booking.no_show_recorded"),
    _row([_S.IN_PROGRESS, _S.COMPLETED], _S.DISPUTED, [_P.CUSTOMER, _P.PROVIDER], "dispute.opened"),
    _row([_S.DISPUTED], _S.IN_PROGRESS, [_P.OPERATIONS], "dispute.resolved"),
    _row([_S.DISPUTED], _S.COMPLETED, [_P.OPERATIONS], "dispute.resolved"),
    _row([_S.DISPUTED], _S.CANCELLED, [_P.OPERATIONS], "dispute.resolved"),
)

ENDED = frozenset({_S.COMPLETED, _S.CANCELLED, _S.UNFULFILLED, _S.NO_SHOW})
"""Nothing more happens here, but for a dispute about a completed job."""

OCCUPYING = frozenset({_S.ASSIGNED, _S.SCHEDULED, _S.EN_ROUTE, _S.ARRIVED, _S.IN_PROGRESS, _S.PAUSED})
"""A provider is committed to it."""

UNDER_WAY = frozenset({_S.ASSIGNED, _S.EN_ROUTE, _S.ARRIVED, _S.IN_PROGRESS, _S.PAUSED})
"""A provider is busy with it now; a scheduled job is not, until its provider sets out."""

TRACKED = frozenset({_S.EN_ROUTE, _S.ARRIVED, _S.IN_PROGRESS, _S.PAUSED})
"""The provider's position is shared with the booking's people."""


@dataclass(frozen=True, slots=True)
class Booking:
    """A customer's job, from the wish to the end.

    Attributes:
        slot: agreed time of scheduled work, else ``None``.
        wave: dispatch waves sent so far that had somebody in them.
        organisation_id: the assigned provider's; the row's tenant.
    """

    id: str
    status: Status
    version: int
    kind: Kind
    service_id: str
    zone_id: str
    customer_id: str
    location: Point
    address: str | None
    slot: Interval | None
    notes: str | None
    price: Money
    created_at: datetime
    updated_at: datetime
    provider_id: str | None = None
    organisation_id: str | None = None
    wave: int = 0
    dispatch_started_at: datetime | None = None
    assigned_at: datetime | None = None
    arrived_at: datetime | None = None
    completed_at: datetime | None = None
    sla: Sla = field(default_factory=Sla)


# --- the wire ---------------------------------------------------------------------------------------------------------


class PlaceParams(Params):
    """Where the work is."""

    lat: Annotated[float, Field(ge=-90, le=90)]
    lon: Annotated[float, Field(ge=-180, le=180)]
    address: Annotated[str, Field(max_length=500)] | None = None


class PlaceView(View):
    """Where the work is."""

    lat: float
    lon: float
    address: str | None = None


class BookingView(View):
    """A booking as its people see it."""

    id: str
    status: Status
    version: int
    kind: Kind
    service_id: str
    zone_id: str
    customer_id: str
    provider_id: str | None = None
    conversation_id: str
    location: PlaceView
    start: str | None = None
    end: str | None = None
    notes: str | None = None
    price: MoneyView
    created_at: str
    updated_at: str
    sla: SlaView


def view(booking: Booking) -> dict[str, Any]:
    """The booking on the wire, exact place included: only for its own people and operations."""
    shape: dict[str, Any] = {
        "id": booking.id,
        "status": booking.status.value,
        "version": booking.version,
        "kind": booking.kind.value,
        "service_id": booking.service_id,
        "zone_id": booking.zone_id,
        "customer_id": booking.customer_id,
        "conversation_id": booking.id,
        "location": booking.location.view(),
        "price": booking.price.view(),
        "created_at": wire_time(booking.created_at),
        "updated_at": wire_time(booking.updated_at),
        "sla": sla_view(booking.sla),
    }
    if booking.address:
        shape["location"]["address"] = booking.address
    if booking.provider_id:
        shape["provider_id"] = booking.provider_id
    if booking.slot:
        shape["start"] = wire_time(booking.slot.start)
        shape["end"] = wire_time(booking.slot.end)
    if booking.notes:
        shape["notes"] = booking.notes
    return shape


class CreateBooking(Params):
    """What a customer books. ``start`` and ``end`` belong to scheduled work only, and a time that was held with
    ``slot.hold`` brings its own.
    """

    service_id: Annotated[str, Field(max_length=64)]
    kind: Annotated[Kind, Field(strict=False)]
    location: PlaceParams
    start: Moment | None = None
    end: Moment | None = None
    notes: Annotated[str, Field(max_length=2000)] | None = None
    hold_id: Annotated[str, Field(max_length=64)] | None = None
    key: Key


class BookingRef(Params):
    """Names a booking."""

    booking_id: Annotated[str, Field(max_length=64)]


class ListBookings(Params):
    """``cursor`` is the ``next_cursor`` of the page before; newest first."""

    status: Annotated[Status, Field(strict=False)] | None = None
    cursor: Annotated[str, Field(max_length=64)] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 50


class TransitionBooking(BookingRef):
    """One step of the table, from the version the caller saw."""

    to: Annotated[Status, Field(strict=False)]
    version: Annotated[int, Field(ge=1)]
    reason: Text | None = None
    key: Key


class CancelBooking(BookingRef):
    """Calls a booking off."""

    reason: Text
    key: Key


class RescheduleBooking(BookingRef):
    """Another time; without ``end`` the length stays."""

    version: Annotated[int, Field(ge=1)]
    start: Moment
    end: Moment | None = None
    reason: Text | None = None
    key: Key


class AssignBooking(BookingRef):
    """Gives a waiting booking to this provider."""

    provider_id: Annotated[str, Field(max_length=64)]
    key: Key


class BookingResult(View):
    """One booking."""

    booking: BookingView


class BookingPage(View):
    """A page of bookings, newest first."""

    bookings: list[BookingView]
    next_cursor: str | None = None


class BookingEventData(View):
    """``from`` is the status before, or null when there was none."""

    booking_id: str
    booking: BookingView
    from_: Status | None = Field(default=None, alias="from")
    reason: str | None = None


# --- rules ------------------------------------------------------------------------------------------------------------


def parties_of(actor: Actor, booking: Booking) -> frozenset[Party]:
    """In which capacities this person stands to this booking; empty for a stranger."""
    parties = set()
    if actor.user_id == booking.customer_id:
        parties.add(Party.CUSTOMER)
    if booking.provider_id is not None and booking.provider_id in actor.provider_ids:
        parties.add(Party.PROVIDER)
    if actor.is_operations:
        parties.add(Party.OPERATIONS)
    return frozenset(parties)


def visible_to(actor: Actor, booking: Booking | None) -> Booking:
    """The booking, if this person may see it.

    Raises:
        Forbidden: it is not there, or not theirs; the two look the same.
    """
    if booking is None or not parties_of(actor, booking):
        raise Forbidden
    return booking


def find_transition(booking: Booking, target: Status, parties: frozenset[Party]) -> Transition:
    """The row of the table for this step.

    Raises:
        IllegalTransition: no such row, or not for these parties; ``allowed`` lists where they could go.
    """
    for row in TRANSITIONS:
        if booking.status in row.sources and row.target is target and parties & row.parties:
            return row
    allowed = sorted(
        {row.target.value for row in TRANSITIONS if booking.status in row.sources and parties & row.parties}
    )
    raise IllegalTransition(status_now=booking.status.value, to=target.value, allowed=allowed)


def check_version(booking: Booking, seen: int) -> None:
    """Raises ``Conflict`` unless the caller saw the newest version."""
    if booking.version != seen:
        raise Conflict(version=booking.version)


class TooEarly(Refused):
    """A step that is allowed only after some time."""

    type = "too_early"
    default_message = "It is too early for that."


class TooLate(Refused):
    """A step whose time has passed."""

    type = "too_late"
    default_message = "It is too late for that."


def check_time(
    booking: Booking, target: Status, now: datetime, no_show_after_seconds: float, dispute_window_days: int
) -> None:
    """The two rows of the table that the clock guards.

    Raises:
        TooEarly: a no-show before the wait was over.
        TooLate: a dispute after its window.
    """
    if target is Status.NO_SHOW:
        waited_since = booking.arrived_at or booking.updated_at
        if now < waited_since + timedelta(seconds=no_show_after_seconds):
            raise TooEarly(allowed_at=wire_time(waited_since + timedelta(seconds=no_show_after_seconds)))
    if target is Status.DISPUTED and booking.status is Status.COMPLETED:
        completed_at = booking.completed_at or booking.updated_at
        if now > completed_at + timedelta(days=dispute_window_days):
            raise TooLate


def moved(booking: Booking, target: Status, now: datetime) -> Booking:
    """The booking after the step, with the times that the step sets."""
    after = replace(booking, status=target, version=booking.version + 1, updated_at=now)
    match target:
        case Status.AWAITING_ASSIGNMENT:
            return replace(
                after, provider_id=None, organisation_id=None, assigned_at=None, wave=0, dispatch_started_at=now
            )
        case Status.ARRIVED:
            return replace(after, arrived_at=now)
        case Status.COMPLETED:
            return replace(after, completed_at=now)
        case _:
            return after


def require_slot(
    kind: Kind, start: datetime | None, end: datetime | None, now: datetime, duration_minutes: int
) -> Interval | None:
    """The agreed interval of scheduled work, checked.

    Raises:
        InvalidParams: missing, in the past, reversed, or given for work on demand.
    """
    if kind is Kind.ON_DEMAND:
        if start is not None or end is not None:
            raise InvalidParams.at("start", "only scheduled bookings have a time")
        return None
    if start is None:
        raise InvalidParams.at("start", "a scheduled booking needs a start")
    end = end or start + timedelta(minutes=duration_minutes)
    if start <= now:
        raise InvalidParams.at("start", "must be in the future")
    if end <= start:
        raise InvalidParams.at("end", "must be after start")
    if end - start > timedelta(days=7):
        raise InvalidParams.at("end", "at most seven days after start")
    return Interval(start, end)


def event(
    booking: Booking,
    type_: str,
    now: datetime,
    *,
    before: Booking | None = None,
    reason: str | None = None,
) -> Event:
    """The fact that something happened to a booking, for its customer, its people and the operators.

    The organisation that just lost the booking hears of it too: it is the last it hears.
    """
    organisations = dict.fromkeys(
        organisation
        for organisation in (booking.organisation_id, before.organisation_id if before else None)
        if organisation is not None
    )
    data: dict[str, Any] = {
        "booking_id": booking.id,
        "booking": view(booking),
        "from": before.status.value if before else None,
    }
    if reason:
        data["reason"] = reason
    return Event(
        id=new_id(now),
        type=type_,
        time=now,
        source=f"booking/{booking.id}",
        data=data,
        audience=Audience(users=(booking.customer_id,), organisations=tuple(organisations), booking=booking.id),
    )


def access_revoked(booking: Booking, provider_id: str, now: datetime) -> Event:
    """The former provider's people must not hear another word of this booking."""
    return Event(
        id=new_id(now),
        type="access.revoked",
        time=now,
        source=f"booking/{booking.id}",
        data={
            "channels": [f"booking:{booking.id}", f"conversation:{booking.id}"],
            "user_ids": [],
            "provider_ids": [provider_id],
        },
    )
