"""Tokens of an issuer elsewhere, against an issuer that the test runs itself."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp.web
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from sqlalchemy import select, update

from domain.errors import InvalidToken, Unavailable
from domain.federation import FederationPolicy
from domain.identity import Role
from domain.types import JSON
from persistence import tables
from server.federation import (
    IssuerKeys,
    IssuerOptions,
    IssuerTokens,
    JsonFetcher,
    algorithm_of,
    may_fetch,
)
from server.health import Degraded
from server.settings import Settings, SettingsError
from tests.channels.fakes import until
from tests.server.running import Running, running

CLIENT = "mobile-app"
RSA_KEY = rsa.generate_private_key(65_537, 2048)
OTHER_RSA_KEY = rsa.generate_private_key(65_537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


class Issuer:
    """A user pool: publishes keys, signs tokens, and counts how often it is asked."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {"k1": RSA_KEY}
        self.asked = 0
        self.failing = False
        self.hanging = False
        self.url = ""
        self.described: JSON = {}
        self._runner: aiohttp.web.AppRunner | None = None

    async def start(self) -> None:
        app = aiohttp.web.Application()
        app.router.add_get("/pool/.well-known/openid-configuration", self._describe)
        app.router.add_get("/pool/keys", self._publish)
        self._runner = aiohttp.web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = aiohttp.web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}/pool"
        self.described = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _describe(self, _: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.json_response(self.described)

    async def _publish(self, _: aiohttp.web.Request) -> aiohttp.web.Response:
        self.asked += 1
        if self.hanging:
            await asyncio.sleep(30)
        if self.failing:
            return aiohttp.web.Response(status=500)
        return aiohttp.web.json_response({"keys": [self.jwk(kid) for kid in self.keys]})

    def jwk(self, kid: str) -> JSON:
        key = self.keys[kid]
        maker: Any = (
            jwt.algorithms.RSAAlgorithm if hasattr(key, "key_size") and kid[0] == "k" else jwt.algorithms.ECAlgorithm
        )
        shape: JSON = json.loads(maker.to_jwk(key.public_key()))
        return shape | {"kid": kid, "use": "sig"}

    def claims(self, groups: list[str] | None = None, **changes: Any) -> JSON:
        now = int(time.time())
        cognito = {
            "iss": self.url,
            "sub": "subject-1",
            "client_id": CLIENT,
            "token_use": "access",
            "username": "Ada",
            "cognito:groups": ["field-ops"] if groups is None else groups,
            "origin_jti": "sign-in-1",
            "auth_time": now,
            "iat": now,
            "exp": now + 600,
            "jti": "j",
        }
        return {name: value for name, value in (cognito | changes).items() if value is not None}

    def token(self, kid: str = "k1", key: Any = None, headers: JSON | None = None, **changes: Any) -> str:
        key = key or self.keys[kid]
        algorithm = "ES256" if isinstance(key, ec.EllipticCurvePrivateKey) else "RS256"
        return jwt.encode(self.claims(**changes), key, algorithm, headers={"kid": kid, **(headers or {})})


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    issuer = Issuer()
    await issuer.start()
    yield issuer
    await issuer.stop()


class Door:
    """A verifier with a clock that moves when told to."""

    def __init__(self, issuer: Issuer, timeout_seconds: float = 2.0, **options: Any) -> None:
        chosen = IssuerOptions(issuer.url, frozenset({CLIENT, "api"}), **options)
        self.now = 1000.0
        self.fetcher = JsonFetcher(timeout_seconds)
        self.keys = IssuerKeys(chosen, self.fetcher, lambda: self.now)
        self.tokens = IssuerTokens(chosen, self.keys)

    async def refuses(self, token: str) -> bool:
        try:
            await self.tokens.verify(token)
        except InvalidToken:
            return True
        return False


async def test_a_cognito_access_token_says_who_it_is_about(issuer: Issuer) -> None:
    identity, expires_at = await Door(issuer).tokens.verify(issuer.token())
    assert (identity.issuer, identity.subject, identity.name) == (issuer.url, "subject-1", "Ada")
    assert (identity.sign_in, identity.email) == ("sign-in-1", None)
    assert identity.groups == {"field-ops"}
    assert 590 < expires_at.timestamp() - time.time() <= 600


async def test_a_token_after_rfc_9068_counts_by_its_audience(issuer: Issuer) -> None:
    issuer.keys = {"e1": EC_KEY}
    door = Door(issuer, algorithms=("RS256", "ES256"), groups_claim="teams")
    rfc9068: JSON = {"token_use": None, "aud": ["api", "other"], "client_id": "whoever", "teams": ["a"]}
    identity, _ = await door.tokens.verify(issuer.token("e1", headers={"typ": "at+jwt"}, **rfc9068))
    assert identity.groups == {"a"}
    assert await door.refuses(issuer.token("e1", headers={"typ": "JWT"}, **rfc9068)), "it may be an ID token"
    elsewhere = rfc9068 | {"aud": "other", "client_id": CLIENT}
    assert await door.refuses(issuer.token("e1", headers={"typ": "at+jwt"}, **elsewhere)), "for another API"


WRONG_CLAIMS: dict[str, JSON] = {
    "another issuer": {"iss": "https://evil.example.org"},
    "almost the issuer": {"iss": "http://127.0.0.1/pool/"},
    "another client": {"client_id": "somebody-elses"},
    "no client": {"client_id": None},
    "an ID token": {"token_use": "id", "aud": CLIENT},
    "a refresh token": {"token_use": "refresh"},
    "no kind": {"token_use": None},
    "another audience": {"aud": "elsewhere"},
    "expired": {"exp": int(time.time()) - 60},
    "no expiry": {"exp": None},
    "no time of issue": {"iat": None},
    "issued tomorrow": {"iat": int(time.time()) + 86_400},
    "not yet": {"nbf": int(time.time()) + 3_600},
    "nobody": {"sub": None},
    "an empty subject": {"sub": ""},
    "a subject that a database takes for another": {"sub": "subject-1 "},
}


@pytest.mark.parametrize("what", WRONG_CLAIMS)
async def test_tokens_with_wrong_claims_are_refused(issuer: Issuer, what: str) -> None:
    assert await Door(issuer).refuses(issuer.token(**WRONG_CLAIMS[what]))


async def test_tokens_that_are_not_signed_as_they_must_be_are_refused(issuer: Issuer) -> None:
    issuer.keys["k9"] = OTHER_RSA_KEY
    door = Door(issuer)
    secret = json.dumps(issuer.jwk("k1")).encode()
    head, body, _ = jwt.encode(issuer.claims(), "x" * 32, "HS256", headers={"kid": "k1"}).split(".")
    mac = hmac.digest(secret, f"{head}.{body}".encode(), "sha256")
    confused = f"{head}.{body}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    forged = {
        "another key": issuer.token("k1", OTHER_RSA_KEY),
        "an algorithm that is not configured": issuer.token("k1", EC_KEY),
        "none": jwt.encode(issuer.claims(), "", "none", headers={"kid": "k1"}),
        "the public key as a secret": confused,
        "no kid": jwt.encode(issuer.claims(), RSA_KEY, "RS256"),
        "a key of its own": issuer.token(headers={"jwk": issuer.jwk("k1")}),
        "a place for keys": issuer.token(headers={"jku": "https://evil.example.org/keys"}),
        "critical": issuer.token(headers={"crit": ["exp"]}),
        "too long": issuer.token(filler="x" * 9_000),
        "no token": "eyJ.eyJ.x",
        "nothing": "",
    }
    for what, token in forged.items():
        assert await door.refuses(token), what
    await door.tokens.verify(issuer.token("k9"))


async def test_keys_for_something_else_or_too_weak_do_not_count(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer.keys["k2"] = rsa.generate_private_key(65_537, 1024)  # noqa: S505 — that is the point
    door = Door(issuer)
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        weak = issuer.token("k2")
    assert await door.refuses(weak)
    real = issuer.jwk

    def for_encryption(kid: str) -> JSON:
        return real(kid) | {"use": "enc"}

    monkeypatch.setattr(issuer, "jwk", for_encryption)
    with pytest.raises(Unavailable):
        await Door(issuer).tokens.verify(issuer.token())


# --- the keys ---------------------------------------------------------------------------------------------------------


async def test_keys_are_fetched_once_for_all_who_wait_and_kept(issuer: Issuer) -> None:
    door = Door(issuer)
    await asyncio.gather(*(door.tokens.verify(issuer.token()) for _ in range(20)))
    door.now += 3_000
    await door.tokens.verify(issuer.token())
    assert issuer.asked == 1
    door.now += 1_000
    await door.tokens.verify(issuer.token())
    assert issuer.asked == 2


async def test_a_rotation_is_noticed_by_its_unknown_kid(issuer: Issuer) -> None:
    door = Door(issuer)
    await door.tokens.verify(issuer.token())
    issuer.keys = {"k2": OTHER_RSA_KEY}
    assert await door.refuses(issuer.token("k2")), "fetched a moment ago"
    door.now += 31
    await door.tokens.verify(issuer.token("k2"))
    assert await door.refuses(issuer.token("k1", RSA_KEY)), "withdrawn"
    assert issuer.asked == 2


async def test_guessed_kids_cost_the_issuer_one_question_in_half_a_minute(issuer: Issuer) -> None:
    door = Door(issuer)
    for number in range(50):
        assert await door.refuses(issuer.token(f"guess-{number}", RSA_KEY))
    assert issuer.asked == 1
    door.now += 31
    assert await door.refuses(issuer.token("guess", RSA_KEY))
    assert issuer.asked == 2


async def test_while_the_issuer_is_away_known_keys_count_for_a_day(issuer: Issuer) -> None:
    door = Door(issuer)
    await door.tokens.verify(issuer.token())
    issuer.failing = True
    door.now += 7_200
    await door.tokens.verify(issuer.token())
    with pytest.raises(Degraded):
        await door.keys.check()
    with pytest.raises(Unavailable):
        await door.tokens.verify(issuer.token("k2", OTHER_RSA_KEY))
    door.now += 80_000
    with pytest.raises(Unavailable):
        await door.tokens.verify(issuer.token())
    issuer.failing = False
    door.now += 31
    await door.tokens.verify(issuer.token())
    await door.keys.check()


async def test_an_issuer_that_hangs_is_not_waited_for(issuer: Issuer) -> None:
    issuer.hanging = True
    door = Door(issuer, timeout_seconds=0.2)
    async with asyncio.timeout(2):
        with pytest.raises(Unavailable):
            await door.tokens.verify(issuer.token())
        with pytest.raises(Unavailable):
            await door.tokens.verify(issuer.token())
    assert issuer.asked == 1


@pytest.mark.parametrize(
    "described",
    [{"issuer": "https://evil.example.org"}, {"jwks_uri": "http://evil.example.org/keys"}, {"jwks_uri": 7}],
)
async def test_a_discovery_document_of_somebody_else_is_not_believed(issuer: Issuer, described: JSON) -> None:
    issuer.described |= described
    with pytest.raises(Unavailable):
        await Door(issuer).tokens.verify(issuer.token())
    assert issuer.asked == 0


@pytest.mark.parametrize(
    "keys_at",
    ["http://127.0.0.1:9200/keys", "http://localhost/keys", "http://169.254.169.254/keys", "file:///keys", None],
)
async def test_an_issuer_elsewhere_cannot_send_us_to_what_only_this_machine_reaches(keys_at: str | None) -> None:
    asked: list[str] = []

    async def fetch(url: str) -> JSON:
        asked.append(url)
        return {"issuer": "https://idp.example.org", "jwks_uri": keys_at}

    with pytest.raises(Unavailable):
        await IssuerKeys(IssuerOptions("https://idp.example.org", frozenset({CLIENT})), fetch).find("k1")
    assert asked == ["https://idp.example.org/.well-known/openid-configuration"]


def test_keys_come_over_tls_or_from_this_machine() -> None:
    assert may_fetch("https://issuer.example.org/keys")
    assert may_fetch("http://127.0.0.1:1234/keys")
    for url in ("http://issuer.example.org/keys", "file:///etc/passwd", "ftp://x/y", ""):
        assert not may_fetch(url), url


@pytest.mark.parametrize("token", ["", "a.b.c", "x" * 10_000, "eyJhbGciOjF9.e30.x", "\ud800"])
def test_what_is_no_token_has_no_algorithm(token: str) -> None:
    assert algorithm_of(token) is None


# --- people -----------------------------------------------------------------------------------------------------------


def test_the_issuer_gives_and_takes_only_the_roles_in_its_map() -> None:
    policy = FederationPolicy({"ops": Role.OPERATIONS, "boss": Role.ADMIN})
    customer, provider = frozenset({Role.CUSTOMER}), Role.PROVIDER
    assert policy.roles(frozenset({"ops", "unheard"}), customer) == {Role.CUSTOMER, Role.OPERATIONS}
    assert policy.roles(frozenset({"boss"}), frozenset({provider, Role.OPERATIONS})) == {provider, Role.ADMIN}
    assert policy.roles(frozenset(), frozenset({provider, Role.ADMIN})) == {provider}


def federated(issuer: Issuer, **more: Any) -> JSON:
    return {
        "oidc_issuer": issuer.url,
        "oidc_client_ids": (CLIENT,),
        "oidc_group_roles": ("field-ops=operations",),
        **more,
    }


async def users(server: Running) -> list[Any]:
    async def work(connection: Any) -> list[Any]:
        return list((await connection.execute(select(tables.users))).all())

    return await server.app.database.read(work)


async def test_a_federated_person_uses_rest_and_the_socket_as_one_account(issuer: Issuer, database_url: str) -> None:
    async with running(database_url, **federated(issuer)) as server:
        token = issuer.token()
        # At once, as an app does that has just signed in: one account comes of it.
        statuses = await asyncio.gather(*(server.rest(token, "provider.list") for _ in range(5)))
        assert {status for status, _ in statuses} == {200}, "its group makes it operations"
        async with await server.socket(token) as socket:
            assert socket.hello["user"]["roles"] == ["operations"]
            assert "admin:bookings" in socket.hello["channels"]
            (user,) = await users(server)
            assert user.id == socket.hello["user"]["id"]
            assert (user.name, user.email.partition("@")[2]) == ("Ada", "federated.invalid")

            # The next token has other groups: the socket that takes it loses the operators' feed.
            await socket.call("session.refresh", token=issuer.token(groups=[]))
            assert (await socket.ask("provider.list"))["error"]["data"]["type"] == "not_found"
            assert (await socket.ask("channel.presence", channel="admin:bookings"))["error"]["data"][
                "type"
            ] == "not_found"


async def test_signing_out_ends_the_sign_in_and_its_sockets_until_a_new_one(issuer: Issuer, sqlite_url: str) -> None:
    async with running(sqlite_url, **federated(issuer)) as server:
        token = issuer.token()
        async with await server.socket(token) as socket:
            headers = {"Authorization": f"Bearer {token}"}
            async with server.http.post(f"{server.url}/auth/logout", headers=headers) as answer:
                assert answer.status == 204
            assert await socket.ends() == 4503
        assert (await server.rest(token, "service.list"))[0] == 401
        assert (await server.rest(issuer.token(jti="another"), "service.list"))[0] == 401, "of the same sign-in"
        assert (await server.rest(issuer.token(origin_jti="sign-in-2"), "service.list"))[0] == 200


async def test_an_account_that_was_here_before_is_not_taken_over_by_its_address(
    issuer: Issuer, sqlite_url: str
) -> None:
    async with running(sqlite_url, **federated(issuer)) as server:
        local = await server.user("ada@example.org", Role.ADMIN)
        token = issuer.token(email="Ada@example.org", email_verified=True)
        assert (await server.rest(token, "service.list"))[0] == 200
        assert (await server.rest(token, "audit.list"))[0] == 404
        assert {user.id for user in await users(server)} > {local}


async def test_nobody_signs_in_here_with_a_password_as_a_federated_person(issuer: Issuer, sqlite_url: str) -> None:
    async with running(sqlite_url, **federated(issuer)) as server:
        await server.rest(issuer.token(email="new@example.org", email_verified=True), "service.list")
        (user,) = await users(server)
        assert user.email == "new@example.org"
        for password in ("!", "", "whatever it may be"):
            body = {"email": user.email, "password": password}
            async with server.http.post(f"{server.url}/auth/login", json=body) as answer:
                assert answer.status == 401


async def test_a_reset_gives_a_federated_person_no_password_here(
    issuer: Issuer, sqlite_url: str, tmp_path: Path
) -> None:
    """It would go on counting once the issuer has closed the account, with the roles that the issuer gave."""
    mail = tmp_path / "mail"
    async with running(sqlite_url, **federated(issuer), mail_directory=str(mail)) as server:
        await server.rest(issuer.token(email="new@example.org", email_verified=True), "service.list")
        await server.user("local@example.org", Role.CUSTOMER)
        for email in ("new@example.org", "local@example.org"):
            async with server.http.post(f"{server.url}/auth/password/reset", json={"email": email}) as answer:
                assert answer.status == 202
        await until(lambda: any(mail.glob("*.txt")))
        (letter,) = mail.glob("*.txt")
        assert "local@example.org" in letter.read_text()


async def test_strangers_and_disabled_people_are_kept_out(issuer: Issuer, sqlite_url: str) -> None:
    async with running(sqlite_url, **federated(issuer, oidc_new_users="refuse")) as server:
        assert (await server.rest(issuer.token(), "service.list"))[0] == 401
        assert await users(server) == []
    async with running(sqlite_url, **federated(issuer)) as server:
        assert (await server.rest(issuer.token(), "service.list"))[0] == 200
        now = server.app.realtime._node.clock.now()

        async def disable(connection: Any) -> None:
            await connection.execute(update(tables.users).values(disabled_at=now))

        await server.app.database.write(disable)
        assert (await server.rest(issuer.token(), "service.list"))[0] == 401
        assert (await server.rest(issuer.token(origin_jti="sign-in-2"), "service.list"))[0] == 401


async def test_our_own_tokens_count_as_before_and_foreign_ones_only_when_configured(
    issuer: Issuer, sqlite_url: str
) -> None:
    async with running(sqlite_url, **federated(issuer)) as server:
        await server.user("one@x.test", Role.CUSTOMER)
        assert (await server.rest(await server.token("one@x.test"), "service.list"))[0] == 200
    async with running(sqlite_url) as server:
        assert (await server.rest(issuer.token(), "service.list"))[0] == 401


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OIDC_ISSUER", "http://issuer.example.org"),
        ("OIDC_ISSUER", "https://issuer.example.org?x=1"),
        ("OIDC_GROUP_ROLES", "ops=king"),
        ("OIDC_GROUP_ROLES", "operations"),
        ("OIDC_ALGORITHMS", "HS256"),
    ],
)
def test_wrong_settings_stop_the_start(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        Settings.load({f"FIXNADO_{name}": value}, None)


def test_an_issuer_needs_to_know_for_whom_its_tokens_are() -> None:
    with pytest.raises(SettingsError, match="OIDC_CLIENT_IDS"):
        Settings.load({"FIXNADO_OIDC_ISSUER": "https://issuer.example.org"}, None)
