"""Both ways of writing to many sockets do the same."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.tags import sys_tags

from channels.ports import WriteEach
from hatch_build import SOURCE, compile_into, platform_tag
from server import fanout
from tests.processes import ROOT
from tests.server.live_server import compiled

MANY = 32
DATA = b"to everybody"


@pytest.fixture(params=["C", "Python"])
def write_each(request: pytest.FixtureRequest) -> WriteEach:
    return compiled() if request.param == "C" else fanout.in_python


class Crowd:
    """Connections: what was written at one end of each is read at the other."""

    def __init__(self, count: int) -> None:
        self.pairs = [socket.socketpair() for _ in range(count)]
        for ours, theirs in self.pairs:
            ours.setblocking(False)
            theirs.setblocking(False)

    @property
    def fds(self) -> list[int]:
        return [ours.fileno() for ours, _ in self.pairs]

    def received(self, place: int) -> bytes:
        """All that is there."""
        theirs, data = self.pairs[place][1], b""
        while True:
            try:
                more = theirs.recv(1 << 20)
            except BlockingIOError:
                return data
            if not more:
                return data
            data += more

    def fill(self, place: int) -> int:
        """Write until no more goes in; returns how much that was."""
        ours, written = self.pairs[place][0], 0
        while True:
            try:
                written += ours.send(b"." * 65_536)
            except BlockingIOError:
                break
        # In small pieces to the last byte: what is full for a large write may still take a small one.
        while True:
            try:
                written += ours.send(b".")
            except BlockingIOError:
                return written

    def close(self) -> None:
        for pair in self.pairs:
            for end in pair:
                end.close()


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    crowd = Crowd(MANY)
    yield crowd
    crowd.close()


@pytest.mark.parametrize("count", [0, 1, MANY])
def test_everybody_gets_the_bytes(write_each: WriteEach, crowd: Crowd, count: int) -> None:
    assert dict(write_each(crowd.fds[:count], DATA)) == {}
    assert [crowd.received(place) for place in range(MANY)] == [DATA] * count + [b""] * (MANY - count)


def test_a_full_one_takes_nothing_and_delays_nobody(write_each: WriteEach, crowd: Crowd) -> None:
    crowd.fill(5)
    assert dict(write_each(crowd.fds, DATA)) == {5: 0}
    assert [crowd.received(place) for place in range(MANY) if place != 5] == [DATA] * (MANY - 1)


def test_one_with_little_room_tells_how_much_it_took(write_each: WriteEach, crowd: Crowd) -> None:
    large = os.urandom(8 << 20)
    short = dict(write_each([*crowd.fds[:20], -1], large))
    assert sorted(short) == list(range(21)), "nobody has room for that much"
    assert short[20] == 0
    for place in range(20):
        assert 0 < short[place] < len(large)
        assert crowd.received(place) == large[: short[place]]


def test_one_whose_peer_is_gone_takes_nothing_and_raises_nothing(write_each: WriteEach, crowd: Crowd) -> None:
    crowd.pairs[3][1].close()
    assert dict(write_each(crowd.fds, DATA)) == {3: 0}


def test_a_number_that_is_nobodys_takes_nothing(write_each: WriteEach, crowd: Crowd) -> None:
    fds = crowd.fds
    crowd.pairs[4][0].close()
    fds[7] = -1
    assert dict(write_each(fds, DATA)) == {4: 0, 7: 0}
    assert crowd.received(7) == b""


def test_where_there_is_a_compiler_it_is_used() -> None:
    """Otherwise the C would go untested in silence. After a compiler has come: `make -B .venv/.dev-stamp`."""
    compiled()
    assert fanout.load() is not fanout.in_python


def test_without_the_library_python_does_it_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "server.fanout"):
        assert fanout.load(tmp_path / "nothing") is fanout.in_python
    assert "slower" in caplog.text
    (tmp_path / "other").write_bytes(b"for another machine")
    assert fanout.load(tmp_path / "other") is fanout.in_python


def test_a_build_without_a_compiler_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match="no C compiler"):
        compile_into(tmp_path / "fanout", ROOT / SOURCE, tmp_path)


def test_a_failed_compilation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    with pytest.raises(subprocess.CalledProcessError):
        compile_into(tmp_path / "fanout", ROOT / SOURCE, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_says_for_which_machine_it_is() -> None:
    assert platform_tag() in {tag.platform for tag in sys_tags()}
    assert "many" not in platform_tag()
