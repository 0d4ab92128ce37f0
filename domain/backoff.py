"""Pauses that grow from failure to failure."""

from __future__ import annotations

_MOST_DOUBLINGS = 60
"""Past every bound; a power of two beyond the thousandth is no float any more."""


def grown(first_seconds: float, failures: int, longest_seconds: float) -> float:
    """A pause that doubles with each failure, up to the longest, in seconds; ``failures`` may be any number from 0."""
    return min(first_seconds * 2.0 ** min(failures, _MOST_DOUBLINGS), longest_seconds)
