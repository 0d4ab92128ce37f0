"""Commands that were done, timers, and the way of an event: outbox, log, export."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, String, Table, Text, UniqueConstraint

from persistence.tables.columns import BigKey, Code, Frame, Id, JsonText, UtcDateTime, metadata

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("user_id", Id, primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("fingerprint", String(64), nullable=False),  # SHA-256 of method and canonical params
    Column("result", JsonText, nullable=False),
    Column("created_at", UtcDateTime, nullable=False, index=True),
)

timers = Table(
    "timers",
    metadata,
    Column("name", String(160), primary_key=True),
    Column("kind", Code, nullable=False),
    Column("due_at", UtcDateTime, nullable=False, index=True),
    Column("data", JsonText, nullable=False),
    Column("attempts", Integer, nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", BigKey, primary_key=True, autoincrement=True),
    Column("partition", Integer, nullable=False, index=True),
    Column("event_id", Id, nullable=False),
    Column("type", String(64), nullable=False),
    Column("source", String(160), nullable=False),
    Column("time", UtcDateTime, nullable=False),
    Column("event_class", Code, nullable=False),
    Column("key", String(160)),
    Column("audience", JsonText, nullable=False),
    Column("data", JsonText, nullable=False),
    Column("correlation_id", String(64), nullable=False),
    Column("traceparent", String(64)),
    sqlite_autoincrement=True,  # ids of deleted rows are never given again, so order by id stays commit order
)

outbox_parked = Table(  # poison rows: what no channel could take, kept with the reason for an operator
    "outbox_parked",
    metadata,
    Column("id", BigKey, primary_key=True, autoincrement=False),
    Column("row", JsonText, nullable=False),
    Column("error", Text, nullable=False),
    Column("parked_at", UtcDateTime, nullable=False),
)

channel_heads = Table(
    "channel_heads",
    metadata,
    Column("channel", String(160), primary_key=True),
    Column("epoch", String(16), nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("floor", BigInteger, nullable=False),  # entries up to and including this offset were pruned
)

log = Table(
    "log",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("channel", String(160), nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("event_class", Code, nullable=False),
    Column("key", String(160)),
    Column("frame", Frame, nullable=False),
    Column("written_at", UtcDateTime, nullable=False, index=True),
    UniqueConstraint("channel", "offset"),
)

log_seed = Table(  # one row, random, made once: a channel's epoch is derived from it
    "log_seed",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("seed", String(32), nullable=False),
)

log_cursors = Table(  # the newest sequence of each partition; its sequencer must find it as it left it
    "log_cursors",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, nullable=False),
    Column("fence", BigInteger, nullable=False),  # newest lease token seen: an older sequencer is refused
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("holder", Id, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
)

export_cursors = Table(  # how far the log has been told to another system; fenced as log_cursors
    "export_cursors",
    metadata,
    Column("target", Code, primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("event_id", Id, nullable=False),  # the newest event told: its entries on other channels come next
    Column("fence", BigInteger, nullable=False),
)

export_held = Table(  # what another system did not take, and what waits behind it; with dead_at: a dead letter
    "export_held",
    metadata,
    Column("target", Code, primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("source", String(160), nullable=False),
    Column("event", Frame, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due_at", UtcDateTime, nullable=False),
    Column("error", String(200)),
    Column("dead_at", UtcDateTime),
    Index(None, "target", "source", "dead_at"),
)
