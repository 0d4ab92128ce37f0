"""Who is signed in on this node, and who was signed out while they were signing in.

A sign-out arrives on the ``control`` channel at any moment, also between the check of a token and the entry of its
session here. Whoever checks a token notes :attr:`Roster.revocation` before and asks :meth:`Roster.revoked_since` after,
and :meth:`Roster.changed_since` whether the person has other memberships now than those that the check found.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from channels.protocol import CloseCode
from domain.identity import Actor
from domain.log import Entry

REVOCATIONS = 1000
"""Sign-outs remembered for those who are just signing in."""


class Subscriber(Protocol):
    """What the hub knows of a session."""

    write: Callable[[bytes], None]
    fd: int
    congested: bool
    closed: bool
    deflates: bool

    @property
    def actor(self) -> Actor | None: ...

    def offer(self, entries: Sequence[Entry], frames: Sequence[bytes]) -> None:
        """Take entries, each with its finished frame, although congested: drop, conflate, send on, or close."""

    def taken(self, channel: str) -> None:
        """The channel was taken away."""

    def become(self, actor: Actor) -> Collection[str]:
        """The person has other memberships or roles now; returns the channels that they no longer open."""

    def close(self, code: CloseCode) -> None: ...


class Roster:
    """Sessions by user and by sign-in."""

    def __init__(self) -> None:
        # Tuples, because most people have one socket and a set costs four times as much.
        self._by_user: dict[str, tuple[Subscriber, ...]] = {}
        self._by_sign_in: dict[str, tuple[Subscriber, ...]] = {}
        self._revocations: deque[tuple[int, Collection[str], Collection[str]]] = deque(maxlen=REVOCATIONS)
        self._changes: deque[tuple[int, Collection[str]]] = deque(maxlen=REVOCATIONS)
        self._revocation = 0

    def enter(self, subscriber: Subscriber, actor: Actor) -> None:
        """A signed-in session is here: sign-outs will find it."""
        _put(self._by_user, actor.user_id, subscriber)
        _put(self._by_sign_in, actor.session_id, subscriber)

    def leave(self, subscriber: Subscriber, actor: Actor) -> None:
        """It is gone."""
        _take(self._by_user, actor.user_id, subscriber)
        _take(self._by_sign_in, actor.session_id, subscriber)

    def sessions_of(self, user_id: str) -> Sequence[Subscriber]:
        """This user's sessions on this node."""
        return self._by_user.get(user_id, ())

    def everybody(self) -> list[Subscriber]:
        """All signed-in sessions."""
        return [subscriber for sessions in self._by_user.values() for subscriber in sessions]

    @property
    def revocation(self) -> int:
        """Counts sign-outs and changes of memberships."""
        return self._revocation

    def revoked_since(self, revocation: int, actor: Actor) -> bool:
        """Whether this person was signed out since; also true when there were too many to tell."""
        if self._revocation - revocation > REVOCATIONS:
            return True
        return any(
            number > revocation and (actor.session_id in session_ids or actor.user_id in user_ids)
            for number, session_ids, user_ids in self._revocations
        )

    def changed_since(self, revocation: int, actor: Actor) -> bool:
        """Whether this person's memberships changed since; also true when there were too many changes to tell."""
        if self._revocation - revocation > REVOCATIONS:
            return True
        return any(number > revocation and actor.user_id in user_ids for number, user_ids in self._changes)

    def change(self, user_ids: Collection[str]) -> list[Subscriber]:
        """Remember a change of these people's memberships; returns their sessions."""
        self._revocation += 1
        self._changes.append((self._revocation, user_ids))
        return [subscriber for each in user_ids for subscriber in self._by_user.get(each, ())]

    def sign_out(self, session_ids: Collection[str], user_ids: Collection[str]) -> list[Subscriber]:
        """Remember a sign-out; returns the sessions it ends."""
        self._revocation += 1
        self._revocations.append((self._revocation, session_ids, user_ids))
        gone = [subscriber for each in session_ids for subscriber in self._by_sign_in.get(each, ())]
        gone += [subscriber for each in user_ids for subscriber in self._by_user.get(each, ())]
        return gone


def _put(index: dict[str, tuple[Subscriber, ...]], key: str, subscriber: Subscriber) -> None:
    index[key] = (*index.get(key, ()), subscriber)


def _take(index: dict[str, tuple[Subscriber, ...]], key: str, subscriber: Subscriber) -> None:
    rest = tuple(other for other in index.get(key, ()) if other is not subscriber)
    if rest:
        index[key] = rest
    else:
        index.pop(key, None)
