"""What the process says about itself: structured log lines and Prometheus metrics.

Invariants of the log, whoever writes to it (this product, uvicorn, asyncio or a library):

* one record is one line; text from outside cannot start another one. On a terminal a traceback takes several, and each
  of them begins with a bar;
* every line that follows from a request carries its ``correlation_id`` and ``traceparent`` (:func:`correlated`);
* secrets are masked by the name they go under and by what they look like, wherever they are in a record.

Invariant of the metrics: a label takes its values from a list that is fixed at start, so no client can grow them.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

import orjson
import structlog
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import generate_latest
from structlog.typing import EventDict, Processor, WrappedLogger

from domain.errors import FixnadoError
from domain.types import Origin, new_id

METRICS_CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

MASK: Final = "***"
MAX_TEXT_CHARACTERS: Final = 16_384
"""Of one value in a log line; the rest is cut."""

_QUIET = ("aiosqlite", "alembic", "asyncmy", "boto3", "botocore", "sqlalchemy", "urllib3", "websockets")
"""Their debug lines carry parameters, frames and headers: not below warning, whatever the level of the process."""

_SECRET_NAME = re.compile(
    r"pass(?:word|wd|phrase)|secret|token|authorization|cookie|credential|private_?key|api_?key|(?<![a-z])otp|recovery|challenge"
    r"|database_url|redis_url",
    re.IGNORECASE,
)
_SECRET_TEXT: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    # A JSON Web Token: three base64url parts, the first of which begins with `{"`.
    (re.compile(r"eyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*"), MASK),
    # Opaque credentials of this product begin with fx, a letter and an underscore.
    (re.compile(r"\bfx[a-z]_[A-Za-z0-9_-]{8,}"), MASK),
    (re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]+", re.IGNORECASE), rf"\1 {MASK}"),
    (re.compile(r"(://[^\s:/@]*):[^\s/]*@"), rf"\1:{MASK}@"),
    # name=value and "name": "value" inside longer text: a query string, a repr, a piece of JSON.
    (
        re.compile(
            r"((?:pass(?:word|wd|phrase)|secret|token|authorization|cookie|otp|recovery_code|challenge)"
            r"[\"']?\s*[:=]\s*)(\"[^\"]*\"|'[^']*'|[^\s\"'&,;)}\]]+)",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
)
# C0, DEL and C1 controls, separators that some viewers take for line ends, and surrogates, which UTF-8 cannot carry.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_CORRELATION_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


def sane_correlation_id(value: str | None) -> str:
    """The client's correlation id if it is 8 to 64 letters, digits, dots, dashes or underscores; else a new ULID."""
    if value is not None and _CORRELATION_ID.fullmatch(value):
        return value
    return new_id(datetime.now(UTC))


def sane_traceparent(value: str | None) -> str | None:
    """The trace context if it is valid (W3C Trace Context, section 3.2), as version 00; else ``None``.

    A later version may append fields; its first four are read as the specification asks.
    """
    match = _TRACEPARENT.fullmatch(value) if value is not None and len(value) <= 512 else None
    if match is None:
        return None
    version, trace, span, flags, more = match.groups()
    if version == "ff" or not int(trace, 16) or not int(span, 16) or (version == "00" and more):
        return None
    return f"00-{trace}-{span}-{flags}"


@contextmanager
def correlated(origin: Origin, **more: str) -> Iterator[None]:
    """Puts the origin's ids, and more, on every log line of this task, and of tasks it starts, until the block ends."""
    ids = {"correlation_id": origin.correlation_id, **more}
    if origin.traceparent is not None:
        ids["traceparent"] = origin.traceparent
    with structlog.contextvars.bound_contextvars(**ids):
        yield


class _Handler(logging.StreamHandler[TextIO]):
    """Marks the handler that :func:`configure_logging` put on the root logger, so that a second call replaces it."""


def configure_logging(
    log_format: Literal["auto", "json", "console"] = "auto", log_level: str = "info", stream: TextIO | None = None
) -> None:
    """Routes structlog and the standard library's logging into one stream (standard error by default).

    May be called again. uvicorn must be told to leave logging alone: ``log_config=None``, and ``access_log=False``, as
    its access lines quote whole URLs.
    """
    stream = stream or sys.stderr
    readable = log_format == "console" or (log_format == "auto" and stream.isatty())
    common: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*common, _without_queries],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _Clean("  | " if readable else ""),
            _console(colors=stream.isatty()) if readable else _render_json,
        ],
    )
    handler = _Handler(stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [*(old for old in root.handlers if not isinstance(old, _Handler)), handler]
    root.setLevel(log_level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *common,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        # Module-level loggers must follow a later call of this function.
        cache_logger_on_first_use=False,
    )


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module. Events are short and constant; what varies goes into keyword arguments."""
    bound: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return bound


def redacted(value: Any, depth: int = 6) -> Any:
    """The value with secrets masked and control characters escaped, made of what JSON knows.

    A string, bytes or container under a secret's name becomes ``***``; numbers and booleans stay, they say how long and
    how many. Deeper than ``depth`` containers, only the representation is kept.
    """
    match value:
        case int() if not -(2**63) <= value < 2**63:
            return str(value)
        case None | bool() | int() | float():
            return value
        case str():
            return _safe_text(value)
        case Mapping() if depth:
            return {_safe_text(str(name)): _under(str(name), item, depth) for name, item in value.items()}
        case list() | tuple() | set() | frozenset() if depth:
            return [redacted(item, depth - 1) for item in value]
        case _:
            return _safe_text(repr(value))


def _under(name: str, value: Any, depth: int) -> Any:
    if _SECRET_NAME.search(name) and not (value is None or isinstance(value, bool | int | float)):
        return MASK
    return redacted(value, depth - 1)


def _safe_text(text: str) -> str:
    return _CONTROL.sub(lambda match: _escape(match[0]), _masked(text))


def _masked(text: str) -> str:
    if len(text) > MAX_TEXT_CHARACTERS:
        text = text[:MAX_TEXT_CHARACTERS] + "…"
    for pattern, replacement in _SECRET_TEXT:
        text = pattern.sub(replacement, text)
    return text


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class _Clean:
    """The processor before the renderer: masks and escapes everything, and keeps the lines of tracebacks.

    Args:
        bar: what each line of a traceback begins with.
    """

    def __init__(self, bar: str) -> None:
        self._bar = bar

    def __call__(self, _: WrappedLogger, __: str, event_dict: EventDict) -> EventDict:
        return {
            _safe_text(name): self._lines(value) if name in {"exception", "stack"} else _under(name, value, depth=6)
            for name, value in event_dict.items()
        }

    def _lines(self, text: object) -> str:
        # Masked as a whole before it is split: a secret may be quoted across two lines.
        return "\n".join(f"{self._bar}{_safe_text(line)}" for line in _masked(str(text)).splitlines())


def _without_queries(_: WrappedLogger, __: str, event_dict: EventDict) -> EventDict:
    """Cuts the query off URLs in uvicorn's lines: whatever a client put there is not for the log."""
    if str(event_dict.get("logger", "")).startswith("uvicorn"):
        event_dict["event"] = re.sub(r"\?[^\s\"']+", f"?{MASK}", str(event_dict["event"]))
    return event_dict


def _render_json(_: WrappedLogger, __: str, event_dict: EventDict) -> str:
    return orjson.dumps(event_dict).decode()


def _console(*, colors: bool) -> Processor:
    return structlog.dev.ConsoleRenderer(
        colors=colors, timestamp_key="time", exception_formatter=structlog.dev.plain_traceback, pad_event_to=40
    )


_LATENCY_SECONDS = (0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.125, 0.25, 0.5, 1.0, 2.5, 5.0)
_LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_OTHER = "other"


class Metrics:
    """The metrics of one process, in a registry of its own, so that two servers in one test do not meet.

    Plain counters and gauges are attributes (``metrics.deliveries.inc(n)`` costs the same for any ``n``). What has
    labels goes through a method that keeps their values bounded.

    Args:
        methods: the names of the catalogue's commands; any other is counted as ``other``.
        close_codes: the close codes that are counted one by one; any other is counted as ``other``.
        security_kinds: the kinds of security events; any other is counted as ``other``.
    """

    def __init__(
        self, methods: Iterable[str] = (), close_codes: Iterable[int] = (), security_kinds: Iterable[str] = ()
    ) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._methods = frozenset(methods)
        self._outcomes = frozenset({"ok", *_error_types(FixnadoError)})
        self._security_kinds = frozenset(security_kinds)
        self._close_codes = frozenset(close_codes) | {1000, 1001, 1002, 1005, 1006, 1007, 1009, 1011, 1012}
        self.sockets = self._gauge("sockets", "Sockets open now.")
        self.deliveries = self._counter("deliveries", "Frames handed to the transports of sockets.")
        self.dropped = self._counter("dropped_events", "Ephemeral and conflated events a slow socket did not get.")
        self.gaps_healed = self._counter("gaps_healed", "Gaps on a channel that were filled from the log.")
        self.outbox_oldest_seconds = self._gauge("outbox_oldest_seconds", "Age of the oldest event without an offset.")
        self.outbox_rows = self._gauge("outbox_rows", "Events without an offset yet.")
        self.outbox_parked_rows = self._gauge("outbox_parked_rows", "Poison events that an operator has to look at.")
        self.timers_overdue = self._gauge("timers_overdue", "Timers that should have been handled by now.")
        self.timers_oldest_overdue_seconds = self._gauge(
            "timers_oldest_overdue_seconds", "How late the timer is that has been due for longest."
        )
        self.commit_to_write_seconds = self._histogram(
            "commit_to_write_seconds",
            "From an event's time, taken when its transaction began, to the write on this node's sockets.",
            _LATENCY_SECONDS,
        )
        self.sequenced = self._counter("sequenced_entries", "Log entries this node's sequencer wrote.")
        self.parked = self._counter("parked_events", "Poison events this node's sequencer put aside: look at each.")
        self.sequencing_failures = self._counter("sequencing_failures", "Runs of the sequencer that failed.")
        self.clock_ahead_seconds = self._gauge(
            "clock_ahead_seconds", "By how much this machine's clock is ahead of the database's."
        )
        self.loop_lag_seconds = self._histogram(
            "loop_lag_seconds", "How late the event loop woke a sleeping task.", _LAG_SECONDS
        )
        self._commands = Counter(
            "commands", "Commands by result.", ("method", "outcome"), namespace="fixnado", registry=self.registry
        )
        self._command_seconds = Histogram(
            "command_seconds",
            "From a decoded command to its reply.",
            ("method",),
            namespace="fixnado",
            buckets=_LATENCY_SECONDS,
            registry=self.registry,
        )
        self._security_events = Counter(
            "security_events", "Rows of the audit log.", ("kind",), namespace="fixnado", registry=self.registry
        )
        self._closes = Counter("closes", "Sockets closed.", ("code",), namespace="fixnado", registry=self.registry)
        self._letters = Counter(
            "letters", "Messages to people.", ("medium", "outcome"), namespace="fixnado", registry=self.registry
        )
        self._deliveries = Counter(
            "notification_deliveries",
            "Notifications handed to carriers.",
            ("medium", "outcome"),
            namespace="fixnado",
            registry=self.registry,
        )

    def command(self, method: str, outcome: str, seconds: float) -> None:
        """Counts one command. ``outcome`` is ``ok`` or the ``type`` of the error it was answered with."""
        method = method if method in self._methods else _OTHER
        self._commands.labels(method, outcome if outcome in self._outcomes else _OTHER).inc()
        self._command_seconds.labels(method).observe(seconds)

    def attested(self, kind: str) -> None:
        """Counts one row of the audit log that this node wrote."""
        self._security_events.labels(kind if kind in self._security_kinds else _OTHER).inc()

    def closed(self, code: int) -> None:
        """Counts one socket that ended with this close code, its own or the client's."""
        self._closes.labels(str(code) if code in self._close_codes else _OTHER).inc()

    def letter(self, medium: str, outcome: str) -> None:
        """Counts one message to a person: ``posted`` or ``dropped``, by ``email`` or ``sms``."""
        self._letters.labels(medium, outcome).inc()

    def reached(self, medium: str, outcome: str) -> None:
        """Counts one notification that was handed to carriers: how that went."""
        self._deliveries.labels(medium, outcome).inc()

    def render(self) -> bytes:
        """All metrics in the text format of :data:`METRICS_CONTENT_TYPE`."""
        return generate_latest(self.registry)

    def _counter(self, name: str, meaning: str) -> Counter:
        return Counter(name, meaning, namespace="fixnado", registry=self.registry)

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(name, meaning, namespace="fixnado", registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, meaning, namespace="fixnado", buckets=buckets, registry=self.registry)


async def watch_loop_lag(metrics: Metrics, interval_seconds: float = 0.5) -> None:
    """Measures until it is cancelled; its owner is whoever runs it."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + interval_seconds
        await asyncio.sleep(interval_seconds)
        metrics.loop_lag_seconds.observe(max(0.0, loop.time() - due))


def _error_types(root: type[FixnadoError]) -> Iterator[str]:
    yield root.type
    for child in root.__subclasses__():
        yield from _error_types(child)
