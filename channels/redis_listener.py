"""Subscriptions at one Redis server, on one connection.

redis-py's own pub/sub object reconnects behind its user's back and shows it only as a fresh confirmation; here the
connection is held directly, so that every new one is known to be new: all names are subscribed again in batches, and
once they are confirmed, ``resumed`` tells that what was published meanwhile was missed.

The connection is asked for a sign of life every second. One that stays silent is given up: half-open connections
raise nothing by themselves.

Concurrency: one owned task (:meth:`Listener.run`) that reads, with one inside it that writes; the rest is synchronous.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.crc import key_slot
from redis.exceptions import RedisError

from channels.redis_layout import RedisAway, close
from channels.redis_pipe import RedisCounts, RedisTimes, backoff

NAMES_PER_COMMAND = 500
NAMES_PER_TURN = 20_000
"""Subscribed in one write; more wait for the next."""

Hear = Callable[[bytes, bytes], None]
"""Gets the name and the payload of each message."""


class Listener:
    """See the module.

    Args:
        dial: opens a connection; see :func:`channels.redis_layout.connect`.
        sharded: whether names belong to slots (``SSUBSCRIBE``).
        hear: called for every message, in order; must not block and must not raise.
        changed: called when the listener goes up, or down with the reason.
        resumed: called when subscriptions that an earlier connection should have had are confirmed on a new one.
    """

    def __init__(
        self,
        dial: Callable[[], Awaitable[AbstractConnection]],
        sharded: bool,
        times: RedisTimes,
        counts: RedisCounts,
        hear: Hear,
        changed: Callable[[RedisAway | None], None],
        resumed: Callable[[], None],
    ) -> None:
        self.up = False
        self._dial = dial
        self._times = times
        self._counts = counts
        self._hear = hear
        self._changed = changed
        self._resumed = resumed
        self._sharded = sharded
        self._subscribe, self._unsubscribe = ("SSUBSCRIBE", "SUNSUBSCRIBE") if sharded else ("SUBSCRIBE", "UNSUBSCRIBE")
        self._names: dict[bytes, None] = {}
        self._confirmed: set[bytes] = set()
        self._outstanding: Counter[bytes] = Counter()
        self._waiters: dict[bytes, asyncio.Future[None]] = {}
        self._todo: deque[tuple[bool, tuple[bytes, ...]]] = deque()
        self._wake = asyncio.Event()
        self._heard_at = 0.0

    @property
    def names(self) -> Collection[bytes]:
        """What is subscribed, or will be once connected."""
        return self._names.keys()

    def hold(self, names: Iterable[bytes]) -> list[asyncio.Future[None]]:
        """Subscribe to names as well; returns what to wait for until they are confirmed."""
        loop = asyncio.get_running_loop()
        new: list[bytes] = []
        waits: list[asyncio.Future[None]] = []
        for name in names:
            if name not in self._names:
                self._names[name] = None
                new.append(name)
            if name not in self._confirmed:
                waits.append(self._waiters.setdefault(name, loop.create_future()))
        self._order(True, new)
        return waits

    def drop(self, names: Iterable[bytes]) -> None:
        """End subscriptions. Unknown ones are ignored."""
        gone = [name for name in names if name in self._names]
        for name in gone:
            del self._names[name]
            self._confirmed.discard(name)
            waiter = self._waiters.pop(name, None)
            if waiter is not None:
                waiter.cancel()
        self._order(False, gone)

    def _order(self, subscribe: bool, names: Sequence[bytes]) -> None:
        # While there is no connection, the names themselves are the order.
        if names and self.up:
            self._todo.append((subscribe, tuple(names)))
            self._wake.set()

    async def run(self) -> None:
        """Connect, listen, and connect again, until cancelled."""
        failures = 0
        try:
            while True:
                trouble = RedisAway("the connection to Redis ended")
                try:
                    connection = await self._dial()
                    failures = 0
                    try:
                        await self._serve(connection)
                    finally:
                        await close(connection)
                except RedisAway as error:
                    trouble = error
                except (RedisError, OSError, TimeoutError) as error:
                    trouble = RedisAway(f"the connection to Redis failed: {str(error) or type(error).__name__}")
                if self.up:
                    self._counts.reconnects += 1
                self._forget()
                self._changed(trouble)
                await asyncio.sleep(backoff(self._times, failures))
                failures += 1
        finally:
            self._forget()
            for waiter in self._waiters.values():
                waiter.cancel()
            self._waiters.clear()

    def _forget(self) -> None:
        self.up = False
        self._confirmed.clear()
        self._outstanding.clear()
        self._todo.clear()

    async def _serve(self, connection: AbstractConnection) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        self.up = True
        again = list(self._names)
        self._order(True, again)
        self._changed(None)
        reading = asyncio.create_task(self._read(connection), name="redis-read")
        writing = asyncio.create_task(self._write(connection), name="redis-write")
        resuming = asyncio.create_task(self._resume(again), name="redis-resume")
        try:
            await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (reading, writing, resuming):
                task.cancel()
            results = await asyncio.gather(reading, writing, resuming, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _resume(self, names: Sequence[bytes]) -> None:
        waits = [wait for name in names if name in self._names for wait in self.hold([name])]
        if waits:
            await asyncio.wait(waits)
        if names:
            self._resumed()

    # Writing

    async def _write(self, connection: AbstractConnection) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout(self._times.ping_seconds):
                    await self._wake.wait()
                commands: list[tuple[str | bytes, ...]] = []
            except TimeoutError:
                commands = [("PING",)]
            self._wake.clear()
            room = NAMES_PER_TURN
            while self._todo and room > 0:
                subscribe, names = self._todo.popleft()
                room -= len(names)
                if subscribe:
                    self._outstanding.update(names)
                verb = self._subscribe if subscribe else self._unsubscribe
                commands += ((verb, *some) for some in self._portions(names))
            if commands:
                async with asyncio.timeout(self._times.reply_seconds):
                    await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            if self._todo:
                self._wake.set()
            if loop.time() - self._heard_at > self._times.silence_seconds:
                # A process that was stalled itself must first read what has arrived meanwhile.
                await asyncio.sleep(0.05)
                if loop.time() - self._heard_at > self._times.silence_seconds:
                    raise RedisAway("the connection to Redis has gone silent")

    def _portions(self, names: Sequence[bytes]) -> Iterable[Sequence[bytes]]:
        """Names for one command each: in a cluster all of one slot."""
        if not self._sharded:
            for start in range(0, len(names), NAMES_PER_COMMAND):
                yield names[start : start + NAMES_PER_COMMAND]
            return
        by_slot: dict[int, list[bytes]] = {}
        for name in names:
            by_slot.setdefault(key_slot(name), []).append(name)
        yield from by_slot.values()

    # Reading

    async def _read(self, connection: AbstractConnection) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            # The writer watches over silence, so that a read costs no timer of its own.
            answer: Any = await connection.read_response(timeout=math.inf)
            self._heard_at = clock()
            if not isinstance(answer, list) or len(answer) < 3:
                continue  # a pong
            kind, name, payload = answer
            if kind in {b"message", b"smessage"}:
                self._counts.heard += 1
                self._hear(name, payload)
            elif kind in {b"subscribe", b"ssubscribe"}:
                self._confirm(name)
            elif kind == b"sunsubscribe" and name in self._confirmed:
                # The server itself ended it: the slot is moving to another one.
                raise RedisAway("a slot of the Redis cluster has moved")

    def _confirm(self, name: bytes) -> None:
        self._outstanding[name] -= 1
        # After a quick unsubscribe and subscribe, only the last confirmation counts.
        if self._outstanding[name] > 0:
            return
        del self._outstanding[name]
        if name in self._names:
            self._confirmed.add(name)
            waiter = self._waiters.pop(name, None)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
