"""Shapes of the commands about a socket itself. The session answers them; see :mod:`channels.session`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from domain.identity import Role
from domain.views import MAX_OFFSET, Params, View

ChannelName = Annotated[str, Field(max_length=160)]


class Position(Params):
    """Where a client stands on a channel."""

    epoch: Annotated[str, Field(max_length=16)]
    offset: Annotated[int, Field(ge=0, le=MAX_OFFSET)]


class Connect(Params):
    """``resume`` names, per channel, the newest event the client has handled."""

    token: Annotated[str, Field(max_length=8192)]
    client: Annotated[str, Field(max_length=100)] | None = None
    resume: Annotated[dict[ChannelName, Position], Field(max_length=256, default_factory=dict)]


class Refresh(Params):
    """A newer access token of the same person."""

    token: Annotated[str, Field(max_length=8192)]


class ChannelRef(Params):
    """Names a channel."""

    channel: ChannelName


class Subscribe(ChannelRef):
    """A channel to hear, and where to resume."""

    resume: Position | None = None


class Ack(Params):
    """Channel names to the newest offset handled: ``{"provider:7": 12}``."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    __pydantic_extra__: dict[str, Annotated[int, Field(ge=0, le=MAX_OFFSET)]]


class ConnectedUser(View):
    """Who the socket speaks for."""

    id: str
    roles: list[Role]


class ChannelState(View):
    """``recovered``: ``events`` is exactly what was missed. Otherwise ``state`` is fresh, for channels that have
    one.
    """

    epoch: str
    offset: int
    recovered: bool
    events: list[dict[str, Any]]
    state: dict[str, Any] | None = None


class Connected(View):
    """The session, and every channel it hears from now on."""

    session: str
    user: ConnectedUser
    heartbeat_seconds: float
    expires_in_seconds: float
    server_time: str
    channels: dict[str, ChannelState]


class Refreshed(View):
    """How long the new token lasts."""

    expires_in_seconds: float


class Subscribed(ChannelState):
    """The channel as it stands; live events follow."""

    channel: str


class Unsubscribed(View):
    """The channel that is no longer heard."""

    channel: str


class Present(View):
    """Somebody who hears the channel, and on how many sockets."""

    user_id: str
    name: str
    roles: list[Role]
    sockets: int


class PresenceList(View):
    """Who hears the channel."""

    channel: str
    members: list[Present]


class Acked(View):
    """An empty object."""
