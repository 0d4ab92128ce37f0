"""The methods a session answers itself: letting in, renewing, acknowledging, and its channels.

Each takes the session and what the client sent, and returns an :class:`Answer`; how that reaches the client is not
known here. Whoever gets an answer passes it on without awaiting anything in between: the frames that follow it belong
right behind it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from channels.node import within
from channels.params import (
    MAX_CLIENT_CHARACTERS,
    expect_only,
    read_acknowledged,
    read_channel,
    read_resume,
    read_resumes,
    read_text,
    read_token,
)
from channels.ports import SignedIn
from channels.protocol import CloseCode
from channels.topics import own_channels
from domain.errors import Forbidden, InvalidToken, NotAuthenticated, Refused, TooManyRequests, Unavailable
from domain.identity import Actor
from domain.types import JSON, new_id, wire_time

if TYPE_CHECKING:
    from channels.session import Session

logger = logging.getLogger(__name__)

RETRY_AFTER_SOCKETS_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a method is answered with.

    Attributes:
        trailing: finished frames for the connection, right behind the result.
    """

    result: Mapping[str, Any]
    trailing: bytes = b""


class Ending(Exception):
    """A refusal that ends the session once it is told."""

    def __init__(self, error: BaseException, code: CloseCode) -> None:
        super().__init__(code)
        self.error = error
        self.code = code


async def connect(session: Session, params: JSON) -> Answer:
    """``session.connect``: who is there, and the person's own channels with all that was missed on them.

    Raises:
        Ending: no good token, too many connections, no channels, or too long a line at the door.
        FixnadoError: refused for now; the client may try again on the same connection.
    """
    node = session.node
    admission, came = node.admission, node.monotonic()
    try:
        await admission.enter()
    except Unavailable as error:
        session.connecting = False
        raise Ending(error, CloseCode.SERVER_ERROR) from error
    try:
        session.stood_in_line(node.monotonic() - came)
        # The client may have gone while it stood in line.
        if session.closed:
            raise Unavailable
        return await _let_in(session, params)
    finally:
        admission.leave()


async def _let_in(session: Session, params: JSON) -> Answer:
    node = session.node
    try:
        if session.closed:
            # The client has gone while it stood in line.
            raise Unavailable
        if session.actor is not None:
            raise Refused("This socket is connected already.")
        expect_only(params, ("token", "client", "resume"))
        token = read_token(params)
        read_text(params, "client", MAX_CLIENT_CHARACTERS)
        resume = read_resumes(params)
        signed_in = await _authenticate(session, token)
    except NotAuthenticated as error:
        raise Ending(error, CloseCode.INVALID_TOKEN) from error
    finally:
        session.connecting = False
    actor = signed_in.actor
    if session.closed:
        raise Unavailable
    if len(node.hub.roster.sessions_of(actor.user_id)) >= node.limits.sockets_per_user:
        too_many = TooManyRequests(RETRY_AFTER_SOCKETS_SECONDS, "Too many sockets of this user are open.")
        raise Ending(too_many, CloseCode.TOO_MANY_SOCKETS)
    made = new_id(node.clock.now())
    session.enter(f"{made}-{session.tag}" if session.tag else made, actor)
    try:
        await within(node.limits.call_seconds, node.connections.opened(actor))
    except Exception:
        # Live status follows late then; the connection is worth more.
        logger.warning("an opened connection could not be told", exc_info=True, extra={"session": session.id})
    own = own_channels(actor)
    others = [name for name in resume if name not in own][: max(0, node.limits.channels_per_socket - len(own))]
    try:
        opened = await node.subscriptions.open(
            session, actor, {name: resume.get(name) for name in own}, {name: resume[name] for name in others}
        )
    except Exception as error:
        # Without its own channels a session is deaf: let the client come back.
        raise Ending(error, CloseCode.SERVER_ERROR) from error
    session.hear(opened)
    session.settle(signed_in.expires_at)
    result = {
        "session": session.id,
        "user": {"id": actor.user_id, "roles": sorted(actor.roles)},
        "heartbeat_seconds": _number(node.limits.heartbeat_seconds),
        "expires_in_seconds": session.expires_in_seconds(),
        "server_time": wire_time(node.clock.now()),
        "channels": opened.replies,
    }
    return Answer(result, opened.trailing)


async def _authenticate(session: Session, token: str) -> SignedIn:
    """Who presents this token, as of now: what arrives on ``control`` meanwhile is not overlooked.

    Nothing may be awaited between this and the entry of the actor.
    """
    node, roster = session.node, session.node.hub.roster
    while True:
        mark = roster.revocation
        signed_in = await within(node.limits.call_seconds, node.doorman.authenticate(token))
        if roster.revoked_since(mark, signed_in.actor):
            raise InvalidToken
        if not roster.changed_since(mark, signed_in.actor):
            return signed_in


async def _refresh(session: Session, actor: Actor, params: JSON) -> Answer:
    expect_only(params, ("token",))
    signed_in = await _authenticate(session, read_token(params))
    if signed_in.actor.user_id != actor.user_id:
        raise InvalidToken
    if session.closed:
        return Answer({})
    session.renew(actor, signed_in)
    return Answer({"expires_in_seconds": session.expires_in_seconds()})


async def _acknowledge(session: Session, actor: Actor, params: JSON) -> Answer:
    node = session.node
    for name, offset in read_acknowledged(params).items():
        # A channel that was just left or taken away is no error of the client's.
        if name in session.channels:
            await within(node.limits.call_seconds, node.acknowledgements.acked(actor, name, offset))
    return Answer({})


async def _subscribe(session: Session, actor: Actor, params: JSON) -> Answer:
    node = session.node
    expect_only(params, ("channel", "resume"))
    name = read_channel(params)
    resume = read_resume(params.get("resume"), "resume")
    if name not in session.channels and len(session.channels) >= node.limits.channels_per_socket:
        raise Refused("This socket has as many channels as it may.")
    session.channels.discard(name)
    opened = await node.subscriptions.open(session, actor, {name: resume})
    session.hear(opened)
    return Answer({"channel": name, **opened.replies[name]}, opened.trailing)


async def _unsubscribe(session: Session, _actor: Actor, params: JSON) -> Answer:
    expect_only(params, ("channel",))
    name = read_channel(params)
    if name in session.channels:
        session.node.hub.part(name, session)
        session.taken(name)
    return Answer({"channel": name})


async def _list_presence(session: Session, _actor: Actor, params: JSON) -> Answer:
    expect_only(params, ("channel",))
    name = read_channel(params)
    if name not in session.channels:
        raise Forbidden
    members = await within(session.node.limits.call_seconds, session.node.presence.members(name))
    return Answer({"channel": name, "members": [member.view() for member in members]})


METHODS: Mapping[str, Callable[[Session, Actor, JSON], Awaitable[Answer]]] = {
    "session.refresh": _refresh,
    "session.ack": _acknowledge,
    "channel.subscribe": _subscribe,
    "channel.unsubscribe": _unsubscribe,
    "channel.presence": _list_presence,
}
"""What a signed-in session answers by itself; everything else is the desk's."""


def _number(seconds: float) -> float:
    # 25, not 25.0: clients compare and print it.
    return int(seconds) if seconds == int(seconds) else seconds
