from __future__ import annotations

from domain.backoff import grown


def test_pause_doubles_up_to_the_longest_however_often_it_failed() -> None:
    assert [grown(0.1, failures, 2.0) for failures in (0, 1, 2, 4, 5)] == [0.1, 0.2, 0.4, 1.6, 2.0]
    assert grown(0.1, 100_000, 2.0) == 2.0
