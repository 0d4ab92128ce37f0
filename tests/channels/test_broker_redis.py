"""The Redis broker keeps the broker's contract, whatever Redis it speaks to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.crc import key_slot

from channels import redis_client
from channels.broker_redis import RedisBroker
from channels.redis_address import RedisAddress
from channels.redis_client import RedisClient
from channels.redis_layout import Layout, RedisAway
from channels.redis_pipe import RedisTimes
from domain.errors import Unavailable
from tests.channels.broker_contract import BrokerContract, Heard, Pair, entry
from tests.channels.fakes import until
from tests.redis_topologies import Cluster, SecuredRedis, Watched, say, started
from tests.services import RedisServer, free_port

NAMESPACE = "test"
QUICK = RedisTimes(retry_seconds=0.02, retry_most_seconds=0.1, recheck_seconds=0.3)


@asynccontextmanager
async def connected(url: str, times: RedisTimes = QUICK) -> AsyncIterator[RedisClient]:
    client = RedisClient(RedisAddress.parse(url), times)
    await client.start(NAMESPACE)
    try:
        await until(lambda: client.connected)
        yield client
    finally:
        await client.stop()


class TestRedisBroker(BrokerContract):
    @pytest.fixture
    async def pair(self, topology_url: str) -> AsyncIterator[Pair]:
        async with connected(topology_url) as near, connected(topology_url) as far:
            heard = Heard()
            broker = RedisBroker(near, followed=False)
            broker.attach(heard)
            yield Pair(broker, RedisBroker(far, followed=False), heard)

    async def test_many_channels_each_keep_their_order(self, pair: Pair) -> None:
        channels = [f"booking:{n}" for n in range(300)]
        await pair.near.subscribe(channels)
        await pair.far.publish([entry(channel, n) for n in (1, 2) for channel in channels])
        await until(lambda: len(pair.heard.entries) >= 600)
        for channel in channels:
            assert [each.offset for each in pair.heard.entries if each.channel == channel] == [1, 2]


async def problem_of(url: str) -> str:
    """What a client says about a Redis that will not do."""
    client = RedisClient(RedisAddress.parse(url), QUICK)
    await client.start(NAMESPACE)
    await until(lambda: client.problem is not None)
    assert not client.connected
    await client.stop()
    return str(client.problem)


# Beyond the contract


async def test_two_databases_that_share_a_redis_do_not_hear_each_other(redis_url: str) -> None:
    async with connected(redis_url) as ours:
        theirs = RedisClient(RedisAddress.parse(redis_url), QUICK)
        await theirs.start("other")
        heard = Heard()
        broker = RedisBroker(ours)
        broker.attach(heard)
        await broker.subscribe(["booking:1"])
        await until(lambda: theirs.connected)
        await RedisBroker(theirs).publish([entry("booking:1", 7)])
        await broker.publish([entry("booking:1", 8)])
        await until(lambda: bool(heard.entries))
        assert [each.offset for each in heard.entries] == [8]
        await theirs.stop()


async def test_control_is_not_overtaken_within_a_publication(redis_url: str) -> None:
    async with connected(redis_url) as client:
        heard = Heard()
        broker = RedisBroker(client)
        broker.attach(heard)
        await broker.subscribe(["booking:1", "control"])
        await broker.publish([entry("booking:1", 1), entry("control", 1), entry("booking:1", 2)])
        await until(lambda: len(heard.entries) == 3)
        assert [each.channel for each in heard.entries] == ["booking:1", "control", "booking:1"]


async def test_large_frames_arrive(redis_url: str) -> None:
    async with connected(redis_url) as client:
        heard = Heard()
        broker = RedisBroker(client)
        broker.attach(heard)
        await broker.subscribe(["booking:1"])
        sent = [entry("booking:1", n, bytes([n]) * 60_000) for n in range(1, 20)]
        await broker.publish(sent)
        await until(lambda: len(heard.entries) == len(sent))
        assert heard.entries == sent


async def test_a_restarted_redis_is_joined_again_and_reported_as_a_loss() -> None:
    with RedisServer() as server:
        async with connected(server.url) as client:
            heard = Heard()
            broker = RedisBroker(client)
            broker.attach(heard)
            await broker.subscribe([f"booking:{n}" for n in range(1500)])
            server.kill()
            await until(lambda: not client.connected)
            server.start()
            await until(lambda: heard.losses == 1)
            await broker.publish([entry("booking:1499")])
            await until(lambda: bool(heard.entries))


async def test_what_is_subscribed_while_redis_is_away_is_joined_when_it_is_back() -> None:
    with RedisServer() as server:
        async with connected(server.url) as client:
            heard = Heard()
            broker = RedisBroker(client)
            broker.attach(heard)
            server.kill()
            await until(lambda: not client.connected)
            await broker.subscribe(["booking:1"])
            with pytest.raises(Unavailable):
                await RedisBroker(client, followed=False).subscribe(["booking:2"])
            server.start()
            await until(lambda: client.connected and heard.losses == 1)
            await broker.publish([entry("booking:1")])
            await until(lambda: bool(heard.entries))


async def test_publishing_never_waits_for_a_redis_that_hangs() -> None:
    with RedisServer() as server:
        async with connected(server.url) as client:
            broker = RedisBroker(client)
            server.pause()
            began = asyncio.get_running_loop().time()
            for n in range(1, 31):
                await broker.publish([entry(f"booking:{k}", n, b"x" * 300) for k in range(1000)])
            assert asyncio.get_running_loop().time() - began < 1.0
            assert client.counts.dropped > 0
            server.resume()


async def test_a_failover_by_sentinel_is_followed() -> None:
    setup = Watched()
    with started(setup):
        async with connected(setup.url) as client:
            heard = Heard()
            broker = RedisBroker(client)
            broker.attach(heard)
            await broker.subscribe(["booking:1"])
            setup.primary.kill()
            await until(lambda: not client.connected)
            await until(lambda: client.connected and heard.losses > 0, 15)
            await broker.publish([entry("booking:1")])
            await until(lambda: bool(heard.entries))


async def test_a_slot_that_moves_is_followed() -> None:
    setup = Cluster()
    with started(setup):
        async with connected(setup.url) as client:
            heard = Heard()
            broker = RedisBroker(client)
            broker.attach(heard)
            await broker.subscribe(["booking:1"])
            slot = key_slot(client.name("channel", "booking:1"))
            source = setup.nodes[slot * 3 // 16384]
            target = next(node for node in setup.nodes if node is not source)
            setup.move_slot(slot, source, target)
            await until(lambda: heard.losses > 0)

            offsets = iter(range(1, 1_000_000))

            async def heard_again() -> None:
                # A publication may still meet the old owner, which refuses it: then the next one does not.
                while not heard.entries:
                    await broker.publish([entry("booking:1", next(offsets))])
                    await asyncio.sleep(0.02)

            await asyncio.wait_for(heard_again(), 5)


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("redis://127.0.0.1:{closed}/0", "is away"),
        ("redis://127.0.0.1:{replica}/0", "is a replica (read-only): give the address of its primary"),
        ("redis://127.0.0.1:{sentinel}/0", "is a Sentinel"),
        ("redis+cluster://127.0.0.1:{primary}", "is not part of a cluster"),
        ("redis+sentinel://127.0.0.1:{sentinel}/nothing", "no Sentinel names a primary of 'nothing'"),
        ("redis+sentinel://127.0.0.1:{closed}/market", "no Sentinel names a primary of 'market'"),
    ],
)
async def test_what_is_wrong_is_said_in_one_line(watched: Watched, url: str, line: str) -> None:
    ports = {"closed": free_port(), "replica": watched.replica.port, "sentinel": watched.sentinel.port}
    problem = await problem_of(url.format(**ports, primary=watched.primary.port))
    assert line in problem
    assert "\n" not in problem


async def test_a_command_that_cannot_be_written_fails_alone(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with connected(redis_url) as client:
        before = client.counts.failed
        wrong: Any = None
        told = await client.run([(b"k", ("ECHO", word)) for word in ("one", wrong, "\ud800", "two")], 5)
        assert [told[0], told[3]] == [b"one", b"two"]
        assert [type(told[1]), type(told[2])] == [TypeError, UnicodeEncodeError]
        assert (client.counts.failed - before, client.counts.reconnects, client.connected) == (2, 0, True)
        assert caplog.text.count("a command for Redis cannot be written: ('ECHO',)") == 2


async def test_a_primary_that_becomes_a_replica_is_noticed_although_it_takes_what_is_published() -> None:
    times = RedisTimes(ping_seconds=0.1)
    with RedisServer() as primary, RedisServer() as other:
        async with connected(primary.url, times) as client:
            say(primary.port, f"REPLICAOF 127.0.0.1 {other.port}")
            async with asyncio.timeout(2):
                while not client.misconfigured:
                    await RedisBroker(client).publish([entry("booking:1")])
                    await asyncio.sleep(0.01)
            assert "is a replica" in str(client.problem)
            say(primary.port, "REPLICAOF NO ONE")
            await until(lambda: client.connected)
            assert client.problem is None


async def test_client_ends_although_a_library_takes_the_cancellation_for_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looking = asyncio.Event()

    async def deaf_once(*_: object) -> Layout:
        if not looking.is_set():
            looking.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                pass
        raise RedisAway("no answer in time")

    monkeypatch.setattr(redis_client, "discover", deaf_once)
    client = RedisClient(RedisAddress.parse("redis://127.0.0.1:1/0"), QUICK)
    await client.start(NAMESPACE)
    await looking.wait()
    async with asyncio.timeout(5):
        await client.stop()


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    setup = Watched()
    with started(setup):
        yield setup


async def test_a_wrong_password_and_an_untrusted_certificate_are_told_apart() -> None:
    with SecuredRedis() as server:
        for url, line in (
            (server.url.replace("1@", "2@"), "refuses the user name or the password"),
            (server.url.replace("%2F1@", "@").replace(":p%40ss%3Aw%C3%B6rd@", ""), "refuses the user name"),
            (server.url.partition("?")[0], "is not accepted: self-signed certificate"),
            (f"redis://127.0.0.1:{server.port}/0", "is away"),
        ):
            problem = await problem_of(url)
            assert line in problem
            assert "p@ss" not in problem
