"""The people's side of a marketplace: accounts, second factors and passwords on a real database, with fakes where the
outside world begins.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pyotp
from sqlalchemy import select

from channels.throttle import InProcessLimiter
from domain.accounts import Accounts, Login, Register
from domain.credentials import ChangeParams, ConfirmResetParams, Credentials, ResetParams
from domain.errors import InvalidToken, Unavailable
from domain.identity import Actor
from domain.letters import Letter, LetterKind
from domain.limits import LimitPolicy
from domain.second_factor import (
    ActivateParams,
    AgainParams,
    DisableParams,
    EnrolParams,
    SecondFactor,
    SendParams,
    VerifyParams,
)
from domain.security import AuditEntry
from domain.sign_ins import IdentityPorts, SessionPolicy, SignIns
from domain.types import JSON, Origin
from persistence import tables
from server.one_time_codes import TimeBasedCodes
from tests.domain.marketplace import ORIGIN, Marketplace

PASSWORD = "correct horse battery"
ANN = "ann@example.test"
STEP_SECONDS = 30.0


class PlainPasswords:
    """Passwords hashed by writing "hashed " before them; remembers what it was asked to check."""

    def __init__(self) -> None:
        self.verified: list[tuple[str | None, str]] = []
        self.hashed = 0

    async def hash(self, password: str) -> str:
        self.hashed += 1
        return f"hashed {password}"

    async def verify(self, password_hash: str | None, password: str) -> bool:
        self.verified.append((password_hash, password))
        await asyncio.sleep(0)  # as hashing does: others go on meanwhile
        return password_hash in {f"hashed {password}", f"weakly hashed {password}"}

    def needs_rehash(self, password_hash: str) -> bool:
        return password_hash.startswith("weakly")


class NamingTokens:
    """Access tokens that say whose they are."""

    def issue(self, user_id: str, session_id: str, now: datetime) -> tuple[str, datetime]:
        return f"access {user_id} {session_id}", now + timedelta(minutes=15)


class BindingVault:
    """Seals by encoding, with a checksum over owner and purpose in place of a key; may be away."""

    def __init__(self) -> None:
        self.away = False

    async def seal(self, plain: bytes, *, owner: str, purpose: str) -> str:
        self._knock()
        return f"{self._check(plain, owner, purpose)}.{base64.b64encode(plain).decode()}"

    async def open(self, sealed: str, *, owner: str, purpose: str) -> bytes:
        self._knock()
        check, _, text = sealed.partition(".")
        plain = base64.b64decode(text)
        if check != self._check(plain, owner, purpose):
            raise Unavailable
        return plain

    def _knock(self) -> None:
        if self.away:
            raise Unavailable

    @staticmethod
    def _check(plain: bytes, owner: str, purpose: str) -> str:
        return hmac.new(f"{owner}/{purpose}".encode(), plain, hashlib.sha256).hexdigest()


class LetterBox:
    """A messenger that keeps what it was given; may be away."""

    def __init__(self) -> None:
        self.letters: list[Letter] = []
        self.away = False

    async def send(self, letter: Letter) -> None:
        if self.away:
            raise Unavailable
        self.letters.append(letter)

    def newest(self, kind: LetterKind) -> Letter:
        return next(letter for letter in reversed(self.letters) if letter.kind is kind)


class Noted:
    """Security events in order; what was attested in transactions is in ``attested``."""

    def __init__(self, attested: Sequence[AuditEntry]) -> None:
        self.events: list[tuple[str, str | None, JSON]] = []
        self.attested = attested

    async def record(self, kind: str, user_id: str | None, details: JSON) -> None:
        self.events.append((kind, user_id, details))

    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in self.events] + [entry.kind for entry in self.attested]


class Office:
    """One node's identity use cases, with shorter words for what tests do often."""

    def __init__(self, market: Marketplace, limits: LimitPolicy | None = None) -> None:
        self.market = market
        self.clock = market.clock
        self.passwords = PlainPasswords()
        self.vault = BindingVault()
        self.codes = TimeBasedCodes()
        self.letters = LetterBox()
        self.security = Noted(market.attested)
        ports = IdentityPorts(
            transactions=market.transactions,
            passwords=self.passwords,
            tokens=NamingTokens(),
            clock=market.clock,
            vault=self.vault,
            codes=self.codes,
            messenger=self.letters,
            limiter=InProcessLimiter(clock=lambda: market.clock.now().timestamp()),
            security=self.security,
            limits=limits or LimitPolicy(),
        )
        self.sign_ins = SignIns(ports.tokens, SessionPolicy())
        self.second_factor = SecondFactor(ports, self.sign_ins)
        self.accounts = Accounts(ports, self.sign_ins, self.second_factor)
        self.credentials = Credentials(ports, self.sign_ins)

    # --- accounts and sign-ins ---

    async def register(self, email: str = ANN, role: str = "customer") -> JSON:
        params = Register.model_validate({"email": email, "password": PASSWORD, "name": "Ann", "role": role})
        return await self.accounts.register(params, ORIGIN)

    async def login(self, email: str = ANN, password: str = PASSWORD, origin: Origin = ORIGIN, **params: Any) -> JSON:
        return await self.accounts.login(Login(email=email, password=password, **params), origin)

    async def refresh(self, token: str) -> str:
        successor: str = (await self.accounts.refresh(token, ORIGIN))["refresh_token"]
        return successor

    async def outcome(self, token: str) -> str:
        """The successor, or why there is none."""
        try:
            return await self.refresh(token)
        except InvalidToken as error:
            return error.type

    async def signed_in(self) -> str:
        """Registers and signs in; returns the refresh token."""
        await self.register()
        token: str = (await self.login())["refresh_token"]
        return token

    async def person(self, email: str = ANN) -> Actor:
        """Registers and signs in; returns who that is."""
        await self.register(email)
        return await self.actor(await self.login(email))

    async def actor(self, tokens: JSON) -> Actor:
        _, user_id, session_id = tokens["access_token"].split()
        return await self.accounts.actor(user_id, session_id)

    async def revoked(self) -> list[list[str]]:
        """The sessions that nodes were told to close, event by event."""
        told = await self.market.events("session.revoked")
        assert all(event.channels == {"control"} for event in told)
        return [event.data["session_ids"] for event in told]

    async def reasons(self) -> list[str | None]:
        return [row.revoked_reason for row in await self.market.rows(select(tables.sessions.c.revoked_reason))]

    # --- second factors ---

    def code(self, secret: str, steps: int = 0) -> str:
        """What an authenticator shows so many steps from now."""
        return pyotp.TOTP(secret).at(self.clock.now() + timedelta(seconds=steps * STEP_SECONDS))

    async def enrolled(self, actor: Actor) -> tuple[str, list[str]]:
        """Enrols and confirms an authenticator; returns its secret and the recovery codes. The code's step is over."""
        secret: str = (await self.second_factor.enrol(actor, EnrolParams(), ORIGIN))["secret"]
        given = await self.second_factor.activate(actor, ActivateParams(code=self.code(secret)), ORIGIN)
        self.clock.advance(2 * STEP_SECONDS)
        codes: list[str] = given["recovery_codes"]
        return secret, codes

    async def verify(self, challenge: str, code: str) -> JSON:
        return await self.second_factor.verify(VerifyParams(challenge=challenge, code=code), ORIGIN)

    async def challenge(self, email: str = ANN) -> str:
        """Signs in as far as the second factor."""
        asked = await self.login(email)
        assert asked["mfa_required"], asked
        token: str = asked["challenge"]
        return token

    async def send(self, challenge: str, method: str) -> str:
        """Has a code sent; returns it."""
        await self.second_factor.send(SendParams.model_validate({"challenge": challenge, "method": method}), ORIGIN)
        return self.letters.newest(LetterKind.CODE).secret

    async def step_up(self, actor: Actor, code: str | None = None, password: str = PASSWORD) -> JSON:
        return await self.second_factor.step_up(actor, AgainParams(password=password, code=code), ORIGIN)

    async def disable(self, actor: Actor, code: str, password: str = PASSWORD) -> None:
        await self.second_factor.disable(actor, DisableParams(password=password, code=code), ORIGIN)

    # --- passwords ---

    async def change(self, actor: Actor, new_password: str, password: str = PASSWORD) -> None:
        await self.credentials.change_password(
            actor, ChangeParams(password=password, new_password=new_password), ORIGIN
        )

    async def reset_token(self, email: str = ANN) -> str:
        await self.credentials.request_reset(ResetParams(email=email), ORIGIN)
        return self.letters.newest(LetterKind.PASSWORD_RESET).secret

    async def confirm_reset(self, token: str, new_password: str) -> None:
        await self.credentials.confirm_reset(ConfirmResetParams(token=token, new_password=new_password), ORIGIN)


def from_address(address: str, **more: Any) -> Origin:
    """A request from somewhere."""
    return replace(ORIGIN, address=address, **more)
