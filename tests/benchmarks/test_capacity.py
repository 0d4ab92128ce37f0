from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import capacity
from benchmarks.capacity import Habits, Measured, Policy, plan

DOCUMENT = Path(__file__).parents[2] / "docs" / "capacity.md"


@pytest.mark.parametrize("events_per_second", [20.0, 70.0, 112.0])
def test_the_wait_in_a_fan_out_is_as_computed(events_per_second: float) -> None:
    computed = capacity.fanout_wait_seconds(events_per_second, 1_000, Measured())
    assert capacity.simulate_fanout(events_per_second, 1_000, Measured()).mean == pytest.approx(computed, rel=0.1)


@pytest.mark.parametrize(("sockets", "nodes"), [(10_000, 1), (100_000, 9)])
def test_a_storm_takes_as_long_as_computed(sockets: int, nodes: int) -> None:
    computed = capacity.storm_seconds(sockets, nodes, Measured())
    assert capacity.simulate_storm(sockets, nodes, Measured()).last == pytest.approx(computed, rel=0.05)


@pytest.mark.parametrize("entries_per_second", [200.0, 2_000.0, 6_000.0])
def test_a_sequencer_keeps_up_below_its_ceiling(entries_per_second: float) -> None:
    sequenced = capacity.simulate_sequencer(entries_per_second, Measured(), Policy(), seconds=20.0)
    assert sequenced.per_second == pytest.approx(entries_per_second, rel=0.05)
    cycle = capacity.sequencer_cycle(entries_per_second, Measured(), Policy())
    assert sequenced.backlog <= 4 * entries_per_second * cycle + 10


def test_a_sequencer_beyond_its_ceiling_falls_behind() -> None:
    ceiling = capacity.sequencer_ceiling(Measured(), Policy())
    sequenced = capacity.simulate_sequencer(1.5 * ceiling, Measured(), Policy(), seconds=10.0)
    assert sequenced.per_second == pytest.approx(ceiling, rel=0.02)
    assert sequenced.backlog > ceiling
    with pytest.raises(ValueError, match="ceiling"):
        capacity.sequencer_cycle(1.5 * ceiling, Measured(), Policy())


def test_ten_times_the_sockets_need_ten_times_the_nodes() -> None:
    assert plan(10_000_000).nodes == pytest.approx(10 * plan(1_000_000).nodes, rel=0.02)


def test_what_binds_depends_on_habits() -> None:
    assert plan(1_000_000).bound_by == "the storm"
    busy = Habits(positions_per_second=10.0)
    assert plan(1_000_000, habits=busy).bound_by == "deliveries"
    patient = Policy(storm_seconds=600.0)
    assert plan(1_000_000, policy=patient).bound_by == "commands"


def test_the_document_shows_what_the_model_says() -> None:
    text = DOCUMENT.read_text()
    assert capacity.plan_table() in text
    assert capacity.check_table() in text
