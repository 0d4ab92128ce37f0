"""One connected client: what it may do when, in which order, and how it ends.

Invariants:

* before ``session.connect`` nothing but it has any effect;
* commands run in the order they came, one at a time, in a task that exists only while there are any; at most
  ``requests_in_flight`` wait; whatever is refused for that is answered, not dropped;
* a command that began is finished even when its client is gone: its transaction must not be torn; what only waited is
  dropped;
* nothing written waits for the client. A congested socket is decided per frame: ephemeral ones are dropped,
  ``latest`` ones kept by key (newest wins) and sent when it breathes again, durable ones buffered up to
  ``max_buffered_bytes``, then close 4003;
* offsets of one channel never go backwards: kept ``latest`` frames leave before a durable one of their channel.

Concurrency: one event loop. The transport's callbacks (:meth:`Session.received`, ``paused``, ``resumed``, ``lost``) are
synchronous and quick. The task is owned by :attr:`Node.tasks`, which the composition awaits at shutdown.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

from channels.admission import Admission
from channels.heartbeat import Wheel
from channels.hub import Hub
from channels.limits import Limits, TokenBuckets, Verdict
from channels.params import (
    MAX_CLIENT_CHARACTERS,
    expect_only,
    read_acknowledged,
    read_channel,
    read_resume,
    read_resumes,
    read_text,
    read_token,
)
from channels.ports import Acknowledgements, Connections, Desk, Doorman, Metrics, SignedIn, Trace, Transport
from channels.presence import Presence
from channels.protocol import (
    CloseCode,
    InvalidRequest,
    NotJson,
    Request,
    RequestId,
    decode,
    encode_error,
    encode_notification,
    encode_result,
    text_frame,
)
from channels.subscriptions import Opened, Subscriptions
from channels.topics import Facts, may_subscribe, own_channels, parse
from domain.errors import (
    FixnadoError,
    Forbidden,
    InvalidToken,
    NotAuthenticated,
    Refused,
    TooManyRequests,
    Unavailable,
    UnknownMethod,
)
from domain.events import EventClass
from domain.identity import Actor
from domain.log import Entry
from domain.ports import Clock
from domain.types import JSON, Origin, new_id, wire_time

logger = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_AFTER_FULL_QUEUE_SECONDS = 1.0
RETRY_AFTER_SOCKETS_SECONDS = 60.0

PING = text_frame(encode_notification("ping"))
PONG = text_frame(encode_notification("pong"))


def untraced(_origin: Origin, _session_id: str) -> AbstractContextManager[None]:
    """A :data:`channels.ports.Trace` that adds nothing."""
    return nullcontext()


@dataclass(frozen=True, slots=True)
class Node:
    """What all sessions of one node share.

    Attributes:
        monotonic: seconds, for deadlines; ``clock`` tells the time of day.
        tasks: running session tasks; whoever composes the node awaits or cancels them.
        sessions: every open session, signed in or not.
    """

    limits: Limits
    admission: Admission
    hub: Hub
    subscriptions: Subscriptions
    presence: Presence
    desk: Desk
    doorman: Doorman
    connections: Connections
    acknowledgements: Acknowledgements
    metrics: Metrics
    clock: Clock
    monotonic: Callable[[], float]
    wheel: Wheel
    buckets: TokenBuckets
    trace: Trace = untraced
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    sessions: set[Session] = field(default_factory=set)


class Session:
    """One socket's client. Made when the socket opens; ends by :meth:`close` or :meth:`lost`, whichever comes first."""

    __slots__ = (
        "_bad_frames",
        "_connect_deadline",
        "_connecting",
        "_expires_at",
        "_expiring_at",
        "_frames_before_connect",
        "_held",
        "_hinges",
        "_last_seen",
        "_next_ping",
        "_node",
        "_queue",
        "_task",
        "_told",
        "_transport",
        "actor",
        "channels",
        "closed",
        "congested",
        "id",
        "wheel_tick",
        "write",
    )

    def __init__(self, node: Node, transport: Transport) -> None:
        now = node.monotonic()
        self._node = node
        self._transport = transport
        self.write: Callable[[bytes], None] = transport.write
        self.id = ""
        self.actor: Actor | None = None
        self.channels: set[str] = set()
        self.closed = False
        self.congested = False
        self.wheel_tick: int | None = None
        self._connecting = False
        self._told: Actor | None = None
        self._bad_frames = 0
        self._frames_before_connect = 0
        self._last_seen = now
        self._connect_deadline = now + node.limits.connect_seconds
        self._next_ping = math.inf
        self._expiring_at = math.inf
        self._expires_at = math.inf
        # Made when needed: most sessions are idle, and an empty deque alone costs 600 bytes.
        self._queue: deque[Request] | None = None
        self._held: dict[tuple[str, str], Entry] | None = None
        self._hinges: dict[str, Facts] | None = None
        self._task: asyncio.Task[None] | None = None
        node.sessions.add(self)
        node.wheel.schedule(self, self._connect_deadline)

    # Frames come in

    def received(self, text: str) -> None:
        """Take one text message from the client."""
        if self.closed:
            return
        node = self._node
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
            self._send(PONG if request.id is None else text_frame(encode_result(request.id, {})))
        elif self.actor is None and not self._connecting and request.method != "session.connect":
            if request.id is not None:
                self._refuse(request.id, NotAuthenticated())
        else:
            self._enqueue(request)

    def received_binary(self) -> None:
        """The client sent a binary message: not this protocol."""
        self.close(CloseCode.BAD_FRAME)

    def _enqueue(self, request: Request) -> None:
        if request.method == "session.connect" and self.actor is None:
            self._connecting = True
        if self._queue is None:
            self._queue = deque()
        if len(self._queue) + (self._task is not None) >= self._node.limits.requests_in_flight:
            if request.id is not None:
                self._refuse(request.id, TooManyRequests(RETRY_AFTER_FULL_QUEUE_SECONDS))
            return
        self._queue.append(request)
        if self._task is None:
            self._start(self._work())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._task = asyncio.create_task(work)
        self._node.tasks.add(task)
        task.add_done_callback(self._node.tasks.discard)

    # Commands run

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

    async def _run(self, request: Request) -> None:
        node = self._node
        origin = Origin(new_id(node.clock.now()))
        began = node.monotonic()
        outcome = "ok"
        with node.trace(origin, self.id):
            try:
                result = await self._dispatch(request, origin)
                if result is not None and request.id is not None:
                    self._send(text_frame(encode_result(request.id, result)))
            except FixnadoError as error:
                outcome = error.type
                self._answer_error(request, error, origin)
            except Exception as error:
                outcome = "internal"
                logger.exception(
                    "%s failed", request.method, extra={"correlation_id": origin.correlation_id, "session": self.id}
                )
                self._answer_error(request, error, origin)
        # A label must not be of the client's making: only what the desk knew is named.
        method = "unknown" if outcome in (UnknownMethod.type, NotAuthenticated.type) else request.method
        node.metrics.command(method, outcome, node.monotonic() - began)

    async def _dispatch(self, request: Request, origin: Origin) -> JSON | None:
        """The result, or ``None`` when it was sent already."""
        if request.method == "session.connect":
            await self._connect(request, origin)
            return None
        actor = self.actor
        if actor is None:
            raise NotAuthenticated
        match request.method:
            case "session.refresh":
                return await self._refresh(actor, request.params)
            case "session.ack":
                return await self._acknowledge(actor, request.params)
            case "channel.subscribe":
                await self._subscribe(actor, request)
                return None
            case "channel.unsubscribe":
                return self._unsubscribe(request.params)
            case "channel.presence":
                return await self._list_presence(request.params)
            case method:
                limit = self._node.limits.command_seconds
                return await _within(limit, self._node.desk.execute(method, request.params, actor, origin))

    async def _connect(self, request: Request, origin: Origin) -> None:
        admission = self._node.admission
        try:
            await admission.enter()
        except Unavailable as error:
            self._connecting = False
            self._answer_error(request, error, origin)
            self.close(CloseCode.SERVER_ERROR)
            return
        try:
            # The client may have gone while it stood in line.
            if not self.closed:
                await self._let_in(request, origin)
        finally:
            admission.leave()

    async def _let_in(self, request: Request, origin: Origin) -> None:
        node = self._node
        try:
            if self.actor is not None:
                raise Refused("This socket is connected already.")
            expect_only(request.params, ("token", "client", "resume"))
            token = read_token(request.params)
            read_text(request.params, "client", MAX_CLIENT_CHARACTERS)
            resume = read_resumes(request.params)
            signed_in = await self._authenticate(token)
        except NotAuthenticated as error:
            self._answer_error(request, error, origin)
            self.close(CloseCode.INVALID_TOKEN)
            return
        finally:
            self._connecting = False
        actor = signed_in.actor
        if self.closed:
            return
        if len(node.hub.roster.sessions_of(actor.user_id)) >= node.limits.sockets_per_user:
            too_many = TooManyRequests(RETRY_AFTER_SOCKETS_SECONDS, "Too many sockets of this user are open.")
            self._answer_error(request, too_many, origin)
            self.close(CloseCode.TOO_MANY_SOCKETS)
            return
        self.id = new_id(node.clock.now())
        self.actor = actor
        node.hub.roster.enter(self, actor)
        node.metrics.session_opened()
        self._told = actor
        try:
            await _within(node.limits.call_seconds, node.connections.opened(actor))
        except Exception:
            # Live status follows late then; the socket is worth more.
            logger.warning("an opened connection could not be told", exc_info=True, extra={"session": self.id})
        own = own_channels(actor)
        others = [name for name in resume if name not in own][: max(0, node.limits.channels_per_socket - len(own))]
        try:
            opened = await node.subscriptions.open(
                self, actor, {name: resume.get(name) for name in own}, {name: resume[name] for name in others}
            )
        except Exception as error:
            # Without its own channels a session is deaf: let the client come back.
            self._answer_error(request, error, origin)
            self.close(CloseCode.SERVER_ERROR)
            if not isinstance(error, FixnadoError):
                raise
            return
        self._hear(opened)
        now = node.clock.now()
        self._set_expiry(signed_in)
        self._next_ping = node.monotonic() + node.wheel.heartbeat_seconds()
        node.wheel.schedule(self, node.monotonic())
        result = {
            "session": self.id,
            "user": {"id": actor.user_id, "roles": sorted(actor.roles)},
            "heartbeat_seconds": _number(node.limits.heartbeat_seconds),
            "expires_in_seconds": self._expires_in_seconds(),
            "server_time": wire_time(now),
            "channels": opened.replies,
        }
        self._answer(request.id, result, opened.trailing)

    def _set_expiry(self, signed_in: SignedIn) -> None:
        node = self._node
        left = (signed_in.expires_at - node.clock.now()).total_seconds()
        self._expires_at = node.monotonic() + left
        self._expiring_at = self._expires_at - min(node.limits.expiring_notice_seconds, left / 2)

    def _expires_in_seconds(self) -> int:
        return max(0, int(self._expires_at - self._node.monotonic()))

    async def _authenticate(self, token: str) -> SignedIn:
        """Who presents this token, as of now: what arrives on ``control`` meanwhile is not overlooked.

        Nothing may be awaited between this and the entry of the actor.
        """
        node, roster = self._node, self._node.hub.roster
        while True:
            mark = roster.revocation
            signed_in = await _within(node.limits.call_seconds, node.doorman.authenticate(token))
            if roster.revoked_since(mark, signed_in.actor):
                raise InvalidToken
            if not roster.changed_since(mark, signed_in.actor):
                return signed_in

    def _hear(self, opened: Opened) -> None:
        self.channels.update(opened.replies)
        if opened.hinges:
            self._hinges = {**(self._hinges or {}), **opened.hinges}

    async def _refresh(self, actor: Actor, params: JSON) -> JSON:
        node = self._node
        expect_only(params, ("token",))
        signed_in = await self._authenticate(read_token(params))
        fresh = signed_in.actor
        if fresh.user_id != actor.user_id:
            raise InvalidToken
        if self.closed:
            return {}
        node.hub.roster.leave(self, actor)
        lost = self.become(fresh)
        node.hub.roster.enter(self, fresh)
        # A membership or role that the new token lacks takes its channels along.
        for name in lost:
            node.hub.part(name, self)
            self.taken(name)
        self._set_expiry(signed_in)
        node.wheel.schedule(self, node.monotonic())
        return {"expires_in_seconds": self._expires_in_seconds()}

    async def _acknowledge(self, actor: Actor, params: JSON) -> JSON:
        for name, offset in read_acknowledged(params).items():
            # A channel that was just left or taken away is no error of the client's.
            if name in self.channels:
                acked = self._node.acknowledgements.acked(actor, name, offset)
                await _within(self._node.limits.call_seconds, acked)
        return {}

    async def _subscribe(self, actor: Actor, request: Request) -> None:
        expect_only(request.params, ("channel", "resume"))
        name = read_channel(request.params)
        resume = read_resume(request.params.get("resume"), "resume")
        if name not in self.channels and len(self.channels) >= self._node.limits.channels_per_socket:
            raise Refused("This socket has as many channels as it may.")
        self.channels.discard(name)
        opened = await self._node.subscriptions.open(self, actor, {name: resume})
        self._hear(opened)
        self._answer(request.id, {"channel": name, **opened.replies[name]}, opened.trailing)

    def _unsubscribe(self, params: JSON) -> JSON:
        expect_only(params, ("channel",))
        name = read_channel(params)
        if name in self.channels:
            self._node.hub.part(name, self)
            self.taken(name)
        return {"channel": name}

    async def _list_presence(self, params: JSON) -> JSON:
        expect_only(params, ("channel",))
        name = read_channel(params)
        if name not in self.channels:
            raise Forbidden
        members = await _within(self._node.limits.call_seconds, self._node.presence.members(name))
        return {"channel": name, "members": [member.view() for member in members]}

    # Frames go out

    def _answer(self, request_id: RequestId | None, result: Mapping[str, Any], trailing: bytes) -> None:
        reply = b"" if request_id is None else text_frame(encode_result(request_id, result))
        self._send(reply + trailing)

    def _answer_error(self, request: Request, error: BaseException, origin: Origin) -> None:
        if request.id is not None:
            self._send(text_frame(encode_error(request.id, error, origin.correlation_id)))

    def _refuse(self, request_id: RequestId | None, error: FixnadoError) -> None:
        """Answer a frame that never became a command."""
        self._send(text_frame(encode_error(request_id, error, new_id(self._node.clock.now()))))

    def _send(self, data: bytes) -> None:
        if self.congested and self._too_much(len(data)):
            self.close(CloseCode.TOO_SLOW)
        elif data:
            self.write(data)

    def _too_much(self, more_bytes: int) -> bool:
        return self._transport.buffered_bytes() + more_bytes > self._node.limits.max_buffered_bytes

    def offer(self, entries: Sequence[Entry]) -> None:
        """Take entries although congested; see the module's invariants."""
        frames: list[bytes] = []
        dropped = 0
        for entry in entries:
            if entry.event_class is EventClass.EPHEMERAL:
                dropped += 1
            elif entry.event_class is EventClass.LATEST and entry.key is not None:
                if self._held is None:
                    self._held = {}
                # Out and in again: the dict stays in order of offsets.
                dropped += self._held.pop((entry.channel, entry.key), None) is not None
                self._held[entry.channel, entry.key] = entry
            else:
                frames += self._release_held(entry.channel)
                frames.append(text_frame(entry.frame))
        self._node.metrics.dropped(dropped)
        data = b"".join(frames)
        held_bytes = sum(len(entry.frame) for entry in self._held.values()) if self._held else 0
        if self._too_much(len(data) + held_bytes):
            self.close(CloseCode.TOO_SLOW)
        elif data:
            self._node.metrics.delivered(len(frames))
            self.write(data)

    def _release_held(self, channel: str | None = None) -> list[bytes]:
        """Take the kept frames, of one channel or all, in order."""
        if not self._held:
            return []
        keys = [key for key in self._held if channel is None or key[0] == channel]
        return [text_frame(self._held.pop(key).frame) for key in keys]

    def paused(self) -> None:
        """The transport's buffer is filling."""
        self.congested = True

    def resumed(self) -> None:
        """The transport's buffer has drained."""
        self.congested = False
        frames = self._release_held()
        self._held = None
        if frames and not self.closed:
            self._node.metrics.delivered(len(frames))
            self.write(b"".join(frames))

    def notify(self, method: str, params: JSON | None = None) -> None:
        """Send a notification."""
        self._send(text_frame(encode_notification(method, params)))

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
        limits = self._node.limits
        if self.closed:
            return None
        if self._next_ping == math.inf:
            if self._connecting or self.actor is not None:
                # It is being let in; each step of that has a bound of its own.
                return now + limits.call_seconds
            if now >= self._connect_deadline:
                self.close(CloseCode.NO_CONNECT)
                return None
            return self._connect_deadline
        silence_ends = self._last_seen + limits.heartbeat_seconds + limits.heartbeat_grace_seconds
        token_ends = self._expires_at + limits.token_grace_seconds
        if now >= silence_ends:
            self.close(CloseCode.NO_SIGN_OF_LIFE)
            return None
        if now >= token_ends:
            self.close(CloseCode.TOKEN_EXPIRED)
            return None
        if now >= self._expiring_at:
            self._expiring_at = math.inf
            self.notify("session.expiring", {"expires_in_seconds": self._expires_in_seconds()})
        if now >= self._next_ping:
            self._next_ping = now + self._node.wheel.heartbeat_seconds()
            self._send(PING)
        return min(self._next_ping, silence_ends, token_ends, self._expiring_at)

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
        node = self._node
        self.closed = True
        self.write = _discard
        self._held = None
        node.sessions.discard(self)
        node.wheel.cancel(self)
        if self._queue is not None:
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
        self._node.tasks.add(task)
        task.add_done_callback(self._node.tasks.discard)

    async def _move(self, before: Actor, after: Actor) -> None:
        for tell, actor in ((self._node.connections.opened, after), (self._node.connections.closed, before)):
            try:
                await _within(self._node.limits.call_seconds, tell(actor))
            except Exception:
                logger.warning("a connection that moved could not be told", exc_info=True, extra={"session": self.id})

    async def _tell_closed(self, actor: Actor) -> None:
        try:
            await _within(self._node.limits.call_seconds, self._node.connections.closed(actor))
        except Exception:
            logger.warning("a closed connection could not be told", exc_info=True, extra={"session": self.id})
        finally:
            self._task = None


def _discard(_data: bytes) -> None:
    """Writes nothing: the session is closed."""


async def _within(seconds: float, call: Awaitable[T]) -> T:
    """Wait for a port, but not for ever.

    Raises:
        Unavailable: it took longer.
    """
    try:
        async with asyncio.timeout(seconds):
            return await call
    except TimeoutError:
        raise Unavailable from None


def _number(seconds: float) -> float:
    # 25, not 25.0: clients compare and print it.
    return int(seconds) if seconds == int(seconds) else seconds
