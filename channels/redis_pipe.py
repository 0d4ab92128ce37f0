"""Commands to one Redis server, on one connection, many per round trip.

Whoever has commands puts them into a bounded queue and never waits for the server to take them. One owned task sends
what is there in one write and reads the answers. A command is sent at most once: when its answer does not come, it may
or may not have been carried out, and only its owner knows whether that matters.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from channels.redis_layout import RedisAway, close
from domain.backoff import grown

logger = logging.getLogger(__name__)

BATCH_COMMANDS = 500
BATCH_BYTES = 1024 * 1024
"""One write to Redis carries at most this, or one command that is larger by itself."""

Words = tuple[bytes | str | int | float, ...]
"""A command as Redis reads it, e.g. ``("PUBLISH", name, payload)``."""


@dataclass(frozen=True, slots=True)
class RedisTimes:
    """Waits and bounds towards Redis.

    Attributes:
        connect_seconds: to open a connection, TLS and greeting included.
        reply_seconds: for the answers to one batch; also for a write.
        ping_seconds: between signs of life that are asked for on a quiet connection.
        silence_seconds: without a byte on the subscribing connection before it counts as dead. A half-open connection
            says nothing for minutes by itself.
        retry_seconds: from a failure to the next attempt at first, doubled up to ``retry_most_seconds``.
        listen_seconds: for the confirmation of subscriptions.
        fresh_seconds: how long something may wait to be published before it is not worth it.
        recheck_seconds: between looks at the layout of Sentinels and clusters when nothing seems wrong.
        queue_commands: commands waiting for one server; beyond it the oldest are dropped.
    """

    connect_seconds: float = 1.5
    reply_seconds: float = 1.5
    ping_seconds: float = 1.0
    silence_seconds: float = 2.5
    retry_seconds: float = 0.1
    retry_most_seconds: float = 1.0
    listen_seconds: float = 1.0
    fresh_seconds: float = 2.0
    recheck_seconds: float = 5.0
    queue_commands: int = 20_000


@dataclass(slots=True)
class RedisCounts:
    """What a node has done towards Redis; for metrics.

    Attributes:
        answered: commands that Redis carried out, messages published among them.
        dropped: commands not sent, because the queue was full or they had waited too long.
        failed: commands sent without a good answer, and those that could not be written.
        heard: messages received.
        unreadable: messages of another version, or not ours.
        reconnects: connections opened again after they were lost.
    """

    answered: int = 0
    dropped: int = 0
    failed: int = 0
    heard: int = 0
    unreadable: int = 0
    reconnects: int = 0


class Job:
    """One command on its way; ``answer`` is ``None`` when nobody waits for it."""

    __slots__ = ("answer", "expires", "words")

    def __init__(self, words: Words, expires: float, answer: asyncio.Future[Any] | None = None) -> None:
        self.words = words
        self.expires = expires
        self.answer = answer

    def settle(self, result: object) -> None:
        """Tell whoever waits, if still."""
        if self.answer is None or self.answer.done():
            return
        if isinstance(result, BaseException):
            self.answer.set_exception(result)
        else:
            self.answer.set_result(result)


class Pipe:
    """See the module.

    Args:
        dial: opens a connection; see :func:`channels.redis_layout.connect`.
        check: asks what the server is; see :func:`channels.redis_layout.check`.
        changed: called when the pipe goes up, or down with the reason.
        misplaced: called when a server says that a slot is elsewhere.
    """

    def __init__(
        self,
        dial: Callable[[], Awaitable[AbstractConnection]],
        check: Callable[[AbstractConnection], Awaitable[None]],
        times: RedisTimes,
        counts: RedisCounts,
        changed: Callable[[RedisAway | None], None],
        misplaced: Callable[[], None],
    ) -> None:
        self.up = False
        self._dial = dial
        self._check = check
        self._times = times
        self._counts = counts
        self._changed = changed
        self._misplaced = misplaced
        self._queue: deque[Job] = deque()
        self._wake = asyncio.Event()
        self._suspected = False

    def put(self, job: Job) -> None:
        """Take a command. Never waits; a full queue drops its oldest."""
        if len(self._queue) >= self._times.queue_commands:
            self._drop(self._queue.popleft())
        self._queue.append(job)
        self._wake.set()

    def _drop(self, job: Job) -> None:
        self._counts.dropped += 1
        job.settle(RedisAway("too much waits for Redis"))

    def suspect(self) -> None:
        """The server may be gone: ask it before anything is sent. A quiet connection is not read, so its end would
        show only when the next batch is lost on it.
        """
        self._suspected = True
        self._wake.set()

    async def run(self) -> None:
        """Connect, serve, and connect again, until cancelled."""
        failures = 0
        try:
            while True:
                trouble = RedisAway("the connection to Redis ended")
                try:
                    connection = await self._dial()
                    failures = 0
                    self.up = True
                    self._suspected = False
                    self._changed(None)
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
                self.up = False
                self._changed(trouble)
                self._expire()
                await asyncio.sleep(backoff(self._times, failures))
                failures += 1
        finally:
            self.up = False
            for job in self._queue:
                job.settle(RedisAway("the connection to Redis was given up"))
            self._queue.clear()

    def _expire(self) -> None:
        """Let go of what has waited too long; called while nothing can be sent."""
        now = asyncio.get_running_loop().time()
        while self._queue and self._queue[0].expires <= now:
            self._drop(self._queue.popleft())

    async def _serve(self, connection: AbstractConnection) -> None:
        clock = asyncio.get_running_loop().time
        check_at = clock() + self._times.ping_seconds
        while True:
            if not self._queue:
                try:
                    async with asyncio.timeout(max(0.0, check_at - clock())):
                        await self._wake.wait()
                except TimeoutError:
                    pass
            self._wake.clear()
            if self._suspected or clock() >= check_at:
                async with asyncio.timeout(self._times.reply_seconds):
                    # Also tells when a primary has become a replica, which would swallow what is published.
                    await self._check(connection)
                self._suspected = False
                check_at = clock() + self._times.ping_seconds
            self._expire()
            jobs, packed = self._take()
            if jobs:
                await self._send(connection, jobs, packed)

    def _take(self) -> tuple[list[Job], bytes]:
        """The next batch, and its bytes."""
        jobs: list[Job] = []
        parts: list[bytes] = []
        size = 0
        while self._queue and len(jobs) < BATCH_COMMANDS and size < BATCH_BYTES:
            job = self._queue.popleft()
            if job.answer is not None and job.answer.done():
                continue  # whoever asked does not wait any more
            # The connection's own packing is Python, and took a twentieth of what a booking costs a node. The type of
            # this one's argument means a tuple of any length.
            try:
                data = pack_command(job.words)  # type: ignore[arg-type]
            except (TypeError, ValueError) as error:
                # A mistake of whoever made the command. It is not worth the others' connection.
                self._counts.failed += 1
                logger.exception("a command for Redis cannot be written: %r", job.words[:1])
                job.settle(error)
                continue
            size += len(data)
            parts.append(data)
            jobs.append(job)
        return jobs, b"".join(parts)

    async def _send(self, connection: AbstractConnection, jobs: Sequence[Job], packed: bytes) -> None:
        done = 0
        try:
            async with asyncio.timeout(self._times.reply_seconds):
                await connection.send_packed_command(packed, check_health=False)
                for job in jobs:
                    try:
                        # The batch's bound ends the read; a timer for each would cost more than the read itself.
                        job.settle(await connection.read_response(timeout=math.inf))
                        self._counts.answered += 1
                    except ResponseError as error:
                        self._counts.failed += 1
                        if str(error).startswith(("MOVED", "ASK", "CLUSTERDOWN", "READONLY")):
                            self._misplaced()
                        job.settle(error)
                    done += 1
        except BaseException:
            self._counts.failed += len(jobs) - done
            for job in jobs[done:]:
                job.settle(RedisAway("Redis did not answer"))
            raise


def backoff(times: RedisTimes, failures: int) -> float:
    """How long to wait after so many failures in a row; jittered, so that nodes do not come back together."""
    return random.uniform(0.5, 1.0) * grown(times.retry_seconds, failures, times.retry_most_seconds)
