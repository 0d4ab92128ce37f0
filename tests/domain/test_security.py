"""What must be on record is on record, and nothing secret with it."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from channels.topics import ADMIN_SECURITY
from domain.errors import InvalidToken
from domain.identity import Role
from domain.security import SecurityKind
from persistence import tables
from server.security_events import AttestedSecurityEvents
from tests.domain.marketplace import ORIGIN, Marketplace, refused
from tests.domain.office import Office


async def recorded(market: Marketplace) -> list[Any]:
    return list(await market.rows(select(tables.audit_log).order_by(tables.audit_log.c.number)))


async def test_what_the_accounts_report_is_in_the_chain(market: Marketplace) -> None:
    events = AttestedSecurityEvents(market.transactions)
    await events.record(SecurityKind.TRUST_LOW, "ada", {"score": 12, "parts": {"device": 0.5}, "address": "192.0.2.1"})
    await events.record(SecurityKind.LOGIN_FAILED, None, {})
    known, unknown = await recorded(market)
    assert (known.kind, known.subject_id, known.actor_id) == ("trust_low", "ada", "ada")
    assert known.details == {"score": 12, "parts": '{"device": 0.5}', "address": "192.0.2.1"}
    assert (unknown.kind, unknown.subject_id, unknown.actor_id) == ("login_failed", None, "anonymous")
    for told in await market.events("security.event_recorded"):
        assert told.channels == {ADMIN_SECURITY}


async def test_what_staff_do_to_bookings_is_recorded_and_what_others_do_is_not(market: Marketplace) -> None:
    customer, operator, firm = await market.customer(), await market.operator(), await market.firm(rating=0.1)
    other = await market.firm()
    assigned = await market.book_slot(customer)
    await market.call(operator, "booking.assign", booking_id=assigned, provider_id=firm.provider_id)
    await market.call(operator, "booking.cancel", booking_id=assigned, reason="flooded street")
    done = await market.job(customer, other, "en_route", "arrived", "in_progress", "completed")
    await market.step(customer, done, "disputed", reason="leaks")
    await market.step(operator, done, "completed")
    await market.call(customer, "booking.cancel", booking_id=await market.book(customer), reason="never mind")
    rows = await recorded(market)
    assert [(row.kind, row.subject_id, row.actor_id) for row in rows] == [
        ("booking_assigned_by_staff", assigned, operator.user_id),
        ("booking_changed_by_staff", assigned, operator.user_id),
        ("dispute_resolved", done, operator.user_id),
    ]
    assert rows[1].details["reason"] == "flooded street"


async def test_changes_of_members_are_recorded(market: Marketplace) -> None:
    firm, customer = await market.firm(), await market.customer()
    here = {"organisation_id": firm.organisation_id, "user_id": customer.user_id}
    _, token = await market.invitation(firm, await market.email(customer))
    await market.call(customer, "invitation.accept", token=token)
    await market.call(firm.person, "member.set_role", **here, role="dispatcher")
    await market.call(firm.person, "member.remove", **here)
    rows = await recorded(market)
    assert [row.kind for row in rows] == ["member_invited", "member_added", "role_changed", "member_removed"]
    assert rows[2].details == {"organisation_id": firm.organisation_id, "from": "technician", "to": "dispatcher"}


async def test_an_admin_ends_every_sign_in_of_a_person_on_record(market: Marketplace) -> None:
    office, admin = Office(market), await market.operator(Role.ADMIN)
    user_id = (await office.register())["user"]["id"]
    tokens = [await office.login() for _ in range(2)]
    result = await market.call(admin, "user.sign_out", user_id=user_id, reason="lost phone")
    assert result == {"user_id": user_id, "ended": 2}
    for each in tokens:
        with pytest.raises(InvalidToken):
            await office.accounts.refresh(each["refresh_token"], ORIGIN)
    (row,) = await recorded(market)
    assert (row.kind, row.actor_id, row.details) == (
        "signed_out_by_admin",
        admin.user_id,
        {"sessions": 2, "reason": "lost phone"},
    )
    (revoked,) = await market.events("session.revoked")
    assert revoked.data["user_ids"] == [user_id]
    operator = await market.operator()
    assert await refused(market.call(operator, "user.sign_out", user_id=user_id, reason="x")) == "not_found"


async def test_the_log_is_read_a_page_at_a_time_newest_first(market: Marketplace) -> None:
    admin = await market.operator(Role.ADMIN)
    for number in range(5):
        await market.call(admin, "flag.set", flag=f"flag-{number}", state="enabled")
    first = (await market.call(admin, "audit.list", limit=2))["events"]
    second = (await market.call(admin, "audit.list", limit=2, before=first[-1]["number"]))["events"]
    assert [event["number"] for event in [*first, *second]] == [5, 4, 3, 2]
