from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.redis_topologies import Cluster, SecuredRedis, ValkeyServer, Watched, started
from tests.services import RedisServer


@contextmanager
def _running(topology: str) -> Iterator[str]:
    match topology:
        case "sentinel" | "cluster":
            setup = Watched() if topology == "sentinel" else Cluster()
            with started(setup):
                yield setup.url
        case "tls-and-password":
            with SecuredRedis() as secured:
                yield secured.url
        case _:
            with ValkeyServer() if topology == "valkey" else RedisServer() as server:
                yield server.url


@pytest.fixture(scope="session", params=["plain", "tls-and-password", "sentinel", "cluster", "valkey"])
def topology_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each kind of Redis, one after the other, shared by the tests that ask. What is in it stays from test to test."""
    with _running(request.param) as url:
        yield url
