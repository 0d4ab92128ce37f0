"""The table of REST operations: login, sessions and the way to every command.

:mod:`server.http` serves it and :mod:`server.specs` describes it; nothing is declared twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from domain.accounts import Accounts, DeviceList, Login, LoginResult, RefreshParams, Register, SignInList
from domain.credentials import ChangeParams, ConfirmResetParams, Credentials, ResetParams
from domain.identity import Actor
from domain.second_factor import (
    ActivateParams,
    AgainParams,
    DisableParams,
    EnrolmentView,
    EnrolParams,
    MfaView,
    RecentView,
    RecoveryCodesView,
    SecondFactor,
    SendAgainParams,
    SendParams,
    SentView,
    VerifyParams,
)
from domain.sign_ins import TokensView, UserView
from domain.types import JSON, Origin
from domain.views import Nothing, Params, View


class AccountResult(View):
    """An account."""

    user: UserView


@dataclass(frozen=True, slots=True)
class Call:
    """One request, understood: who asks (when the operation wants to know), with what."""

    accounts: Accounts
    origin: Origin
    params: Any
    path: dict[str, str]
    actor: Actor | None
    second_factor: SecondFactor
    credentials: Credentials

    @property
    def signed_in(self) -> Actor:
        """The caller of an operation that demands one."""
        assert self.actor is not None
        return self.actor


@dataclass(frozen=True, slots=True)
class Operation:
    """One REST operation.

    Attributes:
        params: shape of the JSON body; ``None`` when there is none.
        result: shape of the answer; ``None`` with status 204.
        signed_in: whether a bearer token is demanded.
    """

    method: str
    path: str
    summary: str
    params: type[Params] | None
    result: type[BaseModel] | None
    status: int
    signed_in: bool
    run: Callable[[Call], Awaitable[JSON | None]]


async def _register(call: Call) -> JSON:
    return await call.accounts.register(call.params, call.origin)


async def _login(call: Call) -> JSON:
    return await call.accounts.login(call.params, call.origin)


async def _refresh(call: Call) -> JSON:
    return await call.accounts.refresh(call.params.refresh_token, call.origin)


async def _logout(call: Call) -> None:
    await call.accounts.logout(call.signed_in, call.origin)


async def _logout_all(call: Call) -> None:
    await call.accounts.logout_all(call.signed_in, call.origin)


async def _sessions(call: Call) -> JSON:
    return await call.accounts.sessions(call.signed_in)


async def _end_session(call: Call) -> None:
    await call.accounts.end_session(call.signed_in, call.path["id"], call.origin)


async def _me(call: Call) -> JSON:
    return await call.accounts.me(call.signed_in)


async def _devices(call: Call) -> JSON:
    return await call.accounts.devices(call.signed_in)


async def _forget_device(call: Call) -> None:
    await call.accounts.forget_device(call.signed_in, call.path["id"], call.origin)


async def _change_password(call: Call) -> None:
    await call.credentials.change_password(call.signed_in, call.params, call.origin)


async def _request_reset(call: Call) -> JSON:
    return await call.credentials.request_reset(call.params, call.origin)


async def _confirm_reset(call: Call) -> None:
    await call.credentials.confirm_reset(call.params, call.origin)


async def _step_up(call: Call) -> JSON:
    return await call.second_factor.step_up(call.signed_in, call.params, call.origin)


async def _step_up_send(call: Call) -> JSON:
    return await call.second_factor.send_again(call.signed_in, call.params, call.origin)


async def _mfa(call: Call) -> JSON:
    return await call.second_factor.state(call.signed_in)


async def _mfa_verify(call: Call) -> JSON:
    return await call.second_factor.verify(call.params, call.origin)


async def _mfa_send(call: Call) -> JSON:
    return await call.second_factor.send(call.params, call.origin)


async def _mfa_enrol(call: Call) -> JSON:
    return await call.second_factor.enrol(call.signed_in, call.params, call.origin)


async def _mfa_activate(call: Call) -> JSON:
    return await call.second_factor.activate(call.signed_in, call.params, call.origin)


async def _mfa_disable(call: Call) -> None:
    await call.second_factor.disable(call.signed_in, call.params, call.origin)


async def _recovery_codes(call: Call) -> JSON:
    return await call.second_factor.new_recovery_codes(call.signed_in, call.origin)


# Password, code: what each operation asks for is in its parameters; who may call it when is in its docstring in domain.
_PASSWORDS = (
    Operation(
        "POST",
        "/auth/password/change",
        "Set a new password; ends one's other sign-ins.",
        ChangeParams,
        None,
        204,
        True,
        _change_password,
    ),
    Operation(
        "POST",
        "/auth/password/reset",
        "Have a reset token sent, if the address is somebody's.",
        ResetParams,
        Nothing,
        202,
        False,
        _request_reset,
    ),
    Operation(
        "POST",
        "/auth/password/reset/confirm",
        "Set a new password with that token; ends all sign-ins.",
        ConfirmResetParams,
        None,
        204,
        False,
        _confirm_reset,
    ),
)

_SECOND_FACTOR = (
    Operation("GET", "/auth/mfa", "One's second factors.", None, MfaView, 200, True, _mfa),
    Operation("POST", "/auth/mfa/verify", "Answer a challenge.", VerifyParams, TokensView, 200, False, _mfa_verify),
    Operation(
        "POST", "/auth/mfa/send", "Have a code sent for a challenge.", SendParams, SentView, 202, False, _mfa_send
    ),
    Operation("POST", "/auth/mfa/enrol", "Begin an enrolment.", EnrolParams, EnrolmentView, 200, True, _mfa_enrol),
    Operation(
        "POST",
        "/auth/mfa/activate",
        "Confirm it with its first code; ends one's other sign-ins.",
        ActivateParams,
        RecoveryCodesView,
        200,
        True,
        _mfa_activate,
    ),
    Operation(
        "POST",
        "/auth/mfa/disable",
        "Remove all factors; ends one's other sign-ins.",
        DisableParams,
        None,
        204,
        True,
        _mfa_disable,
    ),
    Operation(
        "POST",
        "/auth/mfa/recovery-codes",
        "Recovery codes in place of those given before.",
        None,
        RecoveryCodesView,
        200,
        True,
        _recovery_codes,
    ),
    Operation(
        "POST",
        "/auth/step-up",
        "Prove that it is still you; opens sensitive changes.",
        AgainParams,
        RecentView,
        200,
        True,
        _step_up,
    ),
    Operation(
        "POST",
        "/auth/step-up/send",
        "Have a code sent for that.",
        SendAgainParams,
        SentView,
        202,
        True,
        _step_up_send,
    ),
)

OPERATIONS = (
    Operation("POST", "/auth/register", "Open an account.", Register, AccountResult, 201, False, _register),
    Operation("POST", "/auth/login", "Sign in with e-mail and password.", Login, LoginResult, 200, False, _login),
    Operation("POST", "/auth/refresh", "The next pair of tokens.", RefreshParams, TokensView, 200, False, _refresh),
    Operation("POST", "/auth/logout", "End this sign-in.", None, None, 204, True, _logout),
    Operation("POST", "/auth/logout-all", "End every sign-in.", None, None, 204, True, _logout_all),
    Operation("GET", "/auth/sessions", "One's sign-ins.", None, SignInList, 200, True, _sessions),
    Operation("DELETE", "/auth/sessions/{id}", "End one of them.", None, None, 204, True, _end_session),
    Operation("GET", "/auth/devices", "Devices one has signed in from.", None, DeviceList, 200, True, _devices),
    Operation("DELETE", "/auth/devices/{id}", "Forget one; ends its sign-ins.", None, None, 204, True, _forget_device),
    Operation("GET", "/auth/me", "Who one is.", None, AccountResult, 200, True, _me),
    *_PASSWORDS,
    *_SECOND_FACTOR,
)
