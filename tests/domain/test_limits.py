"""Limits at the doors: what is refused before a password is hashed, and that nobody is locked out for good."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from channels.throttle import InProcessLimiter
from domain.accounts import Register
from domain.credentials import ConfirmResetParams, ResetParams
from domain.errors import FixnadoError, TooManyRequests, Unavailable
from domain.letters import Medium
from domain.limits import Delays, Gate, LimitPolicy, Rate, account_key
from domain.networks import line_of, network_of
from domain.second_factor import EnrolParams, SendParams, VerifyParams
from domain.types import Origin
from tests.domain.marketplace import Marketplace, refusal, refused
from tests.domain.office import ANN, PASSWORD, Office, from_address

STRANGER = from_address("203.0.113.9")
OWNER = from_address("198.51.100.7")
PHONE = {"id": "phone-1"}


@pytest.fixture
def office(empty_market: Marketplace) -> Office:
    return Office(empty_market)


async def fail(office: Office, times: int, origin: Origin = STRANGER, email: str = ANN) -> list[str]:
    return [await refused(office.login(email, "wrong", origin)) for _ in range(times)]


@pytest.mark.parametrize("email", [ANN, "nobody@example.test"])
async def test_failures_delay_the_account_known_or_not_and_cost_no_hash(office: Office, email: str) -> None:
    await office.register()
    assert set(await fail(office, 11, email=email)) == {"invalid_credentials"}
    checked = len(office.passwords.verified)
    error = await refusal(office.login(email, PASSWORD, from_address("192.0.2.77")))
    assert isinstance(error, TooManyRequests)
    assert error.retry_after_seconds == pytest.approx(1)
    assert error.details["retry_after_seconds"] == error.retry_after_seconds
    assert len(office.passwords.verified) == checked, "refused before anything was hashed"
    delays = []
    for _ in range(9):
        office.clock.advance(error.retry_after_seconds)
        await fail(office, 1, email=email)
        error = await refusal(office.login(email, "wrong", STRANGER))
        assert isinstance(error, TooManyRequests)
        delays.append(round(error.retry_after_seconds))
    assert delays == [2, 4, 8, 16, 32, 60, 60, 60, 60], "growing, and bounded"


async def test_victim_gets_in_from_a_known_device_while_strangers_keep_failing(office: Office) -> None:
    await office.register()
    await office.login(origin=OWNER, device=PHONE)
    for _ in range(3):
        assert (await fail(office, 13))[-1] == "too_many_requests"
        assert await refused(office.login(origin=OWNER)) == "too_many_requests", "a device nobody has seen"
        assert "access_token" in await office.login(origin=OWNER, device=PHONE)
    # Somebody who has learnt the device's id has no more tries than any other.
    outcomes = [await refused(office.login(password="wrong", origin=STRANGER, device=PHONE)) for _ in range(13)]
    assert outcomes[-1] == "too_many_requests"


async def test_victim_gets_in_from_a_new_device_once_the_delay_is_over(office: Office) -> None:
    await office.register()
    await fail(office, 11)
    for _ in range(20):
        office.clock.advance(60)
        await fail(office, 1)
    office.clock.advance(60)
    assert "access_token" in await office.login(origin=OWNER)
    assert await fail(office, 1) == ["invalid_credentials"], "a success forgives"


async def test_many_attempts_at_once_pass_the_free_ones_and_no_more_for_long(office: Office) -> None:
    await office.register()
    await fail(office, 12)
    office.clock.advance(2)
    checked = len(office.passwords.verified)
    await asyncio.gather(*(refused(office.login(password="wrong", origin=STRANGER)) for _ in range(20)))
    assert len(office.passwords.verified) == checked + 1, "one attempt per delay"


async def test_of_many_first_attempts_at_once_only_the_free_ones_are_checked(office: Office) -> None:
    await office.register()
    checked = len(office.passwords.verified)
    await asyncio.gather(*(refused(office.login(password="wrong", origin=STRANGER)) for _ in range(30)))
    assert len(office.passwords.verified) == checked + LimitPolicy().account.free + 1


async def test_attempts_that_nobody_has_time_to_check_do_not_count(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def busy(*_: object) -> bool:
        raise Unavailable

    await office.register()
    with monkeypatch.context() as patched:
        patched.setattr(office.passwords, "verify", busy)
        assert {await refused(office.login()) for _ in range(30)} == {"unavailable"}
    assert "access_token" in await office.login()


async def test_failures_at_many_accounts_delay_the_address_and_its_neighbours_in_one_line(office: Office) -> None:
    home, other_line = from_address("2001:db8:1:2::1"), from_address("2001:db8:1:3::1")
    for number in range(101):
        await fail(office, 1, home, f"nobody{number}@example.test")
    same_line = from_address("2001:db8:1:2:ffff::9")
    assert await refused(office.login("nobody@example.test", "wrong", same_line)) == "too_many_requests"
    assert await refused(office.login("nobody@example.test", "wrong", other_line)) == "invalid_credentials"


async def test_own_sign_ins_do_not_buy_an_attacker_more_guesses(office: Office) -> None:
    await office.register("mallory@example.test")
    outcomes: list[str] = []
    for number in range(102):
        outcomes += await fail(office, 1, STRANGER, f"victim{number}@example.test")
        if number < 100:
            await office.login("mallory@example.test", origin=STRANGER)
    assert outcomes[-1] == "too_many_requests"


Door = Callable[[Office, Origin], Awaitable[object]]
DOORS: dict[str, Door] = {
    "login": lambda office, origin: office.login(origin=origin),
    "register": lambda office, origin: office.accounts.register(_new_account(), origin),
    "refresh": lambda office, origin: office.accounts.refresh("fxr_x", origin),
    "reset": lambda office, origin: office.credentials.request_reset(ResetParams(email=ANN), origin),
    "confirm": lambda office, origin: office.credentials.confirm_reset(
        ConfirmResetParams(token="fxp_x", new_password="x" * 12), origin
    ),
    "verify": lambda office, origin: office.second_factor.verify(VerifyParams(challenge="x", code="1"), origin),
    "send": lambda office, origin: office.second_factor.send(SendParams(challenge="x", method="sms"), origin),
}


def _new_account() -> Register:
    return Register(email="new@example.test", password=PASSWORD, name="New", role="customer")


@pytest.mark.parametrize("door", DOORS)
async def test_every_door_is_limited_by_address_before_anything_is_done(empty_market: Marketplace, door: str) -> None:
    office = Office(empty_market, LimitPolicy(requests=Rate("auth-requests", 0.5, 3)))
    answers: list[FixnadoError | None] = []
    for _ in range(4):
        try:
            await DOORS[door](office, STRANGER)
            answers.append(None)
        except FixnadoError as error:
            answers.append(error)
    assert not any(isinstance(answer, TooManyRequests) for answer in answers[:3])
    last = answers[3]
    assert isinstance(last, TooManyRequests)
    assert last.retry_after_seconds == pytest.approx(2)
    work = (office.passwords.hashed, len(office.passwords.verified))
    for _ in range(50):
        assert await refused(DOORS[door](office, STRANGER)) == "too_many_requests"
    assert (office.passwords.hashed, len(office.passwords.verified)) == work, "a flood costs no Argon2"
    office.clock.advance(2)
    outcome = (await asyncio.gather(DOORS[door](office, STRANGER), return_exceptions=True))[0]
    assert not isinstance(outcome, TooManyRequests)


async def test_resets_of_one_account_are_bounded_from_wherever_they_are_asked(office: Office) -> None:
    await office.register()
    asked = []
    for number in range(12):
        origin = from_address(f"192.0.2.{number}")
        for email in (ANN, "nobody@example.test"):
            try:
                await office.credentials.request_reset(ResetParams(email=email), origin)
                asked.append((email, "sent"))
            except TooManyRequests:
                asked.append((email, "later"))
    assert [what for email, what in asked if email == ANN] == [what for email, what in asked if email != ANN]
    assert len(office.letters.letters) == 6
    office.clock.advance(900)
    await office.reset_token()


class Distant(InProcessLimiter):
    """A limiter that is asked over a network, so that many questions are under way at once."""

    async def attempt(self, delays: Delays, subject: str) -> float:
        await asyncio.sleep(0)
        return await super().attempt(delays, subject)

    async def charge(self, delays: Delays, subject: str) -> float:
        await asyncio.sleep(0)
        return await super().charge(delays, subject)


async def test_resets_asked_for_at_once_are_bounded_as_they_are_one_by_one() -> None:
    policy = LimitPolicy()
    gate = Gate(Distant(), policy)
    one_account = [gate.reset("ann", f"192.0.2.{number}") for number in range(100)]
    one_address = [gate.letter(f"account {number}", "203.0.113.9") for number in range(100)]
    for asked, free in ((one_account, policy.resets.free), (one_address, policy.letters_from.free)):
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [answer for answer in answers if not isinstance(answer, TooManyRequests)] == [None] * (free + 1)


async def test_strangers_who_ask_for_resets_do_not_keep_the_owner_from_codes(office: Office) -> None:
    actor = await office.person()
    await office.second_factor.enrol(actor, EnrolParams(method="email"), OWNER)
    for number in range(20):
        stranger = from_address(f"192.0.2.{number}")
        await asyncio.gather(office.credentials.request_reset(ResetParams(email=ANN), stranger), return_exceptions=True)
    given = await office.second_factor.enrol(actor, EnrolParams(method="email"), OWNER)
    assert given["sent_to"], "one's own code is sent at once"


async def test_messages_asked_for_from_one_address_are_bounded_whoever_they_go_to(office: Office) -> None:
    sent = 0
    for number in range(30):
        actor = await office.person(f"mule{number}@example.test")
        for _ in range(3):
            try:
                params = EnrolParams(method="sms", phone=f"+4477009{number:05}")
                await office.second_factor.enrol(actor, params, STRANGER)
                sent += 1
            except TooManyRequests:
                pass
    assert sent == len([one for one in office.letters.letters if one.medium is Medium.SMS]) == 51


def test_keys_of_a_limiter_hold_no_address_of_a_person() -> None:
    assert "ann" not in account_key(ANN)
    assert account_key(" ANN@example.test ") == account_key(ANN)
    assert len({account_key(ANN), account_key(ANN, "d"), account_key("b@c.d")}) == 3


@pytest.mark.parametrize(
    ("address", "line", "network"),
    [
        ("203.0.113.9", "203.0.113.9", "203.0.113.0/24"),
        ("::ffff:203.0.113.9", "203.0.113.9", "203.0.113.0/24"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64", "2001:db8:1::/48"),
        ("testclient", "testclient", None),
        ("", "", None),
    ],
)
def test_line_and_network_of_an_address(address: str, line: str, network: str | None) -> None:
    assert (line_of(address), network_of(address)) == (line, network)
