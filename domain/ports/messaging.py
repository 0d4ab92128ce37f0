"""Conversations, and how people are reached who are not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from domain.letters import Medium
    from domain.messaging import Conversation, Message
    from domain.notifications import Delivery, Notification, Preferences, PushToken


class Conversations(Protocol):
    """Messages and read marks."""

    async def open(self, conversation_id: str) -> None: ...
    async def lock(self, conversation_id: str) -> Conversation | None: ...
    async def advance(self, conversation_id: str) -> int:
        """Takes the next offset, which is the message's that :meth:`append` adds; others wait until this one is done.

        Raises:
            LookupError: there is no such conversation.
        """

    async def append(self, message: Message) -> None: ...

    async def page(self, conversation_id: str, before: int | None, limit: int) -> Sequence[Message]:
        """Newest messages with ``offset < before``, oldest first."""

    async def read_marks(self, conversation_id: str) -> Mapping[str, int]: ...
    async def set_read_mark(self, conversation_id: str, user_id: str, offset: int) -> None: ...
    async def unread(self, conversation_id: str, user_id: str) -> int:
        """Messages by others past the person's read mark."""


class Notifications(Protocol):
    """What people are told outside their sockets. A delivery is locked before its notification."""

    async def add(self, notification: Notification) -> None: ...
    async def lock(self, notification_id: str) -> Notification | None: ...
    async def save(self, notification: Notification) -> None:
        """Writes when and why it ended."""

    async def of(self, user_id: str, before: str | None, limit: int) -> Sequence[Notification]:
        """The person's, newest first."""

    async def open_in(self, user_id: str, thread: str) -> Sequence[Notification]: ...
    async def add_deliveries(self, deliveries: Sequence[Delivery]) -> None: ...
    async def due(self, now: datetime, limit: int) -> Sequence[Delivery]:
        """Locks waiting deliveries due at ``now``, oldest first; others skip them until the transaction ends."""

    async def lock_delivery(self, notification_id: str, medium: Medium) -> Delivery | None: ...
    async def save_delivery(self, delivery: Delivery) -> None: ...
    async def by_reference(self, carrier: str, reference: str) -> Delivery | None: ...
    async def heard(self, conversation_id: str) -> Mapping[str, int]:
        """How far each person's sockets have acked, or the person has read, the conversation: message offsets."""

    async def mark_heard(self, conversation_id: str, user_id: str, offset: int) -> None:
        """Only ever moves forward."""

    async def preferences(self, user_id: str) -> Preferences: ...
    async def save_preferences(self, preferences: Preferences) -> None: ...
    async def put_push_token(self, token: PushToken) -> None: ...
    async def push_tokens(self, user_id: str) -> Sequence[PushToken]:
        """Those registered from sign-ins that have not ended, oldest first."""

    async def remove_push_token(self, token_hash: str) -> None: ...
