"""How far other systems have been told the log, and what they did not take.

Each target has a cursor. It moves in one transaction with what is put aside, so a crash leaves every event either ahead
of the cursor, or told, or held. As for the sequencer, what is written carries the lease's fencing token, and an older
one than was seen is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.errors import Unavailable
from domain.log import Entry
from persistence.database import Database
from persistence.log import ENTRY_COLUMNS, entry_of
from persistence.race import start_over_if_taken
from persistence.tables import export_cursors, export_held, log, log_cursors


class Superseded(Unavailable):
    """Another exporter has taken over this target."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """Everything up to ``sequence`` is told or held; ``event_id`` is the newest event among that."""

    sequence: int
    event_id: str


@dataclass(frozen=True, slots=True)
class Held:
    """An event that was put aside.

    Attributes:
        event: as the target is to get it.
        attempts: refusals so far; 0 for one that only waits behind another of its source.
        dead_at: from then on it is a dead letter, and no longer tried.
    """

    sequence: int
    source: str
    event: bytes
    attempts: int
    due_at: datetime
    error: str | None = None
    dead_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ExportStats:
    """How a target stands: events held, dead letters, and log entries ahead of the cursor."""

    held: int
    dead: int
    behind: int


_LOCK = select(export_cursors).where(export_cursors.c.target == bindparam("to")).with_for_update()
_MOVE = (
    update(export_cursors)
    .where(export_cursors.c.target == bindparam("to"))
    .values(sequence=bindparam("at"), event_id=bindparam("newest"), fence=bindparam("token"))
)
_ROW = (export_held.c.target == bindparam("to"), export_held.c.sequence == bindparam("at"))
_SETTLE = (
    update(export_held)
    .where(*_ROW)
    .values({name: bindparam(f"new_{name}") for name in ("attempts", "due_at", "error", "dead_at")})
)
_FIRST_OF_EACH = (
    select(func.min(export_held.c.sequence).label("sequence"))
    .where(export_held.c.target == bindparam("to"), export_held.c.dead_at.is_(None))
    .group_by(export_held.c.source)
    .subquery()
)
_DUE = (
    select(export_held)
    .join(_FIRST_OF_EACH, _FIRST_OF_EACH.c.sequence == export_held.c.sequence)
    .where(export_held.c.target == bindparam("to"), export_held.c.due_at <= bindparam("now"))
    .order_by(export_held.c.sequence)
    .limit(bindparam("most"))
)


class ExportStore:
    """The cursor and the held events of one target."""

    def __init__(self, database: Database, target: str) -> None:
        self._database = database
        self._target = target

    async def take_over(self, token: int) -> Cursor:
        """Refuses older tokens from now on. A target that is new begins with what is written from now on."""

        async def work(connection: AsyncConnection) -> Cursor:
            row = (await connection.execute(_LOCK, {"to": self._target})).one_or_none()
            if row is None:
                newest = select(func.coalesce(func.max(log_cursors.c.sequence), 0)).where(log_cursors.c.partition == 0)
                sequence = int((await connection.execute(newest)).scalar_one())
                first = {"target": self._target, "sequence": sequence, "event_id": "", "fence": token}
                with start_over_if_taken("the cursor"):
                    await connection.execute(insert(export_cursors), first)
                return Cursor(sequence, "")
            if row.fence > token:
                raise Superseded
            moved = {"to": self._target, "at": row.sequence, "newest": row.event_id, "token": token}
            await connection.execute(_MOVE, moved)
            return Cursor(row.sequence, row.event_id)

        return await self._database.write(work)

    async def commit(self, token: int, cursor: Cursor, held: Sequence[Held]) -> None:
        """Moves the cursor, and puts aside what was not taken.

        Raises:
            Superseded: another exporter has taken over.
        """

        async def work(connection: AsyncConnection) -> None:
            await self._check(connection, token)
            if held:
                await connection.execute(insert(export_held), [self._row(event) for event in held])
            moved = {"to": self._target, "at": cursor.sequence, "newest": cursor.event_id, "token": token}
            await connection.execute(_MOVE, moved)

        await self._database.write(work)

    async def blocked(self, sources: Collection[str]) -> frozenset[str]:
        """Those of the sources that have events held: later ones must wait behind them."""

        async def work(connection: AsyncConnection) -> frozenset[str]:
            here = export_held.c
            query = select(here.source).where(
                here.target == self._target, here.source.in_(sorted(sources)), here.dead_at.is_(None)
            )
            return frozenset((await connection.execute(query)).scalars())

        return await self._database.read(work) if sources else frozenset()

    async def due(self, now: datetime, limit: int) -> Sequence[Held]:
        """Held events to try again: of each source the first one, when it is due."""

        async def work(connection: AsyncConnection) -> Sequence[Held]:
            rows = await connection.execute(_DUE, {"to": self._target, "now": now, "most": limit})
            return [_held(row) for row in rows]

        return await self._database.read(work)

    async def settle(self, token: int, told: Sequence[Held], again: Sequence[Held]) -> None:
        """Removes what was taken at last, and notes when to try the rest.

        Raises:
            Superseded: another exporter has taken over.
        """

        async def work(connection: AsyncConnection) -> None:
            await self._check(connection, token)
            if told:
                gone = [{"to": self._target, "at": event.sequence} for event in told]
                await connection.execute(delete(export_held).where(*_ROW), gone)
            if again:
                rows = [
                    {"to": self._target, "at": event.sequence}
                    | {f"new_{name}": getattr(event, name) for name in ("attempts", "due_at", "error", "dead_at")}
                    for event in again
                ]
                await connection.execute(_SETTLE, rows)

        await self._database.write(work)

    async def dead(self, after: int, limit: int) -> Sequence[Held]:
        """Dead letters past a sequence, oldest first."""

        async def work(connection: AsyncConnection) -> Sequence[Held]:
            here = export_held.c
            query = select(export_held).where(
                here.target == self._target, here.dead_at.is_not(None), here.sequence > after
            )
            return [_held(row) for row in await connection.execute(query.order_by(here.sequence).limit(limit))]

        return await self._database.read(work)

    async def remove(self, events: Sequence[Held]) -> None:
        """Forgets dead letters that were dealt with."""
        gone = [{"to": self._target, "at": event.sequence} for event in events]

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(delete(export_held).where(*_ROW, export_held.c.dead_at.is_not(None)), gone)

        if gone:
            await self._database.write(work)

    async def stats(self) -> ExportStats:
        """Counts, for metrics."""

        async def work(connection: AsyncConnection) -> ExportStats:
            here = export_held.c
            count = select(func.count(), func.count(here.dead_at)).where(here.target == self._target)
            rows, dead = (await connection.execute(count)).one()
            at = select(export_cursors.c.sequence).where(export_cursors.c.target == self._target)
            newest = select(log_cursors.c.sequence).where(log_cursors.c.partition == 0)
            told = (await connection.execute(at)).scalar_one_or_none()
            written = (await connection.execute(newest)).scalar_one_or_none() or 0
            return ExportStats(rows - dead, dead, 0 if told is None else written - told)

        return await self._database.read(work)

    async def _check(self, connection: AsyncConnection, token: int) -> None:
        row = (await connection.execute(_LOCK, {"to": self._target})).one()
        if row.fence > token:
            raise Superseded

    def _row(self, event: Held) -> dict[str, Any]:
        return {"target": self._target} | {name: getattr(event, name) for name in Held.__slots__}


@dataclass(frozen=True, slots=True)
class LogRange:
    """Part of the log: sequences, both included, and how many entries that is."""

    first: int
    last: int
    entries: int


async def range_of(database: Database, since: datetime, until: datetime | None) -> LogRange | None:
    """What was written in a time, the end excluded; ``None`` when that is nothing."""

    async def work(connection: AsyncConnection) -> LogRange | None:
        query = select(func.min(log.c.sequence), func.max(log.c.sequence), func.count()).where(
            log.c.partition == 0, log.c.written_at >= since
        )
        if until is not None:
            query = query.where(log.c.written_at < until)
        first, last, entries = (await connection.execute(query)).one()
        return None if first is None else LogRange(first, last, entries)

    return await database.read(work)


async def entries_of(
    database: Database, part: LogRange, after: int, limit: int, channel: str | None = None
) -> Sequence[Entry]:
    """Entries of a part of the log past a sequence, of all channels or one, in order."""

    async def work(connection: AsyncConnection) -> Sequence[Entry]:
        query = select(*ENTRY_COLUMNS).where(
            log.c.partition == 0, log.c.sequence > max(after, part.first - 1), log.c.sequence <= part.last
        )
        if channel is not None:
            query = query.where(log.c.channel == channel)
        return [entry_of(row) for row in await connection.execute(query.order_by(log.c.sequence).limit(limit))]

    return await database.read(work)


def _held(row: Row[Any]) -> Held:
    return Held(row.sequence, row.source, bytes(row.event), row.attempts, row.due_at, row.error, row.dead_at)
