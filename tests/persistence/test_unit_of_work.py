from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from sqlalchemy import event as sql_events
from sqlalchemy import select

from domain.events import EventClass
from persistence.database import MAX_RETRIES, Database, RetryTransaction
from persistence.outbox import outbox_stats
from persistence.tables import outbox
from persistence.unit_of_work import UnitOfWork
from tests.persistence.samples import ORIGIN, event, transactions


async def test_events_become_visible_with_the_commit_and_the_sequencer_is_told(database: Database) -> None:
    nudges = 0

    def nudge() -> None:
        nonlocal nudges
        nudges += 1

    async def work(unit: UnitOfWork) -> str:
        unit.record(event("b1", 1, note="é"))
        unit.record(event("b1", 2))
        await unit.timers.set("t", datetime.now(UTC), "kind", {})
        assert nudges == 0
        return "result"

    assert await transactions(database, nudge).write(work, ORIGIN) == "result"
    assert nudges == 1

    async def rows(unit: UnitOfWork) -> list[tuple[object, ...]]:
        columns = (outbox.c.source, outbox.c.data, outbox.c.correlation_id, outbox.c.traceparent)
        return [tuple(row) for row in await unit.connection.execute(select(*columns).order_by(outbox.c.id))]

    assert await transactions(database).read(rows) == [
        ("booking/b1", {"number": 1, "note": "é"}, "corr-1", "00-trace-01"),
        ("booking/b1", {"number": 2}, "corr-1", "00-trace-01"),
    ]


async def test_a_transaction_without_events_nudges_nobody(database: Database) -> None:
    def nudge() -> None:
        raise AssertionError("nothing happened")

    async def work(unit: UnitOfWork) -> None:
        await unit.timers.cancel("none")

    await transactions(database, nudge).write(work, ORIGIN)


async def test_events_of_work_that_fails_are_never_seen(database: Database) -> None:
    async def work(unit: UnitOfWork) -> None:
        unit.record(event("b1"))
        raise KeyError("bug")

    with pytest.raises(KeyError):
        await transactions(database).write(work, ORIGIN)
    assert (await outbox_stats(database)).rows == 0


async def test_work_that_starts_over_gets_a_fresh_unit_and_records_once(database: Database) -> None:
    units: list[UnitOfWork] = []

    async def work(unit: UnitOfWork) -> None:
        unit.record(event("b1"))
        units.append(unit)
        if len(units) <= MAX_RETRIES:
            raise RetryTransaction

    await transactions(database).write(work, ORIGIN)
    assert len({id(unit) for unit in units}) == 1 + MAX_RETRIES
    assert units[0].now <= units[-1].now
    assert (await outbox_stats(database)).rows == 1


async def test_events_are_written_last_in_one_statement(database: Database) -> None:
    statements: list[str] = []
    engine = database._writer.sync_engine

    @sql_events.listens_for(engine, "before_cursor_execute")
    def note(*arguments: object) -> None:
        statements.append(str(arguments[2]))

    async def work(unit: UnitOfWork) -> None:
        for number in range(3):
            unit.record(event("b1", number))
        await unit.timers.set("t", datetime.now(UTC), "kind", {})

    await transactions(database).write(work, ORIGIN)
    assert [statement.split()[2] for statement in statements] == ["timers", "outbox"]


async def test_an_ephemeral_event_is_refused(database: Database) -> None:
    async def work(unit: UnitOfWork) -> None:
        unit.record(event("b1", 1, EventClass.EPHEMERAL))

    with pytest.raises(ValueError, match="ephemeral"):
        await transactions(database).write(work, ORIGIN)


async def test_a_read_cannot_record(database: Database) -> None:
    async def work(unit: UnitOfWork) -> None:
        unit.record(event("b1"))

    with pytest.raises(RuntimeError):
        await transactions(database).read(work)


async def test_cancelled_work_records_nothing(database: Database) -> None:
    inside = asyncio.Event()

    async def work(unit: UnitOfWork) -> None:
        unit.record(event("b1"))
        await unit.timers.set("t", datetime.now(UTC), "kind", {})
        inside.set()
        await asyncio.sleep(3600)

    task = asyncio.create_task(transactions(database).write(work, ORIGIN))
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await outbox_stats(database)).rows == 0
    assert database.in_use == 0
