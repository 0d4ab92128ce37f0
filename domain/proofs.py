"""Judging one-time codes: of an authenticator, sent, or for recovery.

Invariants, whichever door the code came through:

* a code counts once, also when two nodes are asked at the same instant: each kind is taken by one conditional write;
* wrong six-digit codes are counted per account, in the database, and delay the next one; signing in anew resets
  nothing, only a right code does. Recovery codes are beyond guessing, so they are not delayed, and their owner is
  never locked out;
* the secret is opened outside the transaction, so no lock waits for a key service; when that is away, nobody gets in.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, replace
from datetime import timedelta

from domain.errors import TooManyRequests
from domain.factors import RECOVERY, Challenge, CodeGuard, Factor, FactorKind, code_hash, is_digits, recovery_hash
from domain.ports import UnitOfWork
from domain.sign_ins import IdentityPorts

TOTP_SECRET = "mfa.totp"  # noqa: S105 — what a sealed secret is for
DESTINATION = "mfa.destination"


@dataclass(frozen=True, slots=True)
class Answer:
    """A code as it was given, and what could be found out before the transaction.

    Attributes:
        step: the TOTP time step whose code it is.
        sent_by, sent_hash: how it was sent, and its stored hash, if it is the code that was sent for the challenge.
    """

    code: str
    step: int | None = None
    sent_by: str | None = None
    sent_hash: str | None = None


class Proofs:
    """Reads answers and judges them."""

    def __init__(self, ports: IdentityPorts) -> None:
        self._ports = ports

    async def read(
        self,
        user_id: str,
        code: str,
        token: str | None = None,
        challenge: Challenge | None = None,
        *,
        fresh: bool = False,
    ) -> Answer:
        """What the code is, before the transaction that judges it.

        Args:
            token, challenge: the challenge it answers, if a code was sent for one.
            fresh: judge by the authenticator that waits to be confirmed.

        Raises:
            TooManyRequests: the account has had too many wrong codes.
            Unavailable: the authenticator's secret cannot be opened now.
        """
        code = code.strip()
        if not is_digits(code):
            return Answer(code)
        factors = await self._ports.transactions.read(lambda uow: uow.factors.of(user_id))
        guard = await self._ports.transactions.read(lambda uow: uow.factors.guard(user_id, lock=False))
        _refuse_early(guard, self._ports)
        sent = challenge.code_hash if challenge is not None and token is not None else None
        if challenge and token and sent and hmac.compare_digest(sent, code_hash(token, code)):
            return Answer(code, sent_by=str(challenge.data["sent_by"]), sent_hash=sent)
        totp = next(
            (one for one in factors if one.kind is FactorKind.TOTP and (one.confirmed_at is None) is fresh), None
        )
        if totp is None:
            return Answer(code)
        secret = await self.open(totp)
        return Answer(code, self._ports.codes.matching_step(secret, code, self._ports.clock.now()))

    async def judge(
        self, uow: UnitOfWork, user_id: str, answer: Answer, challenge: Challenge | None = None
    ) -> str | None:
        """How the person has proven it, or ``None``. Commit either way: a wrong answer counts.

        Args:
            challenge: as locked in this transaction; the caller saves that it was used, or one attempt more.

        Raises:
            TooManyRequests: others have used up the account's attempts meanwhile.
        """
        if not is_digits(answer.code):
            spent = await uow.factors.use_recovery_code(user_id, recovery_hash(user_id, answer.code), uow.now)
            return RECOVERY if spent else None
        guard = await uow.factors.guard(user_id, lock=True)
        if guard.next_at is not None and guard.next_at > uow.now:
            raise TooManyRequests((guard.next_at - uow.now).total_seconds())
        proof: str | None = None
        if answer.sent_by is not None and challenge is not None:
            # A newer code may have been sent since the answer was read; only the newest counts.
            proof = answer.sent_by if challenge.code_hash == answer.sent_hash else None
        elif answer.step is not None and await uow.factors.use_step(user_id, answer.step):
            proof = FactorKind.TOTP
        await uow.factors.save_guard(self._after(guard, uow, right=proof is not None))
        return proof

    async def open(self, factor: Factor) -> str:
        """A factor's secret in clear.

        Raises:
            Unavailable: the key is away.
        """
        purpose = TOTP_SECRET if factor.kind is FactorKind.TOTP else DESTINATION
        return (await self._ports.vault.open(factor.secret, owner=factor.user_id, purpose=purpose)).decode()

    async def seal(self, user_id: str, kind: FactorKind, secret: str) -> str:
        """The opposite.

        Raises:
            Unavailable: the key is away.
        """
        purpose = TOTP_SECRET if kind is FactorKind.TOTP else DESTINATION
        return await self._ports.vault.seal(secret.encode(), owner=user_id, purpose=purpose)

    def _after(self, guard: CodeGuard, uow: UnitOfWork, *, right: bool) -> CodeGuard:
        if right:
            return replace(guard, failures=0, next_at=None)
        failures = guard.failures + 1
        delay = self._ports.limits.codes.after(failures)
        return replace(guard, failures=failures, next_at=uow.now + timedelta(seconds=delay) if delay else None)


def _refuse_early(guard: CodeGuard, ports: IdentityPorts) -> None:
    now = ports.clock.now()
    if guard.next_at is not None and guard.next_at > now:
        raise TooManyRequests((guard.next_at - now).total_seconds())
