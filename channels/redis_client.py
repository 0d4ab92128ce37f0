"""This node's connection to Redis, whatever it consists of: one server, a primary named by Sentinels, or a cluster.

For each server a :class:`channels.redis_pipe.Pipe` takes commands and a :class:`channels.redis_listener.Listener`
holds subscriptions; here is decided which server that is, and where it has gone when it moved.

Invariants:

* nothing here makes a caller wait for a server that is away: commands fail within their timeout, what is posted is
  queued or dropped, subscriptions are remembered;
* a command is sent at most once;
* after every gap in listening, each :meth:`RedisClient.on_loss` callback is called, once all names are subscribed
  again.

Concurrency: one event loop; the tasks are made by :meth:`RedisClient.start` and ended by :meth:`RedisClient.stop`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any

from redis.asyncio.connection import AbstractConnection

from channels.redis_address import Endpoint, Kind, RedisAddress
from channels.redis_layout import Layout, RedisAway, WrongRedis, check, connect, discover
from channels.redis_listener import Listener
from channels.redis_pipe import Job, Pipe, RedisCounts, RedisTimes, Words, backoff
from domain.errors import Unavailable

logger = logging.getLogger(__name__)

Handler = Callable[[bytes, bytes], None]
"""Gets the name and the payload of a message, on the loop; must be quick and must not raise."""


class _Server:
    """One server's pipe and listener, and the tasks that run them."""

    def __init__(self, client: RedisClient, endpoint: Endpoint, sharded: bool) -> None:
        self.endpoint = endpoint
        self._changed = partial(client.server_changed, endpoint)
        dial = partial(connect, client.address, endpoint, client.times.connect_seconds)
        self.pipe = Pipe(
            dial,
            partial(self._check, client.address),
            client.times,
            client.counts,
            self._changed,
            client.look_again,
        )
        self.listener = Listener(
            dial,
            sharded,
            client.times,
            client.counts,
            client.heard,
            self._listener_changed,
            client.lost,
        )
        self._tasks = (
            asyncio.create_task(self.pipe.run(), name=f"redis-pipe {endpoint}"),
            asyncio.create_task(self.listener.run(), name=f"redis-listener {endpoint}"),
        )

    async def _check(self, address: RedisAddress, connection: AbstractConnection) -> None:
        await check(address, self.endpoint, connection)

    def _listener_changed(self, trouble: RedisAway | None) -> None:
        if trouble is not None:
            self.pipe.suspect()
        self._changed(trouble)

    @property
    def up(self) -> bool:
        return self.pipe.up and self.listener.up

    async def stop(self) -> None:
        await _end(self._tasks)


AGAIN_SECONDS = 2.0
MOST_TIMES = 4
"""After so long a task that was told to end and has not is told again, and so many times. Longer than closing may take,
which would be cut short by it and leave its socket behind.
"""


class RedisClient:
    """See the module.

    Attributes:
        counts: for metrics.
        problem: why Redis is not usable now, as a line for the operator; ``None`` when it is, and until the first
            attempt has ended.
        misconfigured: the problem will not pass by waiting: a replica, a refused password, another kind of server.
    """

    def __init__(self, address: RedisAddress, times: RedisTimes | None = None) -> None:
        self.address = address
        self.times = times or RedisTimes()
        self.counts = RedisCounts()
        self.problem: str | None = None
        self.misconfigured = False
        self._namespace = b""
        self._layout: Layout | None = None
        self._servers: dict[Endpoint, _Server] = {}
        self._handlers: dict[bytes, Handler] = {}
        self._loss_listeners: list[Callable[[], None]] = []
        self._change_listeners: list[Callable[[], None]] = []
        self._look = asyncio.Event()
        self._rebuild_due = False
        self._task: asyncio.Task[None] | None = None

    # Life

    async def start(self, namespace: str) -> None:
        """Begin to connect; returns at once, whether Redis is there or not.

        Args:
            namespace: begins every key and channel. Pub/sub knows no databases, so it must differ for every event log
                whose nodes share a Redis; the epoch of the ``control`` channel does.
        """
        self._namespace = f"fixnado:{namespace}:".encode()
        if self.address.kind is Kind.SINGLE:
            # Known without asking, so that what is published in the very first moment has a queue.
            await self._arrange(Layout(self.address.endpoints))
        self._task = asyncio.create_task(self._supervise(), name="redis-layout")

    async def stop(self) -> None:
        """Give up all connections. What is queued is dropped."""
        if self._task is not None:
            await _end([self._task])
            self._task = None
        servers, self._servers = self._servers, {}
        self._layout = None
        await asyncio.gather(*(server.stop() for server in servers.values()))

    @property
    def connected(self) -> bool:
        """Whether every server known is connected, for commands and for listening."""
        return bool(self._servers) and all(server.up for server in self._servers.values())

    def name(self, *parts: str) -> bytes:
        """A key or channel in this client's namespace; not before :meth:`start`, which says what that is."""
        assert self._namespace, "the client has not been started"
        return self._namespace + ":".join(parts).encode()

    def on_loss(self, listener: Callable[[], None]) -> None:
        """Have it called whenever messages may have been missed."""
        self._loss_listeners.append(listener)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have it called when a connection comes or goes."""
        self._change_listeners.append(listener)

    def rebuild(self, reason: str) -> None:
        """Drop every connection and begin anew, because it is known from elsewhere that they are no good."""
        logger.warning("connecting to Redis anew: %s", reason)
        self._rebuild_due = True
        self._look.set()

    # Commands

    async def run(self, commands: Sequence[tuple[bytes, Words]], timeout_seconds: float) -> list[Any]:
        """Carry out commands, each given with a key that says where; in order for each key.

        Returns:
            The answers; an answer that is an error of Redis is a ``ResponseError`` among them, and a command that
            cannot be written (a word that is none of :data:`Words`) has its ``TypeError`` or ``ValueError`` there.

        Raises:
            Unavailable: not all were answered in time. Those not answered may have been carried out.
        """
        loop = asyncio.get_running_loop()
        expires = loop.time() + timeout_seconds
        answers: list[asyncio.Future[Any]] = []
        for key, words in commands:
            pipe = self._pipe_of(key)
            if pipe is None or not pipe.up:
                for answer in answers:
                    answer.cancel()
                raise Unavailable
            answer = loop.create_future()
            answers.append(answer)
            pipe.put(Job(words, expires, answer))
        if not answers:
            return []
        try:
            async with asyncio.timeout(timeout_seconds):
                results = await asyncio.gather(*answers, return_exceptions=True)
        except TimeoutError:
            raise Unavailable from None
        if any(isinstance(result, RedisAway) for result in results):
            raise Unavailable
        return results

    def post(self, commands: Iterable[tuple[bytes, Words]]) -> None:
        """Send commands on their way without an answer. Never waits and never raises; losses are counted."""
        expires = asyncio.get_running_loop().time() + self.times.fresh_seconds
        for key, words in commands:
            pipe = self._pipe_of(key)
            if pipe is None:
                self.counts.dropped += 1
            else:
                pipe.put(Job(words, expires))

    def publish(self, messages: Iterable[tuple[bytes, bytes]]) -> None:
        """Send messages, each a name and a payload, like :meth:`post`."""
        verb = "SPUBLISH" if self.address.kind is Kind.CLUSTER else "PUBLISH"
        self.post((name, (verb, name, payload)) for name, payload in messages)

    def _pipe_of(self, key: bytes) -> Pipe | None:
        server = self._server_of(key)
        return None if server is None else server.pipe

    def _server_of(self, name: bytes) -> _Server | None:
        endpoint = None if self._layout is None else self._layout.owner_of(name)
        return None if endpoint is None else self._servers.get(endpoint)

    # Listening

    async def listen(self, names: Collection[bytes], handler: Handler) -> bool:
        """Hear messages of these names as well. They are remembered, whatever happens.

        Returns:
            Whether all are confirmed; if not, messages are heard once Redis is back, after a loss.
        """
        waits: list[asyncio.Future[None]] = []
        away = False
        by_server: dict[_Server, list[bytes]] = {}
        for name in names:
            self._handlers[name] = handler
            server = self._server_of(name)
            if server is None:
                away = True
            else:
                by_server.setdefault(server, []).append(name)
        for server, some in by_server.items():
            waits += server.listener.hold(some)
            away = away or not server.listener.up
        # One that is known to be away is not waited for.
        if waits and (not away or self.problem is None):
            done, late = await asyncio.wait(waits, timeout=self.times.listen_seconds)
            return not late and not any(wait.cancelled() for wait in done)
        return not waits and not away

    async def unlisten(self, names: Collection[bytes]) -> None:
        """Hear these names no more. Unknown ones are ignored."""
        for name in names:
            self._handlers.pop(name, None)
        for server in self._servers.values():
            server.listener.drop(names)

    def heard(self, name: bytes, payload: bytes) -> None:
        """A message has come (called by listeners)."""
        handler = self._handlers.get(name)
        if handler is not None:
            handler(name, payload)

    def lost(self) -> None:
        """Messages may have been missed (called by listeners)."""
        for listener in self._loss_listeners:
            listener()

    # Which servers

    def look_again(self) -> None:
        """The layout seems to have changed."""
        self._look.set()

    def server_changed(self, endpoint: Endpoint, trouble: RedisAway | None) -> None:
        """A pipe or listener went up or down (called by them)."""
        if trouble is None:
            if self.connected:
                if self.problem is not None:
                    logger.info("connected to Redis at %s", ", ".join(map(str, self._servers)))
                self.problem, self.misconfigured = None, False
        else:
            self._note(trouble)
            if self.address.kind is not Kind.SINGLE:
                self._look.set()
        for listener in self._change_listeners:
            listener()

    def _note(self, trouble: RedisAway) -> None:
        if self.problem != str(trouble):
            logger.warning("%s", trouble)
        self.problem, self.misconfigured = str(trouble), isinstance(trouble, WrongRedis)

    async def _supervise(self) -> None:
        failures = 0
        while True:
            if self._rebuild_due:
                self._rebuild_due = False
                servers, self._servers = self._servers, {}
                await asyncio.gather(*(server.stop() for server in servers.values()))
            try:
                known = () if self._layout is None else self._layout.endpoints
                await self._arrange(await discover(self.address, known, self.times.connect_seconds))
                failures = 0
            except RedisAway as error:
                self._note(error)
                failures += 1
                self._look.set()
            # Not more often than this, however much goes wrong at once.
            await asyncio.sleep(backoff(self.times, failures))
            await self._until_it_matters()

    async def _until_it_matters(self) -> None:
        try:
            async with asyncio.timeout(None if self.address.kind is Kind.SINGLE else self.times.recheck_seconds):
                await self._look.wait()
        except TimeoutError:
            pass
        self._look.clear()

    async def _arrange(self, layout: Layout) -> None:
        """Have a pipe and a listener at each server of the layout, and every name at its owner."""
        self._layout = layout
        gone = [server for endpoint, server in self._servers.items() if endpoint not in layout.endpoints]
        for server in gone:
            del self._servers[server.endpoint]
        added = [endpoint for endpoint in layout.endpoints if endpoint not in self._servers]
        for endpoint in added:
            self._servers[endpoint] = _Server(self, endpoint, self.address.kind is Kind.CLUSTER)
        moved: list[asyncio.Future[None]] = []
        homes: dict[Endpoint, list[bytes]] = {endpoint: [] for endpoint in self._servers}
        for name in self._handlers:
            owner = layout.owner_of(name)
            if owner is not None:
                homes[owner].append(name)
        for endpoint, names in homes.items():
            listener = self._servers[endpoint].listener
            strangers = set(listener.names) - set(names)
            listener.drop(strangers)
            waits = listener.hold([name for name in names if name not in listener.names])
            if listener.up:
                moved += waits
        if gone:
            await asyncio.gather(*(server.stop() for server in gone))
        if moved:
            # A connected listener says nothing of names that were merely added to it.
            await asyncio.wait(moved, timeout=self.times.listen_seconds)
            self.lost()


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended: a library that they wait in may take a cancellation for its own timeout."""
    left = set(tasks)
    for _ in range(MOST_TIMES):
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_SECONDS)
        if not left:
            await asyncio.gather(*tasks, return_exceptions=True)
            return
    logger.error("tasks that do not end: %s", ", ".join(sorted(task.get_name() for task in left)))
