"""The page as its users see it: three panes, found by their test ids."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

from playwright.async_api import Browser, Locator, Page, WebSocket, expect

ROLES = ("customer", "provider", "admin")


class Pane:
    """One person's part of the page."""

    def __init__(self, page: Page, role: str) -> None:
        self.role = role
        self.root = page.get_by_test_id(f"pane-{role}")

    def __getitem__(self, test_id: str) -> Locator:
        return self.root.get_by_test_id(test_id)

    async def is_(self, state: str, timeout_seconds: float = 20) -> None:
        """Waits until the connection is in this state."""
        await expect(self["conn-state"]).to_have_attribute("data-state", state, timeout=timeout_seconds * 1000)

    def booking(self) -> Locator:
        """The newest booking's card."""
        return self["booking-card"].first

    async def sees(self, status: str) -> None:
        """Waits until the newest booking has this status."""
        await expect(self.booking()).to_have_attribute("data-status", status, timeout=15_000)

    async def step(self, to: str) -> None:
        """Takes a provider's next step."""
        await self.root.locator(f'[data-testid="provider-step"][data-to="{to}"]').click()
        await self.sees(to)

    async def open_chat(self) -> None:
        await self.booking().get_by_test_id("booking-chat").click()

    async def write(self, text: str) -> None:
        await self["chat-input"].first.fill(text)
        await self["chat-input"].first.press("Enter")


class ThreePeople:
    """The whole page, and what it must never do."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.customer, self.provider, self.admin = (Pane(page, role) for role in ROLES)
        self.troubles: list[str] = []
        self.sockets: list[WebSocket] = []
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("console", lambda line: self.troubles.append(line.text) if line.type == "error" else None)
        page.on("websocket", lambda socket: self.sockets.append(socket))

    @classmethod
    @asynccontextmanager
    async def opened(cls, browser: Browser, url: str, **context: object) -> AsyncIterator[Self]:
        """Opens the page; afterwards nothing may have gone wrong unseen."""
        made = await browser.new_context(locale="en-GB", viewport={"width": 1440, "height": 1000}, **context)  # type: ignore[arg-type]
        page = await made.new_page()
        people = cls(page)
        await page.goto(url)
        yield people
        # A server that is away or refuses is news for the page's users, and the browser reports it on its own.
        expected = re.compile(r"Failed to load resource|WebSocket connection to .* failed")
        assert [trouble for trouble in people.troubles if not expected.search(trouble)] == []
        await made.close()

    async def all_live(self) -> None:
        for pane in (self.customer, self.provider, self.admin):
            await pane.is_("online")

    async def book(self) -> None:
        """The customer books with what the form suggests."""
        await self.customer["customer-book"].click()
        await self.customer.sees("awaiting_assignment")

    async def book_and_accept(self) -> None:
        await self.book()
        await self.provider["provider-accept"].click()
        await self.customer.sees("assigned")

    async def feed(self) -> list[tuple[str, int, bool]]:
        """The admin's feed, oldest first: type, offset, and whether it was caught up on."""
        rows = await self.admin["admin-feed-item"].evaluate_all(
            "items => items.map(({dataset: d}) => [d.type, Number(d.offset), d.recovered !== undefined])"
        )
        return [(kind, offset, recovered) for kind, offset, recovered in reversed(rows)]
