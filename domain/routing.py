"""In which order a provider does its jobs: as little lateness as possible, then as little driving.

A handful of stops is solved exactly, by depth-first search that gives up a branch once it is no better than the best
order known. More are put in the order of their deadlines and improved by turning pieces around (2-opt) and moving
single stops, until no such change helps. Every number that led to the order is in the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from domain.geography import EtaEstimator, distance_m
from domain.types import Point

EXACT_STOPS = 8
MOST_STOPS = 20
"""Twenty stops take a tenth of a second."""

IMPROVEMENTS = 200
"""At most so many changes, each of which makes the order better."""


@dataclass(frozen=True, slots=True)
class Stop:
    """A job to drive to.

    Attributes:
        opens: the work does not begin before.
        closes: arriving after this is late; ``None`` is never late.
        pinned: it is done first, in the order given, because the provider is at it or on its way.
    """

    id: str
    place: Point
    opens: datetime
    closes: datetime | None
    work_seconds: int
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Visit:
    """A stop with its times; durations in whole seconds, the distance as the crow flies."""

    stop: Stop
    travel_seconds: int
    distance_m: int
    arrive_at: datetime
    wait_seconds: int
    late_seconds: int
    leave_at: datetime


@dataclass(frozen=True, slots=True)
class Plan:
    """An order of visits; ``method`` is ``exact`` or ``improved``."""

    visits: Sequence[Visit]
    method: str

    @property
    def cost(self) -> tuple[int, int]:
        """Seconds late in all, then seconds of driving: the less the better."""
        return sum(visit.late_seconds for visit in self.visits), sum(visit.travel_seconds for visit in self.visits)


Cost = tuple[float, float]
_NO_COST: Cost = (0.0, 0.0)


class _Search:
    """Orders of stops by number; the start is -1. Times are seconds since departure."""

    def __init__(self, start: Point | None, depart_at: datetime, stops: Sequence[Stop], eta: EtaEstimator) -> None:
        self.opens = [(stop.opens - depart_at).total_seconds() for stop in stops]
        self.closes = [(stop.closes - depart_at).total_seconds() if stop.closes else float("inf") for stop in stops]
        self.work = [stop.work_seconds for stop in stops]
        self.travel = [[eta.eta_seconds(one.place, other.place) for other in stops] for one in stops]
        self.travel.append([eta.eta_seconds(start, stop.place) if start else 0 for stop in stops])
        self.pinned = [number for number, stop in enumerate(stops) if stop.pinned]
        self.free = [number for number, stop in enumerate(stops) if not stop.pinned]

    def step(self, place: int, clock: float, cost: Cost, stop: int) -> tuple[float, Cost]:
        """When the provider is done with the stop, and what the order costs so far."""
        drive = self.travel[place][stop]
        arrive = clock + drive
        late = max(0.0, arrive - self.closes[stop])
        return max(arrive, self.opens[stop]) + self.work[stop], (cost[0] + late, cost[1] + drive)

    def cost(self, order: Sequence[int]) -> Cost:
        place, clock, cost = -1, 0.0, _NO_COST
        for stop in order:
            clock, cost = self.step(place, clock, cost, stop)
            place = stop
        return cost

    def exact(self, best: list[int]) -> list[int]:
        """The best order of all, given a good one to begin with."""
        best_cost = self.cost(best)

        def extend(order: list[int], left: list[int], clock: float, cost: Cost) -> None:
            nonlocal best, best_cost
            if cost >= best_cost:
                return
            if not left:
                best, best_cost = order, cost
                return
            place = order[-1] if order else -1
            for stop in sorted(left, key=lambda stop: self.travel[place][stop]):
                after, more = self.step(place, clock, cost, stop)
                extend([*order, stop], [other for other in left if other != stop], after, more)

        clock, cost, place = 0.0, _NO_COST, -1
        for stop in self.pinned:
            clock, cost = self.step(place, clock, cost, stop)
            place = stop
        extend(list(self.pinned), self.free, clock, cost)
        return best

    def improved(self, order: list[int]) -> list[int]:
        """A better order by 2-opt and by moving single stops, until neither helps."""
        fixed, cost = len(self.pinned), self.cost(order)
        for _ in range(IMPROVEMENTS):
            candidates = [(self.cost(other), other) for other in _neighbours(order, fixed)]
            found = min(candidates, default=(cost, order))
            if found[0] >= cost:
                break
            cost, order = found
        return order


def _neighbours(order: list[int], fixed: int) -> list[list[int]]:
    size = len(order)
    turned = [
        order[:first] + order[first : last + 1][::-1] + order[last + 1 :]
        for first in range(fixed, size)
        for last in range(first + 1, size)
    ]
    rests = [(order[:taken] + order[taken + 1 :], order[taken]) for taken in range(fixed, size)]
    put_elsewhere = [
        [*rest[:place], stop, *rest[place:]] for rest, stop in rests for place in range(fixed, len(rest) + 1)
    ]
    return turned + put_elsewhere


def plan(start: Point | None, depart_at: datetime, stops: Sequence[Stop], eta: EtaEstimator) -> Plan:
    """The best order found for these stops, at most :data:`MOST_STOPS`.

    Args:
        start: where the provider is; ``None`` when nobody knows, then the first drive counts as nothing.
        stops: pinned ones first.
    """
    search = _Search(start, depart_at, stops, eta)
    far = datetime.max.replace(tzinfo=depart_at.tzinfo)
    by_deadline = sorted(search.free, key=lambda number: (stops[number].closes or far, number))
    order = search.improved([*search.pinned, *by_deadline])
    exact = len(search.free) <= EXACT_STOPS
    if exact:
        order = search.exact(order)
    return Plan(visits([stops[number] for number in order], start, depart_at, eta), "exact" if exact else "improved")


def visits(order: Sequence[Stop], start: Point | None, depart_at: datetime, eta: EtaEstimator) -> list[Visit]:
    """The times of stops in this order."""
    made, place, clock = [], start, depart_at
    for stop in order:
        travel_seconds = eta.eta_seconds(place, stop.place) if place else 0
        arrive_at = clock + timedelta(seconds=travel_seconds)
        begin_at = max(arrive_at, stop.opens)
        late = (arrive_at - stop.closes).total_seconds() if stop.closes else 0
        clock = begin_at + timedelta(seconds=stop.work_seconds)
        made.append(
            Visit(
                stop=stop,
                travel_seconds=travel_seconds,
                distance_m=round(distance_m(place, stop.place)) if place else 0,
                arrive_at=arrive_at,
                wait_seconds=int((begin_at - arrive_at).total_seconds()),
                late_seconds=max(0, int(late)),
                leave_at=clock,
            )
        )
        place = stop.place
    return made
