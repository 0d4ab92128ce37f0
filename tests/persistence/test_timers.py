from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from domain.ports import Timer
from persistence.database import Database
from persistence.timers import SqlTimers

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


async def _set(database: Database, **seconds_after_noon: float) -> None:
    async def work(connection: AsyncConnection) -> None:
        for name, seconds in seconds_after_noon.items():
            await SqlTimers(connection).set(name, NOON + timedelta(seconds=seconds), "offer.expire", {"for": name})

    await database.write(work)


async def _due(database: Database, now: datetime, limit: int = 10) -> list[Timer]:
    async def work(connection: AsyncConnection) -> list[Timer]:
        return list(await SqlTimers(connection).due(now, limit))

    return await database.write(work)


async def test_due_timers_come_oldest_first(database: Database) -> None:
    await _set(database, late=5, early=-5.000001, now=0, later=5)
    assert [timer.name for timer in await _due(database, NOON)] == ["early", "now"]
    assert [timer.name for timer in await _due(database, NOON, limit=1)] == ["early"]
    first = (await _due(database, NOON, limit=1))[0]
    assert first == Timer("early", "offer.expire", NOON - timedelta(seconds=5, microseconds=1), {"for": "early"}, 0)


async def test_setting_a_timer_again_moves_it_and_cancelling_removes_it(database: Database) -> None:
    await _set(database, a=-1, b=-1)
    await _set(database, a=60)

    async def cancel(connection: AsyncConnection) -> datetime | None:
        await SqlTimers(connection).cancel("b")
        return await SqlTimers(connection).next_due_at()

    assert await database.write(cancel) == NOON + timedelta(seconds=60)
    assert await _due(database, NOON) == []


async def test_a_worker_learns_when_to_wake(database: Database) -> None:
    async def next_due_at(connection: AsyncConnection) -> datetime | None:
        return await SqlTimers(connection).next_due_at()

    assert await database.read(next_due_at) is None
    await _set(database, b=9, a=3)
    assert await database.read(next_due_at) == NOON + timedelta(seconds=3)


async def test_two_workers_do_each_timer_once(database: Database) -> None:
    await _set(database, **{f"t{number:02}": -number for number in range(40)})
    done: list[str] = []

    async def worker() -> None:
        while True:

            async def work(connection: AsyncConnection) -> list[str]:
                timers = SqlTimers(connection)
                claimed = await timers.due(NOON, 3)
                await asyncio.sleep(0.002)
                for timer in claimed:
                    await timers.done(timer)
                return [timer.name for timer in claimed]

            names = await database.write(work)
            if not names:
                return
            done.extend(names)

    await asyncio.gather(*(worker() for _ in range(4)))
    assert sorted(done) == [f"t{number:02}" for number in range(40)]


async def test_workers_do_not_wait_for_each_other_on_mysql(mysql: Database) -> None:
    await _set(mysql, a=-2, b=-1)
    claimed = asyncio.Barrier(2)

    async def worker() -> str:
        async def work(connection: AsyncConnection) -> str:
            timer = (await SqlTimers(connection).due(NOON, 1))[0]
            await claimed.wait()
            await SqlTimers(connection).done(timer)
            return timer.name

        return await mysql.write(work)

    async with asyncio.timeout(5):
        assert sorted(await asyncio.gather(worker(), worker())) == ["a", "b"]


async def test_a_timer_whose_handler_was_rolled_back_is_due_again_later(database: Database) -> None:
    await _set(database, a=-1)
    timer = (await _due(database, NOON))[0]
    pauses = []
    for attempts in range(12):

        async def failed(connection: AsyncConnection, failing: Timer = timer) -> datetime:
            return await SqlTimers(connection).failed(failing, NOON)

        again_at = await database.write(failed)
        pauses.append((again_at - NOON).total_seconds())
        assert await _due(database, again_at - timedelta(microseconds=1)) == []
        timer = (await _due(database, again_at))[0]
        assert timer.attempts == attempts + 1
    assert 0.5 <= pauses[0] <= 1
    assert 150 <= pauses[-1] <= 300


async def test_a_timer_that_its_handler_moved_is_not_removed_as_done(database: Database) -> None:
    await _set(database, a=-1)

    async def work(connection: AsyncConnection) -> None:
        timers = SqlTimers(connection)
        timer = (await timers.due(NOON, 1))[0]
        await timers.set("a", NOON + timedelta(seconds=30), "offer.expire", {})
        await timers.done(timer)

    await database.write(work)
    assert [timer.name for timer in await _due(database, NOON + timedelta(minutes=1))] == ["a"]
