from __future__ import annotations

import asyncio

import pytest

from channels.heartbeat import Wheel
from channels.limits import Limits
from tests.channels.fakes import Seconds, until


class Timed:
    def __init__(self, *answers: float | None) -> None:
        self.wheel_tick: int | None = None
        self.asked: list[float] = []
        self._answers = list(answers)

    def due(self, now: float) -> float | None:
        self.asked.append(now)
        return self._answers.pop(0) if self._answers else None


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
def wheel(seconds: Seconds) -> Wheel:
    return Wheel(Limits(), seconds)


def advance(wheel: Wheel, seconds: Seconds, span: float) -> None:
    for _ in range(int(span)):
        seconds.now += 1
        wheel.turn(seconds.now)


def test_a_session_is_asked_within_a_tick_after_its_time_and_never_before(wheel: Wheel, seconds: Seconds) -> None:
    timed = Timed()
    wheel.schedule(timed, seconds.now + 10.2)
    advance(wheel, seconds, 10)
    assert timed.asked == []
    advance(wheel, seconds, 1)
    assert timed.asked == [1011.0]
    advance(wheel, seconds, 100)
    assert len(timed.asked) == 1, "who says nothing is not asked again"


def test_it_is_asked_again_when_it_says(wheel: Wheel, seconds: Seconds) -> None:
    timed = Timed(1020.0, 1300.0)
    wheel.schedule(timed, 1005.0)
    advance(wheel, seconds, 400)
    assert timed.asked == [1005.0, 1020.0, 1300.0]


def test_scheduling_again_replaces_and_cancelling_ends(wheel: Wheel, seconds: Seconds) -> None:
    moved, cancelled = Timed(), Timed()
    wheel.schedule(moved, 1005.0)
    wheel.schedule(moved, 1050.0)
    wheel.schedule(cancelled, 1005.0)
    wheel.cancel(cancelled)
    wheel.cancel(cancelled)
    advance(wheel, seconds, 60)
    assert (moved.asked, cancelled.asked) == ([1050.0], [])
    assert wheel._slots == {}


def test_what_is_overdue_is_asked_in_the_next_tick(wheel: Wheel, seconds: Seconds) -> None:
    timed = Timed()
    wheel.schedule(timed, 3.0)
    advance(wheel, seconds, 1)
    assert len(timed.asked) == 1


def test_a_wheel_that_slept_asks_everybody(wheel: Wheel, seconds: Seconds) -> None:
    sleepers = [Timed() for _ in range(50)]
    for place, timed in enumerate(sleepers):
        wheel.schedule(timed, seconds.now + place)
    seconds.now += 500
    wheel.turn(seconds.now)
    assert all(timed.asked == [1500.0] for timed in sleepers)


def test_one_failing_session_does_not_stop_the_others(
    wheel: Wheel, seconds: Seconds, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Timed):
        def due(self, now: float) -> float | None:
            raise RuntimeError

    others = [Timed(), Failing(), Timed()]
    for timed in others:
        wheel.schedule(timed, 1001.0)
    advance(wheel, seconds, 1)
    assert [len(timed.asked) for timed in others] == [1, 0, 1]
    assert "a timed session failed" in caplog.text


@pytest.mark.parametrize(("unit", "expected"), [(0.0, 22.5), (0.5, 25.0), (1.0, 27.5)])
def test_heartbeats_are_jittered_around_the_setting(seconds: Seconds, unit: float, expected: float) -> None:
    wheel = Wheel(Limits(), seconds, random_unit=lambda: unit)
    assert wheel.heartbeat_seconds() == pytest.approx(expected)


async def test_the_wheel_turns_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("channels.heartbeat.TICK_SECONDS", 0.01)
    loop = asyncio.get_running_loop()
    wheel = Wheel(Limits(), loop.time)
    timed = Timed()
    wheel.schedule(timed, loop.time() + 0.03)
    task = asyncio.create_task(wheel.run())
    await until(lambda: bool(timed.asked))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
