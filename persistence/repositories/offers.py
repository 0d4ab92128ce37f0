"""Offers of bookings to providers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, bindparam, exists, insert, select, update

from domain.offers import LIVE, Offer, OfferStatus
from domain.types import Money, new_id
from persistence.repositories.audit import created, updated
from persistence.tables import offers
from persistence.unit_of_work import UnitOfWork

_MOMENT = timedelta(seconds=1)
_ADD = insert(offers)
_GET = select(offers).where(offers.c.id == bindparam("offer"))
_LIVE_OF_BOOKING = (
    select(offers)
    .where(offers.c.booking_id == bindparam("booking"), offers.c.status.in_(sorted(LIVE)))
    .order_by(offers.c.id)
)
"""Read under the booking's lock, which is the lock of its offers too."""

_ACCEPTED_OF_BOOKING = select(offers).where(
    offers.c.booking_id == bindparam("booking"), offers.c.status == OfferStatus.ACCEPTED.value
)
_MISSED_BESIDE = select(
    exists().where(
        offers.c.provider_id == bindparam("provider"),
        offers.c.status == OfferStatus.EXPIRED.value,
        # Ids begin with the time, and are at the end of the index on the two columns above.
        offers.c.id.between(bindparam("from_"), bindparam("until")),
        offers.c.id != bindparam("offer"),
    )
)
_CLOSE = (
    update(offers)
    .where(offers.c.id == bindparam("offer"))
    .values({name: bindparam(f"new_{name}") for name in ("status", "closed_at", "reason", "updated_at", "updated_by")})
)
_DELIVERED = (
    update(offers)
    .where(offers.c.id == bindparam("offer"), offers.c.status == OfferStatus.SENT.value)
    .values(
        {"status": OfferStatus.DELIVERED.value}
        | {name: bindparam(f"new_{name}") for name in ("delivered_at", "updated_at", "updated_by")}
    )
)


class SqlOffers:
    """See :class:`domain.ports.Offers`."""

    def __init__(self, unit: UnitOfWork) -> None:
        self._unit = unit
        self._connection = unit.connection

    async def add_all(self, made: Sequence[Offer]) -> None:
        audit = created(self._unit)
        await self._connection.execute(_ADD, [_row(offer) | audit for offer in made])

    async def get(self, offer_id: str) -> Offer | None:
        row = (await self._connection.execute(_GET, {"offer": offer_id})).one_or_none()
        return None if row is None else _offer(row)

    async def live_of_booking(self, booking_id: str) -> Sequence[Offer]:
        return [_offer(row) for row in await self._connection.execute(_LIVE_OF_BOOKING, {"booking": booking_id})]

    async def accepted_of_booking(self, booking_id: str) -> Sequence[Offer]:
        return [_offer(row) for row in await self._connection.execute(_ACCEPTED_OF_BOOKING, {"booking": booking_id})]

    async def live_of_providers(self, provider_ids: Collection[str], now: datetime) -> Sequence[Offer]:
        rows = await self._connection.execute(
            select(offers)
            .where(
                offers.c.provider_id.in_(sorted(provider_ids)),
                offers.c.status.in_(sorted(LIVE)),
                offers.c.expires_at > now,
            )
            .order_by(offers.c.expires_at, offers.c.id)
            .limit(100)
        )
        return [_offer(row) for row in rows]

    async def close_all(self, closed: Sequence[Offer]) -> None:
        if not closed:
            return
        audit = {f"new_{name}": value for name, value in updated(self._unit).items()}
        rows = [
            {
                "offer": offer.id,
                "new_status": offer.status.value,
                "new_closed_at": offer.closed_at,
                "new_reason": offer.reason,
                **audit,
            }
            for offer in closed
        ]
        await self._connection.execute(_CLOSE, rows)

    async def missed_beside(self, offer: Offer) -> bool:
        around = {"from_": new_id(offer.sent_at - _MOMENT), "until": new_id(offer.sent_at + _MOMENT)}
        bound = around | {"provider": offer.provider_id, "offer": offer.id}
        return bool((await self._connection.execute(_MISSED_BESIDE, bound)).scalar_one())

    async def delivered(self, offer_ids: Collection[str], now: datetime) -> None:
        # One by one through the primary key: by a list, MariaDB may scan the table and wait for everybody's locks.
        audit = {f"new_{name}": value for name, value in updated(self._unit).items()}
        rows = [{"offer": offer_id, "new_delivered_at": now, **audit} for offer_id in sorted(offer_ids)]
        await self._connection.execute(_DELIVERED, rows)


def _row(offer: Offer) -> dict[str, Any]:
    return {
        "id": offer.id,
        "booking_id": offer.booking_id,
        "provider_id": offer.provider_id,
        "organisation_id": offer.organisation_id,
        "wave": offer.wave,
        "status": offer.status.value,
        "rank": offer.rank,
        "rank_parts": dict(offer.rank_parts),
        "eta_seconds": offer.eta_seconds,
        "payout_minor": offer.payout.amount_minor,
        "currency": offer.payout.currency,
        "sent_at": offer.sent_at,
        "expires_at": offer.expires_at,
        "delivered_at": offer.delivered_at,
        "closed_at": offer.closed_at,
        "reason": offer.reason,
    }


def _offer(row: Row[Any]) -> Offer:
    return Offer(
        id=row.id,
        booking_id=row.booking_id,
        provider_id=row.provider_id,
        organisation_id=row.organisation_id,
        wave=row.wave,
        status=OfferStatus(row.status),
        rank=row.rank,
        rank_parts=row.rank_parts,
        payout=Money(row.payout_minor, row.currency),
        sent_at=row.sent_at,
        expires_at=row.expires_at,
        eta_seconds=row.eta_seconds,
        delivered_at=row.delivered_at,
        closed_at=row.closed_at,
        reason=row.reason,
    )
