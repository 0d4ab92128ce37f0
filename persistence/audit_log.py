"""The audit log: a chain of hashes, appended to under the lock of its head row, walked by whoever doubts it.

The head is locked by its primary key, right before the commit and after every other lock, so a transaction that attests
something waits only for others that are about to commit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.security import GENESIS, AuditEntry, SecurityFact, chained, flaw_of
from domain.types import Origin
from persistence.database import Database
from persistence.race import start_over_if_taken
from persistence.tables import audit_head, audit_log

VERIFY_ROWS = 1_000
"""Rows read at once while the chain is walked."""

_HEAD_ID = 1
_LOCK_HEAD = select(audit_head.c.number, audit_head.c.hash).where(audit_head.c.id == _HEAD_ID).with_for_update()
_HEAD = select(audit_head.c.number, audit_head.c.hash).where(audit_head.c.id == _HEAD_ID)


class SqlAuditLog:
    """Reads, within one transaction; see :class:`domain.ports.AuditLog`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def newest(self, before: int | None, limit: int) -> Sequence[AuditEntry]:
        query = select(audit_log).order_by(audit_log.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(audit_log.c.number < before)
        return [_entry(row) for row in await self._connection.execute(query)]


async def append_to_audit_log(
    connection: AsyncConnection, facts: Sequence[SecurityFact], origin: Origin, at: datetime
) -> list[AuditEntry]:
    """Continue the chain; returns the new rows. Takes the last lock of its transaction.

    Raises:
        RetryTransaction: another transaction has just begun the chain.
    """
    head = (await connection.execute(_LOCK_HEAD)).one_or_none()
    entries = chained(facts, head.number if head else 0, head.hash if head else GENESIS, at, origin.correlation_id)
    newest = {"number": entries[-1].number, "hash": entries[-1].hash}
    if head is None:
        with start_over_if_taken("the audit log's head"):
            await connection.execute(insert(audit_head), {"id": _HEAD_ID, **newest})
    else:
        await connection.execute(update(audit_head).where(audit_head.c.id == _HEAD_ID).values(newest))
    await connection.execute(insert(audit_log), [asdict(entry) for entry in entries])
    return entries


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a walk along the chain found.

    Attributes:
        rows: that were found whole.
        head_hash: of the newest whole row: write it down elsewhere, and a later walk can be held against it.
        broken: the number of the first row that is not as it was written; ``None`` when all are.
        why: what is wrong with it.
    """

    rows: int
    head_hash: str
    broken: int | None = None
    why: str | None = None


async def verify_audit_log(database: Database, progress: Callable[[int, int], None] = lambda done, of: None) -> Verdict:
    """Walk the whole chain, oldest first, in batches that hold no lock.

    Args:
        progress: told ``(rows so far, rows in all)`` after each batch.

    Raises:
        Unavailable: the database is away.
    """
    head = await database.read(_read_head)
    total, head_hash = (head.number, head.hash) if head is not None else (0, GENESIS)
    number, hash_before = 0, GENESIS
    while True:
        rows = await database.read(_reader(number))
        for row in rows:
            entry = _entry(row)
            why = flaw_of(entry, number, hash_before)
            if why is not None:
                return Verdict(number, hash_before, number + 1, why)
            number, hash_before = entry.number, entry.hash
            if number == total and hash_before != head_hash:
                return Verdict(number, hash_before, number, "the head of the chain says something else")
        progress(min(number, total), total)
        if len(rows) < VERIFY_ROWS:
            break
    if number < total:
        return Verdict(number, hash_before, number + 1, f"rows {number + 1} to {total} are missing")
    if number > total and (await database.read(_read_head)) == head:
        return Verdict(total, head_hash, total + 1, "it is beyond the head of the chain")
    return Verdict(number, hash_before)


async def _read_head(connection: AsyncConnection) -> Any:
    return (await connection.execute(_HEAD)).one_or_none()


def _reader(after: int) -> Callable[[AsyncConnection], Any]:
    query = select(audit_log).where(audit_log.c.number > after).order_by(audit_log.c.number).limit(VERIFY_ROWS)

    async def read(connection: AsyncConnection) -> Sequence[Row[Any]]:
        return (await connection.execute(query)).all()

    return read


def _entry(row: Row[Any]) -> AuditEntry:
    return AuditEntry(
        number=row.number,
        at=row.at,
        kind=row.kind,
        actor_id=row.actor_id,
        subject_id=row.subject_id,
        correlation_id=row.correlation_id,
        details=row.details,
        previous_hash=row.previous_hash,
        hash=row.hash,
    )
