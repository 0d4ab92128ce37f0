"""Moving a booking along its table, with everything that must happen in the same transaction.

The caller holds the booking's row lock. What follows from a step: offers that are no longer open are withdrawn, the
provider's live status and counters follow, timers are set or cancelled, and access that ended is revoked on the
control channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from domain import availability, bookings, deadlines, offers, searches, slots, stalls
from domain.bookings import OCCUPYING, Booking, Party, Status
from domain.context import Context
from domain.errors import InvalidParams, SlotTaken
from domain.offers import Offer, OfferStatus
from domain.providers import Provider


async def move(
    ctx: Context,
    booking: Booking,
    target: Status,
    parties: frozenset[Party],
    *,
    reason: str | None = None,
) -> Booking:
    """Takes one step of the table and returns the booking after it.

    Raises:
        IllegalTransition: the table has no such step from here for these parties.
        InvalidParams: the step needs a reason.
        TooEarly, TooLate: the clock forbids it.
        SlotTaken: the provider is on another job, and would be on two at once.
        Conflict: somebody else moved the booking in between.
    """
    row = bookings.find_transition(booking, target, parties)
    if row.needs_reason and not reason:
        raise InvalidParams.at("reason", "this step needs a reason")
    bookings.check_time(booking, target, ctx.now, ctx.policy.no_show_after_seconds, ctx.policy.dispute_window_days)
    await _check_one_job_at_a_time(ctx, booking, target)
    after = deadlines.follow(booking, bookings.moved(booking, target, ctx.now), ctx.now)
    await ctx.uow.bookings.save(after)
    record(ctx, after, row.event, before=booking, reason=reason)
    await deadlines.tell(ctx, booking, after)
    await stalls.follow(ctx, booking, after)
    if booking.status in {Status.PENDING, Status.AWAITING_ASSIGNMENT} and target is not Status.AWAITING_ASSIGNMENT:
        await searches.stop(ctx, booking.id)
        if target in {Status.CANCELLED, Status.UNFULFILLED}:
            await withdraw(ctx, await ctx.uow.offers.live_of_booking(booking.id), "cancelled")
    if target is Status.AWAITING_ASSIGNMENT and booking.provider_id is not None:
        # Dispatch starts over at once.
        await withdraw(ctx, await ctx.uow.offers.accepted_of_booking(booking.id), "reassigned")
        ctx.uow.record(bookings.access_revoked(booking, booking.provider_id, ctx.now))
        await searches.look_at(ctx, booking.id, ctx.now)
    if booking.provider_id is not None:
        await _provider_follows(ctx, booking.provider_id, booking, after)
        if target is Status.AWAITING_ASSIGNMENT:
            # Whoever gave it back, or was taken off it, is not asked again. Written once the provider's row is locked:
            # a foreign key shares its lock, and two that share it could not both go on to lock it.
            await ctx.uow.bookings.decline(booking.id, booking.provider_id)
    return after


async def assign(ctx: Context, booking: Booking, provider: Provider, parties: frozenset[Party]) -> Booking:
    """Gives an awaiting booking to a provider whose row is locked, and withdraws every other live offer."""
    target = Status.SCHEDULED if booking.kind is bookings.Kind.SCHEDULED else Status.ASSIGNED
    row = bookings.find_transition(booking, target, parties)
    after = replace(
        bookings.moved(booking, target, ctx.now),
        provider_id=provider.id,
        organisation_id=provider.organisation_id,
        assigned_at=ctx.now,
    )
    after = deadlines.follow(booking, after, ctx.now)
    await ctx.uow.bookings.save(after)
    await searches.stop(ctx, booking.id)
    record(ctx, after, row.event, before=booking)
    await deadlines.tell(ctx, booking, after)
    await availability.refresh(
        ctx, replace(provider, jobs_taken=provider.jobs_taken + 1, misses_in_a_row=0), reason="job_taken"
    )
    if after.slot is not None:
        await slots.tell(ctx, provider, "slot.booked", after.slot)
    return after


async def withdraw(ctx: Context, live: Sequence[Offer], reason: str) -> None:
    """Takes back live offers, saying why but never for whom."""
    await ctx.uow.offers.close_all(
        [replace(offer, status=OfferStatus.WITHDRAWN, closed_at=ctx.now, reason=reason) for offer in live]
    )
    for offer in live:
        ctx.uow.record(offers.event(offer, "offer.withdrawn", ctx.now, reason=reason))


def record(
    ctx: Context, after: Booking, type_: str, *, before: Booking | None = None, reason: str | None = None
) -> None:
    """Records a booking event with its view."""
    ctx.stirred(zone_id=after.zone_id)
    ctx.uow.record(bookings.event(after, type_, ctx.now, before=before, reason=reason))


async def _check_one_job_at_a_time(ctx: Context, booking: Booking, target: Status) -> None:
    # Setting out for scheduled work, or taking disputed work up again, while another job still goes on.
    begins = target in bookings.UNDER_WAY and booking.status not in bookings.UNDER_WAY
    if booking.provider_id is None or not begins:
        return
    # The provider's row is the lock under which its jobs are kept from overlapping.
    await ctx.uow.market.lock_provider(booking.provider_id)
    if await ctx.uow.bookings.under_way(booking.provider_id):
        raise SlotTaken


async def _provider_follows(ctx: Context, provider_id: str, before: Booking, after: Booking) -> None:
    was, now_ = before.status in bookings.UNDER_WAY, after.status in bookings.UNDER_WAY
    completed = after.status is Status.COMPLETED and before.completed_at is None
    # Work that is done has used its time up; work that was given back or called off has not.
    freed = before.slot if {before.status, after.status} & OCCUPYING == {before.status} and not completed else None
    if was == now_ and not completed and freed is None:
        return
    provider = await ctx.uow.market.lock_provider(provider_id)
    if provider is None:
        return
    if freed is not None:
        await slots.tell(ctx, provider, "slot.opened", freed)
    if was == now_ and not completed:
        return
    if completed:
        provider = replace(provider, jobs_completed=provider.jobs_completed + 1)
    if not now_:
        provider = replace(provider, idle_since=ctx.now)
    await availability.refresh(ctx, provider, reason=f"job_{after.status.value}")
