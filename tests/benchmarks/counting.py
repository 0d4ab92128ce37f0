"""Work, counted: Python calls and bytecode instructions instead of seconds, so that a busy machine changes nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOMS = tuple(f"{Path(__file__).parents[2] / room}/" for room in ("channels", "domain", "persistence", "server"))


class Count:
    """What happened between entering and leaving.

    Attributes:
        calls: of Python functions, resumed coroutines among them.
        c_calls: of functions written in C.
        own_calls: those calls that entered code of the product.
        instructions: bytecode instructions in the functions that were watched.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.c_calls = 0
        self.own_calls = 0
        self.instructions = 0


@contextmanager
def calls() -> Iterator[Count]:
    """Count the calls of this thread."""
    count = Count()

    def profile(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call":
            count.calls += 1
            count.own_calls += frame.f_code.co_filename.startswith(ROOMS)
        elif event == "c_call":
            count.c_calls += 1

    sys.setprofile(profile)
    try:
        yield count
    finally:
        sys.setprofile(None)
        count.c_calls -= 1  # sys.setprofile itself


@contextmanager
def instructions(*watched: CodeType) -> Iterator[Count]:
    """Count the bytecode instructions that run in these functions; what they call is not counted along."""
    count = Count()

    def step(_frame: FrameType, event: str, _argument: Any) -> Any:
        count.instructions += event == "opcode"
        return step

    def trace(frame: FrameType, _event: str, _argument: Any) -> Any:
        if frame.f_code not in watched:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return step

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(before)
