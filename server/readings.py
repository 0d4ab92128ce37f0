"""Metrics that the parts of a process count for themselves, read at the moment of a scrape.

The parts below :mod:`server` know nothing of Prometheus: they keep plain numbers, and here is what each is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from channels.failover import Follower, State
from channels.log_cache import CachedLog
from channels.redis_client import RedisClient
from persistence.database import MAX_RETRIES, Database
from persistence.driver_errors import Trouble
from persistence.sequencer import Sequencer

_POOLS = 2
"""One for readers and one for writers."""


class Readings(Collector):
    """See the module. Without Redis its part is left out."""

    def __init__(
        self,
        *,
        database: Database,
        sequencer: Sequencer,
        follower: Follower | None,
        redis: RedisClient | None,
        cache: CachedLog | None,
    ) -> None:
        self._database = database
        self._sequencer = sequencer
        self._follower = follower
        self._redis = redis
        self._cache = cache

    def collect(self) -> Iterator[Metric]:
        """What :class:`prometheus_client.CollectorRegistry` asks for."""
        yield from self._of_database()
        yield _gauge("sequencer_leading", "Whether this process sequences events; one of all does.", self._leading())
        if self._follower is not None:
            yield from self._of_follower(self._follower)
        if self._redis is not None:
            yield from self._of_redis(self._redis)
        if self._cache is not None:
            counts = self._cache.counts
            yield _counters(
                "log_cache_channels",
                "Channels of resuming clients, by whether the cache in Redis had their entries.",
                "result",
                {"hit": counts.hits, "miss": counts.misses},
            )

    def _leading(self) -> int:
        return int(self._sequencer.leading)

    def _of_database(self) -> Iterator[Metric]:
        database = self._database
        most = _POOLS * database.options.pool_size if database.dialect == "mysql" else database.options.pool_size + 1
        yield _gauge("database_connections_in_use", "Connections that work holds now.", database.in_use)
        yield _gauge("database_connections_most", "Connections this process may have.", most)
        yield _gauge("database_waiting", "Pieces of work that wait for a connection now.", database.waiting)
        yield _counters(
            "database_retries",
            f"Transactions begun again, at most {MAX_RETRIES} times each, by what was in the way.",
            "trouble",
            {trouble.value: database.retries[trouble] for trouble in Trouble},
        )

    def _of_follower(self, follower: Follower) -> Iterator[Metric]:
        states = GaugeMetricFamily(
            "fixnado_event_path", "How events reach this process: 1 for the state it is in.", labels=["state"]
        )
        for state in State:
            states.add_metric([state.value], float(state is follower.state))
        yield states
        yield _gauge("nodes_heard", "Processes whose heartbeats arrive, this one among them.", len(follower.nodes))
        counts = follower.counts
        yield _counter("followed_entries", "Log entries read because the broker may have lost them.", counts.followed)
        yield _counter("log_audits", "Comparisons of every channel with the log.", counts.audits)
        yield _counter("tailing_periods", "Times that events began to come from the log.", counts.switches)
        yield _counter("broker_rebuilds", "Connections to Redis given up as deaf.", counts.rebuilds)

    def _of_redis(self, redis: RedisClient) -> Iterator[Metric]:
        counts = redis.counts
        yield _gauge("redis_up", "Whether every Redis server needed is connected.", int(redis.connected))
        yield _counters(
            "redis_commands",
            "Commands for Redis by what became of them; dropped ones were never sent.",
            "result",
            {"answered": counts.answered, "dropped": counts.dropped, "failed": counts.failed},
        )
        yield _counters(
            "redis_messages",
            "Messages from Redis, by whether this version could read them.",
            "result",
            {"heard": counts.heard - counts.unreadable, "unreadable": counts.unreadable},
        )
        yield _counter("redis_reconnects", "Connections to Redis that had to be opened again.", counts.reconnects)


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(f"fixnado_{name}", meaning, value=value)


def _counter(name: str, meaning: str, value: float) -> Metric:
    return CounterMetricFamily(f"fixnado_{name}", meaning, value=value)


def _counters(name: str, meaning: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(f"fixnado_{name}", meaning, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family
