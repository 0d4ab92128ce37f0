"""What a client sees, and what it does not, when the server itself is in trouble."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from tests.acceptance.client import ADMIN, CAMDEN, CUSTOMER, JSON, PROVIDERS, Rest, Socket, new_key, signed_in
from tests.acceptance.demo import Demo
from tests.acceptance.shapes import assert_error, assert_problem
from tests.acceptance.town import Town, refusal, token_of


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo whose database the tests disturb, and mend again."""
    with Demo(tmp_path_factory.mktemp("fragile"), database_timeout_seconds=1, linger_seconds=1) as demo:
        yield demo


@contextmanager
def changed(demo: Demo, change: str, back: str) -> Iterator[None]:
    """The database is changed under the server's feet, and changed back."""
    with closing(sqlite3.connect(demo.database, timeout=10, isolation_level=None)) as connection:
        connection.execute(change)
        try:
            yield
        finally:
            connection.execute(back)


@contextmanager
def locked(demo: Demo) -> Iterator[None]:
    """Somebody else holds the database's write lock."""
    with changed(demo, "BEGIN IMMEDIATE", "ROLLBACK"):
        yield


async def test_a_crash_shows_the_correlation_id_and_nothing_else(fragile: Demo) -> None:
    async with signed_in(fragile.base, CUSTOMER) as socket, Rest(fragile.base) as rest:
        token = await token_of(fragile, CUSTOMER)
        with changed(fragile, "ALTER TABLE services RENAME TO hidden", "ALTER TABLE hidden RENAME TO services"):
            error = await refusal(socket, "service.list")
            answer = await rest.command("service.list", {}, token)
            assert "zones" in await socket.call("zone.list")
        assert_error(error, -32603, "internal", 500)
        assert_problem(answer, 500, "internal")
        for shown in (json.dumps(error), answer.raw.decode()):
            assert not any(word in shown.lower() for word in ("services", "sql", "traceback", "table", ".py"))
        for correlation_id in (error["data"]["correlation_id"], answer.body["correlation_id"]):
            lines = [line for line in fragile.output().splitlines() if correlation_id in line]
            assert any("no such table" in line for line in lines), "the id finds the log line"
            assert all(json.loads(line)["correlation_id"] == correlation_id for line in lines)
        assert "services" in await socket.call("service.list")


async def test_readiness_says_which_dependency_is_failing(fragile: Demo) -> None:
    async with Rest(fragile.base) as rest:
        mend = "UPDATE alembic_version SET version_num = substr(version_num, 2)"
        with changed(fragile, "UPDATE alembic_version SET version_num = 'x' || version_num", mend):
            ready = await rest.get("/health/ready")
            assert ready.status == 503
            assert ready.body["status"] == "not_ready"
            assert ready.body["dependencies"]["schema"]["status"] == "failing"
            assert ready.body["dependencies"]["schema"]["why"]
            assert ready.body["dependencies"]["database"] == {"status": "ok"}
            assert (await rest.get("/health/live")).status == 200
        assert (await rest.get("/health/ready")).status == 200


async def test_a_database_that_takes_no_writes_is_retryable_and_nothing_is_half_done(fragile: Demo) -> None:
    wish = {"service_id": "plumbing", "kind": "on_demand", "location": CAMDEN, "key": new_key()}
    async with signed_in(fragile.base, CUSTOMER) as socket:
        with locked(fragile):
            started = time.monotonic()
            error = await refusal(socket, "booking.create", wish)
            assert time.monotonic() - started < 8
            assert_error(error, -32603, "unavailable", 503)
            assert error["data"]["retryable"] is True
            # Reading goes on.
            assert "services" in await socket.call("service.list")
        booking = (await socket.call("booking.create", wish))["booking"]
        assert (await socket.call("booking.create", wish))["booking"] == booking
        created = await socket.event("booking.created", booking_id=booking["id"])
        assert created["data"]["booking"]["version"] == 1
        cancel: JSON = {"booking_id": booking["id"], "reason": "only a test", "key": new_key()}
        await socket.call("booking.cancel", cancel)


@pytest.mark.soak
async def test_a_provider_who_comes_while_the_database_is_away_is_online_soon_after(fragile: Demo) -> None:
    token = await token_of(fragile, PROVIDERS[2])
    async with signed_in(fragile.base, ADMIN) as admin:
        with locked(fragile):
            provider = await Socket.open(fragile.base)
            await provider.connect(token)
        own = provider.own("provider")
        # Its sockets are looked at every ten seconds.
        online = await provider.event("availability.changed", own, status="online", seconds=15)
        assert online["data"]["provider_id"] == own.partition(":")[2]
        place = len(admin.events)
        with locked(fragile):
            await provider.close()
            await asyncio.sleep(5)  # the server's own patience with telling that it went
        await admin.event("presence.changed", after=place, seconds=20, status="offline")


async def test_the_town_is_well_again(fragile: Demo) -> None:
    async with Town(fragile.base) as town:
        job = await town.assigned()
        assert (await town.step(town.providers[0], job, "en_route"))["status"] == "en_route"
