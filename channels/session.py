"""One connected client: what it may do when, in which order, and how it ends.

Invariants:

* before ``session.connect`` nothing but it has any effect;
* commands run in the order they came, one at a time, in a task that exists only while there are any; at most
  ``requests_in_flight`` wait; whatever is refused for that is answered, not dropped;
* a command that began is finished even when its client is gone: its transaction must not be torn; what only waited is
  dropped;
* what is sent never waits for the client, see :mod:`channels.outlet`.

Commands come as frames (:meth:`Session.received`) or beside the connection (:meth:`Session.perform`); which of the two
a client has is its transport's matter, and the rules are the same.

Concurrency: one event loop. The transport's callbacks (:meth:`Session.received`, ``paused``, ``resumed``, ``lost``) are
synchronous and quick. The task is owned by :attr:`Node.tasks`, which the composition awaits at shutdown.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Collection, Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from channels.limits import Verdict
from channels.node import Node, within
from channels.outlet import Outlet
from channels.ports import SignedIn, Transport
from channels.protocol import (
    PONG,
    CloseCode,
    InvalidRequest,
    NoSuchSession,
    NotJson,
    Request,
    RequestId,
    decode,
    encode_error,
    encode_result,
    text_frame,
)
from channels.session_methods import METHODS, Answer, Ending, connect
from channels.subscriptions import Opened
from channels.topics import Facts, may_subscribe, parse
from domain.errors import FixnadoError, NotAuthenticated, TooManyRequests, UnknownMethod
from domain.identity import Actor
from domain.types import JSON, Origin, new_id

logger = logging.getLogger(__name__)

RETRY_AFTER_FULL_QUEUE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Call:
    """A request in the queue.

    Attributes:
        origin: of the request that brought it; a frame has none yet.
        reply: where the answer goes; ``None`` for the connection itself.
    """

    request: Request
    origin: Origin | None = None
    reply: asyncio.Future[JSON] | None = None


class Session(Outlet):
    """One connection's client. Made when it opens; ends by :meth:`close` or :meth:`lost`, whichever comes first.

    Attributes:
        connecting: ``session.connect`` waits or runs.
        channels: those it is subscribed to.
    """

    __slots__ = (
        "_bad_frames",
        "_connect_deadline",
        "_expires_at",
        "_expiring_at",
        "_frames_before_connect",
        "_hinges",
        "_last_seen",
        "_next_ping",
        "_queue",
        "_task",
        "_told",
        "actor",
        "channels",
        "connecting",
        "id",
        "node",
        "tag",
        "wheel_tick",
    )

    def __init__(self, node: Node, transport: Transport, tag: str = "") -> None:
        super().__init__(transport, node.metrics, node.limits.max_buffered_bytes)
        now = node.monotonic()
        self.node = node
        self.id = ""
        self.tag = tag
        self.actor: Actor | None = None
        self.channels: set[str] = set()
        self.connecting = False
        self.wheel_tick: int | None = None
        self._told: Actor | None = None
        self._bad_frames = 0
        self._frames_before_connect = 0
        self._last_seen = now
        self._connect_deadline = now + node.limits.connect_seconds
        self._next_ping = math.inf
        self._expiring_at = math.inf
        self._expires_at = math.inf
        # Made when needed: most sessions are idle, and an empty deque alone costs 600 bytes.
        self._queue: deque[_Call] | None = None
        self._hinges: dict[str, Facts] | None = None
        self._task: asyncio.Task[None] | None = None
        node.sessions.add(self)
        node.wheel.schedule(self, self._connect_deadline)

    # Requests come in

    def received(self, text: str) -> None:
        """Take one text message from the client."""
        if self.closed:
            return
        node = self.node
        now = self._last_seen = node.monotonic()
        verdict = Verdict.FINE
        if self.actor is None:
            self._frames_before_connect += 1
            if self._frames_before_connect > node.limits.frames_before_connect:
                verdict = Verdict.FLOODING
        else:
            verdict = node.buckets.take(self.actor.user_id, now)
        if verdict is Verdict.FLOODING:
            self.close(CloseCode.FLOODING)
            return
        try:
            request = decode(text)
        except (NotJson, InvalidRequest) as error:
            self._bad_frames += 1
            self._refuse(error.id if isinstance(error, InvalidRequest) else None, error)
            if self._bad_frames >= node.limits.bad_frames:
                self.close(CloseCode.BAD_FRAME)
            return
        if request.method == "pong" and request.id is None:
            return
        if verdict is Verdict.WAIT and self.actor is not None:
            if request.id is not None:
                self._refuse(request.id, TooManyRequests(node.buckets.wait_seconds(self.actor.user_id, now)))
            return
        if request.method in ("ping", "pong"):
            self.send(PONG if request.id is None else text_frame(encode_result(request.id, {})))
        elif self.actor is None and not self.connecting and request.method != "session.connect":
            if request.id is not None:
                self._refuse(request.id, NotAuthenticated())
        elif self._is_full():
            if request.id is not None:
                self._refuse(request.id, TooManyRequests(RETRY_AFTER_FULL_QUEUE_SECONDS))
        else:
            self._enqueue(_Call(request))

    def received_binary(self) -> None:
        """The client sent a binary message: not this protocol."""
        self.close(CloseCode.BAD_FRAME)

    async def perform(self, method: str, params: JSON, origin: Origin) -> JSON:
        """Run a request that came beside the connection, in its turn among the others.

        Frames that belong behind the answer leave on the connection at once, so they may overtake it.

        Raises:
            NoSuchSession: the session ended before it came to that.
            TooManyRequests: too many wait already.
            FixnadoError: whatever the method refuses.
        """
        if self.closed:
            raise NoSuchSession
        self._last_seen = self.node.monotonic()
        if self._is_full():
            raise TooManyRequests(RETRY_AFTER_FULL_QUEUE_SECONDS)
        reply: asyncio.Future[JSON] = asyncio.get_running_loop().create_future()
        self._enqueue(_Call(Request(None, method, params), origin, reply))
        return await reply

    def _is_full(self) -> bool:
        waiting = len(self._queue) if self._queue else 0
        return waiting + (self._task is not None) >= self.node.limits.requests_in_flight

    def _enqueue(self, call: _Call) -> None:
        if call.request.method == "session.connect" and self.actor is None:
            self.connecting = True
        if self._queue is None:
            self._queue = deque()
        self._queue.append(call)
        if self._task is None:
            self._start(self._work())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._task = asyncio.create_task(work)
        self.node.tasks.add(task)
        task.add_done_callback(self.node.tasks.discard)

    # Requests run

    @property
    def busy(self) -> bool:
        """Whether a command waits or runs."""
        return self._task is not None

    async def _work(self) -> None:
        try:
            while self._queue:
                await self._run(self._queue.popleft())
        finally:
            self._queue = None
            self._task = None
            if self.closed:
                self._say_goodbye()

    async def _run(self, call: _Call) -> None:
        node, request = self.node, call.request
        origin = call.origin or Origin(new_id(node.clock.now()))
        began = node.monotonic()
        outcome = "ok"
        with node.trace(origin, self.id):
            try:
                self._answer(call, await self._dispatch(request, origin))
            except Ending as ending:
                outcome = self._failed(call, ending.error, origin)
                self.close(ending.code)
            except Exception as error:
                outcome = self._failed(call, error, origin)
            except asyncio.CancelledError:
                if call.reply is not None:
                    call.reply.cancel()
                raise
        # A label must not be of the client's making: only what the desk knew is named.
        method = "unknown" if outcome in (UnknownMethod.type, NotAuthenticated.type) else request.method
        node.metrics.command(method, outcome, node.monotonic() - began)

    async def _dispatch(self, request: Request, origin: Origin) -> Answer:
        if request.method == "session.connect":
            return await connect(self, request.params)
        actor = self.actor
        if actor is None:
            raise NotAuthenticated
        own = METHODS.get(request.method)
        if own is not None:
            return await own(self, actor, request.params)
        limit = self.node.limits.command_seconds
        return Answer(await within(limit, self.node.desk.execute(request.method, request.params, actor, origin)))

    def _answer(self, call: _Call, answer: Answer) -> None:
        frames = answer.trailing
        if call.reply is not None and not call.reply.done():
            call.reply.set_result(dict(answer.result))
        elif call.request.id is not None:
            frames = text_frame(encode_result(call.request.id, answer.result)) + frames
        self.send(frames)

    def _failed(self, call: _Call, error: BaseException, origin: Origin) -> str:
        """Answer an error; returns its name."""
        if not isinstance(error, FixnadoError):
            extra = {"correlation_id": origin.correlation_id, "session": self.id}
            logger.error("%s failed", call.request.method, exc_info=error, extra=extra)
        if call.reply is not None:
            if not call.reply.done():
                call.reply.set_exception(error if isinstance(error, FixnadoError) else FixnadoError())
        elif call.request.id is not None:
            self.send(text_frame(encode_error(call.request.id, error, origin.correlation_id)))
        return error.type if isinstance(error, FixnadoError) else "internal"

    def _refuse(self, request_id: RequestId | None, error: FixnadoError) -> None:
        """Answer a frame that never became a command."""
        self.send(text_frame(encode_error(request_id, error, new_id(self.node.clock.now()))))

    # Who it is, until when, and what it hears

    def stood_in_line(self, seconds: float) -> None:
        """The client waited so long for its turn to be let in. That was not its own slowness: should it be refused for
        now, it has the time to try again that it would have had without the others.
        """
        self._connect_deadline += seconds

    def enter(self, session_id: str, actor: Actor) -> None:
        """The client is signed in: sign-outs find it from here on."""
        self.id = session_id
        self.actor = actor
        self._told = actor
        self.node.hub.roster.enter(self, actor)
        self.node.metrics.session_opened()

    def hear(self, opened: Opened) -> None:
        """These channels are live."""
        self.channels.update(opened.replies)
        if opened.hinges:
            self._hinges = {**(self._hinges or {}), **opened.hinges}

    def settle(self, expires_at: datetime) -> None:
        """It is let in: from now on heartbeats and the token's end count."""
        self._set_expiry(expires_at)
        self._next_ping = self.node.monotonic() + self.node.wheel.heartbeat_seconds()
        self.node.wheel.schedule(self, self.node.monotonic())

    def renew(self, before: Actor, signed_in: SignedIn) -> None:
        """Another token of the same person counts from here on."""
        node, fresh = self.node, signed_in.actor
        node.hub.roster.leave(self, before)
        lost = self.become(fresh)
        node.hub.roster.enter(self, fresh)
        # A membership or role that the new token lacks takes its channels along.
        for name in lost:
            node.hub.part(name, self)
            self.taken(name)
        self._set_expiry(signed_in.expires_at)
        node.wheel.schedule(self, node.monotonic())

    def _set_expiry(self, expires_at: datetime) -> None:
        node = self.node
        left = (expires_at - node.clock.now()).total_seconds()
        self._expires_at = node.monotonic() + left
        self._expiring_at = self._expires_at - min(node.limits.expiring_notice_seconds, left / 2)

    def expires_in_seconds(self) -> int:
        """How long the token still counts."""
        return max(0, int(self._expires_at - self.node.monotonic()))

    # The hub and the clock call

    def taken(self, channel: str) -> None:
        """The channel is no longer this session's; nothing of it leaves from here on."""
        self.channels.discard(channel)
        if self._hinges is not None:
            self._hinges.pop(channel, None)
        self._release_held(channel)

    def become(self, actor: Actor) -> Collection[str]:
        """The person has other memberships or roles now; returns the channels that they no longer open."""
        self.actor = actor
        if self._told is not None and self._told.provider_ids != actor.provider_ids:
            self._tell_moved(self._told, actor)
            self._told = actor
        judged = [(name, facts, parse(name)) for name, facts in (self._hinges or {}).items()]
        return [name for name, facts, topic in judged if topic is None or not may_subscribe(actor, topic, facts)]

    def due(self, now: float) -> float | None:
        """Do what time asks for; returns when to be asked again, ``None`` when never."""
        limits = self.node.limits
        if self.closed:
            return None
        if self._next_ping == math.inf:
            if self.connecting or self.actor is not None:
                # It is being let in; each step of that has a bound of its own.
                return now + limits.call_seconds
            if now >= self._connect_deadline:
                self.close(CloseCode.NO_CONNECT)
                return None
            return self._connect_deadline
        silence = limits.heartbeat_seconds + limits.heartbeat_grace_seconds
        token_ends = self._expires_at + limits.token_grace_seconds
        if now >= self._last_seen + silence:
            self.close(CloseCode.NO_SIGN_OF_LIFE)
            return None
        if now >= token_ends:
            self.close(CloseCode.TOKEN_EXPIRED)
            return None
        if now >= self._expiring_at:
            self._expiring_at = math.inf
            self.notify("session.expiring", {"expires_in_seconds": self.expires_in_seconds()})
        if now >= self._next_ping:
            self._next_ping = now + self.node.wheel.heartbeat_seconds()
            if self._transport.beat():
                self._last_seen = now
        return min(self._next_ping, self._last_seen + silence, token_ends, self._expiring_at)

    # The end

    def close(self, code: CloseCode) -> None:
        """End the session and tell the client why. A second call does nothing."""
        if self.closed:
            return
        self._end(code)
        self._transport.close(code, code.reason)

    def lost(self) -> None:
        """The connection is gone."""
        if not self.closed:
            self._end(None)

    def _end(self, code: CloseCode | None) -> None:
        node = self.node
        self._silence()
        node.sessions.discard(self)
        node.wheel.cancel(self)
        if self._queue is not None:
            for call in self._queue:
                if call.reply is not None and not call.reply.done():
                    call.reply.set_exception(NoSuchSession())
            self._queue.clear()
        if self.actor is not None:
            node.hub.roster.leave(self, self.actor)
            node.hub.leave(self, self.channels)
            node.metrics.session_closed(code)
        self.channels = set()
        if self._task is None:
            self._say_goodbye()

    def _say_goodbye(self) -> None:
        """Tell that the connection is closed, after whatever still ran."""
        if self._told is not None:
            told, self._told = self._told, None
            self._start(self._tell_closed(told))

    def _tell_moved(self, before: Actor, after: Actor) -> None:
        """Tell for whom the connection speaks now. Beside the commands: it must not wait for one that hangs."""
        task = asyncio.create_task(self._move(before, after))
        self.node.tasks.add(task)
        task.add_done_callback(self.node.tasks.discard)

    async def _move(self, before: Actor, after: Actor) -> None:
        for tell, actor in ((self.node.connections.opened, after), (self.node.connections.closed, before)):
            try:
                await within(self.node.limits.call_seconds, tell(actor))
            except Exception:
                logger.warning("a connection that moved could not be told", exc_info=True, extra={"session": self.id})

    async def _tell_closed(self, actor: Actor) -> None:
        try:
            await within(self.node.limits.call_seconds, self.node.connections.closed(actor))
        except Exception:
            logger.warning("a closed connection could not be told", exc_info=True, extra={"session": self.id})
        finally:
            self._task = None
