"""Calendars at addresses that strangers chose: nowhere private, whatever names and redirects say, within bounds."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from persistence.database import Database
from persistence.migrate import upgrade
from server.calendar_fetch import CalendarFetcher, CalendarSync, FetchOptions, FetchRefused, is_public
from tests.certificates import make_certificates
from tests.domain.marketplace import OPTIONS, Marketplace

HOST = "calendar.example.test"
TEXT = b"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:x\r\nEND:VCALENDAR\r\n"
BUSY = TEXT.replace(
    b"END:VC", b"BEGIN:VEVENT\r\nUID:1\r\nDTSTART:20261125T100000Z\r\nDTEND:20261125T110000Z\r\nEND:VEVENT\r\nEND:VC"
)


def answer(body: bytes = TEXT, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


class Site:
    """A TLS server that says what it is told to, by path."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {"/": answer()}
        self.asked: list[str] = []
        self.drips = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = request.split(" ")[1]
            self.asked.append(path)
            said = self.answers[path]
            if self.drips:
                for byte in said[:-1]:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0.02)
                return
            writer.write(said)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went, or the test is over
        finally:
            writer.close()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[tuple[Site, FetchOptions]]:
    make_certificates(tmp_path, [x509.DNSName(HOST)])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    made = Site()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    trust = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    yield made, FetchOptions(timeout_seconds=2, most_bytes=10_000, port=port, tls=trust)
    server.close()


@pytest.fixture
async def market(sqlite_url: str) -> AsyncIterator[Marketplace]:
    await upgrade(sqlite_url, OPTIONS)
    database = Database(sqlite_url, OPTIONS)
    made = Marketplace(database)
    await made.zone()
    await made.service()
    yield made
    await database.close()


def resolver(*answers: Sequence[str]) -> Callable[[str, int], Any]:
    """A name server that says these one after the other, and then the last for ever."""
    said = list(answers)

    async def resolve(host: str, port: int) -> Sequence[str]:
        return said.pop(0) if len(said) > 1 else said[0]

    return resolve


def here(options: FetchOptions) -> CalendarFetcher:
    """A fetcher for which this machine alone is public."""
    return CalendarFetcher(options, resolver(["127.0.0.1"]), lambda address: address == "127.0.0.1")


async def refused(fetcher: CalendarFetcher, url: str) -> str:
    with pytest.raises(FetchRefused) as caught:
        await fetcher.fetch(url)
    return str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a00:1",
        "2002:a00:1::1",
        "fe80::1%eth0",
        "localhost",
        "",
    ],
)
def test_address_that_is_not_of_the_public_internet_is_none(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:93.184.215.14"])
def test_public_address_is_one(address: str) -> None:
    assert is_public(address)


async def test_document_is_read(site: tuple[Site, FetchOptions]) -> None:
    made, options = site
    made.answers["/a.ics?x=1"] = answer()
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (TEXT[:7], TEXT[7:])) + b"0\r\n\r\n"
    made.answers["/chunked"] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked
    for path in ("/a.ics?x=1", "/chunked"):
        assert await here(options).fetch(f"https://{HOST}{path}") == TEXT


async def test_name_that_leads_to_a_private_address_is_not_asked(site: tuple[Site, FetchOptions]) -> None:
    made, options = site
    for addresses in (["127.0.0.1"], ["93.184.215.14", "127.0.0.1"], ["::ffff:127.0.0.1"], []):
        assert await refused(CalendarFetcher(options, resolver(addresses)), f"https://{HOST}/") == "private_address"
    assert await refused(CalendarFetcher(options), f"https://127.0.0.1:{options.port}/") == "private_address"
    assert await refused(CalendarFetcher(options), "https://localhost/") == "private_address"
    assert made.asked == []


async def test_name_that_means_another_machine_a_moment_later_is_not_asked_again(
    site: tuple[Site, FetchOptions],
) -> None:
    made, options = site
    # The first answer is the one that is judged and the one that is used.
    rebound = CalendarFetcher(options, resolver(["127.0.0.1"], ["10.0.0.1"]), lambda each: each == "127.0.0.1")
    assert await rebound.fetch(f"https://{HOST}/") == TEXT
    made.answers["/again"] = answer(b"", "302 Found", f"Location: https://{HOST}/\r\n")
    rebound = CalendarFetcher(options, resolver(["127.0.0.1"], ["10.0.0.1"]), lambda each: each == "127.0.0.1")
    assert await refused(rebound, f"https://{HOST}/again") == "private_address"


async def test_redirects_are_followed_by_the_same_rules_and_not_for_ever(site: tuple[Site, FetchOptions]) -> None:
    made, options = site
    made.answers |= {
        "/there": answer(b"", "301 Moved", "Location: /\r\n"),
        "/plain": answer(b"", "302 Found", f"Location: http://{HOST}/\r\n"),
        "/file": answer(b"", "302 Found", "Location: file:///etc/passwd\r\n"),
        "/port": answer(b"", "302 Found", f"Location: https://{HOST}:22/\r\n"),
        "/loop": answer(b"", "307 Again", "Location: /loop\r\n"),
    }
    fetcher = here(options)
    assert await fetcher.fetch(f"https://{HOST}/there") == TEXT
    for path in ("/plain", "/file", "/port"):
        assert await refused(fetcher, f"https://{HOST}{path}") == "not_https"
    assert await refused(fetcher, f"https://{HOST}/loop") == "too_many_redirects"


async def test_size_and_time_are_bounded(site: tuple[Site, FetchOptions]) -> None:
    made, options = site
    made.answers["/large"] = answer(b"x" * 20_000)
    assert await refused(here(options), f"https://{HOST}/large") == "too_large"
    made.drips = True
    quick = FetchOptions(timeout_seconds=0.2, most_bytes=10_000, port=options.port, tls=options.tls)
    began = time.monotonic()
    assert await refused(here(quick), f"https://{HOST}/") == "no_answer_in_time"
    assert time.monotonic() - began < 2


async def test_certificate_must_be_the_names(site: tuple[Site, FetchOptions]) -> None:
    made, options = site
    assert await refused(here(options), "https://other.example.test/") == "not_reachable"
    untrusting = FetchOptions(port=options.port)
    assert await refused(here(untrusting), f"https://{HOST}/") == "not_reachable"
    assert made.asked == []


async def test_what_is_not_a_document_is_said(site: tuple[Site, FetchOptions]) -> None:
    made, options = site
    made.answers |= {"/gone": answer(b"", "404 Not Found"), "/noise": b"\x16\x03\x01 what\r\n\r\n"}
    assert await refused(here(options), f"https://{HOST}/gone") == "status_404"
    assert await refused(here(options), f"https://{HOST}/noise") == "not_reachable"


async def test_address_is_read_once_an_hour_whoever_asks_and_keeps_what_it_had(
    site: tuple[Site, FetchOptions], market: Marketplace
) -> None:
    made, options = site
    made.answers["/a.ics"] = answer(BUSY)
    firm = await market.firm()
    theirs = {"provider_id": firm.provider_id}
    await market.call(firm.person, "calendar.subscribe", **theirs, name="Work", url=f"https://{HOST}/a.ics")
    workers = [CalendarSync(market.desk, market.transactions, here(options)) for _ in range(3)]
    assert sorted(await asyncio.gather(*(worker.run_once() for worker in workers))) == [0, 0, 1]
    assert made.asked == ["/a.ics"]

    async def source() -> Any:
        return (await market.call(firm.person, "calendar.list_sources", **theirs))["sources"][0]

    assert ((await source())["times"], "problem" in await source()) == (1, False)
    market.clock.advance(3601)
    made.answers["/a.ics"] = answer(b"", "500 Oh")
    assert await workers[0].run_once() == 1
    assert ((await source())["times"], (await source())["problem"]) == (1, "status_500")
    market.clock.advance(3601)
    made.answers["/a.ics"] = answer()
    assert await workers[0].run_once() == 1
    assert ((await source())["times"], "problem" in await source()) == (0, False)
