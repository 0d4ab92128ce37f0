"""Experiments with the database: killed, stopped, cut off at COMMIT, locked. Nothing acked is lost or done twice."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import asyncmy
import pytest

from tests.acceptance.client import ADMIN, CAMDEN, CUSTOMER, JSON, Closed, Rest, Socket, new_key, signed_in
from tests.acceptance.town import refusal
from tests.experiments.cluster import Cluster, Wire, metrics, wait_until_ready
from tests.experiments.load import Play

Report = Callable[..., None]


def assert_unavailable(error: JSON) -> None:
    assert (error["data"]["type"], error["data"]["retryable"]) == ("unavailable", True)


async def readiness(base: str) -> tuple[int, str]:
    """The status, and how the database is."""
    async with Rest(base) as rest:
        answer = await rest.get("/health/ready")
        return answer.status, answer.body["dependencies"]["database"]["status"]


async def until_not_ready(bases: list[str], seconds: float = 8.0) -> None:
    async def one(base: str) -> None:
        while await readiness(base) != (503, "failing"):  # noqa: ASYNC110 — another process tells nobody
            await asyncio.sleep(0.05)

    async with asyncio.timeout(seconds):
        await asyncio.gather(*map(one, bases))


async def test_experiment_06_the_database_is_killed_and_comes_back(town: Cluster, play: Play, report: Report) -> None:
    async def trouble(play: Play) -> None:
        await play.more(20)
        town.mariadb.kill()
        await until_not_ready(town.bases)
        await town.start(town.mariadb)
        await play.more(30)
        for node in town.nodes:
            await asyncio.to_thread(wait_until_ready, node)

    verdict = await play.run(trouble)
    report(verdict)
    verdict.hold()
    assert play.history.connections == len(play.people), "nobody lost a socket"


async def test_experiment_07_the_database_hangs(town: Cluster, report: Report) -> None:
    """Readiness says so, a crowd of commands is answered within bounds, and afterwards no connection is missing."""
    base = town.bases[0]
    async with signed_in(base, ADMIN) as admin:

        async def ask(number: int) -> str:
            reply = await sockets[number % len(sockets)].exchange("booking.list", {"limit": 1})
            return str(reply["error"]["data"]["type"]) if "error" in reply else "ok"

        sockets = [await Socket.open(base) for _ in range(10)]
        async with Rest(base) as rest:
            token = (await rest.login(ADMIN))["access_token"]
        for socket in sockets:
            await socket.connect(token)
        town.mariadb.pause()
        began = time.monotonic()
        asking = [asyncio.create_task(ask(number)) for number in range(60)]
        await until_not_ready(town.bases)
        not_ready = time.monotonic() - began
        # The first of each socket is refused when its time is up, and the next of each begins.
        await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        town.mariadb.resume()
        counts = Counter(await asyncio.gather(*asking))
        seconds = time.monotonic() - began
        for node in town.nodes:
            await asyncio.to_thread(wait_until_ready, node)
        await town.measured("fixnado_database_connections_in_use", 0, town.nodes[0])
        assert "bookings" in await admin.call("booking.list", {"limit": 1})
    report(f"not ready after {not_ready:.2f} s; 60 commands {dict(counts)} in {seconds:.2f} s; no connection missing")
    assert set(counts) <= {"ok", "unavailable"}
    assert not_ready < 5.0


async def booked_once(town: Cluster, notes: str, booking: JSON) -> None:
    rows = await town.rows(f"SELECT id FROM bookings WHERE notes = '{notes}'")
    assert [row[0] for row in rows] == [booking["id"]]
    (told,) = await town.rows(
        "SELECT COUNT(*) FROM log WHERE channel = 'admin:bookings'"
        f" AND frame LIKE '%\"type\":\"booking.created\"%' AND frame LIKE '%{booking['id']}%'"
    )
    assert told[0] == 1


async def test_experiment_08_the_databases_answer_to_commit_is_lost(town: Cluster, report: Report) -> None:
    """The client is told ``unavailable``; the retry under the same key finds the booking that was made."""
    notes = new_key()
    wish: JSON = {"service_id": "plumbing", "kind": "on_demand", "location": CAMDEN, "notes": notes, "key": new_key()}
    kept = f"SELECT COUNT(*) FROM bookings WHERE notes = '{notes}'"
    async with signed_in(town.wired.base, CUSTOMER) as customer:
        town.to_database.cuts_commit_of = notes.encode()
        assert_unavailable(await refusal(customer, "booking.create", wish))
        town.to_database.cuts_commit_of = b""
        async with asyncio.timeout(5):  # the database has the COMMIT and is at work on it
            while (await town.rows(kept))[0][0] == 0:  # noqa: ASYNC110 — another process tells nobody
                await asyncio.sleep(0.02)
        booking = (await customer.call("booking.create", wish))["booking"]
        assert (await customer.call("booking.create", wish))["booking"] == booking
        await customer.call("booking.cancel", {"booking_id": booking["id"], "reason": "over", "key": new_key()})
        await customer.event("booking.cancelled", "user:", booking_id=booking["id"])
    report(f"{town.to_database.commits_cut} commit cut; the booking was there when the client knew nothing")
    assert town.to_database.commits_cut == 1
    await booked_once(town, notes, booking)


async def test_experiment_08_the_servers_answer_is_lost_after_commit(town: Cluster, report: Report) -> None:
    notes = new_key()
    wish: JSON = {"service_id": "plumbing", "kind": "on_demand", "location": CAMDEN, "notes": notes, "key": new_key()}
    async with Wire(town.nodes[0].port).running() as wire:
        async with signed_in(f"http://127.0.0.1:{wire.port}", CUSTOMER) as customer:
            wire.loses_answers = True
            asking = asyncio.create_task(customer.call("booking.create", wish))
            async with asyncio.timeout(10):
                while not (kept := await town.rows(f"SELECT id FROM bookings WHERE notes = '{notes}'")):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            wire.cut()
            with pytest.raises(Closed):
                await asking
    async with signed_in(town.bases[1], CUSTOMER) as customer:
        booking = (await customer.call("booking.create", wish))["booking"]
        assert booking["id"] == kept[0][0]
        await customer.call("booking.cancel", {"booking_id": booking["id"], "reason": "over", "key": new_key()})
        await customer.event("booking.cancelled", "user:", booking_id=booking["id"])
    report("the retry on another node returned the booking of the first")
    await booked_once(town, notes, booking)


@asynccontextmanager
async def transaction(town: Cluster) -> AsyncIterator[Any]:
    """A transaction of somebody else's program; rolled back at the end."""
    parts = urlsplit(town.url)
    connection = await asyncmy.connect(
        host=parts.hostname, port=parts.port, user="root", db=parts.path.lstrip("/"), connect_timeout=5
    )
    try:
        async with connection.cursor() as cursor:
            await cursor.execute("BEGIN")
            yield cursor
        await connection.rollback()
    finally:
        await connection.ensure_closed()


async def test_experiment_09_a_lock_that_is_held_for_long(town: Cluster, report: Report) -> None:
    """1205, again and again: refused within bounds, nothing is half done, and later it works."""
    async with signed_in(town.bases[0], CUSTOMER) as customer:
        wish: JSON = {"service_id": "plumbing", "kind": "on_demand", "location": CAMDEN, "key": new_key()}
        booking = (await customer.call("booking.create", wish))["booking"]
        cancel = {"booking_id": booking["id"], "reason": "over", "key": new_key()}
        async with transaction(town) as other:
            await other.execute(f"SELECT * FROM bookings WHERE id = '{booking['id']}' FOR UPDATE")
            began = time.monotonic()
            assert_unavailable(await refusal(customer, "booking.cancel", cancel))
            seconds = time.monotonic() - began
            still = (await customer.call("booking.get", {"booking_id": booking["id"]}))["booking"]
            assert (still["status"], still["version"]) == (booking["status"], booking["version"])
        after = (await customer.call("booking.cancel", cancel))["booking"]
        assert after["status"] == "cancelled"
        await customer.event("booking.cancelled", "user:", booking_id=booking["id"])
        ends = [event for event in customer.events if event["type"] == "booking.cancelled"]
        assert len([event for event in ends if event["channel"].startswith("user:")]) == 1
    report(f"refused after {seconds:.2f} s, done once afterwards")
    assert seconds < 8.0


async def test_experiment_09_deadlocks_are_retried(town: Cluster, report: Report) -> None:
    """1213: the transaction that was chosen as victim runs again, whole, and has its effect once."""
    node = town.nodes[0]
    before = metrics(node)['fixnado_database_retries_total{trouble="deadlock"}']
    async with signed_in(node.base, CUSTOMER) as customer, signed_in(node.base, "provider1@demo.test") as provider:
        wish: JSON = {"service_id": "plumbing", "kind": "on_demand", "location": CAMDEN, "key": new_key()}
        booking = (await customer.call("booking.create", wish))["booking"]
        offer = (await provider.event("offer.made", booking_id=booking["id"]))["data"]["offer"]
        async with transaction(town) as other:
            # The victim is the one that wrote less.
            await other.execute("UPDATE provider_skills SET updated_by = 'other' WHERE service_id = 'racing'")
            await other.execute(f"SELECT * FROM providers WHERE id = '{offer['provider_id']}' FOR UPDATE")
            accepting = asyncio.create_task(provider.call("offer.accept", {"offer_id": offer["id"], "key": new_key()}))
            async with asyncio.timeout(5):
                while not await town.rows("SELECT 1 FROM information_schema.innodb_lock_waits"):  # noqa: ASYNC110
                    # InnoDB brings this table up to date only for those who have not looked for 0.1 s.
                    await asyncio.sleep(0.15)
            await other.execute(f"SELECT * FROM bookings WHERE id = '{booking['id']}' FOR UPDATE")
        taken = (await accepting)["booking"]
        assert (taken["status"], taken["version"]) == ("assigned", booking["version"] + 1)
        await customer.event("booking.assigned", "user:", booking_id=booking["id"])
        cancel = {"booking_id": booking["id"], "reason": "over", "key": new_key()}
        await customer.call("booking.cancel", cancel)
    retries = metrics(node)['fixnado_database_retries_total{trouble="deadlock"}'] - before
    report(f"{retries:.0f} deadlock retried, accepted once")
    assert 1 <= retries <= 3


async def test_experiment_10_a_node_without_the_database_says_so_and_refuses(
    town: Cluster, play: Play, report: Report
) -> None:
    """Clients of the others notice nothing; its own are told to try again, and lose nothing."""

    async def trouble(play: Play) -> None:
        async with signed_in(town.wired.base, CUSTOMER) as customer:
            await play.more(10)
            town.to_database.refusing = True
            town.cut(town.to_database)
            await until_not_ready([town.wired.base])
            wish: JSON = {"service_id": "plumbing", "kind": "on_demand", "location": CAMDEN, "key": new_key()}
            assert_unavailable(await refusal(customer, "booking.create", wish))
            assert [await readiness(base) for base in town.bases[:2]] == [(200, "ok")] * 2
            town.to_database.refusing = False
            await play.more(20)

    verdict = await play.run(trouble)
    report(verdict)
    verdict.hold()
