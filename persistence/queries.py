"""Read models: the facts by which subscriptions are decided, and the state behind a channel.

Every answer is read within the call, so a state is at least as new as any offset read before it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.tables import bookings, provider_zones, services, zones


@dataclass(frozen=True, slots=True)
class People:
    """Who belongs to a thing: users by name, and providers."""

    user_ids: frozenset[str]
    provider_ids: frozenset[str]


async def people_of_bookings(connection: AsyncConnection, booking_ids: Collection[str]) -> Mapping[str, People]:
    """Customer and assigned provider of each booking that exists."""
    rows = await connection.execute(
        select(bookings.c.id, bookings.c.customer_id, bookings.c.provider_id).where(bookings.c.id.in_(booking_ids))
    )
    return {
        row.id: People(frozenset({row.customer_id}), frozenset({row.provider_id} if row.provider_id else ()))
        for row in rows
    }


async def people_of_zones(connection: AsyncConnection, zone_ids: Collection[str]) -> Mapping[str, People]:
    """Providers that cover each zone that exists."""
    rows = await connection.execute(
        select(zones.c.id, provider_zones.c.provider_id)
        .select_from(zones.outerjoin(provider_zones, provider_zones.c.zone_id == zones.c.id))
        .where(zones.c.id.in_(zone_ids))
    )
    covering: dict[str, set[str]] = {}
    for row in rows:
        covering.setdefault(row.id, set()).update({row.provider_id} if row.provider_id else ())
    return {zone_id: People(frozenset(), frozenset(ids)) for zone_id, ids in covering.items()}


async def existing_services(connection: AsyncConnection, service_ids: Collection[str]) -> frozenset[str]:
    """Those of the services that exist."""
    rows = await connection.execute(select(services.c.id).where(services.c.id.in_(service_ids)))
    return frozenset(rows.scalars())
