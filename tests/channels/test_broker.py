from __future__ import annotations

from collections.abc import Sequence

import pytest

from channels.broker import InProcessBroker
from domain.log import Entry
from tests.channels.broker_contract import BrokerContract, Heard, Pair, entry


class TestInProcessBroker(BrokerContract):
    @pytest.fixture
    def pair(self) -> Pair:
        broker, heard = InProcessBroker(), Heard()
        broker.attach(heard)
        return Pair(broker, broker, heard)


async def test_a_failing_receiver_does_not_stop_the_publisher(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Heard):
        def receive(self, entries: Sequence[Entry]) -> None:
            raise RuntimeError

    broker = InProcessBroker()
    broker.attach(Failing())
    await broker.subscribe(["booking:1"])
    await broker.publish([entry("booking:1")])
    assert "the receiver failed" in caplog.text
