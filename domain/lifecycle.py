"""What people do with bookings: create, look, move along, cancel, reschedule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from domain import availability, bookings, deadlines, dispatch, moves, searches, slots
from domain.bookings import (
    Booking,
    BookingRef,
    CancelBooking,
    CreateBooking,
    ListBookings,
    Party,
    RescheduleBooking,
    Status,
    TransitionBooking,
)
from domain.context import Context
from domain.errors import IllegalTransition, InvalidParams, OutsideZones
from domain.providers import Service, Zone
from domain.security import SecurityEvents, SecurityKind
from domain.types import JSON, Interval, Point, new_id


async def create(ctx: Context, params: CreateBooking) -> JSON:
    """A customer books; the first offers go out in the same transaction. A time that the customer holds is booked with
    its provider at once: the plan in which it was free is the provider's word.

    Raises:
        InvalidParams: unknown service, or a time that makes no sense.
        OutsideZones: no zone covers the place.
        HoldExpired: the time is no longer held.
    """
    held = None if params.hold_id is None else await slots.own_hold(ctx, params.hold_id)
    service = await ctx.uow.market.service(params.service_id)
    if service is None:
        raise InvalidParams.at("service_id", "there is no such service")
    start, end = params.start, params.end
    if held is not None:
        start, end = start or held.during.start, end or held.during.end
    slot = bookings.require_slot(params.kind, start, end, ctx.now, service.duration_minutes)
    place = Point(params.location.lat, params.location.lon)
    zone = await ctx.uow.market.zone_at(place)
    if zone is None:
        raise OutsideZones
    if held is not None and (held.service_id, held.zone_id, held.during) != (service.id, zone.id, slot):
        raise InvalidParams.at("hold_id", "is for another service, zone or time")
    wish = Wish(params.kind, ctx.actor.user_id, service, zone, place, params.location.address, slot, params.notes)
    booking = await place_wish(ctx, wish)
    if held is not None:
        provider = await slots.redeem(ctx, held)
        return _result(ctx, await moves.assign(ctx, booking, provider, frozenset({Party.PROVIDER})))
    return _result(ctx, await dispatch.send_wave(ctx, booking, zone, service))


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants done, checked."""

    kind: bookings.Kind
    customer_id: str
    service: Service
    zone: Zone
    location: Point
    address: str | None
    slot: Interval | None
    notes: str | None


async def place_wish(ctx: Context, wish: Wish, *, search_at: datetime | None = None) -> Booking:
    """Makes the booking, as far as it awaits a provider; asking or assigning one is up to the caller.

    Args:
        search_at: when a search that is not to begin yet will begin by itself; until then the booking is pending.
    """
    created = Booking(
        id=new_id(ctx.now),
        status=Status.PENDING,
        version=1,
        kind=wish.kind,
        service_id=wish.service.id,
        zone_id=wish.zone.id,
        customer_id=wish.customer_id,
        location=wish.location,
        address=wish.address,
        slot=wish.slot,
        notes=wish.notes,
        price=wish.service.price,
        created_at=ctx.now,
        updated_at=ctx.now,
        sla=await deadlines.begin(ctx, wish.service, wish.zone.id),
    )
    if search_at is not None:
        await ctx.uow.bookings.add(created)
        await ctx.uow.conversations.open(created.id)
        moves.record(ctx, created, "booking.created")
        await searches.look_at(ctx, created.id, search_at)
        return created
    # Zone found, checks passed: the first step of the table follows at once, so the row is written after it.
    step = bookings.find_transition(created, Status.AWAITING_ASSIGNMENT, dispatch.SYSTEM_PARTY)
    booking = deadlines.follow(created, bookings.moved(created, step.target, ctx.now), ctx.now)
    await ctx.uow.bookings.add(booking)
    await ctx.uow.conversations.open(booking.id)
    moves.record(ctx, replace(created, sla=booking.sla), "booking.created")
    moves.record(ctx, booking, step.event, before=created)
    await deadlines.tell(ctx, created, booking)
    return booking


async def get(ctx: Context, params: BookingRef) -> JSON:
    """One booking, for its people and operations."""
    return _result(ctx, bookings.visible_to(ctx.actor, await ctx.uow.bookings.get(params.booking_id)))


async def list_bookings(ctx: Context, params: ListBookings) -> JSON:
    """The caller's bookings, newest first: own ones, those of their providers, all of them for operations."""
    page = await ctx.uow.bookings.of(ctx.actor, params.status, params.cursor, params.limit + 1)
    shape: JSON = {"bookings": [bookings.view(booking) for booking in page[: params.limit]]}
    if len(page) > params.limit:
        shape["next_cursor"] = page[params.limit - 1].id
    return shape


async def transition(ctx: Context, params: TransitionBooking) -> JSON:
    """One step of the table, by whoever may take it.

    Raises:
        Conflict: the caller saw an older version.
        IllegalTransition: the table does not lead there from here for this caller.
    """
    booking = await _locked(ctx, params)
    bookings.check_version(booking, params.version)
    if params.to in {Status.ASSIGNED, Status.SCHEDULED}:
        # Being assigned is the outcome of an accepted offer or of booking.assign, never a step somebody just takes.
        raise IllegalTransition(status_now=booking.status.value, to=params.to.value, allowed=[])
    parties = bookings.parties_of(ctx.actor, booking)
    after = await moves.move(ctx, booking, params.to, parties, reason=params.reason)
    await _attest(ctx, booking, after, params.reason)
    return _result(ctx, after)


async def cancel(ctx: Context, params: CancelBooking) -> JSON:
    """Cancels before the start, with a reason. A booking that is cancelled already stays so."""
    booking = await _locked(ctx, params)
    if booking.status is Status.CANCELLED:
        return _result(ctx, booking)
    parties = bookings.parties_of(ctx.actor, booking)
    after = await moves.move(ctx, booking, Status.CANCELLED, parties, reason=params.reason)
    await _attest(ctx, booking, after, params.reason)
    return _result(ctx, after)


async def reschedule(ctx: Context, params: RescheduleBooking) -> JSON:
    """Moves scheduled work to another time, as long as nobody has set out.

    Raises:
        SlotTaken, SlotClosed: the assigned provider has another job then, or does not work.
        IllegalTransition: it is not scheduled work, or too far along.
    """
    booking = await _locked(ctx, params)
    bookings.check_version(booking, params.version)
    return _result(ctx, await move_to(ctx, booking, params.start, params.end, params.reason))


async def move_to(
    ctx: Context, booking: Booking, start: datetime, end: datetime | None, reason: str | None = None
) -> Booking:
    """The same for a booking whose row is locked; see :func:`reschedule`. Without ``end`` the length stays."""
    movable = {Status.PENDING, Status.AWAITING_ASSIGNMENT, Status.SCHEDULED}
    if booking.kind is not bookings.Kind.SCHEDULED or booking.slot is None or booking.status not in movable:
        raise IllegalTransition("Only scheduled work that has not begun can be moved.", status_now=booking.status.value)
    length = booking.slot.end - booking.slot.start
    slot = bookings.require_slot(
        booking.kind, start, end or start + length, ctx.now, int(length / timedelta(minutes=1))
    )
    if slot is None or slot == booking.slot:
        return booking
    provider = None
    if booking.provider_id is not None:
        # The provider's row is the lock under which its jobs are kept from overlapping.
        provider = await ctx.uow.market.lock_provider(booking.provider_id)
        await slots.require_free(
            ctx,
            booking.provider_id,
            slot,
            soon=availability.is_soon(ctx, slot),
            # Its own people know when they can come, and operations have asked.
            by_plan=bookings.parties_of(ctx.actor, booking) == {Party.CUSTOMER},
            except_id=booking.id,
        )
    after = replace(booking, slot=slot, version=booking.version + 1, updated_at=ctx.now)
    if booking.status is Status.AWAITING_ASSIGNMENT:
        # Another time is another search, whatever became of the one before.
        after = replace(after, wave=0, dispatch_started_at=ctx.now)
    after = deadlines.follow(booking, after, ctx.now)
    await ctx.uow.bookings.save(after)
    moves.record(ctx, after, "booking.rescheduled", before=booking, reason=reason)
    await deadlines.tell(ctx, booking, after)
    await _attest(ctx, booking, after, reason)
    if provider is not None:
        await slots.tell(ctx, provider, "slot.opened", booking.slot)
        await slots.tell(ctx, provider, "slot.booked", slot)
    if booking.status is Status.AWAITING_ASSIGNMENT:
        # Whoever was asked, was asked for another time.
        await moves.withdraw(ctx, await ctx.uow.offers.live_of_booking(booking.id), "rescheduled")
        await searches.stop(ctx, booking.id)
        await searches.look_at(ctx, booking.id, ctx.now)
    if booking.status is Status.PENDING:
        await searches.look_at(ctx, booking.id, dispatch.search_time(ctx, slot))
    return after


async def _attest(ctx: Context, before: Booking, after: Booking, reason: str | None) -> None:
    """What staff do to other people's bookings is on record."""
    if bookings.parties_of(ctx.actor, before) != {Party.OPERATIONS}:
        return
    settled = before.status is Status.DISPUTED
    kind = SecurityKind.DISPUTE_RESOLVED if settled else SecurityKind.BOOKING_CHANGED_BY_STAFF
    details = {"from": before.status.value, "to": after.status.value, "version": after.version, "reason": reason}
    await SecurityEvents().record(ctx.uow, kind, ctx.actor.user_id, after.id, details)


async def _locked(ctx: Context, params: BookingRef) -> Booking:
    return bookings.visible_to(ctx.actor, await ctx.uow.bookings.lock(params.booking_id))


def _result(ctx: Context, booking: Booking) -> JSON:
    return {"booking": bookings.view(booking)}
