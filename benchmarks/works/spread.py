"""P3: many channels with one socket each; every event takes its way through Redis."""

from __future__ import annotations

import socket
import sys
import threading
import time
from dataclasses import replace
from functools import partial

from benchmarks.crowd import FIXNADO, Crowd, fixnado
from benchmarks.hub_server import Heads, data_of
from benchmarks.machine import Share, cpu_seconds
from benchmarks.native import CompilerMissing
from benchmarks.process import ROOT, Child, environment
from benchmarks.results import Figure, Outcome, median, quantity
from benchmarks.scene import MESSAGE_BYTES, Scene
from benchmarks.services import BenchRedis
from benchmarks.wire import RawSocket
from channels.redis_wire import pack_entry, pack_message
from tests.services import ServiceMissing

SOCKETS = 1_000
PER_SECOND = 40_000
TIMEOUT_SECONDS = 60.0
NAP_SECONDS = 0.001
"""Between looks of the receiver; without it every send of the server pays for waking it."""
TITLE = f"{SOCKETS:,} sockets, each on its own channel, events spread evenly through Redis"
TARGET = "≥ 40 k deliveries/s on one core"


def channel_of(number: int) -> str:
    """The channel of the ``number``-th socket."""
    return f"availability:plumbing:zone{number}"


class Publisher:
    """Commands for Redis, made beforehand and then sent as fast as it takes them, by a thread."""

    def __init__(self, port: int, prefix: str) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS)
        self._prefix = prefix
        self._heads = Heads()
        self._data = data_of(channel_of(100), MESSAGE_BYTES)

    def prepare(self, each: int) -> bytes:
        """The next ``each`` events of every channel, one channel after the other in turn."""
        commands = []
        for _ in range(each):
            for number in range(SOCKETS):
                channel = channel_of(number)
                name = f"{self._prefix}{channel}".encode()
                payload = pack_message([pack_entry(self._heads.entry(channel, self._data))])
                commands.append(
                    b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(name), name, len(payload), payload)
                )
        return b"".join(commands)

    def send(self, commands: bytes, replies: int) -> threading.Thread:
        """Begin to send."""
        thread = threading.Thread(target=self._send, args=(commands, replies))
        thread.start()
        return thread

    def _send(self, commands: bytes, replies: int) -> None:
        self._sock.sendall(commands)
        answers = 0
        while answers < replies:
            answers += self._sock.recv(1 << 16).count(b"\n")

    def close(self) -> None:
        self._sock.close()


def _greet(sock: RawSocket, number: int) -> None:
    fixnado(sock, number, channel_of(number))


def run(scene: Scene) -> Outcome:
    """P3."""
    try:
        return Outcome([_measure(scene)])
    except (ServiceMissing, CompilerMissing) as error:
        return Outcome([Figure.missing("P3", TITLE, TARGET, f"not here: {error}")])


def _measure(scene: Scene) -> Figure:
    cores = scene.cores
    each, rounds = scene.pick(40, 15), scene.pick(7, 3)
    rates, shares, used, redis_used = [], [], [], []
    command = [sys.executable, "-m", "benchmarks.hub_server"]
    dialect = replace(FIXNADO, greet=_greet)
    with (
        BenchRedis([cores.generator]) as redis,
        Child([*command, redis.url], [cores.server], env=environment(), cwd=ROOT) as child,
        Crowd(child.port, SOCKETS, dialect, partial(scene.tell, "connecting")) as crowd,
    ):
        publisher = Publisher(redis.port, child.ask("prefix")["prefix"])
        try:
            for number in range(rounds + 1):
                commands = publisher.prepare(each)
                scene.tell(f"round {number} of {rounds}" if number else "warming up", number / (rounds + 1))
                share, cpu_before, redis_before = Share(), cpu_seconds(child.pid), cpu_seconds(redis.pid)
                started = time.monotonic()
                sending = publisher.send(commands, each * SOCKETS)
                ended = crowd.sink.until(each, TIMEOUT_SECONDS, nap_seconds=NAP_SECONDS)
                sending.join()
                if number:
                    rates.append(each * SOCKETS / (ended - started))
                    shares.append(share.read())
                    used.append((cpu_seconds(child.pid) - cpu_before) / (ended - started))
                    redis_used.append((cpu_seconds(redis.pid) - redis_before) / (ended - started))
        finally:
            publisher.close()
        crowd.sink.check_exact()
    rate = median(rates)
    figure = Figure("P3", TITLE, f"{quantity(rate)}/s", TARGET, rate >= PER_SECOND, generator_share=median(shares))
    busy = median(used)
    figure.notes.append(f"the node used {busy:.0%} of its core: {quantity(rate / busy)} per CPU second")
    figure.notes.append(f"Redis used {median(redis_used):.0%} of the other core, which it shares with the generator")
    return figure
