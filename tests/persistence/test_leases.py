from __future__ import annotations

import asyncio
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.database import Database, database_now
from persistence.leases import Leases
from persistence.tables import leases as leases_table


async def _run_out(database: Database) -> None:
    """Moves the end of every lease to now, as time would."""

    async def work(connection: AsyncConnection) -> None:
        await connection.execute(update(leases_table).values(expires_at=await database_now(connection)))

    await database.write(work)


async def test_one_holder_at_a_time_with_a_token_that_grows(database: Database) -> None:
    leases = Leases(database)
    first = await leases.acquire("sequencer", "node-1", 60)
    assert first == 1
    assert await leases.acquire("sequencer", "node-2", 60) is None
    assert await leases.acquire("other", "node-2", 60) == 1
    await _run_out(database)
    assert await leases.acquire("sequencer", "node-2", 60) == 2
    assert not await leases.renew("sequencer", first, 60)


async def test_a_renewed_lease_lives_on_from_the_databases_now(database: Database) -> None:
    leases = Leases(database)
    token = await leases.acquire("sequencer", "node-1", 5)
    assert token is not None
    assert await leases.renew("sequencer", token, 600)

    async def seconds_left(connection: AsyncConnection) -> float:
        until: datetime = (await connection.execute(select(leases_table.c.expires_at))).scalar_one()
        return (until - await database_now(connection)).total_seconds()

    assert 500 < await database.read(seconds_left) <= 600
    assert await leases.acquire("sequencer", "node-2", 60) is None


async def test_a_lease_that_has_run_out_is_lost_even_if_nobody_took_it(database: Database) -> None:
    leases = Leases(database)
    token = await leases.acquire("sequencer", "node-1", 60)
    assert token is not None
    await _run_out(database)
    assert not await leases.renew("sequencer", token, 60)


async def test_a_restarted_holder_gets_its_lease_at_once_with_a_new_token(database: Database) -> None:
    leases = Leases(database)
    before = await leases.acquire("sequencer", "node-1", 60)
    after = await leases.acquire("sequencer", "node-1", 60)
    assert (before, after) == (1, 2)
    assert not await leases.renew("sequencer", 1, 60)


async def test_a_released_lease_is_free_at_once_but_only_its_holder_releases_it(database: Database) -> None:
    leases = Leases(database)
    token = await leases.acquire("sequencer", "node-1", 60)
    assert token is not None
    await leases.release("sequencer", token + 1)
    assert await leases.acquire("sequencer", "node-2", 60) is None
    await leases.release("sequencer", token)
    assert await leases.acquire("sequencer", "node-2", 60) == 2


async def test_of_many_who_ask_at_once_one_gets_it(database: Database) -> None:
    leases = Leases(database)
    for round_number in range(3):
        tokens = await asyncio.gather(*(leases.acquire("sequencer", f"n{round_number}-{n}", 60) for n in range(8)))
        assert [token for token in tokens if token is not None] == [round_number + 1]
        await _run_out(database)
