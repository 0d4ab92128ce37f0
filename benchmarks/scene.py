"""What every work is given: where to run, how long, and whom to tell how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.machine import Cores

T = TypeVar("T")

MESSAGE_BYTES = 256
"""Of every message in a fan-out: an event of this product with little data."""

Tell = Callable[[str, float], None]
"""Told what a work is doing now, and how far it has come, 0–1."""


@dataclass(frozen=True, slots=True)
class Scene:
    """See the module.

    Attributes:
        quick: a run to see whether everything works; its figures are no verdicts.
    """

    cores: Cores
    quick: bool
    tell: Tell = lambda _text, _share: None

    def pick(self, full: T, quick: T) -> T:
        """The one for this kind of run."""
        return quick if self.quick else full
