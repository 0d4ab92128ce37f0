"""What every limiter at the doors must do. A test module subclasses :class:`LimiterContract` with a fixture `doors`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from domain.limits import Delays, Rate
from domain.ports import Limiter

DELAYS = Delays("d", free=3, first_seconds=1, longest_seconds=60, forget_seconds=3600)
RATE = Rate("r", per_second=0.5, burst=4)
SUBJECTS = ("ann", "bob")

SLACK = 0.9
"""Seconds that a slow machine may lose between two questions, where the clock is Redis's."""


@dataclass
class Doors:
    """Two nodes' limiters; the same one twice where there is but one process. ``advance`` lets seconds pass."""

    here: Limiter
    there: Limiter
    advance: Callable[[float], Awaitable[None]]


class LimiterContract:
    async def test_delays_grow_to_a_bound_and_never_beyond(self, doors: Doors) -> None:
        waits = []
        for _ in range(14):
            assert await doors.here.attempt(DELAYS, "ann") == 0
            await doors.there.failed(DELAYS, "ann")
            waits.append(await doors.here.attempt(DELAYS, "ann"))
            await doors.advance(waits[-1] + 0.001 if waits[-1] else 0)
        expected = [0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60]
        assert waits == pytest.approx(expected, abs=SLACK)
        assert await doors.here.attempt(DELAYS, "bob") == 0

    async def test_of_many_attempts_at_the_end_of_a_delay_one_is_let_through(self, doors: Doors) -> None:
        for _ in range(9):
            await doors.here.failed(DELAYS, "ann")
        assert await doors.there.attempt(DELAYS, "ann") == pytest.approx(32, abs=SLACK)
        await doors.advance(33)
        nodes = [doors.here, doors.there] * 5
        waits = await asyncio.gather(*(node.attempt(DELAYS, "ann") for node in nodes))
        assert sorted(waits)[0] == 0
        assert sorted(waits)[1:] == pytest.approx([32] * 9, abs=SLACK)

    async def test_of_many_charges_at_once_as_many_pass_as_one_after_the_other(self, doors: Doors) -> None:
        nodes = [doors.here, doors.there] * 20
        waits = await asyncio.gather(*(node.charge(DELAYS, "ann") for node in nodes))
        assert sorted(waits)[: DELAYS.free + 1] == [0] * (DELAYS.free + 1)
        assert sorted(waits)[DELAYS.free + 1 :] == pytest.approx([1] * 36, abs=SLACK)
        assert await doors.there.failures(DELAYS, "ann") == DELAYS.free + 1, "who is refused is not counted"
        await doors.advance(1.001)
        assert sorted(await asyncio.gather(*(node.charge(DELAYS, "ann") for node in nodes)))[:2] == [
            0,
            pytest.approx(2, abs=SLACK),
        ]

    async def test_charge_that_is_given_back_counts_for_nothing(self, doors: Doors) -> None:
        for _ in range(9):
            assert await doors.here.charge(DELAYS, "ann") == 0
            await doors.there.refund(DELAYS, "ann")
        assert await doors.here.failures(DELAYS, "ann") == 0
        await doors.here.refund(DELAYS, "ann")
        assert await doors.there.failures(DELAYS, "ann") == 0

    async def test_success_makes_it_forget(self, doors: Doors) -> None:
        for _ in range(9):
            await doors.here.failed(DELAYS, "ann")
        assert await doors.there.failures(DELAYS, "ann") == 9
        await doors.there.forget(DELAYS, "ann")
        assert (await doors.here.attempt(DELAYS, "ann"), await doors.here.failures(DELAYS, "ann")) == (0, 0)

    async def test_time_makes_it_forget_and_an_attempt_does_not_remind_it(self, doors: Doors) -> None:
        for _ in range(9):
            await doors.here.failed(DELAYS, "ann")
        await doors.advance(3000)
        assert await doors.here.failures(DELAYS, "ann") == 9
        assert await doors.here.attempt(DELAYS, "ann") == 0
        await doors.advance(601)
        assert await doors.here.failures(DELAYS, "ann") == 0

    async def test_rate_lets_a_burst_and_then_a_steady_stream(self, doors: Doors) -> None:
        nodes = [doors.here, doors.there] * 2
        assert [await node.take(RATE, "ann") for node in nodes] == [0, 0, 0, 0]
        wait = await doors.here.take(RATE, "ann")
        assert wait == pytest.approx(2, abs=SLACK)
        assert await doors.there.take(RATE, "ann") == pytest.approx(2, abs=SLACK), "a refusal costs nothing"
        await doors.advance(wait + 0.01)
        assert await doors.there.take(RATE, "ann") == 0
        assert await doors.here.take(RATE, "bob") == 0

    async def test_sorts_of_limits_do_not_meet(self, doors: Doors) -> None:
        for _ in range(9):
            await doors.here.failed(DELAYS, "ann")
        other = Delays("other", free=3, first_seconds=1, longest_seconds=60, forget_seconds=3600)
        assert await doors.here.attempt(other, "ann") == 0
        assert await doors.here.failures(other, "ann") == 0
