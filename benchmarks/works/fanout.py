"""P1 and P2: one channel, many sockets, one server core; and how P1 grows with sockets."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from benchmarks.crowd import Crowd
from benchmarks.machine import Share, cpu_seconds, raise_file_limit
from benchmarks.native import CompilerMissing, Miscounted, TooSlow
from benchmarks.process import ChildFailed
from benchmarks.results import Curve, Figure, Outcome, Picture, median, quantity
from benchmarks.rivals import LIMIT, OURS, OURS_DEFLATED, PEERS, NotHere, Rival, Running
from benchmarks.scene import MESSAGE_BYTES, Scene
from benchmarks.wire import WireError

SOCKETS = 1_000
DEFLATED_SOCKETS = (1, 10, SOCKETS)
"""An event is deflated once, so few sockets pay most for it."""

BURST = 10
PROBE_TURNS, FEWEST_TURNS = 10, 2
NAP_SECONDS = 0.001
ROUND_TIMEOUT_SECONDS = 60.0
REST_SECONDS = 0.1
SPARE_FILES = 500

P1_SHARE_OF_LIMIT = 0.75
P2_SHARE_OF_LIMIT = 0.70
P2_PER_SECOND = 1_200_000

TURNS = (("P1", 1), ("P2", BURST))
"""Events of each work in a turn of the loop."""

TITLES = {
    "P1": "fan-out, one channel → {sockets:,} sockets, one message per write",
    "P2": "the same, bursts of 10 in a loop turn",
}
TARGETS = {"P1": "≥ 75 % of the C loop; ahead of all others", "P2": "≥ 1.2 M/s, or ≥ 70 % of the joining C loop"}


class Round(NamedTuple):
    """What one server did in one round.

    Attributes:
        rate: deliveries per second.
        share: the generator's part of a core.
        used: the server's part of its core: below 90 % or so, something else was running there.
        size: bytes of a message on the wire, but its header.
    """

    rate: float
    share: float
    used: float
    size: float = 0.0


@dataclass(slots=True)
class Lane:
    """One server with its crowd; the turns that make a round, and the rounds it has had, by burst."""

    rival: Rival
    running: Running
    crowd: Crowd
    turns: dict[int, int] = field(default_factory=dict)
    rounds: dict[int, list[Round]] = field(default_factory=dict)

    def round(self, turns: int, burst: int) -> Round:
        """One round.

        Raises:
            TooSlow: not everything has arrived.
        """
        share, cpu_before, bytes_before = Share(), cpu_seconds(self.running.pid), self.crowd.sink.payload_bytes(0)
        self.running.begin(turns, burst, MESSAGE_BYTES)
        ended = self.crowd.sink.until(turns * burst, ROUND_TIMEOUT_SECONDS, nap_seconds=NAP_SECONDS)
        busy = share.read()
        seconds = ended - self.running.started()
        used = (cpu_seconds(self.running.pid) - cpu_before) / seconds
        size = (self.crowd.sink.payload_bytes(0) - bytes_before) / turns / burst
        return Round(len(self.crowd) * turns * burst / seconds, busy, used, size)

    def calibrate(self, burst: int, round_seconds: float) -> None:
        """Warm up, and find how many turns make a round."""
        few = max(FEWEST_TURNS, PROBE_TURNS // burst)
        self.round(few, burst)
        rate = self.round(few, burst).rate
        self.turns[burst] = max(few, round(rate * round_seconds / len(self.crowd) / burst))
        self.rounds[burst] = []

    def measure(self, burst: int) -> None:
        self.rounds[burst].append(self.round(self.turns[burst], burst))


@dataclass(frozen=True, slots=True)
class Race:
    """What came of it.

    Attributes:
        rounds: of those who stayed to the end, by name and burst.
        absent: who did not, and why.
        together: all ran at once, so that rounds can be compared one by one.
    """

    rounds: dict[str, dict[int, list[Round]]]
    absent: dict[str, str]
    together: bool = True

    def rate(self, name: str, burst: int) -> float:
        """Deliveries per second, the median of the rounds."""
        return median([each.rate for each in self.rounds[name][burst]])

    def ratios(self, burst: int) -> dict[str, float]:
        """Ours to each other's: the median of what was compared in the same round, because all of them are slower when
        the machine is.
        """
        others = [name for name, rounds in self.rounds.items() if name != OURS.name and burst in rounds]
        if not self.together:
            return {name: self.rate(OURS.name, burst) / self.rate(name, burst) for name in others}
        ours = self.rounds[OURS.name][burst]
        return {
            name: median([our.rate / their.rate for our, their in zip(ours, self.rounds[name][burst], strict=True)])
            for name in others
        }


def race(scene: Scene, rivals: Sequence[Rival], sockets: int, bursts: Sequence[int], rounds: int) -> Race:
    """All servers at once, idle but for the one whose turn it is; round by round."""
    lanes: list[Lane] = []
    absent: dict[str, str] = {}
    round_seconds = scene.pick(0.5, 0.2)
    with ExitStack() as stack:
        for number, rival in enumerate(rivals):
            scene.tell(f"{sockets:,} sockets on {rival.name}", number / len(rivals) / 2)
            try:
                running = stack.enter_context(rival.run(scene.cores))
                lane = Lane(rival, running, stack.enter_context(Crowd(running.port, sockets, rival.dialect)))
                for burst in bursts:
                    if burst == 1 or rival.bursts:
                        lane.calibrate(burst, round_seconds)
            except (NotHere, CompilerMissing) as error:
                absent[rival.name] = f"not here: {error}"
            except (ChildFailed, WireError, TooSlow, Miscounted, OSError) as error:
                absent[rival.name] = f"failed: {str(error).splitlines()[0]}"
            else:
                lanes.append(lane)
        for number in range(rounds):
            for burst in bursts:
                # In any order, after a rest: nobody shall always come after the one that has most to clean up.
                for lane in random.sample(lanes, len(lanes)):
                    if burst not in lane.turns:
                        continue
                    time.sleep(REST_SECONDS)
                    scene.tell(f"round {number + 1} of {rounds}: {lane.rival.name}", 0.5 + number / rounds / 2)
                    try:
                        lane.measure(burst)
                    except (TooSlow, Miscounted, ChildFailed) as error:
                        absent[lane.rival.name] = f"failed: {str(error).splitlines()[0]}"
                        lanes.remove(lane)
        for lane in list(lanes):
            try:
                lane.crowd.sink.check_exact()
            except Miscounted as error:
                absent[lane.rival.name] = f"failed: {error}"
                lanes.remove(lane)
    return Race({lane.rival.name: lane.rounds for lane in lanes}, absent)


def races(scene: Scene, rivals: Sequence[Rival], sockets: int, bursts: Sequence[int], rounds: int, starts: int) -> Race:
    """Races of freshly started servers, all their rounds. How a process happens to lie in memory makes it some percent
    quicker or slower for as long as it lives, which no number of rounds shows.
    """
    done = []
    for number in range(starts):

        def tell(text: str, share: float, number: int = number) -> None:
            scene.tell(f"start {number + 1} of {starts}, {text}", (number + share) / starts)

        done.append(race(replace(scene, tell=tell), rivals, sockets, bursts, rounds))
    absent = {name: why for each in done for name, why in each.absent.items()}
    together = {
        name: {burst: [each for start in done for each in start.rounds[name][burst]] for burst in rounds}
        for name, rounds in done[0].rounds.items()
        if name not in absent
    }
    return Race(together, absent)


def judge(work: str, raced: Race, burst: int, sockets: int) -> Figure:
    """The line of P1 or P2."""
    title = TITLES[work].format(sockets=sockets)
    if burst not in raced.rounds.get(OURS.name, {}):
        return Figure.missing(work, title, TARGETS[work], raced.absent.get(OURS.name, "did not run"))
    ours, ratios = raced.rate(OURS.name, burst), raced.ratios(burst)
    limit = ratios.get(LIMIT.name)
    peers = [ratio for name, ratio in ratios.items() if name != LIMIT.name]
    reached: bool | None
    if work == "P1":
        # Without the limit there is no verdict; a peer that is not here leaves the verdict to those that are.
        reached = None if limit is None else limit >= P1_SHARE_OF_LIMIT and min(peers, default=2.0) > 1.0
    else:
        reached = ours >= P2_PER_SECOND or (None if limit is None else limit >= P2_SHARE_OF_LIMIT)
    figure = _figure(work, title, raced, burst)
    figure.target, figure.reached = TARGETS[work], reached
    used = median([each.used for each in raced.rounds[OURS.name][burst]])
    figure.notes.append(f"our server used {used:.0%} of its core: {quantity(ours / used)} per CPU second")
    figure.notes += [f"{name} {why}" for name, why in raced.absent.items()]
    return figure


def _figure(work: str, title: str, raced: Race, burst: int) -> Figure:
    """Our rate, what it is of the others', and the generator's share."""
    rates = {name: f"{name} ({quantity(raced.rate(name, burst))}/s)" for name in raced.ratios(burst)}
    return Figure(
        work,
        title,
        f"{quantity(raced.rate(OURS.name, burst))}/s",
        ratios={rates[name]: ratio for name, ratio in raced.ratios(burst).items()},
        generator_share=median([each.share for each in raced.rounds[OURS.name][burst]]),
    )


def run(scene: Scene, wanted: Sequence[str] = ("P1", "P2")) -> Outcome:
    """P1, P2 or both, on the same sockets."""
    outcome = Outcome()
    bursts = [burst for work, burst in TURNS if work in wanted]
    raced = races(scene, [OURS, LIMIT, *PEERS], SOCKETS, bursts, scene.pick(5, 2), scene.pick(3, 1))
    for work, burst in TURNS:
        if work in wanted:
            outcome.figures.append(judge(work, raced, burst, SOCKETS))
    if "P1" in wanted:
        _grow(scene, outcome)
    outcome.figures += [
        _deflated(scene, work, burst, sockets)
        for work, burst in TURNS
        if work in wanted
        for sockets in (DEFLATED_SOCKETS if burst == 1 else [SOCKETS])
    ]
    return outcome


def _deflated(scene: Scene, work: str, burst: int, sockets: int) -> Figure:
    """The same to sockets that negotiated permessage-deflate."""
    title = f"permessage-deflate: {sockets:,} socket{'s' if sockets > 1 else ''}"
    raced = races(scene, [OURS, OURS_DEFLATED], sockets, [burst], scene.pick(5, 2), scene.pick(3, 1))
    if raced.absent:
        return Figure.missing(work, title, "", "; ".join(f"{name} {why}" for name, why in raced.absent.items()))
    plain, deflated = (raced.rounds[each.name][burst] for each in (OURS, OURS_DEFLATED))
    return Figure(
        work,
        title,
        f"{quantity(raced.rate(OURS_DEFLATED.name, burst))}/s",
        ratios={f"plain ({quantity(raced.rate(OURS.name, burst))}/s)": 1 / raced.ratios(burst)[OURS_DEFLATED.name]},
        generator_share=median([each.share for each in deflated]),
        notes=[f"{median([each.size for each in deflated]):.0f} bytes an event in place of {plain[0].size:.0f}"],
    )


def _race_within_limits(scene: Scene, rivals: Sequence[Rival], sockets: int, rounds: int) -> Race:
    """All at once while this process may open so many sockets, else one after the other."""
    room = raise_file_limit() - SPARE_FILES
    if sockets * len(rivals) <= room:
        return race(scene, rivals, sockets, [1], rounds)
    if sockets > room:
        why = f"this machine allows {room:,} open files to a process (ulimit -n)"
        return Race({}, {rival.name: why for rival in rivals})
    alone = [race(scene, [rival], sockets, [1], rounds) for rival in rivals]
    return Race(
        {name: rounds for each in alone for name, rounds in each.rounds.items()},
        {name: why for each in alone for name, why in each.absent.items()},
        together=False,
    )


def _grow(scene: Scene, outcome: Outcome) -> None:
    points: dict[str, list[tuple[float, float]]] = {}
    for sockets in scene.pick((10, 100, 1_000, 10_000), (10, 100)):
        raced = _race_within_limits(scene, [OURS, LIMIT, *PEERS[:2]], sockets, scene.pick(5, 2))
        for name in raced.rounds:
            points.setdefault(name, []).append((sockets, raced.rate(name, 1)))
        title = f"growth: {sockets:,} sockets"
        if OURS.name in raced.rounds:
            outcome.figures.append(_figure("P1", title, raced, 1))
        else:
            outcome.figures.append(Figure.missing("P1", title, "", raced.absent[OURS.name]))
    if points:
        curves = [Curve(name, places) for name, places in points.items()]
        title = "P1: deliveries per second of one core, one channel"
        outcome.pictures.append(Picture("p1-fanout.svg", title, "sockets", "deliveries/s", curves))
