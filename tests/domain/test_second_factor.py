"""The second factor: who is asked, which codes count and how often, and what a change of it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest
from pydantic import ValidationError
from sqlalchemy import func, select, update

from domain.errors import InvalidCode, InvalidToken, TooManyRequests, Unavailable
from domain.factors import CHALLENGE_PREFIX, MOST_ATTEMPTS, RECOVERY_CODES, token_hash
from domain.identity import Actor
from domain.letters import LetterKind, Medium
from domain.second_factor import ActivateParams, AgainParams, EnrolParams, SendAgainParams
from domain.sign_ins import TOKEN_PREFIX
from domain.types import JSON
from persistence import tables
from persistence.repositories import SqlUnitOfWork
from tests.domain.marketplace import ORIGIN, Marketplace, refusal, refused
from tests.domain.office import ANN, PASSWORD, STEP_SECONDS, Office


@pytest.fixture
def office(empty_market: Marketplace) -> Office:
    return Office(empty_market)


async def outcome(attempt: Awaitable[JSON]) -> str:
    """``in``, or the type of the refusal."""
    try:
        tokens = await attempt
    except (InvalidCode, InvalidToken, TooManyRequests, Unavailable) as error:
        return error.type
    assert tokens["access_token"]
    return "in"


# --- enrolling --------------------------------------------------------------------------------------------------------


async def test_enrolment_counts_only_once_confirmed(office: Office) -> None:
    ann = await office.person()
    begun = await office.second_factor.enrol(ann, EnrolParams(), ORIGIN)
    assert begun["otpauth_uri"].startswith("otpauth://totp/Fixnado:ann%40example.test?secret=" + begun["secret"])
    assert begun["qr_svg"].startswith("<svg")
    assert "access_token" in await office.login(), "not asked yet"
    assert (await office.second_factor.state(ann)) == {"factors": [], "recovery_codes_left": 0}

    assert await refused(_activate(office, ann, "000000")) == "invalid_code"
    assert "access_token" in await office.login()
    given = await _activate(office, ann, office.code(begun["secret"]))
    assert len(set(given["recovery_codes"])) == RECOVERY_CODES
    asked = await office.login()
    assert asked["methods"] == ["totp", "recovery"]
    assert asked["challenge"].startswith(CHALLENGE_PREFIX)
    assert set(asked) == {"mfa_required", "challenge", "methods", "expires_in"}


async def test_code_that_confirmed_an_enrolment_does_not_sign_in_as_well(office: Office) -> None:
    ann = await office.person()
    secret = (await office.second_factor.enrol(ann, EnrolParams(), ORIGIN))["secret"]
    await _activate(office, ann, office.code(secret))
    assert await outcome(office.verify(await office.challenge(), office.code(secret))) == "invalid_code"


async def test_beginning_again_replaces_the_secret_until_it_is_confirmed(office: Office) -> None:
    ann = await office.person()
    first = (await office.second_factor.enrol(ann, EnrolParams(), ORIGIN))["secret"]
    second = (await office.second_factor.enrol(ann, EnrolParams(), ORIGIN))["secret"]
    assert await refused(_activate(office, ann, office.code(first))) == "invalid_code"
    await _activate(office, ann, office.code(second))
    assert await refused(office.second_factor.enrol(ann, EnrolParams(), ORIGIN)) == "already_enrolled"
    assert await refused(_activate(office, ann, office.code(second, 1))) == "not_enrolled"


async def test_enrolling_asks_for_a_recent_sign_in(office: Office) -> None:
    ann = await office.person()
    office.clock.advance(601)
    assert await refused(office.second_factor.enrol(ann, EnrolParams(), ORIGIN)) == "step_up_required"
    await office.step_up(ann)
    await office.second_factor.enrol(ann, EnrolParams(), ORIGIN)


def _activate(office: Office, actor: Actor, code: str, challenge: str | None = None) -> Awaitable[JSON]:
    return office.second_factor.activate(actor, ActivateParams(code=code, challenge=challenge), ORIGIN)


# --- one time ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "result"), [(-2, "invalid_code"), (-1, "in"), (0, "in"), (1, "in"), (2, "invalid_code")]
)
async def test_code_counts_one_step_to_either_side(office: Office, steps: int, result: str) -> None:
    secret, _ = await office.enrolled(await office.person())
    assert await outcome(office.verify(await office.challenge(), office.code(secret, steps))) == result


async def test_code_signs_in_once_and_earlier_ones_not_after_it(office: Office) -> None:
    secret, _ = await office.enrolled(await office.person())
    office.clock.advance(STEP_SECONDS)
    code, before = office.code(secret), office.code(secret, -1)
    assert await outcome(office.verify(await office.challenge(), code)) == "in"
    assert await outcome(office.verify(await office.challenge(), code)) == "invalid_code"
    assert await outcome(office.verify(await office.challenge(), before)) == "invalid_code"
    assert await outcome(office.verify(await office.challenge(), office.code(secret, 1))) == "in"


async def test_of_two_nodes_given_the_same_code_at_once_one_lets_in(empty_market: Marketplace) -> None:
    nodes = [Office(empty_market) for _ in range(4)]
    secret, _ = await nodes[0].enrolled(await nodes[0].person())
    challenges = [await node.challenge() for node in nodes]
    code = nodes[0].code(secret)
    outcomes = await asyncio.gather(
        *(outcome(node.verify(challenge, code)) for node, challenge in zip(nodes, challenges, strict=True))
    )
    assert sorted(outcomes) == ["in", "invalid_code", "invalid_code", "invalid_code"]


async def test_challenge_is_answered_once_even_by_two_right_codes_at_once(office: Office) -> None:
    secret, codes = await office.enrolled(await office.person())
    challenge = await office.challenge()
    answers = [office.code(secret), office.code(secret, 1), codes[0], codes[1]]
    outcomes = await asyncio.gather(*(outcome(office.verify(challenge, answer)) for answer in answers))
    assert outcomes.count("in") == 1
    assert outcomes.count("invalid_token") == 3


async def test_recovery_code_counts_once_however_it_is_typed(office: Office) -> None:
    ann = await office.person()
    _, codes = await office.enrolled(ann)
    typed = codes[0].upper().replace("-", " ").replace("0", "O").replace("1", "I")
    assert await outcome(office.verify(await office.challenge(), typed)) == "in"
    assert await outcome(office.verify(await office.challenge(), codes[0])) == "invalid_code"
    at_once = [await office.challenge() for _ in range(3)]
    outcomes = await asyncio.gather(*(outcome(office.verify(challenge, codes[1])) for challenge in at_once))
    assert sorted(outcomes) == ["in", "invalid_code", "invalid_code"]
    assert (await office.second_factor.state(ann))["recovery_codes_left"] == RECOVERY_CODES - 2
    assert office.security.kinds().count("recovery_code_used") == 2


async def test_codes_tokens_and_secrets_are_not_stored_in_clear(office: Office) -> None:
    secret, codes = await office.enrolled(await office.person())
    challenge = await office.challenge()
    stored = ""
    for table in tables.metadata.sorted_tables:
        stored += repr(await office.market.rows(select(table)))
    for hidden in (*codes, *(code.replace("-", "") for code in codes), secret, challenge):
        assert hidden not in stored
    assert token_hash(challenge) in stored


# --- challenges -------------------------------------------------------------------------------------------------------


async def test_challenge_ends_after_ten_minutes(office: Office) -> None:
    secret, _ = await office.enrolled(await office.person())
    challenge = await office.challenge()
    office.clock.advance(600)
    assert await outcome(office.verify(challenge, office.code(secret))) == "invalid_token"


async def test_tokens_are_never_taken_for_one_another(office: Office) -> None:
    ann = await office.person()
    refresh = (await office.login())["refresh_token"]
    secret, _ = await office.enrolled(ann)
    reset, challenge = await office.reset_token(), await office.challenge()
    assert refresh.startswith(TOKEN_PREFIX)
    right = office.code(secret)
    for foreign in (refresh, reset, "fxm_x"):
        assert await outcome(office.verify(foreign, right)) == "invalid_token"
    for foreign in (challenge, reset):
        assert await office.outcome(foreign) == "invalid_token"
    for foreign in (challenge, refresh):
        assert await refused(office.confirm_reset(foreign, "another long password")) == "invalid_token"
    again = AgainParams(password=PASSWORD, code=right, challenge=challenge)
    assert await refused(office.second_factor.step_up(ann, again, ORIGIN)) == "invalid_token", "it is for a sign-in"
    assert await outcome(office.verify(challenge, right)) == "in", "and good for that still"


async def test_step_up_challenge_of_one_sign_in_is_not_good_in_another(office: Office) -> None:
    ann = await office.person()
    await office.enrolled(ann)
    await _add_email(office, ann)
    sent = await office.second_factor.send_again(ann, SendAgainParams(method="email"), ORIGIN)
    code = office.letters.newest(LetterKind.CODE).secret
    other = await office.actor(await office.verify(await office.challenge(), code=(await _codes(office, ann))[0]))
    again = AgainParams(password=PASSWORD, code=code, challenge=sent["challenge"])
    assert await refused(office.second_factor.step_up(other, again, ORIGIN)) == "invalid_token"
    await office.second_factor.step_up(ann, again, ORIGIN)
    assert await refused(office.second_factor.step_up(ann, again, ORIGIN)) == "invalid_token", "once"


async def _codes(office: Office, actor: Actor) -> list[str]:
    given = await office.second_factor.new_recovery_codes(actor, ORIGIN)
    codes: list[str] = given["recovery_codes"]
    return codes


async def test_disabled_account_does_not_get_in_with_the_right_code(office: Office) -> None:
    secret, _ = await office.enrolled(await office.person())
    challenge = await office.challenge()

    async def disable_behind_the_back(uow: SqlUnitOfWork) -> None:
        await uow.connection.execute(update(tables.users).values(disabled_at=uow.now))

    await office.market.write(disable_behind_the_back)
    assert await outcome(office.verify(challenge, office.code(secret))) == "invalid_token"


# --- guessing ---------------------------------------------------------------------------------------------------------


async def test_attempts_are_bounded_per_challenge(office: Office) -> None:
    _, codes = await office.enrolled(await office.person())
    challenge = await office.challenge()
    for _ in range(MOST_ATTEMPTS):
        assert await outcome(office.verify(challenge, "wrong-recovery-code")) == "invalid_code"
    assert await outcome(office.verify(challenge, codes[0])) == "invalid_token", "right, but too late"
    assert await outcome(office.verify(await office.challenge(), codes[0])) == "in"


async def test_wrong_codes_count_per_account_and_signing_in_anew_resets_nothing(office: Office) -> None:
    secret, codes = await office.enrolled(await office.person())
    wrong = "000000" if office.code(secret) != "000000" else "000001"
    for _ in range(6):
        assert await outcome(office.verify(await office.challenge(), wrong)) == "invalid_code"
    challenge = await office.challenge()
    error = await refusal(office.verify(challenge, office.code(secret)))
    assert isinstance(error, TooManyRequests)
    assert error.retry_after_seconds == pytest.approx(30)
    # Not for good: a recovery code gets in at once, and a right code once the delay is over.
    assert await outcome(office.verify(challenge, codes[0])) == "in"
    office.clock.advance(30)
    assert await outcome(office.verify(await office.challenge(), wrong)) == "invalid_code"
    assert isinstance(await refusal(office.verify(await office.challenge(), wrong)), TooManyRequests)
    office.clock.advance(60)
    assert await outcome(office.verify(await office.challenge(), office.code(secret))) == "in"
    office.clock.advance(STEP_SECONDS)
    assert await outcome(office.verify(await office.challenge(), wrong)) == "invalid_code", "a right one forgives"


async def test_guesses_at_many_nodes_at_once_are_all_counted(empty_market: Marketplace) -> None:
    nodes = [Office(empty_market) for _ in range(12)]
    secret, _ = await nodes[0].enrolled(await nodes[0].person())
    wrong = "000000" if nodes[0].code(secret) != "000000" else "000001"
    challenges = [await node.challenge() for node in nodes]
    outcomes = await asyncio.gather(
        *(outcome(node.verify(challenge, wrong)) for node, challenge in zip(nodes, challenges, strict=True))
    )
    assert outcomes.count("invalid_code") == 6, "five are free, the sixth begins the delay"
    assert outcomes.count("too_many_requests") == 6


# --- when something is away -------------------------------------------------------------------------------------------


async def test_without_the_key_service_nobody_gets_in_by_authenticator_and_nothing_is_counted(office: Office) -> None:
    secret, codes = await office.enrolled(await office.person())
    challenge = await office.challenge()
    office.vault.away = True
    sessions = await office.market.count(tables.sessions)
    for code in (office.code(secret), "000000"):
        assert await outcome(office.verify(challenge, code)) == "unavailable"
    assert await office.market.count(tables.sessions) == sessions
    assert await outcome(office.verify(challenge, codes[0])) == "in", "recovery needs no key"
    office.vault.away = False
    assert await outcome(office.verify(await office.challenge(), office.code(secret))) == "in"


async def test_secret_moved_to_another_person_does_not_open(office: Office) -> None:
    ann = await office.person()
    secret, _ = await office.enrolled(ann)
    bob = await office.person("bob@example.test")
    await office.enrolled(bob)

    async def move(uow: SqlUnitOfWork) -> None:
        factors = tables.factors
        query = select(factors.c.secret).where(factors.c.user_id == ann.user_id)
        stolen = (await uow.connection.execute(query)).scalar_one()
        await uow.connection.execute(update(factors).where(factors.c.user_id == bob.user_id).values(secret=stolen))

    await office.market.write(move)
    challenge = await office.challenge("bob@example.test")
    assert await outcome(office.verify(challenge, office.code(secret))) == "unavailable"


async def test_authenticator_and_recovery_work_while_messages_do_not(office: Office) -> None:
    ann = await office.person()
    secret, codes = await office.enrolled(ann)
    await _add_email(office, ann)
    office.letters.away = True
    challenge = await office.challenge()
    assert await refused(office.send(challenge, "email")) == "unavailable"
    assert await outcome(office.verify(challenge, office.code(secret))) == "in"
    assert await outcome(office.verify(await office.challenge(), codes[0])) == "in"


# --- codes that are sent ----------------------------------------------------------------------------------------------


async def _add_email(office: Office, actor: Actor) -> None:
    await office.second_factor.enrol(actor, EnrolParams(method="email"), ORIGIN)
    # The newest enrolment's challenge is what its letter answers.
    begun = await office.second_factor.enrol(actor, EnrolParams(method="email"), ORIGIN)
    code = office.letters.newest(LetterKind.CODE).secret
    given = await _activate(office, actor, code, begun["challenge"])
    assert given == {"recovery_codes": []}


async def test_code_by_text_message_is_a_factor_too(office: Office) -> None:
    ann = await office.person()
    begun = await office.second_factor.enrol(ann, EnrolParams(method="sms", phone="+447700900123"), ORIGIN)
    assert begun["sent_to"] == "+44•••23"
    letter = office.letters.newest(LetterKind.CODE)
    assert (letter.medium, letter.to) == (Medium.SMS, "+447700900123")
    assert letter.secret not in repr(letter)
    assert letter.to not in repr(letter)
    given = await _activate(office, ann, letter.secret, begun["challenge"])
    assert len(given["recovery_codes"]) == RECOVERY_CODES
    asked = await office.login()
    assert asked["methods"] == ["sms", "recovery"]
    first = await office.send(asked["challenge"], "sms")
    second = await office.send(asked["challenge"], "sms")
    if first != second:
        assert await outcome(office.verify(asked["challenge"], first)) == "invalid_code", "a newer one was sent"
    assert await outcome(office.verify(asked["challenge"], second)) == "in"
    assert await outcome(office.verify(await office.challenge(), second)) == "invalid_code", "it was for another"


async def test_sent_code_takes_a_method_of_the_challenge_and_a_number_in_full(office: Office) -> None:
    ann = await office.person()
    await office.enrolled(ann)
    assert await refused(office.send(await office.challenge(), "sms")) == "invalid_params"
    assert await refused(office.second_factor.enrol(ann, EnrolParams(method="sms"), ORIGIN)) == "invalid_params"
    with pytest.raises(ValidationError):
        EnrolParams(method="sms", phone="07700900123")


async def test_codes_are_not_sent_without_end(office: Office) -> None:
    ann = await office.person()
    await office.enrolled(ann)
    await _add_email(office, ann)
    challenge = await office.challenge()
    sent = 0
    while sent < 20 and await outcome_of_sending(office, challenge) == "sent":
        sent += 1
    assert 0 < sent < 10
    office.clock.advance(900)
    assert await outcome_of_sending(office, await office.challenge()) == "sent"


async def outcome_of_sending(office: Office, challenge: str) -> str:
    try:
        await office.send(challenge, "email")
    except TooManyRequests as error:
        return error.type
    return "sent"


# --- changes ----------------------------------------------------------------------------------------------------------


async def test_turning_it_on_and_off_ends_every_other_sign_in(office: Office) -> None:
    ann = await office.person()
    others = [await office.login() for _ in range(2)]
    secret, _ = await office.enrolled(ann)
    for tokens in others:
        assert await office.outcome(tokens["refresh_token"]) == "invalid_token"
    assert {session for told in await office.revoked() for session in told} == {
        tokens["access_token"].split()[2] for tokens in others
    }
    other = await office.verify(await office.challenge(), office.code(secret))
    office.clock.advance(STEP_SECONDS)
    await office.disable(ann, office.code(secret, 1))
    assert await office.outcome(other["refresh_token"]) == "invalid_token"
    assert (await office.accounts.actor(ann.user_id, ann.session_id)).user_id == ann.user_id, "this one goes on"
    assert "access_token" in await office.login()
    assert await office.market.count(tables.factors) == await office.market.count(tables.recovery_codes) == 0
    assert [kind for kind in office.security.kinds() if kind.startswith("mfa")] == ["mfa_enabled", "mfa_disabled"]
    assert [letter.kind for letter in office.letters.letters] == [LetterKind.MFA_CHANGED] * 2


async def test_disabling_needs_password_and_code(office: Office) -> None:
    ann = await office.person()
    secret, codes = await office.enrolled(ann)
    assert await refused(office.disable(ann, office.code(secret), "wrong")) == "invalid_credentials"
    assert await refused(office.disable(ann, "wrong")) == "invalid_code"
    assert (await office.login())["mfa_required"], "still on"
    await office.disable(ann, codes[0])
    assert await refused(office.disable(ann, codes[1])) == "not_enrolled"


async def test_step_up_takes_the_second_factor_of_whoever_has_one(office: Office) -> None:
    ann = await office.person()
    secret, codes = await office.enrolled(ann)
    office.clock.advance(601)
    assert await refused(office.second_factor.new_recovery_codes(ann, ORIGIN)) == "step_up_required"
    error = await refusal(office.step_up(ann))
    assert (error.type, error.details["methods"]) == ("code_required", ["totp", "recovery"])
    assert await refused(office.step_up(ann, office.code(secret), "wrong")) == "invalid_credentials"
    assert await refused(office.step_up(ann, "wrong")) == "invalid_code"
    await office.step_up(ann, office.code(secret))
    fresh = await _codes(office, ann)
    assert await outcome(office.verify(await office.challenge(), codes[0])) == "invalid_code", "replaced"
    assert await outcome(office.verify(await office.challenge(), fresh[0])) == "in"


async def test_guesses_at_the_password_of_a_step_up_are_delayed(office: Office) -> None:
    ann = await office.person()
    outcomes = [await refused(office.step_up(ann, password="wrong")) for _ in range(13)]
    assert outcomes[0] == "invalid_credentials"
    assert outcomes[-1] == "too_many_requests"
    assert "access_token" in await office.login(), "the front door is another"


async def test_factor_of_one_person_does_not_ask_another(office: Office) -> None:
    await office.enrolled(await office.person())
    await office.person("bob@example.test")
    assert "access_token" in await office.login("bob@example.test")
    counted = select(func.count()).select_from(tables.challenges)
    assert (await office.market.rows(counted))[0][0] == 0
    assert (await office.login(ANN))["mfa_required"]
