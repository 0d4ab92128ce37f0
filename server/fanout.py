"""Writing the same bytes to many sockets: the part of a fan-out that is done once per socket.

A loop of fifteen lines in C (``fanout.c``), compiled when the package is built. It calls nothing of Python, keeps
nothing, and lets other threads run meanwhile. Without it, as on a machine without a compiler, the same is done in
Python.

Both implement :data:`channels.ports.WriteEach`. Who owns the descriptors, and when they may be written to, is told in
:mod:`channels.hub`.
"""

from __future__ import annotations

import ctypes
import logging
import os
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

from channels.ports import WriteEach

logger = logging.getLogger(__name__)

LIBRARY = Path(__file__).with_name("fanout.native")
"""Made by ``hatch_build.py``."""

ALL_TAKEN: Mapping[int, int] = {}


def load(library: Path = LIBRARY) -> WriteEach:
    """The quickest way there is on this machine."""
    try:
        return in_c(library)
    except OSError as error:
        logger.info("fan-outs are written by Python, which is slower: %s", error)
        return in_python


def in_python(fds: Sequence[int], data: bytes) -> Mapping[int, int]:
    """See :data:`channels.ports.WriteEach`."""
    size, write = len(data), os.write
    short: dict[int, int] = {}
    for place, fd in enumerate(fds):
        try:
            taken = write(fd, data) if fd >= 0 else 0
        except OSError:
            taken = 0
        if taken != size:
            short[place] = taken
    return short


def in_c(library: Path) -> WriteEach:
    """The compiled loop.

    Raises:
        OSError: it is not there, or made for another kind of machine.
    """
    function = ctypes.CDLL(str(library)).write_each
    pointer = ctypes.c_void_p
    function.argtypes = [pointer, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, pointer]
    function.restype = ctypes.c_int

    def write_each(fds: Sequence[int], data: bytes) -> Mapping[int, int]:
        count = len(fds)
        descriptors, taken = array("i", fds), array("q", bytes(8 * count))
        if not function(descriptors.buffer_info()[0], count, data, len(data), taken.buffer_info()[0]):
            return ALL_TAKEN
        size = len(data)
        return {place: some for place, some in enumerate(taken) if some != size}

    return write_each
