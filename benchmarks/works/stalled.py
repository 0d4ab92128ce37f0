"""P9: what one per cent of stalled clients do to the others' latency: nothing, it should be."""

from __future__ import annotations

import sys
import time
from functools import partial

from benchmarks.crowd import FIXNADO, Crowd, Progress
from benchmarks.machine import Share
from benchmarks.native import CompilerMissing
from benchmarks.process import ROOT, Child, environment
from benchmarks.results import Figure, Outcome, median, percentile
from benchmarks.scene import MESSAGE_BYTES, Scene
from benchmarks.wire import WireError

SOCKETS = 1_000
STALLED = 10
EVENTS_PER_SECOND = 50.0
MOST_MOVED = 0.10
FILL_BYTES = 32 * 1024
FILL_EVENTS = 8
FILL_ROUNDS = 200
GROWTH_SECONDS = 0.5
"""The kernel may give a full socket more room a moment later; whoever is still congested then stays so."""
TITLE = f"{STALLED} of {SOCKETS:,} sockets do not read; {EVENTS_PER_SECOND:.0f} events/s to all; p99 of the others"
TARGET = "moves < 10 %"


def run(scene: Scene) -> Outcome:
    """P9."""
    try:
        return Outcome([_measure(scene)])
    except CompilerMissing as error:
        return Outcome([Figure.missing("P9", TITLE, TARGET, f"not here: {error}")])


def _measure(scene: Scene) -> Figure:
    events, rounds = scene.pick(300, 100), scene.pick(5, 2)
    p99: dict[bool, list[float]] = {False: [], True: []}
    shares = []
    command = [sys.executable, "-m", "benchmarks.hub_server"]
    connecting: Progress = partial(scene.tell, "connecting")
    with (
        Child(command, [scene.cores.server], env=environment(), cwd=ROOT) as child,
        Crowd(child.port, SOCKETS, FIXNADO, connecting) as crowd,
    ):
        _latencies(child, crowd, events)
        for number in range(rounds):
            # Which goes first changes: what drifts must not look like an effect.
            for stalled in (False, True) if number % 2 else (True, False):
                word = "stalled" if stalled else "healthy"
                scene.tell(f"round {number + 1} of {rounds}, {word}", number / rounds)
                if stalled:
                    _stall(child, crowd)
                share = Share()
                p99[stalled].append(percentile(_latencies(child, crowd, events), 0.99))
                shares.append(share.read())
                if stalled:
                    congested = child.ask("stats")["congested"]
                    if len(congested) < STALLED:
                        raise WireError(f"only {len(congested)} sockets were congested to the end")
                    for index in range(STALLED):
                        crowd.sink.mute(index, False)
                    crowd.sink.drain(0.5)
        crowd.sink.check_exact(apart_from=range(STALLED))
    healthy, stalled_p99 = median(p99[False]), median(p99[True])
    # Each pair was measured within seconds, so what drifts in a long run is in both.
    moved = median([ill / well - 1 for well, ill in zip(p99[False], p99[True], strict=True)])
    figure = Figure("P9", TITLE, f"{moved:+.1%}", TARGET, moved < MOST_MOVED, generator_share=median(shares))
    figure.notes.append(f"p99 {healthy * 1e3:.2f} ms healthy, {stalled_p99 * 1e3:.2f} ms with stalled sockets")
    return figure


def _stall(child: Child, crowd: Crowd) -> None:
    """Stop reading the first sockets, and fill their buffers until the server finds each of them congested.

    Raises:
        WireError: it does not.
    """
    for index in range(STALLED):
        crowd.sink.mute(index)
    full = False
    for _ in range(FILL_ROUNDS):
        # The kernel gives each socket buffers of its own choice; who is full must not be closed for being too slow.
        congested = child.ask("stats")["congested"]
        lacking = [name for name in (f"user{index}" for index in range(STALLED)) if name not in congested]
        if not lacking and full:
            return
        full = not lacking
        if full:
            time.sleep(GROWTH_SECONDS)
        for name in lacking:
            child.ask("publish", turns=FILL_EVENTS, burst=1, size=FILL_BYTES, channel=f"user:{name}")
    raise WireError("the stalled sockets did not fill up")


def _latencies(child: Child, crowd: Crowd, events: int) -> list[float]:
    """From publication to arrival at each socket that reads, in seconds, ascending."""
    child.tell("pace", events=events, per_second=EVENTS_PER_SECOND, size=MESSAGE_BYTES)
    arrived = crowd.sink.stamped(events, events / EVENTS_PER_SECOND + 20)
    published = child.answer()["published"]
    return sorted(
        (stamp - published[place]) / 1e9 for stamps in arrived[STALLED:] for place, stamp in enumerate(stamps)
    )
