"""Notifications, their deliveries, and how people want to be reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, time
from typing import Any

from sqlalchemy import Row, bindparam, delete, func, insert, select, update
from sqlalchemy.dialects.mysql import insert as mysql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.letters import Medium
from domain.notifications import Category, Delivery, DeliveryStatus, Notification, Preferences, PushToken
from persistence.repositories.audit import created, updated
from persistence.tables import (
    deliveries,
    heard_marks,
    notification_preferences,
    notifications,
    push_tokens,
    read_marks,
    sessions,
)
from persistence.unit_of_work import UnitOfWork

_GET = select(notifications).where(notifications.c.id == bindparam("notification"))
_OPEN = select(notifications).where(
    notifications.c.user_id == bindparam("user"),
    notifications.c.thread == bindparam("named"),
    notifications.c.ended_at.is_(None),
)
_DELIVERY = select(deliveries).where(
    deliveries.c.notification_id == bindparam("notification"), deliveries.c.medium == bindparam("by")
)
_DUE = (
    select(deliveries)
    # As for timers: a scan and a sort would lock every delivery that is due, not only those within the limit.
    .with_hint(deliveries, "FORCE INDEX (ix_deliveries_status_due_at)", "mysql")
    .where(deliveries.c.status == DeliveryStatus.WAITING.value, deliveries.c.due_at <= bindparam("now"))
    .order_by(deliveries.c.due_at)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
)
_NEXT = select(func.min(deliveries.c.due_at)).where(deliveries.c.status == DeliveryStatus.WAITING.value)
_HEARD = select(heard_marks.c.user_id, heard_marks.c.heard_offset).where(
    heard_marks.c.conversation_id == bindparam("conversation")
)
_READ = select(read_marks.c.user_id, read_marks.c.read_offset).where(
    read_marks.c.conversation_id == bindparam("conversation")
)
_TOKENS = (
    select(push_tokens)
    .join(sessions, sessions.c.id == push_tokens.c.session_id)
    .where(
        push_tokens.c.user_id == bindparam("user"),
        sessions.c.revoked_at.is_(None),
        sessions.c.expires_at > bindparam("now"),
    )
    .order_by(push_tokens.c.created_at, push_tokens.c.token_hash)
)
_sqlite_heard, _mysql_heard = sqlite_insert(heard_marks), mysql_insert(heard_marks)
_MARK_HEARD = {
    "sqlite": _sqlite_heard.on_conflict_do_update(
        index_elements=["conversation_id", "user_id"],
        set_={"heard_offset": func.max(heard_marks.c.heard_offset, _sqlite_heard.excluded.heard_offset)},
    ),
    "mysql": _mysql_heard.on_duplicate_key_update(
        heard_offset=func.greatest(heard_marks.c.heard_offset, _mysql_heard.inserted.heard_offset)
    ),
}


class SqlNotifications:
    """See :class:`domain.ports.Notifications`."""

    def __init__(self, unit: UnitOfWork) -> None:
        self._unit = unit
        self._connection = unit.connection

    async def add(self, notification: Notification) -> None:
        row = {name: getattr(notification, name) for name in _COLUMNS}
        await self._connection.execute(insert(notifications), row | {"data": notification.data} | created(self._unit))

    async def lock(self, notification_id: str) -> Notification | None:
        query = _GET.with_for_update()
        row = (await self._connection.execute(query, {"notification": notification_id})).one_or_none()
        return None if row is None else _notification(row)

    async def save(self, notification: Notification) -> None:
        values = {
            "ended_at": notification.ended_at,
            "ended_reason": notification.ended_reason,
            "version": notification.version,
        }
        await self._connection.execute(
            update(notifications).where(notifications.c.id == notification.id).values(values | updated(self._unit))
        )

    async def of(self, user_id: str, before: str | None, limit: int) -> Sequence[Notification]:
        # Ids sort by time.
        query = select(notifications).where(notifications.c.user_id == user_id)
        if before is not None:
            query = query.where(notifications.c.id < before)
        rows = await self._connection.execute(query.order_by(notifications.c.id.desc()).limit(limit))
        return [_notification(row) for row in rows]

    async def open_in(self, user_id: str, thread: str) -> Sequence[Notification]:
        rows = await self._connection.execute(_OPEN, {"user": user_id, "named": thread})
        return [_notification(row) for row in rows]

    async def add_deliveries(self, made: Sequence[Delivery]) -> None:
        if made:
            audit = created(self._unit)
            rows = [_delivery_row(delivery) | audit for delivery in made]
            await self._connection.execute(insert(deliveries), rows)

    async def due(self, now: datetime, limit: int) -> Sequence[Delivery]:
        return [_delivery(row) for row in await self._connection.execute(_DUE, {"now": now, "most": limit})]

    async def next_due_at(self) -> datetime | None:
        """When the next delivery is due, so that a courier may sleep until then; ``None`` when none waits."""
        moment: datetime | None = (await self._connection.execute(_NEXT)).scalar_one_or_none()
        return moment

    async def lock_delivery(self, notification_id: str, medium: Medium) -> Delivery | None:
        bound = {"notification": notification_id, "by": medium.value}
        row = (await self._connection.execute(_DELIVERY.with_for_update(), bound)).one_or_none()
        return None if row is None else _delivery(row)

    async def save_delivery(self, delivery: Delivery) -> None:
        row = _delivery_row(delivery)
        key = (
            deliveries.c.notification_id == row.pop("notification_id"),
            deliveries.c.medium == row.pop("medium"),
        )
        await self._connection.execute(update(deliveries).where(*key).values(row | updated(self._unit)))

    async def by_reference(self, carrier: str, reference: str) -> Delivery | None:
        query = select(deliveries).where(deliveries.c.carrier == carrier, deliveries.c.reference == reference).limit(1)
        row = (await self._connection.execute(query)).one_or_none()
        return None if row is None else _delivery(row)

    async def heard(self, conversation_id: str) -> Mapping[str, int]:
        found: dict[str, int] = {}
        for query in (_HEARD, _READ):
            for user_id, offset in await self._connection.execute(query, {"conversation": conversation_id}):
                found[user_id] = max(offset, found.get(user_id, 0))
        return found

    async def mark_heard(self, conversation_id: str, user_id: str, offset: int) -> None:
        row = {"conversation_id": conversation_id, "user_id": user_id, "heard_offset": offset}
        await self._connection.execute(_MARK_HEARD[self._connection.dialect.name], row)

    async def preferences(self, user_id: str) -> Preferences:
        query = select(notification_preferences).where(notification_preferences.c.user_id == user_id)
        row = (await self._connection.execute(query)).one_or_none()
        if row is None:
            return Preferences(user_id)
        return Preferences(
            user_id=row.user_id,
            time_zone=row.time_zone,
            language=row.language,
            quiet_from=time.fromisoformat(row.quiet_from) if row.quiet_from else None,
            quiet_until=time.fromisoformat(row.quiet_until) if row.quiet_until else None,
            off=frozenset((Category(category), Medium(medium)) for category, medium in row.off),
            version=row.version,
        )

    async def save_preferences(self, preferences: Preferences) -> None:
        values = {
            "time_zone": preferences.time_zone,
            "language": preferences.language,
            "quiet_from": preferences.quiet_from and preferences.quiet_from.isoformat("minutes"),
            "quiet_until": preferences.quiet_until and preferences.quiet_until.isoformat("minutes"),
            "off": sorted(preferences.off),
            "version": preferences.version,
        }
        table = notification_preferences
        if preferences.version == 1:
            row = {"user_id": preferences.user_id} | values | created(self._unit)
            await self._connection.execute(insert(table), row)
        else:
            of = table.c.user_id == preferences.user_id
            await self._connection.execute(update(table).where(of).values(values | updated(self._unit)))

    async def put_push_token(self, token: PushToken) -> None:
        # By the primary key, both: the device may have been somebody else's.
        await self.remove_push_token(token.token_hash)
        row = {name: getattr(token, name) for name in ("token_hash", "user_id", "session_id", "platform", "token")}
        await self._connection.execute(insert(push_tokens), row | created(self._unit))

    async def push_tokens(self, user_id: str) -> Sequence[PushToken]:
        rows = await self._connection.execute(_TOKENS, {"user": user_id, "now": self._unit.now})
        return [
            PushToken(row.token_hash, row.user_id, row.session_id, row.platform, row.token, row.created_at)
            for row in rows
        ]

    async def remove_push_token(self, token_hash: str) -> None:
        await self._connection.execute(delete(push_tokens).where(push_tokens.c.token_hash == token_hash))


async def prune_notifications(connection: AsyncConnection, before: datetime, limit: int = 200) -> int:
    """Removes notifications made before a time, a bounded batch of them, with their deliveries; returns how many."""
    old = select(notifications.c.id).where(notifications.c.created_at < before).limit(limit)
    ids = [{"gone": notification_id} for notification_id in (await connection.execute(old)).scalars()]
    if ids:
        # One by one through the primary key, see persistence.deletion.
        await connection.execute(delete(deliveries).where(deliveries.c.notification_id == bindparam("gone")), ids)
        await connection.execute(delete(notifications).where(notifications.c.id == bindparam("gone")), ids)
    return len(ids)


_COLUMNS = (
    "id",
    "user_id",
    "category",
    "subject",
    "thread",
    "title",
    "text",
    "expires_at",
    "ended_at",
    "ended_reason",
    "version",
)


def _notification(row: Row[Any]) -> Notification:
    columns = {name: getattr(row, name) for name in _COLUMNS}
    return Notification(
        **columns | {"category": Category(row.category), "data": row.data, "created_at": row.created_at}
    )


def _delivery_row(delivery: Delivery) -> dict[str, Any]:
    return {
        "notification_id": delivery.notification_id,
        "medium": delivery.medium.value,
        "status": delivery.status.value,
        "due_at": delivery.due_at,
        "attempts": delivery.attempts,
        "carrier": delivery.carrier,
        "reference": delivery.reference,
        "reason": delivery.reason,
    }


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(
        notification_id=row.notification_id,
        medium=Medium(row.medium),
        status=DeliveryStatus(row.status),
        due_at=row.due_at,
        attempts=row.attempts,
        carrier=row.carrier,
        reference=row.reference,
        reason=row.reason,
    )
