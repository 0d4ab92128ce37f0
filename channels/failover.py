"""How a node notices that the broker fails it, and what it does about it: it reads the log itself.

Every node tells the others once a second that it lives. Whoever sequences a partition adds the partition's newest
sequence. So a node knows, without asking the database, how far the log has come, and it keeps a **cursor**: everything
up to it has been seen to by this node.

* Heartbeats come and name a sequence beyond the cursor: the space between is checked at once, by reading those entries
  and letting the hub drop what it has (or by comparing heads, when that is less work). A lost tail, one that no later
  offset betrays, stays lost for a heartbeat or so. An idle system asks the database nothing.
* Heartbeats with sequences are overdue, or the connection is down: the node **tails** the log from the cursor, some
  times a second, and events keep flowing. It stops when heartbeats are back and the cursor has reached what they say.
* No heartbeat at all is heard, not even one's own: the connection is dead without saying so. It is built anew.

That tailing starts earlier than the rebuilding is deliberate: it is cheap and delays nothing, rebuilding is neither.

Invariant: the cursor never passes an entry that this node has not read, compared or heard to be covered by heads read
later. A channel joined later is anchored at a head that is read after the cursor was, so it misses nothing either.

Concurrency: :meth:`Follower.run` is one task with one inside it that beats; the rest is synchronous.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from channels.redis_wire import Beat, Unreadable, pack_beat, unpack_beat
from domain.backoff import grown
from domain.log import Entry, EventLog

logger = logging.getLogger(__name__)

HEARTBEAT = "heartbeat"


@dataclass(frozen=True, slots=True)
class FailoverTimes:
    """When a node helps itself.

    Attributes:
        beat_seconds: between heartbeats.
        tail_after_seconds: without a heartbeat that names the newest sequences before the log is tailed.
        rebuild_after_seconds: without any heartbeat before the connection is built anew.
        tail_seconds: between reads of the log while tailing.
        call_seconds: for one read of the log.
        page_entries: read at once.
        catch_up_entries: read one after the other, at most; a cursor further behind gives way to a comparison of
            heads.
        node_seconds: without a heartbeat before another node counts as gone.
    """

    beat_seconds: float = 1.0
    tail_after_seconds: float = 1.4
    rebuild_after_seconds: float = 2.5
    tail_seconds: float = 0.15
    call_seconds: float = 2.0
    page_entries: int = 500
    catch_up_entries: int = 5_000
    node_seconds: float = 3.5


class State(Enum):
    """How events reach this node.

    ``ok``: through the broker. ``tailing``: from the log, a little later. ``blind``: not at all, because the log cannot
        be read either.
    """

    OK = "ok"
    TAILING = "tailing"
    BLIND = "blind"


@dataclass(slots=True)
class FailoverCounts:
    """What the follower has done; for metrics.

    Attributes:
        followed: entries read from the log, whether the hub had them or not.
        audits: comparisons of heads.
        switches: times that tailing began.
        rebuilds: connections built anew because no heartbeat came.
    """

    followed: int = 0
    audits: int = 0
    switches: int = 0
    rebuilds: int = 0


class Pulse(Protocol):
    """The broker, as far as its health goes: :class:`channels.broker_redis.RedisBroker`."""

    @property
    def connected(self) -> bool: ...

    def tell(self, subject: str, payload: bytes) -> None: ...

    async def hear(self, subject: str, handler: Callable[[bytes], None]) -> None: ...

    def on_change(self, listener: Callable[[], None]) -> None: ...

    def rebuild(self, reason: str) -> None: ...


class Follows(Protocol):
    """The hub, as far as following goes."""

    def follow(self, entries: Sequence[Entry]) -> None: ...

    def held_channels(self) -> Collection[str]: ...

    async def audit(self) -> None: ...

    def lost(self) -> None: ...


class Follower:
    """See the module.

    Args:
        leads: the partitions that this node sequences now.

    Attributes:
        state: for readiness and metrics.
        counts: for metrics.
    """

    def __init__(
        self,
        node_id: str,
        hub: Follows,
        log: EventLog,
        broker: Pulse,
        leads: Callable[[], Collection[int]],
        times: FailoverTimes | None = None,
    ) -> None:
        self.state = State.OK
        self.counts = FailoverCounts()
        self._node_id = node_id
        self._hub = hub
        self._log = log
        self._broker = broker
        self._leads = leads
        self._times = times or FailoverTimes()
        self._cursor: dict[int, int] = {}
        self._newest: dict[int, int] = {}
        self._announced_at: dict[int, float] = {}
        self._nodes: dict[str, float] = {}
        self._beat_heard_at = 0.0
        self._patient_until = 0.0
        self._wake = asyncio.Event()
        broker.on_change(self._wake.set)

    @property
    def nodes(self) -> Collection[str]:
        """Every node heard of lately, this one among them."""
        since = asyncio.get_running_loop().time() - self._times.node_seconds
        return {self._node_id, *(node for node, heard_at in self._nodes.items() if heard_at >= since)}

    async def run(self, stop: asyncio.Event) -> None:
        """Follow until told to stop. Start it after the hub.

        Raises:
            Unavailable: the log is away just now, so that there is no cursor to begin at.
        """
        async with asyncio.timeout(self._times.call_seconds):
            self._cursor = dict(await self._log.cursor())
        # Everything up to the cursor, for what was joined before.
        self._hub.lost()
        self._newest = dict(self._cursor)
        # A first heartbeat gets the time that a later one would have.
        now = asyncio.get_running_loop().time()
        self._beat_heard_at = now
        self._announced_at = dict.fromkeys(self._cursor, now)
        await self._broker.hear(HEARTBEAT, self._heard)
        stopping = asyncio.create_task(stop.wait())
        beating = asyncio.create_task(self._beat_for_ever(), name="heartbeat-of-node")
        following = asyncio.create_task(self._follow_for_ever(), name="follower")
        try:
            await asyncio.wait({stopping, beating, following}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (stopping, beating, following):
                task.cancel()
            results = await asyncio.gather(beating, following, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    # Heartbeats

    async def _beat_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            self._broker.tell(HEARTBEAT, pack_beat(Beat(self._node_id, await self._positions())))
            due = max(due + self._times.beat_seconds, loop.time())
            await asyncio.sleep(due - loop.time())

    async def _positions(self) -> Mapping[int, int]:
        leads = self._leads()
        if not leads:
            return {}
        try:
            # A database that is slow must not delay the sign of life.
            async with asyncio.timeout(self._times.beat_seconds / 2):
                cursor = await self._log.cursor()
        except Exception as error:
            logger.debug("the newest sequence could not be read: %r", error)
            return {}
        return {partition: cursor[partition] for partition in leads if partition in cursor}

    def _heard(self, payload: bytes) -> None:
        try:
            beat = unpack_beat(payload)
        except Unreadable:
            # Of another version: a sign of life all the same, and its sequences are read from the log.
            self._beat_heard_at = asyncio.get_running_loop().time()
            return
        now = self._beat_heard_at = asyncio.get_running_loop().time()
        self._nodes[beat.node_id] = now
        for partition, sequence in beat.positions.items():
            self._announced_at[partition] = now
            self._newest[partition] = max(sequence, self._newest.get(partition, 0))
            self._cursor.setdefault(partition, 0)
        if beat.positions:
            self._wake.set()
        for node in [node for node, heard_at in self._nodes.items() if heard_at < now - self._times.node_seconds]:
            del self._nodes[node]

    # Following

    @property
    def _well(self) -> bool:
        if not self._broker.connected:
            return False
        since = asyncio.get_running_loop().time() - self._times.tail_after_seconds
        return all(at >= since for at in self._announced_at.values())

    @property
    def _behind(self) -> bool:
        return any(sequence > self._cursor[partition] for partition, sequence in self._newest.items())

    async def _follow_for_ever(self) -> None:
        failures = 0
        while True:
            well = self._well
            if not well and self.state is State.OK:
                self._turn(State.TAILING)
            try:
                # While tailing, the log itself says what is newest; otherwise heartbeats do.
                if not well:
                    await self._catch_up()
                elif self._behind:
                    # What is still on its way arrives, and not all nodes ask the database at once.
                    await asyncio.sleep(random.uniform(0.2, 1.0) * self._times.tail_seconds)
                    await self._catch_up()
                failures = 0
                if not self._well:
                    self._turn(State.TAILING)
                elif not self._behind:
                    self._turn(State.OK)
            except Exception as error:
                failures += 1
                if not well:
                    self._turn(State.BLIND)
                logger.warning("the log could not be followed: %r", error)
            self._rebuild_if_deaf()
            await self._pause(failures)

    def _turn(self, state: State) -> None:
        if state is self.state:
            return
        if self.state is State.OK:
            self.counts.switches += 1
        self.state = state
        match state:
            case State.OK:
                logger.info("events come through the broker again")
            case State.TAILING:
                logger.warning("the broker is not well; events come from the log")
            case State.BLIND:
                logger.error("neither the broker nor the log can be read; events wait")

    def _rebuild_if_deaf(self) -> None:
        now = asyncio.get_running_loop().time()
        if not self._broker.connected:
            # It knows and is at it; a connection that comes about is given the time to be heard.
            self._patient_until = now + self._times.rebuild_after_seconds
        elif now > max(self._beat_heard_at + self._times.rebuild_after_seconds, self._patient_until):
            self._patient_until = now + self._times.rebuild_after_seconds
            self.counts.rebuilds += 1
            self._broker.rebuild("no heartbeat was heard, not even this node's own")

    async def _pause(self, failures: int) -> None:
        if failures:
            await asyncio.sleep(random.uniform(0.5, 1.0) * grown(0.1, failures, 1.0))
            return
        if self.state is not State.OK:
            await asyncio.sleep(self._times.tail_seconds)
            return
        now = asyncio.get_running_loop().time()
        overdue = min(self._announced_at.values(), default=now) + self._times.tail_after_seconds
        try:
            async with asyncio.timeout(max(0.0, overdue - now) + 0.01):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _catch_up(self) -> None:
        """Read the log from the cursor to its end, or compare heads when that is less work."""
        behind = sum(max(0, newest - self._cursor[partition]) for partition, newest in self._newest.items())
        # A head is a fraction of an entry: no frame comes with it.
        worth_reading = min(len(self._hub.held_channels()) // 4, self._times.catch_up_entries)
        if behind > max(self._times.page_entries // 4, worth_reading):
            await self._audit()
            return
        read = 0
        while True:
            async with asyncio.timeout(self._times.call_seconds):
                entries = await self._log.tail(self._cursor, self._times.page_entries)
            for entry in entries:
                self._cursor[entry.partition] = entry.sequence
            self.counts.followed += len(entries)
            self._hub.follow(entries)
            if len(entries) < self._times.page_entries:
                return
            read += len(entries)
            if read >= self._times.catch_up_entries:
                await self._audit()
                return
            # A full page is written to sockets before the next one is read.
            await asyncio.sleep(0)

    async def _audit(self) -> None:
        async with asyncio.timeout(self._times.call_seconds):
            cursor = await self._log.cursor()
        await self._hub.audit()
        self.counts.audits += 1
        for partition, sequence in cursor.items():
            self._cursor[partition] = max(sequence, self._cursor.get(partition, 0))
