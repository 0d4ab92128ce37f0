"""How much speaks for a sign-in: the score by itself, and what follows from it at the door."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from domain.errors import Forbidden, InvalidToken
from domain.identity import SignIn
from domain.letters import LetterKind
from domain.trust import EXPLANATIONS, REFUSE_BELOW, Circumstances, assess
from domain.types import JSON, Point
from persistence import tables
from tests.domain.marketplace import ORIGIN, START, Marketplace, refused
from tests.domain.office import ANN, Office, from_address

LONDON, SYDNEY = Point(51.5, -0.12), Point(-33.9, 151.2)
HOME = "198.51.100.0/24"
BEFORE = SignIn(
    id="s", user_id="u", device={}, created_at=START - timedelta(hours=2), last_used_at=START,
    expires_at=START + timedelta(days=9), network=HOME, lat=LONDON.lat, lon=LONDON.lon,
)  # fmt: skip
USUAL = Circumstances(
    now=START, history=(BEFORE,), named=True, known=True, network=HOME, place=LONDON, failures=0
)  # fmt: skip
STOLEN = replace(BEFORE, revoked_reason="reuse", revoked_at=START - timedelta(days=1))


@pytest.mark.parametrize(
    ("seen", "part", "points"),
    [
        (USUAL, "known_device", 30),
        (replace(USUAL, known=False), "known_device", 0),
        (replace(USUAL, known=False, history=()), "known_device", 15),
        (replace(USUAL, known=False, named=False), "known_device", 15),
        (USUAL, "network", 25),
        (replace(USUAL, network="203.0.113.0/24"), "network", 5),
        (replace(USUAL, network=None), "network", 15),
        (replace(USUAL, history=()), "network", 15),
        (USUAL, "travel", 20),
        (replace(USUAL, place=SYDNEY), "travel", 0),
        (replace(USUAL, place=SYDNEY, now=START + timedelta(hours=20)), "travel", 20),
        (replace(USUAL, place=None), "travel", 15),
        (replace(USUAL, history=(replace(BEFORE, lat=None),)), "travel", 15),
        (USUAL, "failures", 15),
        (replace(USUAL, failures=2), "failures", 9),
        (replace(USUAL, failures=50), "failures", 0),
        (USUAL, "token_reuse", 10),
        (replace(USUAL, history=(STOLEN,)), "token_reuse", 0),
        (replace(USUAL, history=(STOLEN,), now=START + timedelta(days=30)), "token_reuse", 10),
    ],
)  # fmt: skip
def test_component_has_the_points_that_its_explanation_says(seen: Circumstances, part: str, points: int) -> None:
    parts = assess(seen).parts
    assert parts[part] == points
    assert str(points) in EXPLANATIONS[part] or part == "failures"
    assert parts.keys() == EXPLANATIONS.keys()


@given(
    named=st.booleans(),
    known=st.booleans(),
    network=st.sampled_from([None, HOME, "203.0.113.0/24"]),
    place=st.sampled_from([None, LONDON, SYDNEY]),
    failures=st.integers(0, 10**6),
    history=st.lists(st.sampled_from([BEFORE, STOLEN, replace(BEFORE, network=None, lat=None)]), max_size=3),
)
def test_score_is_0_to_100_and_a_known_device_is_never_refused(
    named: bool, known: bool, network: str | None, place: Point | None, failures: int, history: list[SignIn]
) -> None:
    trust = assess(Circumstances(START, history, named, known, network, place, failures))
    assert 0 <= trust.score <= 100
    if known:
        assert trust.score >= REFUSE_BELOW, "whatever strangers do in the owner's name"
    assert assess(USUAL).score == 100


# --- at the door ------------------------------------------------------------------------------------------------------


@pytest.fixture
def office(empty_market: Marketplace) -> Office:
    return Office(empty_market)


PHONE = {"id": "phone-1", "name": "Phone", "platform": "ios"}
LAPTOP = {"id": "laptop-9", "name": "Laptop", "platform": "web"}
AT_HOME = from_address("198.51.100.7", place=LONDON)
NEXT_DOOR = from_address("198.51.100.9", place=LONDON)
ABROAD = from_address("203.0.113.9", place=SYDNEY)


async def settled(office: Office) -> JSON:
    """Ann, who has signed in from home with her phone."""
    await office.register()
    tokens = await office.login(origin=AT_HOME, device=PHONE)
    office.clock.advance(60)
    return tokens


async def test_sign_in_keeps_its_score_and_what_it_is_made_of(office: Office) -> None:
    first = await settled(office)
    ann = await office.actor(await office.login(origin=NEXT_DOOR, device=PHONE))
    new, old = (await office.accounts.sessions(ann))["sessions"]
    assert old["trust_parts"] == {"known_device": 15, "network": 15, "travel": 15, "failures": 15, "token_reuse": 10}
    assert new["trust_parts"] == {"known_device": 30, "network": 25, "travel": 20, "failures": 15, "token_reuse": 10}
    assert (old["trust"], new["trust"], new["network"]) == (70, 100, HOME)
    assert first["user"]["id"] == ann.user_id


async def test_little_trust_asks_for_a_code_by_mail_of_whoever_has_no_second_factor(office: Office) -> None:
    await settled(office)
    asked = await office.login(origin=ABROAD, device=LAPTOP)
    assert (asked["mfa_required"], asked["methods"]) == (True, ["email"])
    letter = office.letters.newest(LetterKind.CODE)
    assert letter.to == ANN
    assert await refused(office.verify(asked["challenge"], "000000" if letter.secret != "000000" else "1")) == (
        "invalid_code"
    )
    await office.verify(asked["challenge"], letter.secret)
    assert "trust_low" in office.security.kinds()
    office.letters.away = True
    assert await refused(office.login(origin=ABROAD, device={"id": "third"})) == "unavailable", "fails closed"


async def test_little_trust_asks_for_the_second_factor_of_whoever_has_one(office: Office) -> None:
    ann = await office.actor(await settled(office))
    await office.enrolled(ann)
    asked = await office.login(origin=ABROAD, device=LAPTOP)
    assert asked["methods"] == ["totp", "recovery"]


async def test_next_to_no_trust_is_refused_and_recorded(office: Office) -> None:
    await settled(office)
    for _ in range(4):
        await refused(office.login(password="wrong", origin=ABROAD, device=LAPTOP))
    assert await refused(office.login(origin=ABROAD, device=LAPTOP)) == "sign_in_refused"
    kind, user_id, details = office.security.events[-1]
    assert (kind, details["score"]) == ("login_refused", sum(details["parts"].values()))
    assert details["score"] < REFUSE_BELOW
    assert user_id
    assert await office.market.count(tables.sessions) == 1
    # Its owner gets in as ever.
    assert "access_token" in await office.login(origin=AT_HOME, device=PHONE)


async def test_place_that_is_not_known_is_held_against_nobody(office: Office) -> None:
    await office.register()
    for origin in (ORIGIN, from_address("192.0.2.1"), from_address("2001:db8::1"), ABROAD):
        assert "access_token" in await office.login(origin=origin)


# --- devices ----------------------------------------------------------------------------------------------------------


async def test_devices_are_listed_with_their_trust_explained(office: Office) -> None:
    await settled(office)
    office.clock.advance(60)
    ann = await office.actor(await office.login(origin=AT_HOME, device=LAPTOP))
    await office.login(origin=AT_HOME)  # names no device
    answer = await office.accounts.devices(ann)
    assert [(device["name"], device["platform"], device["current"]) for device in answer["devices"]] == [
        ("Laptop", "web", True),
        ("Phone", "ios", False),
    ]
    assert answer["devices"][0]["trust"] == sum(answer["devices"][0]["trust_parts"].values())
    assert answer["explanations"].keys() == answer["devices"][0]["trust_parts"].keys()
    stored = repr(await office.market.rows(select(tables.devices)))
    assert "phone-1" not in stored, "the id speaks for the device, so it is not kept"


async def test_forgetting_a_device_ends_its_sign_ins_and_makes_it_a_stranger(office: Office) -> None:
    phone = await settled(office)
    ann = await office.actor(await office.login(origin=AT_HOME, device=LAPTOP))
    listed = (await office.accounts.devices(ann))["devices"]
    gone = next(device["id"] for device in listed if device["name"] == "Phone")
    await office.accounts.forget_device(ann, gone, ORIGIN)
    with pytest.raises(InvalidToken):
        await office.actor(phone)
    assert (await office.accounts.actor(ann.user_id, ann.session_id)).user_id == ann.user_id
    again = await office.actor(await office.login(origin=AT_HOME, device=PHONE))
    assert (await office.accounts.sessions(again))["sessions"][0]["trust_parts"]["known_device"] == 0


async def test_somebody_elses_device_is_not_there(office: Office) -> None:
    ann = await office.actor(await settled(office))
    (device,) = (await office.accounts.devices(ann))["devices"]
    bob = await office.person("bob@example.test")
    for device_id in (device["id"], "none"):
        with pytest.raises(Forbidden):
            await office.accounts.forget_device(bob, device_id, ORIGIN)
    assert (await office.accounts.devices(bob))["devices"] == []
    assert len((await office.accounts.devices(ann))["devices"]) == 1


async def test_devices_of_one_person_are_bounded(office: Office) -> None:
    await office.register()
    for number in range(55):
        office.clock.advance(1)
        await office.login(device={"id": f"device-{number}", "name": str(number)})
    ann = await office.actor(await office.login(device={"id": "device-54", "name": "54"}))
    devices = (await office.accounts.devices(ann))["devices"]
    assert len(devices) == 50
    assert {device["name"] for device in devices} == {str(number) for number in range(5, 55)}
