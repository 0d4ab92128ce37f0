"""Redis may drop messages, stall, restart empty or vanish: every node still hears every durable event, once, in order.

Quick variants of the experiments; each prints what was tried and seen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from channels.failover import State
from channels.redis_address import RedisAddress
from persistence.database import Database, DatabaseOptions
from persistence.migrate import upgrade
from tests.channels.fakes import until
from tests.channels.live_nodes import market
from tests.redis_topologies import Proxy
from tests.services import RedisServer

OPTIONS = DatabaseOptions(tls="off")
BOOKINGS = ("b1", "b2", "b3")
CHANNELS = ("booking:b1", "booking:b2", "booking:b3", "admin:bookings")


def port_of(url: str) -> int:
    return RedisAddress.parse(url).endpoints[0].port


@pytest.fixture
async def sqlite(sqlite_url: str) -> AsyncIterator[Database]:
    await upgrade(sqlite_url, OPTIONS)
    database = Database(sqlite_url, OPTIONS)
    yield database
    await database.close()


@pytest.fixture
async def mysql(mysql_url: str) -> AsyncIterator[Database]:
    await upgrade(mysql_url, OPTIONS)
    database = Database(mysql_url, OPTIONS)
    yield database
    await database.close()


async def test_messages_dropped_at_random_are_healed(mysql: Database, redis_url: str) -> None:
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(Proxy(port_of(redis_url), seed=n).running()) for n in range(3)]
        town = await stack.enter_async_context(market(mysql, [proxy.url for proxy in proxies], CHANNELS))
        for proxy in proxies:
            proxy.lost_share = 0.3
        await town.load(3.0, BOOKINGS)
        # The very last messages may be among the lost: nothing later betrays them but a heartbeat.
        print(await town.everybody_has_everything(CHANNELS, 5.0))
        assert all(proxy.lost > 20 for proxy in proxies)
        assert town.longest_delay() < 2.5


async def test_a_redis_that_is_killed_and_comes_back_empty(sqlite: Database) -> None:
    with RedisServer() as server:
        async with market(sqlite, [server.url] * 3, CHANNELS) as town:
            load = asyncio.create_task(town.load(4.0, BOOKINGS))
            await asyncio.sleep(1.0)
            server.kill()
            await until(lambda: all(node.follower.state is State.TAILING for node in town.nodes))
            await asyncio.sleep(1.0)
            await asyncio.to_thread(server.start)
            await load
            await until(lambda: all(node.follower.state is State.OK for node in town.nodes), 10)
            await town.commit("b1")
            print(await town.everybody_has_everything(CHANNELS, 5.0))
            assert town.longest_delay() < 2.0


@pytest.mark.parametrize("seconds", [3.5, pytest.param(30.0, marks=[pytest.mark.soak, pytest.mark.timeout(120)])])
async def test_a_redis_that_hangs(sqlite: Database, seconds: float) -> None:
    with RedisServer() as server:
        async with market(sqlite, [server.url] * 2, CHANNELS) as town:
            load = asyncio.create_task(town.load(seconds + 2.0, BOOKINGS))
            await asyncio.sleep(1.0)
            server.pause()
            await asyncio.sleep(seconds)
            assert all(node.follower.state is State.TAILING for node in town.nodes)
            server.resume()
            await load
            await until(lambda: all(node.follower.state is State.OK for node in town.nodes), 10)
            print(await town.everybody_has_everything(CHANNELS, 5.0))
            assert town.longest_delay() < 2.0


async def test_a_half_open_connection_is_noticed_and_built_anew(sqlite: Database, redis_url: str) -> None:
    async with Proxy(port_of(redis_url)).running() as proxy, market(sqlite, [redis_url, proxy.url], CHANNELS) as town:
        victim = town.nodes[1]
        load = asyncio.create_task(town.load(6.0, BOOKINGS))
        await asyncio.sleep(1.0)
        proxy.swallowing = True
        began = time.monotonic()
        await until(lambda: victim.follower.state is State.TAILING)
        tailing = time.monotonic() - began
        await until(lambda: not victim.client.connected)
        noticed = time.monotonic() - began
        await asyncio.sleep(0.5)
        proxy.swallowing = False
        began = time.monotonic()
        await until(lambda: victim.client.connected)
        healed = time.monotonic() - began
        await load
        await until(lambda: victim.follower.state is State.OK)
        print(f"tailing after {tailing:.2f} s, noticed after {noticed:.2f} s, connected again after {healed:.2f} s")
        print(await town.everybody_has_everything(CHANNELS, 5.0))
        assert noticed < 5.0
        assert town.longest_delay() < 2.0


async def test_the_sequencing_node_alone_is_cut_off_from_redis(sqlite: Database, redis_url: str) -> None:
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(Proxy(port_of(redis_url)).running()) for _ in range(2)]
        town = await stack.enter_async_context(market(sqlite, [proxy.url for proxy in proxies], CHANNELS))
        load = asyncio.create_task(town.load(3.5, BOOKINGS))
        await asyncio.sleep(1.0)
        leader = town.nodes.index(town.leader)
        proxies[leader].refusing = True
        proxies[leader].cut()
        await load
        print(await town.everybody_has_everything(CHANNELS, 5.0))
        assert town.longest_delay() < 2.0
        # The other one hears heartbeats all the time; what it misses is that they name sequences.
        assert town.nodes[1 - leader].client.connected
        assert town.nodes[1 - leader].follower.counts.rebuilds == 0


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_a_redis_that_is_killed_over_and_over_while_messages_get_lost(mysql: Database) -> None:
    async with AsyncExitStack() as stack:
        server = stack.enter_context(RedisServer())
        proxies = [await stack.enter_async_context(Proxy(server.port, seed=n).running()) for n in range(3)]
        town = await stack.enter_async_context(market(mysql, [proxy.url for proxy in proxies], CHANNELS))
        for proxy in proxies:
            proxy.lost_share = 0.1
        load = asyncio.create_task(town.load(120.0, BOOKINGS))
        for turn in range(12):
            await asyncio.sleep(5.0)
            server.kill()
            await asyncio.sleep(1.0 + turn / 4)
            await asyncio.to_thread(server.start)
        await load
        print(await town.everybody_has_everything(CHANNELS, 10.0))
        assert town.longest_delay() < 3.0
