"""Entities to rows and back, one module per subject, all within one transaction.

:class:`SqlUnitOfWork` is what use cases are given: the foundation's unit of work with a repository for each subject.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import cached_property

from sqlalchemy.ext.asyncio import AsyncConnection

from domain.types import JSON, Origin
from persistence.audit_log import SqlAuditLog
from persistence.geometry import ZoneIndex
from persistence.icalendars import IcalendarReader
from persistence.recurrence import RruleRecurrences
from persistence.repositories.bookings import SqlBookings
from persistence.repositories.calendar_sync import SqlCalendarSync
from persistence.repositories.calendars import SqlCalendars
from persistence.repositories.conversations import SqlConversations
from persistence.repositories.flags import SqlFlags
from persistence.repositories.identity import SqlChallenges, SqlDevices, SqlFactors
from persistence.repositories.market import SqlMarket
from persistence.repositories.notifications import SqlNotifications
from persistence.repositories.offers import SqlOffers
from persistence.repositories.organisations import SqlOrganisations
from persistence.repositories.people import SqlPeople
from persistence.repositories.series import SqlSeries
from persistence.repositories.zones import SqlZones
from persistence.timers import SqlTimers
from persistence.unit_of_work import UnitOfWork

__all__ = ["SqlUnitOfWork", "Units"]


class SqlUnitOfWork(UnitOfWork):
    """One transaction with every repository; see :class:`domain.ports.UnitOfWork`."""

    def __init__(
        self,
        connection: AsyncConnection,
        origin: Origin,
        now: datetime,
        zones: ZoneIndex,
        on_timer: Callable[[datetime], None],
    ) -> None:
        super().__init__(connection, origin, now)
        self._zones = zones
        self._on_timer = on_timer

    @cached_property
    def timers(self) -> SqlTimers:
        return _NotingTimers(self.connection, self._on_timer)

    @cached_property
    def people(self) -> SqlPeople:
        return SqlPeople(self)

    @cached_property
    def factors(self) -> SqlFactors:
        return SqlFactors(self)

    @cached_property
    def challenges(self) -> SqlChallenges:
        return SqlChallenges(self)

    @cached_property
    def devices(self) -> SqlDevices:
        return SqlDevices(self)

    @cached_property
    def organisations(self) -> SqlOrganisations:
        return SqlOrganisations(self)

    @cached_property
    def flags(self) -> SqlFlags:
        return SqlFlags(self)

    @cached_property
    def audit(self) -> SqlAuditLog:
        return SqlAuditLog(self.connection)

    @cached_property
    def market(self) -> SqlMarket:
        return SqlMarket(self, self._zones)

    @cached_property
    def zones(self) -> SqlZones:
        return SqlZones(self, self._zones)

    @cached_property
    def calendars(self) -> SqlCalendars:
        return SqlCalendars(self)

    @cached_property
    def calendar_sync(self) -> SqlCalendarSync:
        return SqlCalendarSync(self)

    @cached_property
    def calendar_reader(self) -> IcalendarReader:
        return IcalendarReader()

    @cached_property
    def series(self) -> SqlSeries:
        return SqlSeries(self)

    @cached_property
    def recurrences(self) -> RruleRecurrences:
        return RruleRecurrences()

    @cached_property
    def bookings(self) -> SqlBookings:
        return SqlBookings(self)

    @cached_property
    def offers(self) -> SqlOffers:
        return SqlOffers(self)

    @cached_property
    def conversations(self) -> SqlConversations:
        return SqlConversations(self)

    @cached_property
    def notifications(self) -> SqlNotifications:
        return SqlNotifications(self)


class _NotingTimers(SqlTimers):
    """Timers that tell this process's worker about those being set, so that it need not ask the database so often."""

    def __init__(self, connection: AsyncConnection, on_timer: Callable[[datetime], None]) -> None:
        super().__init__(connection)
        self._on_timer = on_timer

    async def set(self, name: str, due_at: datetime, kind: str, data: JSON) -> None:
        await super().set(name, due_at, kind, data)
        self._on_timer(due_at)


class Units:
    """Makes units of work that share what one process keeps.

    Args:
        on_timer: told of each timer that is set, before the commit; must return at once.
    """

    def __init__(self, zones: ZoneIndex, on_timer: Callable[[datetime], None] = lambda _: None) -> None:
        self._zones = zones
        self._on_timer = on_timer

    def __call__(self, connection: AsyncConnection, origin: Origin, now: datetime) -> SqlUnitOfWork:
        return SqlUnitOfWork(connection, origin, now, self._zones, self._on_timer)
