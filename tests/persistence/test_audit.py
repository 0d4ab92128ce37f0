"""Audit columns: every fact of the business says who made it and who changed it last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Insert, Update, event, select

from persistence.database import Database
from persistence.tables import WITHOUT_AUDIT, metadata
from tests.domain.marketplace import START, Marketplace

AUDIT = {"created_at", "created_by", "updated_at", "updated_by"}


@pytest.fixture
async def market(database: Database) -> Marketplace:
    market = Marketplace(database)
    await market.zone()
    await market.service()
    return market


@contextmanager
def statements(database: Database) -> Iterator[list[Any]]:
    """What is written meanwhile, as SQLAlchemy's own objects with their parameters."""
    seen: list[Any] = []

    def note(_connection: Any, statement: Any, many: Any, one: Any, _options: Any) -> None:
        if isinstance(statement, Insert | Update):
            seen.append((statement, list(many or [one])))

    engine = database._writer.sync_engine
    event.listen(engine, "before_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_execute", note)


def test_every_table_is_audited_or_says_why_not() -> None:
    audited = {name for name, table in metadata.tables.items() if set(table.columns.keys()) >= AUDIT}
    assert audited | set(WITHOUT_AUDIT) == set(metadata.tables)
    assert not audited & set(WITHOUT_AUDIT)


async def test_rows_name_who_made_them_and_who_changed_them_last(market: Marketplace) -> None:
    customer = await market.customer()
    firm, other = await market.firms(2)
    booking_id = await market.book(customer)
    await market.advance(1)
    refused = await market.offer_id(other, booking_id) if other.provider_id in await market.asked(booking_id) else None
    if refused is not None:
        await market.call(other.person, "offer.decline", offer_id=refused, reason="busy")
    market.clock.advance(5)
    await market.accept(firm, booking_id)
    await market.call(customer, "message.send", conversation_id=booking_id, text="the blue door")

    async def audit(name: str, **key: str) -> Any:
        table = metadata.tables[name]
        query = select(table).where(*(table.c[column] == value for column, value in key.items()))
        (row,) = await market.rows(query)
        return row

    booking = await audit("bookings", id=booking_id)
    assert (booking.created_by, booking.created_at) == (customer.user_id, START)
    assert (booking.updated_by, booking.updated_at) == (firm.person.user_id, START + timedelta(seconds=6))
    message = await audit("messages", conversation_id=booking_id)
    assert (message.created_by, message.created_at) == (customer.user_id, message.sent_at)
    assert (await audit("offers", booking_id=booking_id, status="accepted")).updated_by == firm.person.user_id
    assert (await audit("provider_skills", provider_id=firm.provider_id)).created_by == "system"
    if refused is not None:
        assert (await audit("booking_declines", booking_id=booking_id)).created_by == other.person.user_id


async def test_no_change_of_a_business_row_goes_unsigned(market: Marketplace) -> None:
    """Watches every statement of a day's work, so that a new one cannot forget."""
    with statements(market.database) as written:
        customer = await market.customer()
        operator = await market.operator()
        firm, _ = await market.firms(2)
        booking_id = await market.book(customer)
        await market.advance(40)
        for waiting in [booking_id, await market.book_slot(customer)]:
            await market.call(operator, "booking.assign", booking_id=waiting, provider_id=firm.provider_id)
        await market.walk(firm.person, booking_id, "en_route", "arrived", "in_progress", "completed")
        await market.call(customer, "message.send", conversation_id=booking_id, text="thanks")
        await market.call(firm.person, "message.read", conversation_id=booking_id, offset=1)
        await market.call(firm.person, "presence.set", status="away")
    unsigned = set()
    changed = set()
    for statement, rows in written:
        if not set(statement.table.columns.keys()) >= AUDIT:
            continue
        changed.add(statement.table.name)
        wanted = AUDIT if isinstance(statement, Insert) else {"updated_at", "updated_by"}
        for row in rows:
            set_by_statement = {getattr(column, "name", column) for column in statement._values or ()}
            if not wanted <= set_by_statement | set(row):
                unsigned.add(f"{type(statement).__name__.lower()} {statement.table.name}")
    assert changed >= {"users", "providers", "provider_skills", "bookings", "offers", "conversations", "messages"}
    assert unsigned == set()
