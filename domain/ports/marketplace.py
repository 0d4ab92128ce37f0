"""Services, zones and providers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from domain.bookings import Booking
    from domain.providers import Provider, Service, Zone
    from domain.types import JSON, Interval, Point
    from domain.zones import Counted, Figures, Imported


@dataclass(frozen=True, slots=True)
class Candidate:
    """A provider that may be asked, and what the choice needs to know."""

    provider: Provider
    jobs_today: int
    already_asked: bool
    has_calendar: bool = False


class Market(Protocol):
    """Services, zones and providers."""

    async def service(self, service_id: str) -> Service | None: ...
    async def services(self) -> Sequence[Service]: ...
    async def add_service(self, service: Service) -> None: ...
    async def zone(self, zone_id: str) -> Zone | None: ...
    async def zones(self) -> Sequence[Zone]: ...
    async def add_zone(self, zone: Zone) -> None:
        """Raises ``InvalidParams`` when the geometry is not a valid (Multi)Polygon."""

    async def zone_at(self, place: Point) -> Zone | None:
        """The smallest zone that covers the place; a boundary counts as inside."""

    async def add_provider(self, provider: Provider, skills: Collection[str], zones: Collection[str]) -> None: ...
    async def provider(self, provider_id: str) -> Provider | None: ...
    async def lock_provider(self, provider_id: str) -> Provider | None: ...
    async def providers(self) -> Sequence[Provider]: ...
    async def save_provider(self, provider: Provider) -> None: ...
    async def candidates(self, booking: Booking, during: Interval, *, soon: bool) -> Sequence[Candidate]:
        """Verified, skilled, covering the zone, available, free in the slot, not having declined this booking.

        Available is: ``online`` for work on demand; not ``offline`` by choice for scheduled work.
        """

    async def hold_socket(self, provider_id: str, node_id: str, until: datetime) -> None:
        """This node holds a socket of the provider; the claim runs out unless renewed."""

    async def release_socket(self, provider_id: str, node_id: str) -> None: ...
    async def renew_sockets(self, node_id: str, until: datetime) -> None: ...
    async def has_socket(self, provider_id: str, now: datetime) -> bool: ...
    async def unreachable(self, now: datetime) -> Sequence[str]:
        """Providers whose status is not offline although no node holds a socket of theirs and no linger timer runs."""


class Zones(Protocol):
    """Zones as sets, and the figures counted for each."""

    async def put_all(self, collection: Mapping[str, Any], organisation_id: str | None) -> Imported:
        """Adds and changes the zones of a GeoJSON FeatureCollection, in one organisation's set or the marketplace's.

        Raises ``InvalidParams`` with a problem per feature that is unfit or overlaps another of the set.
        """

    async def covered_by(self, zone_id: str, provider_ids: Collection[str]) -> bool: ...
    async def of_providers(self, provider_ids: Collection[str]) -> Collection[str]:
        """Zones that any of them covers."""

    async def count(self, zone_id: str) -> Counted: ...
    def cells(self, counted: Counted, resolution: int) -> list[JSON]:
        """H3 cells with demand or supply, by id."""

    async def figures(self, zone_id: str) -> Figures | None: ...
    async def lock_figures(self, zone_id: str) -> Figures | None: ...
    async def save_figures(self, zone_id: str, figures: Figures) -> None:
        """Adds version 1, or takes the place of the version before; two that add at once start over."""

    async def drifted(self) -> Collection[str]:
        """Zones whose demand or supply is not what was told: somebody had no time to tell."""
