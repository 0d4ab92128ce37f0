"""Which server of Redis has what, and opening a connection to one after making sure that it is the right kind."""

from __future__ import annotations

import asyncio
import ssl
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import Sentinel
from redis.crc import key_slot
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, RedisError, ResponseError

from channels.redis_address import Endpoint, Kind, RedisAddress

CLOSE_SECONDS = 0.25


class RedisAway(Exception):
    """Redis does not answer as it should. The text is a line for the operator, without secrets."""


class WrongRedis(RedisAway):
    """It answers, and it will not do: a replica, a refused password or certificate, another kind of server. Waiting
    does not help.
    """


@dataclass(frozen=True, slots=True)
class Layout:
    """Slots of the key space and the primaries that own them.

    Attributes:
        starts: the first slot of each range, ascending, the first of them 0; empty when there is one server.
        owners: the owner of each range, ``None`` where nobody is.
    """

    endpoints: tuple[Endpoint, ...]
    starts: tuple[int, ...] = ()
    owners: tuple[Endpoint | None, ...] = ()

    @property
    def sharded(self) -> bool:
        """Whether this is a cluster, where pub/sub goes by slot."""
        return bool(self.starts)

    def owner_of(self, name: bytes) -> Endpoint | None:
        """The primary for a key or a channel."""
        if not self.starts:
            return self.endpoints[0]
        return self.owners[bisect_right(self.starts, key_slot(name)) - 1]


async def connect(
    address: RedisAddress, endpoint: Endpoint, timeout_seconds: float, *, any_role: bool = False
) -> AbstractConnection:
    """Open a connection to a primary of the expected kind.

    Args:
        any_role: a replica will do, too.

    Raises:
        WrongRedis: see there.
        RedisAway: nobody answers, or not in time.
    """
    connection = address.connection(endpoint, timeout_seconds)
    try:
        async with asyncio.timeout(timeout_seconds):
            await connection.connect()  # type: ignore[no-untyped-call]
            await check(address, endpoint, connection, any_role=any_role)
    except BaseException as error:
        await close(connection)
        if isinstance(error, RedisAway | asyncio.CancelledError):
            raise
        if isinstance(error, TimeoutError) and address.tls is not None:
            # A server in plain text waits for the end of a line that a TLS greeting rarely has.
            raise RedisAway(
                f"Redis at {endpoint} does not answer in time; one without TLS never will, and needs redis://"
            ) from error
        raise explained(error, endpoint) from error
    return connection


async def check(
    address: RedisAddress, endpoint: Endpoint, connection: AbstractConnection, *, any_role: bool = False
) -> None:
    """Ask a server what it is; also a sign of life.

    Raises:
        WrongRedis: not a primary, or another kind than the address says.
        RedisError, TimeoutError: no proper answer.
    """
    # The one command that every user may run and that tells the role (Redis 6.2); INFO and ROLE are often forbidden.
    await connection.send_command("HELLO", check_health=False)
    answer: Sequence[Any] = await connection.read_response()
    hello: Mapping[Any, Any] = dict(zip(answer[::2], answer[1::2], strict=False))
    role, mode = hello.get(b"role"), hello.get(b"mode")
    if mode == b"sentinel":
        raise WrongRedis(f"Redis at {endpoint} is a Sentinel: use redis+sentinel://HOST:PORT/SERVICE")
    if mode == b"cluster" and address.kind is not Kind.CLUSTER:
        raise WrongRedis(f"Redis at {endpoint} is part of a cluster: use redis+cluster://HOST:PORT")
    if mode != b"cluster" and address.kind is Kind.CLUSTER:
        raise WrongRedis(f"Redis at {endpoint} is not part of a cluster: use redis://HOST:PORT")
    if role != b"master" and not any_role:
        raise WrongRedis(f"Redis at {endpoint} is a replica (read-only): give the address of its primary")


async def close(connection: AbstractConnection) -> None:
    """Close, with a moment for the peer to take part: TLS says goodbye in both directions."""
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await connection.disconnect()
    except (RedisError, OSError, TimeoutError):
        # A connection that cannot even be closed is already gone.
        pass


def explained(error: BaseException, endpoint: Endpoint) -> RedisAway:
    """The error as a line for the operator."""
    if isinstance(error, RedisAway):
        return error
    refused_tls = _tls_trouble(error, endpoint)
    if refused_tls is not None:
        return refused_tls
    if isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError):
        return WrongRedis(f"Redis at {endpoint} refuses the user name or the password")
    if isinstance(error, TimeoutError):
        return RedisAway(f"Redis at {endpoint} does not answer in time")
    if isinstance(error, ResponseError) and "unknown command" in str(error).lower():
        return WrongRedis(f"Redis at {endpoint} is too old: version 6.2 is needed, 7.0 for a cluster")
    return RedisAway(f"Redis at {endpoint} is away: {str(error) or type(error).__name__}")


def _tls_trouble(error: BaseException, endpoint: Endpoint) -> WrongRedis | None:
    """What TLS objects to, which redis-py wraps into an error of its own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            why = str(cause.verify_message).rstrip(".") or "it cannot be verified"
            return WrongRedis(f"the certificate of Redis at {endpoint} is not accepted: {why}")
        if isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER":
            return WrongRedis(f"Redis at {endpoint} does not speak TLS: use redis:// instead of rediss://")
        cause = cause.__cause__ or cause.__context__
    return None


async def discover(address: RedisAddress, known: Sequence[Endpoint], timeout_seconds: float) -> Layout:
    """The layout as it is now.

    Args:
        known: servers of an earlier layout, asked when those of the address do not answer.
        timeout_seconds: for each server asked.

    Raises:
        RedisAway: nobody tells.
    """
    match address.kind:
        case Kind.SINGLE:
            return Layout(address.endpoints)
        case Kind.SENTINEL:
            return await _ask_sentinels(address, timeout_seconds)
        case Kind.CLUSTER:
            return await _ask_cluster(address, known, timeout_seconds)


async def _ask_sentinels(address: RedisAddress, timeout_seconds: float) -> Layout:
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        [(each.host, each.port) for each in address.endpoints],
        sentinel_kwargs=dict(address.sentinel_options(timeout_seconds)),
    )
    try:
        async with asyncio.timeout(timeout_seconds * len(address.endpoints)):
            host, port = await sentinel.discover_master(address.service)
    except (RedisError, OSError, TimeoutError) as error:
        asked = ", ".join(map(str, address.endpoints))
        raise RedisAway(f"no Sentinel names a primary of {address.service!r} (asked: {asked})") from error
    finally:
        try:
            async with asyncio.timeout(timeout_seconds):
                await sentinel.aclose()
        except (RedisError, OSError, TimeoutError):
            # Asked and done; what cannot be closed is gone.
            pass
    return Layout((Endpoint(str(host), int(port)),))


async def _ask_cluster(address: RedisAddress, known: Sequence[Endpoint], timeout_seconds: float) -> Layout:
    trouble: RedisAway | None = None
    for endpoint in dict.fromkeys((*known, *address.endpoints)):
        try:
            connection = await connect(address, endpoint, timeout_seconds, any_role=True)
            try:
                async with asyncio.timeout(timeout_seconds):
                    await connection.send_command("CLUSTER", "SLOTS", check_health=False)
                    return layout_of(await connection.read_response(), endpoint)
            finally:
                await close(connection)
        except (RedisAway, RedisError, OSError, TimeoutError) as error:
            trouble = explained(error, endpoint)
    assert trouble is not None, "an address has at least one endpoint"
    raise trouble


def layout_of(slots: Sequence[Sequence[Any]], asked: Endpoint) -> Layout:
    """Read the answer to ``CLUSTER SLOTS``: ``[[first, last, [host, port, …], …], …]``.

    An empty or missing host means the one that was asked (redis.io/docs/latest/commands/cluster-slots).

    Raises:
        RedisAway: no slot has an owner yet.
    """
    starts: list[int] = []
    owners: list[Endpoint | None] = []
    free_from = 0
    for first, last, primary, *_ in sorted(slots, key=_first_slot):
        if first > free_from or not starts:
            starts.append(free_from)
            owners.append(None)
        host = (primary[0] or b"").decode()
        owner = Endpoint(asked.host if host in {"", "?"} else host, primary[1])
        if starts[-1] == first:
            owners[-1] = owner
        else:
            starts.append(first)
            owners.append(owner)
        free_from = last + 1
    if not starts:
        raise RedisAway(f"the Redis cluster at {asked} has no slots assigned")
    if free_from <= 16_383:
        starts.append(free_from)
        owners.append(None)
    return Layout(tuple(dict.fromkeys(owner for owner in owners if owner is not None)), tuple(starts), tuple(owners))


def _first_slot(row: Sequence[Any]) -> int:
    return int(row[0])
