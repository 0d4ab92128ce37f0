"""The sequencer: takes events from the outbox, gives them their places on their channels, and publishes them.

Invariants, each kept inside one transaction of the sequencer:

* **Nothing is lost or doubled.** The transaction that writes an event's log entries deletes its outbox row. Rows are
  deleted by the ids that were read, never by a range: a transaction with a smaller id may commit later.
* **Gapless.** A channel's next offset is read from its locked head and written back with the entries. A partition's
  newest sequence is known to the one that leads: it was read when the lead was taken, and each batch moves the cursor
  row on from there, or fails if it does not find it there.
* **Ordered.** Rows are taken in id order, which for each aggregate is commit order (see
  :mod:`persistence.unit_of_work`).
* **One writer per partition.** The cursor row holds the newest fencing token; a batch with an older one does not find
  the row it has to move. Whoever raises the token waits for the batch that has moved the cursor and not yet committed;
  and whoever cannot say what became of a batch raises it again.
* **Locks in one order:** heads by channel name, then the cursor. Sequencers of several partitions may share channels; a
  new channel that two of them meet at once ends in a duplicate key for one, and its transaction starts over.

Publishing comes after the commit, in the order of sequences, from one task. It is a hint: a node that misses an entry
finds the gap and reads the log. So a broker that stalls never stalls sequencing: batches wait in a bounded queue, and
when it is full, all that wait are dropped, since one read of the log catches up with them all.

A **poison** event, one that cannot be routed or encoded, is parked with its error in the same transaction; the rest
flows.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, Text, bindparam, insert, literal_column, select, type_coerce, update
from sqlalchemy.dialects.mysql import insert as mysql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import Select

from domain.backoff import grown
from domain.errors import Unavailable
from domain.log import Entry
from persistence.batch import Batch, Encode, Route
from persistence.database import Database
from persistence.deletion import BatchDelete
from persistence.leases import Leases
from persistence.log import ensure_seed, epoch_of
from persistence.race import start_over_if_taken
from persistence.tables import channel_heads, log, log_cursors, outbox, outbox_parked

logger = logging.getLogger(__name__)

Publish = Callable[[Sequence[Entry]], Awaitable[None]]
"""Hands entries to the broker, in order."""

MAX_WAITING_ENTRIES = 20_000
"""Entries sequenced but not yet published, at most; past it all of them are dropped."""


@dataclass(frozen=True, slots=True)
class SequencerOptions:
    """How a sequencer works.

    Attributes:
        batch_rows: outbox rows per transaction, at most.
        pace_seconds: pause between the end of one batch and the next, at least. The sequencer goes before all other
            writers; without a pause it would take their commits one by one, at their cost.
        pace_share: the pause as a share of what the batch before it took, if that is longer: where batches take long,
            there is much else to do, and fewer and larger ones leave more time for it.
        pace_most_seconds: and no longer pause than this, however long a batch has taken.
        poll_seconds: how often an idle sequencer looks for rows that nobody nudged it about (other nodes' commits).
        lease_seconds: life of the lease; with ``takeover_seconds`` it bounds how long a dead sequencer is missed.
        takeover_seconds: how often one that waits asks for the lease.
        publish_timeout_seconds: bound of one publication.
    """

    batch_rows: int = 500
    pace_seconds: float = 0.001
    pace_share: float = 1 / 3
    pace_most_seconds: float = 0.1
    poll_seconds: float = 0.5
    lease_seconds: float = 3.5
    takeover_seconds: float = 0.8
    publish_timeout_seconds: float = 2.0

    def pause_seconds(self, took_seconds: float) -> float:
        """From the end of a batch that took so long to the next one, at least."""
        return max(self.pace_seconds, min(took_seconds * self.pace_share, self.pace_most_seconds))


@dataclass(slots=True)
class SequencerCounts:
    """What a sequencer has done since it was made; for metrics.

    Attributes:
        sequenced: log entries written.
        parked: poison events put aside.
        fenced: writes refused because another sequencer had taken over.
        failures: runs that failed and will be tried again.
        unpublished: entries that were not published, because the broker failed or stalled; nodes read them from the
            log.
    """

    sequenced: int = 0
    parked: int = 0
    fenced: int = 0
    failures: int = 0
    unpublished: int = 0


class Fenced(Exception):
    """A newer token has written: this sequencer was replaced."""


class Sequencer:
    """The sequencer of one partition.

    Only one of those that run on the nodes does work: the one that holds the lease ``sequencer/{partition}``.

    Args:
        holder: the node's name. One that restarts under the same name takes over at once; so give a name that no
            other live process has (an embedded server has no other: a constant will do).

    Concurrency: :meth:`run` is one task; :meth:`nudge` may be called from anywhere in the loop.
    """

    def __init__(
        self,
        database: Database,
        holder: str,
        *,
        route: Route,
        encode: Encode,
        publish: Publish,
        partition: int = 0,
        options: SequencerOptions | None = None,
    ) -> None:
        self.counts = SequencerCounts()
        self._database = database
        self._leases = Leases(database)
        self._holder = holder
        self._route = route
        self._encode = encode
        self._publish = publish
        self._partition = partition
        self._options = options or SequencerOptions()
        self._lease = f"sequencer/{partition}"
        self._token: int | None = None
        self._newest = 0
        self._renew_at = 0.0
        self._not_before = 0.0
        self._seed = ""
        self._wake = asyncio.Event()
        self._waiting: list[Entry] = []
        self._publishable = asyncio.Event()
        self._publishing = asyncio.Lock()

    @property
    def leading(self) -> bool:
        """Whether this one held the lease when it last looked."""
        return self._token is not None

    def nudge(self) -> None:
        """Say that events were committed. Returns at once."""
        self._wake.set()

    async def run_once(self) -> int:
        """Take one batch if this one leads or can lead, publish it, and say how many outbox rows are done with.

        Raises:
            Unavailable: the database is away. Whatever was not committed is still in the outbox.
        """
        if not await self._lead():
            return 0
        taken = await self._take_batch()
        await self._publish_waiting()
        return taken

    async def run(self, stop: asyncio.Event) -> None:
        """Sequence until told to stop, then release the lease. Survives errors of the database and the broker.

        Cancellation ends it at once; the lease then runs out by itself.
        """
        stopping = asyncio.create_task(stop.wait())
        stopping.add_done_callback(lambda _: self._wake.set())
        publishing = asyncio.create_task(self._publish_always())
        failed_in_a_row = 0
        try:
            while not stop.is_set():
                try:
                    pause = await self._step()
                    failed_in_a_row = 0
                except Exception as error:
                    self.counts.failures += 1
                    failed_in_a_row += 1
                    pause = random.uniform(0.1, 1.0) * grown(0.1, failed_in_a_row, 2.0)
                    expected = isinstance(error, Unavailable)
                    logger.warning("sequencing failed, again in %.2f s: %r", pause, error, exc_info=not expected)
                    # Nudges would cut the pause short just when there are many; only the stop may.
                    await asyncio.wait([stopping], timeout=pause)
                    continue
                await self._sleep(pause)
            await self._publish_waiting()
            await self._release()
        finally:
            for task in (stopping, publishing):
                task.cancel()
            await asyncio.gather(stopping, publishing, return_exceptions=True)

    # --- leading ------------------------------------------------------------------------------------------------------

    async def _lead(self) -> bool:
        clock = asyncio.get_running_loop().time
        if self._token is not None:
            if clock() < self._renew_at:
                return True
            if await self._leases.renew(self._lease, self._token, self._options.lease_seconds):
                self._renew_at = clock() + self._options.lease_seconds / 3
                return True
            logger.warning("lost the lease of partition %d", self._partition)
            self._token = None
        token = await self._leases.acquire(self._lease, self._holder, self._options.lease_seconds)
        if token is None:
            return False
        self._seed, self._newest = await self._database.write(
            lambda connection: self._raise_fence(connection, token), urgent=True
        )
        self._token = token
        self._renew_at = clock() + self._options.lease_seconds / 3
        logger.info("leading partition %d with token %d", self._partition, token)
        return True

    async def _raise_fence(self, connection: AsyncConnection, token: int) -> tuple[str, int]:
        """Refuse older tokens from now on; returns the seed of epochs and the partition's newest sequence."""
        newest = 0
        cursor = (await connection.execute(_LOCK_CURSOR, {"part": self._partition})).one_or_none()
        if cursor is None:
            first = {"partition": self._partition, "sequence": 0, "fence": token}
            with start_over_if_taken("the cursor"):
                await connection.execute(insert(log_cursors), first)
        else:
            newest = cursor.sequence
            if cursor.fence < token:
                await connection.execute(_RAISE_FENCE, {"part": self._partition, "token": token})
        return await ensure_seed(connection), newest

    async def _release(self) -> None:
        if self._token is None:
            return
        token, self._token = self._token, None
        try:
            await self._leases.release(self._lease, token)
        except Unavailable:
            logger.warning("could not release the lease of partition %d; it runs out by itself", self._partition)

    # --- sequencing ---------------------------------------------------------------------------------------------------

    async def _step(self) -> float:
        """One turn of :meth:`run`; returns how long to sleep unless nudged."""
        if not await self._lead():
            # A nudge is for the one that leads; left standing, it would have this one ask for the lease
            # without a pause.
            self._wake.clear()
            return self._options.takeover_seconds
        nudged = self._wake.is_set()
        early = self._not_before - asyncio.get_running_loop().time()
        if nudged and early > 0:
            await asyncio.sleep(early)
        self._wake.clear()
        # A look costs one read; a transaction that finds nothing would cost the writer's turn.
        if not nudged and not await self._database.read(self._anything):
            return self._idle_seconds()
        clock = asyncio.get_running_loop().time
        began = clock()
        if await self._take_batch() == self._options.batch_rows:
            self._wake.set()
        ended = clock()
        self._not_before = ended + self._options.pause_seconds(ended - began)
        return self._idle_seconds()

    def _idle_seconds(self) -> float:
        until_renewal = self._renew_at - asyncio.get_running_loop().time()
        return max(0.0, min(self._options.poll_seconds, until_renewal))

    async def _sleep(self, seconds: float) -> None:
        if self._wake.is_set():
            return
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _anything(self, connection: AsyncConnection) -> bool:
        return (await connection.execute(_ANYTHING, {"part": self._partition})).first() is not None

    async def _take_batch(self) -> int:
        """Sequence one batch and leave its entries to be published; returns how many outbox rows are done with."""
        token = self._token
        assert token is not None, "only a leader takes"
        try:
            taken, batch = await self._database.write(lambda connection: self._sequence(connection, token), urgent=True)
        except Fenced:
            self.counts.fenced += 1
            self._token = None
            logger.warning("another sequencer has taken over partition %d", self._partition)
            return 0
        except Exception:
            # It may have been committed all the same; leading anew waits for that and reads how far it came.
            self._token = None
            raise
        if batch is not None:
            self._newest = batch.newest
            self.counts.sequenced += len(batch.entries)
            self.counts.parked += len(batch.parked)
            for parked in batch.parked:
                logger.error("parked event %s: %s", parked["row"]["event_id"], parked["error"])
            if batch.entries:
                self._hand_over(batch.entries)
        return taken

    async def _sequence(self, connection: AsyncConnection, token: int) -> tuple[int, Batch | None]:
        """The transaction: a fixed number of statements, however large the batch."""
        rows = (await connection.execute(_TAKE, {"part": self._partition, "most": self._options.batch_rows})).all()
        if not rows:
            return 0, None
        batch = Batch(rows, self._route, datetime.now(UTC))
        heads: Sequence[Row[Any]] = ()
        if channels := batch.channels:
            heads = (await connection.execute(_LOCK_HEADS, {"channels": channels})).all()
        batch.place(heads, self._epoch_of, self._encode, self._partition, self._newest)
        move = {"part": self._partition, "token": token, "known": self._newest, "newest": batch.newest}
        if (await connection.execute(_MOVE_CURSOR, move)).rowcount != 1:
            raise Fenced
        if batch.entries:
            await connection.execute(_WRITE_HEADS[self._database.dialect], batch.head_rows())
            await self._write_log(connection, batch)
        if batch.parked:
            await connection.execute(_PARK, batch.parked)
        await _DELETE_TAKEN(connection, [row.id for row in rows])
        return len(rows), batch

    @staticmethod
    async def _write_log(connection: AsyncConnection, batch: Batch) -> None:
        # A head that is not there cannot be locked: two partitions may begin the same channel at once.
        with start_over_if_taken("the channel's first entry"):
            await connection.execute(_WRITE_LOG, batch.log_rows())

    def _epoch_of(self, channel: str) -> str:
        return epoch_of(self._seed, channel)

    # --- publishing ---------------------------------------------------------------------------------------------------

    def _hand_over(self, entries: Sequence[Entry]) -> None:
        if len(self._waiting) + len(entries) > MAX_WAITING_ENTRIES:
            self.counts.unpublished += len(self._waiting)
            self._waiting.clear()
        self._waiting += entries
        self._publishable.set()

    async def _publish_always(self) -> None:
        while True:
            await self._publishable.wait()
            await self._publish_waiting()

    async def _publish_waiting(self) -> None:
        async with self._publishing:
            entries, self._waiting = self._waiting, []
            self._publishable.clear()
            if not entries:
                return
            try:
                async with asyncio.timeout(self._options.publish_timeout_seconds):
                    await self._publish(entries)
            except Exception as error:
                self.counts.unpublished += len(entries)
                logger.warning("%d entries were not published; nodes read them from the log: %r", len(entries), error)


_ANYTHING: Select[Any] = (
    select(literal_column("1")).select_from(outbox).where(outbox.c.partition == bindparam("part")).limit(1)
)
_LOCK_CURSOR = select(log_cursors).where(log_cursors.c.partition == bindparam("part")).with_for_update()
_RAISE_FENCE = update(log_cursors).where(log_cursors.c.partition == bindparam("part")).values(fence=bindparam("token"))
_MOVE_CURSOR = (
    update(log_cursors)
    .where(
        log_cursors.c.partition == bindparam("part"),
        log_cursors.c.fence == bindparam("token"),
        log_cursors.c.sequence == bindparam("known"),
    )
    .values(sequence=bindparam("newest"))
)
_TAKE = (
    # JSON stays text: data is spliced into the frames as it is, and a broken document is one row's trouble, not the
    # batch's.
    select(
        *(
            type_coerce(column, Text).label(column.name) if column.name in {"audience", "data"} else column
            for column in outbox.c
        )
    )
    .where(outbox.c.partition == bindparam("part"))
    .order_by(outbox.c.id)
    .limit(bindparam("most"))
)
_LOCK_HEADS = (
    select(channel_heads)
    .with_hint(channel_heads, "FORCE INDEX (PRIMARY)", "mysql")
    .where(channel_heads.c.channel.in_(bindparam("channels", expanding=True)))
    .order_by(channel_heads.c.channel)
    .with_for_update()
)
_sqlite_heads = sqlite_insert(channel_heads)
_mysql_heads = mysql_insert(channel_heads)
_WRITE_HEADS = {
    "sqlite": _sqlite_heads.on_conflict_do_update(
        index_elements=[channel_heads.c.channel], set_={"offset": _sqlite_heads.excluded.offset}
    ),
    "mysql": _mysql_heads.on_duplicate_key_update({"offset": _mysql_heads.inserted.offset}),
}
_WRITE_LOG = insert(log)
_PARK = insert(outbox_parked)
_DELETE_TAKEN = BatchDelete("outbox", "id")
