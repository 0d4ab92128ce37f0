"""Token buckets that hold a user to one rate, however many nodes the user's sockets are spread over.

A frame never waits for Redis: each node decides by a bucket of its own, and tells a shared one afterwards what was
spent. The shared level that comes back takes the place of the node's own when it is lower. So:

* somebody on one node meets exactly that node's bucket, as without Redis;
* somebody on N nodes may spend N bursts at first, once; the shared bucket runs into debt for it, and every node makes
  them pay within ``sync_seconds`` of the next tenth of a burst. In the long run the rate is one rate;
* with Redis away, each node goes on with its own bucket. What could not be told is told later, or forgiven when the
  answer to a telling is lost: it may have been counted.

Only those who spend more than a tenth of a burst between two looks are told of, so most users never cost a command.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from typing import Any

from redis.exceptions import NoScriptError

from channels.limits import TokenBuckets, Verdict
from channels.redis_client import RedisClient
from channels.redis_pipe import Words
from domain.errors import Unavailable

logger = logging.getLogger(__name__)

SYNC_SECONDS = 0.1
CALL_SECONDS = 0.5
KEYS_PER_SYNC = 1_000
"""Users told of at once; the others wait for the next look."""

SPEND = """
local rate, burst, debt, spent = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local bucket = redis.call('HMGET', KEYS[1], 'level', 'at')
local level = tonumber(bucket[1]) or burst
local at = tonumber(bucket[2]) or now
level = math.max(-debt, math.min(burst, level + math.max(0, now - at) * rate) - spent)
redis.call('HSET', KEYS[1], 'level', string.format('%.6f', level), 'at', string.format('%.6f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil((burst - level) / rate * 1000) + 1000)
return string.format('%.6f', level)
"""
"""Refills the bucket by Redis's clock, takes what was spent, and returns the level. The key lives until the bucket is
full again, when it says nothing that its absence does not."""


_DIGEST = hashlib.sha1(SPEND.encode(), usedforsecurity=False).hexdigest()


class RedisTokenBuckets(TokenBuckets):
    """Token buckets shared through Redis; where a :class:`channels.limits.TokenBuckets` is wanted, this will do.

    Args:
        rate_per_second, burst, debt, size: see there; the same on every node.
    """

    __slots__ = ("_client", "_scripted", "_spent", "_task", "_worth_telling")

    def __init__(self, client: RedisClient, rate_per_second: float, burst: int, debt: int, size: int) -> None:
        super().__init__(rate_per_second, burst, debt, size)
        self._client = client
        self._spent: dict[str, int] = {}
        self._worth_telling = max(1, burst // 10)
        self._scripted = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the task that tells."""
        self._task = asyncio.create_task(self._sync_for_ever(), name="limits-sync")

    async def stop(self) -> None:
        """End it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def take(self, key: str, now: float) -> Verdict:
        verdict = super().take(key, now)
        spent = self._spent
        spent[key] = spent.get(key, 0) + 1
        if len(spent) > self._size:
            # Forgets the one told of longest ago, as the bucket itself would be.
            del spent[next(iter(spent))]
        return verdict

    async def _sync_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            try:
                await self.sync()
            except Exception:
                logger.exception("limits could not be shared")

    async def sync(self) -> None:
        """Tell what was spent, and take over what others spent. Does nothing while Redis is away."""
        if not self._client.connected:
            return
        told = [(key, spent) for key, spent in self._spent.items() if spent >= self._worth_telling][:KEYS_PER_SYNC]
        if not told:
            return
        for key, _ in told:
            del self._spent[key]
        try:
            levels = await self._client.run([self._command(key, spent) for key, spent in told], CALL_SECONDS)
        except Unavailable:
            return
        self._scripted = True
        clock = asyncio.get_running_loop().time()
        for (key, spent), level in zip(told, levels, strict=True):
            if isinstance(level, NoScriptError):
                # Redis was restarted: nothing was counted.
                self._scripted = False
                self._spent[key] = self._spent.get(key, 0) + spent
            elif isinstance(level, bytes):
                self._lower(key, float(level) - self._spent.get(key, 0), clock)
            else:
                logger.warning("a shared limit could not be read: %r", level)

    def _command(self, key: str, spent: int) -> tuple[bytes, Words]:
        name = self._client.name("limit", key)
        numbers: Sequence[Any] = (self._rate, self._burst, self._debt, spent)
        # By its digest, SHA-1 as Redis wants it, once Redis has the script.
        how: Words = ("EVALSHA", _DIGEST) if self._scripted else ("EVAL", SPEND)
        return name, (*how, 1, name, *numbers)

    def _lower(self, key: str, level: float, now: float) -> None:
        """Take the shared level for this node's own if it is lower."""
        bucket = self._buckets.get(key)
        if bucket is not None and level < self._level(key, now):
            self._buckets[key] = (level, now)
