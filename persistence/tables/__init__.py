"""The schema, as SQLAlchemy Core tables that SQLite and MySQL/MariaDB both take: a module for each room.

Conventions: ids are ULIDs in ``CHAR(26)``-sized strings; times are UTC (:class:`UtcDateTime`); money is integer minor
    units beside its ISO 4217 currency; JSON documents are stored as text that orjson wrote. ``version`` rises by one
    on each change. Migrations in ``persistence/migrations`` must reproduce these tables; a test compares them.

Audit: every row that is a fact of the business says who made it and who changed it last
    (:func:`persistence.tables.columns.audit`). The tables in :data:`WITHOUT_AUDIT` hold none; each has a reason there.
"""

from __future__ import annotations

from persistence.tables.columns import JsonText, UtcDateTime, metadata
from persistence.tables.events import (
    channel_heads,
    export_cursors,
    export_held,
    idempotency_keys,
    leases,
    log,
    log_cursors,
    log_seed,
    outbox,
    outbox_parked,
    timers,
)
from persistence.tables.identity import (
    challenges,
    code_guards,
    data_keys,
    devices,
    factors,
    federated_identities,
    invitations,
    memberships,
    organisations,
    recovery_codes,
    refresh_tokens,
    sessions,
    signing_keys,
    users,
)
from persistence.tables.jobs import booking_declines, bookings, offers, series, series_instances, sla_policies
from persistence.tables.marketplace import (
    provider_skills,
    provider_sockets,
    provider_zones,
    providers,
    services,
    zone_figures,
    zone_generation,
    zones,
)
from persistence.tables.messaging import (
    conversations,
    deliveries,
    heard_marks,
    messages,
    notification_preferences,
    notifications,
    push_tokens,
    read_marks,
)
from persistence.tables.oversight import audit_head, audit_log, flags
from persistence.tables.planning import (
    busy_times,
    calendar_exceptions,
    calendar_feeds,
    calendar_sources,
    calendars,
    slot_holds,
)

__all__ = [
    "WITHOUT_AUDIT",
    "JsonText",
    "UtcDateTime",
    "audit_head",
    "audit_log",
    "booking_declines",
    "bookings",
    "busy_times",
    "calendar_exceptions",
    "calendar_feeds",
    "calendar_sources",
    "calendars",
    "challenges",
    "channel_heads",
    "code_guards",
    "conversations",
    "data_keys",
    "deliveries",
    "devices",
    "export_cursors",
    "export_held",
    "factors",
    "federated_identities",
    "flags",
    "heard_marks",
    "idempotency_keys",
    "invitations",
    "leases",
    "log",
    "log_cursors",
    "log_seed",
    "memberships",
    "messages",
    "metadata",
    "notification_preferences",
    "notifications",
    "offers",
    "organisations",
    "outbox",
    "outbox_parked",
    "provider_skills",
    "provider_sockets",
    "provider_zones",
    "providers",
    "push_tokens",
    "read_marks",
    "recovery_codes",
    "refresh_tokens",
    "series",
    "series_instances",
    "services",
    "sessions",
    "signing_keys",
    "sla_policies",
    "slot_holds",
    "timers",
    "users",
    "zone_figures",
    "zone_generation",
    "zones",
]

WITHOUT_AUDIT = {
    "sessions": "a sign-in belongs to its user, who alone uses it; it has times of its own",
    "refresh_tokens": "as sessions",
    "signing_keys": "made by the system",
    "zone_generation": "a counter of the system",
    "zone_figures": "counted from other rows, again and again",
    "busy_times": "copies of what is elsewhere; their source says who brought them along",
    "provider_sockets": "nodes' claims, renewed all the time and gone with the socket",
    "read_marks": "the key says whose it is; nobody else moves it",
    "heard_marks": "as read_marks",
    "idempotency_keys": "a command's memory, kept for a day",
    "timers": "work of the system",
    "outbox": "on its way into the log",
    "outbox_parked": "as outbox; has its time",
    "channel_heads": "the log's own",
    "log": "the log's own; a frame says when and by what it came about",
    "log_seed": "the log's own",
    "log_cursors": "the log's own",
    "leases": "nodes' claims",
    "export_cursors": "the log's own",
    "export_held": "the log's own; an event says when and by what it came about",
    "data_keys": "made by the system",
    "factors": "the key says whose they are, who alone changes them; they have times of their own",
    "recovery_codes": "as factors",
    "code_guards": "as factors",
    "challenges": "one step of somebody's sign-in; they have times of their own",
    "devices": "as factors",
    "federated_identities": "says itself whose it is and since when; never changed",
    "audit_log": "says itself who did what and when; never changed",
    "audit_head": "the audit log's own",
}
"""Tables that are not facts of the business, and why."""

for _table in metadata.tables.values():
    # Whatever the server's defaults: ids, keys and channel names tell upper from lower case, as SQLite does by itself.
    _table.dialect_kwargs.update(mysql_engine="InnoDB", mysql_charset="utf8mb4", mysql_collate="utf8mb4_bin")
