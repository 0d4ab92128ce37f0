"""Accounts, sign-ins, refresh tokens and memberships."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Table, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from domain.errors import EmailTaken
from domain.identity import Actor, Membership, MembershipRole, RefreshToken, Role, SignIn, User
from persistence.driver_errors import Trouble, trouble_of
from persistence.race import start_over_if_taken
from persistence.repositories.audit import created, updated
from persistence.tables import (
    federated_identities,
    memberships,
    organisations,
    providers,
    refresh_tokens,
    sessions,
    users,
)
from persistence.unit_of_work import UnitOfWork

_ACTORS = (
    select(
        sessions.c.id.label("session_id"),
        users.c.id,
        users.c.name,
        users.c.roles,
        memberships.c.organisation_id,
        memberships.c.role,
        providers.c.id.label("provider_id"),
    )
    .select_from(
        sessions.join(users, sessions.c.user_id == users.c.id)
        .outerjoin(memberships, memberships.c.user_id == users.c.id)
        .outerjoin(providers, providers.c.organisation_id == memberships.c.organisation_id)
    )
    .where(
        sessions.c.id.in_(bindparam("sessions", expanding=True)),
        users.c.disabled_at.is_(None),
        sessions.c.revoked_at.is_(None),
        sessions.c.expires_at > bindparam("now"),
    )
)

_MEMBERSHIPS = (
    select(memberships.c.organisation_id, memberships.c.role, providers.c.id.label("provider_id"))
    .join(providers, providers.c.organisation_id == memberships.c.organisation_id)
    .where(memberships.c.user_id == bindparam("user"))
    .order_by(memberships.c.organisation_id)
)


class SqlPeople:
    """See :class:`domain.ports.People`."""

    def __init__(self, unit: UnitOfWork) -> None:
        self._unit = unit
        self._connection = unit.connection

    async def by_email(self, email: str) -> User | None:
        row = (await self._connection.execute(select(users).where(users.c.email == email.lower()))).one_or_none()
        return None if row is None else _user(row)

    async def user(self, user_id: str) -> User | None:
        row = (await self._connection.execute(select(users).where(users.c.id == user_id))).one_or_none()
        return None if row is None else _user(row)

    async def add_user(self, user: User) -> None:
        try:
            await self._connection.execute(insert(users), self._user_row(user))
        except IntegrityError as error:
            if trouble_of(error) is Trouble.DUPLICATE:
                raise EmailTaken from error
            raise

    async def add_organisation(self, organisation_id: str, name: str) -> None:
        await self._connection.execute(
            insert(organisations), {"id": organisation_id, "name": name, "version": 1} | created(self._unit)
        )

    async def add_membership(self, organisation_id: str, user_id: str, role: MembershipRole) -> None:
        row = {"organisation_id": organisation_id, "user_id": user_id, "role": role.value, "version": 1}
        await self._connection.execute(insert(memberships), row | created(self._unit))

    async def actors(self, sign_ins: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], Actor]:
        bound = {"sessions": [session_id for _, session_id in sign_ins], "now": self._unit.now}
        found: dict[tuple[str, str], list[Any]] = {}
        for row in await self._connection.execute(_ACTORS, bound):
            found.setdefault((row.id, row.session_id), []).append(row)
        return {named: _actor(found[named]) for named in sign_ins if named in found}

    async def actor(self, user_id: str, session_id: str) -> Actor | None:
        return (await self.actors([(user_id, session_id)])).get((user_id, session_id))

    async def lock_user(self, user_id: str) -> User | None:
        query = select(users).where(users.c.id == user_id).with_for_update()
        row = (await self._connection.execute(query)).one_or_none()
        return None if row is None else _user(row)

    async def disable(self, user_id: str, disabled_at: datetime | None) -> None:
        await self._connection.execute(
            update(users).where(users.c.id == user_id).values(disabled_at=disabled_at, **updated(self._unit))
        )

    async def memberships(self, user_id: str) -> tuple[Membership, ...]:
        rows = await self._connection.execute(_MEMBERSHIPS, {"user": user_id})
        return tuple(Membership(row.organisation_id, row.provider_id, MembershipRole(row.role)) for row in rows)

    async def save_roles(self, user_id: str, roles: frozenset[Role]) -> None:
        await self._connection.execute(
            update(users).where(users.c.id == user_id).values(roles=sorted(roles), **updated(self._unit))
        )

    async def federated_user(self, issuer: str, subject: str) -> str | None:
        here = federated_identities.c
        query = select(here.user_id).where(here.issuer == issuer, here.subject == subject)
        user_id: str | None = (await self._connection.execute(query)).scalar_one_or_none()
        return user_id

    async def add_federated(self, issuer: str, subject: str, user: User) -> None:
        await self._insert_or_start_over(users, self._user_row(user))
        row = {"issuer": issuer, "subject": subject, "user_id": user.id, "created_at": self._unit.now}
        await self._insert_or_start_over(federated_identities, row)

    async def save_password(self, user_id: str, password_hash: str) -> None:
        await self._connection.execute(
            update(users).where(users.c.id == user_id).values(password_hash=password_hash, **updated(self._unit))
        )

    async def add_sign_in(self, sign_in: SignIn) -> None:
        await self._insert_or_start_over(sessions, asdict(sign_in))

    async def lock_sign_in(self, session_id: str) -> SignIn | None:
        query = select(sessions).where(sessions.c.id == session_id).with_for_update()
        row = (await self._connection.execute(query)).mappings().one_or_none()
        return None if row is None else SignIn(**row)

    async def sign_ins(self, user_id: str) -> Sequence[SignIn]:
        rows = await self._connection.execute(
            select(sessions)
            .where(
                sessions.c.user_id == user_id,
                sessions.c.revoked_at.is_(None),
                sessions.c.expires_at > self._unit.now,
            )
            .order_by(sessions.c.created_at.desc())
        )
        return [SignIn(**row) for row in rows.mappings()]

    async def latest_sign_ins(self, user_id: str, limit: int) -> Sequence[SignIn]:
        # Ids sort by time, and a secondary index ends in the primary key: nothing is sorted.
        query = select(sessions).where(sessions.c.user_id == user_id).order_by(sessions.c.id.desc()).limit(limit)
        return [SignIn(**row) for row in (await self._connection.execute(query)).mappings()]

    async def save_sign_in(self, sign_in: SignIn) -> None:
        values = {
            "last_used_at": sign_in.last_used_at,
            "revoked_at": sign_in.revoked_at,
            "revoked_reason": sign_in.revoked_reason,
            "authenticated_at": sign_in.authenticated_at,
        }
        await self._connection.execute(update(sessions).where(sessions.c.id == sign_in.id).values(values))

    async def add_refresh_token(self, token: RefreshToken) -> None:
        await self._connection.execute(insert(refresh_tokens), asdict(token))

    async def refresh_token(self, token_hash: str) -> RefreshToken | None:
        query = select(refresh_tokens).where(refresh_tokens.c.token_hash == token_hash)
        row = (await self._connection.execute(query)).mappings().one_or_none()
        return None if row is None else RefreshToken(**row)

    async def save_refresh_token(self, token: RefreshToken) -> None:
        await self._connection.execute(
            update(refresh_tokens).where(refresh_tokens.c.token_hash == token.token_hash).values(asdict(token))
        )

    def _user_row(self, user: User) -> dict[str, Any]:
        return asdict(user) | {"email": user.email.lower(), "roles": sorted(user.roles)} | created(self._unit)

    async def _insert_or_start_over(self, table: Table, row: dict[str, Any]) -> None:
        with start_over_if_taken(f"the same row of {table.name}"):
            await self._connection.execute(insert(table), row)


def _actor(rows: Sequence[Any]) -> Actor:
    """A person, from a row for each place of theirs; one row without a place for those who have none."""
    first = rows[0]
    places = [
        Membership(row.organisation_id, row.provider_id, MembershipRole(row.role))
        for row in rows
        if row.provider_id is not None
    ]
    return Actor(
        user_id=first.id,
        name=first.name,
        roles=frozenset(map(Role, first.roles)),
        memberships=tuple(sorted(places, key=lambda place: place.organisation_id)),
        session_id=first.session_id,
    )


def _user(row: Row[Any]) -> User:
    return User(
        id=row.id,
        email=row.email,
        name=row.name,
        password_hash=row.password_hash,
        roles=frozenset(Role(role) for role in row.roles),
        disabled_at=row.disabled_at,
    )
