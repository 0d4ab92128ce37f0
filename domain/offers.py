"""The offer of a job to a provider: its life, its rank and its words.

The rank is a sum of six components between 0 and 1. They are stored with the offer, so that every decision can be
explained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from domain.bookings import Booking, Kind
from domain.events import Audience, Event
from domain.geography import EtaEstimator
from domain.providers import Provider
from domain.types import JSON, Money, new_id, wire_time
from domain.views import Key, MoneyView, Params, Text, View


class OfferStatus(StrEnum):
    """``sent`` → ``delivered`` (a socket acked it) → one of the ends."""

    SENT = "sent"
    DELIVERED = "delivered"
    ACCEPTED = "accepted"
    DECLINED = "declined"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"


LIVE = frozenset({OfferStatus.SENT, OfferStatus.DELIVERED})

WEIGHTS: Mapping[str, float] = {
    "eta": 0.30,
    "rating": 0.20,
    "acceptance": 0.15,
    "completion": 0.15,
    "zone_priority": 0.10,
    "idle": 0.10,
}


@dataclass(frozen=True, slots=True)
class Offer:
    """One provider asked for one booking in one wave.

    Attributes:
        organisation_id: the provider's; the row's tenant.
        rank_parts: each component, 0–1, before its weight.
        expires_at: from this instant of the server's clock on it cannot be accepted.
        reason: why it was declined or withdrawn.
    """

    id: str
    booking_id: str
    provider_id: str
    organisation_id: str
    wave: int
    status: OfferStatus
    rank: float
    rank_parts: Mapping[str, float]
    payout: Money
    sent_at: datetime
    expires_at: datetime
    eta_seconds: int | None = None
    delivered_at: datetime | None = None
    closed_at: datetime | None = None
    reason: str | None = None


def eta_to(provider: Provider, booking: Booking, estimator: EtaEstimator) -> int | None:
    """Seconds from the provider's last known place to the job, when there is one."""
    return estimator.eta_seconds(provider.position, booking.location) if provider.position else None


def rank(provider: Provider, eta_seconds: int | None, zone_priority: float, now: datetime) -> dict[str, float]:
    """The components of a provider's rank for a job, each 0–1.

    An hour away counts as 0 for ETA, an hour idle as 1 for fairness; an unknown place counts as half.
    """
    idle_seconds = max(0.0, (now - provider.idle_since).total_seconds())
    return {
        "eta": 0.5 if eta_seconds is None else max(0.0, 1 - eta_seconds / 3600),
        "rating": min(1.0, max(0.0, provider.rating / 5)),
        "acceptance": provider.acceptance_rate,
        "completion": provider.completion_rate,
        "zone_priority": min(1.0, max(0.0, zone_priority)),
        "idle": min(1.0, idle_seconds / 3600),
    }


def weighted(parts: Mapping[str, float]) -> float:
    """The rank, 0–1."""
    return sum(WEIGHTS[name] * value for name, value in parts.items())


# --- the wire ---------------------------------------------------------------------------------------------------------


class AreaView(View):
    """Roughly where: two decimals of a degree, about a kilometre. The address comes with acceptance."""

    name: str
    lat: float
    lon: float


class OfferedBookingView(View):
    """What a provider may know of a job before taking it."""

    service_id: str
    zone_id: str
    kind: Kind
    start: str | None = None
    end: str | None = None
    area: AreaView


class OfferView(View):
    """An offer; ``rank_parts`` explains why this provider was asked."""

    id: str
    booking_id: str
    provider_id: str
    wave: int
    status: OfferStatus
    expires_at: str
    server_time: str
    eta_seconds: int | None = None
    payout: MoneyView
    rank: float
    rank_parts: dict[str, float]
    booking: OfferedBookingView


def view(offer: Offer, booking: Booking, zone_name: str, now: datetime) -> JSON:
    """The offer on the wire. ``server_time`` lets a client count down whatever its own clock says."""
    shape: dict[str, Any] = {
        "id": offer.id,
        "booking_id": offer.booking_id,
        "provider_id": offer.provider_id,
        "wave": offer.wave,
        "status": offer.status.value,
        "expires_at": wire_time(offer.expires_at),
        "server_time": wire_time(now),
        "payout": offer.payout.view(),
        "rank": round(offer.rank, 4),
        "rank_parts": {name: round(value, 4) for name, value in offer.rank_parts.items()},
        "booking": {
            "service_id": booking.service_id,
            "zone_id": booking.zone_id,
            "kind": booking.kind.value,
            "area": {
                "name": zone_name,
                "lat": round(booking.location.lat, 2),
                "lon": round(booking.location.lon, 2),
            },
        },
    }
    if offer.eta_seconds is not None:
        shape["eta_seconds"] = offer.eta_seconds
    if booking.slot:
        shape["booking"]["start"] = wire_time(booking.slot.start)
        shape["booking"]["end"] = wire_time(booking.slot.end)
    return shape


class AcceptOffer(Params):
    """Takes the job."""

    offer_id: Annotated[str, Field(max_length=64)]
    key: Key


class DeclineOffer(Params):
    """Turns the job down."""

    offer_id: Annotated[str, Field(max_length=64)]
    reason: Text
    key: Key


class OfferList(View):
    """Live offers, soonest to expire first."""

    offers: list[OfferView]


class DeclineResult(View):
    """The offer after the refusal."""

    offer_id: str
    status: OfferStatus


class OfferMadeData(View):
    """A job is offered."""

    offer_id: str
    booking_id: str
    provider_id: str
    offer: OfferView


class OfferClosedData(View):
    """``reason`` of a withdrawal: ``taken``, ``cancelled``, ``reassigned``; it never names the winner."""

    offer_id: str
    booking_id: str
    provider_id: str
    reason: str | None = None


def event(about: Offer, type_: str, now: datetime, **more: Any) -> Event:
    """The fact that something happened to an offer, for its provider and the operators."""
    data = {"offer_id": about.id, "booking_id": about.booking_id, "provider_id": about.provider_id, **more}
    return Event(
        id=new_id(now),
        type=type_,
        time=now,
        # The booking is the aggregate: its events and its offers' keep one order.
        source=f"booking/{about.booking_id}",
        data=data,
        audience=Audience(providers=(about.provider_id,)),
    )
