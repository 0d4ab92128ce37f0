"""Live status of providers: who can be asked right now.

``chosen_status`` is what the people set. What the world sees follows from it: no socket for a while means offline, a
job under way means busy, otherwise what was chosen. Sockets are claims in the database that each node renews, so that
a node that dies takes its providers offline by itself.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import Field

from domain import searches
from domain.context import Context
from domain.errors import Forbidden
from domain.events import Audience, Event, EventClass
from domain.providers import Provider, ProviderStatus, provider_view
from domain.types import JSON, Interval, new_id
from domain.views import Params, PointView, View

LINGER = "linger"
SOCKET_CLAIM_SECONDS = 30.0
"""How long a node's claim on a provider's socket lives without renewal."""


class SetPresence(Params):
    """``provider_id`` is needed only by somebody who speaks for several."""

    status: Literal["online", "away", "offline"]
    provider_id: Annotated[str, Field(max_length=64)] | None = None


class PresenceResult(View):
    """The live status that follows from the choice."""

    provider_id: str
    status: ProviderStatus


class AvailabilityChangedData(View):
    """A provider's live status or calendar, and why it moved. Only changes of the calendar bring
    ``calendar_version``; it stays as it is when a hold or a job came or went.
    """

    provider_id: str
    status: ProviderStatus
    reason: str
    calendar_version: int | None = None


class PresenceChangedData(View):
    """A provider on a live list."""

    provider_id: str
    name: str
    status: ProviderStatus
    location: PointView | None = None


def effective_status(provider: Provider, *, connected: bool, busy: bool) -> ProviderStatus:
    """What the world sees."""
    if not connected or provider.chosen_status is ProviderStatus.OFFLINE:
        return ProviderStatus.OFFLINE
    if busy:
        return ProviderStatus.BUSY
    return provider.chosen_status


def is_soon(ctx: Context, during: Interval) -> bool:
    """Whether a job in this time meets what its provider does now: nobody knows yet when work on demand will end."""
    return (during.start - ctx.now).total_seconds() < ctx.policy.busy_horizon_seconds


def own_provider_id(ctx: Context, asked_for: str | None) -> str:
    """The provider the caller speaks for.

    Raises:
        Forbidden: none, somebody else's, or several and none named.
    """
    own = ctx.actor.provider_ids
    if asked_for is not None:
        if asked_for not in own:
            raise Forbidden
        return asked_for
    if len(own) != 1:
        raise Forbidden
    return next(iter(own))


async def set_presence(ctx: Context, params: SetPresence) -> JSON:
    """A provider's people choose its status."""
    provider_id = own_provider_id(ctx, params.provider_id)
    provider = await _locked(ctx, provider_id)
    chosen = replace(provider, chosen_status=ProviderStatus(params.status), misses_in_a_row=0)
    after = await refresh(ctx, chosen, reason="chosen", changed=chosen != provider)
    return {"provider_id": provider_id, "status": after.status.value}


async def refresh(ctx: Context, provider: Provider, *, reason: str, changed: bool = True) -> Provider:
    """Works the live status out anew and saves the locked provider; tells the world when the status moved.

    ``changed`` says whether the caller altered the provider and wants it saved in any case.
    """
    connected = await ctx.uow.market.has_socket(provider.id, ctx.now)
    busy = bool(await ctx.uow.bookings.under_way(provider.id))
    return await apply_status(
        ctx, provider, effective_status(provider, connected=connected, busy=busy), reason, changed
    )


async def apply_status(
    ctx: Context, provider: Provider, status: ProviderStatus, reason: str, changed: bool = True
) -> Provider:
    """Saves the locked provider under this live status, with the events that go with a move."""
    moved = status is not provider.status
    if not moved and not changed:
        return provider
    after = replace(provider, status=status, version=provider.version + 1)
    if moved and status is ProviderStatus.ONLINE:
        after = replace(after, idle_since=ctx.now)
    await ctx.uow.market.save_provider(after)
    if moved:
        ctx.uow.record(_changed(after, ctx.now, reason))
        ctx.announce(presence_changed(after, ctx.now))
        ctx.stirred(provider_id=after.id)
        if status is ProviderStatus.ONLINE:
            # Somebody may be waiting for just this provider: do not let them wait for the next wave.
            for booking_id in await ctx.uow.bookings.waiting_in_reach_of(provider.id):
                await searches.look_at(ctx, booking_id, ctx.now)
    return after


async def socket_opened(ctx: Context, provider_id: str, node_id: str) -> None:
    """The first socket of a provider on a node. One that comes back from offline is online again, unless it chose not
    to be.
    """
    provider = await _locked(ctx, provider_id)
    await ctx.uow.market.hold_socket(provider_id, node_id, ctx.now + timedelta(seconds=SOCKET_CLAIM_SECONDS))
    await ctx.uow.timers.cancel(f"{LINGER}:{provider_id}")
    # An ``away`` that somebody chose stays; one that followed from missed offers ends with a new start.
    put_away = provider.misses_in_a_row >= ctx.policy.misses_until_away
    fresh = provider.status is ProviderStatus.OFFLINE and put_away
    if fresh:
        provider = replace(provider, chosen_status=ProviderStatus.ONLINE, misses_in_a_row=0)
    await refresh(ctx, provider, reason="connected", changed=fresh)


async def socket_closed(ctx: Context, provider_id: str, node_id: str) -> None:
    """The last socket of a provider on a node went: it has a moment to come back."""
    await ctx.uow.market.release_socket(provider_id, node_id)
    await expect_offline(ctx, provider_id)


async def expect_offline(ctx: Context, provider_id: str) -> None:
    """Starts the linger time of a provider without sockets."""
    due_at = ctx.now + timedelta(seconds=ctx.policy.linger_seconds)
    await ctx.uow.timers.set(f"{LINGER}:{provider_id}", due_at, LINGER, {"provider_id": provider_id})


async def linger_over(ctx: Context, data: JSON) -> None:
    """The linger time ran out: offline, unless a socket came back on any node."""
    provider = await _locked(ctx, data["provider_id"])
    await refresh(ctx, provider, reason="disconnected", changed=False)


async def _locked(ctx: Context, provider_id: str) -> Provider:
    provider = await ctx.uow.market.lock_provider(provider_id)
    if provider is None:
        raise Forbidden
    return provider


def _changed(provider: Provider, now: datetime, reason: str) -> Event:
    return Event(
        id=new_id(now),
        type="availability.changed",
        time=now,
        source=f"provider/{provider.id}",
        data={"provider_id": provider.id, "status": provider.status.value, "reason": reason},
        audience=Audience(providers=(provider.id,)),
        event_class=EventClass.LATEST,
        key=provider.id,
    )


def presence_changed(provider: Provider, now: datetime) -> Event:
    """For crews and operators who look at a live list: not stored, the next one makes up for a lost one."""
    shape = provider_view(provider)
    data: JSON = {"provider_id": shape.pop("id"), **shape}
    return Event(
        id=new_id(now),
        type="presence.changed",
        time=now,
        source=f"provider/{provider.id}",
        data=data,
        audience=Audience(organisations=(provider.organisation_id,)),
        event_class=EventClass.EPHEMERAL,
    )
