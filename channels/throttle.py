"""One process's limits at the doors: buckets and growing delays by subject, in bounded memory.

See :class:`domain.ports.Limiter`. Forgetting the subject not seen for longest is what bounds the memory; with ``size``
subjects that takes ``size`` others in the meantime, each of which passed the limits of an address first.

:class:`channels.throttle_redis.RedisLimiter` counts for all nodes together, and keeps this one for when Redis is away.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from domain.limits import Delays, Rate


@dataclass(slots=True)
class _Failures:
    count: int
    last_at: float
    next_at: float


class InProcessLimiter:
    """Counts of this process.

    Args:
        size: subjects remembered of each sort.
        clock: seconds of a monotonic clock.
    """

    def __init__(self, size: int = 50_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._size = size
        self._clock = clock
        self._buckets: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()
        self._failures: OrderedDict[tuple[str, str], _Failures] = OrderedDict()

    async def take(self, rate: Rate, subject: str) -> float:
        key, now = (rate.name, subject), self._clock()
        level, at = self._buckets.get(key, (float(rate.burst), now))
        level = min(float(rate.burst), level + (now - at) * rate.per_second)
        wait_seconds = max(0.0, (1.0 - level) / rate.per_second)
        # A refused request costs nothing: whoever waits as told is let in.
        self._buckets[key] = (level if wait_seconds else level - 1.0, now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._size:
            self._buckets.popitem(last=False)
        return wait_seconds

    async def attempt(self, delays: Delays, subject: str) -> float:
        now = self._clock()
        failures = self._recent(delays, subject, now)
        if failures is None:
            return 0.0
        if failures.next_at > now:
            return failures.next_at - now
        # Charged beforehand: of many attempts at the end of a delay one is let through.
        failures.next_at = now + delays.after(failures.count)
        return 0.0

    async def charge(self, delays: Delays, subject: str) -> float:
        now = self._clock()
        failures = self._recent(delays, subject, now)
        if failures is not None and failures.next_at > now:
            return failures.next_at - now
        self._count(delays, subject, now)
        return 0.0

    async def refund(self, delays: Delays, subject: str) -> None:
        failures = self._recent(delays, subject, self._clock())
        if failures is not None and failures.count > 0:
            failures.count -= 1

    async def failed(self, delays: Delays, subject: str) -> None:
        self._count(delays, subject, self._clock())

    async def forget(self, delays: Delays, subject: str) -> None:
        self._failures.pop((delays.name, subject), None)

    async def failures(self, delays: Delays, subject: str) -> int:
        failures = self._recent(delays, subject, self._clock())
        return 0 if failures is None else failures.count

    def _count(self, delays: Delays, subject: str, now: float) -> None:
        key = (delays.name, subject)
        failures = self._recent(delays, subject, now) or _Failures(0, now, now)
        failures.count += 1
        failures.last_at, failures.next_at = now, now + delays.after(failures.count)
        self._failures[key] = failures
        self._failures.move_to_end(key)
        if len(self._failures) > self._size:
            self._failures.popitem(last=False)

    def _recent(self, delays: Delays, subject: str, now: float) -> _Failures | None:
        key = (delays.name, subject)
        failures = self._failures.get(key)
        if failures is not None and now - failures.last_at > delays.forget_seconds:
            del self._failures[key]
            return None
        return failures
