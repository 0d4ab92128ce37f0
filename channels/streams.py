"""Sessions that are spoken to beside their connection: each by its id, from whichever node the request arrives at.

A request for a stream may reach another node than the one that holds it, because nothing in front of the nodes need
know of sessions. The id names the node; requests travel there as what nodes tell each other, and so do answers. Nodes
trust each other with who asks (each has checked the bearer token of its own request); a new token of
``session.refresh`` is checked by the node that will keep it.

That way may lose things, as everything over Redis may: then the answer is ``unavailable``, and the client repeats the
request or opens its stream anew. All of these requests may be repeated.

Concurrency: one event loop. Tasks that answer other nodes are owned here and ended by :meth:`Streams.stop`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import orjson

from channels.node import within
from channels.protocol import NoSuchSession
from channels.session import Session
from domain.errors import FixnadoError, Unavailable
from domain.types import JSON, Origin

logger = logging.getLogger(__name__)

_TAG = re.compile(r"[0-9a-f]{8}")

MAX_RELAYED = 1000
"""Requests of other nodes that run at once; beyond it they are told to try again."""


class Exchange(Protocol):
    """How nodes talk: :class:`channels.broker_redis.RedisBroker`."""

    @property
    def connected(self) -> bool: ...

    def tell(self, subject: str, payload: bytes) -> None: ...

    async def hear(self, subject: str, handler: Callable[[bytes], None]) -> None: ...


class Streams:
    """See the module.

    Args:
        tag: this node's, eight hexadecimal digits, at the end of its streams' session ids.
        exchange: ``None`` when there is no other node.
        timeout_seconds: for another node's answer.
    """

    def __init__(self, tag: str = "", exchange: Exchange | None = None, timeout_seconds: float = 5.0) -> None:
        self.tag = tag
        self._exchange = exchange
        self._timeout_seconds = timeout_seconds
        self._sessions: dict[str, Session] = {}
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[JSON]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Hear other nodes."""
        if self._exchange is not None:
            await self._exchange.hear(_subject(self.tag), self._heard)

    async def stop(self) -> None:
        """End what runs for other nodes."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def add(self, session: Session) -> None:
        """A session is reached by its id from here on."""
        self._sessions[session.id] = session

    def remove(self, session: Session) -> None:
        """It is over."""
        self._sessions.pop(session.id, None)

    async def perform(self, session_id: str, user_id: str, method: str, params: JSON, origin: Origin) -> JSON:
        """Have a session of this user run a method, wherever it is.

        Raises:
            NoSuchSession: it is over, or somebody else's.
            Unavailable: the node that holds it did not answer.
            FixnadoError: whatever the method refuses.
        """
        _, _, tag = session_id.partition("-")
        if self._exchange is None or tag == self.tag or _TAG.fullmatch(tag) is None:
            return await self._perform_here(session_id, user_id, method, params, origin)
        if not self._exchange.connected:
            raise Unavailable
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        asked: JSON = {"from": self.tag, "call": number, "session": session_id, "user": user_id}
        asked |= {"method": method, "params": params, "correlation_id": origin.correlation_id}
        try:
            self._exchange.tell(_subject(tag), orjson.dumps(asked | {"traceparent": origin.traceparent}))
            return await within(self._timeout_seconds, answer)
        finally:
            del self._asked[number]

    async def _perform_here(self, session_id: str, user_id: str, method: str, params: JSON, origin: Origin) -> JSON:
        session = self._sessions.get(session_id)
        if session is None or session.actor is None or session.actor.user_id != user_id:
            raise NoSuchSession
        return await session.perform(method, params, origin)

    # Other nodes

    def _heard(self, payload: bytes) -> None:
        told = orjson.loads(payload)
        if "from" in told:
            task = asyncio.create_task(self._serve(told))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        answer = self._asked.get(told["call"])
        if answer is None or answer.done():
            return
        if "error" in told:
            answer.set_exception(_read_error(told["error"]))
        else:
            answer.set_result(told["result"])

    async def _serve(self, asked: Mapping[str, Any]) -> None:
        reply: JSON = {"call": asked["call"]}
        try:
            if len(self._tasks) > MAX_RELAYED:
                raise Unavailable
            origin = Origin(asked["correlation_id"], asked["traceparent"])
            reply["result"] = await self._perform_here(
                asked["session"], asked["user"], asked["method"], asked["params"], origin
            )
        except FixnadoError as error:
            reply["error"] = {"type": error.type, "message": error.message, "details": dict(error.details)}
        if self._exchange is not None:
            self._exchange.tell(_subject(asked["from"]), orjson.dumps(reply))


def _subject(tag: str) -> str:
    return f"streams-{tag}"


def _read_error(shape: Mapping[str, Any]) -> FixnadoError:
    """A refusal of another node, as the same refusal here; one that this version does not know is ``internal``."""
    kind = _kinds(FixnadoError).get(shape["type"], FixnadoError)
    # Some have a constructor of their own, and all that it would make is in the details.
    error = kind.__new__(kind)
    FixnadoError.__init__(error, shape["message"], **shape["details"])
    return error


def _kinds(kind: type[FixnadoError]) -> dict[str, type[FixnadoError]]:
    known = {kind.type: kind}
    for narrower in kind.__subclasses__():
        known |= _kinds(narrower)
    return known
