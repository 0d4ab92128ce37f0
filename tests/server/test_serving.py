from __future__ import annotations

import asyncio
import gc
import sys

import pytest
import uvloop

from server.serving import GARBAGE_THRESHOLDS, run_loop, settle_garbage


def test_uvloop_runs_the_server_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_loop() is uvloop.run
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert run_loop() is asyncio.run


def test_the_collector_leaves_alone_what_start_has_made() -> None:
    thresholds = gc.get_threshold()
    try:
        settle_garbage()
        assert gc.get_threshold() == GARBAGE_THRESHOLDS
        assert gc.get_freeze_count() > 1_000
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
