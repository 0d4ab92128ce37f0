"""What is sent to people outside the product: codes, reset tokens, and news about their account."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class LetterKind(StrEnum):
    """Why somebody is written to."""

    CODE = "code"
    PASSWORD_RESET = "password_reset"  # noqa: S105 — a kind of letter
    PASSWORD_CHANGED = "password_changed"  # noqa: S105 — as above
    MFA_CHANGED = "mfa_changed"


class Medium(StrEnum):
    """How. Push messages carry notifications, never letters."""

    PUSH = "push"
    SMS = "sms"
    EMAIL = "email"


@dataclass(frozen=True, slots=True)
class Letter:
    """One message. Neither the address nor the secret shows in a ``repr``, and so in no log line or traceback.

    Attributes:
        to: an e-mail address, or a phone number in E.164 form.
        secret: the code or token it carries, if any.
    """

    kind: LetterKind
    medium: Medium
    to: str = field(repr=False)
    secret: str = field(default="", repr=False)
