"""People who sign in elsewhere: an identity of a trusted issuer, and the local account that stands for it.

An identity is an issuer and a subject, nothing else: never an e-mail address, which somebody else may have registered
here. The first token of an identity makes its account, where that is allowed. A sign-in at the issuer is a sign-in here
too (a row without refresh tokens), so that it is listed, revoked and kept out like any other: once revoked, no token of
it counts any more, and the person signs in anew at the issuer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlsplit

from domain.errors import InvalidToken
from domain.identity import UNUSABLE_PASSWORD, Actor, Role, SignIn, User
from domain.ports import Transactions, UnitOfWork
from domain.security import SecurityEvents, SecurityKind
from domain.sign_ins import DAY_SECONDS
from domain.types import Origin, new_id

_security = SecurityEvents()


@dataclass(frozen=True, slots=True)
class FederatedIdentity:
    """What a verified token of an issuer says about a person.

    Attributes:
        sign_in: what tokens of one sign-in at the issuer have in common.
        email: only when the issuer says that it has verified it.
        groups: at the issuer.
    """

    issuer: str
    subject: str
    sign_in: str
    name: str
    email: str | None
    groups: frozenset[str]


@dataclass(frozen=True, slots=True)
class FederationPolicy:
    """Who is let in, and as what.

    Attributes:
        group_roles: groups to account roles. A role in this map is given and taken by the issuer alone; others are not
            touched.
        create_users: whether an unknown identity gets an account.
        absolute_seconds: a sign-in here ends then, whatever the issuer says.
    """

    group_roles: Mapping[str, Role]
    create_users: bool = True
    absolute_seconds: float = 90 * DAY_SECONDS

    def roles(self, groups: frozenset[str], before: frozenset[Role]) -> frozenset[Role]:
        """The account's roles after a token with these groups."""
        managed = frozenset(self.group_roles.values())
        given = frozenset(role for group, role in self.group_roles.items() if group in groups)
        return (before - managed) | given


class Federation:
    """From a verified identity to the person it stands for."""

    def __init__(self, transactions: Transactions, policy: FederationPolicy) -> None:
        self._transactions = transactions
        self._policy = policy

    async def actor(self, identity: FederatedIdentity, origin: Origin) -> Actor:
        """The person, with the roles that the issuer's groups give now.

        Usually one read; a write when the identity, its sign-in or its roles are new.

        Raises:
            InvalidToken: unknown and not to be made, disabled, or the sign-in was ended here.
        """
        session_id = session_id_of(identity)

        async def look(uow: UnitOfWork) -> Actor | None:
            user_id = await uow.people.federated_user(identity.issuer, identity.subject)
            return None if user_id is None else await uow.people.actor(user_id, session_id)

        actor = await self._transactions.read(look)
        if actor is not None and self._policy.roles(identity.groups, actor.roles) == actor.roles:
            return actor
        return await self._transactions.write(lambda uow: self._admit(uow, identity, session_id), origin)

    async def _admit(self, uow: UnitOfWork, identity: FederatedIdentity, session_id: str) -> Actor:
        user_id = await uow.people.federated_user(identity.issuer, identity.subject)
        user = await uow.people.user(user_id) if user_id is not None else await self._made(uow, identity)
        if user is None or user.disabled_at is not None:
            raise InvalidToken
        roles = self._policy.roles(identity.groups, user.roles)
        if roles != user.roles:
            await uow.people.save_roles(user.id, roles)
            details = {"from": sorted(user.roles), "to": sorted(roles), "issuer": identity.issuer}
            await _security.record(uow, SecurityKind.ROLE_CHANGED, "system", user.id, details)
        if await uow.people.lock_sign_in(session_id) is None:
            await uow.people.add_sign_in(
                SignIn(
                    id=session_id,
                    user_id=user.id,
                    device={"name": urlsplit(identity.issuer).hostname or identity.issuer},
                    created_at=uow.now,
                    last_used_at=uow.now,
                    expires_at=uow.now + timedelta(seconds=self._policy.absolute_seconds),
                )
            )
        actor = await uow.people.actor(user.id, session_id)
        if actor is None:
            raise InvalidToken
        return actor

    async def _made(self, uow: UnitOfWork, identity: FederatedIdentity) -> User:
        if not self._policy.create_users:
            raise InvalidToken
        email = identity.email
        if email is None or await uow.people.by_email(email) is not None:
            # An account needs an address of its own; .invalid is nobody's (RFC 2606 §2).
            email = f"{_digest(identity.issuer, identity.subject)[:40]}@federated.invalid"
        roles = self._policy.roles(identity.groups, frozenset()) or frozenset({Role.CUSTOMER})
        user = User(new_id(uow.now), email, identity.name, UNUSABLE_PASSWORD, roles)
        await uow.people.add_federated(identity.issuer, identity.subject, user)
        details = {"issuer": identity.issuer, "roles": sorted(roles)}
        await _security.record(uow, SecurityKind.ACCOUNT_FEDERATED, "system", user.id, details)
        return user


def session_id_of(identity: FederatedIdentity) -> str:
    """The id of the local sign-in: the same for every token of one sign-in at the issuer."""
    return f"fed-{_digest(identity.issuer, identity.subject, identity.sign_in)[:48]}"


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
