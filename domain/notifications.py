"""Notifications: what people are told outside their sockets, how they want it, and their devices.

A notification is one thing one person should know. It is raised once, is told on the person's own channel, and has at
most one delivery per medium. :mod:`domain.reaching` says when it is raised and when a delivery may leave.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, time, timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, StringConstraints

from domain.context import Context
from domain.errors import Forbidden, InvalidParams
from domain.events import Audience, Event
from domain.letters import Medium
from domain.types import JSON, new_id, wire_time
from domain.views import Key, Params, View
from domain.wording import DEFAULT_LANGUAGE, one_line

MOST_DEVICES = 10
"""Of one person; a new one takes the place of the one registered first."""

KEPT_HOURS = 24
"""How long somebody is reached for about a message or a notice."""


class Category(StrEnum):
    """What a notification is about, and so whether it may wait for the morning."""

    OFFER = "offer"
    MESSAGE = "message"
    SERVICE = "service"
    SAFETY = "safety"


AT_ANY_HOUR = frozenset({Category.OFFER, Category.SAFETY})
"""These do not wait for the end of quiet hours."""

ALWAYS = frozenset({Category.SAFETY})
"""These cannot be turned off."""


class DeliveryStatus(StrEnum):
    """``waiting`` → ``handed_over`` (a carrier took it) → ``delivered`` or ``failed``; or ``skipped`` before."""

    WAITING = "waiting"
    HANDED_OVER = "handed_over"
    DELIVERED = "delivered"
    FAILED = "failed"
    SKIPPED = "skipped"


ORDER: Mapping[DeliveryStatus, int] = {
    DeliveryStatus.WAITING: 0,
    DeliveryStatus.HANDED_OVER: 1,
    DeliveryStatus.DELIVERED: 2,
    # A mail that was delivered may bounce yet.
    DeliveryStatus.FAILED: 3,
    DeliveryStatus.SKIPPED: 3,
}
"""A status only moves up, so a report that comes twice, or late, changes nothing."""


@dataclass(frozen=True, slots=True)
class Notification:
    """One thing one person should know.

    Attributes:
        subject: what it is about, e.g. ``offer/01J…``; a person is notified once of each.
        thread: what belongs together; of one thread a device shows the newest.
        data: ids for the app that opens it, and for the question whether it is still wanted.
        expires_at: nobody is reached from then on.
        ended_at: when it was read, answered or no longer true; nobody is reached from then on either.
    """

    id: str
    user_id: str
    category: Category
    subject: str
    thread: str
    title: str
    text: str
    data: Mapping[str, Any]
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None = None
    ended_reason: str | None = None
    version: int = 1


@dataclass(frozen=True, slots=True)
class Delivery:
    """One notification by one medium.

    Attributes:
        due_at: not before; while somebody delivers it, when it counts as abandoned.
        carrier, reference: who took it, and under which id there.
        reason: why it was skipped or failed.
    """

    notification_id: str
    medium: Medium
    status: DeliveryStatus
    due_at: datetime
    attempts: int = 0
    carrier: str | None = None
    reference: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class PushToken:
    """A device that takes push messages. It counts while the sign-in it was registered from lasts.

    Attributes:
        token_hash: SHA-256 of the token; a token is one device's, whoever holds that now.
    """

    token_hash: str
    user_id: str
    session_id: str
    platform: str
    token: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Preferences:
    """How a person wants to be reached.

    Attributes:
        quiet_from, quiet_until: local times; equal or absent: none. They may span midnight.
        off: pairs of category and medium.
    """

    user_id: str
    time_zone: str = "UTC"
    language: str = DEFAULT_LANGUAGE
    quiet_from: time | None = None
    quiet_until: time | None = None
    off: frozenset[tuple[Category, Medium]] = frozenset()
    version: int = 0

    def wants(self, category: Category, medium: Medium) -> bool:
        return category in ALWAYS or (category, medium) not in self.off

    def quiet_ends(self, now: datetime) -> datetime | None:
        """When the quiet hours that ``now`` is in are over; ``None`` outside them."""
        if self.quiet_from is None or self.quiet_until is None or self.quiet_from == self.quiet_until:
            return None
        local = now.astimezone(ZoneInfo(self.time_zone))
        at = local.time()
        if self.quiet_from < self.quiet_until:
            quiet = self.quiet_from <= at < self.quiet_until
        else:
            quiet = at >= self.quiet_from or at < self.quiet_until
        if not quiet:
            return None
        day = local.date() if at < self.quiet_until else local.date() + timedelta(days=1)
        end = datetime.combine(day, self.quiet_until, ZoneInfo(self.time_zone)).astimezone(now.tzinfo)
        # Where clocks are put back, a local time comes twice: then the later one is meant.
        return end if end > now else end + timedelta(hours=1)


# --- the wire ---------------------------------------------------------------------------------------------------------

NotificationId = Annotated[str, Field(max_length=64)]
Clock = Annotated[str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]
MediumName = Annotated[Medium, Field(strict=False)]
Chosen = Literal["offer", "message", "service"]


class NotificationView(View):
    """A notification; ``data`` has the ids of what it is about. ``ended_reason``: ``read``, ``handled``,
    ``expired``.
    """

    id: str
    category: Category
    thread: str
    title: str
    text: str
    data: dict[str, Any]
    created_at: str
    ended_at: str | None = None
    ended_reason: str | None = None
    version: int


class NotificationEventData(View):
    """A notification, as it is now."""

    notification_id: str
    user_id: str
    notification: NotificationView


class NotificationRef(Params):
    """Names a notification."""

    notification_id: NotificationId


class NotificationResult(View):
    """The notification after the command."""

    notification: NotificationView


class ListNotifications(Params):
    """``before`` is the id of the oldest one already seen."""

    before: NotificationId | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 50


class NotificationPage(View):
    """Newest first."""

    notifications: list[NotificationView]
    has_more: bool


class SendNotification(Params):
    """A notice to one person. ``safety`` goes out at any hour, ``service`` waits for the end of quiet hours."""

    user_id: Annotated[str, Field(max_length=64)]
    category: Literal["service", "safety"]
    title: Annotated[str, StringConstraints(min_length=1, max_length=80, strip_whitespace=True)]
    text: Annotated[str, StringConstraints(min_length=1, max_length=400, strip_whitespace=True)]
    key: Key


class QuietHours(Params):
    """Local times, ``22:00`` to ``07:00``; they may span midnight."""

    start: Clock
    end: Clock


class QuietHoursView(View):
    """Local times."""

    start: str
    end: str


class SetPreferences(Params):
    """What is named changes, the rest stays. ``quiet_hours`` null: none. ``media``: by which media each category
    comes; safety cannot be turned off.
    """

    time_zone: Annotated[str, Field(max_length=64)] | None = None
    quiet_hours: QuietHours | None = None
    media: dict[Chosen, Annotated[list[MediumName], Field(max_length=3)]] | None = None


class PreferencesView(View):
    """How a person wants to be reached; ``time_zone`` is a name of the IANA database."""

    time_zone: str
    quiet_hours: QuietHoursView | None = None
    media: dict[Category, list[Medium]]
    version: int


class PreferencesResult(View):
    """The preferences as they are now."""

    preferences: PreferencesView


class RegisterPush(Params):
    """A device's token, as Firebase Cloud Messaging gave it."""

    platform: Literal["android", "ios", "web"]
    token: Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{16,4096}$")]


class UnregisterPush(Params):
    """The same token."""

    token: Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{16,4096}$")]


class PushResult(View):
    """How many devices of the caller take push messages now."""

    devices: int


def view(notification: Notification) -> JSON:
    """The notification on the wire."""
    shape: JSON = {
        "id": notification.id,
        "category": notification.category.value,
        "thread": notification.thread,
        "title": notification.title,
        "text": notification.text,
        "data": dict(notification.data),
        "created_at": wire_time(notification.created_at),
        "version": notification.version,
    }
    if notification.ended_at is not None:
        shape |= {"ended_at": wire_time(notification.ended_at), "ended_reason": notification.ended_reason}
    return shape


def event(notification: Notification, type_: str, now: datetime) -> Event:
    """The fact, for the person alone."""
    return Event(
        id=new_id(now),
        type=type_,
        time=now,
        source=f"notification/{notification.id}",
        data={
            "notification_id": notification.id,
            "user_id": notification.user_id,
            "notification": view(notification),
        },
        audience=Audience(users=(notification.user_id,)),
    )


async def end(ctx: Context, notification: Notification, reason: str) -> Notification:
    """Nobody needs to be reached any more."""
    ended = replace(notification, ended_at=ctx.now, ended_reason=reason, version=notification.version + 1)
    await ctx.uow.notifications.save(ended)
    ctx.uow.record(event(ended, "notification.ended", ctx.now))
    return ended


# --- commands ---------------------------------------------------------------------------------------------------------


async def list_notifications(ctx: Context, params: ListNotifications) -> JSON:
    """One's notifications, newest first."""
    found = await ctx.uow.notifications.of(ctx.actor.user_id, params.before, params.limit + 1)
    return {
        "notifications": [view(notification) for notification in found[: params.limit]],
        "has_more": len(found) > params.limit,
    }


async def read(ctx: Context, params: NotificationRef) -> JSON:
    """The person has seen it."""
    notification = await ctx.uow.notifications.lock(params.notification_id)
    if notification is None or notification.user_id != ctx.actor.user_id:
        raise Forbidden
    if notification.ended_at is None:
        notification = await end(ctx, notification, "read")
    return {"notification": view(notification)}


async def show_preferences(ctx: Context, _: Params) -> JSON:
    """One's preferences."""
    return {"preferences": _preferences_view(await ctx.uow.notifications.preferences(ctx.actor.user_id))}


async def set_preferences(ctx: Context, params: SetPreferences) -> JSON:
    """Changes one's preferences.

    Raises:
        InvalidParams: there is no such time zone.
    """
    # Two changes at once take turns, or one would undo what the other named.
    await ctx.uow.people.lock_user(ctx.actor.user_id)
    now_ = await ctx.uow.notifications.preferences(ctx.actor.user_id)
    given = params.model_fields_set
    changed = now_
    if params.time_zone is not None:
        _check_time_zone(params.time_zone)
        changed = replace(changed, time_zone=params.time_zone)
    if "quiet_hours" in given:
        hours = params.quiet_hours
        start, end_ = (time.fromisoformat(hours.start), time.fromisoformat(hours.end)) if hours else (None, None)
        changed = replace(changed, quiet_from=start, quiet_until=end_)
    for name, media in (params.media or {}).items():
        category = Category(name)
        kept = {pair for pair in changed.off if pair[0] is not category}
        changed = replace(changed, off=frozenset(kept | {(category, it) for it in Medium if it not in media}))
    if changed != now_:
        changed = replace(changed, version=changed.version + 1)
        await ctx.uow.notifications.save_preferences(changed)
    return {"preferences": _preferences_view(changed)}


async def register_push(ctx: Context, params: RegisterPush) -> JSON:
    """This device takes push messages, and no longer for whoever used it before."""
    await ctx.uow.people.lock_user(ctx.actor.user_id)
    token = PushToken(
        hash_of(params.token), ctx.actor.user_id, ctx.actor.session_id, params.platform, params.token, ctx.now
    )
    await ctx.uow.notifications.put_push_token(token)
    mine = await ctx.uow.notifications.push_tokens(ctx.actor.user_id)
    for oldest in mine[: max(0, len(mine) - MOST_DEVICES)]:
        await ctx.uow.notifications.remove_push_token(oldest.token_hash)
    return {"devices": min(len(mine), MOST_DEVICES)}


async def unregister_push(ctx: Context, params: UnregisterPush) -> JSON:
    """This device takes no more push messages. One that is not the caller's stays as it is."""
    mine = await ctx.uow.notifications.push_tokens(ctx.actor.user_id)
    gone = [token for token in mine if token.token_hash == hash_of(params.token)]
    for token in gone:
        await ctx.uow.notifications.remove_push_token(token.token_hash)
    return {"devices": len(mine) - len(gone)}


def hash_of(token: str) -> str:
    """What a push token is found by."""
    return hashlib.sha256(token.encode()).hexdigest()


def notice(ctx: Context, params: SendNotification) -> Notification:
    """The notification of a notice by staff."""
    notification_id = new_id(ctx.now)
    return Notification(
        id=notification_id,
        user_id=params.user_id,
        category=Category(params.category),
        subject=f"notice/{notification_id}",
        thread=f"notice/{notification_id}",
        title=one_line(params.title),
        text=one_line(params.text),
        data={},
        created_at=ctx.now,
        expires_at=ctx.now + timedelta(hours=KEPT_HOURS),
    )


def _preferences_view(preferences: Preferences) -> JSON:
    shape: JSON = {
        "time_zone": preferences.time_zone,
        "media": {
            category.value: [medium.value for medium in Medium if preferences.wants(category, medium)]
            for category in Category
        },
        "version": preferences.version,
    }
    if preferences.quiet_from is not None and preferences.quiet_until is not None:
        shape["quiet_hours"] = {
            "start": preferences.quiet_from.isoformat("minutes"),
            "end": preferences.quiet_until.isoformat("minutes"),
        }
    return shape


def _check_time_zone(name: str) -> None:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidParams.at("time_zone", "not a name of the IANA time zone database") from None
