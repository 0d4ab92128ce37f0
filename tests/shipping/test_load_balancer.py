"""deploy/haproxy.cfg in front of two real nodes; only the addresses are others than in the file."""

from __future__ import annotations

import asyncio
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.acceptance.client import CUSTOMER, Rest, signed_in
from tests.acceptance.demo import Demo
from tests.processes import ROOT
from tests.services import MariaDB, RedisServer, Server, program

CONFIGURATION = (ROOT / "deploy" / "haproxy.cfg").read_text()


class HAProxy(Server):
    name = "haproxy"

    def __init__(self, nodes: Sequence[Demo]) -> None:
        super().__init__()
        text = CONFIGURATION.replace("bind :8080", f"bind 127.0.0.1:{self.port}")
        text = (
            text.replace("maxconn 50000", "maxconn 500")
            .replace("inter 2s fall 2", "inter 100ms fall 2")
            .replace(" slowstart 10s", "")
        )
        for number, node in enumerate(nodes, start=1):
            text = text.replace(f"server-{number} server-{number}:8000", f"server-{number} 127.0.0.1:{node.port}")
        assert "server-1:8000" not in text
        self._file = self.directory / "haproxy.cfg"
        self._file.write_text(text)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        return [program("haproxy", "haproxy"), "-db", "-f", str(self._file)]

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.base}/health/live", timeout=1) as answer:  # noqa: S310 — our own
                return bool(answer.status == 200)
        except urllib.error.HTTPError:
            return False


@pytest.fixture(scope="module")
def nodes(
    tmp_path_factory: pytest.TempPathFactory, mariadb: MariaDB, redis_server: RedisServer
) -> Iterator[list[Demo]]:
    settings: dict[str, Any] = {
        "database_url": mariadb.url(asyncio.run(mariadb.create_database())),
        "database_tls": "off",
        "redis_url": redis_server.url,
        "trusted_proxies": "127.0.0.0/8",
        "max_sockets_per_ip": 2,
    }
    started = [Demo(tmp_path_factory.mktemp("node"), **settings) for _ in range(2)]
    with started[0], started[1]:
        yield started


@pytest.fixture
def proxy(nodes: list[Demo]) -> Iterator[HAProxy]:
    with HAProxy(nodes) as server:
        yield server


def test_haproxy_takes_the_file_as_it_is() -> None:
    check = [program("haproxy", "haproxy"), "-c", "-f", str(ROOT / "deploy" / "haproxy.cfg")]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Names of the compose network are not known here, and that is all there is to warn of.
    warnings = [line for line in done.stderr.splitlines() if "[WARNING]" in line]
    assert all("could not resolve address 'server-" in line for line in warnings)


def test_silence_on_a_socket_is_longer_than_a_heartbeat() -> None:
    (tunnel,) = re.findall(r"timeout tunnel (\d+)s", CONFIGURATION)
    assert int(tunnel) > 2 * (25 + 10)


async def test_sockets_spread_and_what_clients_claim_is_replaced(nodes: list[Demo], proxy: HAProxy) -> None:
    forged = {"X-Forwarded-For": "192.0.2.1"}
    async with Rest(proxy.base) as rest:
        for path in ("/metrics", "/health/ready", "/metrics/x"):
            assert (await rest.get(path, headers=forged)).status == 404
        assert (await rest.get("/health/live")).status == 200
    async with signed_in(proxy.base, CUSTOMER) as one, signed_in(proxy.base, CUSTOMER) as two:
        assert "services" in await one.call("service.list")
        assert "services" in await two.call("service.list")
        counts = [await sockets(node) for node in nodes]
        assert counts == [1, 1], "the one with the fewest gets the next"


async def test_a_node_that_ends_sends_its_sockets_to_the_other(nodes: list[Demo], proxy: HAProxy) -> None:
    async with signed_in(proxy.base, CUSTOMER) as socket:
        place = [await sockets(node) for node in nodes].index(1)
        ending = asyncio.create_task(asyncio.to_thread(nodes[place].terminate))
        assert await socket.close_code() == 4000
        # At once, while the balancer may not have noticed yet.
        async with signed_in(proxy.base, CUSTOMER) as again:
            assert "services" in await again.call("service.list")
        assert await ending == 0
    await asyncio.to_thread(nodes[place].start)


async def sockets(node: Demo) -> int:
    async with Rest(node.base) as rest:
        text = (await rest.get("/metrics")).raw.decode()
    (count,) = re.findall(r"^fixnado_sockets (\S+)$", text, re.MULTILINE)
    return int(float(count))
