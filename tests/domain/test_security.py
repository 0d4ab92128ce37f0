"""What must be on record is on record, and nothing secret with it."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from channels.topics import ADMIN_SECURITY
from domain.accounts import Accounts, Login, Register
from domain.errors import InvalidCredentials, InvalidToken
from domain.identity import Role
from domain.security import SecurityKind
from persistence import tables
from tests.domain.marketplace import ORIGIN, Marketplace, refused
from tests.domain.test_accounts import NamingTokens, PlainPasswords


async def recorded(market: Marketplace) -> list[Any]:
    return list(await market.rows(select(tables.audit_log).order_by(tables.audit_log.c.number)))


def accounts_of(market: Marketplace) -> Accounts:
    return Accounts(market.transactions, PlainPasswords(), NamingTokens(), market.clock)


async def test_failed_logins_are_recorded_without_the_address(market: Marketplace) -> None:
    accounts = accounts_of(market)
    account = Register(email="ada@example.test", password="long enough 123", name="Ada", role="customer")
    user_id = (await accounts.register(account, ORIGIN))["user"]["id"]
    for email in ("ada@example.test", "nobody@example.test"):
        with pytest.raises(InvalidCredentials):
            await accounts.login(Login(email=email, password="wrong wrong wrong"), ORIGIN)
    known, unknown = await recorded(market)
    assert (known.kind, known.subject_id, known.details["why"]) == ("login_failed", user_id, "wrong_password")
    assert (unknown.kind, unknown.subject_id, unknown.details["why"]) == ("login_failed", None, "unknown")
    assert "example.test" not in repr([known, unknown])
    for told in await market.events("security.event_recorded"):
        assert told.channels == {ADMIN_SECURITY}


async def test_reuse_of_a_refresh_token_is_recorded(market: Marketplace) -> None:
    accounts = accounts_of(market)
    account = Register(email="ada@example.test", password="long enough 123", name="Ada", role="customer")
    await accounts.register(account, ORIGIN)
    tokens = await accounts.login(Login(email="ada@example.test", password="long enough 123"), ORIGIN)
    await accounts.refresh(tokens["refresh_token"], ORIGIN)
    market.clock.advance(60)
    with pytest.raises(InvalidToken):
        await accounts.refresh(tokens["refresh_token"], ORIGIN)
    (row,) = await recorded(market)
    assert (row.kind, row.subject_id) == (SecurityKind.TOKEN_REUSED, tokens["user"]["id"])


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
    accounts, admin = accounts_of(market), await market.operator(Role.ADMIN)
    account = Register(email="ada@example.test", password="long enough 123", name="Ada", role="customer")
    user_id = (await accounts.register(account, ORIGIN))["user"]["id"]
    login = Login(email="ada@example.test", password="long enough 123")
    tokens = [await accounts.login(login, ORIGIN) for _ in range(2)]
    result = await market.call(admin, "user.sign_out", user_id=user_id, reason="lost phone")
    assert result == {"user_id": user_id, "ended": 2}
    for each in tokens:
        with pytest.raises(InvalidToken):
            await accounts.refresh(each["refresh_token"], ORIGIN)
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
