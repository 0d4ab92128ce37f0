"""The beginning and the end of sign-ins, the same whichever way they came about.

Whoever begins a sign-in, or ends all of a person's, holds the lock of the person's row: a sign-in that was let in by a
password cannot slip past the change of that password. Then sign-ins are locked in the order of their ids.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from domain.errors import InvalidToken, StepUpRequired
from domain.events import Event
from domain.factors import KnownDevice, device_key, token_hash
from domain.identity import Actor, RefreshToken, Role, SignIn, User
from domain.limits import Gate, LimitPolicy
from domain.networks import network_of
from domain.ports import (
    AccessTokens,
    Clock,
    Limiter,
    Messenger,
    OneTimeCodes,
    Passwords,
    SecurityEvents,
    Transactions,
    UnitOfWork,
    Vault,
)
from domain.types import JSON, Origin, new_id
from domain.views import View

DAY_SECONDS = 86_400.0
TOKEN_PREFIX = "fxr_"  # noqa: S105 — names the kind, so that logs and secret scanners can recognise one
MOST_DEVICES = 50
"""Of one person; the one not seen for longest makes room."""


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


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """How long what belongs to a sign-in lives, in seconds.

    Attributes:
        refresh_seconds: a refresh token unused for so long ends; each rotation starts anew.
        absolute_seconds: a sign-in ends then, however often it was refreshed.
        retry_seconds: how long a used token may be presented again by a client that missed the reply.
        challenge_seconds: time to answer for the second factor.
        reset_seconds: life of a token that resets a password.
        step_up_seconds: how recent a proof sensitive operations ask for.
    """

    refresh_seconds: float = 30 * DAY_SECONDS
    absolute_seconds: float = 90 * DAY_SECONDS
    retry_seconds: float = 10
    challenge_seconds: float = 600
    reset_seconds: float = 1_800
    step_up_seconds: float = 600


@dataclass(frozen=True, slots=True)
class IdentityPorts:
    """What the use cases around accounts need from outside."""

    transactions: Transactions
    passwords: Passwords
    tokens: AccessTokens
    clock: Clock
    vault: Vault
    codes: OneTimeCodes
    messenger: Messenger
    limiter: Limiter
    security: SecurityEvents
    limits: LimitPolicy = field(default_factory=LimitPolicy)

    @property
    def gate(self) -> Gate:
        """The doors' limits."""
        return Gate(self.limiter, self.limits)


class SignIns:
    """Begins, renews and ends sign-ins, each within the caller's transaction."""

    def __init__(self, tokens: AccessTokens, policy: SessionPolicy) -> None:
        self._tokens = tokens
        self.policy = policy

    async def begin(
        self, uow: UnitOfWork, user: User, device: JSON, trust_parts: dict[str, int], origin: Origin
    ) -> JSON:
        """A sign-in with its first pair of tokens. The caller holds the lock of the user."""
        network = network_of(origin.address)
        known = await self._meet_device(uow, user.id, device, trust_parts, network)
        sign_in = SignIn(
            id=new_id(uow.now),
            user_id=user.id,
            device=device,
            created_at=uow.now,
            last_used_at=uow.now,
            expires_at=uow.now + timedelta(seconds=self.policy.absolute_seconds),
            authenticated_at=uow.now,
            device_id=known,
            network=network,
            lat=origin.place.lat if origin.place else None,
            lon=origin.place.lon if origin.place else None,
            trust_score=sum(trust_parts.values()),
            trust_parts=trust_parts,
        )
        await uow.people.add_sign_in(sign_in)
        token = TOKEN_PREFIX + secrets.token_urlsafe(32)
        await uow.people.add_refresh_token(self._link(token, sign_in, uow.now))
        return await self.tokens_view(uow, sign_in, token)

    async def rotate(self, uow: UnitOfWork, link: RefreshToken, sign_in: SignIn, token: str) -> str:
        """Uses a refresh token; returns its successor. The caller holds the lock of the sign-in."""
        nonce = secrets.token_urlsafe(24)
        successor = successor_of(token, nonce)
        await uow.people.add_refresh_token(self._link(successor, sign_in, uow.now))
        await uow.people.save_refresh_token(
            replace(link, used_at=uow.now, successor_nonce=nonce, successor_hash=token_hash(successor))
        )
        return successor

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

    async def end_all(
        self, uow: UnitOfWork, user_id: str, reason: str, *, but: str | None = None, device_id: str | None = None
    ) -> int:
        """Ends the person's sign-ins: all, all but one, or those of one device. Returns how many there were."""
        ended = 0
        # In the order of their ids: two calls at once must not wait for each other.
        for listed in sorted(await uow.people.sign_ins(user_id), key=lambda sign_in: sign_in.id):
            if listed.id == but or (device_id is not None and listed.device_id != device_id):
                continue
            sign_in = await uow.people.lock_sign_in(listed.id)
            if sign_in is not None and sign_in.revoked_at is None:
                await self.end(uow, sign_in, reason)
                ended += 1
        return ended

    async def require_recent(self, uow: UnitOfWork, actor: Actor) -> None:
        """For sensitive operations: whether the person has proven lately, all factors included, that it is them.

        Raises:
            StepUpRequired: not within the policy's time.
        """
        recent = uow.now - timedelta(seconds=self.policy.step_up_seconds)
        mine = await uow.people.sign_ins(actor.user_id)
        if not any(sign_in.id == actor.session_id and sign_in.proven_at > recent for sign_in in mine):
            raise StepUpRequired

    async def tokens_view(self, uow: UnitOfWork, sign_in: SignIn, refresh_token: str) -> JSON:
        """What a client gets: a fresh access token beside the refresh token.

        Raises:
            InvalidToken: the account was disabled.
        """
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
            "user": user_view(user, sorted(actor.provider_ids)),
        }

    async def _meet_device(
        self, uow: UnitOfWork, user_id: str, device: JSON, trust_parts: dict[str, int], network: str | None
    ) -> str | None:
        if not device.get("id"):
            return None
        key = device_key(device["id"])
        known = await uow.devices.find(user_id, key)
        if known is None:
            for forgotten in (await uow.devices.of(user_id))[MOST_DEVICES - 1 :]:
                await uow.devices.remove(forgotten.id)
        met: dict[str, Any] = {
            "name": device.get("name", ""),
            "platform": device.get("platform", ""),
            "last_seen_at": uow.now,
            "network": network,
            "trust_score": sum(trust_parts.values()),
            "trust_parts": trust_parts,
        }
        if known is not None:
            known = replace(known, **met)
        else:
            known = KnownDevice(id=new_id(uow.now), user_id=user_id, key=key, first_seen_at=uow.now, **met)
        await uow.devices.put(known)
        return known.id

    def _link(self, token: str, sign_in: SignIn, now: datetime) -> RefreshToken:
        ends = min(now + timedelta(seconds=self.policy.refresh_seconds), sign_in.expires_at)
        return RefreshToken(token_hash(token), sign_in.id, now, ends)


def successor_of(token: str, nonce: str) -> str:
    """The token that follows: HMAC-SHA256 of a stored random nonce under the token itself (RFC 2104).

    The database alone cannot make it, for it does not hold the token; the holder alone cannot, without the nonce.
    """
    digest = hmac.new(token.encode(), nonce.encode(), hashlib.sha256).digest()
    return TOKEN_PREFIX + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def whence(origin: Origin) -> JSON:
    """Where a request came from, as security events tell it."""
    return {"network": network_of(origin.address)}


def user_view(user: User, provider_ids: list[str]) -> JSON:
    """An account as its owner sees it."""
    return {
        "id": user.id,
        "email": user.email,
        "name": user.name,
        "roles": sorted(role.value for role in user.roles),
        "provider_ids": provider_ids,
    }
