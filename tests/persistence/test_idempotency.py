from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, select, update

from domain.errors import KeyReused, OfferTaken
from domain.types import JSON
from persistence.database import Database
from persistence.idempotency import prune_keys
from persistence.outbox import outbox_stats
from persistence.tables import read_marks
from persistence.unit_of_work import UnitOfWork
from tests.persistence.samples import ORIGIN, event, transactions


async def _command(database: Database, effects: list[str], key: str = "k", fingerprint: str = "f") -> JSON:
    async def work(unit: UnitOfWork) -> JSON:
        async def act() -> JSON:
            effects.append(key)
            unit.record(event("b1"))
            await asyncio.sleep(0.005)
            return {"number": len(effects)}

        return await unit.keys.once("u1", key, fingerprint, unit.now, act)

    return await transactions(database).write(work, ORIGIN)


async def test_a_retry_gets_the_stored_result_and_has_no_effect(database: Database) -> None:
    effects: list[str] = []
    assert await _command(database, effects) == {"number": 1}
    assert await _command(database, effects) == {"number": 1}
    assert effects == ["k"]
    assert (await outbox_stats(database)).rows == 1
    # A key is the same only to the letter.
    assert await _command(database, effects, key="K") == {"number": 2}


async def test_a_key_used_for_something_else_is_refused(database: Database) -> None:
    await _command(database, [])
    with pytest.raises(KeyReused):
        await _command(database, [], fingerprint="other")


async def test_attempts_that_race_have_one_effect_and_one_answer(database: Database) -> None:
    effects: list[str] = []
    answers = await asyncio.gather(*(_command(database, effects) for _ in range(8)))
    assert len({answer["number"] for answer in answers}) == 1
    assert (await outbox_stats(database)).rows == 1


async def test_a_racing_retry_is_not_told_that_its_own_first_attempt_was_in_the_way(database: Database) -> None:
    """Both attempts lock the same row; the second sees it taken, by the first attempt of the very same command."""
    row = read_marks.c.user_id == "offer"

    async def prepare(unit: UnitOfWork) -> None:
        values = {"conversation_id": "c", "user_id": "offer", "read_offset": 0}
        await unit.connection.execute(insert(read_marks), values)

    await transactions(database).write(prepare, ORIGIN)

    async def accept(key: str) -> JSON:
        async def work(unit: UnitOfWork) -> JSON:
            async def act() -> JSON:
                taken = await unit.connection.scalar(select(read_marks.c.read_offset).where(row).with_for_update())
                if taken:
                    raise OfferTaken
                await unit.connection.execute(update(read_marks).where(row).values(read_offset=1))
                await asyncio.sleep(0.02)
                return {"winner": key}

            return await unit.keys.once("u1", key, "f", unit.now, act)

        return await transactions(database).write(work, ORIGIN)

    assert await asyncio.gather(*(accept("k") for _ in range(5))) == [{"winner": "k"}] * 5
    with pytest.raises(OfferTaken):
        await accept("another key")


async def test_a_refusal_is_not_kept(database: Database) -> None:
    async def refused(unit: UnitOfWork) -> JSON:
        async def act() -> JSON:
            raise OfferTaken

        return await unit.keys.once("u1", "k", "f", unit.now, act)

    with pytest.raises(OfferTaken):
        await transactions(database).write(refused, ORIGIN)
    assert await _command(database, []) == {"number": 1}


async def test_pruning_does_not_wait_for_commands_that_are_under_way(mysql: Database) -> None:
    now = datetime.now(UTC)
    stored, may_commit = asyncio.Event(), asyncio.Event()

    async def old(unit: UnitOfWork) -> None:
        for number in range(30):
            await unit.keys.store("u1", f"old{number}", "f", {}, now - timedelta(hours=30))

    async def slow(unit: UnitOfWork) -> None:
        await unit.keys.store("u1", "new", "f", {}, now)
        stored.set()
        await may_commit.wait()

    await transactions(mysql).write(old, ORIGIN)
    command = asyncio.create_task(transactions(mysql).write(slow, ORIGIN))
    await stored.wait()
    assert await prune_keys(mysql, now - timedelta(hours=24)) == 30
    assert mysql.retries == {}
    may_commit.set()
    await command


async def test_old_keys_are_pruned_in_batches(database: Database) -> None:
    now = datetime.now(UTC)

    async def fill(unit: UnitOfWork) -> None:
        for number in range(25):
            await unit.keys.store("u1", f"old{number}", "f", {}, now - timedelta(hours=30, seconds=number))
        await unit.keys.store("u1", "new", "f", {"kept": True}, now)

    await transactions(database).write(fill, ORIGIN)
    removed = []
    while count := await prune_keys(database, now - timedelta(hours=24), batch_rows=10):
        removed.append(count)
    assert removed == [10, 10, 5]

    async def find(unit: UnitOfWork) -> tuple[object, object]:
        return await unit.keys.find("u1", "old3"), await unit.keys.find("u1", "new")

    assert await transactions(database).read(find) == (None, ("f", {"kept": True}))
