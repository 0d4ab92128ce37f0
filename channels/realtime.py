"""The live side of one node, put together: what the server starts, hands sockets to, drains and stops."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from channels.admission import Admission
from channels.broker import Broker
from channels.deflate import Deflater
from channels.ephemeral import Announcer
from channels.heartbeat import Wheel
from channels.hub import Hub
from channels.limits import Limits, TokenBuckets
from channels.node import Node, untraced
from channels.ports import (
    Access,
    Acknowledgements,
    Connections,
    Desk,
    Doorman,
    Metrics,
    NoMetrics,
    Snapshots,
    Trace,
    Transport,
    WriteEach,
    write_to_none,
)
from channels.presence import NodePresence, Presence
from channels.protocol import CloseCode
from channels.session import Session
from channels.subscriptions import Subscriptions
from domain.log import EventLog
from domain.ports import Clock

logger = logging.getLogger(__name__)

DRAIN_STEP_SECONDS = 0.05
BUSY_SECONDS = 2.0
"""How long a session may finish its commands past its time to close."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The adapters of one node; see :mod:`channels.ports`."""

    log: EventLog
    broker: Broker
    desk: Desk
    doorman: Doorman
    access: Access
    snapshots: Snapshots
    connections: Connections
    acknowledgements: Acknowledgements
    clock: Clock


class Realtime:
    """One node's live side.

    Attributes:
        hub: for audits, tailing and control listeners.
        announcer: for ephemeral events.
        presence: who is on a channel.
        draining: no new socket should be let in.
    """

    def __init__(
        self,
        ports: Ports,
        limits: Limits,
        *,
        metrics: Metrics | None = None,
        presence: Presence | None = None,
        buckets: TokenBuckets | None = None,
        write_each: WriteEach = write_to_none,
        deflate: bool = False,
        trace: Trace = untraced,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        metrics = metrics or NoMetrics()
        self.hub = Hub(ports.log, ports.broker, limits, metrics, write_each, Deflater() if deflate else None)
        self.announcer = Announcer(ports.broker, ports.clock, limits, metrics)
        self.presence: Presence = presence or NodePresence(self.hub)
        self.draining = False
        self._subscriptions = Subscriptions(self.hub, ports.log, ports.access, ports.snapshots, limits)
        self._wheel = Wheel(limits, monotonic)
        self._monotonic = monotonic
        self._beating: asyncio.Task[None] | None = None
        self._node = Node(
            limits=limits,
            admission=Admission(limits.connects_at_once, limits.line_seconds),
            hub=self.hub,
            subscriptions=self._subscriptions,
            presence=self.presence,
            desk=ports.desk,
            doorman=ports.doorman,
            connections=ports.connections,
            acknowledgements=ports.acknowledgements,
            metrics=metrics,
            clock=ports.clock,
            monotonic=monotonic,
            wheel=self._wheel,
            buckets=TokenBuckets(
                limits.user_requests_per_second, limits.user_burst_requests, limits.user_debt_requests, limits.buckets
            )
            if buckets is None
            else buckets,
            trace=trace,
        )

    async def start(self) -> None:
        """Begin to listen, before the first socket.

        Raises:
            Unavailable: the log or the broker is away.
        """
        await self.hub.start()
        await self.announcer.start()
        self._beating = asyncio.create_task(self._wheel.run(), name="heartbeat")

    def open(self, transport: Transport, tag: str = "") -> Session:
        """A connection is open: its session, which expects the transport's callbacks from now on.

        Args:
            tag: told at the end of the session's id, for connections that are found by it.
        """
        return Session(self._node, transport, tag)

    def spend(self, user_id: str) -> float:
        """Take one request from the user's bucket for something that came by another door than a socket.

        Returns:
            Seconds to wait when there was none, else 0. Being refused costs nothing: a client that floods REST has its
            sockets closed for it no sooner.
        """
        now = self._monotonic()
        wait_seconds = self._node.buckets.wait_seconds(user_id, now)
        if not wait_seconds:
            self._node.buckets.take(user_id, now)
        return wait_seconds

    @property
    def sockets(self) -> int:
        """Open sockets, signed in or not."""
        return len(self._node.sessions)

    async def drain(self, window_seconds: float, deadline_seconds: float) -> None:
        """Send every socket away, spread over the window, so that they do not all arrive elsewhere at once.

        Each is told at once when it will be closed (4000). A session whose commands still run at that time is given a
        moment to answer them. Returns when no socket is open, or at the deadline with the rest aborted.
        """
        self.draining = True
        began = self._monotonic()
        sessions = list(self._node.sessions)
        random.shuffle(sessions)
        plan: list[tuple[float, Session]] = []
        for place, session in enumerate(sessions, start=1):
            delay = window_seconds * place / len(sessions)
            session.notify("drain", {"reconnect_after_ms": int(delay * 1000)})
            plan.append((began + delay, session))
        plan.reverse()
        ends = began + deadline_seconds
        while plan or self._node.sessions:
            now = self._monotonic()
            if now >= ends:
                break
            waiting: list[tuple[float, Session]] = []
            while plan and plan[-1][0] <= now:
                closes, session = plan.pop()
                if session.busy and now < closes + BUSY_SECONDS:
                    waiting.append((closes, session))
                else:
                    session.close(CloseCode.DRAIN)
            plan += reversed(waiting)
            for session in self._node.sessions - {session for _, session in plan}:
                # It slipped in while the door was closing.
                session.close(CloseCode.DRAIN)
            await asyncio.sleep(min(DRAIN_STEP_SECONDS, max(0.0, ends - now)))
        for session in list(self._node.sessions):
            session.close(CloseCode.DRAIN)

    async def stop(self, timeout_seconds: float = 5.0) -> None:
        """Close what is still open, let running commands finish within the timeout, and end all tasks."""
        self.draining = True
        for session in list(self._node.sessions):
            session.close(CloseCode.DRAIN)
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
            self._beating = None
        await self._finish_tasks(timeout_seconds)
        await self.announcer.stop()
        await self.hub.stop()
        await self._subscriptions.close()

    async def _finish_tasks(self, timeout_seconds: float) -> None:
        ends = self._monotonic() + timeout_seconds
        # A finished command may leave a goodbye behind, hence the loop.
        while self._node.tasks and (left := ends - self._monotonic()) > 0:
            await asyncio.wait(set(self._node.tasks), timeout=left)
            await asyncio.sleep(0)
        tasks = set(self._node.tasks)
        if tasks:
            logger.warning("%d commands did not finish in time", len(tasks))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
