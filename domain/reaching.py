"""Reaching people who do not answer on a socket: by push, then by text message, then by e-mail.

The way of it, every step in the database and so across restarts:

1. What may need it (a wave of offers, a message) sets one durable timer in its own transaction. Nothing else happens on
   that path, and nothing at all while :attr:`Policy.reach` is empty.
2. When the timer is due, whoever has acked by then is left alone. For the others a notification is raised, with one
   delivery per medium, each due at its time (:func:`unheard`).
3. A courier claims due deliveries (:func:`claim`). Only then it is asked again whether the person still needs to be
   told, wants that medium, and is awake. It hands each over outside the transaction and notes how that went
   (:func:`note`).

So a delivery leaves at least once, and again only if the courier died between the hand-over and its note. Nobody is
told of an offer that is acked, answered or over, or of a message that was read. One that no carrier takes is tried for
as long as its notification is of use, so an outage of some hours delays what it does not outlive.

Locks: a delivery before its notification, and several notifications by id.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from operator import attrgetter
from typing import TYPE_CHECKING

from domain import notifications
from domain.backoff import grown
from domain.context import Context
from domain.errors import Forbidden
from domain.factors import FactorKind
from domain.identity import Permission, permissions_of
from domain.letters import Medium
from domain.notifications import (
    AT_ANY_HOUR,
    KEPT_HOURS,
    ORDER,
    Category,
    Delivery,
    DeliveryStatus,
    Notification,
    PushToken,
    SendNotification,
)
from domain.offers import Offer, OfferStatus
from domain.types import JSON, new_id
from domain.wording import worded

if TYPE_CHECKING:
    from domain.messaging import Message

CLAIM_SECONDS = 60.0
"""How long a delivery is one courier's before another one may take it. A courier gives up after half of that, which
leaves it as long to write down how it went.
"""

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 300.0
"""Between two tries of a delivery that no carrier takes; it doubles from the first to the longest."""

TIMER = "reach"


@dataclass(frozen=True, slots=True)
class Errand:
    """A delivery that a courier has claimed, with what it needs.

    Attributes:
        address: an e-mail address.
        sealed_phone: the confirmed number of the second factor, sealed.
        tokens: devices.
    """

    notification: Notification
    delivery: Delivery
    address: str = ""
    sealed_phone: str = ""
    tokens: Sequence[PushToken] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a delivery, as a carrier says: at once, or later by a signed callback."""

    status: DeliveryStatus
    carrier: str | None = None
    reference: str | None = None
    reason: str | None = None


# --- when somebody has not heard --------------------------------------------------------------------------------------


async def watch_offers(ctx: Context, offers: Sequence[Offer]) -> None:
    """Looks again whether these offers of one wave were acked."""
    if ctx.policy.reach:
        name = f"{TIMER}:offers:{offers[0].booking_id}:{offers[0].wave}"
        await ctx.uow.timers.set(name, _first_look(ctx), TIMER, {"offers": [offer.id for offer in offers]})


async def watch_message(ctx: Context, message: Message) -> None:
    """Looks again who has not got this message."""
    if ctx.policy.reach:
        data = {
            "message": message.id,
            "conversation_id": message.conversation_id,
            "offset": message.offset,
            "sender_id": message.sender_id,
            "sender_name": message.sender_name,
        }
        await ctx.uow.timers.set(f"{TIMER}:message:{message.id}", _first_look(ctx), TIMER, data)


async def unheard(ctx: Context, data: JSON) -> None:
    """The timer: raises notifications for those who have not acked in time."""
    if "offers" in data:
        for offer_id in data["offers"]:
            await _offer_unheard(ctx, offer_id)
    else:
        await _message_unheard(ctx, data)


async def send(ctx: Context, params: SendNotification) -> JSON:
    """Staff tell somebody something; it goes out by every medium, one after the other, until it is read."""
    if await ctx.uow.people.user(params.user_id) is None:
        raise Forbidden
    notification = notifications.notice(ctx, params)
    await _raise(ctx, notification, [medium for medium, _ in ctx.policy.reach])
    return {"notification": notifications.view(notification)}


async def _offer_unheard(ctx: Context, offer_id: str) -> None:
    offer = await ctx.uow.offers.get(offer_id)
    booking = await ctx.uow.bookings.get(offer.booking_id) if offer is not None else None
    if offer is None or booking is None or not _is_unheard(offer, ctx.now):
        return
    service = await ctx.uow.market.service(booking.service_id)
    zone = await ctx.uow.market.zone(booking.zone_id)
    for user_id in await _workers(ctx, offer.organisation_id):
        language = (await ctx.uow.notifications.preferences(user_id)).language
        words = {"service": service.name if service else "Work", "zone": zone.name if zone else "your area"}
        wording = worded("offer", language, **words)
        notification = Notification(
            id=new_id(ctx.now),
            user_id=user_id,
            category=Category.OFFER,
            subject=f"offer/{offer.id}",
            thread=f"booking/{offer.booking_id}",
            title=wording.title,
            text=wording.text,
            data={"offer_id": offer.id, "booking_id": offer.booking_id, "provider_id": offer.provider_id},
            created_at=ctx.now,
            expires_at=offer.expires_at,
        )
        await _raise(ctx, notification, [medium for medium, _ in ctx.policy.reach], since=offer.sent_at)


async def _message_unheard(ctx: Context, data: JSON) -> None:
    conversation_id = data["conversation_id"]
    heard = await ctx.uow.notifications.heard(conversation_id)
    people = [
        user_id
        for user_id in await _conversation_people(ctx, conversation_id)
        if user_id != data["sender_id"] and heard.get(user_id, 0) < data["offset"]
    ]
    thread = f"conversation/{conversation_id}"
    told = await _told_and_away(ctx, people, thread)
    for user_id in people:
        preferences = await ctx.uow.notifications.preferences(user_id)
        wording = worded("message", preferences.language, sender=data["sender_name"])
        notification = Notification(
            id=new_id(ctx.now),
            user_id=user_id,
            category=Category.MESSAGE,
            subject=f"message/{data['message']}",
            thread=thread,
            title=wording.title,
            text=wording.text,
            data={"conversation_id": conversation_id, "offset": data["offset"]},
            created_at=ctx.now,
            expires_at=ctx.now + timedelta(hours=KEPT_HOURS),
        )
        media = [medium for medium, _ in ctx.policy.reach]
        if user_id in told:
            # A device shows the newest anyway; a text message and a mail for each line of a chat would be a nuisance.
            media = [medium for medium in media if medium is Medium.PUSH]
        await _raise(ctx, notification, media)


async def _told_and_away(ctx: Context, people: Sequence[str], thread: str) -> frozenset[str]:
    """Who of these people has been told of something in this thread and has not come to see it."""
    open_ids = [it.id for user_id in people for it in await ctx.uow.notifications.open_in(user_id, thread)]
    away = set()
    for notification_id in sorted(open_ids):
        earlier = await ctx.uow.notifications.lock(notification_id)
        # It was looked up without a lock: by now it may have been read.
        if earlier is None or earlier.ended_at is not None:
            continue
        if earlier.expires_at <= ctx.now:
            await notifications.end(ctx, earlier, "expired")
        elif await _is_wanted(ctx, earlier):
            away.add(earlier.user_id)
        else:
            await notifications.end(ctx, earlier, "handled")
    return frozenset(away)


async def _raise(
    ctx: Context, notification: Notification, media: Sequence[Medium], *, since: datetime | None = None
) -> None:
    first_seconds = ctx.policy.reach[0][1] if ctx.policy.reach else 0.0
    since = since or ctx.now - timedelta(seconds=first_seconds)
    await ctx.uow.notifications.add(notification)
    await ctx.uow.notifications.add_deliveries(
        [
            Delivery(notification.id, medium, DeliveryStatus.WAITING, max(ctx.now, since + timedelta(seconds=after)))
            for medium, after in ctx.policy.reach
            if medium in media
        ]
    )
    ctx.uow.record(notifications.event(notification, "notification.raised", ctx.now))


# --- when a delivery may leave ----------------------------------------------------------------------------------------


async def claim(ctx: Context, limit: int) -> tuple[int, list[Errand]]:
    """Takes due deliveries, oldest first; those that need not, or may not, leave now are settled on the way.

    Returns:
        How many were due, ``limit`` at most, and those to be carried. They are the caller's for :data:`CLAIM_SECONDS`.
    """
    errands = []
    due = await ctx.uow.notifications.due(ctx.now, limit)
    # Two couriers may hold deliveries of the same notifications: whatever was due first, both lock those by id.
    for delivery in sorted(due, key=attrgetter("notification_id", "medium")):
        notification = await ctx.uow.notifications.lock(delivery.notification_id)
        assert notification is not None, "a delivery refers to its notification"
        errand = await _judged(ctx, notification, delivery)
        if isinstance(errand, Errand):
            errands.append(errand)
            errand = errand.delivery
        await ctx.uow.notifications.save_delivery(errand)
    return len(due), errands


async def _judged(ctx: Context, notification: Notification, delivery: Delivery) -> Errand | Delivery:
    """The errand, or the delivery as it is to be put off or away."""
    skipped = replace(delivery, status=DeliveryStatus.SKIPPED)
    if notification.ended_at is None and (
        notification.expires_at <= ctx.now or not await _is_wanted(ctx, notification)
    ):
        reason = "expired" if notification.expires_at <= ctx.now else "handled"
        notification = await notifications.end(ctx, notification, reason)
    if notification.ended_at is not None:
        if notification.ended_reason == "expired" and delivery.attempts:
            return replace(delivery, status=DeliveryStatus.FAILED, reason=delivery.reason or "no_carrier")
        return replace(skipped, reason=notification.ended_reason)
    preferences = await ctx.uow.notifications.preferences(notification.user_id)
    if not preferences.wants(notification.category, delivery.medium):
        return replace(skipped, reason="not_wanted")
    quiet_ends = None if notification.category in AT_ANY_HOUR else preferences.quiet_ends(ctx.now)
    if quiet_ends is not None:
        return replace(delivery, due_at=quiet_ends)
    claimed = replace(
        delivery, attempts=delivery.attempts + 1, due_at=ctx.now + timedelta(seconds=CLAIM_SECONDS), reason=None
    )
    return await _addressed(ctx, Errand(notification, claimed)) or replace(skipped, reason="no_address")


async def _addressed(ctx: Context, errand: Errand) -> Errand | None:
    user = await ctx.uow.people.user(errand.notification.user_id)
    if user is None or user.disabled_at is not None:
        return None
    match errand.delivery.medium:
        case Medium.EMAIL:
            return replace(errand, address=user.email)
        case Medium.PUSH:
            tokens = await ctx.uow.notifications.push_tokens(user.id)
            return replace(errand, tokens=tokens) if tokens else None
        case Medium.SMS:
            for factor in await ctx.uow.factors.of(user.id):
                if factor.kind is FactorKind.SMS and factor.confirmed_at is not None:
                    return replace(errand, sealed_phone=factor.secret)
            return None


async def _is_wanted(ctx: Context, notification: Notification) -> bool:
    """Whether the person has still not heard of it, and it is still theirs to hear."""
    data = notification.data
    match notification.category:
        case Category.OFFER:
            offer = await ctx.uow.offers.get(data["offer_id"])
            return offer is not None and _is_unheard(offer, ctx.now)
        case Category.MESSAGE:
            heard = await ctx.uow.notifications.heard(data["conversation_id"])
            if heard.get(notification.user_id, 0) >= data["offset"]:
                return False
            # Whoever lost the job since then is no longer told of its messages.
            return notification.user_id in await _conversation_people(ctx, data["conversation_id"])
        case Category.SERVICE | Category.SAFETY:
            return True


# --- how it went ------------------------------------------------------------------------------------------------------


async def note(ctx: Context, notification_id: str, medium: Medium, report: Report | None) -> None:
    """What the carrier said; ``None``: no carrier took it, so it is tried again, each time after a longer pause, until
    its notification expires.
    """
    delivery = await ctx.uow.notifications.lock_delivery(notification_id, medium)
    if delivery is None:
        return
    if report is None:
        if delivery.status is DeliveryStatus.WAITING:
            longest = grown(FIRST_PAUSE_SECONDS, delivery.attempts, LONGEST_PAUSE_SECONDS)
            again_at = ctx.now + timedelta(seconds=random.uniform(longest / 2, longest))
            await ctx.uow.notifications.save_delivery(replace(delivery, due_at=again_at, reason="no_carrier"))
        return
    # A callback may come before the note of the hand-over: who took it is worth keeping whichever is first.
    after = replace(
        delivery, carrier=delivery.carrier or report.carrier, reference=delivery.reference or report.reference
    )
    if ORDER[report.status] > ORDER[delivery.status]:
        after = replace(after, status=report.status, reason=report.reason)
    if after != delivery:
        await ctx.uow.notifications.save_delivery(after)


async def note_by_reference(ctx: Context, carrier: str, reference: str, report: Report) -> bool:
    """The same for a carrier that knows its own id only; whether there is such a delivery."""
    found = await ctx.uow.notifications.by_reference(carrier, reference)
    if found is None:
        return False
    await note(ctx, found.notification_id, found.medium, report)
    return True


# --- who --------------------------------------------------------------------------------------------------------------


def _first_look(ctx: Context) -> datetime:
    return ctx.now + timedelta(seconds=ctx.policy.reach[0][1])


def _is_unheard(offer: Offer, now: datetime) -> bool:
    """Neither acked nor answered nor taken back nor over."""
    return offer.status is OfferStatus.SENT and offer.expires_at > now


async def _workers(ctx: Context, organisation_id: str) -> list[str]:
    members = await ctx.uow.organisations.members(organisation_id)
    return [member.user_id for member in members if Permission.WORK in permissions_of(member.role)]


async def _conversation_people(ctx: Context, booking_id: str) -> list[str]:
    """The customer and the crew. Operations look at conversations when they want to."""
    booking = await ctx.uow.bookings.get(booking_id)
    if booking is None:
        return []
    crew = await _workers(ctx, booking.organisation_id) if booking.organisation_id else []
    return [booking.customer_id, *(user_id for user_id in crew if user_id != booking.customer_id)]
