"""What one node allows: the numbers of the live side on one page, and the token buckets that hold users to them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one node. Every queue, buffer and wait of the live side ends at one of these.

    Attributes:
        connect_seconds: from the upgrade to ``session.connect``, time in line aside, else close 4502.
        connects_at_once: clients that are being let in at the same time; the rest stand in line.
        line_seconds: in that line before a client is told to come back.
        heartbeat_seconds: between pings, ± ``heartbeat_jitter`` of it so that sockets do not beat together.
        heartbeat_grace_seconds: silence beyond a heartbeat before close 4005.
        token_grace_seconds: from a token's end to close 4002.
        expiring_notice_seconds: how long before its end a token is announced as ending; half its life when that is
            less.
        call_seconds: for one question to a port (database and the like).
        command_seconds: for one command.
        requests_in_flight: commands of one socket waiting or running; beyond it -32029.
        user_requests_per_second, user_burst_requests: token bucket of a user, shared by all sockets of the node.
        user_debt_requests: frames refused by that bucket before close 4006.
        frames_before_connect: what an unknown client may send before close 4006.
        bad_frames: unreadable frames before close 4501.
        sockets_per_user: beyond it close 4504.
        channels_per_socket: subscriptions of one socket.
        max_buffered_bytes: waiting in a socket's buffer before close 4003.
        replay_entries: missed entries of one channel before a snapshot takes their place.
        replay_bytes: the same for all channels of one reply; below ``max_buffered_bytes``, else a resume could be too
            slow by itself.
        catching_up_entries: live entries that wait for one subscription to catch up.
        waiting_entries: entries of one channel that wait for a gap before them to heal.
        typing_seconds: from the last ``typing.started`` to the ``typing.stopped`` that follows by itself.
        typers: people typing at once on this node; beyond it the oldest stops.
        announcements: ephemeral entries waiting for the broker; beyond it the oldest is dropped.
        buckets: users whose bucket is remembered.
    """

    connect_seconds: float = 10.0
    connects_at_once: int = 128
    line_seconds: float = 15.0
    heartbeat_seconds: float = 25.0
    heartbeat_jitter: float = 0.1
    heartbeat_grace_seconds: float = 10.0
    token_grace_seconds: float = 25.0
    expiring_notice_seconds: float = 60.0
    call_seconds: float = 5.0
    command_seconds: float = 15.0
    requests_in_flight: int = 32
    user_requests_per_second: float = 50.0
    user_burst_requests: int = 100
    user_debt_requests: int = 100
    frames_before_connect: int = 20
    bad_frames: int = 10
    sockets_per_user: int = 10
    channels_per_socket: int = 100
    max_buffered_bytes: int = 1024 * 1024
    replay_entries: int = 1000
    replay_bytes: int = 512 * 1024
    catching_up_entries: int = 1000
    waiting_entries: int = 1000
    typing_seconds: float = 6.0
    typers: int = 10_000
    announcements: int = 10_000
    buckets: int = 50_000


class Verdict(Enum):
    """What a bucket says about one more request."""

    FINE = "fine"
    WAIT = "wait"
    FLOODING = "flooding"


class TokenBuckets:
    """Token buckets by key in a bounded LRU.

    A refused request costs a token too, so a bucket runs into debt while its owner keeps pushing; past ``debt``
    tokens the verdict is ``FLOODING``. Sending just over the rate is answered, pushing on is not, and neither depends
    on which socket the requests came through: a new connection meets the same bucket.

    Forgetting the least recently used key refills it; with ``size`` keys that takes ``size`` other users in the
    meantime.
    """

    __slots__ = ("_buckets", "_burst", "_debt", "_rate", "_size")

    def __init__(self, rate_per_second: float, burst: int, debt: int, size: int) -> None:
        self._rate = rate_per_second
        self._burst = float(burst)
        self._debt = float(debt)
        self._size = size
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, now: float) -> Verdict:
        """Count one request at ``now`` (seconds of a monotonic clock)."""
        tokens = min(self._burst, self._level(key, now)) - 1.0
        verdict = Verdict.FINE
        if tokens < -self._debt:
            tokens = -self._debt
            verdict = Verdict.FLOODING
        elif tokens < 0.0:
            verdict = Verdict.WAIT
        self._buckets[key] = (tokens, now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._size:
            self._buckets.popitem(last=False)
        return verdict

    def wait_seconds(self, key: str, now: float) -> float:
        """How long until one request would be fine."""
        return max(0.0, (1.0 - self._level(key, now)) / self._rate)

    def _level(self, key: str, now: float) -> float:
        bucket = self._buckets.get(key)
        if bucket is None:
            return self._burst
        tokens, since = bucket
        return tokens + max(0.0, now - since) * self._rate

    def __len__(self) -> int:
        return len(self._buckets)
