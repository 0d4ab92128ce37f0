"""Signing up, in and out: accounts, sign-ins and rotating refresh tokens.

A sign-in is a family of refresh tokens, each used once for its successor (RFC 9700 §4.14). Only hashes are stored. A
client whose reply got lost may ask again for a few seconds and gets the same successor, as long as nobody has used
that; any other second use means that somebody else holds the token, and ends the family.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from domain.errors import Forbidden, InvalidCredentials, InvalidToken
from domain.events import Event
from domain.identity import Actor, MembershipRole, RefreshToken, Role, SignIn, User
from domain.ports import AccessTokens, Clock, Passwords, Transactions, UnitOfWork
from domain.providers import Provider, ProviderStatus
from domain.security import SecurityEvents, SecurityKind
from domain.types import JSON, Origin, new_id, wire_time
from domain.views import Params, View

Email = Annotated[
    str,
    StringConstraints(strip_whitespace=True, to_lower=True, max_length=254, pattern=r"^[^@\s]{1,64}@[^@\s]+\.[^@\s]+$"),
]
Password = Annotated[str, StringConstraints(min_length=12, max_length=128)]
"""NIST SP 800-63B §3.1.1.2: length is what counts; no composition rules."""

DAY_SECONDS = 86_400.0
TOKEN_PREFIX = "fxr_"  # noqa: S105 — names the kind, so that logs and secret scanners can recognise one


class Register(Params):
    """A new account. A provider gets an organisation and an unverified place in the marketplace with it."""

    email: Email
    password: Password
    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
    role: Annotated[Literal["customer", "provider"], Field(description="what the account is for")]


class DeviceParams(Params):
    """What the client says about itself."""

    id: Annotated[str, Field(max_length=128)]
    name: Annotated[str, Field(max_length=128)] = ""
    platform: Annotated[str, Field(max_length=64)] = ""


class Login(Params):
    """E-mail and password. Lengths are bounded so that nobody makes us hash a book."""

    email: Annotated[str, Field(max_length=254)]
    password: Annotated[str, Field(max_length=1024)]
    device: DeviceParams | None = None


class RefreshParams(Params):
    """The newest refresh token of the sign-in."""

    refresh_token: Annotated[str, Field(max_length=256)]


class UserView(View):
    """An account as its owner sees it."""

    id: str
    email: str
    name: str
    roles: list[Role]
    provider_ids: list[str]


class TokensView(View):
    """A pair of tokens; ``expires_in`` is the access token's life in seconds."""

    access_token: str
    token_type: Literal["Bearer"]
    expires_in: int
    refresh_token: str
    user: UserView


class SignInView(View):
    """One sign-in; ``current`` is the one that asks."""

    id: str
    device: dict[str, str]
    created_at: str
    last_used_at: str
    expires_at: str
    current: bool


class SignInList(View):
    """Sign-ins that have not ended."""

    sessions: list[SignInView]


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """How long refresh tokens and sign-ins live, in seconds.

    Attributes:
        refresh_seconds: a refresh token unused for so long ends; each rotation starts anew.
        absolute_seconds: a sign-in ends then, however often it was refreshed.
        retry_seconds: how long a used token may be presented again by a client that missed the reply.
    """

    refresh_seconds: float = 30 * DAY_SECONDS
    absolute_seconds: float = 90 * DAY_SECONDS
    retry_seconds: float = 10


class Accounts:
    """The use cases. Passwords are hashed outside transactions: nobody's lock waits for Argon2."""

    def __init__(
        self,
        transactions: Transactions,
        passwords: Passwords,
        tokens: AccessTokens,
        clock: Clock,
        policy: SessionPolicy | None = None,
    ) -> None:
        self._transactions = transactions
        self._passwords = passwords
        self._tokens = tokens
        self._clock = clock
        self._policy = policy or SessionPolicy()

    async def register(self, params: Register, origin: Origin) -> JSON:
        """Makes an account.

        Raises:
            EmailTaken: the address is registered.
        """
        roles = frozenset({Role(params.role)})
        return await self.add(params.email, params.password, params.name, roles, origin)

    async def add(self, email: str, password: str, name: str, roles: frozenset[Role], origin: Origin) -> JSON:
        """Makes an account with any roles; for the command line and seeds.

        Raises:
            EmailTaken: the address is registered.
        """
        password_hash = await self._passwords.hash(password)

        async def work(uow: UnitOfWork) -> JSON:
            user = User(new_id(uow.now), email, name, password_hash, roles)
            await uow.people.add_user(user)
            provider_ids = [await found_organisation(uow, user)] if Role.PROVIDER in roles else []
            return {"user": _user_view(user, provider_ids)}

        return await self._transactions.write(work, origin)

    async def login(self, params: Login, origin: Origin) -> JSON:
        """Tokens for the right e-mail and password; the same refusal and the same work for anything else.

        Raises:
            InvalidCredentials: wrong, unknown or disabled.
            Unavailable: too many passwords are being checked already.
        """
        email = params.email.strip().lower()
        user = await self._transactions.read(lambda uow: uow.people.by_email(email))
        right = await self._passwords.verify(user.own_password_hash if user else None, params.password)
        if user is None or not right or user.disabled_at is not None:
            await self._attest_failed_login(user, email, origin)
            raise InvalidCredentials
        rehashed = (
            await self._passwords.hash(params.password) if self._passwords.needs_rehash(user.password_hash) else None
        )
        device = params.device.model_dump() if params.device else {}

        async def work(uow: UnitOfWork) -> JSON:
            if rehashed is not None:
                await uow.people.save_password(user.id, rehashed)
            sign_in = SignIn(
                id=new_id(uow.now),
                user_id=user.id,
                device=device,
                created_at=uow.now,
                last_used_at=uow.now,
                expires_at=uow.now + timedelta(seconds=self._policy.absolute_seconds),
            )
            await uow.people.add_sign_in(sign_in)
            token = _random_token()
            await uow.people.add_refresh_token(self._link(token, sign_in, uow.now))
            return await self._tokens_view(uow, sign_in, token)

        return await self._transactions.write(work, origin)

    async def refresh(self, token: str, origin: Origin) -> JSON:
        """The next pair of tokens.

        Raises:
            InvalidToken: unknown, expired, ended, or used before: then the whole sign-in has just ended.
        """

        async def work(uow: UnitOfWork) -> JSON | None:
            link = await uow.people.refresh_token(token_hash(token))
            if link is None:
                raise InvalidToken
            sign_in = await uow.people.lock_sign_in(link.session_id)
            # Under the lock of the family, read again: another refresh may have been quicker.
            link = await uow.people.refresh_token(token_hash(token))
            if sign_in is None or link is None or sign_in.revoked_at is not None:
                raise InvalidToken
            if min(link.expires_at, sign_in.expires_at) <= uow.now:
                raise InvalidToken
            if link.used_at is None:
                successor = await self._rotate(uow, link, sign_in, token)
            elif await self._is_retry(uow, link):
                successor = successor_of(token, link.successor_nonce or "")
            else:
                await self.end(uow, sign_in, "reuse")
                await SecurityEvents().record(
                    uow, SecurityKind.TOKEN_REUSED, "anonymous", sign_in.user_id, {"session_id": sign_in.id}
                )
                return None
            sign_in = replace(sign_in, last_used_at=uow.now)
            await uow.people.save_sign_in(sign_in)
            return await self._tokens_view(uow, sign_in, successor)

        # The end of the family must be committed, so reuse is a result of the transaction and not an error in it.
        result = await self._transactions.write(work, origin)
        if result is None:
            raise InvalidToken
        return result

    async def logout(self, actor: Actor, origin: Origin) -> None:
        """Ends the sign-in that asks."""
        await self.end_session(actor, actor.session_id, origin)

    async def logout_all(self, actor: Actor, origin: Origin) -> None:
        """Ends every sign-in of the person."""

        async def work(uow: UnitOfWork) -> None:
            # In the order of their ids: two calls at once must not wait for each other.
            for listed in sorted(await uow.people.sign_ins(actor.user_id), key=lambda sign_in: sign_in.id):
                sign_in = await uow.people.lock_sign_in(listed.id)
                if sign_in is not None and sign_in.revoked_at is None:
                    await self.end(uow, sign_in, "signed_out")

        await self._transactions.write(work, replace(origin, actor_id=actor.user_id))

    async def end_session(self, actor: Actor, session_id: str, origin: Origin) -> None:
        """Ends one sign-in of the person's own.

        Raises:
            Forbidden: not there, or somebody else's.
        """

        async def work(uow: UnitOfWork) -> None:
            sign_in = await uow.people.lock_sign_in(session_id)
            if sign_in is None or sign_in.user_id != actor.user_id:
                raise Forbidden
            if sign_in.revoked_at is None:
                await self.end(uow, sign_in, "signed_out")

        await self._transactions.write(work, replace(origin, actor_id=actor.user_id))

    async def sessions(self, actor: Actor) -> JSON:
        """The person's sign-ins, newest first."""
        sign_ins: Sequence[SignIn] = await self._transactions.read(lambda uow: uow.people.sign_ins(actor.user_id))
        return {
            "sessions": [
                {
                    "id": sign_in.id,
                    "device": dict(sign_in.device),
                    "created_at": wire_time(sign_in.created_at),
                    "last_used_at": wire_time(sign_in.last_used_at),
                    "expires_at": wire_time(sign_in.expires_at),
                    "current": sign_in.id == actor.session_id,
                }
                for sign_in in sign_ins
            ]
        }

    async def me(self, actor: Actor) -> JSON:
        """The account of whoever asks."""
        user = await self._transactions.read(lambda uow: uow.people.user(actor.user_id))
        if user is None:
            raise InvalidToken
        return {"user": _user_view(user, sorted(actor.provider_ids))}

    async def actor(self, user_id: str, session_id: str) -> Actor:
        """The person behind a verified access token.

        Raises:
            InvalidToken: the sign-in has ended or the account is disabled.
        """
        actor = await self._transactions.read(lambda uow: uow.people.actor(user_id, session_id))
        if actor is None:
            raise InvalidToken
        return actor

    async def end(self, uow: UnitOfWork, sign_in: SignIn, reason: str) -> None:
        """Ends a locked sign-in and, through the control channel, its sockets on every node."""
        await uow.people.save_sign_in(replace(sign_in, revoked_at=uow.now, revoked_reason=reason))
        uow.record(
            Event(
                id=new_id(uow.now),
                type="session.revoked",
                time=uow.now,
                source=f"session/{sign_in.id}",
                data={"session_ids": [sign_in.id], "user_ids": []},
            )
        )

    async def _attest_failed_login(self, user: User | None, email: str, origin: Origin) -> None:
        # The address only as a digest: people type passwords into the wrong field. The same work for every cause.
        why = "unknown" if user is None else "disabled" if user.disabled_at is not None else "wrong_password"
        details = {"why": why, "email_sha256": hashlib.sha256(email.encode()).hexdigest()}

        async def work(uow: UnitOfWork) -> None:
            await SecurityEvents().record(
                uow, SecurityKind.LOGIN_FAILED, "anonymous", user.id if user else None, details
            )

        await self._transactions.write(work, origin)

    async def _rotate(self, uow: UnitOfWork, link: RefreshToken, sign_in: SignIn, token: str) -> str:
        nonce = secrets.token_urlsafe(24)
        successor = successor_of(token, nonce)
        await uow.people.add_refresh_token(self._link(successor, sign_in, uow.now))
        await uow.people.save_refresh_token(
            replace(link, used_at=uow.now, successor_nonce=nonce, successor_hash=token_hash(successor))
        )
        return successor

    async def _is_retry(self, uow: UnitOfWork, link: RefreshToken) -> bool:
        if link.used_at is None or link.successor_hash is None:
            return False
        if uow.now - link.used_at > timedelta(seconds=self._policy.retry_seconds):
            return False
        successor = await uow.people.refresh_token(link.successor_hash)
        return successor is not None and successor.used_at is None

    def _link(self, token: str, sign_in: SignIn, now: datetime) -> RefreshToken:
        ends = min(now + timedelta(seconds=self._policy.refresh_seconds), sign_in.expires_at)
        return RefreshToken(token_hash(token), sign_in.id, now, ends)

    async def _tokens_view(self, uow: UnitOfWork, sign_in: SignIn, refresh_token: str) -> JSON:
        user = await uow.people.user(sign_in.user_id)
        actor = await uow.people.actor(sign_in.user_id, sign_in.id)
        if user is None or actor is None:
            raise InvalidToken
        access_token, expires_at = self._tokens.issue(user.id, sign_in.id, uow.now)
        return {
            "access_token": access_token,
            "token_type": "Bearer",
            "expires_in": round((expires_at - uow.now).total_seconds()),
            "refresh_token": refresh_token,
            "user": _user_view(user, sorted(actor.provider_ids)),
        }


async def found_organisation(uow: UnitOfWork, user: User) -> str:
    """An organisation of one person, and its provider: unverified, without skills or zones. Returns the provider's
    id.
    """
    organisation_id, provider_id = new_id(uow.now), new_id(uow.now)
    await uow.people.add_organisation(organisation_id, user.name)
    await uow.people.add_membership(organisation_id, user.id, MembershipRole.OWNER)
    await uow.market.add_provider(new_provider(provider_id, organisation_id, user.name, uow.now), (), ())
    return provider_id


def new_provider(provider_id: str, organisation_id: str, name: str, now: datetime) -> Provider:
    """A newcomer to the marketplace: unverified, offline, without a history."""
    return Provider(
        id=provider_id,
        organisation_id=organisation_id,
        name=name,
        verified=False,
        rating=4.0,
        offers_answered=0,
        offers_accepted=0,
        jobs_taken=0,
        jobs_completed=0,
        max_daily_jobs=8,
        chosen_status=ProviderStatus.ONLINE,
        status=ProviderStatus.OFFLINE,
        misses_in_a_row=0,
        idle_since=now,
    )


def token_hash(token: str) -> str:
    """SHA-256, hex. The token has 256 random bits, so a slow hash would add nothing."""
    return hashlib.sha256(token.encode()).hexdigest()


def successor_of(token: str, nonce: str) -> str:
    """The token that follows: HMAC-SHA256 of a stored random nonce under the token itself (RFC 2104).

    The database alone cannot make it, for it does not hold the token; the holder alone cannot, without the nonce.
    """
    digest = hmac.new(token.encode(), nonce.encode(), hashlib.sha256).digest()
    return TOKEN_PREFIX + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _random_token() -> str:
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def _user_view(user: User, provider_ids: list[str]) -> JSON:
    return {
        "id": user.id,
        "email": user.email,
        "name": user.name,
        "roles": sorted(role.value for role in user.roles),
        "provider_ids": provider_ids,
    }
