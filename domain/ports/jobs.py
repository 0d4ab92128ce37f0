"""Bookings, their deadlines, and offers of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from domain.bookings import Booking, Status
    from domain.deadlines import SlaPolicy
    from domain.identity import Actor
    from domain.offers import Offer
    from domain.types import Interval


class Bookings(Protocol):
    """Bookings, and who declined them."""

    async def add(self, booking: Booking) -> None: ...
    async def get(self, booking_id: str) -> Booking | None: ...
    async def lock(self, booking_id: str) -> Booking | None: ...
    async def save(self, booking: Booking) -> None:
        """One conditional write: succeeds only over the version before; raises ``Conflict`` otherwise."""

    async def save_wave(self, booking: Booking) -> None:
        """Notes how far dispatch is. Nobody outside sees it, so the version stays."""

    async def of(self, actor: Actor, status: Status | None, before: str | None, limit: int) -> Sequence[Booking]:
        """What this person may see, newest first."""

    async def open(self, limit: int) -> Sequence[Booking]:
        """Those that have not ended, soonest first: by their start, or by when they were made if that is at once."""

    async def clashes(self, provider_id: str, during: Interval, *, soon: bool, except_id: str) -> bool:
        """Whether the provider has a confirmed job in this time; for work that is soon, also any job under way."""

    async def under_way(self, provider_id: str) -> Sequence[Booking]: ...
    async def busy(self, provider_ids: Sequence[str]) -> set[str]:
        """Those of the providers that have a job under way."""

    async def committed(self, provider_id: str, starting: Interval | None = None) -> Sequence[Booking]:
        """At most 100: jobs under way, then confirmed ones to come, the soonest first; of these only the ones
        ``starting`` within a time, if it is given.
        """

    async def in_slots(self, provider_id: str, within: Interval) -> Sequence[Booking]:
        """Those whose agreed time overlaps this one, whatever became of them but cancelled, the earliest first."""

    async def waiting_in_reach_of(self, provider_id: str) -> Sequence[str]:
        """Bookings awaiting assignment without a live offer that this provider has the skill and zone for."""

    async def decline(self, booking_id: str, provider_id: str) -> None:
        """This provider is not asked again for this booking."""

    async def save_sla(self, booking: Booking) -> None:
        """Writes the clocks alone; their own version rises, the booking's stays."""

    async def soonest_due(self, zone_id: str | None, now: datetime, limit: int) -> Sequence[Booking]:
        """Bookings with a deadline to come, the soonest first."""

    async def sla_policies(self, service_id: str | None = None, zone_id: str | None = None) -> Sequence[SlaPolicy]:
        """Every policy, or those that hold for a service in a zone."""

    async def put_sla_policy(self, policy: SlaPolicy) -> SlaPolicy:
        """Adds the policy, or takes the place of the one for the same service and zone, raising its version."""


class Offers(Protocol):
    """Offers of bookings to providers."""

    async def add_all(self, offers: Sequence[Offer]) -> None: ...
    async def get(self, offer_id: str) -> Offer | None: ...
    async def live_of_booking(self, booking_id: str) -> Sequence[Offer]: ...
    async def accepted_of_booking(self, booking_id: str) -> Sequence[Offer]:
        """The offer that won, if the booking is taken."""

    async def live_of_providers(self, provider_ids: Collection[str], now: datetime) -> Sequence[Offer]: ...
    async def close_all(self, offers: Sequence[Offer]) -> None:
        """Writes the status, the time and the reason of offers that are live no longer."""

    async def missed_beside(self, offer: Offer) -> bool:
        """Whether its provider let another one expire that was made within a second of this one."""

    async def delivered(self, offer_ids: Collection[str], now: datetime) -> None:
        """Marks those that are only ``sent``."""
