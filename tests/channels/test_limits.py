from __future__ import annotations

from channels.limits import TokenBuckets, Verdict


def test_a_burst_is_fine_and_then_the_rate() -> None:
    buckets = TokenBuckets(10, 5, 100, 10)
    assert [buckets.take("ada", 0.0) for _ in range(6)] == [Verdict.FINE] * 5 + [Verdict.WAIT]
    assert buckets.take("ada", 0.5) is Verdict.FINE


def test_waiting_as_long_as_told_is_enough() -> None:
    buckets = TokenBuckets(10, 1, 100, 10)
    for _ in range(4):
        buckets.take("ada", 0.0)
    wait = buckets.wait_seconds("ada", 0.0)
    assert wait > 0
    assert buckets.take("ada", wait) is Verdict.FINE


def test_pushing_on_ends_in_flooding_and_debt_is_bounded() -> None:
    buckets = TokenBuckets(10, 5, 20, 10)
    verdicts = [buckets.take("ada", 0.0) for _ in range(200)]
    assert verdicts.index(Verdict.FLOODING) == 25
    assert set(verdicts[25:]) == {Verdict.FLOODING}
    assert buckets.wait_seconds("ada", 0.0) <= 2.1 + 1e-9


def test_users_do_not_share_a_bucket() -> None:
    buckets = TokenBuckets(1, 1, 1, 10)
    buckets.take("ada", 0.0)
    assert buckets.take("bob", 0.0) is Verdict.FINE


def test_a_rest_never_saves_up_more_than_a_burst() -> None:
    buckets = TokenBuckets(10, 3, 10, 10)
    buckets.take("ada", 0.0)
    assert [buckets.take("ada", 1e6) for _ in range(4)][-1] is Verdict.WAIT


def test_the_number_of_remembered_users_is_bounded() -> None:
    buckets = TokenBuckets(1, 1, 1, 3)
    for n in range(100):
        buckets.take(f"u{n}", 0.0)
    assert len(buckets) == 3
