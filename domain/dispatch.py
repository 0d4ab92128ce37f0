"""How a job finds its provider: waves of offers, answers, and what happens when nobody answers.

Invariants: at most one provider wins, because winning is one conditional write under the booking's lock; in the same
    transaction every other live offer is withdrawn; a wave is driven by a durable timer named after the booking, so a
    restart delays it and never repeats or loses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from domain import availability, bookings, moves, offers, reaching, searches, slots
from domain.bookings import AssignBooking, Booking, Kind, Party, Status
from domain.context import Context
from domain.errors import Forbidden, OfferExpired, OfferTaken, OfferWithdrawn, Refused
from domain.geography import distance_m
from domain.offers import LIVE, AcceptOffer, DeclineOffer, Offer, OfferStatus
from domain.ports import Candidate
from domain.providers import Provider, ProviderStatus, Service, Strategy, Zone
from domain.security import SecurityEvents, SecurityKind
from domain.types import JSON, Interval, Money, new_id
from domain.views import NoParams

SYSTEM_PARTY = frozenset({Party.SYSTEM})

RESCUE = -1
"""In place of a wave's number: operations were called, nobody else is asked."""


async def advance(ctx: Context, data: JSON) -> None:
    """The timer of a booking's dispatch: offers that ran out expire, then the next wave goes out, or the search
    ends. Of a booking that is pending it is the beginning of the search.
    """
    booking = await ctx.uow.bookings.lock(data["booking_id"])
    if booking is not None and booking.status is Status.PENDING:
        booking = await moves.move(ctx, booking, Status.AWAITING_ASSIGNMENT, SYSTEM_PARTY)
    if booking is None or booking.status is not Status.AWAITING_ASSIGNMENT:
        return
    live = await ctx.uow.offers.live_of_booking(booking.id)
    await _expire(ctx, [offer for offer in live if offer.expires_at <= ctx.now])
    still_live = [offer for offer in live if offer.expires_at > ctx.now]
    if still_live:
        await searches.look_at(ctx, booking.id, min(offer.expires_at for offer in still_live))
        return
    await send_wave(ctx, booking)


def search_time(ctx: Context, during: Interval) -> datetime:
    """When the search for work far ahead begins: who is asked months before cannot know, and is not asked again."""
    return during.start - timedelta(seconds=ctx.policy.series_search_seconds)


async def send_wave(
    ctx: Context, booking: Booking, zone: Zone | None = None, service: Service | None = None
) -> Booking:
    """Asks the next providers. A wave with nobody in it is tried again soon and does not count.

    Args:
        zone, service: the booking's, from a caller that has just read them.
    """
    policy = ctx.policy
    if booking.wave == RESCUE:
        return booking
    waited = (ctx.now - (booking.dispatch_started_at or booking.created_at)).total_seconds()
    if booking.wave >= len(policy.wave_sizes) or waited >= policy.dispatch_limit_seconds:
        return await _call_for_rescue(ctx, booking)
    zone = zone or await ctx.uow.market.zone(booking.zone_id)
    if zone is None:
        return await _call_for_rescue(ctx, booking)
    during = await _wanted_time(ctx, booking, service)
    candidates = await ctx.uow.market.candidates(booking, during, soon=availability.is_soon(ctx, during))
    free = await slots.free_in_slot(ctx, candidates, during, by_plan=booking.kind is Kind.SCHEDULED)
    chosen = choose(booking, zone, free, ctx)
    if not chosen:
        await searches.look_at(ctx, booking.id, ctx.now + timedelta(seconds=policy.empty_wave_retry_seconds))
        return booking
    lives = policy.offer_scheduled_seconds if booking.kind is Kind.SCHEDULED else policy.offer_on_demand_seconds
    booking = replace(booking, wave=booking.wave + 1)
    await ctx.uow.bookings.save_wave(booking)
    made = [
        Offer(
            id=new_id(ctx.now),
            booking_id=booking.id,
            provider_id=provider.id,
            organisation_id=provider.organisation_id,
            wave=booking.wave,
            status=OfferStatus.SENT,
            rank=offers.weighted(parts),
            rank_parts=parts,
            payout=_payout(booking.price, policy.commission_percent),
            sent_at=ctx.now,
            expires_at=ctx.now + timedelta(seconds=lives),
            eta_seconds=eta_seconds,
        )
        for provider, parts, eta_seconds in chosen
    ]
    await ctx.uow.offers.add_all(made)
    for offer in made:
        ctx.uow.record(
            offers.event(offer, "offer.made", ctx.now, offer=offers.view(offer, booking, zone.name, ctx.now))
        )
    await reaching.watch_offers(ctx, made)
    await searches.look_at(ctx, booking.id, ctx.now + timedelta(seconds=lives))
    return booking


def choose(
    booking: Booking, zone: Zone, candidates: Sequence[Candidate], ctx: Context
) -> list[tuple[Provider, dict[str, float], int | None]]:
    """Who is asked in the next wave, best first, each with the components of the rank and the ETA in seconds.

    Those not asked before come first; those whose offer ran out get another chance only when nobody else is left.
    """
    policy = ctx.policy
    wave = min(booking.wave, len(policy.wave_sizes) - 1)
    able = [candidate for candidate in candidates if candidate.jobs_today < candidate.provider.max_daily_jobs]
    # When nobody is near there is no use in asking nobody: the circle widens at once.
    within: list[Candidate] = []
    for radius_m in policy.wave_radius_m[wave:]:
        within = [candidate for candidate in able if _within(candidate.provider, booking, radius_m)]
        if within:
            break
    pool = [candidate for candidate in within if not candidate.already_asked] or within
    ranked = []
    for candidate in pool:
        eta_seconds = offers.eta_to(candidate.provider, booking, policy.eta)
        parts = offers.rank(candidate.provider, eta_seconds, zone.priority, ctx.now)
        ranked.append((candidate.provider, parts, eta_seconds))
    ranked.sort(key=lambda row: (-offers.weighted(row[1]), row[0].id))
    match zone.strategy:
        case Strategy.SEQUENTIAL:
            return ranked[:1]
        case Strategy.BATCHED:
            return ranked[: policy.wave_sizes[wave]]
        case Strategy.BROADCAST:
            return ranked


def _within(provider: Provider, booking: Booking, radius_m: float) -> bool:
    """Somebody whose place is not known is given the benefit of the doubt."""
    return provider.position is None or distance_m(provider.position, booking.location) <= radius_m


async def accept(ctx: Context, params: AcceptOffer) -> JSON:
    """A provider takes the job.

    Raises:
        OfferTaken: somebody else has it.
        OfferExpired: too late by the server's clock.
        OfferWithdrawn: the offer was declined or taken back.
        SlotTaken: the provider has a job then.
    """
    offer = await _own_offer(ctx, params.offer_id)
    # Most of those who lose a race can be told without waiting for the lock.
    if offer.status is OfferStatus.WITHDRAWN:
        raise OfferTaken if offer.reason == "taken" else OfferWithdrawn
    booking = await ctx.uow.bookings.lock(offer.booking_id)
    offer = await _own_offer(ctx, params.offer_id)
    if booking is None:
        raise Forbidden
    if offer.status is OfferStatus.ACCEPTED and booking.provider_id == offer.provider_id:
        return {"booking": bookings.view(booking)}
    if booking.provider_id is not None:
        raise OfferTaken
    if offer.status is OfferStatus.EXPIRED:
        raise OfferExpired
    # Accepted, declined or withdrawn before: the booking was given back, cancelled or moved to another time.
    if offer.status not in LIVE or booking.status is not Status.AWAITING_ASSIGNMENT:
        raise OfferTaken if offer.reason == "taken" else OfferWithdrawn
    if offer.expires_at <= ctx.now:
        raise OfferExpired
    provider = await ctx.uow.market.lock_provider(offer.provider_id)
    if provider is None:
        raise Forbidden
    await _check_free(ctx, booking, provider)
    live = [other for other in await ctx.uow.offers.live_of_booking(booking.id) if other.id != offer.id]
    await ctx.uow.offers.close_all([replace(offer, status=OfferStatus.ACCEPTED, closed_at=ctx.now)])
    provider = replace(
        provider,
        offers_answered=provider.offers_answered + 1,
        offers_accepted=provider.offers_accepted + 1,
    )
    booking = await moves.assign(ctx, booking, provider, frozenset({Party.PROVIDER}))
    ctx.uow.record(offers.event(offer, "offer.accepted", ctx.now))
    await moves.withdraw(ctx, live, "taken")
    return {"booking": bookings.view(booking)}


async def decline(ctx: Context, params: DeclineOffer) -> JSON:
    """A provider does not want the job; when it was the last one asked, the next wave goes out at once."""
    offer = await _own_offer(ctx, params.offer_id)
    booking = await ctx.uow.bookings.lock(offer.booking_id)
    offer = await _own_offer(ctx, params.offer_id)
    if offer.status is OfferStatus.DECLINED:
        return {"offer_id": offer.id, "status": offer.status.value}
    if offer.status not in LIVE or booking is None:
        raise OfferWithdrawn if offer.status is not OfferStatus.EXPIRED else OfferExpired
    provider = await ctx.uow.market.lock_provider(offer.provider_id)
    if provider is None:
        raise Forbidden
    await ctx.uow.offers.close_all(
        [replace(offer, status=OfferStatus.DECLINED, closed_at=ctx.now, reason=params.reason)]
    )
    await ctx.uow.bookings.decline(offer.booking_id, offer.provider_id)
    await ctx.uow.market.save_provider(
        replace(
            provider,
            offers_answered=provider.offers_answered + 1,
            misses_in_a_row=0,
            version=provider.version + 1,
        )
    )
    ctx.uow.record(offers.event(offer, "offer.declined", ctx.now, reason=params.reason))
    if booking.status is Status.AWAITING_ASSIGNMENT and not await ctx.uow.offers.live_of_booking(booking.id):
        await send_wave(ctx, booking)
    return {"offer_id": offer.id, "status": OfferStatus.DECLINED.value}


async def list_offers(ctx: Context, _: NoParams) -> JSON:
    """The caller's live offers."""
    return {"offers": await live_offer_views(ctx, sorted(ctx.actor.provider_ids))}


async def live_offer_views(ctx: Context, provider_ids: Sequence[str]) -> list[JSON]:
    """Live offers of these providers on the wire, soonest to expire first."""
    views = []
    for offer in await ctx.uow.offers.live_of_providers(provider_ids, ctx.now):
        booking = await ctx.uow.bookings.get(offer.booking_id)
        if booking is not None:
            zone = await ctx.uow.market.zone(booking.zone_id)
            views.append(offers.view(offer, booking, zone.name if zone else "", ctx.now))
    return views


async def assign_by_force(ctx: Context, params: AssignBooking) -> JSON:
    """Operations give a waiting booking to a provider, asked or not."""
    booking = bookings.visible_to(ctx.actor, await ctx.uow.bookings.lock(params.booking_id))
    if booking.provider_id == params.provider_id and booking.status in bookings.OCCUPYING:
        return {"booking": bookings.view(booking)}
    provider = await ctx.uow.market.lock_provider(params.provider_id)
    if provider is None:
        raise Forbidden
    if booking.status is Status.PENDING:
        booking = await moves.move(ctx, booking, Status.AWAITING_ASSIGNMENT, SYSTEM_PARTY)
    if booking.status is Status.AWAITING_ASSIGNMENT:
        await _check_free(ctx, booking, provider)
    live = await ctx.uow.offers.live_of_booking(booking.id)
    after = await moves.assign(ctx, booking, provider, frozenset({Party.OPERATIONS}))
    own = [offer for offer in live if offer.provider_id == provider.id]
    for offer in own:
        # It was asked already: the decision answers for it, and its own acceptance, if it comes, is a success.
        await ctx.uow.offers.close_all([replace(offer, status=OfferStatus.ACCEPTED, closed_at=ctx.now)])
        ctx.uow.record(offers.event(offer, "offer.accepted", ctx.now))
    await moves.withdraw(ctx, [offer for offer in live if offer not in own], "taken")
    details = {"provider_id": provider.id, "version": after.version}
    await SecurityEvents().record(ctx.uow, SecurityKind.BOOKING_ASSIGNED_BY_STAFF, ctx.actor.user_id, after.id, details)
    return {"booking": bookings.view(after)}


class NotVerified(Refused):
    """The provider may not work for the marketplace (yet, or no longer)."""

    type = "not_verified"
    default_message = "This provider is not verified."


async def _check_free(ctx: Context, booking: Booking, provider: Provider) -> None:
    if not provider.verified:
        raise NotVerified
    during = await _wanted_time(ctx, booking)
    # Whether the time is within the provider's plan does not matter here: it says yes to it, or operations do.
    await slots.require_free(ctx, provider.id, during, soon=availability.is_soon(ctx, during), except_id=booking.id)


async def _wanted_time(ctx: Context, booking: Booking, service: Service | None = None) -> Interval:
    """The agreed slot, or for work on demand from now on as long as such work usually takes."""
    if booking.slot is not None:
        return booking.slot
    service = service or await ctx.uow.market.service(booking.service_id)
    return Interval(ctx.now, ctx.now + timedelta(minutes=service.duration_minutes if service else 60))


async def _own_offer(ctx: Context, offer_id: str) -> Offer:
    offer = await ctx.uow.offers.get(offer_id)
    if offer is None or offer.provider_id not in ctx.actor.provider_ids:
        raise Forbidden
    return offer


async def _expire(ctx: Context, ran_out: Sequence[Offer]) -> None:
    expired = [replace(offer, status=OfferStatus.EXPIRED, closed_at=ctx.now) for offer in ran_out]
    await ctx.uow.offers.close_all(expired)
    # Providers are locked in the order of their ids, see domain.ports.
    for offer in sorted(ran_out, key=lambda offer: offer.provider_id):
        ctx.uow.record(offers.event(offer, "offer.expired", ctx.now))
        provider = await ctx.uow.market.lock_provider(offer.provider_id)
        if provider is None:
            continue
        # Whoever did not look at one could not look at those beside it either: together they are one miss.
        missed = not (provider.misses_in_a_row and await ctx.uow.offers.missed_beside(offer))
        provider = replace(
            provider,
            offers_answered=provider.offers_answered + 1,
            misses_in_a_row=provider.misses_in_a_row + missed,
        )
        reason = "missed_offer"
        if provider.misses_in_a_row >= ctx.policy.misses_until_away and provider.chosen_status is ProviderStatus.ONLINE:
            provider = replace(provider, chosen_status=ProviderStatus.AWAY)
            reason = "missed_offers"
        await availability.refresh(ctx, provider, reason=reason)


async def _call_for_rescue(ctx: Context, booking: Booking) -> Booking:
    """Operations are called once; after their time is over too, the booking ends unfulfilled."""
    booking = replace(booking, wave=RESCUE)
    await ctx.uow.bookings.save_wave(booking)
    moves.record(ctx, booking, "booking.rescue_needed", before=booking)
    await searches.call_until(ctx, booking.id, ctx.now + timedelta(seconds=ctx.policy.rescue_seconds))
    return booking


async def rescue_over(ctx: Context, data: JSON) -> None:
    """Nobody came to the rescue."""
    booking = await ctx.uow.bookings.lock(data["booking_id"])
    if booking is None or booking.status is not Status.AWAITING_ASSIGNMENT:
        return
    await moves.move(ctx, booking, Status.UNFULFILLED, SYSTEM_PARTY, reason="no provider was found")


def _payout(price: Money, commission_percent: int) -> Money:
    """The price less the commission, which is rounded half up to a whole minor unit."""
    commission = (price.amount_minor * commission_percent + 50) // 100
    return Money(price.amount_minor - commission, price.currency)
