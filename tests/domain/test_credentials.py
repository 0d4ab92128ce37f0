"""Changing and resetting a password, disabling an account: what it takes, and what it ends."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import select

from domain.credentials import ResetParams
from domain.errors import Forbidden, InvalidToken
from domain.factors import RESET_PREFIX, token_hash
from domain.letters import LetterKind
from domain.types import JSON
from persistence import tables
from tests.domain.marketplace import ORIGIN, Marketplace, refused
from tests.domain.office import ANN, PASSWORD, Office

NEW = "a new long password"


@pytest.fixture
def office(empty_market: Marketplace) -> Office:
    return Office(empty_market)


async def test_change_ends_every_other_sign_in(office: Office) -> None:
    ann = await office.person()
    others = [await office.login() for _ in range(2)]
    await office.change(ann, NEW)
    for tokens in others:
        assert await office.outcome(tokens["refresh_token"]) == "invalid_token"
        with pytest.raises(InvalidToken):
            await office.actor(tokens)
    ended = {session for told in await office.revoked() for session in told}
    assert ended == {tokens["access_token"].split()[2] for tokens in others}
    assert sorted(map(str, await office.reasons())) == ["None", "password_changed", "password_changed"]
    assert (await office.accounts.actor(ann.user_id, ann.session_id)).user_id == ann.user_id, "this one goes on"
    assert await refused(office.login()) == "invalid_credentials"
    await office.login(password=NEW)
    assert office.letters.newest(LetterKind.PASSWORD_CHANGED).to == ANN
    assert "password_changed" in office.security.kinds()


async def test_change_needs_the_present_password_and_guessing_it_is_delayed(office: Office) -> None:
    ann = await office.person()
    outcomes = [await refused(office.change(ann, NEW, password="wrong")) for _ in range(13)]
    assert (outcomes[0], outcomes[-1]) == ("invalid_credentials", "too_many_requests")
    await office.login()


async def test_change_by_whoever_has_a_second_factor_asks_for_it(office: Office) -> None:
    ann = await office.person()
    secret, _ = await office.enrolled(ann)
    office.clock.advance(601)
    assert await refused(office.change(ann, NEW)) == "step_up_required"
    await office.step_up(ann, office.code(secret))
    await office.change(ann, NEW)


async def test_sign_in_with_the_old_password_cannot_slip_past_its_change(office: Office) -> None:
    ann = await office.person()
    checked, go_on = asyncio.Event(), asyncio.Event()
    verify = office.passwords.verify

    async def slow(password_hash: str | None, password: str) -> bool:
        right = await verify(password_hash, password)
        checked.set()
        await go_on.wait()
        return right

    office.passwords.verify = slow  # type: ignore[method-assign]
    late = asyncio.ensure_future(office.login())
    await checked.wait()
    office.passwords.verify = verify  # type: ignore[method-assign]
    await office.change(ann, NEW)
    go_on.set()
    assert await refused(late) == "invalid_credentials"


async def test_reset_lets_its_owner_in_once_and_ends_everything(office: Office) -> None:
    ann = await office.person()
    held = (await office.login())["refresh_token"]
    token = await office.reset_token()
    assert token.startswith(RESET_PREFIX)
    await office.confirm_reset(token, NEW)
    assert await office.outcome(held) == "invalid_token"
    with pytest.raises(InvalidToken):
        await office.accounts.actor(ann.user_id, ann.session_id)
    assert set(await office.reasons()) == {"password_reset"}
    await office.login(password=NEW)
    assert await refused(office.confirm_reset(token, "yet another password")) == "invalid_token"
    await office.login(password=NEW)


async def test_of_two_who_use_one_reset_token_at_once_one_wins(office: Office) -> None:
    await office.person()
    token = await office.reset_token()
    passwords = [f"the password number {number}" for number in range(4)]

    async def confirm(password: str) -> str | None:
        try:
            await office.confirm_reset(token, password)
        except InvalidToken:
            return None
        return password

    (won,) = [password for password in await asyncio.gather(*map(confirm, passwords)) if password]
    await office.login(password=won)


async def test_reset_token_is_hashed_ends_after_half_an_hour_and_with_the_next_change(office: Office) -> None:
    ann = await office.person()
    token = await office.reset_token()
    stored = repr(await office.market.rows(select(tables.challenges)))
    assert token not in stored
    assert token_hash(token) in stored
    office.clock.advance(1800)
    assert await refused(office.confirm_reset(token, NEW)) == "invalid_token"
    token = await office.reset_token()
    await office.change(ann, NEW)
    assert await refused(office.confirm_reset(token, "yet another password")) == "invalid_token"


async def test_unknown_and_disabled_addresses_get_the_same_answer_for_the_same_work(office: Office) -> None:
    await office.person()
    await office.register("gone@example.test")
    await office.credentials.disable("gone@example.test", ORIGIN)
    answers: list[JSON] = []
    for number, email in enumerate((ANN, "nobody@example.test", "gone@example.test"), start=1):
        answers.append(await office.credentials.request_reset(ResetParams(email=email), ORIGIN))
        assert await office.market.count(tables.challenges) == number
    assert answers == [{}, {}, {}]
    assert [letter.to for letter in office.letters.letters if letter.kind is LetterKind.PASSWORD_RESET] == [ANN]


async def test_a_dead_post_office_changes_neither_answer_nor_outcome(office: Office) -> None:
    ann = await office.person()
    office.letters.away = True
    assert await office.credentials.request_reset(ResetParams(email=ANN), ORIGIN) == {}
    await office.change(ann, NEW)
    await office.login(password=NEW)
    assert office.security.kinds().count("letter_not_sent") == 2


async def test_rubbish_for_a_reset_token_costs_no_hash(office: Office) -> None:
    await office.person()
    before = office.passwords.hashed
    assert await refused(office.confirm_reset("fxp_rubbish", NEW)) == "invalid_token"
    assert office.passwords.hashed == before


async def test_reset_does_not_open_the_second_factor(office: Office) -> None:
    await office.enrolled(await office.person())
    await office.confirm_reset(await office.reset_token(), NEW)
    assert (await office.login(password=NEW))["mfa_required"]


async def test_password_change_spends_the_challenge_of_a_sign_in_under_way(office: Office) -> None:
    ann = await office.person()
    secret, _ = await office.enrolled(ann)
    challenge = await office.challenge()
    await office.change(ann, NEW)
    assert await refused(office.verify(challenge, office.code(secret))) == "invalid_token"


async def test_disabled_account_is_out_and_stays_out_until_enabled(office: Office) -> None:
    ann = await office.person()
    held = (await office.login())["refresh_token"]
    token = await office.reset_token()
    await office.credentials.disable(" ANN@example.test", ORIGIN)
    with pytest.raises(InvalidToken):
        await office.accounts.actor(ann.user_id, ann.session_id)
    assert await office.outcome(held) == "invalid_token"
    assert len(await office.revoked()) == 2
    assert await refused(office.login()) == "invalid_credentials"
    assert await refused(office.confirm_reset(token, NEW)) == "invalid_token"
    await office.credentials.enable(ANN, ORIGIN)
    await office.login()
    assert await office.outcome(held) == "invalid_token", "what has ended stays ended"
    with pytest.raises(Forbidden):
        await office.credentials.disable("nobody@example.test", ORIGIN)


async def test_rotation_history_is_kept(office: Office) -> None:
    token = await office.signed_in()
    for _ in range(3):
        token = await office.refresh(token)
    rows = await office.market.rows(select(tables.refresh_tokens).order_by(tables.refresh_tokens.c.used_at.is_(None)))
    assert [row.used_at is not None for row in rows] == [True, True, True, False]
    assert {row.successor_hash for row in rows[:3]} <= {row.token_hash for row in rows}
    assert PASSWORD not in repr(rows)
