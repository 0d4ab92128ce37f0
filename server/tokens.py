"""Access tokens: one strict wrapper around PyJWT.

A token is a JWT (RFC 7519) of the type ``at+jwt`` (RFC 9068), signed with Ed25519 (RFC 8037). PyJWT alone takes a token
without ``exp``, does not look at ``typ`` and leaves embedded keys to its caller; RFC 8725 asks for all of it, so every
check is here and nowhere else:

* the algorithm is pinned to EdDSA, whatever the header says (RFC 8725, sections 3.1 and 3.2);
* keys come from the :class:`KeyRing` by ``kid`` alone; a header that brings a key, or a place to fetch one, is refused
  (3.10);
* ``typ`` must match, so a refresh, challenge or foreign token is never taken for an access token (3.11);
* ``exp iat jti aud iss sub sid`` must be there and have their types (3.8, 3.9, 3.12);
* any ``crit`` is refused, as this product defines no critical extension (RFC 7515, section 4.1.11).

Whether the session behind a valid token was revoked is not in the token: the caller asks what it knows of revocations.

A token that was verified is remembered by its SHA-256, since clients that come back show the same one: its signature
need not be computed again. Whether its key still counts and whether it has expired is asked every time.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from domain.errors import InvalidToken
from server.ed25519 import SodiumPublicKey

ALGORITHM: Final = "EdDSA"
TOKEN_TYPE: Final = "at+jwt"  # noqa: S105 - a media type, not a secret
ISSUER: Final = "fixnado"
AUDIENCE: Final = "fixnado"

MAX_TOKEN_BYTES: Final = 4_096
"""Ours are about 400 bytes; what is longer is refused before any of it is parsed."""

REMEMBERED_TOKENS: Final = 20_000
"""Verified tokens kept by a process, the latest used; some 600 bytes each."""

_REQUIRED: Final = ("exp", "iat", "jti", "aud", "iss", "sub", "sid")
_HEADER: Final = frozenset({"typ", "alg", "kid"})
"""The header is ours alone, so it is a closed list: jwk, jku, x5u, x5c, crit, zip and b64 are out with the rest."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a valid access token says.

    Attributes:
        session_id: the sign-in it belongs to; revoking that ends every token of it.
        expires_at: UTC; leeway is not included.
        jti: unique per token.
    """

    user_id: str
    session_id: str
    expires_at: datetime
    jti: str


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """A public key and how long it counts; ``None`` is without end (the key that signs now)."""

    kid: str
    public: Ed25519PublicKey
    until: datetime | None = None

    def jwk(self) -> dict[str, str]:
        """The key as JWK (RFC 8037, section 2)."""
        return {"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": ALGORITHM, "kid": self.kid, "x": _x(self.public)}


@dataclass(frozen=True, slots=True, repr=False)
class SigningKey:
    """A private key. Its ``kid`` is the thumbprint of the public one (RFC 7638): one name everywhere."""

    kid: str
    private: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> SigningKey:
        """A new key from the system's randomness."""
        return cls._of(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes) -> SigningKey:
        """A key that :meth:`pem` wrote.

        Raises:
            ValueError: it is not an unencrypted PKCS #8 PEM of an Ed25519 key.
        """
        private = serialization.load_pem_private_key(pem, password=None)
        if not isinstance(private, Ed25519PrivateKey):
            raise ValueError("not an Ed25519 key")
        return cls._of(private)

    @classmethod
    def _of(cls, private: Ed25519PrivateKey) -> SigningKey:
        # RFC 7638, section 3: the required members in lexicographic order, without white space.
        members = {"crv": "Ed25519", "kty": "OKP", "x": _x(private.public_key())}
        digest = hashlib.sha256(json.dumps(members, sort_keys=True, separators=(",", ":")).encode()).digest()
        return cls(_base64url(digest), private)

    def pem(self) -> bytes:
        """PKCS #8, unencrypted: for a store that keeps secrets."""
        return self.private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def public(self, until: datetime | None = None) -> VerifyingKey:
        """The public half, valid until then."""
        return VerifyingKey(self.kid, SodiumPublicKey(self.private.public_key()), until)

    def __repr__(self) -> str:
        return f"SigningKey(kid={self.kid!r})"


class KeyRing:
    """The key that signs, and every key that still verifies. Immutable: a rotation makes a new ring.

    Args:
        signing: signs from now on, and verifies without end.
        verifying: earlier keys (and those about to sign, so that nodes know them in time), each until its deadline.
            Keep a retired key for one token life plus leeway.
        until: the deadline of the key that signs, once its successor has been announced.
    """

    def __init__(
        self, signing: SigningKey, verifying: Iterable[VerifyingKey] = (), *, until: datetime | None = None
    ) -> None:
        self.signing = signing
        self._keys: Mapping[str, VerifyingKey] = {key.kid: key for key in verifying} | {
            signing.kid: signing.public(until)
        }

    def rotated(self, signing: SigningKey, until: datetime) -> KeyRing:
        """A ring that signs with a new key and takes the present one until the deadline."""
        kept = [key for key in self._keys.values() if key.kid not in {signing.kid, self.signing.kid}]
        return KeyRing(signing, [*kept, self.signing.public(until)])

    def find(self, kid: str, now: datetime) -> VerifyingKey | None:
        """The key of that name, unless its deadline has passed."""
        key = self._keys.get(kid)
        return None if key is None or (key.until is not None and key.until <= now) else key

    def jwks(self, now: datetime) -> dict[str, Any]:
        """The keys that verify now, as a JWK Set (RFC 7517, section 5)."""
        return {"keys": [key.jwk() for key in self._keys.values() if self.find(key.kid, now)]}


class Tokens:
    """Issues and verifies access tokens. No I/O, and short enough for the loop: one signature.

    Args:
        ring: replace :attr:`ring` to rotate; one assignment, seen by the next call.
        life_seconds: from issue to expiry.
        leeway_seconds: how long past its expiry a token still counts (clocks of nodes differ).
    """

    def __init__(self, ring: KeyRing, *, life_seconds: int, leeway_seconds: float) -> None:
        self.ring = ring
        self._verified: OrderedDict[bytes, tuple[str, Claims]] = OrderedDict()
        self._life_seconds = life_seconds
        self._leeway_seconds = leeway_seconds

    def issue(self, user_id: str, session_id: str, now: datetime) -> tuple[str, datetime]:
        """A signed token and when it ends (UTC, whole seconds as in the token)."""
        issued_at = int(now.timestamp())
        expires_at = issued_at + self._life_seconds
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": user_id,
            "sid": session_id,
            "iat": issued_at,
            "exp": expires_at,
            "jti": secrets.token_urlsafe(16),
        }
        key = self.ring.signing
        token = jwt.encode(claims, key.private, algorithm=ALGORITHM, headers={"typ": TOKEN_TYPE, "kid": key.kid})
        return token, datetime.fromtimestamp(expires_at, UTC)

    def verify(self, token: str, now: datetime | None = None) -> Claims:
        """What a token says, if every check of this module holds.

        Args:
            now: the moment to judge by; the system's time when left out.

        Raises:
            InvalidToken: always without a reason for the caller; the cause is chained for the log.
        """
        now = now or datetime.now(UTC)
        if len(token) > MAX_TOKEN_BYTES:
            raise InvalidToken
        try:
            mark = hashlib.sha256(token.encode()).digest()
            known = self._verified.get(mark)
            kid, claims = known or self._decode(token, now)
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            # The text is a stranger's. ValueError: a lone surrogate, or a number past the interpreter's digit limit;
            # RecursionError: JSON as deep as 4 KiB allow.
            raise InvalidToken from error
        if self.ring.find(kid, now) is None or now.timestamp() >= claims.expires_at.timestamp() + self._leeway_seconds:
            self._verified.pop(mark, None)
            raise InvalidToken
        self._remember(mark, (kid, claims))
        return claims

    def _decode(self, token: str, now: datetime) -> tuple[str, Claims]:
        """The name of the key and the claims of a token whose signature, header and shape are right."""
        header = _header_of(token.partition(".")[0])
        kid = header.get("kid")
        if not _HEADER.issuperset(header) or header.get("typ") != TOKEN_TYPE or not isinstance(kid, str):
            raise InvalidToken
        key = self.ring.find(kid, now)
        if key is None:
            raise InvalidToken
        claims = jwt.decode(
            token,
            key.public,
            algorithms=[ALGORITHM],
            audience=AUDIENCE,
            issuer=ISSUER,
            options={
                "require": list(_REQUIRED),
                "strict_aud": True,
                # Judged by the caller's clock. An `iat` ahead of ours is no attack: a node's clock is fast.
                "verify_exp": False,
                "verify_iat": False,
            },
        )
        return kid, _claims(claims)

    def _remember(self, mark: bytes, known: tuple[str, Claims]) -> None:
        self._verified[mark] = known
        self._verified.move_to_end(mark)
        if len(self._verified) > REMEMBERED_TOKENS:
            self._verified.popitem(last=False)

    def jwks(self, now: datetime | None = None) -> dict[str, Any]:
        """The public keys for ``/.well-known/jwks.json``."""
        return self.ring.jwks(now or datetime.now(UTC))


@lru_cache(maxsize=16)
def _header_of(segment: str) -> Mapping[str, Any]:
    """The header in a token's first segment: the same text for all tokens that one key has signed."""
    return jwt.get_unverified_header(f"{segment}..")


def _claims(claims: Mapping[str, Any]) -> Claims:
    texts = [claims["sub"], claims["sid"], claims["jti"]]
    times = [claims["exp"], claims["iat"]]
    # `bool` is an `int` to Python, not a NumericDate to RFC 7519; NumericDates beyond a datetime are refused too.
    if not all(isinstance(text, str) and text for text in texts) or not all(type(time) is int for time in times):
        raise InvalidToken
    try:
        expires_at = datetime.fromtimestamp(claims["exp"], UTC)
    except (OverflowError, ValueError, OSError) as error:
        raise InvalidToken from error
    return Claims(user_id=claims["sub"], session_id=claims["sid"], expires_at=expires_at, jti=claims["jti"])


def _x(public: Ed25519PublicKey) -> str:
    return _base64url(public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw))


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
