from __future__ import annotations

import asyncio
import time
from typing import Any

import jwt
import pytest
from jwt import PyJWKSet

from tests.acceptance.client import CUSTOMER, PASSWORD, Answer, Rest, new_key
from tests.acceptance.demo import Demo
from tests.acceptance.shapes import TIME, ULID, assert_problem


async def test_register_login_me_refresh_logout(rest: Rest) -> None:
    email = f"{new_key()}@people.test"
    wish = {"email": email.upper(), "password": PASSWORD, "name": "Zoë", "role": "customer"}
    registered = await rest.post("/auth/register", wish)
    assert registered.status == 201
    user = registered.body["user"]
    assert user == {"id": user["id"], "email": email, "name": "Zoë", "roles": ["customer"], "provider_ids": []}
    assert ULID.fullmatch(user["id"])

    device = {"id": "d1", "name": "Phone", "platform": "ios"}
    login = await rest.post("/auth/login", {"email": email, "password": PASSWORD, "device": device})
    assert login.status == 200
    tokens = login.body
    assert tokens.keys() == {"access_token", "token_type", "expires_in", "refresh_token", "user"}
    assert (tokens["token_type"], tokens["user"]) == ("Bearer", user)
    assert tokens["expires_in"] in {899, 900}
    assert login.headers["Cache-Control"] == "no-store"

    me = await rest.get("/auth/me", token=tokens["access_token"])
    assert (me.status, me.body) == (200, {"user": user})

    fresh = await rest.post("/auth/refresh", {"refresh_token": tokens["refresh_token"]})
    assert fresh.status == 200
    assert fresh.body.keys() == tokens.keys()
    assert fresh.body["refresh_token"] != tokens["refresh_token"]

    token = fresh.body["access_token"]
    sessions = (await rest.get("/auth/sessions", token=token)).body["sessions"]
    assert [(session["device"], session["current"]) for session in sessions] == [(device, True)]
    assert all(TIME.fullmatch(sessions[0][name]) for name in ("created_at", "last_used_at", "expires_at"))

    gone = await rest.post("/auth/logout", token=token)
    assert (gone.status, gone.raw) == (204, b"")
    for old in (token, tokens["access_token"]):
        assert_problem(await rest.get("/auth/me", token=old), 401, "invalid_token")
    assert_problem(
        await rest.post("/auth/refresh", {"refresh_token": fresh.body["refresh_token"]}), 401, "invalid_token"
    )


async def test_a_registered_provider_has_a_provider_id(rest: Rest) -> None:
    email = await rest.register("provider")
    user = (await rest.login(email))["user"]
    assert user["roles"] == ["provider"]
    assert len(user["provider_ids"]) == 1


async def test_an_address_is_registered_once(rest: Rest) -> None:
    again = {"email": CUSTOMER, "password": PASSWORD, "name": "Me too", "role": "customer"}
    assert_problem(await rest.post("/auth/register", again), 409, "email_taken")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"password": "short"}, "password"),
        ({"email": "nobody"}, "email"),
        ({"role": "admin"}, "role"),
        ({"role": "operations"}, "role"),
        ({"name": "  "}, "name"),
        ({"name": 7}, "name"),
        ({"roles": ["admin"]}, "roles"),
        ({"id": "01J"}, "id"),
    ],
)
async def test_registering_says_what_is_wrong(rest: Rest, change: dict[str, Any], where: str) -> None:
    wish = {"email": f"{new_key()}@people.test", "password": PASSWORD, "name": "A", "role": "customer"}
    answer = await rest.post("/auth/register", wish | change)
    assert_problem(answer, 422, "invalid_params")
    assert [error["where"] for error in answer.body["errors"]] == [where]
    assert all(error["why"] for error in answer.body["errors"])
    # A value may be secret, so it is never sent back.
    assert "short" not in answer.raw.decode()


async def test_wrong_password_and_unknown_user_look_the_same(rest: Rest) -> None:
    async def attempt(email: str, password: str) -> tuple[Answer, float]:
        started = time.perf_counter()
        answer = await rest.post("/auth/login", {"email": email, "password": password})
        return answer, time.perf_counter() - started

    wrong, unknown, empty, long = [
        await attempt(*pair)
        for pair in (
            (CUSTOMER, "not-the-password"),
            ("nobody@demo.test", "not-the-password"),
            (CUSTOMER, ""),
            ("nobody@demo.test", "x" * 1000),
        )
    ]
    shapes = []
    for answer, _ in (wrong, unknown, empty, long):
        assert_problem(answer, 401, "invalid_credentials")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        shapes.append({**answer.body, "correlation_id": ""})
        assert set(answer.headers) == set(wrong[0].headers)
    assert all(shape == shapes[0] for shape in shapes)

    # The same work: both hash once. The least of several is compared, as noise only ever adds.
    least = {
        email: min([(await attempt(email, "not-the-password"))[1] for _ in range(5)])
        for email in (CUSTOMER, "nobody@demo.test")
    }
    quick, slow = sorted(least.values())
    assert slow < 3 * quick, least


async def test_a_refresh_token_is_good_once_and_its_second_use_ends_the_sign_in(rest: Rest) -> None:
    email = await rest.register()
    first = await rest.login(email)
    second = (await rest.post("/auth/refresh", {"refresh_token": first["refresh_token"]})).body
    # A client that lost the reply gets the same successor, as long as nobody has used it.
    retry = (await rest.post("/auth/refresh", {"refresh_token": first["refresh_token"]})).body
    assert retry["refresh_token"] == second["refresh_token"]
    third = await rest.post("/auth/refresh", {"refresh_token": second["refresh_token"]})
    assert third.status == 200
    reused = await rest.post("/auth/refresh", {"refresh_token": first["refresh_token"]})
    assert_problem(reused, 401, "invalid_token")
    assert_problem(
        await rest.post("/auth/refresh", {"refresh_token": third.body["refresh_token"]}), 401, "invalid_token"
    )
    assert_problem(await rest.get("/auth/me", token=third.body["access_token"]), 401, "invalid_token")


async def test_refreshes_at_once_leave_one_live_successor(rest: Rest) -> None:
    tokens = await rest.login(await rest.register())
    answers = await asyncio.gather(
        *(rest.post("/auth/refresh", {"refresh_token": tokens["refresh_token"]}) for _ in range(8))
    )
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body["refresh_token"] for answer in answers}) == 1


async def test_sessions_are_ended_one_by_one_and_all_at_once(rest: Rest) -> None:
    email = await rest.register()
    mine, other, third = [(await rest.login(email))["access_token"] for _ in range(3)]
    sessions = (await rest.get("/auth/sessions", token=mine)).body["sessions"]
    assert sorted(session["current"] for session in sessions) == [False, False, True]
    foreign = (await rest.login(await rest.register()))["access_token"]
    victim = next(session["id"] for session in sessions if not session["current"])

    refused = await rest.send("DELETE", f"/auth/sessions/{victim}", token=foreign)
    missing = await rest.send("DELETE", "/auth/sessions/01J00000000000000000000000", token=foreign)
    for answer in (refused, missing):
        assert_problem(answer, 404, "not_found")
    assert {**refused.body, "correlation_id": ""} == {**missing.body, "correlation_id": ""}

    assert (await rest.send("DELETE", f"/auth/sessions/{victim}", token=mine)).status == 204
    statuses = [(await rest.get("/auth/me", token=token)).status for token in (mine, other, third)]
    assert statuses[0] == 200
    assert sorted(statuses) == [200, 200, 401]
    assert (await rest.post("/auth/logout-all", token=mine)).status == 204
    assert [(await rest.get("/auth/me", token=token)).status for token in (mine, other, third)] == [401] * 3


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer ", "Bearer nonsense", "Basic YTpi", "Bearer a.b.c", "Bearer " + "x" * 5000]
)
async def test_what_needs_a_token_says_so(rest: Rest, authorization: str) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    for method, path in (
        ("GET", "/auth/me"),
        ("GET", "/auth/sessions"),
        ("POST", "/auth/logout"),
        ("POST", "/auth/logout-all"),
        ("DELETE", "/auth/sessions/x"),
        ("POST", "/commands/booking.list"),
        ("POST", "/commands/no.such"),
    ):
        answer = await rest.send(method, path, headers=headers)
        assert answer.status == 401, (method, path, answer)
        assert_problem(answer, 401, answer.body["type"])
        assert answer.body["type"] in {"not_authenticated", "invalid_token"}


async def test_a_refresh_token_is_no_access_token_and_the_other_way_round(rest: Rest) -> None:
    tokens = await rest.login(CUSTOMER)
    assert_problem(await rest.get("/auth/me", token=tokens["refresh_token"]), 401, "invalid_token")
    assert_problem(await rest.post("/auth/refresh", {"refresh_token": tokens["access_token"]}), 422, "invalid_params")


async def test_a_cookie_is_no_proof(rest: Rest) -> None:
    token = (await rest.login(CUSTOMER))["access_token"]
    headers = {"Cookie": f"token={token}; access_token={token}; session={token}"}
    assert_problem(await rest.get("/auth/me", headers=headers), 401, "not_authenticated")


async def test_the_published_keys_verify_a_token(rest: Rest) -> None:
    token = (await rest.login(CUSTOMER))["access_token"]
    published = await rest.get("/.well-known/jwks.json")
    assert published.status == 200
    assert not any("d" in key for key in published.body["keys"]), "a private key is out"
    kid = jwt.get_unverified_header(token)["kid"]
    key = next(key for key in PyJWKSet.from_dict(published.body).keys if key.key_id == kid)
    claims = jwt.decode(
        token,
        key.key,
        algorithms=["EdDSA", "ES256"],
        audience="fixnado",
        options={"require": ["exp", "iat", "jti", "aud", "iss", "sub", "sid"]},
    )
    assert claims["exp"] - claims["iat"] == 900


async def test_secrets_are_in_no_answer_and_in_no_log(rest: Rest, demo_server: Demo) -> None:
    canary = f"Canary-{new_key()}"
    email = await rest.register(password=canary)
    tokens = await rest.login(email, canary)
    answers = [
        await rest.post("/auth/login", {"email": email, "password": canary + "x"}),
        await rest.post("/auth/login", {"email": email, "password": canary, "token": canary}),
        await rest.post("/auth/register", {"email": email, "password": canary, "name": "A", "role": canary}),
        await rest.post("/auth/refresh", {"refresh_token": canary}),
        await rest.get(f"/auth/me?token={canary}", token=canary),
    ]
    assert not any(canary in answer.raw.decode() for answer in answers)
    log = demo_server.output()
    for secret in (canary, tokens["access_token"], tokens["refresh_token"]):
        assert secret not in log
