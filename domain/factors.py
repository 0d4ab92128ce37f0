"""Second factors and challenges: what is stored of them, and the few pure functions around codes and tokens.

A challenge is an opaque token with one purpose, a short life and few attempts. Only its hash is stored. A code that was
sent is stored as a hash keyed by the token, which the database does not have; so a copy of the database gives away
neither.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any


class FactorKind(StrEnum):
    """What a person can prove besides the password."""

    TOTP = "totp"
    EMAIL = "email"
    SMS = "sms"


RECOVERY = "recovery"
"""A method of answering that is no factor by itself: it comes with the first one."""

RECOVERY_CODES = 10
MOST_ATTEMPTS = 5
"""Wrong codes for one challenge; then it is spent."""

CHALLENGE_PREFIX = "fxm_"
RESET_PREFIX = "fxp_"


class Purpose(StrEnum):
    """What a challenge is for; it counts for nothing else."""

    SIGN_IN = "sign_in"
    STEP_UP = "step_up"
    CONFIRM = "confirm"
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class Factor:
    """A second factor of a person.

    Attributes:
        secret: sealed (see :class:`domain.ports.Vault`): the TOTP secret, or the address that codes are sent to.
        hint: enough for its owner to recognise it.
        last_step: the newest TOTP time step that was used; earlier ones are spent.
        confirmed_at: a factor counts from then on.
    """

    user_id: str
    kind: FactorKind
    secret: str
    hint: str
    last_step: int
    created_at: datetime
    confirmed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class CodeGuard:
    """Wrong one-time codes of an account since the last right one, whatever challenge they answered."""

    user_id: str
    failures: int = 0
    next_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Challenge:
    """A token that waits for its answer.

    Attributes:
        user_id: ``None`` when somebody asked to reset the password of an address nobody registered: the same work is
            done for it.
        data: what the purpose needs; never secret.
        code_hash: of the newest code that was sent for it.
    """

    token_hash: str
    purpose: Purpose
    user_id: str | None
    data: Mapping[str, Any]
    created_at: datetime
    expires_at: datetime
    code_hash: str | None = None
    attempts: int = 0
    used_at: datetime | None = None

    def is_open(self, now: datetime) -> bool:
        return self.used_at is None and now < self.expires_at and self.attempts < MOST_ATTEMPTS


@dataclass(frozen=True, slots=True)
class KnownDevice:
    """A device from which the person has signed in.

    Attributes:
        key: SHA-256 of the id the client chose; the id itself speaks for the device, so it is not kept.
        trust_score, trust_parts: of the latest sign-in from it.
    """

    id: str
    user_id: str
    key: str
    name: str
    platform: str
    first_seen_at: datetime
    last_seen_at: datetime
    network: str | None
    trust_score: int
    trust_parts: Mapping[str, int]


def new_token(prefix: str) -> str:
    """256 random bits behind a prefix by which logs and secret scanners recognise them."""
    return prefix + secrets.token_urlsafe(32)


def token_hash(token: str) -> str:
    """SHA-256, hex. A token has 256 random bits, so a slow hash would add nothing."""
    return hashlib.sha256(token.encode()).hexdigest()


def device_key(client_id: str) -> str:
    """What is stored of the id by which a client names its device."""
    return hashlib.sha256(client_id.encode()).hexdigest()


def new_code() -> str:
    """Six random digits, to be sent."""
    return f"{secrets.randbelow(1_000_000):06d}"


def code_hash(token: str, code: str) -> str:
    """HMAC-SHA256 of a sent code under the challenge's token (RFC 2104)."""
    return hmac.new(token.encode(), code.encode(), hashlib.sha256).hexdigest()


_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32: no i, l, o, u."""

_DIGITS = re.compile(r"\d{6}")


def new_recovery_codes() -> list[str]:
    """Codes of 80 random bits, such as ``7k3m-xq2p-0v9d-hh4t``: beyond guessing, online or off."""
    made = []
    for _ in range(RECOVERY_CODES):
        text = "".join(secrets.choice(_ALPHABET) for _ in range(16))
        made.append("-".join(text[at : at + 4] for at in range(0, 16, 4)))
    return made


def recovery_hash(user_id: str, code: str) -> str:
    """SHA-256 of the code without what people add or mistype, salted with its owner."""
    text = re.sub(r"[\s-]", "", code).lower().translate(str.maketrans("ilo", "110"))
    return hashlib.sha256(f"{user_id}\n{text}".encode()).hexdigest()


def is_digits(code: str) -> bool:
    """Whether a code is of the six-digit kind: from an authenticator, or sent."""
    return _DIGITS.fullmatch(code) is not None


def masked_address(address: str) -> str:
    """An e-mail address or a phone number its owner recognises and others cannot use."""
    name, at, domain = address.partition("@")
    if at:
        return f"{name[:1]}•••@{domain}"[:64]
    return f"{address[:3]}•••{address[-2:]}"
