"""The state behind a channel, for a client that cannot be told just what it missed."""

from __future__ import annotations

from domain import bookings, dispatch, messaging, security, stalls
from domain.bookings import BookingView, Status
from domain.context import Context
from domain.messaging import ConversationView
from domain.offers import OfferView
from domain.providers import ProviderView, ZoneView, provider_view, zone_view
from domain.stalls import BookingStalledData
from domain.types import JSON
from domain.views import View

FEED_LENGTH = 200
"""Newest bookings in the operators' snapshot, whatever became of them."""

OPEN_LENGTH = 500
"""Bookings that have not ended, which are in it before all others: the soonest."""


class BookingState(View):
    """State of ``booking:{id}``."""

    booking: BookingView


class ConversationState(ConversationView):
    """State of ``conversation:{id}``: its newest messages."""


class ProviderState(View):
    """State of ``provider:{id}``: live offers, and the jobs it is committed to."""

    provider: ProviderView
    offers: list[OfferView]
    bookings: list[BookingView]


class FeedState(View):
    """State of ``admin:bookings``.

    ``rescues`` are the ids of bookings that dispatch has found nobody for, ``stalls`` what was told of drivers that
    still stand there.
    """

    bookings: list[BookingView]
    offers: list[OfferView]
    rescues: list[str]
    stalls: list[BookingStalledData]
    providers: list[ProviderView]
    zones: list[ZoneView]


class SecurityState(security.AuditPage):
    """State of ``admin:security``: the newest rows of the audit log, newest first."""


async def of_booking(ctx: Context, booking_id: str) -> JSON | None:
    """The booking as it is."""
    booking = await ctx.uow.bookings.get(booking_id)
    return None if booking is None else {"booking": bookings.view(booking)}


async def of_conversation(ctx: Context, conversation_id: str) -> JSON:
    """The newest messages."""
    return await messaging.page(ctx, conversation_id, None, 50)


async def of_provider(ctx: Context, provider_id: str) -> JSON | None:
    """The provider, its live offers and its jobs."""
    provider = await ctx.uow.market.provider(provider_id)
    if provider is None:
        return None
    jobs = await ctx.uow.bookings.committed(provider_id)
    return {
        "provider": provider_view(provider),
        "offers": await dispatch.live_offer_views(ctx, [provider_id]),
        "bookings": [bookings.view(job) for job in jobs],
    }


async def of_feed(ctx: Context) -> JSON:
    """What operators look at: open bookings and the newest, what needs a person, live offers, providers and zones."""
    newest = await ctx.uow.bookings.of(ctx.actor, None, None, FEED_LENGTH)
    still_open = await ctx.uow.bookings.open(OPEN_LENGTH)
    shown = {booking.id: booking for booking in (*newest, *still_open)}
    waiting = [booking for booking in shown.values() if booking.status is Status.AWAITING_ASSIGNMENT]
    providers = await ctx.uow.market.providers()
    return {
        "bookings": [bookings.view(shown[booking_id]) for booking_id in sorted(shown, reverse=True)],
        "rescues": [booking.id for booking in waiting if booking.wave == dispatch.RESCUE],
        "stalls": await stalls.told(ctx, shown.values(), providers),
        "offers": await dispatch.live_offer_views(ctx, [provider.id for provider in providers]) if waiting else [],
        "providers": [provider_view(provider) for provider in providers],
        "zones": [zone_view(zone) for zone in await ctx.uow.market.zones()],
    }


async def of_security(ctx: Context) -> JSON:
    """The newest rows of the audit log."""
    return await security.list_events(ctx, security.ListAudit(limit=100))
