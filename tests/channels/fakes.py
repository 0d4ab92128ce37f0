"""Fakes at the ports of the live side, shared by its unit tests and by the tests on real sockets."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from channels.broker import InProcessBroker
from channels.limits import Limits
from channels.ports import SignedIn
from channels.protocol import PING, encode_data, encode_event, read_event
from channels.realtime import Ports, Realtime
from channels.topics import Facts, Topic
from domain.errors import InvalidToken, Refused, Unavailable, UnknownMethod
from domain.events import Event, EventClass
from domain.identity import Actor, Membership, MembershipRole, Role
from domain.log import Entry, Head
from domain.types import JSON, Origin, new_id

START = datetime(2026, 11, 24, 2, 0, tzinfo=UTC)


class FixedClock:
    """A time of day that moves when told to."""

    def __init__(self) -> None:
        self.moment = START

    def now(self) -> datetime:
        return self.moment


class Seconds:
    """A monotonic clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class ModelLog:
    """An event log in memory; the model that what subscribers saw is compared with."""

    def __init__(self) -> None:
        self.entries: dict[str, list[Entry]] = defaultdict(list)
        self.floors: dict[str, int] = defaultdict(int)
        self.epochs: dict[str, str] = defaultdict(lambda: "e1")
        self.sequence = 0
        self.reads = 0
        self.head_reads = 0
        self.failing = False
        self.before_read: Callable[[], None] | None = None

    def append(
        self,
        channel: str,
        data: JSON | None = None,
        event_type: str = "booking.created",
        event_class: EventClass = EventClass.DURABLE,
        key: str | None = None,
    ) -> Entry:
        offset = len(self.entries[channel]) + 1
        self.sequence += 1
        event = Event(new_id(START), event_type, START, "booking/1", data or {"n": offset})
        frame = encode_event(event, channel, offset, Origin("c1"), encode_data(event.data))
        entry = Entry(channel, offset, self.sequence, event_class, key, frame)
        self.entries[channel].append(entry)
        return entry

    def _check(self) -> None:
        if self.failing:
            raise Unavailable

    async def heads(self, channels: Collection[str]) -> Mapping[str, Head]:
        self._check()
        self.head_reads += 1
        heads = {name: Head(self.epochs[name], len(self.entries[name]), self.floors[name]) for name in channels}
        await asyncio.sleep(0)
        return heads

    async def read(self, channel: str, after: int, limit: int) -> Sequence[Entry]:
        return (await self.read_many({channel: after}, limit))[channel]

    async def read_many(self, after: Mapping[str, int], limit: int) -> Mapping[str, Sequence[Entry]]:
        self._check()
        self.reads += 1
        if self.before_read is not None:
            self.before_read()
        rows = {
            name: [e for e in self.entries[name] if e.offset is not None and e.offset > max(since, self.floors[name])]
            for name, since in after.items()
        }
        await asyncio.sleep(0)
        return {name: entries[:limit] for name, entries in rows.items()}

    async def tail(self, after: Mapping[int, int], limit: int) -> Sequence[Entry]:
        since = after.get(0, 0)
        everything = [entry for entries in self.entries.values() for entry in entries if entry.sequence > since]
        return sorted(everything, key=lambda entry: entry.sequence)[:limit]

    async def cursor(self) -> Mapping[int, int]:
        return {0: self.sequence}


def ephemeral(channel: str, event_type: str = "location.moved", data: JSON | None = None) -> Entry:
    event = Event(new_id(START), event_type, START, "booking/1", data or {})
    frame = encode_event(event, channel, None, None, encode_data(event.data))
    return Entry(channel, None, 0, EventClass.EPHEMERAL, None, frame)


def customer(user_id: str = "ada", session_id: str | None = None) -> Actor:
    return Actor(user_id, user_id.title(), frozenset({Role.CUSTOMER}), (), session_id or f"sign-in-{user_id}")


def provider(user_id: str = "bob", provider_id: str = "p1") -> Actor:
    membership = Membership(f"o-{provider_id}", provider_id, MembershipRole.OWNER)
    return Actor(user_id, user_id.title(), frozenset({Role.PROVIDER}), (membership,), f"sign-in-{user_id}")


def operations(user_id: str = "eve") -> Actor:
    return Actor(user_id, user_id.title(), frozenset({Role.OPERATIONS}), (), f"sign-in-{user_id}")


class FakeDoorman:
    """Tokens are names: ``customer:ada``, ``provider:bob:p1``, ``operations:eve``, with ``;seconds`` of life."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._now = clock
        self.seen = 0
        self.before_answer: Callable[[], None] | None = None
        self.failing: Exception | None = None

    async def authenticate(self, token: str) -> SignedIn:
        self.seen += 1
        await asyncio.sleep(0)
        if self.before_answer is not None:
            self.before_answer()
        if self.failing is not None:
            raise self.failing
        who, _, life = token.partition(";")
        kind, *names = who.split(":")
        makers: dict[str, Callable[..., Actor]] = {
            "customer": customer,
            "provider": provider,
            "operations": operations,
        }
        if kind not in makers:
            raise InvalidToken
        return SignedIn(makers[kind](*names), self._now() + timedelta(seconds=float(life or 900)))


class FakeDesk:
    """A few commands to be answered, refused, crashed and waited for."""

    def __init__(self) -> None:
        self.executed: list[tuple[str, JSON]] = []
        self.gate = asyncio.Event()
        self.started = asyncio.Event()
        self.finished = 0

    async def execute(self, method: str, params: JSON, actor: Actor, origin: Origin, key: str | None = None) -> JSON:
        self.executed.append((method, params))
        match method:
            case "test.echo":
                return {"params": params, "user_id": actor.user_id, "correlation_id": origin.correlation_id}
            case "test.refuse":
                raise Refused
            case "test.crash":
                raise RuntimeError("canary-secret-7f3a")
            case "test.wait":
                self.started.set()
                await self.gate.wait()
                self.finished += 1
                return {}
            case _:
                raise UnknownMethod


class FakeAccess:
    """Facts about bookings and conversations, set by the test."""

    def __init__(self) -> None:
        self.known: dict[str, Facts] = {}
        self.before_answer: Callable[[], None] | None = None

    def let(self, channel: str, *user_ids: str, provider_ids: Collection[str] = ()) -> None:
        self.known[channel] = Facts(True, frozenset(user_ids), frozenset(provider_ids))

    async def facts(self, topics: Collection[Topic]) -> Mapping[Topic, Facts]:
        found = {topic: self.known[topic.channel] for topic in topics if topic.channel in self.known}
        await asyncio.sleep(0)
        if self.before_answer is not None:
            self.before_answer()
        return found


class FakeSnapshots:
    """The state of a channel is how many entries its log had."""

    def __init__(self, log: ModelLog) -> None:
        self._log = log
        self.asked: list[str] = []

    async def state(self, actor: Actor, topic: Topic) -> JSON | None:
        self.asked.append(topic.channel)
        await asyncio.sleep(0)
        return {"as_of": len(self._log.entries[topic.channel])}


class FakeConnections:
    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []

    async def opened(self, actor: Actor) -> None:
        self.heard.append(("opened", actor.user_id))

    async def closed(self, actor: Actor) -> None:
        self.heard.append(("closed", actor.user_id))


class FakeAcknowledgements:
    def __init__(self) -> None:
        self.acked_offsets: list[tuple[str, str, int]] = []

    async def acked(self, actor: Actor, channel: str, offset: int) -> None:
        self.acked_offsets.append((actor.user_id, channel, offset))


def parse_frames(data: bytes) -> list[bytes]:
    """The payloads of unmasked server text frames."""
    payloads = []
    while data:
        assert data[0] == 0x81, data[:20]
        length, start = data[1], 2
        if length == 126:
            length, start = int.from_bytes(data[2:4], "big"), 4
        elif length == 127:
            length, start = int.from_bytes(data[2:10], "big"), 10
        payloads.append(data[start : start + length])
        data = data[start + length :]
    return payloads


class FakeTransport:
    """A socket in memory that remembers each write."""

    def __init__(self) -> None:
        self.fd = -1
        self.deflates = False
        self.writes: list[bytes] = []
        self.buffered = 0
        self.closed_with: int | None = None
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def beat(self) -> bool:
        self.writes.append(PING)
        return False

    def buffered_bytes(self) -> int:
        return self.buffered

    def close(self, code: int, reason: str) -> None:
        assert len(reason.encode()) <= 123
        self.closed_with = code

    def abort(self) -> None:
        self.aborted = True

    @property
    def messages(self) -> list[JSON]:
        return [orjson.loads(payload) for data in self.writes for payload in parse_frames(data)]

    @property
    def events(self) -> list[JSON]:
        return [message["params"] for message in self.messages if message.get("method") == "event"]

    def reply(self, request_id: int | str) -> JSON:
        (found,) = [message for message in self.messages if message.get("id") == request_id]
        return found


class FakeSubscriber:
    """A subscriber of the hub, without a session."""

    def __init__(self, actor: Actor | None = None) -> None:
        self.actor = actor
        self.fd = -1
        self.deflates = False
        self.congested = False
        self.closed = False
        self.closed_with: int | None = None
        self.writes: list[bytes] = []
        self.offered: list[Entry] = []
        self.taken_channels: list[str] = []
        self.write: Callable[[bytes], None] = self.writes.append

    def offer(self, entries: Sequence[Entry], frames: Sequence[bytes]) -> None:
        assert len(entries) == len(frames)
        self.offered += entries

    def taken(self, channel: str) -> None:
        self.taken_channels.append(channel)

    def become(self, actor: Actor) -> Collection[str]:
        self.actor = actor
        return ()

    def close(self, code: int) -> None:
        self.closed = True
        self.closed_with = code

    @property
    def events(self) -> list[JSON]:
        return [read_event(payload) for data in self.writes for payload in parse_frames(data)]

    def offsets(self, channel: str) -> list[int]:
        return [event["offset"] for event in self.events if event["channel"] == channel]


class House:
    """A whole node on fakes."""

    def __init__(self, limits: Limits | None = None, *, wall: Callable[[], datetime] | None = None, **options: Any):
        self.clock = FixedClock()
        if wall is not None:
            self.clock.now = wall  # type: ignore[method-assign]
        self.log = ModelLog()
        self.broker = InProcessBroker()
        self.desk = FakeDesk()
        self.doorman = FakeDoorman(self.clock.now)
        self.access = FakeAccess()
        self.snapshots = FakeSnapshots(self.log)
        self.connections = FakeConnections()
        self.acknowledgements = FakeAcknowledgements()
        self.realtime = Realtime(
            Ports(
                log=self.log,
                broker=self.broker,
                desk=self.desk,
                doorman=self.doorman,
                access=self.access,
                snapshots=self.snapshots,
                connections=self.connections,
                acknowledgements=self.acknowledgements,
                clock=self.clock,
            ),
            limits or Limits(),
            **options,
        )

    async def publish(self, *entries: Entry) -> None:
        await self.broker.publish(entries)

    async def commit(self, channel: str, data: JSON | None = None, **options: Any) -> Entry:
        """Log an entry and publish it."""
        entry = self.log.append(channel, data, **options)
        await self.broker.publish([entry])
        return entry


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for something that the loop is about to do."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 — what is waited for has no event of its own
            await asyncio.sleep(0.001)
