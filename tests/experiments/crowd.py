"""Two hundred providers for one race, in a zone of their own, all spoken for by one person."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from domain.accounts import new_provider
from domain.identity import MembershipRole, Role, User
from domain.providers import ProviderStatus, Service, Strategy, Zone
from domain.types import Money, Origin, Point, new_id
from persistence.database import Database, DatabaseOptions
from persistence.geometry import ZoneIndex
from persistence.repositories import SqlUnitOfWork, Units
from persistence.unit_of_work import Transactions
from server.clock import SystemClock
from server.passwords import Passwords
from tests.acceptance.client import PASSWORD

CREW = "crew@race.test"
RACE_TRACK = {"lat": 40.05, "lon": 10.05}
SERVICE = Service("racing", "Racing", Money(1_000, "GBP"), 60)
ZONE = Zone(
    "race-track",
    "Race track",
    {"type": "Polygon", "coordinates": [[[10.0, 40.0], [10.1, 40.0], [10.1, 40.1], [10.0, 40.1], [10.0, 40.0]]]},
    0.0,
    Strategy.BROADCAST,
)
SIZE = 200


async def gather_crowd(database_url: str) -> None:
    """Opens their accounts; all of them count as online, without sockets, for a day."""
    passwords = Passwords()
    password_hash = await passwords.hash(PASSWORD)
    passwords.close()

    async def work(uow: SqlUnitOfWork) -> None:
        await uow.market.add_service(SERVICE)
        await uow.market.add_zone(ZONE)
        person = User(new_id(uow.now), CREW, "Crew", password_hash, frozenset({Role.PROVIDER}))
        await uow.people.add_user(person)
        for number in range(SIZE):
            organisation_id, provider_id = new_id(uow.now), new_id(uow.now)
            await uow.people.add_organisation(organisation_id, f"Racer {number}")
            await uow.people.add_membership(organisation_id, person.id, MembershipRole.OWNER)
            provider = replace(
                new_provider(provider_id, organisation_id, f"Racer {number}", uow.now),
                verified=True,
                position=Point(RACE_TRACK["lat"], RACE_TRACK["lon"]),
                chosen_status=ProviderStatus.ONLINE,
                status=ProviderStatus.ONLINE,
            )
            await uow.market.add_provider(provider, [SERVICE.id], [ZONE.id])
            await uow.market.hold_socket(provider_id, "crowd", uow.now + timedelta(days=1))

    database = Database(database_url, DatabaseOptions(tls="off", transaction_timeout_seconds=30))
    try:
        await Transactions(database, SystemClock(), Units(ZoneIndex(), lambda _: None)).write(work, Origin("crowd"))
    finally:
        await database.close()
