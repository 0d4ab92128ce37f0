"""Changing and resetting a password, and disabling an account: what ends everything that began before.

All three hold the lock of the person's row, under which sign-ins begin; a sign-in with the old password is therefore
either over before, and ended here, or finds the new password and is refused.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Annotated

from pydantic import Field

from domain.accounts import Email, Password
from domain.errors import Forbidden, InvalidCredentials, InvalidToken
from domain.factors import RESET_PREFIX, Challenge, Purpose, new_token, token_hash
from domain.identity import Actor
from domain.letters import Letter, LetterKind, Medium
from domain.limits import account_key
from domain.ports import UnitOfWork
from domain.second_factor import tell
from domain.security import SecurityEvents, SecurityKind
from domain.sign_ins import IdentityPorts, SignIns, whence
from domain.types import JSON, Origin
from domain.views import Params

_security = SecurityEvents()


class ChangeParams(Params):
    """The password one has, and the one to have from now on."""

    password: Annotated[str, Field(max_length=1024)]
    new_password: Password


class ResetParams(Params):
    """The account whose password is forgotten."""

    email: Email


class ConfirmResetParams(Params):
    """The token that was sent, and the password to have from now on."""

    token: Annotated[str, Field(min_length=1, max_length=128)]
    new_password: Password


class Credentials:
    """The use cases."""

    def __init__(self, ports: IdentityPorts, sign_ins: SignIns) -> None:
        self._ports = ports
        self._transactions = ports.transactions
        self._gate = ports.gate
        self._sign_ins = sign_ins

    async def change_password(self, actor: Actor, params: ChangeParams, origin: Origin) -> None:
        """Sets a new password and ends the person's other sign-ins.

        Raises:
            InvalidCredentials: the present password is not right.
            StepUpRequired: the person has a second factor and proved it too long ago.
            TooManyRequests: too many wrong passwords.
        """
        await self._gate.enter(origin.address)
        user = await self._transactions.read(lambda uow: uow.people.user(actor.user_id))
        if user is None:
            raise InvalidToken
        account = account_key(user.email, actor.session_id)
        verify = self._ports.passwords.verify
        if not await self._gate.attempt(account, lambda: verify(user.password_hash, params.password)):
            await self._gate.failed(origin.address)
            raise InvalidCredentials
        await self._gate.succeeded(account)
        await self._transactions.read(lambda uow: self._may_change(uow, actor))
        password_hash = await self._ports.passwords.hash(params.new_password)

        async def work(uow: UnitOfWork) -> None:
            locked = await uow.people.lock_user(user.id)
            if locked is None or locked.disabled_at is not None or locked.password_hash != user.password_hash:
                raise InvalidCredentials
            await self._may_change(uow, actor)
            await self._replace(
                uow, user.id, password_hash, SecurityKind.PASSWORD_CHANGED, origin, but=actor.session_id
            )

        await self._transactions.write(work, replace(origin, actor_id=actor.user_id))
        await tell(self._ports, Letter(LetterKind.PASSWORD_CHANGED, Medium.EMAIL, user.email))

    async def request_reset(self, params: ResetParams, origin: Origin) -> JSON:
        """Sends a reset token to the address if it is somebody's who has a password here. The answer and the work are
        the same if not.

        Raises:
            TooManyRequests: too many requests from the address, or for the account, known or not.
        """
        await self._gate.enter(origin.address)
        await self._gate.reset(account_key(params.email), origin.address)
        user = await self._transactions.read(lambda uow: uow.people.by_email(params.email))
        if user is not None and (user.disabled_at is not None or user.own_password_hash is None):
            # Who signs in elsewhere has no password here, and gets none: it would open a door past the issuer's.
            user = None
        token = new_token(RESET_PREFIX)

        async def work(uow: UnitOfWork) -> None:
            ends = uow.now + timedelta(seconds=self._sign_ins.policy.reset_seconds)
            user_id = user.id if user else None
            await uow.challenges.add(Challenge(token_hash(token), Purpose.RESET, user_id, {}, uow.now, ends))
            await _security.record(uow, SecurityKind.PASSWORD_RESET_ASKED, "anonymous", user_id, whence(origin))

        await self._transactions.write(work, origin)
        if user is not None:
            await tell(self._ports, Letter(LetterKind.PASSWORD_RESET, Medium.EMAIL, user.email, token))
        return {}

    async def confirm_reset(self, params: ConfirmResetParams, origin: Origin) -> None:
        """Sets a new password and ends all of the person's sign-ins. A second factor stays what it is.

        Raises:
            InvalidToken: unknown, used, late, or for something else.
            TooManyRequests: too many wrong tokens from the address.
        """
        await self._gate.enter(origin.address)
        hashed = token_hash(params.token)
        asked = await self._transactions.read(lambda uow: uow.challenges.get(hashed))
        # Before anything is hashed: rubbish costs no Argon2.
        if not _good(asked, self._ports) or asked is None or asked.user_id is None:
            await self._gate.failed(origin.address)
            raise InvalidToken
        user_id = asked.user_id
        password_hash = await self._ports.passwords.hash(params.new_password)

        async def work(uow: UnitOfWork) -> str:
            user = await uow.people.lock_user(user_id)
            locked = await uow.challenges.lock(hashed)
            if user is None or user.disabled_at is not None or user.own_password_hash is None:
                raise InvalidToken
            if locked is None or not locked.is_open(uow.now):
                raise InvalidToken
            # This token is among what ends here.
            await self._replace(uow, user_id, password_hash, SecurityKind.PASSWORD_RESET, origin)
            return user.email

        email = await self._transactions.write(work, replace(origin, actor_id=user_id))
        # Whoever reads the account's mail is its owner; strangers' failures at the password that was count no longer.
        await self._gate.succeeded(account_key(email))
        await tell(self._ports, Letter(LetterKind.PASSWORD_CHANGED, Medium.EMAIL, email))

    async def disable(self, email: str, origin: Origin) -> None:
        """Disables an account: nobody signs in to it, and whoever is in is out within a second.

        Raises:
            Forbidden: there is no such account.
        """
        await self._set_disabled(email, True, origin)

    async def enable(self, email: str, origin: Origin) -> None:
        """Lets people sign in to the account again.

        Raises:
            Forbidden: there is no such account.
        """
        await self._set_disabled(email, False, origin)

    async def _set_disabled(self, email: str, disabled: bool, origin: Origin) -> None:
        async def work(uow: UnitOfWork) -> None:
            user = await uow.people.by_email(email.strip().lower())
            if user is None or await uow.people.lock_user(user.id) is None:
                raise Forbidden("There is no such account.")
            await uow.people.disable(user.id, uow.now if disabled else None)
            if disabled:
                await uow.challenges.end_all(user.id, uow.now)
                await self._sign_ins.end_all(uow, user.id, "disabled")
            await _security.record(
                uow, SecurityKind.USER_DISABLED if disabled else SecurityKind.USER_ENABLED, origin.actor_id, user.id
            )

        await self._transactions.write(work, origin)

    async def _may_change(self, uow: UnitOfWork, actor: Actor) -> None:
        """The password alone is proof enough only for whoever has nothing else."""
        if any(factor.confirmed_at is not None for factor in await uow.factors.of(actor.user_id)):
            await self._sign_ins.require_recent(uow, actor)

    async def _replace(
        self,
        uow: UnitOfWork,
        user_id: str,
        password_hash: str,
        what: SecurityKind,
        origin: Origin,
        but: str | None = None,
    ) -> None:
        await uow.people.save_password(user_id, password_hash)
        await uow.challenges.end_all(user_id, uow.now)
        await self._sign_ins.end_all(uow, user_id, what.value, but=but)
        await _security.record(uow, what, user_id, user_id, whence(origin))


def _good(asked: Challenge | None, ports: IdentityPorts) -> bool:
    return asked is not None and asked.purpose is Purpose.RESET and asked.is_open(ports.clock.now())
