"""The durable timers of a booking's search for a provider: the next look, and the end of a call for rescue."""

from __future__ import annotations

from datetime import datetime

from domain.context import Context

DISPATCH, RESCUE = "dispatch", "rescue"
"""Kinds of timers; each is named after its booking."""


async def look_at(ctx: Context, booking_id: str, due_at: datetime) -> None:
    """Lets dispatch look for somebody at this time, or at once when it has passed; an earlier appointment is moved."""
    await _set(ctx, DISPATCH, booking_id, max(due_at, ctx.now))


async def call_until(ctx: Context, booking_id: str, due_at: datetime) -> None:
    """Operations have until then to find somebody; nobody else is looked for any more."""
    await ctx.uow.timers.cancel(f"{DISPATCH}:{booking_id}")
    await _set(ctx, RESCUE, booking_id, due_at)


async def stop(ctx: Context, booking_id: str) -> None:
    """No more waves, no more calls for rescue."""
    for kind in (DISPATCH, RESCUE):
        await ctx.uow.timers.cancel(f"{kind}:{booking_id}")


async def _set(ctx: Context, kind: str, booking_id: str, due_at: datetime) -> None:
    await ctx.uow.timers.set(f"{kind}:{booking_id}", due_at, kind, {"booking_id": booking_id})
