"""A deadline ends a block, however often a library overhears it."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from persistence.deadline import Deadline


async def test_in_time_nothing_happens() -> None:
    async with Deadline(5) as deadline:
        await asyncio.sleep(0)
    assert not deadline.expired()
    await asyncio.sleep(0)


async def test_too_late_is_a_timeout() -> None:
    deadline = Deadline(0.01)
    with pytest.raises(TimeoutError):
        async with deadline:
            await asyncio.sleep(60)
    assert deadline.expired()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_block_that_swallows_cancellations_is_cancelled_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persistence.deadline.AGAIN_SECONDS", 0.01)
    swallowed = 0

    async def block() -> None:
        nonlocal swallowed
        async with Deadline(0.01):
            for _ in range(3):
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)
                swallowed += 1
            await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        await block()
    assert swallowed == 3
    await asyncio.sleep(0.05)  # and not once more


async def test_a_block_that_ends_by_itself_after_all_has_its_result() -> None:
    deadline = Deadline(0.01)
    async with deadline:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
    assert deadline.expired()
    await asyncio.sleep(0)


async def test_an_error_of_the_block_stays_what_it_is() -> None:
    async def block() -> None:
        async with Deadline(0.01):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise ValueError("own") from None

    with pytest.raises(ValueError, match="own"):
        await block()


async def test_a_cancellation_from_outside_goes_through() -> None:
    async def block() -> None:
        async with Deadline(5):
            await asyncio.sleep(60)

    task = asyncio.create_task(block())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_whoever_wants_the_task_to_end_at_the_same_moment_is_not_overheard() -> None:
    async def block() -> None:
        async with Deadline(0.01):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                task.cancel()
                raise

    task = asyncio.create_task(block())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_deadlines_nest() -> None:
    outer = Deadline(0.01)
    with pytest.raises(TimeoutError):
        async with outer, Deadline(5):
            await asyncio.sleep(60)
    inner = Deadline(0.01)
    async with Deadline(5) as outer:
        with pytest.raises(TimeoutError):
            async with inner:
                await asyncio.sleep(60)
    assert not outer.expired()
