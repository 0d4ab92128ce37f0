"""One-time codes of authenticator apps: TOTP (RFC 6238) with SHA-1, six digits and thirty seconds, which is what every
app knows.
"""

from __future__ import annotations

import hmac
from datetime import datetime
from typing import Final

import pyotp
import segno

ISSUER: Final = "Fixnado"
STEP_SECONDS: Final = 30
WINDOW_STEPS: Final = 1
"""Steps to either side, for clocks that differ and people that type (section 5.2)."""


class TimeBasedCodes:
    """See :class:`domain.ports.OneTimeCodes`. Short enough for the loop: three hashes."""

    def new_secret(self) -> str:
        return pyotp.random_base32(32)

    def matching_step(self, secret: str, code: str, now: datetime) -> int | None:
        totp = pyotp.TOTP(secret, interval=STEP_SECONDS)
        present = int(now.timestamp()) // STEP_SECONDS
        found = None
        # All of them are compared, whichever it is. The newest wins, so that no earlier one is left to use.
        for step in range(present - WINDOW_STEPS, present + WINDOW_STEPS + 1):
            if hmac.compare_digest(totp.generate_otp(step), code):
                found = step
        return found

    def uri(self, secret: str, account: str) -> str:
        return pyotp.TOTP(secret, interval=STEP_SECONDS).provisioning_uri(name=account, issuer_name=ISSUER)

    def qr_svg(self, uri: str) -> str:
        svg: str = segno.make(uri, error="m").svg_inline(scale=4, border=2, dark="#000", light="#fff")
        return svg
