"""What those who run the marketplace look at and switch: the audit log and feature flags."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, Integer, String, Table

from persistence.tables.columns import Code, Id, JsonText, UtcDateTime, audit, metadata

audit_log = Table(  # append-only: each row's hash covers its content and the hash of the row before
    "audit_log",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),  # 1, 2, 3 … without gaps
    Column("at", UtcDateTime, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("actor_id", Id, nullable=False),
    Column("subject_id", Id),
    Column("correlation_id", String(64), nullable=False),
    Column("details", JsonText, nullable=False),
    Column("previous_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)

audit_head = Table(  # one row, the newest of the chain; locked by whoever appends
    "audit_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("number", BigInteger, nullable=False),
    Column("hash", String(64), nullable=False),
)

flags = Table(
    "flags",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("state", Code, nullable=False),
    Column("percentage", Double, nullable=False),
    Column("roles", JsonText, nullable=False),
    Column("organisations", JsonText, nullable=False),
    Column("source", Code, nullable=False),
    Column("version", Integer, nullable=False),
    *audit(),
)
