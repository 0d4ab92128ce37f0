"""Signing up, in and out: accounts, sign-ins and rotating refresh tokens.

A sign-in is a family of refresh tokens, each used once for its successor (RFC 9700 §4.14). Only hashes are stored. A
client whose reply got lost may ask again for a few seconds and gets the same successor, as long as nobody has used
that; any other second use means that somebody else holds the token, and ends the family.

The order at the door: limits first, then the password, then how much else speaks for this being the account's owner
(:mod:`domain.trust`), then the second factor of whoever has one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import Field, RootModel, StringConstraints

from domain import trust
from domain.errors import Forbidden, InvalidCredentials, InvalidToken, SignInRefused
from domain.factors import KnownDevice, device_key, token_hash
from domain.identity import Actor, MembershipRole, RefreshToken, Role, SignIn, User
from domain.limits import account_key
from domain.networks import network_of
from domain.ports import UnitOfWork
from domain.providers import Provider, ProviderStatus
from domain.second_factor import MfaChallengeView, SecondFactor
from domain.security import SecurityEvents, SecurityKind
from domain.sign_ins import IdentityPorts, SignIns, TokensView, successor_of, user_view, whence
from domain.types import JSON, Origin, new_id, wire_time
from domain.views import Params, View

Email = Annotated[
    str,
    StringConstraints(strip_whitespace=True, to_lower=True, max_length=254, pattern=r"^[^@\s]{1,64}@[^@\s]+\.[^@\s]+$"),
]
Password = Annotated[str, StringConstraints(min_length=12, max_length=128)]
"""NIST SP 800-63B §3.1.1.2: length is what counts; no composition rules."""

_security = SecurityEvents()

HISTORY = 20
"""Sign-ins that a new one is compared with."""


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


class LoginResult(RootModel[TokensView | MfaChallengeView]):
    """Tokens, or a challenge that a second factor answers."""


class SignInView(View):
    """One sign-in; ``current`` is the one that asks. ``trust`` is 0 to 100, and ``trust_parts`` what it is made of."""

    id: str
    device: dict[str, str]
    created_at: str
    last_used_at: str
    expires_at: str
    current: bool
    network: str | None = None
    trust: int | None = None
    trust_parts: dict[str, int] | None = None


class SignInList(View):
    """Sign-ins that have not ended."""

    sessions: list[SignInView]


class DeviceView(View):
    """A device one has signed in from; ``trust`` is that of the latest sign-in from it."""

    id: str
    name: str
    platform: str
    first_seen_at: str
    last_seen_at: str
    network: str | None
    current: bool
    trust: int
    trust_parts: dict[str, int]


class DeviceList(View):
    """Devices, latest first. ``explanations`` says what each part of the trust means."""

    devices: list[DeviceView]
    explanations: dict[str, str]


class Accounts:
    """The use cases. Passwords are hashed outside transactions: nobody's lock waits for Argon2."""

    def __init__(self, ports: IdentityPorts, sign_ins: SignIns, second_factor: SecondFactor) -> None:
        self._ports = ports
        self._transactions = ports.transactions
        self._passwords = ports.passwords
        self._gate = ports.gate
        self._sign_ins = sign_ins
        self._second_factor = second_factor

    async def register(self, params: Register, origin: Origin) -> JSON:
        """Makes an account.

        Raises:
            EmailTaken: the address is registered.
            TooManyRequests: from this network address.
        """
        await self._gate.enter(origin.address)
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
            return {"user": user_view(user, provider_ids)}

        return await self._transactions.write(work, origin)

    async def login(self, params: Login, origin: Origin) -> JSON:
        """Tokens, or a challenge, for the right e-mail and password; the same refusal and the same work for anything
        else.

        Raises:
            InvalidCredentials: wrong, unknown or disabled.
            SignInRefused: right, but next to nothing else speaks for this being the owner.
            TooManyRequests: too many wrong attempts at the account or from the address; nothing was hashed.
            Unavailable: too many passwords are being checked already, or a code cannot be sent.
        """
        await self._gate.enter(origin.address)
        email = params.email.strip().lower()
        device = params.device.model_dump() if params.device else {}
        key = device_key(device.get("id", ""))
        # The device of an unknown user is looked for as well: as much work for everybody.
        user, known = await self._transactions.read(lambda uow: _who(uow, email, key))
        account = account_key(email, key if known is not None and device.get("id") else None)
        own_hash = user.own_password_hash if user else None
        right = await self._gate.attempt(account, lambda: self._passwords.verify(own_hash, params.password))
        if user is None or not right or user.disabled_at is not None:
            await self._gate.failed(origin.address)
            await self._ports.security.record(SecurityKind.LOGIN_FAILED, user.id if user else None, whence(origin))
            raise InvalidCredentials
        anywhere = account_key(email)
        # This attempt is counted as well, unless the device has a count of its own.
        failures = max(0, await self._gate.failures(anywhere) - (account == anywhere))
        await self._gate.succeeded(account)
        assessed = await self._assess(user, device, known, failures, origin)
        challenge = await self._second_factor.ask(user, device, assessed, origin)
        if challenge is not None:
            return challenge
        # Whoever may come in without more has proven to be the owner: strangers' failures count no longer.
        await self._gate.succeeded(anywhere)
        rehashed = (
            await self._passwords.hash(params.password) if self._passwords.needs_rehash(user.password_hash) else None
        )

        async def work(uow: UnitOfWork) -> JSON:
            locked = await uow.people.lock_user(user.id)
            if locked is None or locked.disabled_at is not None or locked.password_hash != user.password_hash:
                # Changed while this password was being checked.
                raise InvalidCredentials
            if rehashed is not None:
                await uow.people.save_password(user.id, rehashed)
            return await self._sign_ins.begin(uow, user, device, assessed.parts, origin)

        return await self._transactions.write(work, origin)

    async def refresh(self, token: str, origin: Origin) -> JSON:
        """The next pair of tokens.

        Raises:
            InvalidToken: unknown, expired, ended, or used before: then the whole sign-in has just ended.
            TooManyRequests: from this network address.
        """
        await self._gate.enter(origin.address)

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
                successor = await self._sign_ins.rotate(uow, link, sign_in, token)
            elif await self._is_retry(uow, link):
                successor = successor_of(token, link.successor_nonce or "")
            else:
                await self._sign_ins.end(uow, sign_in, "reuse")
                details = {"session_id": sign_in.id} | whence(origin)
                await _security.record(uow, SecurityKind.REFRESH_TOKEN_REUSED, "anonymous", sign_in.user_id, details)
                return None
            sign_in = replace(sign_in, last_used_at=uow.now)
            await uow.people.save_sign_in(sign_in)
            return await self._sign_ins.tokens_view(uow, sign_in, successor)

        # The end of the family must be committed, so reuse is a result of the transaction and not an error in it.
        try:
            result = await self._transactions.write(work, origin)
        except InvalidToken:
            await self._gate.failed(origin.address)
            raise
        if result is None:
            raise InvalidToken
        return result

    async def logout(self, actor: Actor, origin: Origin) -> None:
        """Ends the sign-in that asks."""
        await self.end_session(actor, actor.session_id, origin)

    async def logout_all(self, actor: Actor, origin: Origin) -> None:
        """Ends every sign-in of the person."""

        async def work(uow: UnitOfWork) -> None:
            await uow.people.lock_user(actor.user_id)
            await self._sign_ins.end_all(uow, actor.user_id, "signed_out")

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
                await self._sign_ins.end(uow, sign_in, "signed_out")

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
                    "network": sign_in.network,
                    "trust": sign_in.trust_score,
                    "trust_parts": None if sign_in.trust_parts is None else dict(sign_in.trust_parts),
                }
                for sign_in in sign_ins
            ]
        }

    async def devices(self, actor: Actor) -> JSON:
        """The devices the person has signed in from, latest first."""

        async def work(uow: UnitOfWork) -> JSON:
            here = {sign_in.device_id for sign_in in await uow.people.sign_ins(actor.user_id) if _is_of(sign_in, actor)}
            known = await uow.devices.of(actor.user_id)
            return {
                "devices": [_device_view(device, current=device.id in here) for device in known],
                "explanations": dict(trust.EXPLANATIONS),
            }

        return await self._transactions.read(work)

    async def forget_device(self, actor: Actor, device_id: str, origin: Origin) -> None:
        """Forgets a device of the person's own and ends the sign-ins from it: the next one is a stranger's.

        Raises:
            Forbidden: not there, or somebody else's.
        """

        async def work(uow: UnitOfWork) -> None:
            await uow.people.lock_user(actor.user_id)
            device = await uow.devices.get(device_id)
            if device is None or device.user_id != actor.user_id:
                raise Forbidden
            await uow.devices.remove(device_id)
            await self._sign_ins.end_all(uow, actor.user_id, "device_removed", device_id=device_id)
            details = {"device_id": device_id}
            await _security.record(uow, SecurityKind.DEVICE_REMOVED, actor.user_id, actor.user_id, details)

        await self._transactions.write(work, replace(origin, actor_id=actor.user_id))

    async def me(self, actor: Actor) -> JSON:
        """The account of whoever asks."""
        user = await self._transactions.read(lambda uow: uow.people.user(actor.user_id))
        if user is None:
            raise InvalidToken
        return {"user": user_view(user, sorted(actor.provider_ids))}

    async def actors(self, sign_ins: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], Actor]:
        """The people behind verified access tokens, by ``(user id, session id)``; without those whose sign-in has ended
        or whose account is disabled.
        """
        return await self._transactions.read(lambda uow: uow.people.actors(sign_ins))

    async def actor(self, user_id: str, session_id: str) -> Actor:
        """The person behind a verified access token.

        Raises:
            InvalidToken: the sign-in has ended or the account is disabled.
        """
        actor = await self._transactions.read(lambda uow: uow.people.actor(user_id, session_id))
        if actor is None:
            raise InvalidToken
        return actor

    async def _assess(
        self, user: User, device: JSON, known: KnownDevice | None, failures: int, origin: Origin
    ) -> trust.Trust:
        history = await self._transactions.read(lambda uow: uow.people.latest_sign_ins(user.id, HISTORY))
        seen = trust.Circumstances(
            now=self._ports.clock.now(),
            history=history,
            named=bool(device.get("id")),
            known=known is not None,
            network=network_of(origin.address),
            place=origin.place,
            failures=failures,
        )
        assessed = trust.assess(seen)
        details = {"score": assessed.score, "parts": assessed.parts} | whence(origin)
        if assessed.refuses:
            await self._ports.security.record(SecurityKind.LOGIN_REFUSED, user.id, details)
            raise SignInRefused
        if assessed.asks:
            await self._ports.security.record(SecurityKind.TRUST_LOW, user.id, details)
        return assessed

    async def _is_retry(self, uow: UnitOfWork, link: RefreshToken) -> bool:
        if link.used_at is None or link.successor_hash is None:
            return False
        if uow.now - link.used_at > timedelta(seconds=self._sign_ins.policy.retry_seconds):
            return False
        successor = await uow.people.refresh_token(link.successor_hash)
        return successor is not None and successor.used_at is None


async def _who(uow: UnitOfWork, email: str, key: str) -> tuple[User | None, KnownDevice | None]:
    user = await uow.people.by_email(email)
    return user, await uow.devices.find(user.id if user else "nobody", key)


def _is_of(sign_in: SignIn, actor: Actor) -> bool:
    return sign_in.id == actor.session_id


def _device_view(device: KnownDevice, *, current: bool) -> JSON:
    return {
        "id": device.id,
        "name": device.name,
        "platform": device.platform,
        "first_seen_at": wire_time(device.first_seen_at),
        "last_seen_at": wire_time(device.last_seen_at),
        "network": device.network,
        "current": current,
        "trust": device.trust_score,
        "trust_parts": dict(device.trust_parts),
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
