from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, update
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.log import Head
from persistence.database import Database
from persistence.log import SqlEventLog, prune, renew_epochs
from persistence.tables import log as log_table
from tests.persistence.samples import Published, commit, event, sequencer

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


async def _fill(database: Database, **channels: int) -> None:
    """So many events on each booking's channel."""
    one = sequencer(database, Published())
    for booking, count in channels.items():
        for number in range(count):
            await commit(database, event(booking, number))
    while await one.run_once():
        pass


async def test_a_channel_has_its_epoch_before_its_first_event(database: Database) -> None:
    log = SqlEventLog(database)
    before = await log.heads(["booking:b1", "booking:b2"])
    assert before["booking:b1"].offset == 0
    assert before["booking:b1"].epoch != before["booking:b2"].epoch
    await _fill(database, b1=2)
    after = await SqlEventLog(database).heads(["booking:b1", "booking:b2"])
    assert after == {
        "booking:b1": Head(before["booking:b1"].epoch, 2),
        "booking:b2": Head(before["booking:b2"].epoch, 0),
    }
    assert await log.heads([]) == {}


async def test_another_database_has_other_epochs(database: Database) -> None:
    log = SqlEventLog(database)
    await _fill(database, b1=1)
    before = await log.heads(["booking:b1", "booking:none"])
    await renew_epochs(database)
    after = await log.heads(["booking:b1", "booking:none"])
    for channel in before:
        assert before[channel].epoch != after[channel].epoch
    await _fill(database, b1=1)
    assert await log.heads(["booking:b1"]) == {"booking:b1": Head(after["booking:b1"].epoch, 2)}


async def test_heads_of_very_many_channels(database: Database) -> None:
    await _fill(database, b7=1)
    heads = await SqlEventLog(database).heads([f"booking:b{number}" for number in range(1500)])
    assert len(heads) == 1500
    assert [channel for channel, head in heads.items() if head.offset] == ["booking:b7"]


async def test_a_channel_is_read_in_pages(database: Database) -> None:
    await _fill(database, b1=5, b2=1)
    log = SqlEventLog(database)
    first = await log.read("booking:b1", 0, 3)
    assert [entry.offset for entry in first] == [1, 2, 3]
    assert [entry.offset for entry in await log.read("booking:b1", 3, 3)] == [4, 5]
    assert await log.read("booking:b1", 5, 3) == []
    assert await log.read("booking:none", 0, 3) == []


@pytest.mark.parametrize("channels", [1, 5, 70])
async def test_many_channels_are_read_together(database: Database, channels: int) -> None:
    await _fill(database, b0=3, b1=2, b69=4)
    log = SqlEventLog(database)
    after = {f"booking:b{number}": number % 2 for number in range(channels)}
    found = await log.read_many(after, 2)
    assert found.keys() == after.keys()
    for channel, offset in after.items():
        assert list(found[channel]) == list(await log.read(channel, offset, 2))
    assert [entry.offset for entry in found["booking:b0"]] == [1, 2]
    assert await log.read_many({}, 10) == {}


async def test_the_tail_has_every_channel_in_sequence(database: Database) -> None:
    log = SqlEventLog(database)
    assert await log.cursor() == {0: 0}
    assert await log.tail({0: 0}, 10) == []
    await _fill(database, b1=2, b2=1)
    assert [entry.sequence for entry in await log.tail({0: 1}, 3)] == [2, 3, 4]
    cursor = await log.cursor()
    assert cursor == {0: 6}
    assert await log.tail(cursor, 10) == []


async def _age(database: Database, last_sequence: int) -> None:
    async def work(connection: AsyncConnection) -> None:
        old = update(log_table).where(log_table.c.sequence <= last_sequence).values(written_at=LONG_AGO)
        await connection.execute(old)

    await database.write(work)


async def test_old_entries_are_pruned_in_batches_and_the_floor_rises(database: Database) -> None:
    await _fill(database, b1=4, b2=2)  # sequences 1 to 8, then 9 to 12
    await _age(database, 6)
    before = datetime.now(UTC) - timedelta(days=1)
    removed = []
    while count := await prune(database, before, keep=1000, batch_rows=4):
        removed.append(count)
    assert removed == [4, 2]
    log = SqlEventLog(database)
    heads = await log.heads(["booking:b1", "booking:b2", "everybody"])
    assert {channel: (head.offset, head.floor) for channel, head in heads.items()} == {
        "booking:b1": (4, 3),
        "booking:b2": (2, 0),
        "everybody": (6, 3),
    }
    assert [entry.offset for entry in await log.read("booking:b1", 3, 10)] == [4]
    # Both ways of reading start at the first entry that is left.
    assert [entry.offset for entry in await log.read("everybody", 0, 2)] == [4, 5]
    assert [entry.offset for entry in (await log.read_many({"everybody": 0}, 2))["everybody"]] == [4, 5]
    # Numbering goes on where it was.
    await _fill(database, b1=1)
    assert (await log.heads(["booking:b1"]))["booking:b1"] == Head(heads["booking:b1"].epoch, 5, 3)


async def test_a_channel_keeps_only_its_newest_entries(database: Database) -> None:
    await _fill(database, b1=5, b2=2)
    while await prune(database, LONG_AGO, keep=3, batch_rows=2):
        pass
    log = SqlEventLog(database)
    assert [entry.offset for entry in await log.read("booking:b1", 0, 10)] == [3, 4, 5]
    assert [entry.offset for entry in await log.read("booking:b2", 0, 10)] == [1, 2]
    assert [entry.offset for entry in await log.read("everybody", 0, 10)] == [5, 6, 7]
    assert (await log.heads(["everybody"]))["everybody"].floor == 4


async def test_pruning_does_not_wait_for_entries_being_written(mysql: Database) -> None:
    await _fill(mysql, b1=20)
    await _age(mysql, 40)
    written, may_commit = asyncio.Event(), asyncio.Event()

    async def slow(connection: AsyncConnection) -> None:
        row = {"partition": 1, "sequence": 1, "channel": "c", "offset": 1, "event_class": "durable", "frame": b"{}"}
        await connection.execute(insert(log_table), row | {"key": None, "written_at": datetime.now(UTC)})
        written.set()
        await may_commit.wait()

    writing = asyncio.create_task(mysql.write(slow))
    await written.wait()
    assert await prune(mysql, datetime.now(UTC) - timedelta(days=1), keep=10) == 40
    assert mysql.retries == {}
    may_commit.set()
    await writing


async def test_a_wholly_pruned_channel_still_resumes_at_its_head(database: Database) -> None:
    await _fill(database, b1=2)
    await _age(database, 4)
    while await prune(database, datetime.now(UTC) - timedelta(days=1), keep=10):
        pass
    log = SqlEventLog(database)
    head = (await log.heads(["booking:b1"]))["booking:b1"]
    assert (head.offset, head.floor) == (2, 2)
    assert await log.read("booking:b1", 2, 10) == []
