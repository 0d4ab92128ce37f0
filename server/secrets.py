"""Settings and feature flags from AWS Secrets Manager.

One secret holds a JSON object: settings under the names they have in the environment (``"FIXNADO_DATABASE_URL": "…"``)
and, if wanted, flags (``"flags": {"new-map": {"state": "pilot", "percentage": 10}}``). Other members are ignored. What
it says wins over the environment, which wins over ``.env.local``.

The secret is read once before the start and then again and again. AWS is never on a hot path: boto3 runs in a thread of
its own, every call is bounded, and while AWS is away the last values stay, readiness says so (as degraded: the node
serves on), and the next look is put off further each time. Region and credentials are found as boto3 always does
(``AWS_REGION``, roles, ``AWS_ENDPOINT_URL`` …).
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from domain.backoff import grown
from domain.errors import FixnadoError
from domain.flags import FlagDefinition, FlagName
from server.health import Degraded
from server.settings import PREFIX, SettingsError
from server.telemetry import logger
from server.workers import pause

log = logger(__name__)

LONGEST_PAUSE_SECONDS = 300.0
"""Between looks while AWS is away."""

START_TIMEOUT_SECONDS = 5.0
"""For the look before the start, whose own setting may be in the secret."""

_FLAGS: TypeAdapter[dict[str, FlagDefinition]] = TypeAdapter(dict[FlagName, FlagDefinition])


class SecretUnreadable(Exception):
    """The secret could not be had, or means nothing. The text is for operators and has no secrets."""


@dataclass(frozen=True, slots=True)
class Secret:
    """What the secret says.

    Attributes:
        version: AWS's id of it; the same id is the same content.
        settings: by environment name.
    """

    version: str
    settings: Mapping[str, str] = field(repr=False)
    flags: Mapping[str, FlagDefinition]


class SecretReader:
    """Reads one secret in a thread of its own.

    Args:
        timeout_seconds: for connecting and for the answer, each; the wait for both and one retry is bounded by
            four times that.
    """

    def __init__(self, secret_id: str, timeout_seconds: float) -> None:
        self._secret_id = secret_id
        self._timeout_seconds = timeout_seconds
        self._client: Any = None
        # One thread: while it hangs, the next look fails at once and nothing piles up.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="secrets")
        self._busy = False

    def read(self) -> Secret:
        """The secret as it is now; blocks.

        Raises:
            SecretUnreadable: AWS is away, refuses, or the secret is not what it should be.
        """
        try:
            answer = self._connected().get_secret_value(SecretId=self._secret_id)
        except Exception as error:  # botocore's errors have no common root that is public
            raise SecretUnreadable(f"the secret {self._secret_id} cannot be read: {_short(error)}") from error
        return _parsed(self._secret_id, str(answer.get("VersionId", "")), answer.get("SecretString") or "")

    async def read_in_time(self) -> Secret:
        """:meth:`read` off the loop, within the bound.

        Raises:
            SecretUnreadable: also when it took too long, or an earlier look still hangs.
        """
        if self._busy:
            raise SecretUnreadable(f"the secret {self._secret_id} cannot be read: the last attempt still hangs")
        self._busy = True
        reading = asyncio.get_running_loop().run_in_executor(self._thread, self.read)
        reading.add_done_callback(self._free)
        try:
            async with asyncio.timeout(4 * self._timeout_seconds):
                return await asyncio.shield(reading)
        except TimeoutError:
            raise SecretUnreadable(f"the secret {self._secret_id} cannot be read: no answer in time") from None

    def close(self) -> None:
        """Lets the thread go; a call that hangs ends by its own timeouts."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _free(self, reading: asyncio.Future[Secret]) -> None:
        self._busy = False
        if not reading.cancelled():
            reading.exception()  # whoever waited has it; nobody else needs to

    def _connected(self) -> Any:
        if self._client is None:
            # Loading boto3 takes a while, and most processes never need it.
            import boto3
            from botocore.config import Config

            bounds = Config(
                connect_timeout=self._timeout_seconds,
                read_timeout=self._timeout_seconds,
                retries={"total_max_attempts": 2, "mode": "standard"},
            )
            self._client = boto3.session.Session().client("secretsmanager", config=bounds)
        return self._client


class SecretWatch:
    """Looks at the secret again and again, and hands on what changed.

    Args:
        apply: gets each new version; may raise :class:`SettingsError` for values that mean nothing, or
            a ``FixnadoError`` (the database does not take them). What could not be applied is tried at the next look.

    Attributes:
        trouble: why the last look failed, or ``None``.
    """

    def __init__(
        self,
        reader: SecretReader,
        apply: Callable[[Secret], Awaitable[None]],
        every_seconds: float,
    ) -> None:
        self._reader = reader
        self._version: str | None = None
        self._apply = apply
        self._every_seconds = every_seconds
        self.trouble: str | None = None
        self._failures = 0

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            seconds = grown(self._every_seconds, self._failures, max(LONGEST_PAUSE_SECONDS, self._every_seconds))
            await pause(stop, seconds * random.uniform(0.8, 1.2))
            if not stop.is_set():
                await self.look()

    async def look(self) -> None:
        """One look. Never raises what an operator has to mend elsewhere; :meth:`check` tells of it."""
        try:
            secret = await self._reader.read_in_time()
            if secret.version != self._version:
                await self._apply(secret)
                self._version = secret.version
                log.info("secret_applied", version=secret.version)
        except (SecretUnreadable, SettingsError, FixnadoError) as error:
            self.trouble = str(error)
            self._failures += 1
            log.warning("secret_not_applied", why=self.trouble, failures=self._failures)
        else:
            self.trouble, self._failures = None, 0

    async def check(self) -> None:
        """For readiness.

        Raises:
            Degraded: the last look failed; the values before it are in use.
        """
        if self.trouble is not None:
            raise Degraded(self.trouble)


def read_settings(secret_id: str) -> Mapping[str, str]:
    """The settings in a secret, before the process starts; blocks.

    Raises:
        SettingsError: it cannot be read. A start without it would be one with other settings than were meant.
    """
    reader = SecretReader(secret_id, START_TIMEOUT_SECONDS)
    try:
        return reader.read().settings
    except SecretUnreadable as error:
        raise SettingsError(str(error)) from error
    finally:
        reader.close()


def _parsed(secret_id: str, version: str, text: str) -> Secret:
    try:
        shape = json.loads(text)
    except ValueError:
        shape = None
    if not isinstance(shape, dict):
        raise SecretUnreadable(f"the secret {secret_id} is not a JSON object")
    settings = {name: value for name, value in shape.items() if name.startswith(PREFIX)}
    wrong = sorted(name for name, value in settings.items() if isinstance(value, list | dict) or value is None)
    if wrong:
        raise SecretUnreadable(f"the secret {secret_id}: {wrong[0]} must be a string or a number")
    try:
        flags = _FLAGS.validate_python(shape.get("flags", {}))
    except ValidationError as error:
        where = ".".join(map(str, error.errors(include_input=False)[0]["loc"]))
        raise SecretUnreadable(f"the secret {secret_id}: flags.{where} is not valid") from None
    return Secret(version, {name: str(value) for name, value in settings.items()}, flags)


def _short(error: Exception) -> str:
    # botocore quotes the operation and AWS's code, never what was sent.
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
