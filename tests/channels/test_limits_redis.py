from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from channels.limits import TokenBuckets, Verdict
from channels.limits_redis import RedisTokenBuckets
from tests.channels import test_limits
from tests.channels.fakes import until
from tests.channels.test_broker_redis import connected
from tests.redis_topologies import say
from tests.services import RedisServer

BURST, DEBT = 20, 30


@asynccontextmanager
async def nodes(url: str, count: int = 3, rate: float = 10.0) -> AsyncIterator[list[RedisTokenBuckets]]:
    """The buckets of so many nodes, which are shared only when the test says so."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(url)) for _ in range(count)]
        yield [RedisTokenBuckets(client, rate, BURST, DEBT, 1000) for client in clients]


def fine(buckets: TokenBuckets, key: str, requests: int) -> int:
    now = asyncio.get_running_loop().time()
    return [buckets.take(key, now) for _ in range(requests)].count(Verdict.FINE)


async def test_one_node_alone_is_a_bucket_like_any_other(redis_url: str) -> None:
    async with nodes(redis_url, 1) as (one,):
        assert fine(one, "ada", 100) == BURST
        await one.sync()
        assert fine(one, "ada", 1) == 0


async def test_what_is_spent_on_one_node_is_missing_on_the_others(topology_url: str) -> None:
    key = f"ada-{secrets.token_hex(4)}"
    async with nodes(topology_url) as (one, two, three):
        assert fine(one, key, BURST) == BURST
        await one.sync()
        # A tenth of a burst is enough to look.
        assert fine(two, key, 2) == 2
        await two.sync()
        assert fine(two, key, 5) == 0
        assert fine(three, "bea" + key, BURST) == BURST


async def test_somebody_on_all_nodes_gets_one_rate_in_the_long_run(redis_url: str) -> None:
    async with nodes(redis_url, rate=40.0) as all_nodes:
        for one in all_nodes:
            await one.start()
        loop = asyncio.get_running_loop()
        began, granted = loop.time(), 0
        while loop.time() < began + 2.0:
            # Politely: who is told to wait does wait, so that nothing is owed for refusals.
            for one in all_nodes:
                if one.wait_seconds("ada", loop.time()) == 0:
                    granted += fine(one, "ada", 1)
            await asyncio.sleep(0.005)
        for one in all_nodes:
            await one.stop()
        # One rate and one burst, and once the bursts of the other nodes; not three rates (3 x 80 + 3 x 20).
        assert granted <= 2.0 * 40 + 3 * BURST + 3 * 40 * 0.15


async def test_flooding_on_one_node_is_flooding_on_the_next(redis_url: str) -> None:
    async with nodes(redis_url, 2, rate=0.5) as (one, two):
        fine(one, "ada", BURST + DEBT + 10)
        await one.sync()
        fine(two, "ada", 2)
        await two.sync()
        assert two.take("ada", asyncio.get_running_loop().time()) is Verdict.FLOODING


async def test_a_shared_bucket_is_forgotten_when_it_is_full_again(redis_url: str) -> None:
    async with nodes(redis_url, 1, rate=1000.0) as (one,):
        fine(one, "ada", 10)
        await one.sync()
        port = int(redis_url.rpartition(":")[2].partition("/")[0])
        assert b"limit:ada" in say(port, "KEYS *")
        ttl = int(say(port, "PTTL fixnado:test:limit:ada").strip()[1:])
        assert 0 < ttl <= 1100


async def test_with_redis_away_each_node_goes_on_alone_and_a_restarted_one_is_told_again() -> None:
    with RedisServer() as server:
        async with connected(server.url) as client:
            one = RedisTokenBuckets(client, 1.0, BURST, DEBT, 1000)
            fine(one, "ada", 5)
            await one.sync()
            server.kill()
            await until(lambda: not client.connected)
            assert fine(one, "ada", BURST) == BURST - 5
            await one.sync()
            server.start()
            await until(lambda: client.connected)
            await one.sync()  # by a digest that the new Redis does not know
            await one.sync()
            level = float(say(server.port, "HGET fixnado:test:limit:ada level").split(b"\r\n")[1])
            assert level == pytest.approx(0, abs=1.5)


async def test_taking_never_waits(redis_url: str) -> None:
    with RedisServer() as server:
        async with connected(server.url) as client:
            one = RedisTokenBuckets(client, 1000.0, 100_000, DEBT, 1000)
            await one.start()
            server.pause()
            began = asyncio.get_running_loop().time()
            for n in range(20_000):
                one.take(f"u{n % 50}", began)
            assert asyncio.get_running_loop().time() - began < 0.5
            server.resume()
            await one.stop()


@pytest.mark.parametrize(
    "behaviour", [getattr(test_limits, name) for name in dir(test_limits) if name.startswith("test_")]
)
async def test_it_is_a_token_bucket(behaviour: object, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(redis_url) as client:

        def make(rate: float, burst: int, debt: int, size: int) -> TokenBuckets:
            return RedisTokenBuckets(client, rate, burst, debt, size)

        monkeypatch.setattr(test_limits, "TokenBuckets", make)
        assert callable(behaviour)
        behaviour()
