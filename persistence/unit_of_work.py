"""One database transaction as a use case sees it, and the loop that runs use cases in such transactions.

Invariant: events are written **last**, in one statement right before COMMIT, after every row lock the work took (the
audit log's head among them, whose lock is the last).
Outbox ids grow in the order of these inserts; two transactions of one aggregate are kept apart by its row lock until
COMMIT; so for each aggregate the order of outbox ids is the order of commits, and a reader that sees a later one sees
the earlier ones. (Ids must come from one counter: a MySQL cluster that writes on several nodes would break this.)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import cached_property
from typing import Generic, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from domain.events import Event, EventClass
from domain.ports import Clock
from domain.security import AuditEntry, SecurityFact, recorded
from domain.types import Origin
from persistence.audit_log import append_to_audit_log
from persistence.database import Database
from persistence.idempotency import SqlIdempotencyKeys
from persistence.outbox import append_to_outbox
from persistence.timers import SqlTimers

T = TypeVar("T")

_READING = Origin(correlation_id="read")
"""Nothing follows from a read, so nobody sees where it came from."""


class UnitOfWork:
    """One transaction. Made anew for each attempt; not for use after it.

    Attributes:
        connection: of this transaction; repositories hang on it.
        origin: carried on by every event.
        now: the instant of this transaction, one for all that happens in it.
        events: recorded so far, in order.
        facts: attested so far, in order.
    """

    def __init__(self, connection: AsyncConnection, origin: Origin, now: datetime) -> None:
        self.connection = connection
        self.origin = origin
        self.now = now
        self.events: list[Event] = []
        self.facts: list[SecurityFact] = []

    @cached_property
    def timers(self) -> SqlTimers:
        return SqlTimers(self.connection)

    @cached_property
    def keys(self) -> SqlIdempotencyKeys:
        return SqlIdempotencyKeys(self.connection)

    # Repositories: one cached property each, made when first asked for.

    def attest(self, fact: SecurityFact) -> None:
        """The fact is in the audit log if, and only if, this transaction commits."""
        self.facts.append(fact)

    def record(self, event: Event) -> None:
        """The event reaches its subscribers if, and only if, this transaction commits.

        Raises:
            ValueError: the event is ephemeral; such go straight to the broker, after the commit.
        """
        if event.event_class is EventClass.EPHEMERAL:
            raise ValueError(f"{event.type} is ephemeral and has no place in the outbox")
        self.events.append(event)


U = TypeVar("U", bound=UnitOfWork)


class Transactions(Generic[U]):
    """Runs use cases, each in one transaction.

    Args:
        make: makes the unit of work of one attempt: :class:`UnitOfWork` or a subclass with repositories.
        on_commit: called after each commit that wrote events; must return at once (it nudges the sequencer).
        on_attested: called after each commit that appended to the audit log, with the new rows; must return at once.
        partitions: number of sequencers that share the outbox. Change it only while the outbox is empty.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        make: Callable[[AsyncConnection, Origin, datetime], U],
        on_commit: Callable[[], None] = lambda: None,
        partitions: int = 1,
        on_attested: Callable[[Sequence[AuditEntry]], None] = lambda _: None,
    ) -> None:
        self._database = database
        self._clock = clock
        self._make = make
        self._on_commit = on_commit
        self._partitions = partitions
        self._on_attested = on_attested

    async def write(self, work: Callable[[U], Awaitable[T]], origin: Origin) -> T:
        """Run work and commit; run it again, whole, when it collided (see :meth:`Database.write`).

        Cancellation rolls back, or, when it arrives during COMMIT, leaves the outcome unknown to the caller.

        Raises:
            OutcomeUnknown: the connection broke during COMMIT; a retry with the same idempotency key finds out.
            Unavailable: the database is away, or collisions went on.
        """
        written = 0
        attested: list[AuditEntry] = []

        async def attempt(connection: AsyncConnection) -> T:
            nonlocal written
            unit = self._make(connection, origin, self._clock.now())
            result = await work(unit)
            attested.clear()
            if unit.facts:
                attested.extend(await append_to_audit_log(connection, unit.facts, origin, unit.now))
            events = [*unit.events, *map(recorded, attested)]
            written = len(events)
            if events:
                await append_to_outbox(connection, events, origin, self._partitions)
            return result

        result = await self._database.write(attempt)
        if written:
            self._on_commit()
        if attested:
            self._on_attested(attested)
        return result

    async def read(self, work: Callable[[U], Awaitable[T]]) -> T:
        """Run work that only reads.

        Raises:
            Unavailable: the database is away.
            RuntimeError: the work recorded an event, or attested something.
        """

        async def attempt(connection: AsyncConnection) -> T:
            unit = self._make(connection, _READING, self._clock.now())
            result = await work(unit)
            if unit.events or unit.facts:
                raise RuntimeError("an event was recorded in a transaction that only reads")
            return result

        return await self._database.read(attempt)
