"""Access tokens of an OpenID Connect issuer (AWS Cognito user pools first), verified against its published keys.

Accepted is an access token and nothing else: Cognito's (``token_use`` is ``access``) or one after RFC 9068 (``typ`` is
``at+jwt``); an ID token of the same issuer is for a client, not for an API, and is refused. As for our own tokens,
every check is here (RFC 8725): algorithms are a fixed list of asymmetric ones, the key is found by ``kid`` among the
issuer's keys and its kind must fit the algorithm, headers that bring keys or critical extensions are refused, ``iss``
must be the issuer's name to the letter, and the audience (Cognito: the client) one of ours.

The issuer's keys are fetched when needed and kept: for an hour without asking, and for a day while the issuer is away.
An unknown ``kid`` makes one fetch (a rotation), at most one in half a minute (somebody guessing). Fetches are bounded
in time and size, run in threads of their own, and are shared by all who wait.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from http.client import HTTPException
from typing import IO, Any, Final
from urllib.parse import urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from domain.errors import InvalidToken, Unavailable
from domain.federation import FederatedIdentity
from server.health import Degraded
from server.telemetry import logger

log = logger(__name__)

ALGORITHMS: Final = ("RS256", "ES256")
MAX_TOKEN_BYTES: Final = 8_192
MAX_DOCUMENT_BYTES: Final = 256 * 1024
LEAST_RSA_BITS: Final = 2_048
"""NIST SP 800-131A rev. 2, table 2."""

FRESH_SECONDS: Final = 3_600.0
STALE_SECONDS: Final = 86_400.0
PAUSE_SECONDS: Final = 30.0

_REQUIRED: Final = ("exp", "iat", "iss", "sub")
_REFUSED_HEADERS: Final = frozenset({"jwk", "jku", "x5u", "x5c", "crit", "b64", "zip"})
_ACCESS_TYPES: Final = frozenset({"at+jwt", "application/at+jwt"})

Fetch = Callable[[str], Awaitable[Mapping[str, Any]]]
"""A JSON object by URL. Raises :class:`FetchFailed`."""


class FetchFailed(Exception):
    """A document could not be had, or is no JSON object."""


@dataclass(frozen=True, slots=True)
class IssuerOptions:
    """What is accepted.

    Attributes:
        audiences: ours: audiences, or client ids where tokens name no audience.
        groups_claim: the claim with the person's groups.
    """

    issuer: str
    audiences: frozenset[str]
    algorithms: tuple[str, ...] = ("RS256",)
    groups_claim: str = "cognito:groups"
    leeway_seconds: float = 10.0


class IssuerKeys:
    """The keys that an issuer publishes; see the module for how long they are believed.

    Args:
        monotonic: seconds.
    """

    def __init__(self, options: IssuerOptions, fetch: Fetch, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._options = options
        self._fetch = fetch
        self._monotonic = monotonic
        self._keys: dict[str, tuple[str, Any]] = {}
        self._fetched_at = -STALE_SECONDS
        self._tried_at = -PAUSE_SECONDS
        self._trouble: str | None = None
        self._turn = asyncio.Lock()

    async def find(self, kid: str) -> tuple[str, Any]:
        """Algorithm and public key of this name.

        Raises:
            InvalidToken: the issuer has no such key.
            Unavailable: the issuer is away, and the keys are not known or too old.
        """
        if kid not in self._keys or self._age() >= FRESH_SECONDS:
            await self._refresh(kid)
        if self._age() >= STALE_SECONDS:
            raise Unavailable("The issuer of this token cannot be asked for its keys.")
        found = self._keys.get(kid)
        if found is None and self._trouble is not None:
            raise Unavailable("The issuer of this token cannot be asked for its keys.")
        if found is None:
            raise InvalidToken
        return found

    async def check(self) -> None:
        """For readiness.

        Raises:
            Degraded: the last fetch failed.
        """
        if self._trouble is not None:
            raise Degraded(self._trouble)

    def _age(self) -> float:
        return self._monotonic() - self._fetched_at

    async def _refresh(self, kid: str) -> None:
        async with self._turn:
            if kid in self._keys and self._age() < FRESH_SECONDS:
                return  # whoever had the turn before has done it
            if self._monotonic() - self._tried_at < PAUSE_SECONDS:
                return
            self._tried_at = self._monotonic()
            try:
                self._keys = await self._read()
            except FetchFailed as error:
                self._trouble = f"the keys of {self._options.issuer} cannot be fetched: {error}"
                log.warning("issuer_keys_not_fetched", issuer=self._options.issuer, why=str(error))
            else:
                self._trouble = None
                self._fetched_at = self._monotonic()

    async def _read(self) -> dict[str, tuple[str, Any]]:
        issuer = self._options.issuer
        # OpenID Connect Discovery 1.0, section 4: under the issuer's own name, and it must call itself that.
        described = await self._fetch(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        address = described.get("jwks_uri")
        # Keys are found no less safely than they were looked for: an issuer elsewhere cannot send us to this machine.
        here = urlsplit(issuer).scheme == "http"
        if described.get("issuer") != issuer or not isinstance(address, str) or not may_fetch(address):
            raise FetchFailed("its discovery document names another issuer or no keys")
        if not here and urlsplit(address).scheme != "https":
            raise FetchFailed("its discovery document names keys that are not reached over TLS")
        published = (await self._fetch(address)).get("keys")
        keys = {}
        for shape in published if isinstance(published, list) else ():
            found = _usable(shape, self._options.algorithms)
            if found is not None:
                keys[shape["kid"]] = found
        if not keys:
            raise FetchFailed("it publishes no key that may be used")
        return keys


class IssuerTokens:
    """Verifies an issuer's access tokens."""

    def __init__(self, options: IssuerOptions, keys: IssuerKeys) -> None:
        self._options = options
        self.keys = keys

    async def verify(self, token: str) -> tuple[FederatedIdentity, datetime]:
        """Who the token is about, and when it ends (UTC).

        Raises:
            InvalidToken: without a reason for the caller; the cause is chained for the log.
            Unavailable: the issuer's keys cannot be had.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise InvalidToken
        try:
            header = jwt.get_unverified_header(token)
            kid = header.get("kid")
            if header.get("alg") not in self._options.algorithms or not isinstance(kid, str):
                raise InvalidToken
            if not _REFUSED_HEADERS.isdisjoint(header):
                raise InvalidToken
            algorithm, key = await self.keys.find(kid)
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                issuer=self._options.issuer,
                leeway=self._options.leeway_seconds,
                # The audience is judged below: Cognito names none.
                options={"require": list(_REQUIRED), "verify_aud": False},
            )
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            # The text is a stranger's; see server.tokens.
            raise InvalidToken from error
        return self._identity(header, claims)

    def _identity(self, header: Mapping[str, Any], claims: Mapping[str, Any]) -> tuple[FederatedIdentity, datetime]:
        kind = str(header.get("typ", "")).lower()
        if claims.get("token_use", "access" if kind in _ACCESS_TYPES else None) != "access":
            raise InvalidToken
        audience = claims.get("aud", claims.get("client_id"))
        named = audience if isinstance(audience, list) else [audience]
        if self._options.audiences.isdisjoint(each for each in named if isinstance(each, str)):
            raise InvalidToken
        subject = claims["sub"]
        if (
            not isinstance(subject, str)
            or not 0 < len(subject) <= 255
            or not subject.isprintable()
            # MySQL compares without spaces at the end: two subjects would be one person.
            or subject != subject.strip()
            or type(claims["exp"]) is not int
        ):
            raise InvalidToken
        groups = claims.get(self._options.groups_claim)
        groups = groups if isinstance(groups, list) else []
        name = claims.get("name") or claims.get("username") or claims.get("preferred_username") or subject
        email = claims.get("email") if claims.get("email_verified") is True else None
        # Cognito: origin_jti; OpenID Connect Session Management: sid; else the moment of the sign-in.
        sign_in = claims.get("origin_jti") or claims.get("sid") or claims.get("auth_time") or ""
        identity = FederatedIdentity(
            issuer=self._options.issuer,
            subject=subject,
            sign_in=str(sign_in),
            # What UTF-8 cannot carry, no database takes.
            name=str(name)[:200].encode(errors="replace").decode(),
            email=email.lower() if isinstance(email, str) and 3 <= len(email) <= 254 and email.isascii() else None,
            groups=frozenset(each for each in groups if isinstance(each, str)),
        )
        return identity, datetime.fromtimestamp(claims["exp"], UTC)


def algorithm_of(token: str) -> str | None:
    """What the token says it is signed with: to choose who verifies it, never to verify it by."""
    if len(token) > MAX_TOKEN_BYTES:
        return None
    try:
        algorithm = jwt.get_unverified_header(token).get("alg")
    except (jwt.PyJWTError, ValueError, RecursionError):
        return None
    return algorithm if isinstance(algorithm, str) else None


def may_fetch(url: str) -> bool:
    """Whether keys may come from there: over TLS, or from this very machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in {"127.0.0.1", "::1", "localhost"})


def _usable(shape: Any, algorithms: tuple[str, ...]) -> tuple[str, Any] | None:
    """Algorithm and key of a JWK (RFC 7517), or ``None`` for one that is for something else or too weak."""
    if not isinstance(shape, dict) or not isinstance(shape.get("kid"), str) or shape.get("use", "sig") != "sig":
        return None
    algorithm = {"RSA": "RS256", "EC": "ES256"}.get(str(shape.get("kty")))
    if algorithm is None or algorithm not in algorithms or shape.get("alg", algorithm) != algorithm:
        return None
    try:
        key = jwt.PyJWK.from_dict(shape, algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    if isinstance(key, RSAPublicKey) and key.key_size >= LEAST_RSA_BITS:
        return algorithm, key
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return algorithm, key
    return None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        """Keys come from where we asked, or not at all."""


class JsonFetcher:
    """Small JSON documents over HTTP, in threads of their own.

    Args:
        timeout_seconds: for a whole document.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="issuer")
        self._opener = urllib.request.build_opener(_NoRedirects)

    async def __call__(self, url: str) -> Mapping[str, Any]:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await asyncio.get_running_loop().run_in_executor(self._threads, self._get, url)
        except TimeoutError:
            raise FetchFailed("no answer in time") from None

    def close(self) -> None:
        """Lets the threads go; a call that hangs ends by its own timeout."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _get(self, url: str) -> Mapping[str, Any]:
        ends = time.monotonic() + self._timeout_seconds
        if not may_fetch(url):
            raise FetchFailed("it is not reached over TLS")
        text = b""
        try:
            with self._opener.open(url, timeout=self._timeout_seconds) as answer:
                while chunk := answer.read1(65_536):
                    text += chunk
                    # A server that drips must not hold the thread for ever.
                    if len(text) > MAX_DOCUMENT_BYTES or time.monotonic() > ends:
                        raise FetchFailed("too much or too slow")
            shape = json.loads(text)
        except (OSError, HTTPException, ValueError, RecursionError) as error:
            raise FetchFailed(type(error).__name__) from error
        if not isinstance(shape, dict):
            raise FetchFailed("no JSON object")
        return shape
