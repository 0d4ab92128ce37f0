"""Growing delays and rates by subject: in bounded memory, and shared through Redis."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest

from channels.throttle import InProcessLimiter
from channels.throttle_redis import CALL_SECONDS, RedisLimiter
from domain.limits import Delays, Rate
from tests.channels.fakes import until
from tests.channels.limiter_contract import DELAYS, RATE, SUBJECTS, Doors, LimiterContract
from tests.channels.test_broker_redis import connected
from tests.redis_topologies import say
from tests.services import RedisServer

LATER = """
for _, field in ipairs({'at', 'next'}) do
  local value = redis.call('HGET', KEYS[1], field)
  if value then redis.call('HSET', KEYS[1], field, string.format('%.6f', tonumber(value) - ARGV[1])) end
end
local left = redis.call('PTTL', KEYS[1])
if left > 0 then redis.call('PEXPIRE', KEYS[1], math.floor(left - ARGV[1] * 1000)) end
return '0'
"""
"""Makes what a key says so much older, which is what waiting would do."""


class Watch:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def watch() -> Watch:
    return Watch()


class TestInProcessLimiter(LimiterContract):
    @pytest.fixture
    def doors(self, watch: Watch) -> Doors:
        limiter = InProcessLimiter(clock=watch)
        return Doors(limiter, limiter, watch.advance)

    async def test_a_flood_of_subjects_takes_bounded_memory(self, watch: Watch) -> None:
        limiter = InProcessLimiter(size=100, clock=watch)
        for number in range(10_000):
            await limiter.failed(DELAYS, f"subject {number}")
            await limiter.take(Rate("r", 1, 1), f"subject {number}")
        assert len(limiter._failures) == len(limiter._buckets) == 100

    async def test_no_number_of_failures_is_too_large(self) -> None:
        assert DELAYS.after(10**9) == 60


class TestRedisLimiter(LimiterContract):
    @pytest.fixture
    async def doors(self, topology_url: str, watch: Watch) -> AsyncIterator[Doors]:
        async with connected(topology_url) as near, connected(topology_url) as far:
            names = [near.name("throttle", name, who) for name in (DELAYS.name, RATE.name, "other") for who in SUBJECTS]
            await near.run([(name, ("DEL", name)) for name in names], 5)

            async def advance(seconds: float) -> None:
                await watch.advance(seconds)
                await near.run([(name, ("EVAL", LATER, 1, name, seconds)) for name in names], 5)

            yield Doors(RedisLimiter(near, clock=watch), RedisLimiter(far, clock=watch), advance)


async def test_what_is_kept_in_redis_goes_by_itself(redis_url: str) -> None:
    port = int(redis_url.rpartition(":")[2].partition("/")[0])
    async with connected(redis_url) as client:
        limiter = RedisLimiter(client)
        await limiter.failed(DELAYS, "ann")
        await limiter.take(RATE, "ann")
        await limiter.attempt(DELAYS, "nobody")
        await limiter.failures(DELAYS, "nobody")
        keys = {"d:ann": 3_600_000, "r:ann": 3_000}
        assert say(port, "DBSIZE") == b":2\r\n", "looking leaves nothing behind"
        for key, most in keys.items():
            assert 0 < int(say(port, f"PTTL fixnado:test:throttle:{key}").strip()[1:]) <= most


async def test_with_redis_away_or_hanging_a_node_goes_on_with_its_own_counts_at_once() -> None:
    with RedisServer() as server:
        async with connected(server.url) as client, connected(server.url) as other:
            limiter, elsewhere = RedisLimiter(client), RedisLimiter(other)
            for _ in range(9):
                await limiter.failed(DELAYS, "ann")
            for _ in range(2):
                assert await limiter.charge(DELAYS, "bob") == 0
            loop = asyncio.get_running_loop()
            server.pause()
            began = loop.time()
            waits = [await limiter.attempt(DELAYS, "ann") for _ in range(50)]
            assert loop.time() - began < CALL_SECONDS + 0.5, "one question waited, the others did not"
            assert all(0 < wait <= 32 for wait in waits), "never open"
            server.resume()
            server.kill()
            await until(lambda: not client.connected and not other.connected)
            assert await limiter.attempt(DELAYS, "ann") > 0
            assert await limiter.failures(DELAYS, "ann") == 9
            assert await elsewhere.failures(DELAYS, "ann") == 0, "what it has not seen"
            for _ in range(9):
                await elsewhere.failed(DELAYS, "ann")
            assert await elsewhere.attempt(DELAYS, "ann") > 0
            assert [await limiter.charge(DELAYS, "bob") > 0 for _ in range(3)] == [False, False, True], (
                "two went before"
            )
            assert [await elsewhere.take(RATE, "ann") > 0 for _ in range(6)] == [False] * 4 + [True] * 2
            server.start()
            await until(lambda: client.connected)
            await asyncio.sleep(0)
            subject = secrets.token_hex(4)
            # A restarted Redis has lost the scripts; they are sent again.
            await until_shared(limiter, server.port, subject)


async def until_shared(limiter: RedisLimiter, port: int, subject: str) -> None:
    async with asyncio.timeout(5):
        while b":1" not in say(port, f"EXISTS fixnado:test:throttle:d:{subject}"):
            await limiter.failed(DELAYS, subject)
            await asyncio.sleep(0.05)


async def test_a_flood_from_one_address_costs_redis_nothing(redis_url: str) -> None:
    async with connected(redis_url) as client:
        limiter = RedisLimiter(client)
        for _ in range(5):
            await limiter.take(RATE, "203.0.113.9")
        before = client.counts.answered
        waits = [await limiter.take(RATE, "203.0.113.9") for _ in range(500)]
        assert min(waits) > 0
        assert client.counts.answered == before


async def test_a_redis_that_refuses_does_not_open_the_door(redis_url: str) -> None:
    async with connected(redis_url) as client:
        limiter = RedisLimiter(client)
        for _ in range(9):
            await limiter.failed(DELAYS, "ann")
        key = client.name("throttle", "d", "ann")
        await client.run([(key, ("DEL", key)), (key, ("SET", key, "no hash"))], 5)
        assert await limiter.attempt(DELAYS, "ann") > 0
        assert await limiter.attempt(Delays("d", 100, 1, 1, 60), "bob") == 0
