"""A marketplace on a real database whose time moves when told to.

Tests act through :meth:`Marketplace.call`, as sockets and REST do, and look at what was stored and recorded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, TypeVar

import pytest
from sqlalchemy import Select, Table, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from channels import topics
from domain.accounts import new_provider
from domain.bookings import Booking, Status
from domain.catalogue import COMMANDS, TIMERS
from domain.commands import Desk, Mode
from domain.context import Context
from domain.errors import FixnadoError
from domain.events import Audience, Event, EventClass
from domain.identity import Actor, Membership, MembershipRole, Role, User
from domain.policy import Policy
from domain.providers import Provider, ProviderStatus, Service, Strategy, Zone
from domain.security import AuditEntry
from domain.types import JSON, Money, Origin, Point, new_id
from persistence import tables
from persistence.database import Database, DatabaseOptions
from persistence.geometry import ZoneIndex
from persistence.repositories import SqlUnitOfWork, Units
from persistence.unit_of_work import Transactions

T = TypeVar("T")

START = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
CENTRE = Point(51.539, -0.1426)
FOREVER = timedelta(days=3650)
ORIGIN = Origin("corr-1", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
OPTIONS = DatabaseOptions(tls="off")


def square(centre: Point, half_degrees: float) -> JSON:
    """A GeoJSON square around a place."""
    west, east = centre.lon - half_degrees, centre.lon + half_degrees
    south, north = centre.lat - half_degrees, centre.lat + half_degrees
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Polygon", "coordinates": [ring]}


def north_of(place: Point, metres: float) -> Point:
    """The place that many metres to the north, on a sphere."""
    return Point(place.lat + metres / 111_195.0, place.lon)


class SettableClock:
    """A time of day that moves when told to."""

    def __init__(self, moment: datetime = START) -> None:
        self.moment = moment

    def now(self) -> datetime:
        return self.moment

    def advance(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


class RecordingAnnouncer:
    """Remembers ephemeral events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def announce(self, events: Sequence[Event], origin: Origin) -> None:
        self.events += events

    def of(self, type_: str) -> list[Event]:
        return [event for event in self.events if event.type == type_]


@dataclass(frozen=True, slots=True)
class Firm:
    """An organisation with its provider, and the person who speaks for it."""

    organisation_id: str
    provider_id: str
    person: Actor


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event in the outbox; ``number`` is its place there."""

    number: int
    event: Event

    @property
    def type(self) -> str:
        return self.event.type

    @property
    def data(self) -> JSON:
        return dict(self.event.data)

    @property
    def channels(self) -> set[str]:
        return set(topics.route(self.event))


class Marketplace:
    """One node's desk with seeds and looks behind the counter.

    Attributes:
        announcer: what was said to live lists only.
    """

    def __init__(self, database: Database, policy: Policy | None = None) -> None:
        self.database = database
        self.clock = SettableClock()
        self.policy = policy or Policy()
        self.attested: list[AuditEntry] = []
        self.transactions: Transactions[SqlUnitOfWork] = Transactions(
            database, self.clock, Units(ZoneIndex()), on_attested=self.attested.extend
        )
        self.announcer = RecordingAnnouncer()
        self.desk = Desk(COMMANDS, self.transactions, self.policy)
        self.desk.announcer = self.announcer
        self._numbers = count(1)

    # --- seeds ---

    async def zone(
        self,
        zone_id: str = "camden",
        strategy: Strategy = Strategy.BATCHED,
        centre: Point = CENTRE,
        half_degrees: float = 0.5,
        geometry: JSON | None = None,
    ) -> str:
        zone = Zone(zone_id, zone_id.title(), geometry or square(centre, half_degrees), 0.0, strategy)
        await self.write(lambda uow: uow.market.add_zone(zone))
        return zone_id

    async def service(self, service_id: str = "plumbing", minutes: int = 60, price_minor: int = 8_500) -> str:
        service = Service(service_id, service_id.title(), Money(price_minor, "GBP"), minutes)
        await self.write(lambda uow: uow.market.add_service(service))
        return service_id

    async def person(self, *roles: Role) -> Actor:
        number = next(self._numbers)
        user = User(new_id(self.clock.now()), f"person{number}@example.test", f"Person {number}", "-", frozenset(roles))
        await self.write(lambda uow: uow.people.add_user(user))
        return Actor(user.id, user.name, user.roles, (), f"session-{number}")

    async def customer(self) -> Actor:
        return await self.person(Role.CUSTOMER)

    async def operator(self, role: Role = Role.OPERATIONS) -> Actor:
        return await self.person(role)

    async def firm(
        self, *, skills: Sequence[str] = ("plumbing",), zones: Sequence[str] = ("camden",), **traits: Any
    ) -> Firm:
        """A verified firm that is online at the centre, but for the traits given: fields of :class:`Provider`."""
        return (await self.firms(1, skills=skills, zones=zones, **traits))[0]

    async def firms(
        self, number: int, *, skills: Sequence[str] = ("plumbing",), zones: Sequence[str] = ("camden",), **traits: Any
    ) -> list[Firm]:
        now = self.clock.now()
        online: dict[str, Any] = {"verified": True, "status": ProviderStatus.ONLINE, "position": CENTRE}

        async def work(uow: SqlUnitOfWork) -> list[Firm]:
            made = []
            for _ in range(number):
                n = next(self._numbers)
                user = User(
                    new_id(now), f"person{n}@example.test", f"Person {n}", "-", frozenset({Role.PROVIDER}), None
                )
                organisation_id, provider_id = new_id(now), new_id(now)
                await uow.people.add_user(user)
                await uow.people.add_organisation(organisation_id, f"Firm {n}")
                await uow.people.add_membership(organisation_id, user.id, MembershipRole.OWNER)
                provider = replace(new_provider(provider_id, organisation_id, f"Firm {n}", now), **(online | traits))
                await uow.market.add_provider(provider, skills, zones)
                if provider.status is not ProviderStatus.OFFLINE:
                    await uow.market.hold_socket(provider_id, "node", now + FOREVER)
                membership = Membership(organisation_id, provider_id, MembershipRole.OWNER)
                person = Actor(user.id, user.name, user.roles, (membership,), f"session-{n}")
                made.append(Firm(organisation_id, provider_id, person))
            return made

        return await self.write(work)

    async def member(self, firm: Firm, role: MembershipRole = MembershipRole.TECHNICIAN) -> Actor:
        """Somebody else who belongs to the firm."""
        person = await self.person(Role.PROVIDER)
        await self.write(lambda uow: uow.people.add_membership(firm.organisation_id, person.user_id, role))
        return person.having(Membership(firm.organisation_id, firm.provider_id, role))

    async def email(self, person: Actor) -> str:
        user = await self.transactions.read(lambda uow: uow.people.user(person.user_id))
        assert user is not None
        return user.email

    async def invitation(self, firm: Firm, email: str, role: str = "technician") -> tuple[str, str]:
        """The firm's owner invites; returns the invitation's id and its token."""
        made = await self.call(
            firm.person, "organisation.invite", organisation_id=firm.organisation_id, email=email, role=role
        )
        invitation_id: str = made["invitation"]["id"]
        issued = await self.call(firm.person, "invitation.issue", invitation_id=invitation_id)
        return invitation_id, issued["token"]

    # --- acts ---

    def key(self) -> str:
        return f"key-{next(self._numbers)}"

    async def call(self, actor: Actor, method: str, **params: Any) -> JSON:
        """A command as a client sends it; a keyed one without a key gets a new one."""
        if COMMANDS[method].mode is Mode.KEYED:
            params.setdefault("key", self.key())
        return await self.desk.execute(method, params, actor, ORIGIN)

    async def book(self, customer: Actor, **params: Any) -> str:
        """Books plumbing at the centre, on demand unless told otherwise; returns the booking's id."""
        wanted = {"service_id": "plumbing", "kind": "on_demand", "location": CENTRE.view()} | params
        result = await self.call(customer, "booking.create", **wanted)
        booking_id: str = result["booking"]["id"]
        return booking_id

    async def book_slot(self, customer: Actor, in_hours: float = 24, hours: float = 1, **params: Any) -> str:
        """Books scheduled work that starts in so many hours."""
        start = self.clock.now() + timedelta(hours=in_hours)
        end = start + timedelta(hours=hours)
        return await self.book(customer, kind="scheduled", start=start.isoformat(), end=end.isoformat(), **params)

    async def accept(self, firm: Firm, booking_id: str) -> JSON:
        """The firm takes the newest offer it got for the booking."""
        return await self.call(firm.person, "offer.accept", offer_id=await self.offer_id(firm, booking_id))

    async def step(self, actor: Actor, booking_id: str, to: str, **params: Any) -> JSON:
        """One step along the table from the newest version."""
        params.setdefault("version", (await self.booking(booking_id)).version)
        return await self.call(actor, "booking.transition", booking_id=booking_id, to=to, **params)

    async def walk(self, actor: Actor, booking_id: str, *targets: str) -> None:
        for target in targets:
            await self.step(actor, booking_id, target)

    async def job(self, customer: Actor, firm: Firm, *targets: str) -> str:
        """A booking that the firm has accepted and moved along; returns its id."""
        booking_id = await self.book(customer)
        await self.accept(firm, booking_id)
        await self.walk(firm.person, booking_id, *targets)
        return booking_id

    async def as_system(self, work: Callable[[Context], Awaitable[T]]) -> T:
        return await self.desk.run_as_system(work, ORIGIN)

    async def run_timers(self) -> list[str]:
        """Does everything that is due, each timer in a transaction of its own; returns their names."""
        ran: list[str] = []

        async def one(ctx: Context) -> list[str]:
            claimed = await ctx.uow.timers.due(ctx.now, 1)
            for timer in claimed:
                await TIMERS[timer.kind](ctx, timer.data)
                await ctx.uow.timers.done(timer)
            return [timer.name for timer in claimed]

        while names := await self.as_system(one):
            ran += names
            assert len(ran) < 1000, f"timers do not come to rest: {ran[-5:]}"
        return ran

    async def advance(self, seconds: float) -> None:
        """Lets time pass; every timer runs at its moment."""
        until = self.clock.now() + timedelta(seconds=seconds)
        await self.run_timers()
        while (due_at := await self.next_timer()) is not None and due_at <= until:
            self.clock.moment = max(self.clock.now(), due_at)
            await self.run_timers()
        self.clock.moment = until

    async def warm(self) -> None:
        """Opens every connection, so that what follows really runs side by side where the database lets it."""
        if self.database.dialect != "mysql":
            return
        together = asyncio.Barrier(self.database.options.pool_size)

        async def work(uow: SqlUnitOfWork) -> None:
            await uow.timers.next_due_at()
            await together.wait()

        await asyncio.gather(*(self.write(work) for _ in range(together.parties)))

    async def put(self, booking_id: str, status: str, **columns: Any) -> None:
        """Puts a booking into a status behind the desk's back, to start a test from there."""
        values = {"status": status} | columns

        async def work(uow: SqlUnitOfWork) -> None:
            bookings = tables.bookings
            await uow.connection.execute(update(bookings).where(bookings.c.id == booking_id).values(values))

        await self.write(work)

    async def give(self, booking_id: str, firm: Firm, status: Status | str, **columns: Any) -> None:
        """Puts a booking into a status with the firm assigned."""
        mine = {"provider_id": firm.provider_id, "organisation_id": firm.organisation_id}
        await self.put(booking_id, Status(status).value, assigned_at=self.clock.now(), **mine, **columns)

    async def alter(self, firm: Firm, **traits: Any) -> None:
        """Changes fields of a firm's provider behind the desk's back."""

        async def work(uow: SqlUnitOfWork) -> None:
            provider = await uow.market.lock_provider(firm.provider_id)
            assert provider is not None
            await uow.market.save_provider(replace(provider, **traits))

        await self.write(work)

    async def insert(self, table: Table, **row: Any) -> None:
        async def work(uow: SqlUnitOfWork) -> None:
            await uow.connection.execute(insert(table), row)

        await self.write(work)

    # --- looks ---

    async def write(self, work: Callable[[SqlUnitOfWork], Awaitable[T]]) -> T:
        return await self.transactions.write(work, ORIGIN)

    async def rows(self, query: Select[Any]) -> Sequence[Any]:
        async def work(connection: AsyncConnection) -> Sequence[Any]:
            found: Sequence[Any] = (await connection.execute(query)).all()
            return found

        return await self.database.read(work)

    async def count(self, table: Table) -> int:
        return int((await self.rows(select(func.count()).select_from(table)))[0][0])

    async def booking(self, booking_id: str) -> Booking:
        booking = await self.transactions.read(lambda uow: uow.bookings.get(booking_id))
        assert booking is not None
        return booking

    async def provider(self, firm: Firm) -> Provider:
        provider = await self.transactions.read(lambda uow: uow.market.provider(firm.provider_id))
        assert provider is not None
        return provider

    async def next_timer(self) -> datetime | None:
        return await self.transactions.read(lambda uow: uow.timers.next_due_at())

    async def timer_names(self) -> set[str]:
        return {row.name for row in await self.rows(select(tables.timers.c.name))}

    async def offers(self, booking_id: str, status: str | None = None) -> Sequence[Any]:
        """Rows of the booking's offers, oldest first."""
        offers = tables.offers
        query = select(offers).where(offers.c.booking_id == booking_id).order_by(offers.c.sent_at, offers.c.id)
        return await self.rows(query if status is None else query.where(offers.c.status == status))

    async def offer_id(self, firm: Firm, booking_id: str) -> str:
        """The firm's newest offer of the booking."""
        mine = [row.id for row in await self.offers(booking_id) if row.provider_id == firm.provider_id]
        assert mine, "the firm was never asked"
        newest: str = mine[-1]
        return newest

    async def asked(self, booking_id: str, wave: int | None = None) -> set[str]:
        """Ids of the providers that were asked, in one wave or in all."""
        return {row.provider_id for row in await self.offers(booking_id) if wave in {None, row.wave}}

    async def newest_event(self) -> int:
        return int((await self.rows(select(func.coalesce(func.max(tables.outbox.c.id), 0))))[0][0])

    async def events(self, *types: str, after: int = 0) -> list[Recorded]:
        """Recorded events in order: of these types, or all of them."""
        outbox = tables.outbox
        query = select(outbox).where(outbox.c.id > after).order_by(outbox.c.id)
        rows = await self.rows(query.where(outbox.c.type.in_(types)) if types else query)
        return [Recorded(row.id, _event(row)) for row in rows]


def _event(row: Any) -> Event:
    to = row.audience
    audience = Audience(
        users=tuple(to["users"]),
        providers=tuple(to["providers"]),
        organisations=tuple(to["organisations"]),
        booking=to["booking"],
        conversation=to["conversation"],
        zones=tuple(to["zones"]),
        slots=tuple((service, zone) for service, zone in to["slots"]),
    )
    return Event(row.event_id, row.type, row.time, row.source, row.data, audience, EventClass(row.event_class), row.key)


async def refusal(attempt: Awaitable[Any]) -> FixnadoError:
    """The error with which an attempt is refused."""
    with pytest.raises(FixnadoError) as caught:
        await attempt
    return caught.value


async def refused(attempt: Awaitable[Any]) -> str:
    """The ``type`` of the error with which an attempt is refused."""
    return (await refusal(attempt)).type
