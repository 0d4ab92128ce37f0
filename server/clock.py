"""The time that all nodes agree on.

Offers run out, timers fall due, tokens and one-time codes are judged by the time of day, on whichever node is asked. A
machine whose clock is minutes off would end offers that another has just made. So a node compares its clock with the
database's, as Cristian's algorithm does it (1989): the answer's moment is the middle between question and answer. If
the difference is more than clocks that are kept in order have, the database's time counts on this node too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import structlog

from domain.errors import Unavailable
from server.telemetry import Metrics
from server.workers import pause

log = structlog.get_logger(__name__)

TOLERATED_SECONDS = 1.0
"""Clocks that NTP keeps differ by milliseconds; within this nobody is corrected, so that the time does not jitter."""

QUESTIONS = 3
"""For each comparison: the quickest answer is the most exact one."""


class SystemClock:
    """The time of day; see :class:`domain.ports.Clock`.

    Attributes:
        correction: added to what this machine takes for the time; set by a :class:`ClockWatch`.
    """

    def __init__(self) -> None:
        self.correction = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.correction


class ClockWatch:
    """Keeps a clock at the database's time.

    Args:
        ask: the database's time of day, aware UTC.
    """

    def __init__(
        self, ask: Callable[[], Awaitable[datetime]], clock: SystemClock, metrics: Metrics, every_seconds: float = 10.0
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._metrics = metrics
        self._every_seconds = every_seconds

    async def run(self, stop: asyncio.Event) -> None:
        """Compare again and again. An outage of the database leaves the clock as it is."""
        while not stop.is_set():
            await pause(stop, self._every_seconds)
            try:
                await self.look()
            except Unavailable:
                continue

    async def look(self) -> None:
        """Compare once, and correct the clock if it has to be.

        Raises:
            Unavailable: the database is away.
        """
        took, ahead = min([await self._compared() for _ in range(QUESTIONS)])
        if took / 2 > TOLERATED_SECONDS:
            return  # The answer may be as wrong as the clock.
        self._metrics.clock_ahead_seconds.set(ahead)
        wanted = -ahead if abs(ahead) > TOLERATED_SECONDS else 0.0
        present = self._clock.correction.total_seconds()
        if wanted != present and (abs(wanted - present) > TOLERATED_SECONDS or wanted == 0.0):
            self._clock.correction = timedelta(seconds=wanted)
            tell = log.warning if wanted else log.info
            consequence = "the database's time counts here" if wanted else "this machine's time counts again"
            tell("clock_corrected", ahead_of_the_database_seconds=round(ahead, 3), consequence=consequence)

    async def _compared(self) -> tuple[float, float]:
        """How long the answer took, and by how much this machine's clock is ahead of it, both in seconds."""
        asked, began = datetime.now(UTC), time.monotonic()
        told = await self._ask()
        took = time.monotonic() - began
        return took, (asked + timedelta(seconds=took / 2) - told).total_seconds()
