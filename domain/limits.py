"""How often somebody may knock: rates and growing delays at the doors that need no sign-in.

Rules:

* Failures delay the next attempt for an account and for an address: a few are free, then the delay doubles up to a
  bound. Nobody is locked out for good, whatever others do in their name.
* A device that the person has used before has a count of its own, so that strangers who keep failing do not delay its
  owner there.
* Everything is asked before a password is hashed: who is refused costs no Argon2.
* What is bounded per account is counted as it is asked, not once it is done: coming all at once helps nobody.
* Keys are hashes: a limiter's memory, here or in Redis, holds no e-mail address.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from domain.errors import TooManyRequests, Unavailable
from domain.networks import line_of

if TYPE_CHECKING:
    from domain.ports import Limiter


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket: ``per_second`` in the long run, ``burst`` at once; ``name`` keeps a subject's buckets apart."""

    name: str
    per_second: float
    burst: int


@dataclass(frozen=True, slots=True)
class Delays:
    """Growing delays after failures.

    Attributes:
        free: failures without consequence.
        first_seconds: the delay after the next one; each further failure doubles it.
        longest_seconds: no delay is longer, so nobody is locked out for good.
        forget_seconds: so long after the last failure everything is forgotten.
    """

    name: str
    free: int
    first_seconds: float
    longest_seconds: float
    forget_seconds: float

    def after(self, failures: int) -> float:
        """Seconds until the next attempt after so many failures."""
        beyond = failures - self.free
        if beyond <= 0:
            return 0.0
        # The exponent is bounded as well: a power of thousands would be a number nobody can hold.
        return min(self.longest_seconds, self.first_seconds * 2.0 ** min(beyond - 1, 32))


@dataclass(frozen=True, slots=True)
class LimitPolicy:
    """The numbers.

    Attributes:
        requests: to every door, of one address.
        address: wrong passwords and tokens from one address; generous, as a household or an office may share it.
        account: wrong passwords of one account.
        codes: wrong one-time codes of one account. Six digits and three time steps make a guess right once in 333,333
            times; 24 guesses a day would need decades (NIST SP 800-63B, section 5.2.2, asks for at most 100 in a row).
        letters: codes to one account, each of which counts; who asks for one has proven something already.
        resets: the same for resets of its password. Counted apart: strangers, who may ask for these, must not keep
            an account's owner from codes.
        letters_from: messages asked for from one address, to whomever: each costs money, or somebody's patience.
    """

    requests: Rate = Rate("auth-requests", 20.0, 300)
    address: Delays = Delays("auth-address", 100, 1.0, 60.0, 900.0)
    account: Delays = Delays("auth-account", 10, 1.0, 60.0, 3_600.0)
    codes: Delays = Delays("auth-codes", 5, 30.0, 3_600.0, 0.0)
    letters: Delays = Delays("auth-letters", 5, 60.0, 900.0, 3_600.0)
    resets: Delays = Delays("auth-resets", 5, 60.0, 900.0, 3_600.0)
    letters_from: Delays = Delays("auth-letters-from", 50, 1.0, 60.0, 3_600.0)


class Gate:
    """Asks the limiter the questions of the doors. Every method that may refuse raises ``TooManyRequests``."""

    def __init__(self, limiter: Limiter, policy: LimitPolicy) -> None:
        self._limiter = limiter
        self._policy = policy

    async def enter(self, address: str) -> None:
        """One request of an address, whatever it is about. Without an address nobody is limited: it is the command
        line or the server itself.
        """
        if not address:
            return
        line = line_of(address)
        _refuse(await self._limiter.take(self._policy.requests, line))
        _refuse(await self._limiter.attempt(self._policy.address, line))

    async def attempt(self, account: str, check: Callable[[], Awaitable[bool]]) -> bool:
        """One attempt at a password of this account; returns whether ``check`` found it right.

        It counts as wrong before it is checked, or of many at the same moment each would be let in before the first
        has failed. :meth:`succeeded` takes that back.

        Raises:
            TooManyRequests: nothing was checked.
            Unavailable: nothing was checked, and nothing counts.
        """
        _refuse(await self._limiter.charge(self._policy.account, account))
        try:
            return await check()
        except Unavailable:
            await self._limiter.refund(self._policy.account, account)
            raise

    async def failed(self, address: str) -> None:
        """The attempt failed; what it was about, if anything, was charged beforehand."""
        if address:
            await self._limiter.failed(self._policy.address, line_of(address))

    async def succeeded(self, account: str) -> None:
        """The person behind the account is here: their failures are forgotten. The address's are not, or an attacker
        would sign in to an account of their own between two guesses.
        """
        await self._limiter.forget(self._policy.account, account)

    async def letter(self, account: str, address: str) -> None:
        """One code to this account, asked for from this address."""
        await self._send(self._policy.letters, account, address)

    async def reset(self, account: str, address: str) -> None:
        """One reset of this account, known or not, asked for from this address."""
        await self._send(self._policy.resets, account, address)

    async def _send(self, delays: Delays, account: str, address: str) -> None:
        if address:
            _refuse(await self._limiter.charge(self._policy.letters_from, line_of(address)))
        _refuse(await self._limiter.charge(delays, account))

    async def failures(self, account: str) -> int:
        """Recent wrong passwords of this account, those that are being checked among them."""
        return await self._limiter.failures(self._policy.account, account)


def account_key(email: str, device_key: str | None = None) -> str:
    """What an account is called in a limiter, known or not; with the key of a device it has used, that device's own."""
    name = email.strip().lower()
    return hashlib.sha256(f"{name}\n{device_key or ''}".encode()).hexdigest()


def _refuse(wait_seconds: float) -> None:
    if wait_seconds > 0:
        raise TooManyRequests(wait_seconds)
