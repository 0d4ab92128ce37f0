"""Reads calendars at addresses that strangers chose, without being led anywhere they should not.

Only https on its usual port. The name is resolved once per hop and every address it has must be a public one; the
connection goes to one of these very addresses, so that the name cannot mean another machine a moment later (DNS
rebinding), and the certificate must still be the name's. Redirects are followed by the same rules, a few of them. All
of it ends within a time and a size.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol
from urllib.parse import urljoin, urlsplit

import httptools

from domain.calendar_sync import (
    Busy,
    CalendarReader,
    Source,
    SourceKind,
    UnreadableCalendar,
    fetched,
    reach,
    zone_of,
)
from domain.commands import Desk
from domain.context import Context
from domain.errors import Unavailable
from domain.types import Interval, Origin, new_id
from persistence.icalendars import IcalendarReader
from persistence.repositories import SqlUnitOfWork
from persistence.unit_of_work import Transactions
from server.telemetry import logger
from server.workers import pause

log = logger(__name__)

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Every address of a host, as text."""

_TUNNELS = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")))
"""IPv6 networks in which an address stands for an IPv4 one (RFC 6052, 8215, 3056, 4380)."""


class FetchRefused(Exception):
    """The address was not read; the message is a code for the provider's people."""


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """Bounds of one fetch.

    Attributes:
        timeout_seconds: for all of it, redirects and the resolving of names included.
        port: the only one that is asked; tests have no 443.
    """

    timeout_seconds: float = 10.0
    most_bytes: int = 512 * 1024
    most_redirects: int = 3
    port: int = 443
    tls: ssl.SSLContext = field(default_factory=ssl.create_default_context)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, and no way around to another."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if any(ip in network for network in _TUNNELS):
            return False
    return ip.is_global and not ip.is_multicast


async def resolve(host: str, port: int) -> Sequence[str]:
    """Asks the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for _, _, _, _, sockaddr in found]


class CalendarFetcher:
    """One document at a time, by the rules of this module.

    Args:
        allowed: whether an address may be asked; a test's server is on a private one.
    """

    def __init__(
        self,
        options: FetchOptions | None = None,
        resolve: Resolve = resolve,
        allowed: Callable[[str], bool] = is_public,
    ) -> None:
        self._options = options or FetchOptions()
        self._resolve = resolve
        self._allowed = allowed

    async def fetch(self, url: str) -> bytes:
        """The document.

        Raises:
            FetchRefused: it is nowhere we go, does not answer in time, or not with a document of some size.
        """
        try:
            async with asyncio.timeout(self._options.timeout_seconds):
                for _ in range(self._options.most_redirects + 1):
                    answer = await self._get(url)
                    if answer.location is None:
                        return bytes(answer.body)
                    url = urljoin(url, answer.location)
                raise FetchRefused("too_many_redirects")
        except TimeoutError:
            raise FetchRefused("no_answer_in_time") from None
        except (OSError, UnicodeError, ValueError, httptools.HttpParserError) as error:
            raise FetchRefused("not_reachable") from error

    async def _get(self, url: str) -> _Answer:
        parts = urlsplit(url)
        host = parts.hostname
        if parts.scheme != "https" or not host or (parts.port or self._options.port) != self._options.port:
            raise FetchRefused("not_https")
        addresses = await self._resolve(host, self._options.port)
        if not addresses or not all(map(self._allowed, addresses)):
            raise FetchRefused("private_address")
        reader, writer = await asyncio.open_connection(
            addresses[0], self._options.port, ssl=self._options.tls, server_hostname=host
        )
        try:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            if not path.isascii() or any(each <= " " for each in path):
                raise FetchRefused("not_https")
            writer.write(
                f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: Fixnado\r\nAccept: text/calendar\r\n"
                "Accept-Encoding: identity\r\nConnection: close\r\n\r\n".encode()
            )
            answer = _Answer()
            parser = httptools.HttpResponseParser(answer)
            received = 0
            while not answer.complete and (chunk := await reader.read(65_536)):
                received += len(chunk)
                if received > self._options.most_bytes:
                    raise FetchRefused("too_large")
                parser.feed_data(chunk)
            status = parser.get_status_code()
        finally:
            # Not closed in order: a server that does not say goodbye must not hold us.
            writer.transport.abort()
        if status in {301, 302, 303, 307, 308} and answer.location is not None:
            return answer
        if status != 200:
            raise FetchRefused(f"status_{status}")
        answer.location = None
        return answer


class _Answer:
    """Callbacks of the parser."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.location: str | None = None
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"location":
            self.location = value.decode("ascii")

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


class Fetcher(Protocol):
    """See :class:`CalendarFetcher`."""

    async def fetch(self, url: str) -> bytes: ...


class CalendarSync:
    """Reads what is due, on whichever node is free: each claims a source before it asks, so nobody asks twice."""

    BATCH = 5
    GIVE_BACK_SECONDS = 2.0

    def __init__(
        self,
        desk: Desk,
        transactions: Transactions[SqlUnitOfWork],
        fetcher: Fetcher,
        every_seconds: float = 15,
        reader: CalendarReader | None = None,
    ) -> None:
        self._desk = desk
        self._transactions = transactions
        self._fetcher = fetcher
        self._every_seconds = every_seconds
        self._reader = reader or IcalendarReader()

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            while not stop.is_set() and await self.run_once():
                pass
            await pause(stop, self._every_seconds * random.uniform(0.8, 1.2))

    async def run_once(self) -> int:
        """Reads some of what is due; how many. What was claimed and not read, because this process ends or the database
        is away, is due again.
        """
        origin = Origin(new_id(datetime.now(UTC)))

        async def claim(uow: SqlUnitOfWork) -> tuple[list[tuple[Source, str]], Interval]:
            claimed = await uow.calendar_sync.claim_due(self.BATCH)
            return [(each, zone_of(await uow.calendars.get(each.provider_id))) for each in claimed], reach(uow.now)

        claimed, within = await self._transactions.write(claim, origin)
        unread = [source for source, _ in claimed]
        try:
            for source, tzid in claimed:
                busy, problem = await self._read(source, within, tzid)
                try:
                    await self._desk.run_as_system(self._step(source, busy, problem), origin)
                except Unavailable:
                    raise
                except Exception:
                    # Whatever this source has stirred up, it is its owner's trouble and not that of those behind it.
                    log.exception("calendar_not_taken", source=source.id)
                unread.remove(source)
        finally:
            if unread:
                await self._give_back(unread, origin)
        return len(claimed)

    async def _read(self, source: Source, within: Interval, tzid: str) -> tuple[Busy | None, str | None]:
        """What is there, or a code for why it could not be read; outside any transaction, as it may take long."""
        try:
            if source.kind is SourceKind.FILE:
                text = (source.text or "").encode()
            else:
                text = await self._fetcher.fetch(source.url or "")
            return await self._reader.busy(text, within, tzid), None
        except FetchRefused as error:
            problem = str(error)
        except UnreadableCalendar as error:
            problem = error.type
        except Exception:
            log.exception("calendar_reader_failed", source=source.id)
            return None, UnreadableCalendar.type
        log.info("calendar_not_read", source=source.id, why=problem)
        return None, problem

    async def _give_back(self, unread: Sequence[Source], origin: Origin) -> None:
        async def work(uow: SqlUnitOfWork) -> None:
            for source in unread:
                await uow.calendar_sync.give_back(source)

        try:
            async with asyncio.timeout(self.GIVE_BACK_SECONDS):
                await self._transactions.write(work, origin)
        except (Unavailable, TimeoutError):
            log.warning("calendars_not_given_back", sources=len(unread))  # they are due again in an hour

    @staticmethod
    def _step(source: Source, busy: Busy | None, problem: str | None) -> Callable[[Context], Awaitable[None]]:
        async def step(ctx: Context) -> None:
            await fetched(ctx, source, busy, problem)

        return step
