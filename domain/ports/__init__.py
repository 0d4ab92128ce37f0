"""What the use cases need from outside. Real adapters live in persistence and server; fakes only in tests.

A :class:`UnitOfWork` is one database transaction. Its rules:

* lock the aggregate first (``lock_*``), decide, save, and record events last; the outbox is written right before
  commit, so that for each aggregate the order in the outbox is the order of commits;
* lock in one order: series, person, booking, conversation, then providers by id, so that no two use cases wait for
  each other. A due timer is the exception: it is claimed before its aggregate, and a deadlock with whoever cancels it
  is retried;
* a use case may run more than once (deadlock, lost race): it must not touch the outside world. Ephemeral announcements
  are collected in the context and sent after commit.
"""

from __future__ import annotations

from domain.ports.identity import (
    AccessTokens,
    Challenges,
    Devices,
    Factors,
    Limiter,
    Messenger,
    OneTimeCodes,
    Passwords,
    People,
    SecurityEvents,
    Vault,
)
from domain.ports.jobs import Bookings, Offers
from domain.ports.marketplace import Candidate, Market, Zones
from domain.ports.messaging import Conversations, Notifications
from domain.ports.organisations import AuditLog, Flags, Organisations, Post
from domain.ports.planning import Calendars, CalendarSync, SeriesOfBookings
from domain.ports.unit_of_work import Clock, IdempotencyKeys, Timer, Timers, Transactions, UnitOfWork

__all__ = [
    "AccessTokens",
    "AuditLog",
    "Bookings",
    "CalendarSync",
    "Calendars",
    "Candidate",
    "Challenges",
    "Clock",
    "Conversations",
    "Devices",
    "Factors",
    "Flags",
    "IdempotencyKeys",
    "Limiter",
    "Market",
    "Messenger",
    "Notifications",
    "Offers",
    "OneTimeCodes",
    "Organisations",
    "Passwords",
    "People",
    "Post",
    "SecurityEvents",
    "SeriesOfBookings",
    "Timer",
    "Timers",
    "Transactions",
    "UnitOfWork",
    "Vault",
    "Zones",
]
