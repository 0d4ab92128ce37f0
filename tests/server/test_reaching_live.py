"""People who are away, reached by a whole server; and what that costs those who are there (nothing)."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from aiohttp import web
from sqlalchemy import select

from domain.accounts import new_provider
from domain.identity import MembershipRole, Role
from domain.providers import ProviderStatus, Service, Strategy, Zone
from domain.types import Money, Origin, new_id
from persistence import tables
from server.app import Application
from server.aws import AwsOptions
from server.carriers import SendGridMail
from server.clock import SystemClock
from server.fcm import FcmPush
from tests.channels.fakes import until
from tests.domain.marketplace import CENTRE, FOREVER, square
from tests.server.carrier_stubs import SENDER, SENDGRID_KEY, Carriers, carriers_running
from tests.server.running import Running, running


class ThrottlingSes:
    """AWS SES that takes nothing while it throttles."""

    def __init__(self) -> None:
        self.throttles = True
        self.sent = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_post("/", self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        addresses: Any = runner.addresses
        try:
            yield f"http://127.0.0.1:{addresses[0][1]}"
        finally:
            await runner.cleanup()

    async def _answer(self, _: web.Request) -> web.Response:
        if self.throttles:
            error = "<Type>Sender</Type><Code>Throttling</Code><Message>Maximum sending rate exceeded.</Message>"
            text = f"<ErrorResponse><Error>{error}</Error></ErrorResponse>"
            return web.Response(text=text, status=400, content_type="text/xml")
        self.sent += 1
        result = f"<SendEmailResult><MessageId>ses-{self.sent}</MessageId></SendEmailResult>"
        return web.Response(text=f"<SendEmailResponse>{result}</SendEmailResponse>", content_type="text/xml")


SOON: dict[str, Any] = {"reach_push_seconds": 0.3, "reach_sms_seconds": 600, "reach_email_seconds": 600}


@pytest.fixture
async def stubs(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Carriers]:
    async with carriers_running() as stubs:
        monkeypatch.setattr("server.outbound.FcmPush", partial(FcmPush, url=stubs.url))
        yield stubs


async def settle(server: Running) -> str:
    """A zone, a service, a customer, and a firm that is online though nobody holds a socket; the owner's id."""
    await server.user("ann@x.test", Role.CUSTOMER)
    owner = await server.user("bob@x.test", Role.PROVIDER)
    now = SystemClock().now()

    async def work(uow: Any) -> None:
        await uow.market.add_zone(Zone("camden", "Camden", square(CENTRE, 0.5), 0.0, Strategy.BATCHED))
        await uow.market.add_service(Service("plumbing", "Plumbing", Money(8_500, "GBP"), 60))
        organisation_id = new_id(now)
        await uow.people.add_organisation(organisation_id, "Firm")
        await uow.people.add_membership(organisation_id, owner, MembershipRole.OWNER)
        provider = replace(
            new_provider(new_id(now), organisation_id, "Firm", now), verified=True, status=ProviderStatus.ONLINE
        )
        await uow.market.add_provider(provider, ["plumbing"], ["camden"])
        await uow.market.hold_socket(provider.id, "elsewhere", now + FOREVER)

    await server.app.transactions.write(work, Origin("test"))
    return owner


async def pushed(server: Running, token: str, method: str, *, device: str, **params: Any) -> tuple[int, Any]:
    """A command about a device."""
    headers = {"Authorization": f"Bearer {token}"}
    body = {"token": device, **params}
    async with server.http.post(f"{server.url}/commands/{method}", json=body, headers=headers) as answer:
        return answer.status, await answer.json()


async def book(server: Running) -> float:
    """Books; returns how long that took."""
    token = await server.token("ann@x.test")
    wanted = {
        "service_id": "plumbing",
        "kind": "on_demand",
        "location": CENTRE.view(),
        "key": new_id(SystemClock().now()),
    }
    started = time.monotonic()
    status, body = await server.rest(token, "booking.create", **wanted)
    assert status == 200, body
    return time.monotonic() - started


async def deliveries(app: Application) -> dict[str, Any]:
    async def work(connection: Any) -> Any:
        return (await connection.execute(select(tables.deliveries))).all()

    return {row.medium: row for row in await app.database.read(work)}


async def rows(app: Application, holds: Callable[[dict[str, Any]], bool], seconds: float = 10) -> dict[str, Any]:
    """The deliveries by medium, once they are as they should be."""
    async with asyncio.timeout(seconds):
        # What other tasks write to the database; there is no event for it.
        while not holds(found := await deliveries(app)):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return found


async def looked(app: Application) -> None:
    """Returns when nobody is watched any more."""
    waiting = select(tables.timers.c.name).where(tables.timers.c.kind == "reach")
    async with asyncio.timeout(10):
        while await app.database.read(lambda connection: _any(connection, waiting)):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def _any(connection: Any, query: Any) -> bool:
    return (await connection.execute(query)).first() is not None


async def test_offer_that_nobody_acks_is_pushed_and_one_that_a_socket_acks_is_not(
    database_url: str, stubs: Carriers
) -> None:
    async with running(database_url, fcm_service_account=stubs.service_account, **SOON) as server:
        await settle(server)
        bob = await server.token("bob@x.test")
        stubs.gone.add("device-of-bob-old1")
        for device in ("device-of-bob-old1", "device-of-bob-1234"):
            status, _ = await pushed(server, bob, "push.register", platform="android", device=device)
            assert status == 200
        await book(server)
        await until(lambda: bool(stubs.pushes))
        (message,) = stubs.pushes
        assert message["token"] == "device-of-bob-1234"
        assert message["notification"]["body"].startswith("Plumbing in Camden.")
        found = await rows(server.app, lambda rows: rows["push"].status == "handed_over")
        assert (found["push"].carrier, found["push"].attempts) == ("fcm", 1)
        _, left = await pushed(server, bob, "push.unregister", device="device-of-bob-old1")
        assert left == {"devices": 1}, "the device that is gone was forgotten"

        async with await server.socket(bob) as socket_:
            raised = (await socket_.call("notification.list"))["notifications"]
            assert [(it["category"], it["title"]) for it in raised] == [("offer", "A job is offered to you")]
            offers = await socket_.call("offer.list")
            await socket_.call("offer.decline", offer_id=offers["offers"][0]["id"], reason="busy", key="k1")
            socket_.events.clear()
            await book(server)
            made = await socket_.hears("offer.made")
            await socket_.call("session.ack", **{made["channel"]: made["offset"]})
            await looked(server.app)
        assert len(stubs.pushes) == 1
        async with server.http.get(f"{server.url}/metrics") as answer:
            told = await answer.text()
        assert 'fixnado_notification_deliveries_total{medium="push",outcome="handed_over"} 1.0' in told


async def test_message_that_a_socket_acks_is_not_pushed_and_the_next_one_is(sqlite_url: str, stubs: Carriers) -> None:
    async with running(sqlite_url, fcm_service_account=stubs.service_account, **SOON) as server:
        await settle(server)
        ann, bob = await server.token("ann@x.test"), await server.token("bob@x.test")
        await pushed(server, ann, "push.register", platform="ios", device="device-of-ann-1234")
        async with await server.socket(bob) as theirs, await server.socket(ann) as mine:
            await book(server)
            offer = (await theirs.hears("offer.made"))["data"]["offer_id"]
            booking_id = (await theirs.call("offer.accept", offer_id=offer, key="k1"))["booking"]["id"]
            await mine.call("channel.subscribe", channel=f"conversation:{booking_id}")
            await theirs.call("message.send", conversation_id=booking_id, text="five minutes", key="k2")
            heard = await mine.hears("message.sent")
            await mine.call("session.ack", **{heard["channel"]: heard["offset"]})
            await looked(server.app)
            assert stubs.pushes == []
            await theirs.call("message.send", conversation_id=booking_id, text="at the door", key="k3")
            await until(lambda: bool(stubs.pushes))
        assert stubs.pushes[0]["notification"]["body"].startswith("Bob has written to you")


async def test_server_that_restarts_in_between_reaches_people_once(sqlite_url: str, stubs: Carriers) -> None:
    settings: dict[str, Any] = {"fcm_service_account": stubs.service_account, **SOON, "reach_push_seconds": 0.8}
    async with running(sqlite_url, **settings) as server:
        await settle(server)
        await pushed(
            server, await server.token("bob@x.test"), "push.register", platform="web", device="device-of-bob-1234"
        )
        await book(server)
    assert stubs.pushes == []
    async with running(sqlite_url, **settings) as server:
        await until(lambda: bool(stubs.pushes))
        await rows(server.app, lambda rows: rows["push"].status == "handed_over")
    async with running(sqlite_url, **settings) as server:
        await looked(server.app)
    assert len(stubs.pushes) == 1


# --- AWS throttled or away: experiment 17 -----------------------------------------------------------------------------


@pytest.fixture
def aws_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


AWAY: dict[str, Any] = {
    "mail_from": SENDER,
    "aws_region": "eu-west-2",
    "reach_sms_seconds": 0.2,
    "reach_email_seconds": 0.2,
    "reach_push_seconds": 0.2,
}


async def test_nobody_waits_for_an_aws_that_hangs_and_the_other_carrier_takes_over(
    sqlite_url: str, stubs: Carriers, aws_credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.outbound.SendGridMail", partial(SendGridMail, url=stubs.url))
    monkeypatch.setattr("server.carriers.CALL_SECONDS", 0.5)
    # The kernel takes connections, and nobody ever answers.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        away = AWAY | {"aws_endpoint_url": endpoint, "sendgrid_api_key": SENDGRID_KEY}
        async with running(sqlite_url, **away) as server:
            await settle(server)
            took = [await book(server) for _ in range(5)]
            assert max(took) < 1.0
            await until(lambda: bool(stubs.mails), 10)
            started = time.monotonic()
            await server.token("bob@x.test")
            assert time.monotonic() - started < 2.0, "a sign-in needs no AWS"
            found = await rows(server.app, lambda rows: rows["email"].status == "handed_over")
            assert found["email"].carrier == "sendgrid"


async def test_what_a_throttling_aws_refuses_goes_out_when_it_no_longer_does(
    sqlite_url: str, aws_credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.carriers.OPEN_SECONDS", 0.1)
    monkeypatch.setattr("domain.reaching.FIRST_PAUSE_SECONDS", 0.1)
    ses = ThrottlingSes()
    async with ses.running() as endpoint:
        prepare = partial(_impatient, endpoint)
        async with running(sqlite_url, prepare, **AWAY, aws_endpoint_url=endpoint) as server:
            await settle(server)
            await book(server)
            found = await rows(server.app, lambda rows: "email" in rows and rows["email"].attempts >= 2)
            assert (found["email"].status, ses.sent) == ("waiting", 0)
            ses.throttles = False
            found = await rows(server.app, lambda rows: rows["email"].status == "handed_over")
            assert (found["email"].reference, ses.sent) == ("ses-1", 1)


def _impatient(endpoint: str, app: Application) -> None:
    app.aws._options = AwsOptions("eu-west-2", endpoint, tries=1, failures_to_open=2, open_seconds=0.1)
