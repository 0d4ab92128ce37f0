from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta, tzinfo

import pytest
from structlog.testing import capture_logs

from domain.errors import Unavailable
from server.clock import ClockWatch, SystemClock
from server.telemetry import Metrics


class FarClock:
    """The database's: so much later than this machine's, and so long in answering, one after the other."""

    def __init__(self, later_seconds: float = 0.0, *delays: float) -> None:
        self.later_seconds = later_seconds
        self.delays = list(delays)
        self.away = False

    async def __call__(self) -> datetime:
        if self.away:
            raise Unavailable
        delay = self.delays.pop(0) if self.delays else 0.0
        await asyncio.sleep(delay)
        told = datetime.now(UTC) + timedelta(seconds=self.later_seconds)
        await asyncio.sleep(delay)
        return told


def watched(far: FarClock, every_seconds: float = 10.0) -> tuple[SystemClock, ClockWatch, Metrics]:
    clock, metrics = SystemClock(), Metrics()
    return clock, ClockWatch(far, clock, metrics, every_seconds), metrics


def off(clock: SystemClock, by_seconds: float) -> bool:
    """Whether it shows this machine's time and so much."""
    return abs((clock.now() - datetime.now(UTC)).total_seconds() - by_seconds) < 0.2


@pytest.mark.parametrize("later", [300.0, -300.0, 1.5])
async def test_a_clock_that_is_off_shows_the_databases_time(later: float) -> None:
    clock, watch, metrics = watched(FarClock(later))
    with capture_logs() as logs:
        await watch.look()
    assert [line["event"] for line in logs] == ["clock_corrected"]
    assert off(clock, later)
    assert metrics.clock_ahead_seconds._value.get() == pytest.approx(-later, abs=0.2)


@pytest.mark.parametrize("later", [0.0, 0.8, -0.8])
async def test_small_differences_are_left_alone(later: float) -> None:
    clock, watch, _ = watched(FarClock(later))
    await watch.look()
    assert not clock.is_set


async def test_a_correction_stays_as_it_is_while_it_is_good_enough() -> None:
    far = FarClock(300.0)
    clock, watch, _ = watched(far)
    await watch.look()
    far.later_seconds = 300.7
    await watch.look()
    assert off(clock, 300.0)
    far.later_seconds = 302.0
    await watch.look()
    assert off(clock, 302.0)


async def test_a_clock_that_was_set_right_counts_again() -> None:
    far = FarClock(2.0)
    clock, watch, _ = watched(far)
    await watch.look()
    far.later_seconds = 0.0
    await watch.look()
    assert not clock.is_set


async def test_the_quickest_answer_counts() -> None:
    # Of slow ones the way there and the way back are as long here; one that is not would mislead by half of both.
    clock, watch, _ = watched(FarClock(300.0, 0.3, 0.0, 0.3))
    await watch.look()
    assert off(clock, 300.0)


async def test_what_slow_answers_leave_open_corrects_nothing() -> None:
    # The quickest took 1.2 s, so a clock that seems to be off by 1.4 s may as well be right.
    clock, watch, _ = watched(FarClock(1.4, 0.6, 0.6, 0.6))
    await watch.look()
    assert not clock.is_set


async def test_a_correction_is_not_taken_back_on_a_vague_answer() -> None:
    far = FarClock(2.0)
    clock, watch, _ = watched(far)
    await watch.look()
    far.later_seconds, far.delays = 0.3, [0.3, 0.3, 0.3]
    await watch.look()
    assert clock.is_set


async def test_a_clock_at_the_very_edge_does_not_jump_to_and_fro() -> None:
    far = FarClock(1.01)
    clock, watch, _ = watched(far)
    await watch.look()
    for later in (0.99, 1.02, 0.98):
        far.later_seconds = later
        await watch.look()
        assert clock.is_set


async def test_a_corrected_clock_does_not_follow_when_the_machines_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, watch, _ = watched(FarClock(300.0))
    await watch.look()
    before = clock.now()

    class Repaired(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Repaired:
            return cls.fromtimestamp(time.time() + 300.0, tz)

    monkeypatch.setattr("server.clock.datetime", Repaired)
    assert abs((clock.now() - before).total_seconds()) < 1.0


async def test_an_outage_leaves_the_clock_and_does_not_end_the_watch() -> None:
    far = FarClock(300.0)
    clock, watch, _ = watched(far, every_seconds=0.01)
    await watch.look()
    stop = asyncio.Event()
    running = asyncio.create_task(watch.run(stop))
    far.away = True
    await asyncio.sleep(0.05)
    assert off(clock, 300.0)
    far.away, far.later_seconds = False, 600.0
    async with asyncio.timeout(5):
        while not off(clock, 600.0):  # noqa: ASYNC110 — a clock tells nobody that it was corrected
            await asyncio.sleep(0.01)
    stop.set()
    await running
