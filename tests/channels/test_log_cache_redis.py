from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

import pytest

from channels.log_cache import CachedLog, CacheSize
from channels.protocol import encode_event
from channels.redis_address import RedisAddress
from channels.redis_client import RedisClient
from domain.events import Audience, Event
from domain.log import Entry
from domain.types import Origin, new_id
from persistence.database import Database, DatabaseOptions
from persistence.log import SqlEventLog
from persistence.migrate import upgrade
from persistence.sequencer import Sequencer
from persistence.unit_of_work import Transactions, UnitOfWork
from tests.channels.fakes import ModelLog, until
from tests.channels.live_nodes import WallClock
from tests.channels.log_contract import LogContract, Written
from tests.channels.test_broker_redis import QUICK, connected
from tests.redis_topologies import say
from tests.services import RedisServer


class CountingLog(ModelLog):
    """Says how often rows were asked for."""

    async def append_published(self, channel: str, cache: CachedLog) -> Entry:
        entry = self.append(channel)
        cache.add([entry])
        return entry


class TestModelLog(LogContract):
    @pytest.fixture
    def written(self) -> Written:
        log = ModelLog()

        async def append(channel: str) -> Entry:
            return log.append(channel)

        return Written(log, append)


class TestCachedModelLog(LogContract):
    @pytest.fixture
    async def written(self, topology_url: str) -> AsyncIterator[Written]:
        client = RedisClient(RedisAddress.parse(topology_url), QUICK)
        # As another database would have another namespace, no test meets what an earlier one left.
        await client.start(f"life-{id(client)}-{asyncio.get_running_loop().time()}")
        await until(lambda: client.connected)
        log = CountingLog()
        cache = CachedLog(log, client)

        async def append(channel: str) -> Entry:
            return await log.append_published(channel, cache)

        yield Written(cache, append)
        await client.stop()


class TestSqlLog(LogContract):
    @pytest.fixture
    async def written(self, sqlite_url: str) -> AsyncIterator[Written]:
        async for each in sql_log(sqlite_url):
            yield each


async def sql_log(url: str) -> AsyncIterator[Written]:
    options = DatabaseOptions(tls="off")
    await upgrade(url, options)
    database = Database(url, options)
    published: list[Entry] = []

    async def publish(entries: Sequence[Entry]) -> None:
        published.extend(entries)

    def route(event: Event) -> Sequence[str]:
        return (f"booking:{event.audience.booking}",)

    sequencer = Sequencer(database, "node-1", route=route, encode=encode_event, publish=publish)
    transactions = Transactions(database, WallClock(), UnitOfWork, lambda: None)

    async def append(channel: str) -> Entry:
        async def work(unit: UnitOfWork) -> None:
            now = datetime.now(UTC)
            booking = channel.partition(":")[2]
            unit.record(Event(new_id(now), "booking.changed", now, f"booking/{booking}", {}, Audience(booking=booking)))

        await transactions.write(work, Origin("test"))
        await sequencer.run_once()
        return published[-1]

    yield Written(SqlEventLog(database), append)
    await database.close()


# What is special about the cache


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[RedisClient]:
    async with connected(redis_url) as connection:
        yield connection


async def filled(log: CountingLog, cache: CachedLog, client: RedisClient, count: int = 20) -> list[Entry]:
    """Entries that are in the cache for certain."""
    before = client.counts.answered
    entries = [await log.append_published("booking:1", cache) for _ in range(count)]
    await until(lambda: client.counts.answered >= before + 2 * count)
    return entries


async def test_a_resume_is_answered_without_the_database_reading_rows(client: RedisClient) -> None:
    log = CountingLog()
    cache = CachedLog(log, client)
    entries = await filled(log, cache, client)
    assert await cache.read_many({"booking:1": 5, "booking:2": 0}, 100) == {"booking:1": entries[5:], "booking:2": ()}
    assert log.reads == 0
    assert cache.counts.hits == 1


async def test_a_gap_in_the_cache_sends_one_to_the_database(client: RedisClient) -> None:
    log = CountingLog()
    cache = CachedLog(log, client)
    entries = await filled(log, cache, client, 5)
    entries.append(log.append("booking:1"))  # never reached the cache
    entries += await filled(log, cache, client, 5)
    assert list(await cache.read("booking:1", 3, 100)) == entries[3:]
    assert log.reads == 1
    assert list(await cache.read("booking:1", 7, 100)) == entries[7:]
    assert log.reads == 1


async def test_a_tail_missing_in_the_cache_sends_one_to_the_database(client: RedisClient) -> None:
    log = CountingLog()
    cache = CachedLog(log, client)
    entries = [*await filled(log, cache, client, 5), log.append("booking:1")]
    assert list(await cache.read("booking:1", 3, 100)) == entries[3:]
    assert log.reads == 1


async def test_adding_twice_or_late_changes_nothing(client: RedisClient) -> None:
    log = CountingLog()
    cache = CachedLog(log, client)
    entries = await filled(log, cache, client)
    cache.add(entries[3:7])
    cache.add(entries)
    await until(lambda: client.counts.failed >= 24)
    assert list(await cache.read("booking:1", 0, 100)) == entries
    assert log.reads == 0


async def test_the_cache_is_bounded_and_expires(redis_server: RedisServer, client: RedisClient) -> None:
    log = CountingLog()
    cache = CachedLog(log, client, CacheSize(entries=100, seconds=50))
    await filled(log, cache, client, 600)
    name = client.name("log", "booking:1").decode()
    assert int(say(redis_server.port, f"XLEN {name}").strip()[1:]) <= 200
    assert 0 < int(say(redis_server.port, f"TTL {name}").strip()[1:]) <= 50
    assert len(await cache.read("booking:1", 0, 1000)) == 600
    assert log.reads == 1


async def test_pruned_offsets_are_the_databases_business(client: RedisClient) -> None:
    log = CountingLog()
    cache = CachedLog(log, client)
    entries = await filled(log, cache, client)
    log.floors["booking:1"] = 10
    assert list(await cache.read("booking:1", 5, 100)) == entries[10:]
    assert log.reads == 1


async def test_with_redis_away_or_hanging_the_database_answers_soon() -> None:
    with RedisServer() as server:
        async with connected(server.url) as client:
            log = CountingLog()
            cache = CachedLog(log, client)
            entries = await filled(log, cache, client)
            server.pause()
            async with asyncio.timeout(0.5):
                assert list(await cache.read("booking:1", 0, 100)) == entries
            server.resume()
            server.kill()
            await until(lambda: not client.connected)
            async with asyncio.timeout(0.1):
                assert list(await cache.read("booking:1", 0, 100)) == entries
            assert log.reads == 2
