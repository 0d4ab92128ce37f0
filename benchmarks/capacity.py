"""The growth model: from measured figures to nodes, Redis, sequencers and databases; and simulations that check it.

``python -m benchmarks.capacity`` prints the tables of ``docs/capacity.md``. The formulas are simple on purpose; whether
they hold is asked of event-by-event simulations of a fan-out queue, a resume storm and a sequencer, which know nothing
of them (:func:`simulate_fanout`, :func:`simulate_storm`, :func:`simulate_sequencer`).
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.results import percentile, quantity
from persistence.sequencer import SequencerOptions


@dataclass(frozen=True, slots=True)
class Measured:
    """What one core, one partition, one database can do. Replace by the newest full run of ``RESULTS.md``.

    Attributes:
        deliveries_per_second: P1, one write each, of one core.
        spread_per_second: P3, events that come through Redis to a channel of one socket, of one core.
        socket_bytes: P4.
        connects_per_second: P5, resumes included, of one core.
        entry_seconds: what one durable entry costs a sequencer, from P7's backlog.
        batch_seconds: what a batch costs it besides.
        command_node_seconds, command_database_seconds: CPU of the heaviest command, a booking, from P7.
        redis_per_second: messages that one Redis takes and gives; an assumption, see the document.
    """

    deliveries_per_second: float = 140_000
    spread_per_second: float = 45_000
    socket_bytes: float = 16_000
    connects_per_second: float = 800
    entry_seconds: float = 100e-6
    batch_seconds: float = 3e-3
    command_node_seconds: float = 5.3e-3
    command_database_seconds: float = 2.4e-3
    redis_per_second: float = 100_000


@dataclass(frozen=True, slots=True)
class Habits:
    """What people do at the busiest minute of a day, per open socket. Assumptions, each a line in the document.

    Attributes:
        bookings_per_second: one booking in two hours for four sockets of five.
        entries_per_booking: twelve when it is made, the rest from steps and messages until its end.
        commands_per_booking: creating, accepting, eight steps, messages and read marks.
        hearers_per_entry: sockets that hear an entry on average; most channels have one or two.
        nodes_per_entry: nodes with such a socket.
        positions_per_second: two sockets in a hundred are on a job and send a fix every three seconds.
    """

    bookings_per_second: float = 0.8 / 7_200
    entries_per_booking: float = 60
    commands_per_booking: float = 25
    hearers_per_entry: float = 1.5
    nodes_per_entry: float = 1.5
    positions_per_second: float = 0.02 / 3


@dataclass(frozen=True, slots=True)
class Policy:
    """How full things may be.

    Attributes:
        utilisation: of a core, a Redis or a sequencer at the busiest minute.
        storm_seconds: in which all sockets must be able to come back.
        sequencer: its batches and pauses.
    """

    utilisation: float = 0.6
    storm_seconds: float = 15.0
    sequencer: SequencerOptions = field(default_factory=SequencerOptions)


@dataclass(frozen=True, slots=True)
class Plan:
    """What so many sockets need.

    Attributes:
        nodes: processes, a core each.
        bound_by: what asks for the most nodes.
        node_sockets: per process, evenly spread.
        memory_gib: of all sockets.
        entries_per_second, deliveries_per_second, redis_per_second: at the busiest minute.
        partitions: sequencers.
        database_cores: of the primary, or of all of them together.
        redis_shards: primaries of a Redis Cluster.
    """

    sockets: int
    nodes: int
    bound_by: str
    node_sockets: float
    memory_gib: float
    entries_per_second: float
    deliveries_per_second: float
    redis_per_second: float
    partitions: int
    database_cores: int
    redis_shards: int


def sequencer_ceiling(measured: Measured, policy: Policy) -> float:
    """Entries per second of one partition that always finds a full batch."""
    rows = policy.sequencer.batch_rows
    took = measured.batch_seconds + rows * measured.entry_seconds
    return rows / (took + policy.sequencer.pause_seconds(took))


def sequencer_cycle(entries_per_second: float, measured: Measured, policy: Policy) -> float:
    """Seconds from one batch to the next below the ceiling: each takes what came during the one before.

    Raises:
        ValueError: at or above the ceiling a backlog grows without end.
    """
    if entries_per_second >= sequencer_ceiling(measured, policy):
        raise ValueError("beyond the ceiling of one partition")
    base, each, options = measured.batch_seconds, entries_per_second * measured.entry_seconds, policy.sequencer
    # The pause is the longer of two, and each alone would make a cycle of its own length; below the ceiling the bound
    # of the longer one is far.
    shared = (1.0 + options.pace_share) * base / (1.0 - (1.0 + options.pace_share) * each)
    return max(shared, (base + options.pace_seconds) / (1.0 - each))


def storm_seconds(sockets: int, nodes: int, measured: Measured) -> float:
    """Until all are back when they spread evenly: the nodes are busy from the first to the last."""
    return sockets / nodes / measured.connects_per_second


def fanout_wait_seconds(events_per_second: float, sockets: int, measured: Measured) -> float:
    """Mean wait of an event for the fan-outs before it (M/D/1, Pollaczek–Khinchine).

    Raises:
        ValueError: more than the core can do.
    """
    service = sockets / measured.deliveries_per_second
    utilisation = events_per_second * service
    if utilisation >= 1.0:
        raise ValueError("more deliveries than one core can make")
    return utilisation * service / (2.0 * (1.0 - utilisation))


def plan(
    sockets: int, measured: Measured | None = None, habits: Habits | None = None, policy: Policy | None = None
) -> Plan:
    """What so many sockets need at the busiest minute."""
    measured, habits, policy = measured or Measured(), habits or Habits(), policy or Policy()
    bookings = sockets * habits.bookings_per_second
    entries = bookings * habits.entries_per_booking
    commands = bookings * habits.commands_per_booking
    positions = sockets * habits.positions_per_second
    deliveries = (entries + positions) * habits.hearers_per_entry
    through_redis = (entries + positions) * (1.0 + habits.nodes_per_entry)
    asks = {
        "the storm": sockets / measured.connects_per_second / policy.storm_seconds,
        "deliveries": deliveries / measured.spread_per_second / policy.utilisation,
        "commands": commands * measured.command_node_seconds / policy.utilisation,
    }
    bound_by = max(asks, key=lambda name: asks[name])
    nodes = math.ceil(asks[bound_by])
    return Plan(
        sockets=sockets,
        nodes=nodes,
        bound_by=bound_by,
        node_sockets=sockets / nodes,
        memory_gib=sockets * measured.socket_bytes / 2**30,
        entries_per_second=entries,
        deliveries_per_second=deliveries,
        redis_per_second=through_redis,
        partitions=math.ceil(entries / sequencer_ceiling(measured, policy) / policy.utilisation),
        database_cores=math.ceil(commands * measured.command_database_seconds / policy.utilisation),
        redis_shards=math.ceil(through_redis / measured.redis_per_second / policy.utilisation),
    )


# --- simulations ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Waits:
    """What a simulation saw, in seconds."""

    mean: float
    p99: float
    last: float


def _waits(values: Sequence[float], last: float) -> Waits:
    ordered = sorted(values)
    return Waits(sum(ordered) / len(ordered), percentile(ordered, 0.99), last)


def simulate_fanout(
    events_per_second: float, sockets: int, measured: Measured, *, events: int = 50_000, seed: int = 1
) -> Waits:
    """Events arrive at random on one core, which serves them one after the other; how long each waits for its turn."""
    chance = random.Random(seed)
    service = sockets / measured.deliveries_per_second
    now = free_at = 0.0
    waits = []
    for _ in range(events):
        now += chance.expovariate(events_per_second)
        begin = max(now, free_at)
        waits.append(begin - now)
        free_at = begin + service
    return _waits(waits, free_at)


def simulate_storm(
    sockets: int, nodes: int, measured: Measured, *, spread_seconds: float = 0.5, seed: int = 1
) -> Waits:
    """Everybody lost the connection at 0, comes back within ``spread_seconds`` to a node picked by chance (a load
    balancer without memory), and is served in order; until when each is back.
    """
    chance = random.Random(seed)
    free_at = [0.0] * nodes
    back = []
    arrivals = sorted(chance.uniform(0.0, spread_seconds) for _ in range(sockets))
    for moment in arrivals:
        node = chance.randrange(nodes)
        free_at[node] = max(moment, free_at[node]) + 1.0 / measured.connects_per_second
        back.append(free_at[node])
    return _waits(back, max(back))


@dataclass(frozen=True, slots=True)
class Sequenced:
    """What became of the entries: their waits, how many a second, and how many still stood in line at the end."""

    waits: Waits
    per_second: float
    backlog: int


def simulate_sequencer(
    entries_per_second: float, measured: Measured, policy: Policy, *, seconds: float = 60.0, seed: int = 1
) -> Sequenced:
    """Entries commit at random; a sequencer takes what is there, at most a batch, again and again."""
    chance = random.Random(seed)
    waiting: list[float] = []
    moment = chance.expovariate(entries_per_second)
    now, waits = 0.0, []
    while now < seconds:
        while moment <= now:
            heapq.heappush(waiting, moment)
            moment += chance.expovariate(entries_per_second)
        if not waiting:
            now = moment
            continue
        taken = [heapq.heappop(waiting) for _ in range(min(len(waiting), policy.sequencer.batch_rows))]
        took = measured.batch_seconds + len(taken) * measured.entry_seconds
        done = now + took
        waits += [done - committed for committed in taken]
        now = done + policy.sequencer.pause_seconds(took)
    return Sequenced(_waits(waits, now), len(waits) / now, len(waiting))


# --- tables -----------------------------------------------------------------------------------------------------------

SIZES = (100_000, 1_000_000, 10_000_000)


def plan_table() -> str:
    """What to add, as Markdown."""
    head = "| sockets | processes | bound by | sockets each | memory | entries/s | deliveries/s | Redis messages/s "
    rows = [f"{head}| partitions | database cores | Redis shards |", "|" + "---|" * 11]
    for sockets in SIZES:
        needs = plan(sockets)
        cells = (
            quantity(sockets),
            f"{needs.nodes:,}",
            needs.bound_by,
            quantity(needs.node_sockets),
            f"{needs.memory_gib:.1f} GiB",
            quantity(needs.entries_per_second),
            quantity(needs.deliveries_per_second),
            quantity(needs.redis_per_second),
            str(needs.partitions),
            str(needs.database_cores),
            str(needs.redis_shards),
        )
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def check_table() -> str:
    """Formula against simulation, as Markdown."""
    measured, policy = Measured(), Policy()
    rows = ["| question | formula | simulation |", "|---|---|---|"]
    for events in (20.0, 70.0, 126.0):
        wait, seen = fanout_wait_seconds(events, 1_000, measured), simulate_fanout(events, 1_000, measured)
        question = f"mean wait of {events:.0f} events/s to 1,000 sockets on one core"
        rows.append(f"| {question} | {wait * 1e3:.2f} ms | {seen.mean * 1e3:.2f} ms (p99 {seen.p99 * 1e3:.1f} ms) |")
    for sockets, nodes in ((10_000, 1), (100_000, 9)):
        seconds, storm = storm_seconds(sockets, nodes, measured), simulate_storm(sockets, nodes, measured)
        question = f"{sockets:,} sockets come back to {nodes} processes"
        rows.append(f"| {question} | {seconds:.1f} s | {storm.last:.1f} s |")
    for rate in (200.0, 2_000.0, 6_000.0):
        cycle = sequencer_cycle(rate, measured, policy)
        sequenced = simulate_sequencer(rate, measured, policy)
        # An entry waits half a cycle for its batch to begin, and then for the batch.
        wait = cycle / 2 + measured.batch_seconds + rate * cycle * measured.entry_seconds
        question = f"mean wait of an entry at {rate:,.0f} entries/s in one partition"
        rows.append(f"| {question} | {wait * 1e3:.1f} ms | {sequenced.waits.mean * 1e3:.1f} ms |")
    ceiling = sequencer_ceiling(measured, policy)
    flooded = simulate_sequencer(2 * ceiling, measured, policy, seconds=20.0)
    rows.append(f"| most entries/s of one partition | {ceiling:,.0f} | {flooded.per_second:,.0f} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(plan_table(), "", check_table(), sep="\n")
