"""The table of REST operations: login, sessions and the way to every command.

:mod:`server.http` serves it and :mod:`server.specs` describes it; nothing is declared twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from domain.accounts import Accounts, Login, RefreshParams, Register, SignInList, TokensView, UserView
from domain.identity import Actor
from domain.types import JSON, Origin
from domain.views import Params, View


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
    result: type[View] | None
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


OPERATIONS = (
    Operation("POST", "/auth/register", "Open an account.", Register, AccountResult, 201, False, _register),
    Operation("POST", "/auth/login", "Sign in with e-mail and password.", Login, TokensView, 200, False, _login),
    Operation("POST", "/auth/refresh", "The next pair of tokens.", RefreshParams, TokensView, 200, False, _refresh),
    Operation("POST", "/auth/logout", "End this sign-in.", None, None, 204, True, _logout),
    Operation("POST", "/auth/logout-all", "End every sign-in.", None, None, 204, True, _logout_all),
    Operation("GET", "/auth/sessions", "One's sign-ins.", None, SignInList, 200, True, _sessions),
    Operation("DELETE", "/auth/sessions/{id}", "End one of them.", None, None, 204, True, _end_session),
    Operation("GET", "/auth/me", "Who one is.", None, AccountResult, 200, True, _me),
)
