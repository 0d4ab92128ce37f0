from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import InvalidToken
from server.tokens import KeyRing, SigningKey, Tokens

NOW = datetime(2026, 11, 24, 2, 0, 0, tzinfo=UTC)
KEY = SigningKey.generate()


def tokens(ring: KeyRing | None = None, leeway_seconds: float = 10) -> Tokens:
    return Tokens(ring or KeyRing(KEY), life_seconds=900, leeway_seconds=leeway_seconds)


def forge(
    claims: dict[str, Any] | None = None,
    header: dict[str, Any] | None = None,
    without: str | None = None,
    key: Any = KEY.private,
    algorithm: str = "EdDSA",
) -> str:
    """A token that is right but for what the arguments say."""
    issued_at = int(NOW.timestamp())
    body = {"iss": "fixnado", "aud": "fixnado", "sub": "u1", "sid": "s1", "jti": "j1", "iat": issued_at}
    body |= {"exp": issued_at + 900} | (claims or {})
    body.pop(without or "", None)
    headers = {"typ": "at+jwt", "kid": KEY.kid} | (header or {})
    return jwt.encode(body, key, algorithm=algorithm, headers=headers)


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def signed(header: str, payload: str) -> str:
    """A token with these raw parts and a true signature of ours."""
    signature = KEY.private.sign(f"{header}.{payload}".encode())
    return f"{header}.{payload}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def accepted(token: str, now: datetime = NOW, by: Tokens | None = None) -> bool:
    try:
        (by or tokens()).verify(token, now)
    except InvalidToken:
        return False
    return True


def test_an_issued_token_says_who_it_is_for() -> None:
    token, expires_at = tokens().issue("u1", "s1", NOW)
    claims = tokens().verify(token, NOW)
    assert (claims.user_id, claims.session_id) == ("u1", "s1")
    assert claims.expires_at == expires_at == NOW + timedelta(seconds=900)


def test_the_forger_of_these_tests_makes_valid_tokens_when_it_changes_nothing() -> None:
    assert tokens().verify(forge(), NOW).user_id == "u1"


def test_every_token_has_an_id_of_its_own() -> None:
    issued = [tokens().verify(tokens().issue("u1", "s1", NOW)[0], NOW).jti for _ in range(100)]
    assert len(set(issued)) == 100


def test_a_token_ends_with_its_leeway() -> None:
    token, expires_at = tokens().issue("u1", "s1", NOW)
    assert accepted(token, expires_at + timedelta(seconds=9.9))
    assert not accepted(token, expires_at + timedelta(seconds=10))


def test_a_token_from_a_node_whose_clock_is_fast_is_taken() -> None:
    token, _ = tokens().issue("u1", "s1", NOW + timedelta(minutes=5))
    assert tokens().verify(token, NOW).user_id == "u1"


@pytest.mark.parametrize("claim", ["exp", "iat", "jti", "aud", "iss", "sub", "sid"])
def test_a_token_without_a_claim_is_refused(claim: str) -> None:
    assert not accepted(forge(without=claim))


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "somebody-else"},
        {"aud": ["fixnado", "somebody-else"]},
        {"iss": "somebody-else"},
        {"sid": ""},
        {"sid": 7},
        {"exp": "1999999999"},
        {"exp": True},
        {"exp": 1e9},
        {"exp": 10**30},
        {"iat": "now"},
        {"exp": None},
        {"nbf": 9_999_999_999},
    ],
)
def test_a_claim_of_the_wrong_value_or_kind_is_refused(claims: dict[str, Any]) -> None:
    assert not accepted(forge(claims))


@pytest.mark.parametrize("claims", [{"sub": ""}, {"sub": 7}, {"jti": 7}, {"jti": ""}])
def test_a_subject_or_id_that_is_no_text_is_refused(claims: dict[str, Any]) -> None:
    # Signed by hand: PyJWT would not write some of them.
    body = {"iss": "fixnado", "aud": "fixnado", "sub": "u1", "sid": "s1", "jti": "j1", "iat": 1, "exp": 9_999_999_999}
    header = encoded({"alg": "EdDSA", "typ": "at+jwt", "kid": KEY.kid})
    assert accepted(signed(header, encoded(body)))
    assert not accepted(signed(header, encoded(body | claims)))


@pytest.mark.parametrize("typ", ["JWT", "at+JWT", "rt+jwt", "mfa+jwt", "application/at+jwt", ""])
def test_a_token_of_another_type_is_refused(typ: str) -> None:
    assert not accepted(forge(header={"typ": typ}))


@pytest.mark.parametrize(
    "header",
    [
        {"jwk": KEY.public().jwk()},
        {"jku": "https://evil.example/jwks.json"},
        {"x5u": "https://evil.example/cert"},
        {"x5c": ["MII"]},
        {"crit": ["exp"]},
        {"crit": ["b64"], "b64": False},
        {"zip": "DEF"},
        {"kid": "unknown"},
        {"kid": "../../dev/null"},
    ],
)
def test_a_header_with_anything_but_type_algorithm_and_a_known_key_is_refused(header: dict[str, Any]) -> None:
    raw = encoded({"alg": "EdDSA", "typ": "at+jwt", "kid": KEY.kid} | header)
    payload = forge().split(".")[1]
    assert not accepted(signed(raw, payload))


@pytest.mark.parametrize(
    "header", [{"typ": "at+jwt", "alg": "EdDSA"}, {"typ": "at+jwt", "alg": "EdDSA", "kid": 7}, [], 1]
)
def test_a_header_without_a_proper_key_name_is_refused(header: Any) -> None:
    assert not accepted(signed(encoded(header), forge().split(".")[1]))


def public_pem() -> bytes:
    return KEY.private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def hmac_with_the_public_key() -> str:
    # PyJWT refuses to sign so; an attacker does not ask it.
    parts = f"{encoded({'alg': 'HS256', 'typ': 'at+jwt', 'kid': KEY.kid})}.{forge().split('.')[1]}"
    digest = hmac.new(public_pem(), parts.encode(), hashlib.sha256).digest()
    return f"{parts}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


@pytest.mark.parametrize(
    "make",
    [
        lambda: forge(key=None, algorithm="none"),
        lambda: forge(key="x" * 64, algorithm="HS512"),
        lambda: forge(key=ec.generate_private_key(ec.SECP256R1()), algorithm="ES256"),
        lambda: forge(key=SigningKey.generate().private),
        hmac_with_the_public_key,
    ],
    ids=["none", "hmac", "ecdsa", "another key", "hmac with the public key"],
)
def test_another_algorithm_or_key_is_refused(make: Callable[[], str]) -> None:
    assert not accepted(make())


def test_a_changed_token_is_refused() -> None:
    header, payload, signature = forge().split(".")
    body = json.loads(base64.urlsafe_b64decode(payload + "=="))
    assert not accepted(f"{header}.{encoded(body | {'sub': 'admin'})}.{signature}")
    assert not accepted(f"{header}.{payload}.")
    assert not accepted(f"{header}.{payload}")


@given(st.one_of(st.text(max_size=200), st.lists(st.text(max_size=30), min_size=3, max_size=3).map(".".join)))
def test_any_text_is_refused_without_another_error(text: str) -> None:
    assert not accepted(text)


@pytest.mark.parametrize(
    "token",
    [
        f"{'[' * 3000}.x.x",
        signed(base64.urlsafe_b64encode(b"[" * 2000).rstrip(b"=").decode(), "e30"),
        signed(base64.urlsafe_b64encode(b'{"alg":' + b"9" * 2500 + b"}").rstrip(b"=").decode(), "e30"),
        "x" * 1_000_000,
        "\ud800.x.x",
    ],
    ids=["not json", "deep json", "huge number", "too long", "surrogate"],
)
def test_hostile_text_is_refused_without_another_error(token: str) -> None:
    assert not accepted(token)


def test_an_old_key_counts_until_its_deadline_and_no_longer() -> None:
    old, new = KEY, SigningKey.generate()
    token, _ = tokens(KeyRing(old)).issue("u1", "s1", NOW)
    rotated = tokens(KeyRing(old).rotated(new, until=NOW + timedelta(seconds=60)))
    assert accepted(token, NOW + timedelta(seconds=59), rotated)
    assert not accepted(token, NOW + timedelta(seconds=60), rotated)
    newer, _ = rotated.issue("u1", "s1", NOW)
    assert jwt.get_unverified_header(newer)["kid"] == new.kid
    assert accepted(newer, NOW + timedelta(seconds=61), rotated)


def test_a_key_that_comes_back_signs_without_a_deadline() -> None:
    ring = KeyRing(KEY).rotated(SigningKey.generate(), NOW).rotated(KEY, NOW)
    token, _ = tokens(ring).issue("u1", "s1", NOW)
    assert accepted(token, NOW + timedelta(seconds=1), tokens(ring))


def test_the_key_set_has_public_parts_of_living_keys_only() -> None:
    new = SigningKey.generate()
    ring = KeyRing(KEY).rotated(new, until=NOW + timedelta(seconds=60))
    living = tokens(ring).jwks(NOW)["keys"]
    assert {key["kid"] for key in living} == {KEY.kid, new.kid}
    assert all(set(key) == {"kty", "crv", "use", "alg", "kid", "x"} for key in living)
    assert [key["kid"] for key in tokens(ring).jwks(NOW + timedelta(seconds=60))["keys"]] == [new.kid]


def test_another_library_verifies_our_tokens_by_the_key_set() -> None:
    token, _ = tokens().issue("u1", "s1", datetime.now(UTC))
    key = jwt.PyJWKSet.from_dict(tokens().jwks()).keys[0]
    assert jwt.decode(token, key, algorithms=["EdDSA"], audience="fixnado")["sub"] == "u1"


def test_the_name_of_a_key_is_its_thumbprint() -> None:
    # RFC 8037, appendix A.1 (the key) and A.3 (its thumbprint).
    seed = base64.urlsafe_b64decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=")
    pem = Ed25519PrivateKey.from_private_bytes(seed).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    assert SigningKey.from_pem(pem).kid == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_a_signing_key_survives_its_store_and_hides_from_logs() -> None:
    again = SigningKey.from_pem(KEY.pem())
    assert again.kid == KEY.kid
    assert repr(again) == f"SigningKey(kid={KEY.kid!r})"
    with pytest.raises(ValueError, match="not an Ed25519 key"):
        SigningKey.from_pem(
            ec.generate_private_key(ec.SECP256R1()).private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


def test_a_remembered_token_is_judged_anew_each_time() -> None:
    door = tokens()
    token, expires_at = door.issue("u1", "s1", NOW)
    assert accepted(token, NOW, door)
    assert accepted(token, NOW, door)
    assert not accepted(token[:-2] + ("AA" if token[-2:] != "AA" else "BB"), NOW, door)
    door.ring = KeyRing(SigningKey.generate())
    assert not accepted(token, NOW, door)
    door.ring = KeyRing(KEY)
    assert accepted(token, expires_at + timedelta(seconds=9), door)
    assert not accepted(token, expires_at + timedelta(seconds=10), door)


def test_a_bounded_number_of_tokens_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.tokens.REMEMBERED_TOKENS", 3)
    door = tokens()
    issued = [door.issue("u1", "s1", NOW)[0] for _ in range(5)]
    assert all(accepted(token, NOW, door) for token in issued * 2)
    assert len(door._verified) == 3
