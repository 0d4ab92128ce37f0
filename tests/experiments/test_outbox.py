"""An event that cannot be sequenced is put aside, with an alarm, and holds up nothing."""

from __future__ import annotations

from collections.abc import Callable

from tests.experiments.cluster import Cluster
from tests.experiments.load import Play


async def test_experiment_15_a_poison_event_is_parked_and_the_rest_flows(
    town: Cluster, play: Play, report: Callable[..., None]
) -> None:
    async def trouble(play: Play) -> None:
        await play.more(10)
        await town.mariadb.execute(
            f"INSERT INTO {town.database}.outbox"
            " (`partition`, event_id, type, source, time, event_class, audience, data, correlation_id)"
            " VALUES (0, 'poison', 'booking.created', 'lab', UTC_TIMESTAMP(6), 'durable', '{\"users\":', '{}', 'x')"
        )
        await play.more(20)
        await town.measured("fixnado_outbox_parked_rows", 1)

    verdict = await play.run(trouble)
    ((parked, why),) = await town.rows("SELECT `row`, error FROM outbox_parked")
    report(verdict, f"parked: {why[:60]}")
    verdict.hold()
    assert "poison" in parked
    assert any("parked event poison" in node.output() for node in town.nodes)
    await town.mariadb.execute(f"DELETE FROM {town.database}.outbox_parked")
