"""The demo's people, each on a socket: a customer, three providers and an admin."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from tests.acceptance.client import ADMIN, CAMDEN, CUSTOMER, JSON, PROVIDERS, Refused, Rest, Socket, new_key
from tests.acceptance.demo import Demo

ACTIVE = ("pending", "awaiting_assignment", "assigned", "scheduled", "en_route", "arrived", "in_progress", "paused")


class Town:
    """Enter it, and everybody is connected and every provider online; leave it, and no job is left open."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.rest = Rest(base)
        self.tokens: dict[str, str] = {}
        self.customer: Socket
        self.providers: list[Socket]
        self.admin: Socket
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.rest)
        emails = [CUSTOMER, *PROVIDERS, ADMIN]
        for email, tokens in zip(emails, await asyncio.gather(*map(self.rest.login, emails)), strict=True):
            self.tokens[email] = tokens["access_token"]
        self.customer, *self.providers, self.admin = [await self.connect(email) for email in emails]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await end_all_bookings(self.rest, self.tokens[ADMIN])
        except Exception:
            # A test that failed may have left no server to tidy up with; its own error is the one to show.
            if error is None:
                raise
        finally:
            await self._stack.aclose()

    async def connect(self, email: str, resume: dict[str, JSON] | None = None) -> Socket:
        """One more socket of somebody, closed at the end."""
        socket = await Socket.open(self.base)
        self._stack.push_async_callback(socket.close)
        await socket.connect(self.tokens[email], resume)
        return socket

    async def book(self, **changes: Any) -> JSON:
        """The customer books plumbing in Camden; the booking."""
        wish: JSON = {"service_id": "plumbing", "kind": "on_demand", "location": CAMDEN, "key": new_key()}
        booking = (await self.customer.call("booking.create", wish | changes))["booking"]
        assert isinstance(booking, dict)
        return booking

    async def offers(self, booking: JSON) -> list[JSON]:
        """The offer that each provider got for a booking, in the order of :attr:`providers`."""
        events = [await provider.event("offer.made", booking_id=booking["id"]) for provider in self.providers]
        return [event["data"]["offer"] for event in events]

    async def assigned(self, winner: int = 0, **changes: Any) -> JSON:
        """A booking that a provider has taken."""
        offers = await self.offers(await self.book(**changes))
        booking = (
            await self.providers[winner].call("offer.accept", {"offer_id": offers[winner]["id"], "key": new_key()})
        )["booking"]
        assert isinstance(booking, dict)
        return booking

    async def step(self, socket: Socket, booking: JSON, to: str, **more: Any) -> JSON:
        """One transition; the booking after it."""
        params = {"booking_id": booking["id"], "to": to, "version": booking["version"], "key": new_key()}
        after = (await socket.call("booking.transition", params | more))["booking"]
        assert isinstance(after, dict)
        return after


async def end_all_bookings(rest: Rest, token: str) -> None:
    """Cancels every open booking or, where it is too late for that, has it completed. The token is an admin's."""
    for status in ACTIVE:
        listed = await rest.command("booking.list", {"status": status, "limit": 100}, token)
        for booking in listed.body["bookings"]:
            await _end(rest, token, booking)


async def _end(rest: Rest, token: str, booking: JSON) -> None:
    if booking["status"] not in ("in_progress", "paused"):
        params = {"booking_id": booking["id"], "reason": "the test is over"}
        await rest.command("booking.cancel", params, token, new_key())
        return
    for email in PROVIDERS:
        provider = str((await rest.login(email))["access_token"])
        for to in ("in_progress", "completed"):
            current = (await rest.command("booking.get", {"booking_id": booking["id"]}, token)).body["booking"]
            params = {"booking_id": booking["id"], "to": to, "version": current["version"]}
            await rest.command("booking.transition", params, provider, new_key())


async def refusal(socket: Socket, method: str, params: JSON | None = None) -> JSON:
    """The error object of a command that must be refused."""
    try:
        result = await socket.call(method, params)
    except Refused as refused:
        return refused.error
    raise AssertionError(f"{method} was not refused: {result}")


async def token_of(demo: Demo, email: str) -> str:
    """A fresh access token of one of the demo's people."""
    async with Rest(demo.base) as rest:
        return str((await rest.login(email))["access_token"])
