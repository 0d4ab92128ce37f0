"""Who listens to a channel, on every node.

Nothing is stored. People come and go all the time and are asked about now and then, so a node that wants to know asks
the others through the broker and adds up what they answer. A node lives as long as its heartbeats come
(:attr:`channels.failover.Follower.nodes`): the people of a dead one are gone when that time has run out. What a living
node said a moment ago stands in for an answer that does not come in time. With Redis away, the answer is this node's
own people.

Concurrency: one event loop; questions asked in the same moment share one round (:class:`channels.lookups.Batch`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import orjson

from channels.broker_redis import RedisBroker
from channels.lookups import Batch
from channels.presence import Member, Presence

logger = logging.getLogger(__name__)

ASK = "presence"
"""The subject of questions; answers come on it with the asker's name behind it."""

ANSWER_SECONDS = 0.25
"""How long the others are waited for."""

REMEMBER_SECONDS = 10.0
REMEMBERED = 5_000
"""Answers of other nodes that are kept: one per node and channel, for so long, so many."""

ANSWERS_AT_ONCE = 100
"""Questions of others that are being answered; beyond it they go unanswered."""


class RedisPresence:
    """Implements :class:`channels.presence.Presence`.

    Args:
        nodes: the names of the nodes that live, this one among them.
    """

    def __init__(self, node_id: str, broker: RedisBroker, nodes: Callable[[], Collection[str]]) -> None:
        self._node_id = node_id
        self._here: Presence | None = None
        self._broker = broker
        self._nodes = nodes
        self._asked: dict[str, _Question] = {}
        self._remembered: OrderedDict[tuple[str, str], tuple[float, Sequence[Member]]] = OrderedDict()
        self._questions: Batch[str, Sequence[Member]] = Batch(self._ask, max_keys=200)
        self._answers: set[asyncio.Task[None]] = set()

    async def start(self, here: Presence) -> None:
        """Begin to answer, for clients and for the other nodes.

        Args:
            here: this node's own people.
        """
        self._here = here
        await self._broker.hear(ASK, self._question_heard)
        await self._broker.hear(f"{ASK}:{self._node_id}", self._answer_heard)

    async def stop(self) -> None:
        """End what is under way."""
        await self._questions.close()
        for task in self._answers:
            task.cancel()
        await asyncio.gather(*self._answers, return_exceptions=True)

    async def members(self, channel: str) -> Sequence[Member]:
        return (await self._questions.get([channel]))[channel]

    async def _ask(self, channels: list[str]) -> Mapping[str, Sequence[Member]]:
        found = {channel: list(await self._own(channel)) for channel in channels}
        others = set(self._nodes()) - {self._node_id}
        if others and self._broker.connected:
            await self._ask_others(channels, others)
            since = asyncio.get_running_loop().time() - REMEMBER_SECONDS
            for node_id in others:
                for channel in channels:
                    answered_at, members = self._remembered.get((node_id, channel), (0.0, ()))
                    if answered_at >= since:
                        found[channel] += members
        return {channel: _together(members) for channel, members in found.items()}

    async def _own(self, channel: str) -> Sequence[Member]:
        assert self._here is not None, "presence has not been started"
        return await self._here.members(channel)

    async def _ask_others(self, channels: Sequence[str], others: set[str]) -> None:
        question = _Question(channels, others)
        question_id = secrets.token_hex(8)
        self._asked[question_id] = question
        try:
            asked = {"id": question_id, "node": self._node_id, "channels": channels}
            self._broker.tell(ASK, orjson.dumps(asked))
            async with asyncio.timeout(ANSWER_SECONDS):
                await question.complete.wait()
        except TimeoutError:
            logger.info("no answer about presence from %s", ", ".join(sorted(question.missing)))
        finally:
            del self._asked[question_id]

    def _question_heard(self, payload: bytes) -> None:
        question = orjson.loads(payload)
        if question["node"] == self._node_id or len(self._answers) >= ANSWERS_AT_ONCE:
            return
        task = asyncio.create_task(self._answer(question), name="presence-answer")
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _answer(self, question: Mapping[str, Any]) -> None:
        people = {
            channel: [[member.user_id, member.name, member.roles, member.sockets] for member in members]
            for channel in question["channels"]
            if (members := await self._own(channel))
        }
        answer = {"id": question["id"], "node": self._node_id, "people": people}
        self._broker.tell(f"{ASK}:{question['node']}", orjson.dumps(answer))

    def _answer_heard(self, payload: bytes) -> None:
        answer = orjson.loads(payload)
        question = self._asked.get(answer["id"])
        if question is None or answer["node"] not in question.missing:
            return
        now = asyncio.get_running_loop().time()
        for channel in question.channels:
            members = [
                Member(user_id, name, tuple(roles), sockets)
                for user_id, name, roles, sockets in answer["people"].get(channel, ())
            ]
            self._remembered[answer["node"], channel] = (now, members)
            self._remembered.move_to_end((answer["node"], channel))
        while len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        question.answered(answer["node"])


class _Question:
    """One question to the other nodes."""

    def __init__(self, channels: Sequence[str], nodes: set[str]) -> None:
        self.channels = channels
        self.missing = set(nodes)
        self.complete = asyncio.Event()

    def answered(self, node_id: str) -> None:
        self.missing.discard(node_id)
        if not self.missing:
            self.complete.set()


def _together(members: Sequence[Member]) -> Sequence[Member]:
    """Each person once, with the sockets of all nodes."""
    people: dict[str, Member] = {}
    for member in members:
        known = people.get(member.user_id)
        sockets = member.sockets + (0 if known is None else known.sockets)
        people[member.user_id] = Member(member.user_id, member.name, member.roles, sockets)
    return sorted(people.values(), key=lambda member: (member.name, member.user_id))
