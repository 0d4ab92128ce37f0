from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from channels.lookups import Batch
from domain.errors import Unavailable
from tests.channels.fakes import until


class Loads:
    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, keys: list[int]) -> Mapping[int, int]:
        self.calls.append(keys)
        await self.gate.wait()
        return {key: key * 10 for key in keys}


async def test_questions_of_one_moment_share_a_query() -> None:
    load = Loads()
    batch: Batch[int, int] = Batch(load)
    answers = await asyncio.gather(*(batch.get([n, n + 1]) for n in range(50)))
    assert len(load.calls) == 1
    assert all(answer[n] == n * 10 for n, answer in enumerate(answers))


async def test_a_question_is_answered_by_a_query_that_began_after_it() -> None:
    load = Loads()
    load.gate.clear()
    batch: Batch[int, int] = Batch(load)
    first = asyncio.create_task(batch.get([1]))
    await until(lambda: bool(load.calls))
    later = [asyncio.create_task(batch.get([n])) for n in (1, 2)]
    await asyncio.sleep(0)
    load.gate.set()
    await asyncio.gather(first, *later)
    assert load.calls == [[1], [1, 2]]


async def test_one_who_gives_up_does_not_take_the_answer_from_others() -> None:
    load = Loads()
    load.gate.clear()
    batch: Batch[int, int] = Batch(load)
    impatient, patient = asyncio.create_task(batch.get([1])), asyncio.create_task(batch.get([1]))
    await until(lambda: bool(load.calls))
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    load.gate.set()
    assert (await patient)[1] == 10


async def test_a_slow_query_is_given_up() -> None:
    load = Loads()
    load.gate.clear()
    batch: Batch[int, int] = Batch(load, timeout_seconds=0.01)
    with pytest.raises(Unavailable):
        await batch.get([1])
    load.gate.set()
    assert (await batch.get([2]))[2] == 20


async def test_a_failure_reaches_everybody_who_asked_and_nobody_after() -> None:
    failing = True

    async def load(keys: list[int]) -> Mapping[int, int]:
        if failing:
            raise KeyError
        return dict.fromkeys(keys, 0)

    batch: Batch[int, int] = Batch(load)
    results = await asyncio.gather(batch.get([1]), batch.get([2]), return_exceptions=True)
    assert [type(result) for result in results] == [KeyError, KeyError]
    failing = False
    assert await batch.get([1]) == {1: 0}


async def test_many_keys_are_asked_in_several_queries() -> None:
    load = Loads()
    batch: Batch[int, int] = Batch(load, max_keys=10)
    assert len(await batch.get(range(25))) == 25
    assert [len(keys) for keys in load.calls] == [10, 10, 5]
    await batch.close()
