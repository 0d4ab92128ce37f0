"""Providers, services and zones: who can do what, where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from domain.context import Context
from domain.types import JSON, Money, Point
from domain.views import MoneyView, NoParams, PointView, View


class ProviderStatus(StrEnum):
    """Live status. ``busy`` and ``offline`` follow from jobs and sockets; the others are chosen."""

    ONLINE = "online"
    AWAY = "away"
    BUSY = "busy"
    OFFLINE = "offline"


class Strategy(StrEnum):
    """How a zone asks providers: one after the other, in growing waves, or all at once."""

    SEQUENTIAL = "sequential"
    BATCHED = "batched"
    BROADCAST = "broadcast"


@dataclass(frozen=True, slots=True)
class Service:
    """A kind of work, its price and how long it usually takes."""

    id: str
    name: str
    price: Money
    duration_minutes: int


@dataclass(frozen=True, slots=True)
class Zone:
    """An area of the marketplace.

    Attributes:
        geometry: GeoJSON Polygon or MultiPolygon, WGS 84.
        priority: 0–1, part of a provider's rank.
    """

    id: str
    name: str
    geometry: Mapping[str, Any]
    area_m2: float
    strategy: Strategy
    priority: float = 0.5


@dataclass(frozen=True, slots=True)
class Provider:
    """An organisation's face in the marketplace.

    Attributes:
        rating: 0–5.
        chosen_status: what its people set: online, away or offline.
        status: what the world sees, see :func:`domain.availability.effective_status`.
        position: last known place, from the last job's fixes.
        idle_since: when it last became free; the longer, the earlier its turn.
    """

    id: str
    organisation_id: str
    name: str
    verified: bool
    rating: float
    offers_answered: int
    offers_accepted: int
    jobs_taken: int
    jobs_completed: int
    max_daily_jobs: int
    chosen_status: ProviderStatus
    status: ProviderStatus
    misses_in_a_row: int
    idle_since: datetime
    position: Point | None = None
    fix_at: datetime | None = None
    version: int = 1

    @property
    def acceptance_rate(self) -> float:
        """0–1; a newcomer starts at 1 and sinks slowly (one accepted offer is assumed)."""
        return (self.offers_accepted + 1) / (self.offers_answered + 1)

    @property
    def completion_rate(self) -> float:
        """0–1, with one completed job assumed."""
        return min(1.0, (self.jobs_completed + 1) / (self.jobs_taken + 1))


class ServiceView(View):
    """A service, its price and how long it usually takes."""

    id: str
    name: str
    price: MoneyView
    duration_minutes: int


class ServiceList(View):
    """What can be booked."""

    services: list[ServiceView]


class ZoneView(View):
    """``geometry`` is GeoJSON."""

    id: str
    name: str
    geometry: dict[str, Any]


class ZoneList(View):
    """Where the marketplace works."""

    zones: list[ZoneView]


class ProviderView(View):
    """A provider with its live status and last known place."""

    id: str
    name: str
    status: ProviderStatus
    location: PointView | None = None


class ProviderList(View):
    """Every provider."""

    providers: list[ProviderView]


def provider_view(provider: Provider) -> JSON:
    """What members and operations see of a provider."""
    shape: JSON = {"id": provider.id, "name": provider.name, "status": provider.status.value}
    if provider.position:
        shape["location"] = provider.position.view()
    return shape


def service_view(service: Service) -> JSON:
    """A service with its price and usual duration."""
    return {
        "id": service.id,
        "name": service.name,
        "price": service.price.view(),
        "duration_minutes": service.duration_minutes,
    }


def zone_view(zone: Zone) -> JSON:
    """A zone with its outline."""
    return {"id": zone.id, "name": zone.name, "geometry": dict(zone.geometry)}


async def list_services(ctx: Context, _: NoParams) -> JSON:
    """What can be booked."""
    return {"services": [service_view(service) for service in await ctx.uow.market.services()]}


async def list_zones(ctx: Context, _: NoParams) -> JSON:
    """Where the marketplace works."""
    return {"zones": [zone_view(zone) for zone in await ctx.uow.market.zones()]}


async def list_providers(ctx: Context, _: NoParams) -> JSON:
    """Every provider, for operations."""
    return {"providers": [provider_view(provider) for provider in await ctx.uow.market.providers()]}
