"""The demo's marketplace: one zone, two services, three providers, a customer and an admin.

Seeding is repeatable and safe on several nodes at once: what is there already is left alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from domain.accounts import Accounts, new_provider
from domain.errors import EmailTaken
from domain.identity import MembershipRole, Role, User
from domain.ports import Passwords
from domain.providers import Service, Strategy, Zone
from domain.types import Money, Origin, Point, new_id
from persistence.repositories import SqlUnitOfWork
from server.app import Application
from server.turns import turn

PASSWORD = "demo-Fixnado-2026"
MASTER_KEY = "qhM2sNy4qiHBs4J2BiszfI87vqXJ0lGwwykQLp5gG2o="
"""Known to everybody, like the password: the demo keeps nobody's secrets."""

CUSTOMER = "customer@demo.test"
ADMIN = "admin@demo.test"
PROVIDERS = ("provider1@demo.test", "provider2@demo.test", "provider3@demo.test")
ZONE_ID = "camden"

CAMDEN = (
    # Roughly the borough around Camden Town, London: [longitude, latitude], counter-clockwise (RFC 7946 §3.1.6).
    (-0.1750, 51.5350),
    (-0.1560, 51.5300),
    (-0.1400, 51.5240),
    (-0.1270, 51.5250),
    (-0.1200, 51.5330),
    (-0.1225, 51.5440),
    (-0.1330, 51.5540),
    (-0.1500, 51.5590),
    (-0.1660, 51.5560),
    (-0.1760, 51.5470),
    (-0.1750, 51.5350),
)

SERVICES = (
    Service("plumbing", "Plumbing", Money(8_500, "GBP"), 60),
    Service("electrical", "Electrical", Money(9_500, "GBP"), 60),
)


CENTRE = Point(51.5400, -0.1460)


@dataclass(frozen=True, slots=True)
class Crowd:
    """E-mail addresses of simulated people; they share the demo's password."""

    customer: str
    providers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Firm:
    email: str
    person: str
    firm: str
    rating: float
    base: Point


_FIRMS = (
    _Firm(PROVIDERS[0], "Priya Shah", "Shah & Sons", 4.9, Point(51.5392, -0.1430)),
    _Firm(PROVIDERS[1], "Marek Nowak", "Nowak Repairs", 4.7, Point(51.5475, -0.1560)),
    _Firm(PROVIDERS[2], "Amara Obi", "Obi Home Services", 4.6, Point(51.5320, -0.1290)),
)


async def seed(app: Application) -> None:
    """Makes the demo's zone, services and accounts where they are missing."""
    origin = Origin("demo-seed")
    async with turn(app.database, "demo-seed", app.holder):
        await app.transactions.write(_seed_market, origin)
        await _add_person(app.accounts, CUSTOMER, "Casey Jones", Role.CUSTOMER, origin)
        await _add_person(app.accounts, ADMIN, "Ada Admin", Role.ADMIN, origin)
        for firm in _FIRMS:
            await _add_firm(app, app.passwords, firm, origin)


async def seed_crowd(app: Application, firms: int) -> Crowd:
    """Makes simulated people beside the demo's accounts, so that traffic does not act in anybody's name."""
    origin = Origin("demo-seed")
    crowd = Crowd("crowd-customer@demo.test", tuple(f"crowd-provider{number}@demo.test" for number in range(firms)))
    async with turn(app.database, "demo-seed", app.holder):
        await _add_person(app.accounts, crowd.customer, "Simulated customer", Role.CUSTOMER, origin)
        for number, email in enumerate(crowd.providers):
            # Spread over the zone, the way sunflower seeds are: the golden angle keeps them apart.
            angle, distance = number * 2.39996, 0.010 * math.sqrt((number + 0.5) / firms)
            base = Point(CENTRE.lat + distance * math.sin(angle), CENTRE.lon + 1.6 * distance * math.cos(angle))
            firm = _Firm(email, f"Simulated {number + 1}", f"Simulated firm {number + 1}", 4.0 + number % 10 / 10, base)
            await _add_firm(app, app.passwords, firm, origin)
    return crowd


async def _seed_market(uow: SqlUnitOfWork) -> None:
    for service in SERVICES:
        if await uow.market.service(service.id) is None:
            await uow.market.add_service(service)
    if await uow.market.zone(ZONE_ID) is None:
        geometry = {"type": "Polygon", "coordinates": [[list(corner) for corner in CAMDEN]]}
        await uow.market.add_zone(Zone(ZONE_ID, "Camden", geometry, 0.0, Strategy.BROADCAST))


async def _add_person(accounts: Accounts, email: str, name: str, role: Role, origin: Origin) -> None:
    try:
        await accounts.add(email, PASSWORD, name, frozenset({role}), origin)
    except EmailTaken:
        return


async def _add_firm(app: Application, passwords: Passwords, firm: _Firm, origin: Origin) -> None:
    if await app.transactions.read(lambda uow: uow.people.by_email(firm.email)) is not None:
        return
    password_hash = await passwords.hash(PASSWORD)

    async def work(uow: SqlUnitOfWork) -> None:
        organisation_id, provider_id = new_id(uow.now), new_id(uow.now)
        user = User(new_id(uow.now), firm.email, firm.person, password_hash, frozenset({Role.PROVIDER}))
        await uow.people.add_user(user)
        await uow.people.add_organisation(organisation_id, firm.firm)
        await uow.people.add_membership(organisation_id, user.id, MembershipRole.OWNER)
        provider = replace(
            new_provider(provider_id, organisation_id, firm.firm, uow.now),
            verified=True,
            rating=firm.rating,
            position=firm.base,
            max_daily_jobs=10_000,
        )
        await uow.market.add_provider(provider, [service.id for service in SERVICES], [ZONE_ID])

    try:
        await app.transactions.write(work, origin)
    except EmailTaken:
        return
