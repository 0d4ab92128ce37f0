"""What a node does by what the ``control`` channel says: end access, change memberships, end sign-ins."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from channels.held_channel import HeldChannel
from channels.protocol import CloseCode, read_event
from channels.roster import Roster, Subscriber
from domain.identity import Actor, Membership, MembershipRole
from domain.log import Entry

logger = logging.getLogger(__name__)

ControlListener = Callable[[str, Mapping[str, Any]], None]
"""Gets ``(event type, data)`` of each control entry, on the loop, in order."""


class Control:
    """Obeys the entries of ``control``, one after the other.

    Args:
        channels: those held here.
        part: ends a subscription; see :meth:`channels.hub.Hub.part`.
    """

    def __init__(
        self, roster: Roster, channels: Mapping[str, HeldChannel], part: Callable[[str, Subscriber], None]
    ) -> None:
        self._roster = roster
        self._channels = channels
        self._part = part
        self._listeners: list[ControlListener] = []

    def listen(self, listener: ControlListener) -> None:
        """Have entries told to somebody else too."""
        self._listeners.append(listener)

    def obey(self, entry: Entry) -> None:
        """Do what an entry says, now."""
        try:
            event = read_event(entry.frame)
            kind, data = event["type"], event["data"]
            if kind == "access.revoked":
                self._revoke_access(data)
            elif kind == "access.changed":
                self._change_access(data)
            elif kind == "session.revoked":
                self._revoke_sessions(data)
            for listener in self._listeners:
                listener(kind, data)
        except Exception:
            # An entry nobody can read must not stop the channel that carries revocations.
            logger.exception("a control entry failed", extra={"offset": entry.offset})

    def _revoke_access(self, data: Mapping[str, Any]) -> None:
        user_ids = frozenset(data.get("user_ids") or ())
        provider_ids = frozenset(data.get("provider_ids") or ())
        for name in data.get("channels") or ():
            channel = self._channels.get(name)
            if channel is None:
                continue
            for subscriber in [*channel.live, *channel.catching]:
                actor = subscriber.actor
                if actor is None or actor.is_operations:
                    continue
                if actor.user_id in user_ids or actor.provider_ids & provider_ids:
                    catchup = channel.catching.get(subscriber)
                    if catchup is not None:
                        catchup.revoked = True
                    self._part(name, subscriber)
                    subscriber.taken(name)
        if (organisation_id := data.get("organisation_id")) is not None:
            self._replace_actors(user_ids, lambda actor: actor.without(organisation_id))

    def _change_access(self, data: Mapping[str, Any]) -> None:
        given = data["membership"]
        role = MembershipRole(given["role"])
        membership = Membership(given["organisation_id"], given["provider_id"], role)
        self._replace_actors(frozenset(data["user_ids"]), lambda actor: actor.having(membership))

    def _replace_actors(self, user_ids: Collection[str], change: Callable[[Actor], Actor]) -> None:
        """Sessions of these people speak with other memberships from now on, and lose what those do not open.

        A subscription that is just starting is judged anew before it goes live, see :mod:`channels.subscriptions`.
        """
        for subscriber in self._roster.change(user_ids):
            if subscriber.actor is None:
                continue
            for name in subscriber.become(change(subscriber.actor)):
                self._part(name, subscriber)
                subscriber.taken(name)

    def _revoke_sessions(self, data: Mapping[str, Any]) -> None:
        session_ids = frozenset(data.get("session_ids") or ())
        user_ids = frozenset(data.get("user_ids") or ())
        gone = self._roster.sign_out(session_ids, user_ids)
        for subscriber in gone:
            subscriber.close(CloseCode.REVOKED)
