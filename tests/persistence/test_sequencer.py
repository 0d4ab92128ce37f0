from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.events import EventClass
from domain.log import Entry
from persistence.database import Database, DatabaseOptions, OutcomeUnknown
from persistence.log import SqlEventLog
from persistence.outbox import outbox_stats, partition_of
from persistence.sequencer import Sequencer
from persistence.tables import conversations, outbox, outbox_parked
from persistence.unit_of_work import UnitOfWork
from tests.persistence.samples import ORIGIN, Published, commit, event, said, sequencer, transactions


async def _all(database: Database) -> list[Entry]:
    return list(await SqlEventLog(database).tail({0: 0, 1: 0, 2: 0}, 100_000))


def _by_channel(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    channels: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        channels[entry.channel].append(entry)
    return channels


async def _leads(one: Sequencer) -> None:
    async with asyncio.timeout(10):
        while not one.leading:  # noqa: ASYNC110  # it has no event for what only a test waits for
            await asyncio.sleep(0.005)


async def _drain(one: Sequencer) -> None:
    while await one.run_once():
        pass


async def test_one_event_takes_the_next_place_on_each_of_its_channels(database: Database) -> None:
    published = Published()
    one = sequencer(database, published)
    await commit(database, event("b1"), event("b2"), event("b1", 1, EventClass.LATEST))
    assert await one.run_once() == 3
    assert [(entry.channel, entry.offset, entry.sequence) for entry in published.entries] == [
        ("booking:b1", 1, 1),
        ("everybody", 1, 2),
        ("booking:b2", 1, 3),
        ("everybody", 2, 4),
        ("booking:b1", 2, 5),
        ("everybody", 3, 6),
    ]
    assert published.entries == await _all(database)
    assert said(published.entries[4]) == {
        "channel": "booking:b1",
        "offset": 2,
        "correlationid": "corr-1",
        "data": {"number": 1},
    }
    assert (published.entries[4].event_class, published.entries[4].key) == (EventClass.LATEST, "b1")
    assert await one.run_once() == 0
    assert (await outbox_stats(database)).rows == 0


async def test_sixteen_writers_leave_no_gap_and_keep_each_aggregates_order(database: Database) -> None:
    aggregates, writers, rounds = 5, 16, 12
    now = datetime.now(UTC)
    audit = {"created_at": now, "created_by": "t", "updated_at": now, "updated_by": "t"}

    async def prepare(connection: AsyncConnection) -> None:
        rows = [{"id": f"a{n}", "last_offset": 0, **audit} for n in range(aggregates)]
        await connection.execute(insert(conversations), rows)

    await database.write(prepare)
    published = Published()
    one = sequencer(database, published, batch_rows=7)
    stop = asyncio.Event()
    running = asyncio.create_task(one.run(stop))
    commands = transactions(database, one.nudge)

    async def writer(number: int) -> None:
        for turn in range(rounds):
            aggregate = f"a{(number + turn) % aggregates}"

            async def work(unit: UnitOfWork, aggregate: str = aggregate) -> None:
                # The aggregate's row is locked first; its counter says in which order transactions had it.
                row = conversations.c.id == aggregate
                count = await unit.connection.scalar(select(conversations.c.last_offset).where(row).with_for_update())
                assert count is not None
                await unit.connection.execute(update(conversations).where(row).values(last_offset=count + 1))
                unit.record(event(aggregate, 2 * count))
                unit.record(event(aggregate, 2 * count + 1))

            await commands.write(work, ORIGIN)

    async with asyncio.TaskGroup() as group:
        for number in range(writers):
            group.create_task(writer(number))
    total = writers * rounds * 2 * 2
    await published.count(total)
    stop.set()
    await running

    entries = await _all(database)
    assert published.entries == entries
    assert [entry.sequence for entry in entries] == list(range(1, total + 1))
    channels = _by_channel(entries)
    for channel, along in channels.items():
        assert [entry.offset for entry in along] == list(range(1, len(along) + 1))
        if channel.startswith("booking:"):
            assert [said(entry)["data"]["number"] for entry in along] == list(range(len(along)))
    assert len(channels["everybody"]) == total // 2


@pytest.mark.parametrize("others", [1, 30, 400])
async def test_a_transaction_that_commits_late_with_a_smaller_id_is_neither_waited_for_nor_skipped(
    mysql: Database, others: int
) -> None:
    one = sequencer(mysql, Published())
    wrote, may_commit = asyncio.Event(), asyncio.Event()

    async def slow(connection: AsyncConnection) -> None:
        await connection.execute(insert(outbox), _row("slow"))
        wrote.set()
        await may_commit.wait()

    late = asyncio.create_task(mysql.write(slow))
    await wrote.wait()
    await commit(mysql, *(event("fast") for _ in range(others)))
    assert await one.run_once() == others
    assert mysql.retries == {}
    may_commit.set()
    await late
    assert await one.run_once() == 1
    channels = [entry.channel for entry in await _all(mysql)]
    assert channels == ["booking:fast", "everybody"] * others + ["booking:slow", "everybody"]


def _row(source: str) -> dict[str, object]:
    happened = event(source)
    return {
        "partition": 0,
        "event_id": happened.id,
        "type": happened.type,
        "source": happened.source,
        "time": happened.time,
        "event_class": "durable",
        "key": None,
        "audience": happened.audience,
        "data": happened.data,
        "correlation_id": "c",
        "traceparent": None,
    }


async def test_what_was_committed_but_never_published_is_in_the_log(database: Database) -> None:
    async def broken(entries: Sequence[Entry]) -> None:
        raise ConnectionError("the broker is away")

    one = sequencer(database, broken)
    await commit(database, event("b1"))
    assert await one.run_once() == 1
    assert one.counts.unpublished == 2
    log = SqlEventLog(database)
    assert [said(entry)["channel"] for entry in await log.tail({0: 0}, 10)] == ["booking:b1", "everybody"]
    assert await log.cursor() == {0: 2}
    # Its successor goes on after it.
    published = Published()
    two = sequencer(database, published)
    await commit(database, event("b1"))
    await two.run_once()
    assert [(entry.channel, entry.offset) for entry in published.entries] == [("booking:b1", 2), ("everybody", 2)]


async def test_a_stalled_broker_does_not_stall_sequencing(database: Database) -> None:
    async def stalled(entries: Sequence[Entry]) -> None:
        await asyncio.sleep(3600)

    one = sequencer(database, stalled, publish_timeout_seconds=0.3)
    stop = asyncio.Event()
    running = asyncio.create_task(one.run(stop))
    for number in range(3):
        await commit(database, event("b1", number))
        one.nudge()
    async with asyncio.timeout(5):
        while (await outbox_stats(database)).rows:  # noqa: ASYNC110  # a database is polled
            await asyncio.sleep(0.01)
    assert len(await _all(database)) == 6
    stop.set()
    await running
    assert one.counts.unpublished == 6


@pytest.mark.parametrize("poison", ["route", "encode"])
async def test_a_poison_event_is_parked_with_its_error_and_the_rest_flows(database: Database, poison: str) -> None:
    published = Published()
    one = sequencer(database, published)
    await commit(database, event("b1"), event("b1", 1, poison=poison), event("b1", 2))
    assert await one.run_once() == 3
    assert [(entry.channel, entry.offset) for entry in published.entries] == [
        ("booking:b1", 1),
        ("everybody", 1),
        ("booking:b1", 2),
        ("everybody", 2),
    ]
    assert [entry.sequence for entry in published.entries] == [1, 2, 3, 4]
    assert one.counts.parked == 1

    async def parked(connection: AsyncConnection) -> tuple[str, dict[str, object]]:
        row = (await connection.execute(select(outbox_parked))).one()
        return row.error, row.row

    error, row = await database.read(parked)
    assert error.startswith("ValueError: ")
    assert row["source"] == "booking/b1"
    assert (await outbox_stats(database)).parked == 1


async def test_a_document_that_is_no_json_is_poison_too(database: Database) -> None:
    one = sequencer(database, Published())
    await commit(database, event("b1"), event("b2"))

    async def spoil(connection: AsyncConnection) -> None:
        await connection.exec_driver_sql("UPDATE outbox SET audience = '{' WHERE source = 'booking/b1'")

    await database.write(spoil)
    assert await one.run_once() == 2
    assert one.counts.parked == 1
    assert [entry.channel for entry in await _all(database)] == ["booking:b2", "everybody"]


async def test_an_old_sequencer_is_refused_once_a_new_one_has_taken_over(database: Database) -> None:
    published, old_published = Published(), Published()
    old = sequencer(database, old_published)
    await commit(database, event("b1"))
    await old.run_once()
    # The same name takes over at once, while the old one still believes in its lease.
    new = sequencer(database, published)
    await commit(database, event("b1"))
    assert await new.run_once() == 1
    await commit(database, event("b1"))
    assert await old.run_once() == 0
    assert old.counts.fenced == 1
    assert not old.leading
    assert await new.run_once() == 1
    assert [entry.offset for entry in await _all(database) if entry.channel == "booking:b1"] == [1, 2, 3]
    assert len(old_published.entries) == 2


async def test_an_old_sequencer_is_refused_even_before_the_new_one_writes(database: Database) -> None:
    old, new = sequencer(database, Published()), sequencer(database, Published())
    await old.run_once()
    await new.run_once()
    await commit(database, event("b1"))
    assert await old.run_once() == 0
    assert old.counts.fenced == 1


async def test_an_old_sequencer_is_refused_although_all_it_has_is_poison(database: Database) -> None:
    old, new = sequencer(database, Published()), sequencer(database, Published())
    await old.run_once()
    await new.run_once()
    await commit(database, event("b1", poison="route"))
    assert await old.run_once() == 0
    assert old.counts.parked == 0
    assert await new.run_once() == 1
    assert new.counts.parked == 1


async def test_who_takes_over_waits_for_a_batch_that_is_being_committed(database: Database) -> None:
    old, published = sequencer(database, Published()), Published()
    await commit(database, event("b1"))
    written, may_commit = asyncio.Event(), asyncio.Event()
    write = database.write

    async def write_slowly(work: Callable[[AsyncConnection], Awaitable[Any]], **how: Any) -> Any:
        async def and_wait(connection: AsyncConnection) -> Any:
            result = await work(connection)
            written.set()
            await may_commit.wait()
            return result

        return await write(and_wait, **how)

    await old._lead()  # only the batch is to be slow
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "write", write_slowly)
        slow = asyncio.create_task(old.run_once())
        await written.wait()
    new = sequencer(database, published)
    taking_over = asyncio.create_task(new.run_once())
    await asyncio.sleep(0.2)
    assert not new.leading
    may_commit.set()
    assert await slow == 1
    assert await taking_over == 0, "all was sequenced by the batch before"
    await commit(database, event("b1"))
    assert await new.run_once() == 1
    assert [(entry.channel, entry.offset, entry.sequence) for entry in await _all(database)] == [
        ("booking:b1", 1, 1),
        ("everybody", 1, 2),
        ("booking:b1", 2, 3),
        ("everybody", 2, 4),
    ]


@pytest.mark.parametrize("committed", [True, False])
async def test_a_batch_whose_end_is_not_known_is_neither_lost_nor_doubled(database: Database, committed: bool) -> None:
    one = sequencer(database, Published())
    await commit(database, event("b1"))
    await one.run_once()
    await commit(database, event("b1"))
    write = database.write

    async def write_and_lose_the_answer(work: Callable[[AsyncConnection], Awaitable[Any]], **how: Any) -> Any:
        if committed:
            await write(work, **how)
        raise OutcomeUnknown

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "write", write_and_lose_the_answer)
        with pytest.raises(OutcomeUnknown):
            await one.run_once()
    await commit(database, event("b1"))
    await _drain(one)
    entries = await _all(database)
    assert [entry.offset for entry in entries if entry.channel == "booking:b1"] == [1, 2, 3]
    assert [entry.sequence for entry in entries] == [1, 2, 3, 4, 5, 6]


async def test_a_dead_sequencer_is_replaced_within_five_seconds(database: Database) -> None:
    published = Published()
    first, second = sequencer(database, Published(), "node-1"), sequencer(database, published, "node-2")
    never = asyncio.Event()
    dying = asyncio.create_task(first.run(never))
    await _leads(first)
    waiting = asyncio.create_task(second.run(never))
    dying.cancel()
    await asyncio.gather(dying, return_exceptions=True)
    await commit(database, event("b1"))
    began = time.monotonic()
    await published.count(2)
    assert time.monotonic() - began < 5.0
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_sequencer_that_stops_hands_over_at_once(database: Database) -> None:
    published = Published()
    first, second = sequencer(database, Published(), "node-1"), sequencer(database, published, "node-2")
    stop = asyncio.Event()
    stopping = asyncio.create_task(first.run(stop))
    await _leads(first)
    assert await second.run_once() == 0
    stop.set()
    await stopping
    await commit(database, event("b1"))
    assert await second.run_once() == 1


async def test_a_nudge_publishes_without_waiting_for_the_poll(database: Database) -> None:
    published = Published()
    one = sequencer(database, published, poll_seconds=3600.0, lease_seconds=7200.0)
    stop = asyncio.Event()
    running = asyncio.create_task(one.run(stop))
    commands = transactions(database, one.nudge)

    async def work(unit: UnitOfWork) -> None:
        unit.record(event("b1"))

    for number in range(3):
        await commands.write(work, ORIGIN)
        await published.count(2 * number + 2)
    stop.set()
    await running


@pytest.mark.parametrize("share", [1e-6, 1e6])
async def test_the_pause_after_a_batch_has_its_bounds(database: Database, share: float) -> None:
    """The second event's batch comes after the pause: not at once, and not after a million times the first batch."""
    published = Published()
    pace: dict[str, Any] = {"pace_seconds": 0.2, "pace_share": share, "pace_most_seconds": 0.2}
    one = sequencer(database, published, poll_seconds=3600.0, lease_seconds=7200.0, **pace)
    stop = asyncio.Event()
    running = asyncio.create_task(one.run(stop))
    commands = transactions(database, one.nudge)

    async def work(unit: UnitOfWork) -> None:
        unit.record(event("b1"))

    await commands.write(work, ORIGIN)
    await published.count(2)
    began = time.monotonic()
    async with asyncio.timeout(5):
        await commands.write(work, ORIGIN)
        await published.count(4)
    assert time.monotonic() - began > 0.1
    stop.set()
    await running


async def test_rows_that_nobody_nudged_about_are_found_by_polling(database: Database) -> None:
    published = Published()
    one = sequencer(database, published, poll_seconds=0.05)
    stop = asyncio.Event()
    running = asyncio.create_task(one.run(stop))
    await _leads(one)
    await commit(database, event("b1"))
    await published.count(2)
    stop.set()
    await running


async def test_partitions_share_channels_without_gaps(database: Database) -> None:
    partitions, events = 3, 90
    published = Published()
    names = [f"b{number}" for number in range(9)]
    assert {partition_of(f"booking/{name}", partitions) for name in names} == {0, 1, 2}
    for number in range(events):
        await commit(database, event(names[number % 9], number), partitions=partitions)
    several = [sequencer(database, published, partition=n, batch_rows=5) for n in range(partitions)]
    await asyncio.gather(*(_drain(one) for one in several))
    channels = _by_channel(await _all(database))
    assert sorted(entry.offset or 0 for entry in channels["everybody"]) == list(range(1, events + 1))
    for name in names:
        along = sorted(channels[f"booking:{name}"], key=lambda entry: entry.offset or 0)
        assert [entry.offset for entry in along] == list(range(1, 11))
        numbers = [said(entry)["data"]["number"] for entry in along]
        assert numbers == sorted(numbers)
    cursor = await SqlEventLog(database, partitions).cursor()
    assert sum(cursor.values()) == 2 * events


async def test_partitions_may_begin_a_channel_at_once(database: Database) -> None:
    """A channel's first entry has no row to lock; the one that comes too late begins its transaction again."""
    partitions, rounds = 3, 15
    sources = {partition_of(f"booking/b{n}", partitions): f"b{n}" for n in range(9)}
    published = Published()
    several = [
        sequencer(database, published, partition=n, routing=lambda happened: (f"round:{happened.data['number']}",))
        for n in range(partitions)
    ]
    for number in range(rounds):
        await commit(database, *(event(source, number) for source in sources.values()), partitions=partitions)
        assert await asyncio.gather(*(one.run_once() for one in several)) == [1, 1, 1]
    channels = _by_channel(await _all(database))
    assert {len(entries) for entries in channels.values()} == {partitions}
    assert len(channels) == rounds
    for entries in channels.values():
        assert sorted(entry.offset or 0 for entry in entries) == [1, 2, 3]
    assert all(one.counts.parked == 0 for one in several)


async def test_sequencing_survives_a_database_that_comes_back(database: Database) -> None:
    published = Published()
    one = sequencer(database, published, poll_seconds=0.05)
    failures = 2
    write = database.write

    async def flaky(*arguments: object, **named: object) -> object:
        nonlocal failures
        if failures:
            failures -= 1
            raise ConnectionError("away")
        return await write(*arguments, **named)  # type: ignore[arg-type]

    await commit(database, event("b1"))
    database.write = flaky  # type: ignore[method-assign,assignment]
    stop = asyncio.Event()
    running = asyncio.create_task(one.run(stop))
    await published.count(2)
    assert one.counts.failures == 2
    stop.set()
    await running


async def test_the_outbox_tells_how_long_events_wait(database: Database) -> None:
    assert (await outbox_stats(database)).oldest_age_seconds == 0.0
    await commit(database, event("b1"), event("b2"))
    stats = await outbox_stats(database)
    assert stats.rows == 2
    assert 0.0 <= stats.oldest_age_seconds < 10.0


async def test_writers_that_wait_for_connections_do_not_starve_the_sequencer(mysql: Database) -> None:
    crowded = Database(mysql.url, DatabaseOptions(tls="off", pool_size=2))
    published = Published()
    one = sequencer(crowded, published)
    stop, busy = asyncio.Event(), True
    running = asyncio.create_task(one.run(stop))
    commands = transactions(crowded, one.nudge)

    async def writer(number: int) -> None:
        async def work(unit: UnitOfWork) -> None:
            unit.record(event(f"b{number}"))

        while busy:
            await commands.write(work, ORIGIN)

    writers = [asyncio.create_task(writer(number)) for number in range(12)]
    for already in range(0, 600, 60):
        await published.count(already + 60)
        assert (await outbox_stats(crowded)).oldest_age_seconds < 1.0
    busy = False
    await asyncio.gather(*writers)
    stop.set()
    await running
    await crowded.close()
