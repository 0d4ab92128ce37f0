"""One timer wheel for a node's sessions: no timer and no task per socket.

Each session is in one slot at most, that of the second in which it wants to be asked next; it then does what is due
and says when to ask again (:meth:`Timed.due`). Deadlines are met up to one tick late.

Concurrency: :meth:`Wheel.run` is one owned task; the rest is synchronous.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Protocol

from channels.limits import Limits

logger = logging.getLogger(__name__)

TICK_SECONDS = 1.0

LATE_TICKS = 2
"""A wheel this late has slept: a stalled process or a suspended machine."""


class Timed(Protocol):
    """Something with deadlines."""

    wheel_tick: int | None

    def due(self, now: float) -> float | None:
        """Do what is due; returns when to be asked again in seconds of the monotonic clock, ``None`` for never."""


class Wheel:
    """Asks sessions when their time comes.

    Args:
        monotonic: the clock; tests pass their own.
        random_unit: uniform in 0–1, for jitter.
    """

    def __init__(
        self, limits: Limits, monotonic: Callable[[], float], random_unit: Callable[[], float] = random.random
    ) -> None:
        self._limits = limits
        self._monotonic = monotonic
        self._random_unit = random_unit
        self._slots: dict[int, set[Timed]] = {}
        self._tick = self._tick_of(monotonic())

    @staticmethod
    def _tick_of(moment: float) -> int:
        return int(moment // TICK_SECONDS)

    def heartbeat_seconds(self) -> float:
        """The time to the next ping, jittered."""
        spread = self._limits.heartbeat_jitter * (2.0 * self._random_unit() - 1.0)
        return self._limits.heartbeat_seconds * (1.0 + spread)

    def schedule(self, timed: Timed, at: float) -> None:
        """Ask ``timed`` at ``at`` or within the tick after; replaces what was scheduled for it."""
        self.cancel(timed)
        # The tick that begins at or after the moment, so that what is due is due when asked.
        tick = max(self._tick + 1, -self._tick_of(-at))
        timed.wheel_tick = tick
        self._slots.setdefault(tick, set()).add(timed)

    def cancel(self, timed: Timed) -> None:
        """Do not ask it any more."""
        tick, timed.wheel_tick = timed.wheel_tick, None
        if tick is not None and tick in self._slots:
            slot = self._slots[tick]
            slot.discard(timed)
            if not slot:
                del self._slots[tick]

    def turn(self, now: float) -> None:
        """Ask everything whose tick has come."""
        latest = self._tick_of(now)
        while self._tick < latest:
            self._tick += 1
            for timed in self._slots.pop(self._tick, ()):
                timed.wheel_tick = None
                try:
                    again = timed.due(now)
                    if again is not None:
                        self.schedule(timed, again)
                except Exception:
                    logger.exception("a timed session failed")

    async def run(self) -> None:
        """Turn once per tick until cancelled."""
        while True:
            now = self._monotonic()
            await asyncio.sleep(TICK_SECONDS - now % TICK_SECONDS)
            if self._tick_of(self._monotonic()) - self._tick > LATE_TICKS:
                # What arrived while the process slept is still in the sockets: let it be read before anybody is
                # called silent.
                await asyncio.sleep(TICK_SECONDS / 10)
            self.turn(self._monotonic())
