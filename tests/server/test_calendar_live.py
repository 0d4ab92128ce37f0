"""Calendars end to end: free times on a live channel while people hold and book, and the feed over HTTP."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import vobject
from sqlalchemy import insert

from domain.identity import Role
from domain.providers import Service, Strategy, Zone
from domain.types import Money
from persistence import tables
from persistence.repositories import SqlUnitOfWork
from persistence.repositories.audit import created
from tests.domain.marketplace import CENTRE, ORIGIN, square
from tests.server.running import Running, running


async def test_holds_and_bookings_move_the_free_times_of_everybody_who_looks(database_url: str) -> None:
    async with running(database_url) as server:
        boss_token, casey_token = await _people(server)
        day = (datetime.now(UTC) + timedelta(days=2)).replace(hour=9, minute=0, second=0, microsecond=0)
        rule = {"rrule": "FREQ=DAILY", "tzid": "UTC", "dtstart": "2026-01-01T09:00", "duration_minutes": 120}
        async with await server.socket(boss_token) as boss, await server.socket(casey_token) as casey:
            (organisation,) = (await boss.call("organisation.list"))["organisations"]
            provider_id = organisation["provider_id"]
            await boss.call("availability.set_rules", provider_id=provider_id, rules=[rule], version=0, key="k1")
            await boss.hears("availability.changed")
            anywhere = {"service_id": "plumbing", "zone_id": "camden"}
            await casey.call("channel.subscribe", channel="availability:plumbing:camden")
            question = {"from": day.isoformat(), "to": (day + timedelta(hours=8)).isoformat()}
            free = (await casey.call("availability.slots", **anywhere, **question))["slots"]
            assert len(free) == 3
            held = (await casey.call("slot.hold", **anywhere, start=free[0]["start"], key="k2"))["hold"]
            assert (await casey.hears("slot.held"))["data"]["start"] == free[0]["start"]
            wish = {"service_id": "plumbing", "kind": "scheduled", "location": CENTRE.view(), "hold_id": held["id"]}
            booking = (await casey.call("booking.create", **wish, key="k3"))["booking"]
            assert booking["status"] == "scheduled"
            await casey.hears("slot.booked")
            assert len((await casey.call("availability.slots", **anywhere, **question))["slots"]) == 1

            path = (await boss.call("calendar.issue_feed"))["path"]
            async with server.http.get(f"{server.url}{path}") as answer:
                assert (answer.status, answer.content_type) == (200, "text/calendar")
                (event,) = vobject.readOne(await answer.text()).vevent_list
                assert event.uid.value == f"{booking['id']}@fixnado"
            await boss.call("calendar.revoke_feed")
            for closed in (path, "/calendars/fxc_guessed.ics"):
                status, problem = await server.get(closed)
                assert (status, problem["type"]) == (404, "not_found")


async def _people(server: Running) -> tuple[str, str]:
    """A verified plumber and a customer; their access tokens."""
    await server.user("boss@firm.test", Role.PROVIDER)
    await server.user("casey@home.test", Role.CUSTOMER)

    async def work(uow: SqlUnitOfWork) -> None:
        await uow.market.add_service(Service("plumbing", "Plumbing", Money(8_500, "GBP"), 60))
        await uow.market.add_zone(Zone("camden", "Camden", square(CENTRE, 0.5), 0.0, Strategy.BROADCAST))
        (provider,) = await uow.market.providers()
        await uow.market.save_provider(replace(provider, verified=True))
        offers = {"provider_id": provider.id} | created(uow)
        await uow.connection.execute(insert(tables.provider_skills), offers | {"service_id": "plumbing"})
        await uow.connection.execute(insert(tables.provider_zones), offers | {"zone_id": "camden"})

    await server.app.transactions.write(work, ORIGIN)
    return await server.token("boss@firm.test"), await server.token("casey@home.test")
