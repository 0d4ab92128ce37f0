"""The second factor: asking for it at sign-in, enrolling and leaving it, and proving once more that it is still you.

Whoever has confirmed a factor is always asked, on every device. Enrolment counts only once a code has confirmed it.
Every change ends the person's other sign-ins: whoever came in under the old rules leaves. E-mail and SMS depend on
somebody else's service; when that is away an authenticator and recovery codes still work.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import Field

from domain.errors import (
    AlreadyEnrolled,
    CodeRequired,
    InvalidCode,
    InvalidCredentials,
    InvalidParams,
    InvalidToken,
    NotEnrolled,
    Unavailable,
)
from domain.factors import (
    CHALLENGE_PREFIX,
    RECOVERY,
    Challenge,
    Factor,
    FactorKind,
    Purpose,
    code_hash,
    is_digits,
    masked_address,
    new_code,
    new_recovery_codes,
    new_token,
    recovery_hash,
    token_hash,
)
from domain.identity import Actor, User
from domain.letters import Letter, LetterKind, Medium
from domain.limits import account_key
from domain.ports import UnitOfWork
from domain.proofs import Proofs
from domain.security import SecurityEvents, SecurityKind
from domain.sign_ins import IdentityPorts, SignIns, whence
from domain.trust import Trust
from domain.types import JSON, Origin, wire_time
from domain.views import Params, View

_security = SecurityEvents()

Code = Annotated[str, Field(min_length=1, max_length=64, description="six digits, or a recovery code")]
Token = Annotated[str, Field(min_length=1, max_length=128)]
Secret = Annotated[str, Field(max_length=1024)]
Method = Literal["totp", "email", "sms"]
SentMethod = Literal["email", "sms"]


class VerifyParams(Params):
    """The answer to the challenge of a sign-in."""

    challenge: Token
    code: Code


class SendParams(Params):
    """Where to send a code for the challenge of a sign-in: one of its methods."""

    challenge: Token
    method: SentMethod


class SendAgainParams(Params):
    """Where to send a code to somebody who is signed in."""

    method: SentMethod


class EnrolParams(Params):
    """Which factor; ``phone`` goes with SMS."""

    method: Method = "totp"
    phone: Annotated[str, Field(pattern=r"^\+[1-9][0-9]{6,14}$", description="E.164")] | None = None


class ActivateParams(Params):
    """The first code of the new factor; ``challenge`` is that of the enrolment, when the code was sent."""

    code: Code
    challenge: Token | None = None


class AgainParams(Params):
    """A proof that it is still the same person: the password, and a code of whoever has a second factor."""

    password: Secret
    code: Code | None = None
    challenge: Token | None = None


class DisableParams(Params):
    """Both are needed to leave the second factor."""

    password: Secret
    code: Code
    challenge: Token | None = None


class MfaChallengeView(View):
    """The password was right; answer within ``expires_in`` seconds with a code of one of the methods."""

    mfa_required: Literal[True]
    challenge: str
    methods: list[str]
    expires_in: int


class EnrolmentView(View):
    """What to put into an authenticator app; or, for a code that was sent, its challenge and where it went."""

    secret: str | None = None
    otpauth_uri: str | None = None
    qr_svg: str | None = None
    challenge: str | None = None
    sent_to: str | None = None


class RecoveryCodesView(View):
    """Shown once. Empty when a further factor was added: the codes given before still count."""

    recovery_codes: list[str]


class SentView(View):
    """A code is on its way; ``challenge`` is what it answers."""

    challenge: str
    sent_to: str


class RecentView(View):
    """Until when sensitive operations are open to this sign-in."""

    recent_until: str


class FactorView(View):
    """A confirmed second factor."""

    method: str
    hint: str
    confirmed_at: str


class MfaView(View):
    """One's second factors."""

    factors: list[FactorView]
    recovery_codes_left: int


class SecondFactor:
    """The use cases."""

    def __init__(self, ports: IdentityPorts, sign_ins: SignIns) -> None:
        self._ports = ports
        self._transactions = ports.transactions
        self._gate = ports.gate
        self._sign_ins = sign_ins
        self._proofs = Proofs(ports)

    # --- signing in ---

    async def ask(self, user: User, device: JSON, assessed: Trust, origin: Origin) -> JSON | None:
        """The challenge of a sign-in whose password was right; ``None`` when nothing more is needed.

        A person without a factor is asked only when little speaks for the sign-in: for a code sent by e-mail.

        Raises:
            TooManyRequests: too many codes were sent.
            Unavailable: a code has to be sent, and cannot be.
        """
        factors = _confirmed(await self._transactions.read(lambda uow: uow.factors.of(user.id)))
        if not factors and not assessed.asks:
            return None
        methods = _methods(factors) or [FactorKind.EMAIL.value]
        token = new_token(CHALLENGE_PREFIX)
        data: dict[str, Any] = {"methods": methods, "device": device, "trust_parts": assessed.parts}
        sent = None
        if not factors:
            await self._gate.letter(account_key(user.email), origin.address)
            sent = new_code()
            data["sent_by"] = FactorKind.EMAIL.value
        await self._open_challenge(Purpose.SIGN_IN, user.id, token, data, sent, origin)
        if sent is not None:
            await self._ports.messenger.send(Letter(LetterKind.CODE, Medium.EMAIL, user.email, sent))
        return {
            "mfa_required": True,
            "challenge": token,
            "methods": methods,
            "expires_in": round(self._sign_ins.policy.challenge_seconds),
        }

    async def verify(self, params: VerifyParams, origin: Origin) -> JSON:
        """Tokens for the right code.

        Raises:
            InvalidToken: the challenge is unknown, spent, late, or for something else.
            InvalidCode: wrong, or used before.
            TooManyRequests: too many wrong codes of this account, whatever challenge they answered.
            Unavailable: the authenticator's secret cannot be opened now: nobody gets in without it.
        """
        await self._gate.enter(origin.address)
        challenge = await self._find(params.challenge, Purpose.SIGN_IN, origin)
        user_id = challenge.user_id or ""
        answer = await self._proofs.read(user_id, params.code, params.challenge, challenge)

        async def work(uow: UnitOfWork) -> JSON | None:
            user = await uow.people.lock_user(user_id)
            locked = await uow.challenges.lock(challenge.token_hash)
            if user is None or user.disabled_at is not None or locked is None or not locked.is_open(uow.now):
                raise InvalidToken
            proof = await self._proofs.judge(uow, user_id, answer, locked)
            if proof is None:
                await uow.challenges.save(replace(locked, attempts=locked.attempts + 1))
                await _attest(uow, SecurityKind.MFA_FAILED, user_id, origin)
                return None
            await uow.challenges.save(replace(locked, used_at=uow.now))
            device, parts = dict(locked.data["device"]), dict(locked.data["trust_parts"])
            if proof == RECOVERY:
                await _attest(uow, SecurityKind.RECOVERY_CODE_USED, user_id, origin)
            return await self._sign_ins.begin(uow, user, device, parts, origin)

        # A wrong answer must be committed as counted, so it is a result and not an error of the transaction.
        tokens = await self._transactions.write(work, origin)
        if tokens is None:
            await self._gate.failed(origin.address)
            raise InvalidCode
        return tokens

    async def send(self, params: SendParams, origin: Origin) -> JSON:
        """Sends a code for the challenge of a sign-in. The attempts left stay what they are.

        Raises:
            InvalidToken: as for :meth:`verify`.
            InvalidParams: not one of its methods.
            TooManyRequests: too many codes were sent.
            Unavailable: none can be sent now; another method may work.
        """
        await self._gate.enter(origin.address)
        challenge = await self._find(params.challenge, Purpose.SIGN_IN, origin)
        if params.method not in challenge.data["methods"]:
            raise InvalidParams.at("method", "not one of the challenge's methods")
        sent_to = await self._send_code(challenge.user_id or "", params.challenge, challenge, params.method, origin)
        return {"challenge": params.challenge, "sent_to": sent_to}

    # --- once more ---

    async def step_up(self, actor: Actor, params: AgainParams, origin: Origin) -> JSON:
        """Opens sensitive operations to this sign-in for a while.

        Raises:
            InvalidCredentials: the wrong password.
            CodeRequired: the person has a second factor and gave no code.
            InvalidCode, InvalidToken, TooManyRequests, Unavailable: as for :meth:`verify`.
        """
        until: list[str] = []

        async def then(uow: UnitOfWork, _: Sequence[Factor]) -> None:
            sign_in = await uow.people.lock_sign_in(actor.session_id)
            if sign_in is None or sign_in.revoked_at is not None:
                raise InvalidToken
            await uow.people.save_sign_in(replace(sign_in, authenticated_at=uow.now))
            until[:] = [wire_time(uow.now + timedelta(seconds=self._sign_ins.policy.step_up_seconds))]

        await self._again(actor, params.password, params.code, params.challenge, origin, then)
        return {"recent_until": until[0]}

    async def send_again(self, actor: Actor, params: SendAgainParams, origin: Origin) -> JSON:
        """Sends a code to somebody who is signed in, for :meth:`step_up` or :meth:`disable`.

        Raises:
            NotEnrolled: there is no such factor.
            TooManyRequests, Unavailable: as for :meth:`send`.
        """
        await self._gate.enter(origin.address)
        token = new_token(CHALLENGE_PREFIX)
        data = {"session_id": actor.session_id}
        challenge = await self._open_challenge(Purpose.STEP_UP, actor.user_id, token, data, None, origin)
        return {
            "challenge": token,
            "sent_to": await self._send_code(actor.user_id, token, challenge, params.method, origin),
        }

    # --- enrolling and leaving ---

    async def enrol(self, actor: Actor, params: EnrolParams, origin: Origin) -> JSON:
        """Begins an enrolment; it counts once :meth:`activate` has confirmed it. Beginning again starts anew.

        Raises:
            StepUpRequired: signed in too long ago.
            AlreadyEnrolled: this factor is confirmed.
            InvalidParams: SMS without a number.
            TooManyRequests, Unavailable: as for :meth:`send`.
        """
        await self._gate.enter(origin.address)
        kind = FactorKind(params.method)
        if kind is FactorKind.SMS and params.phone is None:
            raise InvalidParams.at("phone", "goes with sms")
        user = await self._user(actor)
        secret = {FactorKind.EMAIL: user.email, FactorKind.SMS: params.phone or ""}.get(kind)
        secret = secret or self._ports.codes.new_secret()
        sealed = await self._proofs.seal(user.id, kind, secret)
        hint = "" if kind is FactorKind.TOTP else masked_address(secret)

        async def work(uow: UnitOfWork) -> None:
            await uow.people.lock_user(user.id)
            await self._sign_ins.require_recent(uow, actor)
            if any(factor.kind is kind for factor in _confirmed(await uow.factors.of(user.id))):
                raise AlreadyEnrolled
            await uow.factors.put(Factor(user.id, kind, sealed, hint, last_step=0, created_at=uow.now))

        if kind is not FactorKind.TOTP:
            await self._gate.letter(account_key(user.email), origin.address)
        await self._transactions.write(work, origin)
        if kind is FactorKind.TOTP:
            uri = self._ports.codes.uri(secret, user.email)
            return {"secret": secret, "otpauth_uri": uri, "qr_svg": self._ports.codes.qr_svg(uri)}
        token, code = new_token(CHALLENGE_PREFIX), new_code()
        await self._open_challenge(Purpose.CONFIRM, user.id, token, {"sent_by": kind.value}, code, origin)
        await self._ports.messenger.send(Letter(LetterKind.CODE, Medium(kind.value), secret, code))
        return {"challenge": token, "sent_to": hint}

    async def activate(self, actor: Actor, params: ActivateParams, origin: Origin) -> JSON:
        """Confirms an enrolment with its first code. Ends the person's other sign-ins. With the first factor come
        recovery codes, which are shown here and never again.

        Raises:
            NotEnrolled: none waits to be confirmed.
            InvalidCode, InvalidToken, TooManyRequests, Unavailable: as for :meth:`verify`.
        """
        await self._gate.enter(origin.address)
        if not is_digits(params.code.strip()):
            raise InvalidCode
        challenge = await self._find(params.challenge, Purpose.CONFIRM, origin, actor) if params.challenge else None
        kind = FactorKind(challenge.data["sent_by"]) if challenge else FactorKind.TOTP
        answer = await self._proofs.read(actor.user_id, params.code, params.challenge, challenge, fresh=True)
        given = new_recovery_codes()

        async def work(uow: UnitOfWork) -> list[str] | None:
            await uow.people.lock_user(actor.user_id)
            factors = await uow.factors.of(actor.user_id)
            if not any(factor.kind is kind and factor.confirmed_at is None for factor in factors):
                raise NotEnrolled
            locked = await uow.challenges.lock(challenge.token_hash) if challenge else None
            if challenge is not None and (locked is None or not locked.is_open(uow.now)):
                raise InvalidToken
            proof = await self._proofs.judge(uow, actor.user_id, answer, locked)
            if locked is not None:
                spent = {"used_at": uow.now} if proof else {"attempts": locked.attempts + 1}
                await uow.challenges.save(replace(locked, **spent))
            if proof != kind:
                await _attest(uow, SecurityKind.MFA_FAILED, actor.user_id, origin)
                return None
            await uow.factors.confirm(actor.user_id, kind, uow.now)
            await self._sign_ins.end_all(uow, actor.user_id, "mfa_changed", but=actor.session_id)
            await _attest(uow, SecurityKind.MFA_ENABLED, actor.user_id, origin, method=kind.value)
            if _confirmed(factors):
                return []
            hashes = [recovery_hash(actor.user_id, code) for code in given]
            await uow.factors.replace_recovery_codes(actor.user_id, hashes)
            return given

        codes = await self._transactions.write(work, replace(origin, actor_id=actor.user_id))
        if codes is None:
            await self._gate.failed(origin.address)
            raise InvalidCode
        await self._tell_of_change(actor)
        return {"recovery_codes": codes}

    async def disable(self, actor: Actor, params: DisableParams, origin: Origin) -> None:
        """Removes every factor and recovery code, for password and code together. Ends the person's other sign-ins.

        Raises:
            NotEnrolled: there is nothing to disable.
            InvalidCredentials, InvalidCode, InvalidToken, TooManyRequests, Unavailable: as for :meth:`step_up`.
        """

        async def then(uow: UnitOfWork, factors: Sequence[Factor]) -> None:
            if not factors:
                raise NotEnrolled
            await uow.factors.remove_all(actor.user_id)
            await uow.challenges.end_all(actor.user_id, uow.now)
            await self._sign_ins.end_all(uow, actor.user_id, "mfa_changed", but=actor.session_id)
            await _attest(uow, SecurityKind.MFA_DISABLED, actor.user_id, origin)

        await self._again(actor, params.password, params.code, params.challenge, origin, then)
        await self._tell_of_change(actor)

    async def new_recovery_codes(self, actor: Actor, origin: Origin) -> JSON:
        """Recovery codes in place of those given before.

        Raises:
            StepUpRequired: signed in too long ago.
            NotEnrolled: they come with a second factor.
        """
        given = new_recovery_codes()

        async def work(uow: UnitOfWork) -> None:
            await uow.people.lock_user(actor.user_id)
            await self._sign_ins.require_recent(uow, actor)
            if not _confirmed(await uow.factors.of(actor.user_id)):
                raise NotEnrolled
            hashes = [recovery_hash(actor.user_id, code) for code in given]
            await uow.factors.replace_recovery_codes(actor.user_id, hashes)
            await _attest(uow, SecurityKind.RECOVERY_CODES_REPLACED, actor.user_id, origin)

        await self._transactions.write(work, replace(origin, actor_id=actor.user_id))
        return {"recovery_codes": given}

    async def state(self, actor: Actor) -> JSON:
        """The person's factors."""

        async def work(uow: UnitOfWork) -> JSON:
            factors = _confirmed(await uow.factors.of(actor.user_id))
            return {
                "factors": [
                    {
                        "method": factor.kind.value,
                        "hint": factor.hint,
                        "confirmed_at": wire_time(factor.confirmed_at or factor.created_at),
                    }
                    for factor in factors
                ],
                "recovery_codes_left": await uow.factors.recovery_codes_left(actor.user_id),
            }

        return await self._transactions.read(work)

    # --- what they share ---

    async def _again(
        self,
        actor: Actor,
        password: str,
        code: str | None,
        token: str | None,
        origin: Origin,
        then: Callable[[UnitOfWork, Sequence[Factor]], Awaitable[None]],
    ) -> None:
        """Password and code once more, then the rest, in one transaction."""
        await self._gate.enter(origin.address)
        user = await self._user(actor)
        # A count of its own: strangers at the front door do not delay somebody who is in.
        account = account_key(user.email, actor.session_id)
        verify = self._ports.passwords.verify
        if not await self._gate.attempt(account, lambda: verify(user.password_hash, password)):
            await self._gate.failed(origin.address)
            await self._ports.security.record(SecurityKind.STEP_UP_FAILED, user.id, whence(origin))
            raise InvalidCredentials
        await self._gate.succeeded(account)
        mine = _confirmed(await self._transactions.read(lambda uow: uow.factors.of(user.id)))
        if mine and code is None:
            raise CodeRequired(methods=_methods(mine))
        challenge = await self._find(token, Purpose.STEP_UP, origin, actor) if token else None
        answer = await self._proofs.read(user.id, code, token, challenge) if mine and code is not None else None

        async def work(uow: UnitOfWork) -> bool:
            locked_user = await uow.people.lock_user(user.id)
            if locked_user is None or locked_user.password_hash != user.password_hash:
                raise InvalidCredentials
            factors = _confirmed(await uow.factors.of(user.id))
            locked = await uow.challenges.lock(challenge.token_hash) if challenge else None
            if challenge is not None and (locked is None or not locked.is_open(uow.now)):
                raise InvalidToken
            if factors:
                proof = await self._proofs.judge(uow, user.id, answer, locked) if answer else None
                if locked is not None:
                    spent = {"used_at": uow.now} if proof else {"attempts": locked.attempts + 1}
                    await uow.challenges.save(replace(locked, **spent))
                if proof is None:
                    await _attest(uow, SecurityKind.MFA_FAILED, user.id, origin)
                    return False
                if proof == RECOVERY:
                    await _attest(uow, SecurityKind.RECOVERY_CODE_USED, user.id, origin)
            await then(uow, factors)
            return True

        if not await self._transactions.write(work, replace(origin, actor_id=actor.user_id)):
            await self._gate.failed(origin.address)
            raise InvalidCode

    async def _find(self, token: str, purpose: Purpose, origin: Origin, actor: Actor | None = None) -> Challenge:
        found = await self._transactions.read(lambda uow: uow.challenges.get(token_hash(token)))
        mine = found is not None and (actor is None or _is_of(found, actor))
        if found is None or not mine or found.purpose is not purpose or not found.is_open(self._ports.clock.now()):
            await self._gate.failed(origin.address)
            raise InvalidToken
        return found

    async def _open_challenge(
        self, purpose: Purpose, user_id: str, token: str, data: JSON, code: str | None, origin: Origin
    ) -> Challenge:
        hashed = None if code is None else code_hash(token, code)

        async def work(uow: UnitOfWork) -> Challenge:
            ends = uow.now + timedelta(seconds=self._sign_ins.policy.challenge_seconds)
            challenge = Challenge(token_hash(token), purpose, user_id, data, uow.now, ends, hashed)
            await uow.challenges.add(challenge)
            return challenge

        return await self._transactions.write(work, origin)

    async def _send_code(self, user_id: str, token: str, challenge: Challenge, method: str, origin: Origin) -> str:
        """Sends a new code for a challenge; the one before counts no longer. Returns where it went, masked."""
        user = await self._transactions.read(lambda uow: uow.people.user(user_id))
        factors = _confirmed(await self._transactions.read(lambda uow: uow.factors.of(user_id)))
        if user is None:
            raise InvalidToken
        factor = next((factor for factor in factors if factor.kind == method), None)
        if factor is not None:
            to = await self._proofs.open(factor)
        elif not factors and method == FactorKind.EMAIL and challenge.purpose is Purpose.SIGN_IN:
            to = user.email
        else:
            raise NotEnrolled
        await self._gate.letter(account_key(user.email), origin.address)
        code = new_code()

        async def work(uow: UnitOfWork) -> None:
            locked = await uow.challenges.lock(challenge.token_hash)
            if locked is None or not locked.is_open(uow.now):
                raise InvalidToken
            data = dict(locked.data) | {"sent_by": method}
            await uow.challenges.save(replace(locked, data=data, code_hash=code_hash(token, code)))

        await self._transactions.write(work, origin)
        await self._ports.messenger.send(Letter(LetterKind.CODE, Medium(method), to, code))
        return masked_address(to)

    async def _user(self, actor: Actor) -> User:
        user = await self._transactions.read(lambda uow: uow.people.user(actor.user_id))
        if user is None:
            raise InvalidToken
        return user

    async def _tell_of_change(self, actor: Actor) -> None:
        user = await self._user(actor)
        await tell(self._ports, Letter(LetterKind.MFA_CHANGED, Medium.EMAIL, user.email))


async def tell(ports: IdentityPorts, letter: Letter) -> None:
    """Sends news of something that has happened: if it cannot be sent, that is recorded, and the thing stays done."""
    try:
        await ports.messenger.send(letter)
    except Unavailable:
        await ports.security.record(SecurityKind.LETTER_NOT_SENT, None, {"kind": letter.kind.value})


async def _attest(uow: UnitOfWork, kind: SecurityKind, user_id: str, origin: Origin, **details: str) -> None:
    await _security.record(uow, kind, user_id, user_id, details | whence(origin))


def _confirmed(factors: Sequence[Factor]) -> list[Factor]:
    return [factor for factor in factors if factor.confirmed_at is not None]


def _methods(factors: Sequence[Factor]) -> list[str]:
    """How a person with these factors can answer; none without any."""
    kinds = [kind.value for kind in FactorKind if any(factor.kind is kind for factor in factors)]
    return [*kinds, RECOVERY] if kinds else []


def _is_of(challenge: Challenge, actor: Actor) -> bool:
    session_id = challenge.data.get("session_id")
    return challenge.user_id == actor.user_id and session_id in {None, actor.session_id}
