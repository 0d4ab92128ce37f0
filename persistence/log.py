"""The durable log as the live side reads it, and its retention. Only :mod:`persistence.sequencer` writes entries.

An **epoch** is derived: a keyed hash of the channel under a random seed that the database got when it was first used.
So a channel that never had an event has the epoch already that its first event will have, without a row being written
for every channel somebody looks at, and without a race between looking and writing. The seed lives and dies with the
database: a new database has new epochs, and offsets of the old one mean nothing there. Heads are never deleted,
because a channel whose numbering began again under the same epoch would pass new events off as seen. After restoring
a backup the numbering *has* gone back: :func:`renew_epochs` then, before any node starts.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeVar

from sqlalchemy import and_, bindparam, delete, insert, or_, select, update
from sqlalchemy.dialects.mysql import insert as mysql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import Select

from domain.events import EventClass
from domain.log import Entry, Head
from persistence.database import Database
from persistence.deletion import BatchDelete
from persistence.race import start_over_if_taken
from persistence.tables import channel_heads, log, log_cursors, log_seed

V = TypeVar("V")

_NAMES_PER_QUERY = 400
"""Channels in one IN list; SQLite takes 32,766 parameters and MySQL plans long lists slowly."""

_RANGES_PER_QUERY = (1, 8, 64)
"""Shapes of the replay query. A query is padded up to the next, so that three compiled statements serve every storm."""

_HEADS = select(channel_heads.c.channel, channel_heads.c.epoch, channel_heads.c.offset, channel_heads.c.floor).where(
    channel_heads.c.channel.in_(bindparam("channels", expanding=True))
)
_SEED = select(log_seed.c.seed)
ENTRY_COLUMNS = (
    log.c.channel,
    log.c.offset,
    log.c.sequence,
    log.c.event_class,
    log.c.key,
    log.c.frame,
    log.c.partition,
)
_READ = (
    select(*ENTRY_COLUMNS)
    .where(log.c.channel == bindparam("named"), log.c.offset > bindparam("after"))
    .order_by(log.c.offset)
    .limit(bindparam("most"))
)
_TAIL = (
    select(*ENTRY_COLUMNS)
    .where(log.c.partition == bindparam("part"), log.c.sequence > bindparam("after"))
    .order_by(log.c.sequence)
    .limit(bindparam("most"))
)
_CURSORS = select(log_cursors.c.partition, log_cursors.c.sequence)


class SqlEventLog:
    """Implements :class:`domain.log.EventLog`.

    Args:
        partitions: number of sequencers; :meth:`cursor` names them all, also those that have not written yet.
    """

    def __init__(self, database: Database, partitions: int = 1) -> None:
        self._database = database
        self._partitions = partitions

    async def heads(self, channels: Collection[str]) -> Mapping[str, Head]:
        names = sorted(set(channels))
        if not names:
            return {}

        async def work(connection: AsyncConnection) -> tuple[dict[str, Head], str | None]:
            found: dict[str, Head] = {}
            for some in _chunks(names, _NAMES_PER_QUERY):
                for row in await connection.execute(_HEADS, {"channels": some}):
                    found[row.channel] = Head(row.epoch, row.offset, row.floor)
            seed = None if len(found) == len(names) else (await connection.execute(_SEED)).scalar_one_or_none()
            return found, seed

        found, seed = await self._database.read(work)
        missing = [name for name in names if name not in found]
        if missing:
            if seed is None:
                seed = await self._database.write(ensure_seed)
            found |= {name: Head(epoch_of(seed, name), 0, 0) for name in missing}
        return found

    async def read(self, channel: str, after: int, limit: int) -> Sequence[Entry]:
        async def work(connection: AsyncConnection) -> Sequence[Entry]:
            rows = await connection.execute(_READ, {"named": channel, "after": after, "most": limit})
            return [entry_of(row) for row in rows]

        return await self._database.read(work)

    async def read_many(self, after: Mapping[str, int], limit: int) -> Mapping[str, Sequence[Entry]]:
        """Entries of several channels past their offsets, at most ``limit`` of each, in few queries.

        Offsets have no gaps, so ``limit`` entries are ``limit`` consecutive offsets, and one OR of ranges fetches
        them all.
        """
        found: dict[str, list[Entry]] = {channel: [] for channel in after}
        if not after or limit <= 0:
            return found

        async def work(connection: AsyncConnection) -> None:
            for entries in found.values():
                entries.clear()
            # What was pruned leaves a gap below the floor: the first entry a reader can get is the one after it.
            start = dict(after)
            for some in _chunks(sorted(after), _NAMES_PER_QUERY):
                for head in await connection.execute(_HEADS, {"channels": some}):
                    if head.offset <= after[head.channel]:
                        del start[head.channel]
                    else:
                        start[head.channel] = max(after[head.channel], head.floor)
            for ranges in _chunks(sorted(start.items()), _RANGES_PER_QUERY[-1]):
                for row in await connection.execute(*_replay(ranges, limit)):
                    found[row.channel].append(entry_of(row))

        await self._database.read(work)
        return found

    async def tail(self, after: Mapping[int, int], limit: int) -> Sequence[Entry]:
        async def work(connection: AsyncConnection) -> list[Entry]:
            entries: list[Entry] = []
            for partition, sequence in sorted(after.items()):
                parameters = {"part": partition, "after": sequence, "most": limit}
                entries += [entry_of(row) for row in await connection.execute(_TAIL, parameters)]
            return entries

        entries = await self._database.read(work)
        if len(after) > 1:
            entries.sort(key=lambda entry: (entry.sequence, entry.partition))
        return entries[:limit]

    async def cursor(self) -> Mapping[int, int]:
        async def work(connection: AsyncConnection) -> dict[int, int]:
            rows = await connection.execute(_CURSORS)
            return dict.fromkeys(range(self._partitions), 0) | {row.partition: row.sequence for row in rows}

        return await self._database.read(work)


def epoch_of(seed: str, channel: str) -> str:
    """The epoch of a channel in the database with this seed: 12 hexadecimal digits."""
    return hashlib.blake2b(channel.encode(), key=bytes.fromhex(seed), digest_size=6).hexdigest()


async def ensure_seed(connection: AsyncConnection) -> str:
    """The database's seed, made now if there is none. Needs a transaction that writes."""
    seed: str | None = (await connection.execute(_SEED)).scalar_one_or_none()
    if seed is not None:
        return seed
    seed = secrets.token_hex(16)
    with start_over_if_taken("the seed"):
        await connection.execute(insert(log_seed), {"id": 1, "seed": seed})
    return seed


async def renew_epochs(database: Database) -> int:
    """Give every channel a new epoch, so that no client resumes by offsets from before. For use while no node runs.

    Returns:
        The number of channels that ever had an event.
    """

    async def work(connection: AsyncConnection) -> int:
        await connection.execute(delete(log_seed))
        seed = await ensure_seed(connection)
        channels = (await connection.execute(select(channel_heads.c.channel))).scalars().all()
        renew = (
            update(channel_heads).where(channel_heads.c.channel == bindparam("named")).values(epoch=bindparam("new"))
        )
        for some in _chunks(channels, _NAMES_PER_QUERY):
            await connection.execute(renew, [{"named": name, "new": epoch_of(seed, name)} for name in some])
        return len(channels)

    return await database.write(work)


# --- retention --------------------------------------------------------------------------------------------------------

_TOO_OLD = (
    select(log.c.partition, log.c.sequence, log.c.channel, log.c.offset)
    .where(log.c.written_at < bindparam("before"))
    .order_by(log.c.written_at)
    .limit(bindparam("most"))
)
_LONGEST = (
    select(channel_heads.c.channel)
    .where(channel_heads.c.offset - channel_heads.c.floor > bindparam("kept"))
    .order_by(channel_heads.c.channel)
    .limit(1)
)
_BEYOND = (
    select(log.c.partition, log.c.sequence, log.c.channel, log.c.offset)
    .join(channel_heads, channel_heads.c.channel == log.c.channel)
    .where(log.c.channel == bindparam("named"), log.c.offset <= channel_heads.c.offset - bindparam("kept"))
    .order_by(log.c.offset)
    .limit(bindparam("most"))
)
_LOCK_HEADS = (
    _HEADS.with_hint(channel_heads, "FORCE INDEX (PRIMARY)", "mysql")
    .order_by(channel_heads.c.channel)
    .with_for_update()
)
_DELETE_ENTRIES = BatchDelete("log", "sequence", fixed="partition")
_sqlite_heads = sqlite_insert(channel_heads)
_mysql_heads = mysql_insert(channel_heads)
_RAISE_FLOORS = {
    "sqlite": _sqlite_heads.on_conflict_do_update(
        index_elements=[channel_heads.c.channel], set_={"floor": _sqlite_heads.excluded.floor}
    ),
    "mysql": _mysql_heads.on_duplicate_key_update({"floor": _mysql_heads.inserted.floor}),
}


async def prune(database: Database, before: datetime, keep: int, batch_rows: int = 500) -> int:
    """Remove a bounded batch of entries that are older than ``before`` or not among a channel's newest ``keep``.

    Raises each channel's floor to the newest offset removed, in the same transaction: a client below the floor gets a
    snapshot, a client at the head of a pruned channel still resumes exactly.

    Returns:
        How many went; call again while it is not 0.
    """

    async def work(connection: AsyncConnection) -> int:
        rows = (await connection.execute(_TOO_OLD, {"before": before, "most": batch_rows})).all()
        if not rows:
            channel = (await connection.execute(_LONGEST, {"kept": keep})).scalar_one_or_none()
            if channel is None:
                return 0
            rows = (await connection.execute(_BEYOND, {"named": channel, "kept": keep, "most": batch_rows})).all()
            if not rows:
                return 0
        floors: dict[str, int] = {}
        sequences: dict[int, list[int]] = {}
        for row in rows:
            floors[row.channel] = max(row.offset, floors.get(row.channel, 0))
            sequences.setdefault(row.partition, []).append(row.sequence)
        # Heads first and in order, as the sequencer locks them.
        raised: list[dict[str, Any]] = []
        for head in await connection.execute(_LOCK_HEADS, {"channels": sorted(floors)}):
            floor = max(head.floor, floors[head.channel])
            raised.append({"channel": head.channel, "epoch": head.epoch, "offset": head.offset, "floor": floor})
        await connection.execute(_RAISE_FLOORS[database.dialect], raised)
        for partition, gone in sequences.items():
            await _DELETE_ENTRIES(connection, gone, fixed=partition)
        return len(rows)

    return await database.write(work)


# --- rows and statements ----------------------------------------------------------------------------------------------


def entry_of(row: Any) -> Entry:
    """The entry of a row of :data:`ENTRY_COLUMNS`."""
    channel, offset, sequence, event_class, key, frame, partition = row
    return Entry(channel, offset, sequence, EventClass(event_class), key, bytes(frame), partition)


def _chunks(items: Sequence[V], size: int) -> Iterator[list[V]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


@lru_cache(maxsize=len(_RANGES_PER_QUERY))
def _replay_statement(ranges: int) -> Select[Any]:
    condition = or_(
        *(
            and_(
                log.c.channel == bindparam(f"channel_{n}"),
                log.c.offset > bindparam(f"after_{n}"),
                log.c.offset <= bindparam(f"until_{n}"),
            )
            for n in range(ranges)
        )
    )
    return select(*ENTRY_COLUMNS).where(condition).order_by(log.c.channel, log.c.offset)


def _replay(ranges: Sequence[tuple[str, int]], limit: int) -> tuple[Select[Any], dict[str, Any]]:
    """The query for these channels and offsets, padded with repetitions of the last one, which find nothing twice."""
    shape = next(size for size in _RANGES_PER_QUERY if size >= len(ranges))
    parameters: dict[str, Any] = {}
    for n in range(shape):
        channel, after = ranges[min(n, len(ranges) - 1)]
        parameters |= {f"channel_{n}": channel, f"after_{n}": after, f"until_{n}": after + limit}
    return _replay_statement(shape), parameters
