"""Who is reached outside the sockets, by what, when, and when no longer."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from domain import notifications, reaching
from domain.catalogue import COMMANDS
from domain.commands import Desk
from domain.context import Context
from domain.factors import Factor, FactorKind
from domain.identity import Actor, MembershipRole, SignIn
from domain.letters import Medium
from domain.notifications import Category, DeliveryStatus, Preferences
from domain.policy import Policy
from domain.reaching import Report
from domain.types import JSON
from persistence import tables
from persistence.repositories.notifications import SqlNotifications, prune_notifications
from tests.domain.marketplace import Firm, Marketplace, refused

PUSH, SMS, EMAIL = Medium.PUSH, Medium.SMS, Medium.EMAIL
REACH = ((PUSH, 5.0), (SMS, 30.0), (EMAIL, 120.0))
DEVICE = "device-token-of-somebody"
TAKEN = Report(DeliveryStatus.HANDED_OVER, "stub", "ref")


class Street:
    """A marketplace whose people are reached, and a courier that is always there."""

    def __init__(self, market: Marketplace, policy: Policy) -> None:
        market.desk = Desk(COMMANDS, market.transactions, policy)
        self.market = market
        self.report: Report | None = TAKEN
        self.sent: list[tuple[str, Medium, str]] = []

    async def device(self, person: Actor, token: str = DEVICE) -> Actor:
        """The person signs in on a device that takes push messages."""
        market, now = self.market, self.market.clock.now()
        sign_in = SignIn(person.session_id, person.user_id, {}, now, now, now + timedelta(days=30))
        await market.write(lambda uow: uow.people.add_sign_in(sign_in))
        await market.call(person, "push.register", platform="android", token=token)
        return person

    async def phone(self, person: Actor) -> None:
        now = self.market.clock.now()
        factor = Factor(person.user_id, FactorKind.SMS, "sealed", "+44 … 23", 0, now, now)
        await self.market.write(lambda uow: uow.factors.put(factor))

    async def deliver(self) -> list[tuple[str, Medium, str]]:
        """The courier's round: (whom, by what, about what)."""
        _, errands = await self.market.as_system(lambda ctx: reaching.claim(ctx, 50))
        sent = []
        for errand in errands:
            about, medium = errand.notification, errand.delivery.medium
            sent.append((about.user_id, medium, about.subject.partition("/")[0]))

            async def note(ctx: Context, about: str = about.id, medium: Medium = medium) -> None:
                await reaching.note(ctx, about, medium, self.report)

            await self.market.as_system(note)
        self.sent += sent
        return sent

    async def advance(self, seconds: float) -> list[tuple[str, Medium, str]]:
        """Lets time pass; every timer and every delivery has its moment. What was sent meanwhile."""
        market, before = self.market, len(self.sent)
        until = market.clock.now() + timedelta(seconds=seconds)
        while (due_at := await self._next()) is not None and due_at <= until:
            market.clock.moment = max(market.clock.now(), due_at)
            await market.run_timers()
            await self.deliver()
        market.clock.moment = until
        return self.sent[before:]

    async def _next(self) -> datetime | None:
        moments = (
            await self.market.next_timer(),
            await self.market.transactions.read(lambda uow: uow.notifications.next_due_at()),
        )
        return min((moment for moment in moments if moment is not None), default=None)

    async def deliveries(self) -> dict[str, tuple[str, str | None]]:
        rows = await self.market.rows(select(tables.deliveries).order_by(tables.deliveries.c.notification_id))
        return {row.medium: (row.status, row.reason) for row in rows}


@pytest.fixture
def street(market: Marketplace) -> Street:
    return Street(market, replace(market.policy, reach=REACH, offer_on_demand_seconds=300, offer_scheduled_seconds=300))


async def reachable(street: Street, person: Actor) -> Actor:
    await street.device(person, f"device-token-of-{person.user_id}")
    await street.phone(person)
    return person


async def offered(street: Street) -> tuple[Firm, str]:
    """A firm with one reachable person, and the booking it is asked about."""
    firm = await street.market.firm()
    await reachable(street, firm.person)
    return firm, await street.market.book(await street.market.customer())


async def test_offer_that_nobody_acks_goes_out_by_push_then_text_then_mail(street: Street) -> None:
    firm, _ = await offered(street)
    person = firm.person.user_id
    assert await street.advance(4) == []
    assert await street.advance(2) == [(person, PUSH, "offer")]
    assert await street.advance(23) == []
    assert await street.advance(2) == [(person, SMS, "offer")]
    assert await street.advance(88) == []
    assert await street.advance(2) == [(person, EMAIL, "offer")]
    (raised,) = await street.market.events("notification.raised")
    assert raised.channels == {f"user:{person}"}
    assert raised.data["notification"]["text"].startswith("Plumbing in Camden.")
    assert set((await street.deliveries()).values()) == {("handed_over", None)}


async def test_acked_offer_sends_nothing_and_leaves_nothing_behind(street: Street) -> None:
    firm, booking_id = await offered(street)
    market = street.market
    offer_id = await market.offer_id(firm, booking_id)
    await market.write(lambda uow: uow.offers.delivered([offer_id], market.clock.now()))
    assert await street.advance(150) == []
    assert await market.count(tables.notifications) == 0


@pytest.mark.parametrize("answer", ["ack", "accept", "decline", "cancel", "run out"])
async def test_what_is_settled_after_the_push_sends_no_text_message(street: Street, answer: str) -> None:
    firm, booking_id = await offered(street)
    market = street.market
    await street.advance(6)
    offer_id = await market.offer_id(firm, booking_id)
    match answer:
        case "ack":
            await market.write(lambda uow: uow.offers.delivered([offer_id], market.clock.now()))
        case "accept":
            await market.accept(firm, booking_id)
        case "decline":
            await market.call(firm.person, "offer.decline", offer_id=offer_id, reason="too far")
        case "cancel":
            customer = (await market.booking(booking_id)).customer_id
            person = Actor(customer, "C", firm.person.roles, (), "s")
            await market.call(person, "booking.cancel", booking_id=booking_id, reason="never mind")
        case _:
            market.clock.advance(300)
    # In half a minute a later wave may ask again, with an offer of its own.
    assert [sent for sent in await street.advance(29) if sent[1] is not PUSH] == []
    first = (await market.events("notification.raised"))[0].data["notification_id"]
    (ended,) = [row.data for row in await market.events("notification.ended") if row.data["notification_id"] == first]
    reason = "expired" if answer == "run out" else "handled"
    assert (ended["notification"]["ended_reason"], ended["notification"]["version"]) == (reason, 2)


async def test_everybody_who_may_answer_is_asked_and_nobody_else(street: Street) -> None:
    market = street.market
    firm = await market.firm()
    technician = await market.member(firm, MembershipRole.TECHNICIAN)
    other = await market.firm(skills=())
    for person in (firm.person, technician, other.person):
        await reachable(street, person)
    await market.book(await market.customer())
    assert {sent[0] for sent in await street.advance(6)} == {firm.person.user_id, technician.user_id}


async def talk(street: Street) -> tuple[Actor, Firm, str]:
    market = street.market
    customer, firm = await market.customer(), await market.firm()
    booking_id = await market.job(customer, firm)
    return await reachable(street, customer), firm, booking_id


async def say(street: Street, firm: Firm, booking_id: str, text: str = "hello") -> int:
    answer = await street.market.call(firm.person, "message.send", conversation_id=booking_id, text=text)
    offset: int = answer["message"]["offset"]
    return offset


async def test_message_reaches_who_has_not_heard_it_and_never_its_sender(street: Street) -> None:
    customer, firm, booking_id = await talk(street)
    await reachable(street, firm.person)
    await say(street, firm, booking_id, "the secret is 1234")
    assert await street.advance(6) == [(customer.user_id, PUSH, "message")]
    (raised,) = await street.market.events("notification.raised")
    assert "1234" not in str(raised.data), "what was written stays inside"
    assert await street.advance(25) == [(customer.user_id, SMS, "message")]


@pytest.mark.parametrize("how", ["ack", "read"])
async def test_heard_message_sends_nothing(street: Street, how: str) -> None:
    customer, firm, booking_id = await talk(street)
    offset = await say(street, firm, booking_id)
    if how == "ack":
        await street.market.write(lambda uow: uow.notifications.mark_heard(booking_id, customer.user_id, offset))
        # A mark never goes back.
        await street.market.write(lambda uow: uow.notifications.mark_heard(booking_id, customer.user_id, 0))
    else:
        await street.market.call(customer, "message.read", conversation_id=booking_id, offset=offset)
    assert await street.advance(150) == []


async def test_chat_pushes_each_line_but_sends_one_text_message_and_one_mail(street: Street) -> None:
    customer, firm, booking_id = await talk(street)
    for _ in range(3):
        await say(street, firm, booking_id)
        await street.advance(2)
    await street.advance(150)
    media = [sent[1] for sent in street.sent]
    assert (media.count(PUSH), media.count(SMS), media.count(EMAIL)) == (3, 1, 1)
    await street.market.call(customer, "message.read", conversation_id=booking_id, offset=3)
    await say(street, firm, booking_id)
    assert [sent[1] for sent in await street.advance(150)] == [PUSH, SMS, EMAIL], "the person came, and went again"


async def test_crew_that_lost_the_job_is_told_no_more(street: Street) -> None:
    customer, firm, booking_id = await talk(street)
    await reachable(street, firm.person)
    await street.market.call(customer, "message.send", conversation_id=booking_id, text="where are you?")
    await street.advance(6)
    await street.market.step(firm.person, booking_id, "awaiting_assignment")
    street.sent.clear()
    assert [sent for sent in await street.advance(29) if sent[2] == "message"] == []


# --- hours and wishes -------------------------------------------------------------------------------------------------

QUIET = {"start": "22:00", "end": "07:00"}


async def test_quiet_hours_put_messages_off_and_never_offers_or_safety(street: Street) -> None:
    customer, firm, booking_id = await talk(street)
    market = street.market
    for person in (customer, firm.person):
        await market.call(
            person,
            "notification.set_preferences",
            time_zone="Asia/Tokyo",
            quiet_hours={"start": "00:00", "end": "23:59"},
        )
    await reachable(street, firm.person)
    operator = await market.operator()
    for category in ("service", "safety"):
        notice = {"user_id": customer.user_id, "category": category, "title": "Gas", "text": "Leave the house."}
        await market.call(operator, "notification.send", **notice)
    await say(street, firm, booking_id)
    await market.book(await market.customer(), kind="scheduled", start="2026-12-20T10:00:00Z")
    sent = await street.advance(7)
    assert {(who, what) for who, _, what in sent} == {
        (customer.user_id, "notice"),
        (firm.person.user_id, "offer"),
    }
    safety = [
        row for row in await market.events("notification.raised") if row.data["notification"]["category"] == "safety"
    ]
    assert len([row for row in sent if row[2] == "notice"]) == len(safety) == 1
    waiting = await market.rows(select(tables.deliveries.c.due_at).where(tables.deliveries.c.status == "waiting"))
    assert max(row.due_at for row in waiting) > market.clock.now() + timedelta(hours=5)


@pytest.mark.parametrize(
    ("zone", "now", "ends"),
    [
        ("Europe/London", "2026-11-24T23:00:00", "2026-11-25T07:00:00"),
        ("Europe/London", "2026-11-24T06:59:59", "2026-11-24T07:00:00"),
        ("Europe/London", "2026-11-24T07:00:00", None),
        ("Europe/London", "2026-11-24T21:59:59", None),
        ("Asia/Tokyo", "2026-11-24T14:00:00", "2026-11-24T22:00:00"),
        # Clocks go forward at one o'clock in that night: an hour less to wait.
        ("Europe/London", "2026-03-28T23:00:00", "2026-03-29T06:00:00"),
    ],
)
def test_quiet_hours_are_the_persons_own(zone: str, now: str, ends: str | None) -> None:
    preferences = Preferences("u", zone, quiet_from=time(22), quiet_until=time(7))
    expected = datetime.fromisoformat(ends).replace(tzinfo=UTC) if ends else None
    assert preferences.quiet_ends(datetime.fromisoformat(now).replace(tzinfo=UTC)) == expected


def test_end_of_quiet_hours_is_ahead_also_where_an_hour_comes_twice() -> None:
    preferences = Preferences("u", "Europe/London", quiet_from=time(0, 30), quiet_until=time(1, 45))
    second_time = datetime(2026, 10, 25, 1, 10, tzinfo=UTC)
    assert preferences.quiet_ends(second_time) == datetime(2026, 10, 25, 1, 45, tzinfo=UTC)


async def test_what_somebody_turned_off_is_skipped_but_safety_is_not(street: Street) -> None:
    customer, firm, booking_id = await talk(street)
    market = street.market
    await market.call(customer, "notification.set_preferences", media={"message": ["email"], "service": []})
    await say(street, firm, booking_id)
    notice = {"user_id": customer.user_id, "category": "safety", "title": "Gas", "text": "Leave."}
    await market.call(await market.operator(), "notification.send", **notice)
    sent = await street.advance(125)
    assert [medium for _, medium, what in sent if what == "message"] == [EMAIL]
    assert [medium for _, medium, what in sent if what == "notice"] == [PUSH, SMS, EMAIL]
    assert (
        await refused(market.call(customer, "notification.set_preferences", media={"safety": []})) == "invalid_params"
    )
    assert (
        await refused(market.call(customer, "notification.set_preferences", time_zone="Mars/Base")) == "invalid_params"
    )


async def test_preferences_change_by_what_is_named(street: Street) -> None:
    market = street.market
    person = await market.customer()

    async def change(**params: Any) -> JSON:
        answer: JSON = (await market.call(person, "notification.set_preferences", **params))["preferences"]
        return answer

    assert (await change())["version"] == 0
    await change(time_zone="Europe/Paris", quiet_hours=QUIET)
    changed = await change(media={"message": ["push", "email"]})
    assert (changed["time_zone"], changed["quiet_hours"], changed["version"]) == ("Europe/Paris", QUIET, 2)
    assert changed["media"]["message"] == ["push", "email"]
    assert "quiet_hours" not in await change(quiet_hours=None)
    assert (await market.call(person, "notification.preferences"))["preferences"]["version"] == 3


# --- devices ----------------------------------------------------------------------------------------------------------


async def test_device_belongs_to_who_registered_it_last_and_to_a_sign_in_that_lasts(street: Street) -> None:
    market = street.market
    first, second = await market.customer(), await market.customer()
    await street.device(first)
    await street.device(second)

    async def devices(person: Actor) -> int:
        return len(await market.transactions.read(lambda uow: uow.notifications.push_tokens(person.user_id)))

    assert (await devices(first), await devices(second)) == (0, 1)
    assert await market.call(first, "push.unregister", token=DEVICE) == {"devices": 0}
    assert await devices(second) == 1, "nobody takes somebody else's device away"
    gone = {"revoked_at": market.clock.now()}
    await market.write(
        lambda uow: uow.connection.execute(
            tables.sessions.update().where(tables.sessions.c.id == second.session_id).values(gone)
        )
    )
    assert await devices(second) == 0


async def test_devices_of_one_person_are_bounded(street: Street) -> None:
    person = await street.device(await street.market.customer())
    answer: JSON = {}
    for number in range(12):
        street.market.clock.advance(1)
        answer = await street.market.call(person, "push.register", platform="web", token=f"device-number-{number:04}")
    assert answer == {"devices": notifications.MOST_DEVICES}
    assert await street.market.count(tables.push_tokens) == notifications.MOST_DEVICES


async def test_who_cannot_be_reached_by_a_medium_is_reached_by_the_next(street: Street) -> None:
    firm = await street.market.firm()
    await street.market.book(await street.market.customer())
    assert await street.advance(122) == [(firm.person.user_id, EMAIL, "offer")]
    assert (await street.deliveries())["push"] == ("skipped", "no_address")


# --- hand-over --------------------------------------------------------------------------------------------------------


async def message_by_push_alone(street: Street) -> Actor:
    customer, firm, booking_id = await talk(street)
    await street.market.call(customer, "notification.set_preferences", media={"message": ["push"]})
    await say(street, firm, booking_id)
    return customer


async def test_delivery_outlives_an_outage_of_its_carrier(street: Street) -> None:
    street.report = None
    customer = await message_by_push_alone(street)
    tries = len(await street.advance(1800))
    assert 12 <= tries <= 24, "ever later, but never more than five minutes later"
    assert (await street.deliveries())["push"] == ("waiting", "no_carrier")
    street.report = TAKEN
    assert await street.advance(301) == [(customer.user_id, PUSH, "message")]
    assert (await street.deliveries())["push"] == ("handed_over", None)


async def test_delivery_that_nobody_took_fails_when_its_notification_expires(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaching, "KEPT_HOURS", 0.1)
    street.report = None
    await message_by_push_alone(street)
    await street.advance(360 + 301)
    assert (await street.deliveries())["push"] == ("failed", "no_carrier")
    (ended,) = await street.market.events("notification.ended")
    assert ended.data["notification"]["ended_reason"] == "expired"


async def test_delivery_that_was_tried_very_often_can_be_put_off(street: Street) -> None:
    street.report = None
    await message_by_push_alone(street)
    await street.advance(6)
    often = tables.deliveries.update().where(tables.deliveries.c.medium == "push").values(attempts=2_000)
    await street.market.write(lambda uow: uow.connection.execute(often))
    await street.advance(301)
    assert (await street.deliveries())["push"] == ("waiting", "no_carrier")


async def test_notification_that_is_read_while_another_is_raised_ends_once(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer, firm, booking_id = await talk(street)
    await say(street, firm, booking_id)
    await street.advance(6)
    market = street.market
    (raised,) = await market.events("notification.raised")
    found = await market.transactions.read(
        lambda uow: uow.notifications.open_in(customer.user_id, f"conversation/{booking_id}")
    )
    await market.call(customer, "message.read", conversation_id=booking_id, offset=1)
    await market.call(customer, "notification.read", notification_id=raised.data["notification_id"])

    async def before_that(*_: Any) -> Any:
        return found

    monkeypatch.setattr(SqlNotifications, "open_in", before_that)
    await say(street, firm, booking_id)
    assert [sent[1] for sent in await street.advance(31)] == [PUSH, SMS]
    (ended,) = await market.events("notification.ended")
    assert (ended.data["notification"]["ended_reason"], ended.data["notification"]["version"]) == ("read", 2)


async def test_couriers_lock_notifications_by_id_whatever_was_due_first(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    market = street.market
    firm = await market.firm()
    for _ in range(3):
        await reachable(street, await market.member(firm))
    await market.book(await market.customer())
    await market.advance(6)
    rows = await market.rows(select(tables.notifications.c.id).order_by(tables.notifications.c.id.desc()))
    for number, row in enumerate(rows):
        due = tables.deliveries.update().where(
            tables.deliveries.c.notification_id == row.id, tables.deliveries.c.medium == "push"
        )
        at = market.clock.now() - timedelta(seconds=60 - number)
        await market.write(lambda uow, due=due, at=at: uow.connection.execute(due.values(due_at=at)))  # type: ignore[misc]
    locked: list[str] = []
    lock = SqlNotifications.lock

    async def noted(self: SqlNotifications, notification_id: str) -> Any:
        locked.append(notification_id)
        return await lock(self, notification_id)

    monkeypatch.setattr(SqlNotifications, "lock", noted)
    await market.as_system(lambda ctx: reaching.claim(ctx, 50))
    assert len(set(locked)) == len(rows) >= 3
    assert locked == sorted(locked)


async def test_courier_that_dies_leaves_its_deliveries_to_the_next(street: Street) -> None:
    firm, _ = await offered(street)
    market = street.market
    await market.advance(6)
    _, lost = await market.as_system(lambda ctx: reaching.claim(ctx, 50))
    assert len(lost) == 1
    assert await street.deliver() == [], "they are somebody's"
    market.clock.advance(reaching.CLAIM_SECONDS + 1)
    assert (firm.person.user_id, PUSH, "offer") in await street.deliver()


async def test_two_couriers_never_carry_the_same_delivery(street: Street) -> None:
    market = street.market
    firm = await market.firm()
    for _ in range(3):
        await reachable(street, await market.member(firm))
    await market.book(await market.customer())
    await market.advance(6)
    rounds = await asyncio.gather(*(market.as_system(lambda ctx: reaching.claim(ctx, 2)) for _ in range(4)))
    claimed = [errand.notification.id for _, errands in rounds for errand in errands]
    assert len(claimed) == len(set(claimed)) == 3


async def test_reports_only_move_a_delivery_forward(street: Street) -> None:
    await offered(street)
    market = street.market
    await street.advance(6)
    (row,) = await market.rows(select(tables.deliveries).where(tables.deliveries.c.medium == "push"))

    async def report(status: DeliveryStatus, reason: str | None = None) -> str:
        said = Report(status, "stub", "ref", reason)
        assert await market.as_system(lambda ctx: reaching.note_by_reference(ctx, "stub", "ref", said))
        return (await street.deliveries())["push"][0]

    assert (row.status, row.reference) == ("handed_over", "ref")
    assert await report(DeliveryStatus.DELIVERED) == "delivered"
    assert await report(DeliveryStatus.HANDED_OVER) == "delivered"
    assert await report(DeliveryStatus.FAILED, "bounced") == "failed"
    assert await report(DeliveryStatus.DELIVERED) == "failed"
    unknown = Report(DeliveryStatus.DELIVERED)
    assert not await market.as_system(lambda ctx: reaching.note_by_reference(ctx, "stub", "other", unknown))


async def test_notification_is_its_owners_to_read(street: Street) -> None:
    market = street.market
    person, other = await market.customer(), await market.customer()
    notice = {"user_id": person.user_id, "category": "service", "title": "Snow", "text": "Late."}
    made = await market.call(await market.operator(), "notification.send", **notice)
    about = {"notification_id": made["notification"]["id"]}
    assert await refused(market.call(other, "notification.read", **about)) == "not_found"
    assert (await market.call(other, "notification.list"))["notifications"] == []
    read = await market.call(person, "notification.read", **about)
    assert read["notification"]["ended_reason"] == "read"
    assert await market.call(person, "notification.read", **about) == read
    assert len(await market.events("notification.ended")) == 1
    assert await street.advance(150) == []


async def test_old_notifications_are_forgotten(street: Street) -> None:
    await offered(street)
    await street.advance(6)
    market = street.market
    for before, left in ((-60, 1), (60, 0)):
        until = market.clock.now() + timedelta(seconds=before)
        await market.database.write(lambda connection, until=until: prune_notifications(connection, until))  # type: ignore[misc]
        assert await market.count(tables.notifications) == left
    assert await market.count(tables.deliveries) == 0


async def test_nobody_is_reached_where_no_carrier_is_set_up(market: Marketplace) -> None:
    await market.firm()
    await market.book(await market.customer())
    assert not [name for name in await market.timer_names() if name.startswith(reaching.TIMER)]


def test_categories_that_come_at_any_hour() -> None:
    assert {Category.OFFER, Category.SAFETY} == notifications.AT_ANY_HOUR
