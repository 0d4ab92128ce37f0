"""Which step of a booking starts, stops and ends which clock; who is told; and the policy behind the targets.

===========  ==============================================  =================================  ====================
clock        starts                                          is met                             rests
===========  ==============================================  =================================  ====================
response     a search begins, again after a reassignment     somebody has the job               –
arrival      on demand: the assignment; scheduled: at once   the provider is there              –
completion   work begins                                     the job is done                    paused, disputed
===========  ==============================================  =================================  ====================

Whatever else ends a booking cancels the clocks that are open. A breached clock stays breached, except that a new agreed
time brings a new arrival clock.

Invariants: clocks change only under the booking's row lock and are saved with it, so a breach is told exactly once;
    one durable timer per booking (``sla:{id}``) waits for the next warning or deadline, so a restart makes it late and
    never doubles it. A step that comes after a deadline finds the breach itself, before the timer does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import Field

from domain import bookings, sla
from domain.bookings import Booking, BookingView, Kind, Status
from domain.context import Context
from domain.errors import Forbidden, InvalidParams
from domain.events import Audience, Event
from domain.providers import Service
from domain.security import SecurityEvents, SecurityKind
from domain.sla import ClockName, ClockStatus, Sla, SlaView, Targets
from domain.types import JSON, new_id, wire_time
from domain.views import Key, NoParams, Params, View

TIMER = "sla"
EVERY = "*"
"""In place of a service or a zone: all of them."""

Seconds = Annotated[int, Field(ge=1, le=30 * 86_400)]
EntityId = Annotated[str, Field(min_length=1, max_length=64)]


# --- clocks follow the booking ----------------------------------------------------------------------------------------


def follow(before: Booking, after: Booking, now: datetime) -> Booking:
    """The booking after a step, with its clocks as the step leaves them. Called before it is saved."""
    clocks = {name: sla.tick(clock, now) for name, clock in after.sla.clocks.items()}
    targets = after.sla.targets
    response, arrival, completion = ClockName.RESPONSE, ClockName.ARRIVAL, ClockName.COMPLETION

    def start(name: ClockName, due_at: datetime) -> None:
        known = clocks.get(name)
        if known is None or known.status is not ClockStatus.BREACHED:
            clocks[name] = sla.start(now, due_at)

    def end(status: ClockStatus, *names: ClockName) -> None:
        clocks.update({name: sla.end(clocks[name], status, now) for name in names if name in clocks})

    if targets is None:
        return after
    match after.status:
        case Status.AWAITING_ASSIGNMENT if before.status is not Status.AWAITING_ASSIGNMENT:
            start(response, now + timedelta(seconds=targets.response))
            if after.slot is None and arrival in clocks and clocks[arrival].status is not ClockStatus.BREACHED:
                del clocks[arrival]  # nobody is on the way; it starts with the next assignment
            elif after.slot is not None and arrival not in clocks:
                start(arrival, after.slot.start + timedelta(seconds=targets.grace))
        case Status.ASSIGNED | Status.SCHEDULED if before.status is Status.AWAITING_ASSIGNMENT:
            end(ClockStatus.MET, response)
            if after.kind is Kind.ON_DEMAND:
                start(arrival, now + timedelta(seconds=targets.arrival))
        case Status.ARRIVED:
            end(ClockStatus.MET, arrival)
        case Status.IN_PROGRESS if completion in clocks:
            clocks[completion] = sla.resume(clocks[completion], now)
        case Status.IN_PROGRESS:
            start(completion, now + timedelta(seconds=targets.completion))
        case Status.PAUSED | Status.DISPUTED if completion in clocks:
            clocks[completion] = sla.pause(clocks[completion], now)
        case Status.COMPLETED:
            end(ClockStatus.MET, completion)
    if after.slot is not None and after.slot != before.slot and after.arrived_at is None:
        clocks[arrival] = sla.start(now, after.slot.start + timedelta(seconds=targets.grace))
    if after.status in bookings.ENDED:
        end(ClockStatus.CANCELLED, *clocks)
    return replace(after, sla=after.sla.having(clocks))


async def tell(ctx: Context, before: Booking, after: Booking) -> None:
    """Tells what became of the clocks, and sets the timer for what comes next. Called once the booking is saved and its
    own event is recorded.
    """
    for name, clock in after.sla.clocks.items():
        known = before.sla.clocks.get(name)
        if clock.status is ClockStatus.WARNED and known is not None and known.warned:
            continue  # it only goes on
        if clock.status in sla.TOLD and (known is None or known.status is not clock.status):
            ctx.uow.record(_event(after, name, clock.status, ctx.now))
    if after.sla.breached != before.sla.breached:
        ctx.stirred(zone_id=after.zone_id)
    next_at = after.sla.next_at
    if next_at == before.sla.next_at:
        return
    if next_at is None:
        await ctx.uow.timers.cancel(f"{TIMER}:{after.id}")
    else:
        await ctx.uow.timers.set(f"{TIMER}:{after.id}", next_at, TIMER, {"booking_id": after.id})


async def clock_due(ctx: Context, data: JSON) -> None:
    """The timer of a booking's clocks: somebody is warned, or it is too late."""
    booking = await ctx.uow.bookings.lock(data["booking_id"])
    if booking is None:
        return
    clocks = {name: sla.tick(clock, ctx.now) for name, clock in booking.sla.clocks.items()}
    after = replace(booking, sla=booking.sla.having(clocks))
    if after.sla is not booking.sla:
        await ctx.uow.bookings.save_sla(after)
    await tell(ctx, booking, after)


class SlaEventData(View):
    """Which clock of which booking; ``sla`` has all of them."""

    booking_id: str
    zone_id: str
    clock: ClockName
    sla: SlaView


def _event(booking: Booking, name: ClockName, status: ClockStatus, now: datetime) -> Event:
    return Event(
        id=new_id(now),
        type=f"sla.{status.value}",
        time=now,
        source=f"booking/{booking.id}",
        data={
            "booking_id": booking.id,
            "zone_id": booking.zone_id,
            "clock": name.value,
            "sla": sla.view(booking.sla),
        },
        audience=Audience(booking=booking.id),
    )


# --- what is at risk --------------------------------------------------------------------------------------------------


class AtRisk(Params):
    """``limit`` bookings, of one zone or of all."""

    zone_id: EntityId | None = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50


class Risk(View):
    """A booking and its soonest deadline."""

    booking: BookingView
    clock: ClockName
    status: ClockStatus
    due_at: str
    remaining_seconds: int


class RiskList(View):
    """Soonest deadline first; ``server_time`` for countdowns."""

    server_time: str
    risks: list[Risk]


async def list_at_risk(ctx: Context, params: AtRisk) -> JSON:
    """Bookings with a deadline that can still be missed, soonest first."""
    if params.zone_id is not None and await ctx.uow.market.zone(params.zone_id) is None:
        raise Forbidden
    risks = []
    for booking in await ctx.uow.bookings.soonest_due(params.zone_id, ctx.now, params.limit):
        ticking = [item for item in booking.sla.clocks.items() if item[1].status in sla.TICKING]
        name, clock = min(ticking, key=lambda item: item[1].due_at)
        risks.append(
            {
                "booking": bookings.view(booking),
                "clock": name.value,
                "status": sla.tick(clock, ctx.now).status.value,
                "due_at": wire_time(clock.due_at),
                "remaining_seconds": int((clock.due_at - ctx.now) / timedelta(seconds=1)),
            }
        )
    return {"server_time": wire_time(ctx.now), "risks": risks}


# --- policies ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SlaPolicy:
    """What is promised for a service and a zone, or for :data:`EVERY` one; what it leaves open, a wider one says.

    All in seconds; see :class:`domain.sla.Targets`.
    """

    service_id: str = EVERY
    zone_id: str = EVERY
    response_seconds: int | None = None
    arrival_seconds: int | None = None
    grace_seconds: int | None = None
    completion_seconds: int | None = None
    version: int = 0

    @property
    def closeness(self) -> int:
        """How specific it is: both named, the service, the zone, none."""
        return 2 * (self.service_id != EVERY) + (self.zone_id != EVERY)


class PolicyView(View):
    """Without ``service_id`` or ``zone_id`` it is for every one; what is not there, a wider policy says."""

    service_id: str | None = None
    zone_id: str | None = None
    response_seconds: int | None = None
    arrival_seconds: int | None = None
    grace_seconds: int | None = None
    completion_seconds: int | None = None
    version: int


class TargetsView(View):
    """What holds for a new booking, in seconds."""

    response_seconds: float
    arrival_seconds: float
    grace_seconds: float
    completion_seconds: float


class PolicyList(View):
    """Every policy that was set, the most specific first."""

    policies: list[PolicyView]


class PolicyResult(View):
    """One policy."""

    policy: PolicyView


class EffectivePolicy(View):
    """The targets, and the policies they come from, the most specific first."""

    targets: TargetsView
    policies: list[PolicyView]


class GetPolicy(Params):
    """What holds for a service in a zone."""

    service_id: EntityId
    zone_id: EntityId


class SetPolicy(Params):
    """The whole policy: what is left out is left to a wider one.

    ``arrival_seconds`` counts from the assignment of work on demand, ``grace_seconds`` from the agreed start of
    scheduled work. Bookings that exist keep the targets they were made with.
    """

    service_id: EntityId | None = None
    zone_id: EntityId | None = None
    response_seconds: Seconds | None = None
    arrival_seconds: Seconds | None = None
    grace_seconds: Seconds | None = None
    completion_seconds: Seconds | None = None
    key: Key


async def begin(ctx: Context, service: Service, zone_id: str) -> Sla:
    """The clocks of a booking that is being made: none runs, the targets are fixed."""
    return Sla(_targets(ctx, service, await ctx.uow.bookings.sla_policies(service.id, zone_id)))


async def list_policies(ctx: Context, _: NoParams) -> JSON:
    """Every policy."""
    return {"policies": [_policy_view(policy) for policy in _closest_first(await ctx.uow.bookings.sla_policies())]}


async def get_policy(ctx: Context, params: GetPolicy) -> JSON:
    """What holds for new bookings of a service in a zone, and why.

    Raises:
        Forbidden: no such service or zone.
    """
    service = await ctx.uow.market.service(params.service_id)
    if service is None or await ctx.uow.market.zone(params.zone_id) is None:
        raise Forbidden
    policies = _closest_first(await ctx.uow.bookings.sla_policies(service.id, params.zone_id))
    targets = _targets(ctx, service, policies)
    shape = {
        "response_seconds": targets.response,
        "arrival_seconds": targets.arrival,
        "grace_seconds": targets.grace,
        "completion_seconds": targets.completion,
    }
    return {"targets": shape, "policies": [_policy_view(policy) for policy in policies]}


async def set_policy(ctx: Context, params: SetPolicy) -> JSON:
    """Sets what is promised from now on.

    Raises:
        InvalidParams: no such service or zone.
    """
    if params.service_id is not None and await ctx.uow.market.service(params.service_id) is None:
        raise InvalidParams.at("service_id", "there is no such service")
    if params.zone_id is not None and await ctx.uow.market.zone(params.zone_id) is None:
        raise InvalidParams.at("zone_id", "there is no such zone")
    policy = SlaPolicy(
        params.service_id or EVERY,
        params.zone_id or EVERY,
        params.response_seconds,
        params.arrival_seconds,
        params.grace_seconds,
        params.completion_seconds,
    )
    shape = _policy_view(await ctx.uow.bookings.put_sla_policy(policy))
    await SecurityEvents().record(ctx.uow, SecurityKind.SLA_POLICY_CHANGED, ctx.actor.user_id, None, shape)
    return {"policy": shape}


def _closest_first(policies: Sequence[SlaPolicy]) -> list[SlaPolicy]:
    return sorted(policies, key=lambda policy: (-policy.closeness, policy.service_id, policy.zone_id))


def _targets(ctx: Context, service: Service, policies: Sequence[SlaPolicy]) -> Targets:
    closest = _closest_first(policies)

    def said(name: str, otherwise: float) -> float:
        values = (getattr(policy, name) for policy in closest)
        return float(next((value for value in values if value is not None), otherwise))

    defaults = ctx.policy
    return Targets(
        response=said("response_seconds", defaults.response_target_seconds),
        arrival=said("arrival_seconds", defaults.arrival_target_seconds),
        grace=said("grace_seconds", defaults.arrival_grace_seconds),
        completion=said("completion_seconds", service.duration_minutes * 60 * defaults.completion_target_factor),
    )


def _policy_view(policy: SlaPolicy) -> JSON:
    shape: JSON = {"version": policy.version}
    for name in ("service_id", "zone_id", "response_seconds", "arrival_seconds", "grace_seconds", "completion_seconds"):
        value = getattr(policy, name)
        if value not in (None, EVERY):
            shape[name] = value
    return shape
