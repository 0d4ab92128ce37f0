from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from domain.errors import OfferTaken
from domain.types import Origin
from server.telemetry import (
    Metrics,
    configure_logging,
    correlated,
    logger,
    redacted,
    sane_correlation_id,
    sane_traceparent,
    watch_loop_lag,
)
from server.tokens import KeyRing, SigningKey, Tokens

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Output(io.StringIO):
    """What was logged."""

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def capture(log_format: Literal["auto", "json", "console"] = "json", log_level: str = "debug") -> Output:
    output = Output()
    configure_logging(log_format, log_level, output)
    return output


def test_a_line_carries_the_ids_of_its_request() -> None:
    output = capture()
    with correlated(Origin("corr-0001", TRACEPARENT)):
        logger("server.app").info("ready", port=8000)
        logging.getLogger("uvicorn.error").info("started %d", 7)
    logger("server.app").info("after")
    ours, foreign, after = output.records()
    assert ours["event"] == "ready"
    assert ours["port"] == 8000
    assert ours["level"] == "info"
    assert ours["logger"] == "server.app"
    assert {record["correlation_id"] for record in (ours, foreign)} == {"corr-0001"}
    assert {record["traceparent"] for record in (ours, foreign)} == {TRACEPARENT}
    assert foreign["event"] == "started 7"
    assert "correlation_id" not in after


async def test_concurrent_requests_keep_their_ids_apart() -> None:
    output = capture()

    async def request(correlation_id: str) -> None:
        with correlated(Origin(correlation_id)):
            await asyncio.sleep(0)
            logger("x").info(correlation_id)

    await asyncio.gather(*(request(f"request-{number}") for number in range(5)))
    assert all(record["event"] == record["correlation_id"] for record in output.records())


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("separator", ["\n", "\r", "\r\n", "\x85", "\u2028", "\x1b[2K", "\x00"])
def test_text_from_outside_cannot_forge_a_line(log_format: Literal["json", "console"], separator: str) -> None:
    output = capture(log_format)
    forged = f"Ann{separator}2026-11-24T02:00:00Z [error    ] admin logged in"
    logger("x").info(forged, name=forged, nested={forged: [forged]})
    logging.getLogger("library").warning("name is %s", forged)
    assert len(output.getvalue().splitlines()) == 2
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028]", output.getvalue())


def test_a_traceback_on_a_terminal_is_barred_line_by_line() -> None:
    output = capture("console")
    try:
        raise ValueError("bad\n2026-11-24T02:00:00Z [info] forged")
    except ValueError:
        logger("x").exception("it failed")
    first, *rest = output.getvalue().splitlines()
    assert "it failed" in first
    assert rest
    assert all(line.startswith("  | ") for line in rest)


def test_a_traceback_in_json_is_one_record() -> None:
    output = capture()
    try:
        raise ValueError("token=abcdef")
    except ValueError:
        logging.getLogger("asyncio").error("Task exception was never retrieved", exc_info=True)
    (record,) = output.records()
    assert record["exception"].splitlines()[-1] == "ValueError: token=***"


def test_what_json_cannot_carry_does_not_lose_the_line() -> None:
    output = capture()
    logger("x").info("odd \ud800", big=2**80, bytes=b"\xff", thing=object(), nan=float("nan"))
    (record,) = output.records()
    assert record["big"] == str(2**80)


def test_secrets_are_masked_wherever_they_are() -> None:
    jwt, _ = Tokens(KeyRing(SigningKey.generate()), life_seconds=60, leeway_seconds=0).issue(
        "u", "s", datetime.now(UTC)
    )
    canary = "canary-7c1e"
    output = capture()
    logger("x").info(
        f"got {jwt}",
        password=canary,
        headers={"Authorization": f"Bearer {canary}", "cookie": canary},
        body=f'{{"refresh_token": "{canary}", "email": "a@b"}}',
        params=[{"new_password": canary}, (f"secret={canary}&x=1",)],
        database=f"mysql://user:{canary}@host/db",
        refresh=f"fxr_{canary}",
        raw=f"password={canary}".encode(),
    )
    logging.getLogger("uvicorn.error").info('"WebSocket %s" [accepted]', f"/socket?t={canary}")
    text = output.getvalue()
    assert canary not in text
    assert jwt not in text
    assert jwt.rpartition(".")[2] not in text
    assert "a@b" in text


def test_numbers_under_a_secrets_name_stay() -> None:
    assert redacted({"token_seconds": 900, "tokens": [1], "password": "x", "token": None}) == {
        "token_seconds": 900,
        "tokens": "***",
        "password": "***",
        "token": None,
    }


def test_a_long_value_is_cut() -> None:
    assert len(redacted("x" * 1_000_000)) < 20_000


def test_a_value_that_contains_itself_ends() -> None:
    loop: list[Any] = []
    loop.append(loop)
    json.dumps(redacted(loop))


def test_lines_below_the_level_are_not_written() -> None:
    output = capture(log_level="warning")
    logger("x").info("no")
    logging.getLogger("x").info("no")
    logger("x").warning("yes")
    assert [record["event"] for record in output.records()] == ["yes"]


def test_parameters_in_a_librarys_debug_lines_are_never_logged() -> None:
    output = capture(log_level="debug")
    logging.getLogger("sqlalchemy.engine").debug("[parameters] %s", "x")
    assert output.records() == []


def test_configuring_again_replaces_the_first_output() -> None:
    module_level = logger("x")
    first, second = capture(), capture()
    module_level.info("once")
    assert (first.records(), len(second.records())) == ([], 1)


def test_auto_is_json_unless_on_a_terminal() -> None:
    class Terminal(Output):
        def isatty(self) -> bool:
            return True

    plain = capture("auto")
    logger("x").info("hello")
    assert plain.records()
    configure_logging("auto", "info", terminal := Terminal())
    logger("x").info("hello")
    with pytest.raises(json.JSONDecodeError):
        terminal.records()


@pytest.mark.parametrize("value", ["a" * 8, "Z9._-abc", "x" * 64])
def test_a_sane_correlation_id_is_kept(value: str) -> None:
    assert sane_correlation_id(value) == value


@pytest.mark.parametrize(
    "value", [None, "", "short", "x" * 65, "abcdefgh\n", "abcd efgh", "äbcdefgh", "abcdefgh\r\nX: 1"]
)
def test_any_other_correlation_id_is_replaced(value: str | None) -> None:
    made = sane_correlation_id(value)
    assert re.fullmatch(r"[0-9A-Z]{26}", made)
    assert made != sane_correlation_id(value)


def test_a_valid_traceparent_is_kept() -> None:
    assert sane_traceparent(TRACEPARENT) == TRACEPARENT


def test_a_later_version_is_read_as_the_first() -> None:
    assert sane_traceparent(f"01{TRACEPARENT[2:]}-more") == TRACEPARENT


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        TRACEPARENT.upper(),
        f"{TRACEPARENT}-more",
        f"ff{TRACEPARENT[2:]}",
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
        f"{TRACEPARENT}\n",
        f"01{TRACEPARENT[2:]}-{'x' * 1000}",
    ],
)
def test_an_invalid_traceparent_is_dropped(value: str | None) -> None:
    assert sane_traceparent(value) is None


def samples(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def test_metrics_count_what_they_are_told() -> None:
    metrics = Metrics(methods=["offer.accept"], close_codes=[4003])
    metrics.sockets.set(3)
    metrics.deliveries.inc(1_000)
    metrics.command("offer.accept", "ok", 0.003)
    metrics.command("offer.accept", OfferTaken.type, 0.003)
    metrics.closed(4003)
    metrics.commit_to_write_seconds.observe(0.0005)
    found = samples(metrics)
    assert found["fixnado_sockets", ()] == 3
    assert found["fixnado_deliveries_total", ()] == 1_000
    assert found["fixnado_commands_total", ("offer.accept", "ok")] == 1
    assert found["fixnado_commands_total", ("offer.accept", "offer_taken")] == 1
    assert found["fixnado_command_seconds_count", ("offer.accept",)] == 2
    assert found["fixnado_closes_total", ("4003",)] == 1
    assert found["fixnado_commit_to_write_seconds_bucket", ("0.001",)] == 1
    assert found["fixnado_commit_to_write_seconds_bucket", ("5.0",)] == 1


def test_a_client_cannot_grow_the_metrics() -> None:
    metrics = Metrics(methods=["offer.accept"])
    metrics.command("x", "x", 0)
    metrics.closed(4999)
    before = len(samples(metrics))
    for number in range(100):
        metrics.command(f"method-{number}", f"outcome-{number}", 0)
        metrics.closed(3000 + number)
    assert len(samples(metrics)) == before
    assert samples(metrics)["fixnado_commands_total", ("other", "other")] == 101


def test_two_servers_in_one_process_have_metrics_of_their_own() -> None:
    one, other = Metrics(), Metrics()
    one.gaps_healed.inc()
    assert samples(other)["fixnado_gaps_healed_total", ()] == 0


async def test_a_blocked_loop_shows_in_its_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    measured: asyncio.Queue[float] = asyncio.Queue()
    monkeypatch.setattr(metrics.loop_lag_seconds, "observe", measured.put_nowait)
    watch = asyncio.create_task(watch_loop_lag(metrics, interval_seconds=0.01))
    try:
        await asyncio.wait_for(measured.get(), 5)
        time.sleep(0.1)  # noqa: ASYNC251 - what is measured here
        assert await asyncio.wait_for(measured.get(), 5) >= 0.05
    finally:
        watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watch
