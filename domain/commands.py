"""From a method name and raw parameters to an effect that happens once.

:class:`Desk` is the only way into a use case: the socket, REST, the simulator and the tests all come through here, so
that validation, permission, idempotency and the transaction are the same everywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from domain.context import SYSTEM, Context, NoPost
from domain.errors import Forbidden, InvalidParams, UnknownMethod
from domain.events import Event
from domain.identity import Actor, Permission, Role, permissions_of
from domain.policy import Policy
from domain.ports import Post, Transactions, UnitOfWork
from domain.positions import PositionFeed
from domain.types import JSON, Origin
from domain.views import Params, View
from domain.zones import ZonePulse

Handler = Callable[[Context, Any], Awaitable[JSON]]
Prepare = Callable[[Context, Any], Awaitable[Callable[[], Awaitable[Any]]]]
T = TypeVar("T")


class Who(StrEnum):
    """Who may call a command at all. Whether *this* booking is theirs, the use case decides under its lock."""

    ANYBODY_SIGNED_IN = "anybody_signed_in"
    CUSTOMER = "customer"
    PROVIDER = "provider"
    OPERATIONS = "operations"


class Mode(StrEnum):
    """What a command does to the database."""

    READ = "read"
    WRITE = "write"
    """Naturally repeatable: doing it twice is doing it once."""
    KEYED = "keyed"
    """Has its effect once per idempotency key."""
    SESSION = "session"
    """About the socket itself; there is no such thing on REST."""


@dataclass(frozen=True, slots=True)
class Command:
    """One thing the system can be asked.

    Attributes:
        name: ``subject.imperative``.
        who: a permission is demanded somewhere at the door; whether it counts for *this* organisation, the use case
            decides.
        params: schema of what comes in.
        result: schema of what comes back.
        handler: the use case; ``None`` for commands about the socket, which the session answers itself.
        prepare: what takes too long for a transaction that writes, in which others wait. It looks, in a transaction of
            its own, and returns the work to do between the two; what that returns is the handler's ``ctx.prepared``.
    """

    name: str
    summary: str
    who: Who | Permission
    mode: Mode
    params: type[Params]
    result: type[View]
    handler: Handler | None
    prepare: Prepare | None = None


def allowed(actor: Actor, who: Who | Permission) -> bool:
    """Whether the caller wears the right hat for a command."""
    if isinstance(who, Permission):
        return actor.may(who)
    match who:
        case Who.ANYBODY_SIGNED_IN:
            return True
        case Who.CUSTOMER:
            return Role.CUSTOMER in actor.roles
        case Who.PROVIDER:
            return any(Permission.WORK in permissions_of(membership.role) for membership in actor.memberships)
        case Who.OPERATIONS:
            return actor.may(Permission.OPERATE)


class Announcer(Protocol):
    """Sends ephemeral events on their way; never waits for anybody."""

    def announce(self, events: Sequence[Event], origin: Origin) -> None: ...


def validated(model: type[Params], raw: Mapping[str, Any]) -> Params:
    """The parameters as their model.

    Raises:
        InvalidParams: with one ``{where, why}`` per problem. Values are not echoed: they may be secret.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        problems = [
            {"where": ".".join(str(part) for part in problem["loc"]), "why": problem["msg"]}
            for problem in error.errors(include_url=False, include_context=False, include_input=False)[:20]
        ]
        raise InvalidParams(problems) from None


def fingerprint(method: str, params: BaseModel) -> str:
    """SHA-256 over the method and its canonical parameters without the key: what a key stands for."""
    shape = params.model_dump(mode="json", exclude={"key"})
    canonical = json.dumps([method, shape], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


class Silence:
    """An announcer with nobody to talk to, as in tests and on the command line."""

    def announce(self, events: Sequence[Event], origin: Origin) -> None: ...


class Desk:
    """Executes commands of a catalogue.

    Attributes:
        announcer: where ephemeral events go. Set after construction: it belongs to the live side, which needs the desk.
        post: who sends letters; nobody unless set.
    """

    def __init__(
        self,
        commands: Mapping[str, Command],
        transactions: Transactions,
        policy: Policy,
        positions: PositionFeed | None = None,
    ) -> None:
        self._commands = commands
        self._transactions = transactions
        self._policy = policy
        self.announcer: Announcer = Silence()
        self.post: Post = NoPost()
        self.pulse = ZonePulse()
        self._positions = positions or PositionFeed()

    async def execute(
        self, method: str, params: Mapping[str, Any], actor: Actor, origin: Origin, key: str | None = None
    ) -> JSON:
        """Runs one command for one person.

        Args:
            key: the idempotency key when it does not travel in ``params`` (REST's header).

        Raises:
            UnknownMethod: not in the catalogue, or about a socket.
            InvalidParams: they do not fit.
            Forbidden: not for this caller's roles.
            KeyReused: the key stands for another request.
            FixnadoError: whatever the use case refuses with.
        """
        command = self._commands.get(method)
        if command is None or command.handler is None:
            raise UnknownMethod
        if not allowed(actor, command.who):
            raise Forbidden
        if key is not None and command.mode is Mode.KEYED:
            if params.get("key", key) != key:
                raise InvalidParams.at("key", "differs from the Idempotency-Key header")
            params = {**params, "key": key}
        request = validated(command.params, params)
        origin = replace(origin, actor_id=actor.user_id)
        if command.mode is Mode.READ:
            return await self._transactions.read(lambda uow: self._run(command, request, self._context(actor, uow)))
        prepared = await self._prepared(command, request, actor)
        return await self._write(
            lambda ctx: self._run(command, request, replace(ctx, prepared=prepared)), actor, origin
        )

    async def run_as_system(self, work: Callable[[Context], Awaitable[T]], origin: Origin) -> T:
        """Runs a step of a timer or a sweep in a transaction of its own."""
        return await self._write(work, SYSTEM, origin)

    def context(self, actor: Actor, uow: UnitOfWork) -> Context:
        """A context in somebody else's transaction, for read models built from the same use cases."""
        return self._context(actor, uow)

    def _context(self, actor: Actor, uow: UnitOfWork) -> Context:
        return Context(
            actor=actor, uow=uow, policy=self._policy, positions=self._positions, post=self.post, pulse=self.pulse
        )

    async def _write(self, work: Callable[[Context], Awaitable[T]], actor: Actor, origin: Origin) -> T:
        contexts: list[Context] = []

        async def attempt(uow: UnitOfWork) -> T:
            contexts.append(self._context(actor, uow))
            return await work(contexts[-1])

        result = await self._transactions.write(attempt, origin)
        # Only what the attempt that committed had to say; earlier attempts never happened.
        committed = contexts[-1]
        for remember in committed.after_commit:
            remember()
        if committed.announcements:
            self.announcer.announce(committed.announcements, origin)
        return result

    async def _prepared(self, command: Command, request: Params, actor: Actor) -> Any:
        prepare = command.prepare
        if prepare is None:
            return None
        work = await self._transactions.read(lambda uow: prepare(self._context(actor, uow), request))
        return await work()

    async def _run(self, command: Command, request: Params, ctx: Context) -> JSON:
        assert command.handler is not None
        handler = command.handler

        async def work() -> JSON:
            return await handler(await self._as_of_now(command, ctx), request)

        if command.mode is not Mode.KEYED:
            return await work()
        key: str = vars(request)["key"]
        mark = fingerprint(command.name, request)
        # What was done before a membership ended is still answered: whoever left may have missed the reply.
        return await ctx.uow.keys.once(ctx.actor.user_id, key, mark, ctx.now, work)

    async def _as_of_now(self, command: Command, ctx: Context) -> Context:
        """The context with the caller's memberships as the transaction sees them.

        A live socket hears of a lost membership a moment after the commit that took it. In that moment it must not get
        anything done in the organisation's name.
        """
        actor = ctx.actor
        if not actor.memberships:
            return ctx
        current = replace(actor, memberships=await ctx.uow.people.memberships(actor.user_id))
        if not allowed(current, command.who):
            raise Forbidden
        return replace(ctx, actor=current)
