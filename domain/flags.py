"""Feature flags: off, on, or on for some, and the same answer for the same person until somebody changes the flag.

A flag lives in the database. Its definition may come from the secret manager instead, which then has the last word:
such a flag cannot be set by command. Every change is attested and goes over the control channel to every node, which
keeps all flags in a :class:`FlagBoard` and tells those of its clients for whom the answer changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from domain.context import Context
from domain.errors import InvalidParams, Refused
from domain.events import Audience, Event, EventClass
from domain.identity import Actor, MembershipRole, Role
from domain.security import SecurityEvents, SecurityKind
from domain.types import JSON, new_id, wire_time
from domain.views import Key, NoParams, Params, View

_security = SecurityEvents()

ROLE_NAMES = frozenset({role.value for role in (*Role, *MembershipRole)})


class FlagState(StrEnum):
    """``pilot``: on for a percentage of people, for roles and for organisations."""

    ENABLED = "enabled"
    DISABLED = "disabled"
    PILOT = "pilot"


class FlagSource(StrEnum):
    """Who has the last word about a flag."""

    DATABASE = "database"
    SECRETS = "secrets"


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag. ``percentage``, ``roles`` and ``organisations`` count in the state ``pilot`` only; any one is enough.

    Attributes:
        percentage: of people, 0–100.
        roles: of accounts and of memberships.
    """

    name: str
    state: FlagState
    percentage: float = 0.0
    roles: frozenset[str] = frozenset()
    organisations: frozenset[str] = frozenset()
    source: FlagSource = FlagSource.DATABASE
    version: int = 1
    updated_at: datetime | None = None

    def is_on(self, actor: Actor) -> bool:
        """Whether this person gets the feature."""
        match self.state:
            case FlagState.ENABLED:
                return True
            case FlagState.DISABLED:
                return False
            case FlagState.PILOT:
                return (
                    not self.roles.isdisjoint(actor.roles)
                    or any(
                        membership.role in self.roles or membership.organisation_id in self.organisations
                        for membership in actor.memberships
                    )
                    or bucket(self.name, actor.user_id) < self.percentage
                )


def bucket(name: str, user_id: str) -> float:
    """Where a person stands in a flag's rollout, from 0 up to but not 100: the same always, and independent between
    flags. Whoever is in at 10 % is in at 20 %.
    """
    head = hashlib.sha256(f"{name}:{user_id}".encode()).digest()[:8]
    return int.from_bytes(head, "big") * 100 / 2**64


class FlagManaged(Refused):
    """The flag's definition comes from the secret manager."""

    type = "flag_managed"
    default_message = "This flag is set in the secret manager."


class FlagBoard:
    """Every flag as one node knows it: for code that asks without waiting. A flag nobody made is off."""

    def __init__(self) -> None:
        self._flags: dict[str, Flag] = {}

    def get(self, name: str) -> Flag | None:
        return self._flags.get(name)

    def is_on(self, name: str, actor: Actor) -> bool:
        flag = self._flags.get(name)
        return flag is not None and flag.is_on(actor)

    @property
    def managed(self) -> bool:
        """Whether the secret manager has the last word about any."""
        return any(flag.source is FlagSource.SECRETS for flag in self._flags.values())

    def put(self, flag: Flag) -> bool:
        """Takes a flag unless a newer version is known; whether it was taken."""
        known = self._flags.get(flag.name)
        if known is not None and known.version >= flag.version:
            return False
        self._flags[flag.name] = flag
        return True

    def put_all(self, flags: Iterable[Flag]) -> None:
        for flag in flags:
            self.put(flag)


# --- the wire ---------------------------------------------------------------------------------------------------------

FlagName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_.-]{0,63}$")]


class FlagDefinition(Params):
    """What a flag is; also its shape in the secret manager."""

    state: Annotated[FlagState, Field(strict=False)]
    percentage: Annotated[float, Field(ge=0, le=100)] = 0.0
    roles: Annotated[list[str], Field(max_length=16, default_factory=list)]
    organisations: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=200, default_factory=list)]


class SetFlag(FlagDefinition):
    """Makes a flag, or says what it is from now on."""

    flag: FlagName
    key: Key


class EvaluateFlags(Params):
    """Flags to ask about; without any, those that are on for the caller."""

    flags: Annotated[list[FlagName], Field(max_length=100)] | None = None


class FlagView(View):
    """A flag's definition."""

    name: str
    state: FlagState
    percentage: float
    roles: list[str]
    organisations: list[str]
    source: FlagSource
    version: int
    updated_at: str


class FlagResult(View):
    """One flag."""

    flag: FlagView


class FlagList(View):
    """Every flag, by name."""

    flags: list[FlagView]


class FlagAnswers(View):
    """Whether each flag is on for the caller."""

    flags: dict[str, bool]


class FlagUpdatedData(View):
    """A flag whose answer for this person has changed."""

    flag: str
    on: bool


def view(flag: Flag, now: datetime) -> JSON:
    """A flag's definition, on the wire and on the control channel."""
    return {
        "name": flag.name,
        "state": flag.state.value,
        "percentage": flag.percentage,
        "roles": sorted(flag.roles),
        "organisations": sorted(flag.organisations),
        "source": flag.source.value,
        "version": flag.version,
        "updated_at": wire_time(flag.updated_at or now),
    }


def read_view(shape: Mapping[str, object]) -> Flag:
    """A flag from what :func:`view` made of it.

    Raises:
        pydantic.ValidationError: it is no such thing.
    """
    parsed = FlagView.model_validate(shape)
    return Flag(
        name=parsed.name,
        state=parsed.state,
        percentage=parsed.percentage,
        roles=frozenset(parsed.roles),
        organisations=frozenset(parsed.organisations),
        source=parsed.source,
        version=parsed.version,
        updated_at=datetime.fromisoformat(parsed.updated_at),
    )


def updated(flag: Flag, user_id: str, *, on: bool, now: datetime) -> Event:
    """What one person hears of a change. Not stored: a client asks ``flag.evaluate`` when it connects."""
    return Event(
        id=new_id(now),
        type="flag.updated",
        time=now,
        source=f"flag/{flag.name}",
        data={"flag": flag.name, "on": on},
        audience=Audience(users=(user_id,)),
        event_class=EventClass.EPHEMERAL,
        key=flag.name,
    )


# --- use cases --------------------------------------------------------------------------------------------------------


async def list_flags(ctx: Context, _: NoParams) -> JSON:
    """Every flag, for staff."""
    return {"flags": [view(flag, ctx.now) for flag in await ctx.uow.flags.all()]}


async def evaluate(ctx: Context, params: EvaluateFlags) -> JSON:
    """The caller's answers. A flag that does not exist is off, and so are those nobody is told about."""
    answers = {flag.name: flag.is_on(ctx.actor) for flag in await ctx.uow.flags.all()}
    if params.flags is None:
        return {"flags": {name: True for name, on in answers.items() if on}}
    return {"flags": {name: answers.get(name, False) for name in params.flags}}


async def set_flag(ctx: Context, params: SetFlag) -> JSON:
    """An admin makes or changes a flag.

    Raises:
        FlagManaged: the secret manager has the last word about it.
        InvalidParams: there is no such role.
    """
    flag = await ctx.uow.flags.lock(params.flag)
    if flag is not None and flag.source is FlagSource.SECRETS:
        raise FlagManaged
    return {"flag": view(await _apply(ctx, flag, params.flag, params, FlagSource.DATABASE), ctx.now)}


async def take_over(ctx: Context, definitions: Mapping[str, FlagDefinition]) -> list[Flag]:
    """Makes the flags what the secret manager says; returns those that changed. Safe on any number of nodes at once.

    A flag that the secret manager no longer mentions stays as it is, and can be set by command again.
    """
    changed = []
    known = {flag.name: flag for flag in await ctx.uow.flags.all()}
    released = {name for name, flag in known.items() if flag.source is FlagSource.SECRETS} - definitions.keys()
    # By name: two nodes at once must not wait for each other.
    for name in sorted({*definitions, *released}):
        definition = definitions.get(name)
        before = known.get(name)
        source = FlagSource.SECRETS if definition is not None else FlagSource.DATABASE
        if before is not None and (definition is None or _same(before, definition)) and before.source is source:
            continue
        locked = await ctx.uow.flags.lock(name)
        if definition is None:
            if locked is not None:
                changed.append(await _save(ctx, locked, replace(locked, source=source)))
            continue
        after = await _apply(ctx, locked, name, definition, source)
        if after is not locked:
            changed.append(after)
    return changed


async def _apply(ctx: Context, before: Flag | None, name: str, wanted: FlagDefinition, source: FlagSource) -> Flag:
    unknown = sorted(set(wanted.roles) - ROLE_NAMES)
    if unknown:
        raise InvalidParams.at("roles", f"must be among {', '.join(sorted(ROLE_NAMES))}")
    if before is not None and _same(before, wanted) and before.source is source:
        return before
    after = Flag(
        name=name,
        state=wanted.state,
        percentage=wanted.percentage,
        roles=frozenset(wanted.roles),
        organisations=frozenset(wanted.organisations),
        source=source,
    )
    return await _save(ctx, before, after)


async def _save(ctx: Context, before: Flag | None, after: Flag) -> Flag:
    after = replace(after, version=before.version + 1 if before else 1, updated_at=ctx.now)
    if before is None:
        await ctx.uow.flags.add(after)
    else:
        await ctx.uow.flags.save(after)
    details = {"before": _definition(before) if before else None, "after": _definition(after)}
    await _security.record(ctx.uow, SecurityKind.FLAG_CHANGED, ctx.actor.user_id, after.name, details)
    ctx.uow.record(
        Event(
            id=new_id(ctx.now),
            type="flag.changed",
            time=ctx.now,
            source=f"flag/{after.name}",
            data={"flag": view(after, ctx.now)},
        )
    )
    return after


def _same(flag: Flag, wanted: FlagDefinition) -> bool:
    return (flag.state, flag.percentage, flag.roles, flag.organisations) == (
        wanted.state,
        wanted.percentage,
        frozenset(wanted.roles),
        frozenset(wanted.organisations),
    )


def _definition(flag: Flag) -> JSON:
    return {
        "state": flag.state.value,
        "percentage": flag.percentage,
        "roles": sorted(flag.roles),
        "organisations": sorted(flag.organisations),
        "source": flag.source.value,
    }
