"""The harness on real sockets, in small: a wrong count or a dead server must never look like a figure."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from benchmarks import __main__ as command_line
from benchmarks import machine
from benchmarks.crowd import FIXNADO, Crowd
from benchmarks.hub_server import CHANNEL, Heads, data_of
from benchmarks.machine import Cores
from benchmarks.native import Miscounted, TooSlow
from benchmarks.process import ROOT, Child, ChildFailed, environment
from benchmarks.results import Outcome
from benchmarks.rivals import LIMIT, OURS, NotHere
from benchmarks.scene import MESSAGE_BYTES, Scene
from benchmarks.wire import TEXT, client_frame, split_frames
from benchmarks.works import fanout
from benchmarks.works.fanout import Race, Round
from hatch_build import find_compiler

with_compiler = pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler")
CORES = machine.cores()


def test_results_name_the_versions_of_programs_too() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", machine.program_version("redis-server"))


def test_a_program_that_is_not_there_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PROGRAMS", {"no-such-program": "--version"})
    assert machine.program_version("no-such-program") == "-"


@pytest.fixture(scope="module")
def hub_server() -> Iterator[Child]:
    """For all tests; the last of them kills it."""
    command = [sys.executable, "-m", "benchmarks.hub_server"]
    with Child(command, [CORES.server], env=environment(), cwd=ROOT) as child:
        yield child


@with_compiler
def test_every_frame_of_a_fan_out_is_counted(hub_server: Child) -> None:
    with Crowd(hub_server.port, 5, FIXNADO) as crowd:
        hub_server.tell("publish", turns=20, burst=3, size=MESSAGE_BYTES)
        ended = crowd.sink.until(60, 10.0)
        assert ended > hub_server.answer()["started"]
        crowd.sink.check_exact()
        assert hub_server.ask("stats")["sockets"] == 5
        (size,) = {crowd.sink.payload_bytes(index) for index in range(5)}
        # Offsets of one and two digits are shorter than the three for which the size is meant.
        assert 60 * (MESSAGE_BYTES - 2) < size <= 60 * MESSAGE_BYTES


@with_compiler
def test_a_server_that_sends_too_little_has_no_figure(hub_server: Child) -> None:
    with Crowd(hub_server.port, 2, FIXNADO) as crowd:
        hub_server.tell("publish", turns=5, burst=1, size=MESSAGE_BYTES)
        with pytest.raises(TooSlow):
            crowd.sink.until(6, 0.5)
        hub_server.answer()


def test_a_command_that_fails_says_why(hub_server: Child) -> None:
    with pytest.raises(ChildFailed, match="an event on"):
        hub_server.ask("publish", turns=1, burst=1, size=10)


@with_compiler
def test_a_server_that_dies_has_no_figure(hub_server: Child) -> None:
    with Crowd(hub_server.port, 2, FIXNADO) as crowd:
        hub_server.close()
        with pytest.raises(Miscounted):
            crowd.sink.until(1, 5.0)


def test_a_process_that_ends_says_what_it_wrote() -> None:
    failing = Child([sys.executable, "-c", "raise SystemExit('no such luck')"], [CORES.server])
    with pytest.raises(ChildFailed, match="no such luck"), failing:
        pytest.fail("it is not ready")


@with_compiler
def test_a_race_compares_and_says_who_is_missing() -> None:
    def nowhere(_cores: Cores) -> object:
        raise NotHere("node and npm are not installed")

    absent = replace(OURS, name="Socket.IO (node)", run=nowhere)  # type: ignore[arg-type]
    raced = fanout.race(Scene(CORES, quick=True), [OURS, LIMIT, absent], 20, [1, 10], 1)
    assert raced.absent == {"Socket.IO (node)": "not here: node and npm are not installed"}
    assert set(raced.rounds) == {OURS.name, LIMIT.name}
    for name in raced.rounds:
        assert raced.rate(name, 1) > 1_000
        assert raced.rate(name, 10) > raced.rate(name, 1)
    figure = fanout.judge("P1", raced, 1, 20)
    assert figure.value is not None
    assert any("not installed" in note for note in figure.notes)


def test_rounds_of_all_starts_count_but_of_those_who_failed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started = iter([(10.0, True), (30.0, False), (20.0, True)])

    def race(scene: Scene, *_arguments: object) -> Race:
        scene.tell("a round", 0.5)
        rate, whole = next(started)
        rounds = {1: [Round(rate, 0.5, 1.0)]}
        return Race(
            {OURS.name: rounds} | ({LIMIT.name: rounds} if whole else {}),
            {} if whole else {LIMIT.name: "failed: it crashed"},
        )

    told: list[float] = []
    monkeypatch.setattr(fanout, "race", race)
    scene = Scene(CORES, quick=True, tell=lambda _text, share: told.append(share))
    raced = fanout.races(scene, [OURS, LIMIT], 20, [1], 1, 3)
    assert [each.rate for each in raced.rounds[OURS.name][1]] == [10.0, 30.0, 20.0]
    assert raced.rate(OURS.name, 1) == 20.0
    assert raced.ratios(1) == {}
    assert raced.absent == {LIMIT.name: "failed: it crashed"}
    assert told == pytest.approx([1 / 6, 3 / 6, 5 / 6])


def test_the_size_of_an_event_is_exact_at_three_digits() -> None:
    heads = Heads()
    heads.offsets[CHANNEL] = 499
    assert len(heads.entry(CHANNEL, data_of(CHANNEL, MESSAGE_BYTES)).frame) == MESSAGE_BYTES


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_client_frames_are_what_the_rfc_says(size: int) -> None:
    reader = StreamReader()
    reader.feed_data(client_frame(b"x" * size))
    parsing = Frame.parse(reader.read_exact, mask=True)
    with pytest.raises(StopIteration) as done:
        next(parsing)
    frame = done.value.value
    assert (frame.opcode, frame.fin, frame.data) == (Opcode.TEXT, True, b"x" * size)


def test_a_frame_that_is_not_whole_is_left() -> None:
    whole = b"\x81\x02hi"
    assert split_frames(whole + whole[:3]) == ([(TEXT, b"hi")], whole[:3])


def test_works_are_named_in_any_case_and_run_in_order() -> None:
    assert [name for name, _ in command_line.plan(["p9", "P3"])] == ["P3", "P9"]
    assert [name for name, _ in command_line.plan([])][:2] == ["P1, P2", "P3"]
    with pytest.raises(KeyError, match="P10"):
        command_line.plan(["p10"])


def test_a_work_that_fails_is_a_line_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_scene: Scene) -> Outcome:
        raise ExceptionGroup("several", [RuntimeError("a message was heard\n0 times")])

    monkeypatch.setattr(machine, "pin", lambda *_: None)
    (figure,) = command_line.perform("P6", fails, Scene(CORES, quick=True)).figures
    assert figure.value is None
    assert figure.notes == ["RuntimeError: a message was heard 0 times"]
