"""The time that all nodes agree on.

Offers run out, timers fall due, tokens and one-time codes are judged by the time of day, on whichever node is asked. A
machine whose clock is minutes off would end offers that another has just made. So a node compares its clock with the
database's, as Cristian's algorithm does it (1989): the answer's moment is the middle between question and answer. If
the difference is more than clocks that are kept in order have, the database's time counts on this node too: for what
the product itself decides. What others sign (AWS, an identity provider) is judged by the machine's own clock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from domain.errors import Unavailable
from server.telemetry import Metrics, logger
from server.workers import pause

log = logger(__name__)

TOLERATED_SECONDS = 1.0
"""Clocks that NTP keeps differ by milliseconds; within this nobody is corrected, so that the time does not jitter."""

QUESTIONS = 3
"""For each comparison: the quickest answer is the most exact one."""


class SystemClock:
    """The time of day; see :class:`domain.ports.Clock`. It is this machine's until a :class:`ClockWatch` sets it.

    Once it was set it runs on by the monotonic clock, so it stays right when somebody sets the machine's.
    """

    def __init__(self) -> None:
        self._set: tuple[datetime, float] | None = None

    def now(self) -> datetime:
        if self._set is None:
            return datetime.now(UTC)
        moment, at = self._set
        return moment + timedelta(seconds=time.monotonic() - at)

    @property
    def is_set(self) -> bool:
        """Whether it shows another time than this machine does."""
        return self._set is not None

    def set(self, moment: datetime) -> None:
        """It is so late now."""
        self._set = moment, time.monotonic()

    def reset(self) -> None:
        """Show this machine's time."""
        self._set = None


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
        doubt, machine_ahead, shown_ahead = min([await self._compared() for _ in range(QUESTIONS)])
        self._metrics.clock_ahead_seconds.set(machine_ahead)
        if self._clock.is_set and abs(machine_ahead) + doubt < TOLERATED_SECONDS / 2:
            self._clock.reset()
            log.info("clock_corrected", consequence="this machine's time counts again")
        elif abs(shown_ahead) - doubt > TOLERATED_SECONDS:
            self._clock.set(self._clock.now() - timedelta(seconds=shown_ahead))
            ahead = round(machine_ahead, 3)
            log.warning(
                "clock_corrected", ahead_of_the_database_seconds=ahead, consequence="the database's time counts here"
            )

    async def _compared(self) -> tuple[float, float, float]:
        """By how much the comparison may be wrong, and by how much this machine's clock and the one that is shown are
        ahead of the database's, all in seconds.
        """
        machine, shown, began = datetime.now(UTC), self._clock.now(), time.monotonic()
        told = await self._ask()
        doubt = (time.monotonic() - began) / 2
        middle = told - timedelta(seconds=doubt)
        return doubt, (machine - middle).total_seconds(), (shown - middle).total_seconds()
