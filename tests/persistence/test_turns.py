from __future__ import annotations

import asyncio

import pytest

from domain.errors import Unavailable
from persistence.turns import Turns


async def _taker(turns: Turns, name: str, order: list[str], *, urgent: bool = False) -> None:
    await turns.take(urgent=urgent)
    order.append(name)
    turns.give()


async def test_turns_come_in_order_and_urgent_ones_first() -> None:
    turns = Turns(1, most_waiting=10, timeout_seconds=5)
    await turns.take()
    order: list[str] = []
    async with asyncio.TaskGroup() as group:
        for name in ("a", "b"):
            group.create_task(_taker(turns, name, order))
        await asyncio.sleep(0)
        group.create_task(_taker(turns, "u", order, urgent=True))
        await asyncio.sleep(0)
        turns.give()
    assert order == ["u", "a", "b"]


async def test_a_wait_that_is_too_long_is_refused_and_leaves_no_trace() -> None:
    turns = Turns(1, most_waiting=10, timeout_seconds=0.01)
    await turns.take()
    with pytest.raises(Unavailable):
        await turns.take()
    assert turns.waiting == 0
    turns.give()
    await turns.take()


async def test_one_more_than_may_wait_is_refused_at_once() -> None:
    turns = Turns(1, most_waiting=1, timeout_seconds=60)
    await turns.take()
    waiting = asyncio.create_task(turns.take())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await turns.take()
    turns.give()
    await waiting


async def test_a_turn_given_to_somebody_who_is_just_cancelled_goes_on_to_the_next() -> None:
    turns = Turns(1, most_waiting=10, timeout_seconds=5)
    await turns.take()
    first = asyncio.create_task(turns.take())
    second = asyncio.create_task(turns.take())
    await asyncio.sleep(0)
    turns.give()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    async with asyncio.timeout(1):
        await second
    turns.give()
    assert turns.waiting == 0
    await turns.take()
