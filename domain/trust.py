"""How much speaks for a sign-in with the right password being its owner's: 0 (nothing) to 100.

The score is a sum of components, each explained below and stored with the sign-in and the device, so that every
decision can be explained. What is not known is neutral: a first sign-in, a client that names no device and an address
without a place are neither held against anybody nor in their favour.

Failures alone never refuse anybody: from a device the person has used before, the score stays above
:data:`REFUSE_BELOW` whatever strangers do in their name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from domain.geography import distance_m
from domain.identity import SignIn
from domain.types import Point

ASK_BELOW = 40
"""Below this a second factor is asked for; who has none gets a code by e-mail."""

REFUSE_BELOW = 20

FASTEST_KMH = 1_000.0
"""An airliner, with the wind behind it."""

SLACK_KM = 300.0
"""How far a place looked up for an address may be off."""

REUSE_COUNTS_FOR = timedelta(days=30)

EXPLANATIONS = {
    "known_device": "30 for a device used before, 15 when there is nothing to compare, 0 for a new one",
    "network": "25 for a network used before, 15 when there is nothing to compare, 5 for a new one",
    "travel": "20 when one can have come here since the last sign-in, 15 when a place is not known, 0 when not",
    "failures": "15, less 3 for each wrong password of the last hour",
    "token_reuse": "10, or 0 within 30 days of a refresh token that was used twice",
}


@dataclass(frozen=True, slots=True)
class Trust:
    """An assessment. ``parts`` has one number per component of :data:`EXPLANATIONS`; ``score`` is their sum."""

    parts: dict[str, int]

    @property
    def score(self) -> int:
        return sum(self.parts.values())

    @property
    def asks(self) -> bool:
        return self.score < ASK_BELOW

    @property
    def refuses(self) -> bool:
        return self.score < REFUSE_BELOW


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What is known about a sign-in.

    Attributes:
        history: the person's latest sign-ins, newest first, ended ones included.
        named: whether the client named its device.
        known: whether the person has used that device.
        network: ``None`` if unknown.
        failures: wrong passwords of the last hour.
    """

    now: datetime
    history: Sequence[SignIn]
    named: bool
    known: bool
    network: str | None
    place: Point | None
    failures: int


def assess(seen: Circumstances) -> Trust:
    """The score and what it is made of. Pure."""
    return Trust(
        {
            "known_device": _device(seen),
            "network": _network(seen),
            "travel": _travel(seen),
            "failures": max(0, 15 - 3 * seen.failures),
            "token_reuse": 0 if _reused(seen) else 10,
        }
    )


def _device(seen: Circumstances) -> int:
    if seen.known:
        return 30
    return 0 if seen.named and seen.history else 15


def _network(seen: Circumstances) -> int:
    networks = {sign_in.network for sign_in in seen.history if sign_in.network is not None}
    if seen.network is None or not networks:
        return 15
    return 25 if seen.network in networks else 5


def _travel(seen: Circumstances) -> int:
    last = next((sign_in for sign_in in seen.history if sign_in.lat is not None and sign_in.lon is not None), None)
    if seen.place is None or last is None or last.lat is None or last.lon is None:
        return 15
    kilometres = distance_m(Point(last.lat, last.lon), seen.place) / 1000 - SLACK_KM
    hours = max(0.0, (seen.now - last.created_at).total_seconds() / 3600)
    return 20 if kilometres <= FASTEST_KMH * hours else 0


def _reused(seen: Circumstances) -> bool:
    return any(
        sign_in.revoked_reason == "reuse"
        and sign_in.revoked_at is not None
        and seen.now - sign_in.revoked_at < REUSE_COUNTS_FOR
        for sign_in in seen.history
    )
