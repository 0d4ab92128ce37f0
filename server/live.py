"""What the live side asks the rest: who a token is, who may hear a channel, what stands behind it, who came and
went.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from channels.lookups import Batch
from channels.ports import SignedIn
from channels.protocol import read_event
from channels.topics import ADMIN_BOOKINGS, ADMIN_SECURITY, Facts, Kind, Topic
from domain import availability, snapshots
from domain.accounts import Accounts
from domain.commands import Desk
from domain.context import Context
from domain.errors import InvalidToken
from domain.federation import Federation
from domain.identity import Actor
from domain.log import Entry, EventLog
from domain.types import JSON, Origin, new_id
from persistence.database import Database
from persistence.queries import existing_services, people_of_bookings, people_of_zones
from persistence.repositories import SqlUnitOfWork
from persistence.unit_of_work import Transactions
from server.clock import SystemClock
from server.federation import ALGORITHMS, IssuerTokens, algorithm_of
from server.telemetry import Metrics, correlated
from server.tokens import Tokens

_TIME = b'"time":"'


@dataclass(frozen=True, slots=True)
class TrustedIssuer:
    """An issuer elsewhere: how its tokens are verified, and whom they stand for here."""

    tokens: IssuerTokens
    people: Federation


class TokenDoorman:
    """Tells who an access token belongs to: its signature first, then whether the sign-in still stands.

    Our tokens and those of a trusted issuer are told apart by their algorithm, which each side pins: no token can be
    taken for one of the other kind.
    """

    def __init__(self, tokens: Tokens, accounts: Accounts, clock: SystemClock, issuer: TrustedIssuer | None) -> None:
        self._tokens = tokens
        self._clock = clock
        self._issuer = issuer

        # Of those who come at the same moment; each answer was read after its question, see there.
        self._actors: Batch[tuple[str, str], Actor] = Batch(accounts.actors)

    async def close(self) -> None:
        """End the running query."""
        await self._actors.close()

    async def authenticate(self, token: str) -> SignedIn:
        if self._issuer is not None and algorithm_of(token) in ALGORITHMS:
            identity, expires_at = await self._issuer.tokens.verify(token)
            origin = Origin(new_id(self._clock.now()))
            return SignedIn(await self._issuer.people.actor(identity, origin), expires_at)
        claims = self._tokens.verify(token, self._clock.now())
        named = (claims.user_id, claims.session_id)
        actor = (await self._actors.get([named])).get(named)
        if actor is None:
            raise InvalidToken
        return SignedIn(actor, claims.expires_at)


class DatabaseAccess:
    """The facts about what stands behind channels, a query per kind and not per channel."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def facts(self, topics: Collection[Topic]) -> Mapping[Topic, Facts]:
        booking_ids = {topic.id for topic in topics if topic.kind in {Kind.BOOKING, Kind.CONVERSATION}}
        zone_ids = {topic.id for topic in topics if topic.kind is Kind.ZONE}
        zone_ids |= {topic.zone_id for topic in topics if topic.kind is Kind.AVAILABILITY and topic.zone_id}
        service_ids = {topic.id for topic in topics if topic.kind is Kind.AVAILABILITY}

        found: dict[Topic, Facts] = {}
        bookings = await self._database.read(lambda c: people_of_bookings(c, booking_ids)) if booking_ids else {}
        zones = await self._database.read(lambda c: people_of_zones(c, zone_ids)) if zone_ids else {}
        services = await self._database.read(lambda c: existing_services(c, service_ids)) if service_ids else set()
        for topic in topics:
            match topic.kind:
                case Kind.BOOKING | Kind.CONVERSATION:
                    people = bookings.get(topic.id)
                case Kind.ZONE:
                    people = zones.get(topic.id)
                case Kind.AVAILABILITY:
                    people = zones.get(topic.zone_id or "") if topic.id in services else None
                case _:
                    found[topic] = Facts(exists=True)
                    continue
            if people is not None:
                found[topic] = Facts(True, people.user_ids, people.provider_ids)
        return found


class DatabaseSnapshots:
    """The state behind a channel, as the person may see it."""

    def __init__(self, transactions: Transactions[SqlUnitOfWork], desk: Desk) -> None:
        self._transactions = transactions
        self._desk = desk

    async def state(self, actor: Actor, topic: Topic) -> JSON | None:
        async def work(uow: SqlUnitOfWork) -> JSON | None:
            ctx = self._desk.context(actor, uow)
            match topic.kind:
                case Kind.BOOKING:
                    return await snapshots.of_booking(ctx, topic.id)
                case Kind.CONVERSATION:
                    return await snapshots.of_conversation(ctx, topic.id)
                case Kind.PROVIDER:
                    return await snapshots.of_provider(ctx, topic.id)
                case Kind.ADMIN if topic.channel == ADMIN_SECURITY:
                    return await snapshots.of_security(ctx)
                case Kind.ADMIN if topic.channel == ADMIN_BOOKINGS:
                    return await snapshots.of_feed(ctx)
                case _:
                    return None

        return await self._transactions.read(work)


@dataclass(slots=True)
class _Watched:
    """One provider's sockets on this node; ``told`` is whether the domain knows of any, ``using`` who settles that."""

    sockets: int = 0
    told: bool = False
    using: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class ProviderConnections:
    """Counts this node's sockets per provider and tells the domain of the first and of the last.

    A provider's comings and goings are told one after the other, each with the count as it then stands, so that a quick
    reconnect cannot end in ``offline``. What could not be told is told by :meth:`catch_up`.
    """

    def __init__(self, desk: Desk, node_id: str, clock: SystemClock) -> None:
        self._desk = desk
        self._node_id = node_id
        self._clock = clock
        self._watched: dict[str, _Watched] = {}

    async def opened(self, actor: Actor) -> None:
        await self._count(actor, 1)

    async def closed(self, actor: Actor) -> None:
        await self._count(actor, -1)

    async def catch_up(self) -> None:
        """Tells what is owed: the database was away when it should have been told."""
        for provider_id, watched in list(self._watched.items()):
            if (watched.sockets > 0) is not watched.told:
                await self._settle(provider_id)

    async def _count(self, actor: Actor, change: int) -> None:
        provider_ids = sorted(actor.provider_ids)
        # All of them before the first wait, which may fail.
        for provider_id in provider_ids:
            self._watched.setdefault(provider_id, _Watched()).sockets += change
        for provider_id in provider_ids:
            await self._settle(provider_id)

    async def _settle(self, provider_id: str) -> None:
        watched = self._watched.setdefault(provider_id, _Watched())
        watched.using += 1
        try:
            async with watched.turn:
                connected = watched.sockets > 0
                if connected is not watched.told:
                    step = self._opened(provider_id) if connected else self._closed(provider_id)
                    await self._desk.run_as_system(step, Origin(new_id(self._clock.now())))
                    watched.told = connected
        finally:
            watched.using -= 1
            # While somebody waits for the turn it must stay the only one.
            if not watched.using and not watched.sockets and not watched.told:
                self._watched.pop(provider_id, None)

    def _opened(self, provider_id: str) -> _Step:
        async def step(ctx: Context) -> None:
            await availability.socket_opened(ctx, provider_id, self._node_id)

        return step

    def _closed(self, provider_id: str) -> _Step:
        async def step(ctx: Context) -> None:
            await availability.socket_closed(ctx, provider_id, self._node_id)

        return step


class _Step(Protocol):
    async def __call__(self, ctx: Context) -> None: ...


class SocketAcknowledgements:
    """An offer counts as delivered once a socket of its provider has acked past it, a message as heard by a person once
    a socket of theirs has.

    Remembers how far it has looked, in a bounded LRU: per provider, and per person for conversations. What is forgotten
    is looked at again, and marking twice changes nothing.

    Args:
        messages: whether anybody asks who has heard which message.
    """

    LOOK_BACK = 100
    """Newest entries looked at for one ack; an offer further back ran out long ago."""

    def __init__(
        self, desk: Desk, log: EventLog, clock: SystemClock, *, messages: bool = False, capacity: int = 10_000
    ) -> None:
        self._desk = desk
        self._log = log
        self._clock = clock
        self._messages = messages
        self._capacity = capacity
        self._seen: OrderedDict[tuple[str, str], int] = OrderedDict()

    async def acked(self, actor: Actor, channel: str, offset: int) -> None:
        kind, _, thing = channel.partition(":")
        if kind == Kind.PROVIDER and thing in actor.provider_ids:
            await self._look(("", channel), actor, offset, self._mark_offers)
        elif kind == Kind.CONVERSATION and self._messages:
            # Who may hear the channel was settled when the socket subscribed.
            await self._look((actor.user_id, channel), actor, offset, self._mark_messages)

    async def _look(
        self,
        key: tuple[str, str],
        actor: Actor,
        offset: int,
        mark: Callable[[Actor, list[JSON]], Callable[[Context], Awaitable[None]] | None],
    ) -> None:
        if offset <= self._seen.get(key, 0):
            return
        channel = key[1]
        # A client may claim any number; what is not there yet is not handled.
        offset = min(offset, (await self._log.heads([channel]))[channel].offset)
        after = max(self._seen.get(key, 0), offset - self.LOOK_BACK)
        if offset <= after:
            return
        entries = await self._log.read(channel, after, offset - after)
        marking = mark(actor, [read_event(entry.frame) for entry in entries])
        if marking is not None:
            await self._desk.run_as_system(marking, Origin(new_id(self._clock.now()), actor_id=actor.user_id))
        self._seen[key] = offset
        self._seen.move_to_end(key)
        if len(self._seen) > self._capacity:
            self._seen.popitem(last=False)

    @staticmethod
    def _mark_offers(_: Actor, events: list[JSON]) -> Callable[[Context], Awaitable[None]] | None:
        offer_ids = [event["data"]["offer_id"] for event in events if event["type"] == "offer.made"]

        async def mark(ctx: Context) -> None:
            await ctx.uow.offers.delivered(offer_ids, ctx.now)

        return mark if offer_ids else None

    @staticmethod
    def _mark_messages(actor: Actor, events: list[JSON]) -> Callable[[Context], Awaitable[None]] | None:
        said = [event["data"]["message"] for event in events if event["type"] == "message.sent"]
        theirs = [message for message in said if message["sender_id"] != actor.user_id]

        async def mark(ctx: Context) -> None:
            newest = theirs[-1]
            await ctx.uow.notifications.mark_heard(newest["conversation_id"], actor.user_id, newest["offset"])

        return mark if theirs else None


class LiveMetrics:
    """Counts of the live side, into the process's metrics; see :class:`channels.ports.Metrics`."""

    def __init__(self, metrics: Metrics, clock: SystemClock) -> None:
        self._metrics = metrics
        self._clock = clock
        self.delivered = metrics.deliveries.inc
        self.dropped = metrics.dropped.inc
        self.healed = metrics.gaps_healed.inc

    def session_opened(self) -> None:
        self._metrics.sockets.inc()

    def written(self, entry: Entry) -> None:
        if entry.offset is None:
            return
        # The frame is ours and its shape is fixed, so the time is found without parsing it.
        start = entry.frame.find(_TIME) + len(_TIME)
        happened_at = datetime.fromisoformat(entry.frame[start : entry.frame.index(b'"', start)].decode())
        self._metrics.commit_to_write_seconds.observe(max(0.0, (self._clock.now() - happened_at).total_seconds()))

    def session_closed(self, code: int | None) -> None:
        self._metrics.sockets.dec()
        self._metrics.closed(code or 1000)

    def command(self, method: str, outcome: str, seconds: float) -> None:
        self._metrics.command(method, outcome, seconds)


@contextmanager
def trace(origin: Origin, session_id: str) -> Iterator[None]:
    """Surrounds a command on a socket with its log context."""
    with correlated(origin, session=session_id):
        yield
