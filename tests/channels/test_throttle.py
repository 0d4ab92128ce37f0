"""Growing delays and rates by subject, in bounded memory."""

from __future__ import annotations

import pytest

from channels.throttle import InProcessLimiter
from domain.limits import Delays, Rate

DELAYS = Delays("d", free=3, first_seconds=1, longest_seconds=60, forget_seconds=3600)


class Watch:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watch() -> Watch:
    return Watch()


async def test_delays_grow_to_a_bound_and_never_beyond(watch: Watch) -> None:
    limiter = InProcessLimiter(clock=watch)
    waits = []
    for _ in range(40):
        assert await limiter.attempt(DELAYS, "ann") == 0
        await limiter.failed(DELAYS, "ann")
        waits.append(await limiter.attempt(DELAYS, "ann"))
        watch.now += waits[-1]
    assert waits[:10] == [0, 0, 0, 1, 2, 4, 8, 16, 32, 60]
    assert set(waits[9:]) == {60}
    assert await limiter.attempt(DELAYS, "bob") == 0
    assert DELAYS.after(10**9) == 60


async def test_of_many_attempts_at_the_end_of_a_delay_one_is_let_through(watch: Watch) -> None:
    limiter = InProcessLimiter(clock=watch)
    for _ in range(5):
        await limiter.failed(DELAYS, "ann")
    watch.now += 2
    assert [await limiter.attempt(DELAYS, "ann") == 0 for _ in range(5)] == [True, False, False, False, False]


async def test_success_and_time_make_it_forget(watch: Watch) -> None:
    limiter = InProcessLimiter(clock=watch)
    for _ in range(9):
        await limiter.failed(DELAYS, "ann")
    assert await limiter.failures(DELAYS, "ann") == 9
    await limiter.forget(DELAYS, "ann")
    assert (await limiter.attempt(DELAYS, "ann"), await limiter.failures(DELAYS, "ann")) == (0, 0)
    await limiter.failed(DELAYS, "ann")
    watch.now += 3601
    assert await limiter.failures(DELAYS, "ann") == 0


async def test_rate_lets_a_burst_and_then_a_steady_stream(watch: Watch) -> None:
    limiter, rate = InProcessLimiter(clock=watch), Rate("r", per_second=2, burst=4)
    assert [await limiter.take(rate, "1.2.3.4") for _ in range(4)] == [0, 0, 0, 0]
    wait = await limiter.take(rate, "1.2.3.4")
    assert wait == pytest.approx(0.5)
    watch.now += wait
    assert await limiter.take(rate, "1.2.3.4") == 0
    assert await limiter.take(rate, "5.6.7.8") == 0


async def test_a_flood_of_subjects_takes_bounded_memory(watch: Watch) -> None:
    limiter = InProcessLimiter(size=100, clock=watch)
    for number in range(10_000):
        await limiter.failed(DELAYS, f"subject {number}")
        await limiter.take(Rate("r", 1, 1), f"subject {number}")
    assert len(limiter._failures) == len(limiter._buckets) == 100
