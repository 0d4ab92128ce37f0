"""Server processes on one private MariaDB and one private Redis, and wires between them that swallow or cut bytes."""

from __future__ import annotations

import asyncio
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from persistence.database import DatabaseOptions
from persistence.migrate import upgrade
from tests.acceptance.demo import Demo
from tests.experiments.crowd import gather_crowd
from tests.redis_topologies import Proxy
from tests.services import MariaDB, RedisServer, Server

COMMIT = b"\x07\x00\x00\x00\x03COMMIT"
"""COM_QUERY on MySQL's wire: length, number in the exchange, command, text."""


class Wire(Proxy):
    """Stands between two parties of any protocol; besides what :class:`Proxy` does it cuts MySQL's replies.

    Attributes:
        cuts_commit_of: when this text crossed a connection, its next COMMIT is passed on, but no reply comes back any
            more, and the connection is cut. Empty: nothing is cut.
        commits_cut: how often that was done.
        loses_answers: what the target says is swallowed, what it is told is not.
    """

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self.cuts_commit_of = b""
        self.commits_cut = 0
        self.loses_answers = False

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        marked = False
        while data := await reader.read(65_536):
            if self.swallowing:
                continue
            marked = marked or bool(self.cuts_commit_of and self.cuts_commit_of in data)
            if marked and self.cuts_commit_of and COMMIT in data:
                # The server has it, and works on it; what it says is not waited for.
                self.commits_cut += 1
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(0.2)
                return
            writer.write(data)
            await writer.drain()

    async def _copy_answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if self.swallowing or self.loses_answers or (self.cuts_commit_of and self.commits_cut):
                continue
            writer.write(data)
            await writer.drain()


class Backstage:
    """An event loop in a thread, for wires that outlive the loop of one test."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="backstage", daemon=True)

    @contextmanager
    def running(self) -> Iterator[Backstage]:
        self._thread.start()
        try:
            yield self
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(10)
            self.loop.close()

    @contextmanager
    def wire(self, target_port: int) -> Iterator[Wire]:
        wire = Wire(target_port)
        context = wire.running()
        asyncio.run_coroutine_threadsafe(context.__aenter__(), self.loop).result(10)
        try:
            yield wire
        finally:
            asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), self.loop).result(10)

    def cut(self, wire: Wire) -> None:
        self.loop.call_soon_threadsafe(wire.cut)


class Cluster:
    """Three demo nodes. The last one reaches Redis and the database through wires.

    Attributes:
        database, url: name and address of the database, not through a wire.
        to_redis, to_database: the wires of the last node.
    """

    SIZE = 3

    def __init__(
        self,
        directory: Path,
        mariadb: MariaDB,
        redis: RedisServer,
        backstage: Backstage,
        wires: Sequence[Wire],
        starters: ThreadPoolExecutor,
    ) -> None:
        self.mariadb = mariadb
        self.redis = redis
        self.to_redis, self.to_database = wires
        self._backstage = backstage
        # A process dies with the thread that started it, so that must live as long as the cluster.
        self._starters = starters
        self.database = asyncio.run(mariadb.create_database())
        self.url = mariadb.url(self.database)
        common: dict[str, Any] = {
            "database_tls": "off",
            "drain_seconds": 0.5,
            "offer_scheduled_seconds": 2,  # of those that nobody is meant to accept
            "shutdown_deadline_seconds": 8,
        }
        url = self.url
        self.nodes = [
            Demo(_made(directory / "node-1"), database_url=url, redis_url=redis.url, **common),
            Demo(_made(directory / "node-2"), database_url=url, redis_url=redis.url, **common),
            Demo(
                _made(directory / "node-3"),
                database_url=url.replace(f":{mariadb.port}/", f":{self.to_database.port}/"),
                redis_url=self.to_redis.url,
                **common,
            ),
        ]

    @property
    def bases(self) -> list[str]:
        return [node.base for node in self.nodes]

    @property
    def wired(self) -> Demo:
        """The node behind the wires."""
        return self.nodes[-1]

    async def rows(self, statement: str) -> list[Any]:
        """Reads the database, not through a wire."""
        return await self.nodes[0].rows(statement)

    async def start(self, *what: Demo | Server) -> None:
        """Starts nodes or services, at once, to stay for other experiments."""
        await asyncio.gather(*(asyncio.wrap_future(self._starters.submit(each.start)) for each in what))

    def cut(self, wire: Wire) -> None:
        """Closes every connection of a wire; new ones may come."""
        self._backstage.cut(wire)

    def heal(self) -> None:
        """Undoes whatever an experiment did: everything runs and every wire is whole when this returns."""
        for wire in (self.to_redis, self.to_database):
            wire.swallowing = wire.refusing = wire.loses_answers = False
            wire.cuts_commit_of = b""
            wire.commits_cut = 0
        for service in (self.mariadb, self.redis):
            if service.is_running():
                service.resume()
            else:
                self._starters.submit(service.start).result()
        _all(self._starters, [node.start for node in self.nodes if not node.is_running()])
        for node in self.nodes:
            wait_until_ready(node)

    async def measured(self, name: str, value: float, *nodes: Demo, seconds: float = 15.0) -> float:
        """How long it took, in seconds, until these nodes (all, by default) measured this."""

        async def one(node: Demo) -> None:
            while (await asyncio.to_thread(metrics, node)).get(name) != value:  # noqa: ASYNC110 — it tells nobody
                await asyncio.sleep(0.05)

        began = time.monotonic()
        async with asyncio.timeout(seconds):
            await asyncio.gather(*map(one, nodes or self.nodes))
        return time.monotonic() - began

    def leader(self) -> Demo:
        """The node that sequences events."""
        return next(node for node in self.nodes if node.is_running() and metrics(node)["fixnado_sequencer_leading"])


def metrics(node: Demo) -> dict[str, float]:
    """What it measures now; samples with labels by their whole text."""
    with urllib.request.urlopen(f"{node.base}/metrics", timeout=5) as reply:  # noqa: S310 — http above
        lines = reply.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def wait_until_ready(node: Demo, seconds: float = 30.0) -> None:
    """Returns when readiness says 200 and Redis is in use."""
    ends = time.monotonic() + seconds
    while not (node.is_ready() and metrics(node)['fixnado_event_path{state="ok"}']):
        assert time.monotonic() < ends, f"not well again: {node.output()[-3000:]}"
        time.sleep(0.05)


@contextmanager
def cluster(directory: Path) -> Iterator[Cluster]:
    """Starts everything, and ends it."""
    with ExitStack() as stack:
        starters = stack.enter_context(ThreadPoolExecutor(Cluster.SIZE))
        mariadb, redis = stack.enter_context(closing(MariaDB())), stack.enter_context(closing(RedisServer()))
        _all(starters, [mariadb.start, redis.start])
        backstage = stack.enter_context(Backstage().running())
        wires = [stack.enter_context(backstage.wire(server.port)) for server in (redis, mariadb)]
        made = Cluster(directory, mariadb, redis, backstage, wires, starters)
        for node in made.nodes:
            stack.callback(node.kill)
        asyncio.run(upgrade(made.url, DatabaseOptions(tls="off")))
        asyncio.run(gather_crowd(made.url))
        made.heal()
        yield made


def _all(pool: ThreadPoolExecutor, calls: Sequence[Callable[[], None]]) -> None:
    for done in [pool.submit(call) for call in calls]:
        done.result()


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True)
    return directory
