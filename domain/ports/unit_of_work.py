"""One transaction and what drives it: the clock, timers, and results by key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from domain.calendar_sync import CalendarReader
    from domain.events import Event
    from domain.ports.identity import Challenges, Devices, Factors, People
    from domain.ports.jobs import Bookings, Offers
    from domain.ports.marketplace import Market, Zones
    from domain.ports.messaging import Conversations, Notifications
    from domain.ports.organisations import AuditLog, Flags, Organisations
    from domain.ports.planning import Calendars, CalendarSync, SeriesOfBookings
    from domain.recurrence import Recurrences
    from domain.security import SecurityFact
    from domain.types import JSON, Origin

T = TypeVar("T")


class Clock(Protocol):
    """The time of day."""

    def now(self) -> datetime:
        """Aware UTC."""


class Timers(Protocol):
    """Things to do at a time, in the transaction, surviving restarts."""

    async def set(self, name: str, due_at: datetime, kind: str, data: JSON) -> None:
        """Sets or moves the timer of this name."""

    async def cancel(self, name: str) -> None: ...
    async def get(self, names: Sequence[str]) -> Sequence[Timer]:
        """Those of these timers that are set; only a look, nothing is claimed."""

    async def due(self, now: datetime, limit: int) -> Sequence[Timer]:
        """Claims timers due at ``now``, oldest first, until the transaction ends; other workers skip them meanwhile."""

    async def done(self, timer: Timer) -> None:
        """Removes a claimed timer. One that its own handler has moved to another time stays."""


@dataclass(frozen=True, slots=True)
class Timer:
    """A timer that is set; ``attempts`` counts its failures so far."""

    name: str
    kind: str
    due_at: datetime
    data: JSON
    attempts: int


class IdempotencyKeys(Protocol):
    """Results of commands by the caller's key."""

    async def once(
        self, user_id: str, key: str, fingerprint: str, now: datetime, work: Callable[[], Awaitable[JSON]]
    ) -> JSON:
        """Does the work and keeps its result, or returns what an earlier attempt with this key has kept.

        Raises:
            KeyReused: the key was used with another fingerprint.
            FixnadoError: what the work refuses; refusals are not kept, so a retry is judged anew.
        """


class UnitOfWork(Protocol):
    """One transaction; its rules are those of :mod:`domain.ports`."""

    @property
    def now(self) -> datetime:
        """The instant of this transaction; one for all that happens in it."""

    @property
    def origin(self) -> Origin: ...
    @property
    def people(self) -> People: ...
    @property
    def factors(self) -> Factors: ...
    @property
    def challenges(self) -> Challenges: ...
    @property
    def devices(self) -> Devices: ...
    @property
    def organisations(self) -> Organisations: ...
    @property
    def flags(self) -> Flags: ...
    @property
    def audit(self) -> AuditLog: ...
    @property
    def market(self) -> Market: ...
    @property
    def zones(self) -> Zones: ...
    @property
    def calendars(self) -> Calendars: ...
    @property
    def calendar_sync(self) -> CalendarSync: ...
    @property
    def calendar_reader(self) -> CalendarReader: ...
    @property
    def series(self) -> SeriesOfBookings: ...
    @property
    def recurrences(self) -> Recurrences: ...
    @property
    def bookings(self) -> Bookings: ...
    @property
    def offers(self) -> Offers: ...
    @property
    def conversations(self) -> Conversations: ...
    @property
    def notifications(self) -> Notifications: ...
    @property
    def timers(self) -> Timers: ...
    @property
    def keys(self) -> IdempotencyKeys: ...
    def attest(self, fact: SecurityFact) -> None:
        """The fact is in the audit log if, and only if, this transaction commits. It is written right before the commit
        and told on the admins' security channel.
        """

    def record(self, event: Event) -> None:
        """The event reaches its subscribers if, and only if, this transaction commits."""


class Transactions(Protocol):
    """Runs use cases in transactions."""

    async def write(self, work: Callable[[UnitOfWork], Awaitable[T]], origin: Origin) -> T:
        """Runs ``work`` and commits; runs it again, whole, when it lost to a deadlock or a duplicate key.

        Raises:
            Unavailable: the database is away, or collisions went on; at COMMIT the outcome is unknown, and a retry with
                the same idempotency key finds out.
        """

    async def read(self, work: Callable[[UnitOfWork], Awaitable[T]]) -> T:
        """Runs ``work`` in a read-only transaction."""
