"""Providers' calendars, in and out, and series of bookings."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from domain.bookings import Booking
    from domain.calendar_sync import Source
    from domain.calendars import Calendar, CalendarException, Hold, Plan
    from domain.providers import Provider
    from domain.series_shapes import Instance, Series
    from domain.types import Interval


class Calendars(Protocol):
    """Providers' calendars and the holds on their time. What changes them holds the provider's lock."""

    async def get(self, provider_id: str) -> Calendar | None: ...
    async def save(self, calendar: Calendar) -> None:
        """Adds the calendar, or takes the place of the one before."""

    async def exception(self, exception_id: str) -> CalendarException | None: ...
    async def add_exception(self, exception: CalendarException) -> None: ...
    async def remove_exception(self, exception_id: str) -> None: ...
    async def exceptions_to_come(self, provider_id: str, now: datetime) -> int: ...
    async def plans(
        self, provider_ids: Collection[str], within: Interval, now: datetime, *, everybody: bool = False
    ) -> Mapping[str, Plan]:
        """Everything in the calendars of those that have one, or of ``everybody``, from a day before to a day after
        this time.
        """

    async def planned(
        self, service_id: str, zone_id: str, limit: int, provider_id: str | None = None
    ) -> Sequence[Provider]:
        """Verified providers with the skill, the zone and rules, the best rated first; or this one of them."""

    async def offers(self, provider_id: str, service_id: str, zone_id: str) -> bool:
        """Whether the provider is verified and offers the service in the zone."""

    async def reach(self, provider_id: str, limit: int) -> Sequence[tuple[str, str]]:
        """Pairs of service and zone that this provider works in."""

    async def hold(self, hold_id: str) -> Hold | None: ...
    async def add_hold(self, hold: Hold) -> None: ...
    async def remove_hold(self, hold_id: str) -> None: ...
    async def holds_of(self, customer_id: str, now: datetime) -> int:
        """How many a customer has that count."""


class CalendarSync(Protocol):
    """Feeds of calendars, and sources of busy times."""

    async def put_feed(self, provider_id: str, user_id: str, token_hash: str) -> None:
        """Adds a person's feed, in place of the one before."""

    async def remove_feed(self, provider_id: str, user_id: str) -> None: ...
    async def provider_of_feed(self, token_hash: str) -> str | None:
        """Whose jobs a token shows, while the person it was given to is a member and not disabled."""

    async def jobs(self, provider_id: str, within: Interval, now: datetime, limit: int) -> Sequence[Booking]:
        """Those with an agreed time, cancelled ones too, the earliest first. When there are more than so many, those
        that have not ended count before those that have, and of these the newest.
        """

    async def source(self, source_id: str) -> Source | None: ...
    async def sources(self, provider_id: str) -> Sequence[Source]:
        """By name."""

    async def add_source(self, source: Source) -> None: ...
    async def replace_source(self, source: Source) -> None:
        """Another place to read, under the same id; its times stay."""

    async def save_source(self, source: Source) -> None:
        """What was found there."""

    async def remove_source(self, source_id: str) -> None:
        """With its times."""

    async def replace_times(self, source: Source, times: Sequence[Interval]) -> bool:
        """Whether they differ from those before."""


class SeriesOfBookings(Protocol):
    """Series and what was made of them. Everything about a series happens under the lock of its row."""

    async def add(self, series: Series) -> None: ...
    async def get(self, series_id: str) -> Series | None: ...
    async def lock(self, series_id: str) -> Series | None: ...
    async def save(self, series: Series) -> None: ...
    async def of_customer(self, customer_id: str, limit: int) -> Sequence[Series]:
        """Active ones first, newest first."""

    async def active(self, customer_id: str) -> int: ...
    async def instances(self, series_id: str, since: datetime, limit: int) -> Sequence[Instance]:
        """Those whose recurrence id is not before, in order."""

    async def not_begun(self, series_id: str, before: datetime) -> Sequence[Instance]:
        """Those with an earlier recurrence id whose booking has not begun, in order."""

    async def instance(self, series_id: str, recurrence_id: datetime) -> Instance | None: ...
    async def put_instance(self, instance: Instance) -> None:
        """Adds it, or takes the place of the one with its recurrence id."""

    async def remove_instance(self, instance: Instance) -> None: ...
