"""Signing up, in and out; refresh tokens that rotate, and what happens when one is used twice."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import select, update

from domain.accounts import Register
from domain.errors import Forbidden, InvalidCredentials, InvalidToken
from domain.factors import token_hash
from domain.identity import Role
from domain.sign_ins import TOKEN_PREFIX, successor_of
from domain.types import JSON
from persistence import tables
from persistence.repositories import SqlUnitOfWork
from persistence.repositories.identity import prune_refresh_tokens
from server.workers import ENDED_TOKENS_DAYS, Pruner
from tests.domain.marketplace import ORIGIN, Marketplace, refusal, refused
from tests.domain.office import PASSWORD, Office

DAY = 86_400.0


@pytest.fixture
def office(empty_market: Marketplace) -> Office:
    return Office(empty_market)


# --- accounts ---------------------------------------------------------------------------------------------------------


async def test_customer_registers_and_signs_in(office: Office) -> None:
    made = await office.register(" Ann@Example.TEST ")
    user = made["user"]
    assert (user["email"], user["roles"], user["provider_ids"]) == ("ann@example.test", ["customer"], [])
    tokens = await office.login("ANN@example.test ", device={"id": "d1", "name": "Phone", "platform": "ios"})
    assert tokens["user"] == user
    assert (tokens["token_type"], tokens["expires_in"]) == ("Bearer", 900)
    actor = await office.actor(tokens)
    assert (actor.user_id, actor.memberships) == (user["id"], ())
    assert actor.roles == {Role.CUSTOMER}
    assert await office.accounts.me(actor) == made


async def test_provider_gets_an_organisation_and_an_unverified_place_in_the_marketplace(office: Office) -> None:
    user = (await office.register(role="provider"))["user"]
    actor = await office.actor(await office.login())
    (membership,) = actor.memberships
    assert (membership.role, [membership.provider_id]) == ("owner", user["provider_ids"])
    provider = await office.market.transactions.read(lambda uow: uow.market.provider(membership.provider_id))
    assert provider is not None
    assert (provider.verified, provider.status, provider.organisation_id) == (
        False,
        "offline",
        membership.organisation_id,
    )


async def test_address_is_registered_once_even_when_two_try_at_once(office: Office) -> None:
    attempts = [office.register(email) for email in ("ann@example.test", "ANN@example.test", "Ann@Example.test")]
    await office.market.warm()
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    assert sorted(getattr(outcome, "type", "done") for outcome in outcomes) == ["done", "email_taken", "email_taken"]
    assert await office.market.count(tables.users) == 1
    assert await refused(office.register()) == "email_taken"


async def test_refused_registration_leaves_no_organisation_behind(office: Office) -> None:
    await office.register()
    assert await refused(office.register(role="provider")) == "email_taken"
    assert await office.market.count(tables.organisations) == 0


@pytest.mark.parametrize(
    "flaw",
    [
        {"password": "eleven char"},
        {"password": "x" * 129},
        {"email": "no at sign"},
        {"email": "a@b"},
        {"email": f"{'a' * 65}@b.cd"},
        {"name": "  "},
    ],
)
def test_registration_refuses_what_does_not_fit(flaw: JSON) -> None:
    fitting = {"email": "a@b.cd", "password": "x" * 12, "name": "A", "role": "customer"}
    Register.model_validate(fitting)
    with pytest.raises(ValidationError):
        Register.model_validate(fitting | flaw)


async def test_unknown_known_and_disabled_users_get_the_same_answer_for_the_same_work(office: Office) -> None:
    await office.register()
    await office.register("gone@example.test")

    async def disable(uow: SqlUnitOfWork) -> None:
        gone = tables.users.c.email == "gone@example.test"
        await uow.connection.execute(update(tables.users).where(gone).values(disabled_at=uow.now))

    await office.market.write(disable)
    office.passwords.verified.clear()
    errors = [
        await refusal(office.login("ann@example.test", "wrong")),
        await refusal(office.login("nobody@example.test", "wrong")),
        await refusal(office.login("gone@example.test", PASSWORD)),
    ]
    assert {(type(error), error.message, str(error.details)) for error in errors} == {
        (InvalidCredentials, InvalidCredentials.default_message, "{}")
    }
    # One check each; an unknown user is checked against nothing, which must cost the same (see Passwords.verify).
    assert office.passwords.verified == [
        (f"hashed {PASSWORD}", "wrong"),
        (None, "wrong"),
        (f"hashed {PASSWORD}", PASSWORD),
    ]
    assert await office.market.count(tables.sessions) == 0


async def test_outdated_hash_is_renewed_at_login(office: Office) -> None:
    await office.register()
    await office.market.write(_set_hash(f"weakly hashed {PASSWORD}"))
    await office.login()
    (row,) = await office.market.rows(select(tables.users.c.password_hash))
    assert row.password_hash == f"hashed {PASSWORD}"


def _set_hash(password_hash: str) -> Any:
    async def work(uow: SqlUnitOfWork) -> None:
        await uow.connection.execute(update(tables.users).values(password_hash=password_hash))

    return work


# --- rotation ---------------------------------------------------------------------------------------------------------


async def test_each_refresh_gives_a_new_token_of_the_same_sign_in(office: Office) -> None:
    first = await office.signed_in()
    second = await office.refresh(first)
    office.market.clock.advance(60)
    third = await office.refresh(second)
    assert len({first, second, third}) == 3
    assert all(token.startswith(TOKEN_PREFIX) and len(token) >= len(TOKEN_PREFIX) + 43 for token in (first, third))
    assert await office.market.count(tables.sessions) == 1
    (session,) = await office.market.rows(select(tables.sessions.c.last_used_at))
    assert session.last_used_at == office.market.clock.now()


async def test_only_hashes_are_stored(office: Office) -> None:
    first = await office.signed_in()
    second = await office.refresh(first)
    stored = ""
    for table in tables.metadata.sorted_tables:
        stored += repr(await office.market.rows(select(table)))
    for secret in (first, second, first.removeprefix(TOKEN_PREFIX), second.removeprefix(TOKEN_PREFIX)):
        assert secret not in stored
    assert token_hash(first) in stored
    assert token_hash(second) in stored


async def test_retry_after_a_lost_reply_gets_the_same_successor_for_ten_seconds(office: Office) -> None:
    first = await office.signed_in()
    second = await office.refresh(first)
    office.market.clock.advance(10)
    assert await office.refresh(first) == second
    office.market.clock.advance(0.001)
    assert await office.outcome(first) == "invalid_token"


async def test_retry_once_the_successor_was_used_ends_the_family(office: Office) -> None:
    first = await office.signed_in()
    second = await office.refresh(first)
    third = await office.refresh(second)
    assert await office.outcome(first) == "invalid_token", "within ten seconds, but somebody used what followed"
    assert await office.outcome(third) == "invalid_token"
    assert len(await office.revoked()) == 1
    assert await office.reasons() == ["reuse"]


async def test_late_reuse_ends_the_family_closes_its_sockets_and_is_told_once(office: Office) -> None:
    first = await office.signed_in()
    other = (await office.login())["refresh_token"]
    second = await office.refresh(first)
    office.market.clock.advance(11)
    assert await office.outcome(first) == "invalid_token"
    assert await office.outcome(second) == "invalid_token", "the thief's and the owner's alike"
    assert await office.outcome(first) == "invalid_token"
    (told,) = await office.revoked()
    (family,) = await office.market.rows(select(tables.sessions.c.id).where(tables.sessions.c.revoked_at.is_not(None)))
    assert told == [family.id]
    await office.refresh(other)  # another sign-in of the same person goes on


async def test_access_of_an_ended_sign_in_is_refused(office: Office) -> None:
    await office.register()
    tokens = await office.login()
    actor = await office.actor(tokens)
    await office.accounts.logout(actor, ORIGIN)
    with pytest.raises(InvalidToken):
        await office.actor(tokens)


async def test_refreshes_at_once_leave_one_live_successor(office: Office) -> None:
    first = await office.signed_in()
    await office.market.warm()
    outcomes = await asyncio.gather(*(office.outcome(first) for _ in range(12)))
    assert len(set(outcomes)) == 1, "every one of them is answered with the same successor"
    live = select(tables.refresh_tokens.c.token_hash).where(tables.refresh_tokens.c.used_at.is_(None))
    assert [row.token_hash for row in await office.market.rows(live)] == [token_hash(outcomes[0])]
    assert await office.market.count(tables.refresh_tokens) == 2
    assert await office.revoked() == []
    await office.refresh(outcomes[0])


async def test_refreshes_at_once_with_a_reused_token_end_the_family_once(office: Office) -> None:
    first = await office.signed_in()
    await office.refresh(await office.refresh(first))
    await office.market.warm()
    outcomes = await asyncio.gather(*(office.outcome(first) for _ in range(6)))
    assert set(outcomes) == {"invalid_token"}
    assert len(await office.revoked()) == 1


async def test_unused_token_ends_after_thirty_days(office: Office) -> None:
    token = await office.signed_in()
    office.market.clock.advance(30 * DAY - 1)
    token = await office.refresh(token)
    office.market.clock.advance(30 * DAY)
    assert await office.outcome(token) == "invalid_token"
    assert await office.revoked() == [], "an old token is no theft"


async def test_sliding_never_passes_the_absolute_end(office: Office) -> None:
    token = await office.signed_in()
    for _ in range(8):
        office.market.clock.advance(11 * DAY)
        token = await office.refresh(token)
    newest = select(tables.refresh_tokens.c.expires_at).where(tables.refresh_tokens.c.token_hash == token_hash(token))
    (row,) = await office.market.rows(newest)
    assert row.expires_at == office.market.clock.now() + timedelta(days=2)
    office.market.clock.advance(2 * DAY - 0.001)
    token = await office.refresh(token)
    office.market.clock.advance(0.001)
    assert await office.outcome(token) == "invalid_token"


async def test_ended_tokens_are_forgotten_in_batches_and_living_families_go_on(office: Office) -> None:
    token = await office.signed_in()
    history = [token]
    for _ in range(8):
        office.clock.advance(10 * DAY)
        history.append(await office.refresh(history[-1]))
    stop = asyncio.Event()
    pruner = Pruner(office.market.database, office.clock, log_hours=72, log_entries=100, key_hours=24)
    before = office.clock.now() - timedelta(days=ENDED_TOKENS_DAYS)
    counts = [await prune_refresh_tokens(office.market.database, before, limit=2) for _ in range(4)]
    assert counts == [2, 2, 1, 0], "issued more than 37 days ago: five of nine"
    await pruner.run_once(stop)
    kept = {row.token_hash for row in await office.market.rows(select(tables.refresh_tokens.c.token_hash))}
    assert kept == set(map(token_hash, history[5:]))

    # What is forgotten is refused as what has ended was; what is left still shows a second use.
    newest = await office.refresh(history[-1])
    assert await refused(office.refresh(history[0])) == "invalid_token"
    newest = await office.refresh(newest)
    office.clock.advance(60)
    assert await refused(office.refresh(history[-1])) == "invalid_token"
    assert await refused(office.refresh(newest)) == "invalid_token", "the family has ended"
    assert await office.reasons() == ["reuse"]

    office.clock.advance(100 * DAY)
    await pruner.run_once(stop)
    assert await office.market.rows(select(tables.refresh_tokens.c.token_hash)) == []
    assert await office.reasons() == ["reuse"], "that there was such a sign-in stays known"


@pytest.mark.parametrize("token", ["", "fxr_", "fxr_AAAA", "' OR 1=1 --", "x" * 256])
async def test_unknown_token_is_refused_and_ends_nothing(office: Office, token: str) -> None:
    await office.signed_in()
    assert await office.outcome(token) == "invalid_token"
    assert await office.revoked() == []


async def test_refresh_of_a_disabled_account_is_refused(office: Office) -> None:
    token = await office.signed_in()

    async def disable(uow: SqlUnitOfWork) -> None:
        await uow.connection.execute(update(tables.users).values(disabled_at=uow.now))

    await office.market.write(disable)
    assert await office.outcome(token) == "invalid_token"


def test_successor_needs_both_the_token_and_the_nonce() -> None:
    assert successor_of("t", "n") == successor_of("t", "n")
    assert len({successor_of("t", "n"), successor_of("t", "m"), successor_of("u", "n")}) == 3


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_logout_ends_its_own_sign_in_only(office: Office) -> None:
    await office.register()
    here, there = await office.login(), await office.login()
    actor = await office.actor(here)
    await office.accounts.logout(actor, ORIGIN)
    await office.accounts.logout(actor, ORIGIN)
    assert await office.revoked() == [[actor.session_id]], "told once"
    assert await office.outcome(here["refresh_token"]) == "invalid_token"
    await office.refresh(there["refresh_token"])


async def test_logout_all_ends_every_sign_in_of_the_person_and_nobody_elses(office: Office) -> None:
    await office.register()
    await office.register("bob@example.test")
    mine = [await office.login() for _ in range(3)]
    bobs = await office.login("bob@example.test")
    await office.accounts.logout_all(await office.actor(mine[1]), ORIGIN)
    for tokens in mine:
        assert await office.outcome(tokens["refresh_token"]) == "invalid_token"
    ended = {session for told in await office.revoked() for session in told}
    assert ended == {tokens["access_token"].split()[2] for tokens in mine}
    await office.refresh(bobs["refresh_token"])
    assert sorted(map(str, await office.reasons())) == ["None", "signed_out", "signed_out", "signed_out"]


async def test_sign_ins_are_listed_newest_first_with_the_one_that_asks(office: Office) -> None:
    await office.register()
    old = await office.login(device={"id": "d1", "name": "Old phone"})
    office.market.clock.advance(60)
    new = await office.login()
    listed = (await office.accounts.sessions(await office.actor(old)))["sessions"]
    assert [entry["id"] for entry in listed] == [tokens["access_token"].split()[2] for tokens in (new, old)]
    assert [entry["current"] for entry in listed] == [False, True]
    assert listed[1]["device"] == {"id": "d1", "name": "Old phone", "platform": ""}
    await office.accounts.end_session(await office.actor(old), listed[0]["id"], ORIGIN)
    listed = (await office.accounts.sessions(await office.actor(old)))["sessions"]
    assert [entry["current"] for entry in listed] == [True]


async def test_somebody_elses_sign_in_is_not_there(office: Office) -> None:
    await office.register()
    await office.register("bob@example.test")
    bob = await office.actor(await office.login("bob@example.test"))
    ann = await office.actor(await office.login())
    for session_id in (ann.session_id, "none"):
        with pytest.raises(Forbidden) as caught:
            await office.accounts.end_session(bob, session_id, ORIGIN)
        assert not caught.value.details
    assert (await office.accounts.actor(ann.user_id, ann.session_id)).user_id == ann.user_id


async def test_session_of_one_person_does_not_speak_for_another(office: Office) -> None:
    await office.register()
    await office.register("bob@example.test")
    bob, ann = await office.actor(await office.login("bob@example.test")), await office.actor(await office.login())
    with pytest.raises(InvalidToken):
        await office.accounts.actor(bob.user_id, ann.session_id)


async def test_people_behind_many_tokens_are_found_at_once(office: Office) -> None:
    ann, bob = await office.person(), await office.person("bob@example.test")
    gone = await office.actor(await office.login())
    await office.accounts.logout(gone, ORIGIN)
    named = [(person.user_id, person.session_id) for person in (ann, bob, gone)]
    stolen = (bob.user_id, ann.session_id)
    assert await office.accounts.actors([*named, stolen]) == {named[0]: ann, named[1]: bob}
