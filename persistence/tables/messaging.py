"""Conversations, and how people are reached who are not there."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Index, Integer, String, Table, Text, UniqueConstraint

from persistence.tables.columns import Code, Id, JsonText, Name, UtcDateTime, audit, metadata

messages = Table(
    "messages",
    metadata,
    Column("conversation_id", Id, primary_key=True),
    Column("offset", Integer, primary_key=True, autoincrement=False),
    Column("id", Id, nullable=False, unique=True),
    Column("sender_id", Id, nullable=False),
    Column("sender_name", Name, nullable=False),
    Column("text", Text, nullable=False),
    Column("sent_at", UtcDateTime, nullable=False),
    *audit(),
)

conversations = Table(
    "conversations",
    metadata,
    Column("id", Id, primary_key=True),  # the booking's id: one conversation per booking
    Column("last_offset", Integer, nullable=False),
    *audit(),
)

read_marks = Table(
    "read_marks",
    metadata,
    Column("conversation_id", Id, primary_key=True),
    Column("user_id", Id, primary_key=True),
    Column("read_offset", Integer, nullable=False),
)

notifications = Table(
    "notifications",
    metadata,
    Column("id", Id, primary_key=True),
    Column("user_id", Id, ForeignKey("users.id"), nullable=False),
    Column("category", Code, nullable=False),
    Column("subject", String(160), nullable=False),
    Column("thread", String(160), nullable=False),
    Column("title", Name, nullable=False),
    Column("text", String(500), nullable=False),
    Column("data", JsonText, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    Column("ended_reason", Code),
    Column("version", Integer, nullable=False),
    *audit(),
    UniqueConstraint("user_id", "subject"),
    Index(None, "user_id", "thread"),
    Index(None, "created_at"),
)

deliveries = Table(  # one per notification and medium: nobody gets two
    "deliveries",
    metadata,
    Column("notification_id", Id, ForeignKey("notifications.id"), primary_key=True),
    Column("medium", Code, primary_key=True),
    Column("status", Code, nullable=False),
    Column("due_at", UtcDateTime, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("carrier", Code),
    Column("reference", String(200)),  # the carrier's own id
    Column("reason", String(200)),
    *audit(),
    Index(None, "status", "due_at"),
    Index(None, "carrier", "reference"),
)

notification_preferences = Table(
    "notification_preferences",
    metadata,
    Column("user_id", Id, ForeignKey("users.id"), primary_key=True),
    Column("time_zone", String(64), nullable=False),
    Column("language", String(16), nullable=False),
    Column("quiet_from", String(5)),  # local times
    Column("quiet_until", String(5)),
    Column("off", JsonText, nullable=False),
    Column("version", Integer, nullable=False),
    *audit(),
)

push_tokens = Table(
    "push_tokens",
    metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("user_id", Id, ForeignKey("users.id"), nullable=False, index=True),
    Column("session_id", Id, nullable=False),
    Column("platform", Code, nullable=False),
    Column("token", Text, nullable=False),
    *audit(),
)

heard_marks = Table(  # the newest message that a socket of the person has acked; kept only where people are reached
    "heard_marks",
    metadata,
    Column("conversation_id", Id, primary_key=True),
    Column("user_id", Id, primary_key=True),
    Column("heard_offset", Integer, nullable=False),
)
