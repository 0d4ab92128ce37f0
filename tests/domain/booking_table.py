"""The booking's transitions as the product's description lists them, written out again.

Deliberately not derived from ``domain.bookings``: the tests hold the two together.
"""

from __future__ import annotations

STATUSES = (
    "pending",
    "awaiting_assignment",
    "assigned",
    "scheduled",
    "en_route",
    "arrived",
    "in_progress",
    "paused",
    "completed",
    "unfulfilled",
    "cancelled",
    "no_show",
    "disputed",
)

CUSTOMER, PROVIDER, OPERATIONS, SYSTEM = "customer", "provider", "operations", "system"
EVERYBODY = (CUSTOMER, PROVIDER, OPERATIONS)

_ROWS = (
    ("pending", "awaiting_assignment", (SYSTEM,), "booking.dispatch_started"),
    ("awaiting_assignment", "assigned", (PROVIDER, OPERATIONS), "booking.assigned"),
    ("awaiting_assignment", "scheduled", (PROVIDER, OPERATIONS), "booking.assigned"),
    ("awaiting_assignment", "unfulfilled", (SYSTEM,), "booking.unfulfilled"),
    ("scheduled", "en_route", (PROVIDER,), "booking.en_route"),
    ("assigned", "en_route", (PROVIDER,), "booking.en_route"),
    ("en_route", "arrived", (PROVIDER, SYSTEM), "booking.arrived"),
    ("arrived", "in_progress", (PROVIDER,), "booking.started"),
    ("in_progress", "paused", (PROVIDER,), "booking.paused"),
    ("paused", "in_progress", (PROVIDER,), "booking.resumed"),
    ("in_progress", "completed", (PROVIDER,), "booking.completed"),
    ("pending", "cancelled", EVERYBODY, "booking.cancelled"),
    ("awaiting_assignment", "cancelled", EVERYBODY, "booking.cancelled"),
    ("assigned", "cancelled", EVERYBODY, "booking.cancelled"),
    ("scheduled", "cancelled", EVERYBODY, "booking.cancelled"),
    ("en_route", "cancelled", EVERYBODY, "booking.cancelled"),
    ("arrived", "cancelled", EVERYBODY, "booking.cancelled"),
    ("scheduled", "awaiting_assignment", (PROVIDER, OPERATIONS, SYSTEM), "booking.reassignment_started"),
    ("assigned", "awaiting_assignment", (PROVIDER, OPERATIONS, SYSTEM), "booking.reassignment_started"),
    ("en_route", "awaiting_assignment", (PROVIDER, OPERATIONS, SYSTEM), "booking.reassignment_started"),
    ("arrived", "no_show", (CUSTOMER, PROVIDER), "booking.no_show_recorded"),
    ("in_progress", "disputed", (CUSTOMER, PROVIDER), "dispute.opened"),
    ("completed", "disputed", (CUSTOMER, PROVIDER), "dispute.opened"),
    ("disputed", "in_progress", (OPERATIONS,), "dispute.resolved"),
    ("disputed", "completed", (OPERATIONS,), "dispute.resolved"),
    ("disputed", "cancelled", (OPERATIONS,), "dispute.resolved"),
)

EVENT_OF = {(source, target): event for source, target, _, event in _ROWS}
PARTIES_OF = {(source, target): frozenset(parties) for source, target, parties, _ in _ROWS}
STEPS = [(source, target, party) for source, target, parties, _ in _ROWS for party in parties]
"""Every legal step with each party that may take it."""

WITHOUT_PROVIDER = frozenset({"pending", "awaiting_assignment", "unfulfilled"})
UNDER_WAY = frozenset({"assigned", "en_route", "arrived", "in_progress", "paused"})
