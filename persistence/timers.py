"""Durable timers: things to do at a time, set in the transaction that wants them, and in effect done once.

A worker claims a due timer inside the transaction that does its work and removes it there too, so a crash in between
leaves the timer to the next claim. On MySQL the claim locks the row and skips rows that other workers hold; on SQLite
the writer is alone anyway.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, bindparam, delete, func, select, update
from sqlalchemy.dialects.mysql import insert as mysql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.backoff import grown
from domain.ports import Timer
from domain.types import JSON
from persistence.database import Database, database_now
from persistence.tables import timers

FIRST_BACKOFF_SECONDS = 1.0
LONGEST_BACKOFF_SECONDS = 300.0

_sqlite_set = sqlite_insert(timers)
_mysql_set = mysql_insert(timers)
_SET = {
    "sqlite": _sqlite_set.on_conflict_do_update(
        index_elements=[timers.c.name],
        set_={column: _sqlite_set.excluded[column] for column in ("kind", "due_at", "data", "attempts")},
    ),
    "mysql": _mysql_set.on_duplicate_key_update(
        {column: _mysql_set.inserted[column] for column in ("kind", "due_at", "data", "attempts")}
    ),
}
_CANCEL = delete(timers).where(timers.c.name == bindparam("timer"))
_DONE = _CANCEL.where(timers.c.due_at == bindparam("due"))
_DUE = (
    select(timers)
    # A scan and a sort would lock every timer that is due, not only those within the limit.
    .with_hint(timers, "FORCE INDEX (ix_timers_due_at)", "mysql")
    .where(timers.c.due_at <= bindparam("now"))
    .order_by(timers.c.due_at, timers.c.name)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
)
_NAMED = select(timers).where(timers.c.name.in_(bindparam("names", expanding=True)))
_NEXT = select(func.min(timers.c.due_at))
_POSTPONE = (
    update(timers)
    .where(timers.c.name == bindparam("timer"), timers.c.due_at == bindparam("due"))
    .values(due_at=bindparam("again_at"), attempts=bindparam("failures"))
)


_OVERDUE = select(func.count(), func.min(timers.c.due_at)).where(timers.c.due_at <= bindparam("since"))

OVERDUE_SECONDS = 2.0
"""Timers are handled within a second of their time, by whichever node is free."""


@dataclass(frozen=True, slots=True)
class Overdue:
    """Timers that nobody has handled in time: how many, and how late the latest of them is in seconds."""

    timers: int
    oldest_seconds: float


async def overdue_timers(database: Database) -> Overdue:
    """Count what is late by more than :data:`OVERDUE_SECONDS`, for metrics."""

    async def work(connection: AsyncConnection) -> Overdue:
        now = await database_now(connection)
        since = now - timedelta(seconds=OVERDUE_SECONDS)
        count, oldest = (await connection.execute(_OVERDUE, {"since": since})).one()
        return Overdue(count, (now - oldest).total_seconds() if oldest is not None else 0.0)

    return await database.read(work)


class SqlTimers:
    """The timers, within one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def set(self, name: str, due_at: datetime, kind: str, data: JSON) -> None:
        """Set the timer of this name, or move it; its count of attempts starts anew."""
        row = {"name": name, "kind": kind, "due_at": due_at, "data": data, "attempts": 0}
        await self._connection.execute(_SET[self._connection.dialect.name], row)

    async def cancel(self, name: str) -> None:
        """Remove the timer of this name, if there is one."""
        await self._connection.execute(_CANCEL, {"timer": name})

    async def get(self, names: Sequence[str]) -> Sequence[Timer]:
        """Those of these timers that are set; only a look, nothing is claimed."""
        if not names:
            return ()
        return [_timer(row) for row in await self._connection.execute(_NAMED, {"names": names})]

    async def due(self, now: datetime, limit: int) -> Sequence[Timer]:
        """Claim timers due at ``now``, oldest first, until this transaction ends; other workers skip them meanwhile."""
        rows = await self._connection.execute(_DUE, {"now": now, "most": limit})
        return [_timer(row) for row in rows]

    async def done(self, timer: Timer) -> None:
        """Remove a claimed timer. One that its own handler has moved to another time stays."""
        await self._connection.execute(_DONE, {"timer": timer.name, "due": timer.due_at})

    async def failed(self, timer: Timer, now: datetime) -> datetime:
        """Put a timer off whose handler failed, in a transaction after the one that was rolled back.

        Returns:
            When it is due again: exponential with full jitter on the upper half, from 1 s to 5 min after ``now``.
        """
        longest = grown(FIRST_BACKOFF_SECONDS, timer.attempts, LONGEST_BACKOFF_SECONDS)
        again_at = now + timedelta(seconds=random.uniform(longest / 2, longest))
        await self._connection.execute(
            _POSTPONE,
            {"timer": timer.name, "due": timer.due_at, "again_at": again_at, "failures": timer.attempts + 1},
        )
        return again_at

    async def next_due_at(self) -> datetime | None:
        """When the next timer is due, so that a worker may sleep until then; ``None`` when none is set."""
        moment: datetime | None = (await self._connection.execute(_NEXT)).scalar_one_or_none()
        return moment


def _timer(row: Row[Any]) -> Timer:
    return Timer(row.name, row.kind, row.due_at, row.data, row.attempts)
