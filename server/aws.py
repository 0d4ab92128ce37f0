"""Calls to AWS: in a few threads of their own, bounded in time and number, and given up quickly while AWS is away.

* boto3 blocks, so a call takes place in a thread; at most ``threads`` run and ``waiting`` more stand in line, beyond
  that the answer is ``unavailable`` at once. A caller that stops waiting gives up only the result: the thread's own
  time-outs bound the call.
* botocore repeats what was throttled or failed on the way, with exponential backoff and jitter ("standard" mode).
* A circuit per service opens after a few failures in a row: for a while calls fail at once, then one is let through to
  see. So nothing that a person waits for hangs on a service that is away.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from domain.errors import Unavailable

logger = logging.getLogger(__name__)


class AwsRefusal(Unavailable):
    """The service answers and says no.

    Attributes:
        reason: AWS's code, e.g. ``MessageRejected``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason

    @property
    def throttled(self) -> bool:
        """Whether it would have said yes to fewer."""
        return is_throttling(self.reason)


def is_throttling(code: str) -> bool:
    """Whether AWS's code means: slower."""
    return "Throttl" in code or code in {"TooManyRequestsException", "RequestLimitExceeded", "LimitExceededException"}


@dataclass(frozen=True, slots=True)
class AwsOptions:
    """Where AWS is and how long it may take.

    Attributes:
        region: e.g. ``eu-west-2``; by default what the machine's AWS configuration says.
        endpoint_url: another place that speaks AWS's protocol.
        connect_seconds, read_seconds: of one try.
        tries: of one call, the first included.
        call_seconds: after this the caller stops waiting.
        failures_to_open, open_seconds: of the circuit.
    """

    region: str | None = None
    endpoint_url: str | None = None
    connect_seconds: float = 1.0
    read_seconds: float = 3.0
    tries: int = 3
    call_seconds: float = 8.0
    threads: int = 4
    waiting: int = 32
    failures_to_open: int = 5
    open_seconds: float = 15.0


class Circuit:
    """Open after so many failures in a row; then one call after each pause, until one succeeds."""

    def __init__(self, failures_to_open: int, open_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._failures_to_open = failures_to_open
        self._open_seconds = open_seconds
        self._clock = clock
        self._failures = 0
        self._next_at = 0.0

    def lets_through(self) -> bool:
        """Whether a call may be tried now."""
        if self._failures < self._failures_to_open:
            return True
        if self._clock() < self._next_at:
            return False
        self._next_at = self._clock() + self._open_seconds
        return True

    def note(self, *, well: bool) -> None:
        """How a call went."""
        self._failures = 0 if well else self._failures + 1
        if not well:
            self._next_at = self._clock() + self._open_seconds


class Aws:
    """Calls by service and operation. Made by the process that owns it, ended by :meth:`close`."""

    def __init__(self, options: AwsOptions | None = None) -> None:
        self._options = options or AwsOptions()
        self._pool = ThreadPoolExecutor(self._options.threads, thread_name_prefix="aws")
        self._places = threading.BoundedSemaphore(self._options.threads + self._options.waiting)
        self._clients: dict[str, Any] = {}
        self._making = threading.Lock()
        self._circuits: dict[str, Circuit] = {}

    async def call(self, service: str, operation: str, **params: Any) -> Any:
        """One call, e.g. ``call("kms", "decrypt", CiphertextBlob=…)``.

        Raises:
            AwsRefusal: the service answers, and refuses. Its code goes to the log, its words nowhere.
            Unavailable: no answer in time, a full line, or an open circuit.
        """
        circuit = self._circuits.setdefault(
            service, Circuit(self._options.failures_to_open, self._options.open_seconds)
        )
        if not circuit.lets_through():
            raise Unavailable
        if not self._places.acquire(blocking=False):
            raise Unavailable
        try:
            future = self._pool.submit(self._call, service, operation, params)
        except RuntimeError:
            self._places.release()
            raise Unavailable from None
        future.add_done_callback(lambda _: self._places.release())
        try:
            async with asyncio.timeout(self._options.call_seconds):
                answer = await asyncio.wrap_future(future)
        except TimeoutError:
            circuit.note(well=False)
            logger.warning("aws_slow", extra={"service": service, "operation": operation})
            raise Unavailable from None
        except _Refused as error:
            # It answers, if only to refuse: that is no reason to stop asking.
            circuit.note(well=not error.away)
            logger.warning("aws_failed", extra={"service": service, "operation": operation, "why": error.why})
            raise (Unavailable() if error.away else AwsRefusal(error.why)) from error
        circuit.note(well=True)
        return answer

    def close(self) -> None:
        """Drops what stands in line. What runs ends by its own time-outs and is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _call(self, service: str, operation: str, params: dict[str, Any]) -> Any:
        # Imported by a thread, as it takes a good part of a second, and most embedded servers never need it.
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client(service), operation)(**params)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", "unknown"))
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
            # The code alone: messages quote addresses.
            raise _Refused(code, away=status >= 500 or is_throttling(code)) from None
        except BotoCoreError as error:
            raise _Refused(type(error).__name__, away=True) from None

    def _client(self, service: str) -> Any:
        import boto3
        from botocore.config import Config

        with self._making:
            if service not in self._clients:
                options = self._options
                config = Config(
                    connect_timeout=options.connect_seconds,
                    read_timeout=options.read_seconds,
                    retries={"mode": "standard", "total_max_attempts": options.tries},
                    max_pool_connections=options.threads,
                )
                self._clients[service] = boto3.session.Session().client(
                    service, region_name=options.region, endpoint_url=options.endpoint_url, config=config
                )
            return self._clients[service]


class _Refused(Exception):
    def __init__(self, why: str, *, away: bool) -> None:
        super().__init__(why)
        self.why = why
        self.away = away


class KmsMasterKey:
    """A master key in AWS KMS, which never leaves it. See :class:`persistence.vault.MasterKey`.

    Args:
        key_id: a key's id, ARN or alias.
    """

    def __init__(self, aws: Aws, key_id: str) -> None:
        self._aws = aws
        self._key_id = key_id
        self.name = f"kms:{key_id}"

    def knows(self, name: str) -> bool:
        # KMS finds the key in the ciphertext, so an alias that points elsewhere by now is no trouble.
        return name.startswith("kms:")

    async def wrap(self, key: bytes, version: int) -> str:
        answer = await self._aws.call(
            "kms", "encrypt", KeyId=self._key_id, Plaintext=key, EncryptionContext=_context(version)
        )
        return base64.b64encode(answer["CiphertextBlob"]).decode()

    async def unwrap(self, wrapped: str, name: str, version: int) -> bytes:
        answer = await self._aws.call(
            "kms", "decrypt", CiphertextBlob=base64.b64decode(wrapped), EncryptionContext=_context(version)
        )
        plain: bytes = answer["Plaintext"]
        return plain


def _context(version: int) -> dict[str, str]:
    # KMS's name for additional authenticated data. It shows in CloudTrail, so it says what for, and nothing else.
    return {"product": "fixnado", "purpose": "data-key", "version": str(version)}
