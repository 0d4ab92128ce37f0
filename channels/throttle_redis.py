"""The limits at the doors, counted by all nodes together in Redis; see :class:`domain.ports.Limiter`.

Each question is one script on one key, so it is atomic and works on a cluster as on a single server; time is Redis's
own. Invariants:

* while Redis is away, or slower than ``CALL_SECONDS``, this node decides by its own counts: a door is never open, and
  nobody at it waits for Redis. What this node sees is counted here as well, so its own counts are there when needed;
* the bucket of an address is looked at here first. What this node would refuse, all nodes together refuse too; so a
  flood from one address costs Redis nothing;
* a key lives until it says nothing that its absence does not.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from typing import Any

from redis.exceptions import NoScriptError

from channels.redis_client import RedisClient
from channels.throttle import InProcessLimiter
from domain.errors import Unavailable
from domain.limits import Delays, Rate

logger = logging.getLogger(__name__)

CALL_SECONDS = 0.25
REST_SECONDS = 1.0
"""After a question without an answer, none is put for so long: nobody queues behind a Redis that hangs."""

_NOW = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
"""

_DELAY = """
local function delay(failures)
  local beyond = failures - tonumber(ARGV[1])
  if beyond <= 0 then return 0 end
  return math.min(tonumber(ARGV[3]), tonumber(ARGV[2]) * 2 ^ math.min(beyond - 1, 32))
end
"""

TAKE = (
    _NOW
    + """
local rate, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local bucket = redis.call('HMGET', KEYS[1], 'level', 'at')
local level = tonumber(bucket[1]) or burst
level = math.min(burst, level + math.max(0, now - (tonumber(bucket[2]) or now)) * rate)
local wait = math.max(0, (1 - level) / rate)
if wait == 0 then level = level - 1 end
redis.call('HSET', KEYS[1], 'level', string.format('%.6f', level), 'at', string.format('%.6f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil((burst - level) / rate * 1000) + 1000)
return string.format('%.6f', wait)
"""
)

ATTEMPT = (
    _NOW
    + _DELAY
    + """
local kept = redis.call('HMGET', KEYS[1], 'count', 'next')
if not kept[1] then return '0' end
local wait = tonumber(kept[2]) - now
if wait > 0 then return string.format('%.6f', wait) end
redis.call('HSET', KEYS[1], 'next', string.format('%.6f', now + delay(tonumber(kept[1]))))
return '0'
"""
)

_COUNT = """
local count = redis.call('HINCRBY', KEYS[1], 'count', 1)
redis.call('HSET', KEYS[1], 'next', string.format('%.6f', now + delay(count)))
redis.call('PEXPIRE', KEYS[1], math.max(1, math.ceil(tonumber(ARGV[4]) * 1000)))
return '0'
"""

FAILED = _NOW + _DELAY + _COUNT

CHARGE = (
    _NOW
    + _DELAY
    + """
local wait = (tonumber(redis.call('HGET', KEYS[1], 'next')) or 0) - now
if wait > 0 then return string.format('%.6f', wait) end
"""
    + _COUNT
)

REFUND = """
local count = tonumber(redis.call('HGET', KEYS[1], 'count')) or 0
if count > 0 then redis.call('HINCRBY', KEYS[1], 'count', -1) end
return '0'
"""

FAILURES = "return redis.call('HGET', KEYS[1], 'count') or '0'"
FORGET = "return tostring(redis.call('DEL', KEYS[1]))"

# SHA-1 is how Redis names scripts.
_DIGESTS = {
    script: hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
    for script in (TAKE, ATTEMPT, CHARGE, REFUND, FAILED, FAILURES, FORGET)
}


class RedisLimiter:
    """Counts shared by every node whose event log is the same.

    Args:
        size, clock: of this node's own counts; see :class:`InProcessLimiter`.
    """

    def __init__(self, client: RedisClient, size: int = 50_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._own = InProcessLimiter(size, clock)
        self._resting_until = 0.0

    async def take(self, rate: Rate, subject: str) -> float:
        own = await self._own.take(rate, subject)
        if own > 0:
            return own
        shared = await self._ask(TAKE, rate.name, subject, rate.per_second, rate.burst)
        return own if shared is None else shared

    async def attempt(self, delays: Delays, subject: str) -> float:
        shared = await self._ask(ATTEMPT, delays.name, subject, *_numbers(delays))
        return await self._own.attempt(delays, subject) if shared is None else shared

    async def charge(self, delays: Delays, subject: str) -> float:
        shared = await self._ask(CHARGE, delays.name, subject, *_numbers(delays), delays.forget_seconds)
        if shared is None:
            return await self._own.charge(delays, subject)
        if shared == 0:
            await self._own.failed(delays, subject)
        return shared

    async def refund(self, delays: Delays, subject: str) -> None:
        await self._own.refund(delays, subject)
        await self._ask(REFUND, delays.name, subject)

    async def failed(self, delays: Delays, subject: str) -> None:
        await self._own.failed(delays, subject)
        await self._ask(FAILED, delays.name, subject, *_numbers(delays), delays.forget_seconds)

    async def forget(self, delays: Delays, subject: str) -> None:
        await self._own.forget(delays, subject)
        await self._ask(FORGET, delays.name, subject)

    async def failures(self, delays: Delays, subject: str) -> int:
        shared = await self._ask(FAILURES, delays.name, subject)
        return await self._own.failures(delays, subject) if shared is None else int(shared)

    async def _ask(self, script: str, name: str, subject: str, *numbers: float) -> float | None:
        """The script's answer; ``None`` when this node has to decide alone."""
        clock = asyncio.get_running_loop().time
        if not self._client.connected or clock() < self._resting_until:
            return None
        key = self._client.name("throttle", name, subject)
        try:
            answer = await self._run(key, "EVALSHA", _DIGESTS[script], numbers)
            if isinstance(answer, NoScriptError):
                answer = await self._run(key, "EVAL", script, numbers)
        except Unavailable:
            answer = "no answer in time"
        if isinstance(answer, bytes):
            return float(answer)
        self._resting_until = clock() + REST_SECONDS
        logger.warning("limits at the doors are this node's own for a moment: %r", answer)
        return None

    async def _run(self, key: bytes, verb: str, script: str, numbers: tuple[float, ...]) -> Any:
        (answer,) = await self._client.run([(key, (verb, script, 1, key, *numbers))], CALL_SECONDS)
        return answer


def _numbers(delays: Delays) -> tuple[float, float, float]:
    return delays.free, delays.first_seconds, delays.longest_seconds
