from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import uvloop

from tests.server.command_line import CommandLine, within_this_process


@pytest.fixture
def fixnado(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return within_this_process(tmp_path, monkeypatch, capsys)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Sockets are tested on production's loop, hostile clients also on asyncio's: its transports buffer differently."""
    if item.path.name in ("test_websocket_hostile.py", "test_direct_writes.py"):
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    if item.path.name in ("test_websocket.py", "test_events.py"):
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}
