from __future__ import annotations

import asyncio
import re

import pytest
from playwright.async_api import Browser, expect

from tests.page.conftest import FixnadoServer, StartServer
from tests.page.three_people import ThreePeople
from tests.server.blocking_proxy import blocking_proxy

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="session")]


async def test_one_booking_goes_from_creation_to_completion_in_front_of_all_three(first_people: ThreePeople) -> None:
    people = first_people
    customer, provider, admin = people.customer, people.provider, people.admin
    await customer["customer-notes"].fill("The tap <b>drips</b>.")
    await people.book()
    await expect(provider["provider-countdown"]).to_have_text(re.compile(r"^\d+ s left$"))
    await expect(admin["admin-count-finding"]).to_have_text("1")

    await provider["provider-accept"].click()
    for pane in (customer, provider):
        await pane.sees("assigned")
    await expect(customer.booking()).to_contain_text("The tap <b>drips</b>.")
    for to in ("en_route", "arrived", "in_progress", "paused", "in_progress", "completed"):
        await provider.step(to)
        await customer.sees(to)
    await expect(admin["admin-count-completed"]).to_have_text("1")

    feed = await people.feed()
    assert [kind for kind, _, _ in feed if kind.startswith("booking.")] == [
        "booking.created",
        "booking.dispatch_started",
        "booking.assigned",
        "booking.en_route",
        "booking.arrived",
        "booking.started",
        "booking.paused",
        "booking.resumed",
        "booking.completed",
    ]
    assert {"offer.made", "offer.accepted"} <= {kind for kind, _, _ in feed}
    offsets = [offset for _, offset, _ in feed]
    assert offsets == list(range(offsets[0], offsets[0] + len(feed)))


async def test_the_drive_moves_the_provider_and_ends_at_the_door(people: ThreePeople) -> None:
    await people.book_and_accept()
    await people.provider.step("en_route")
    await people.provider["provider-drive"].click()
    await expect(people.customer["booking-eta"]).to_contain_text("Arriving in", timeout=15_000)
    await expect(people.customer["booking-map"]).to_be_visible()
    await expect(people.customer.booking()).to_have_attribute("data-status", "arrived", timeout=60_000)


async def test_people_of_a_booking_talk_see_typing_and_know_what_was_read(people: ThreePeople) -> None:
    customer, provider, admin = people.customer, people.provider, people.admin
    await people.book_and_accept()
    await customer.open_chat()
    await customer.write("The back door, please")
    await expect(provider["chat-unread"].first).to_have_text("1")
    await expect(customer["chat-receipt"].first).to_have_text("Delivered")

    await provider.open_chat()
    await expect(customer["chat-receipt"].first).to_have_text("Seen")
    await expect(provider["chat-unread"].first).to_be_hidden()
    await provider["chat-input"].first.press_sequentially("Sure")
    await expect(customer["chat-typing"].first).to_have_text("Priya Shah is typing…")
    await provider["chat-input"].first.press("Enter")
    await expect(customer["chat-message"].last).to_contain_text("Sure")
    await expect(customer["chat-typing"].first).to_have_text("")

    await admin["admin-feed-item"].first.get_by_role("button").click()
    await admin.open_chat()
    await admin.write("Operations here, all well?")
    await expect(customer["chat-message"].last).to_contain_text("Operations here")
    await expect(provider["chat-message"]).to_have_count(3)


async def test_a_cut_network_is_resumed_with_exactly_what_was_missed(first_people: ThreePeople) -> None:
    people = first_people
    customer, provider, admin = people.customer, people.provider, people.admin
    await people.book_and_accept()
    await expect(admin["admin-count-assigned"]).to_have_text("1")
    for pane in (customer, admin):
        await pane["cut-network"].click()
        await pane.is_("offline")
    for to in ("en_route", "arrived", "in_progress"):
        await provider.step(to)
    await customer.sees("assigned")

    # Also that the arrival was in time, which the customer hears; the admin perhaps where supply went, and figures.
    for pane, missing in ((customer, "4"), (admin, "[3-9]")):
        await pane["cut-network"].click()
        await pane.is_("online")
        await expect(pane["resume-note"]).to_contain_text(re.compile(f"{missing} events missed and delivered"))
        await expect(pane["conn-reconnects"]).to_have_text("1 reconnect")
    await customer.sees("in_progress")
    missed = [kind for kind, _, recovered in await people.feed() if recovered]
    assert missed == ["booking.en_route", "booking.arrived", "booking.started"]
    offsets = [offset for _, offset, _ in await people.feed()]
    assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))


async def test_what_is_done_while_the_network_is_cut_happens_once_it_is_back(people: ThreePeople) -> None:
    customer, provider = people.customer, people.provider
    await people.book_and_accept()
    await customer.open_chat()
    await provider.open_chat()
    await customer["cut-network"].click()
    await customer.write("Written in a tunnel")
    await expect(provider["chat-message"]).to_have_count(0)
    await customer["cut-network"].click()
    await expect(provider["chat-message"]).to_have_count(1)
    await expect(customer["chat-message"]).to_have_count(1)
    await expect(provider["chat-message"]).to_contain_text("Written in a tunnel")


async def test_a_killed_server_is_found_again_and_nothing_is_lost_or_doubled(
    first_people: ThreePeople, demo: FixnadoServer
) -> None:
    people = first_people
    customer, provider, admin = people.customer, people.provider, people.admin
    await people.book_and_accept()
    await customer.open_chat()
    demo.kill()
    for pane in (customer, provider, admin):
        await expect(pane["conn-state"]).to_have_attribute("data-state", re.compile("waiting|connecting"))
    await customer.write("Are you there?")
    demo.start()
    for pane in (customer, provider, admin):
        await pane.is_("online", 40)
        # The epoch is in the database, so this is a resume and no fresh start.
        await expect(pane["resume-note"]).to_contain_text(re.compile("nothing was missed|missed and delivered"))
    await provider.open_chat()
    await expect(provider["chat-message"]).to_have_count(1)
    for to in ("en_route", "arrived", "in_progress", "completed"):
        await provider.step(to)
    await customer.sees("completed")
    await expect(admin["admin-count-completed"]).to_have_text("1")
    offsets = [offset for _, offset, _ in await people.feed()]
    assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))


async def test_a_browser_reads_deflated_events(start_server: StartServer, browser: Browser) -> None:
    with start_server(compression="deflate") as server:
        async with ThreePeople.opened(browser, server.url) as people:
            await people.all_live()
            agreed = await people.page.evaluate(
                """() => new Promise((resolve, reject) => {
                    const socket = new WebSocket(location.origin.replace("http", "ws") + "/socket", "fixnado.v1");
                    socket.onopen = () => { resolve(socket.extensions); socket.close(); };
                    socket.onerror = () => reject(new Error("refused"));
                })"""
            )
            assert agreed == "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
            await people.book_and_accept()
            await people.customer.open_chat()
            await people.customer.write("The back door, please. " * 40)
            await expect(people.provider["chat-unread"].first).to_have_text("1")
            for to in ("en_route", "arrived", "in_progress", "completed"):
                await people.provider.step(to)
            await people.customer.sees("completed")
            await expect(people.admin["admin-count-completed"]).to_have_text("1")


async def test_a_server_that_is_replaced_drains_its_sockets(first_people: ThreePeople, demo: FixnadoServer) -> None:
    people = first_people
    await asyncio.to_thread(demo.terminate)
    await asyncio.to_thread(demo.start)
    await people.all_live()
    await people.book_and_accept()


async def test_the_slower_of_two_providers_is_told_that_the_job_is_taken(
    people: ThreePeople, shared_demo: FixnadoServer, browser: Browser
) -> None:
    async with ThreePeople.opened(browser, shared_demo.url) as others:
        await others.all_live()
        await others.provider["provider-select-2"].check(force=True)
        await expect(others.provider.root).to_contain_text("Marek Nowak")
        await others.provider.is_("online")
        await expect(people.admin["admin-providers"]).to_contain_text("Nowak RepairsOnline")
        await people.book()
        await expect(others.provider["provider-offer"]).to_be_visible()
        await people.provider["provider-accept"].click()
        await expect(others.provider["offer-note"]).to_contain_text("another provider was faster")
        await expect(others.provider["provider-offer"]).to_have_count(0)
        await expect(others.provider["provider-jobs"].get_by_test_id("booking-card")).to_have_count(0)


async def test_a_declined_offer_goes_and_operations_can_give_the_job_away(people: ThreePeople) -> None:
    customer, provider, admin = people.customer, people.provider, people.admin
    await people.book()
    await provider["provider-decline"].click()
    await expect(provider["offer-note"]).to_have_text("You declined the offer.")
    await admin["admin-feed-item"].first.get_by_role("button").click()
    await admin["admin-assign-provider"].select_option(label="Shah & Sons")
    await admin["admin-assign"].click()
    await customer.sees("assigned")
    await provider.sees("assigned")


async def test_a_customer_cancels_with_a_reason(people: ThreePeople) -> None:
    customer, provider = people.customer, people.provider
    await people.book()
    await expect(provider["provider-offer"]).to_be_visible()
    await customer.booking().get_by_test_id("booking-cancel").click()
    await customer.booking().get_by_test_id("cancel-reason").select_option("Booked by mistake")
    await customer.booking().get_by_test_id("cancel-confirm").click()
    await customer.sees("cancelled")
    await expect(provider["provider-offer"]).to_have_count(0)


async def test_a_provider_that_is_away_gets_no_offer_until_it_is_back(people: ThreePeople) -> None:
    provider = people.provider
    await provider["provider-presence"].uncheck(force=True)
    await expect(provider["provider-status"]).to_have_text("Away")
    await people.book()
    await expect(provider["provider-offer"]).to_have_count(0)
    await provider["provider-presence"].check(force=True)
    await expect(provider["provider-offer"]).to_be_visible(timeout=15_000)


async def test_a_place_outside_the_zone_is_refused_in_words(people: ThreePeople) -> None:
    await people.customer["customer-map"].click(position={"x": 8, "y": 8})
    await expect(people.customer["customer-place"]).to_contain_text("Outside the area")
    await people.customer["customer-book"].click()
    await expect(people.customer["customer-error"]).to_have_text("We do not serve this place yet.")


async def test_the_keyboard_alone_books_and_accepts(people: ThreePeople) -> None:
    await people.customer["customer-map"].focus()
    before = await people.customer["customer-place"].text_content()
    await people.page.keyboard.press("ArrowRight")
    await expect(people.customer["customer-place"]).not_to_have_text(before or "")
    await people.customer["customer-notes"].focus()
    await people.page.keyboard.press("Tab")
    await expect(people.customer["customer-book"]).to_be_focused()
    await people.page.keyboard.press("Enter")
    await people.provider["provider-accept"].focus()
    await people.page.keyboard.press("Enter")
    await people.provider.sees("assigned")


async def test_a_production_server_asks_for_a_sign_in(start_server: StartServer, browser: Browser) -> None:
    with start_server("serve") as server:
        async with ThreePeople.opened(browser, server.url) as people:
            for pane in (people.customer, people.provider, people.admin):
                await expect(pane["login-form"]).to_be_visible()
            customer = people.customer
            await customer["login-email"].fill("nobody@example.test")
            await customer["login-password"].fill("not the password")
            await customer["login-submit"].click()
            await expect(customer["login-error"]).to_contain_text("not right")
            assert people.sockets == []


async def test_another_account_can_be_signed_in_to(people: ThreePeople) -> None:
    admin = people.admin
    await admin["account-switch"].click()
    await admin["login-email"].fill("customer@demo.test")
    await admin["login-password"].fill("demo-Fixnado-2026")
    await admin["login-submit"].click()
    await expect(admin["login-error"]).to_contain_text("not for this pane")
    await admin["login-email"].fill("admin@demo.test")
    await admin["login-password"].fill("demo-Fixnado-2026")
    await admin["login-submit"].click()
    await admin.is_("online")


async def test_tokens_renew_on_the_live_socket(start_server: StartServer, browser: Browser) -> None:
    with start_server(access_token_seconds=10, access_token_leeway_seconds=0) as server:
        async with ThreePeople.opened(browser, server.url) as people:
            await people.all_live()
            frames: list[str] = []
            for socket in people.sockets:
                socket.on("framesent", lambda frame: frames.append(str(frame)))
            # Longer than one token lives, in which every socket has to get a second one.
            await asyncio.sleep(13)
            assert sum("session.refresh" in frame for frame in frames) >= len(people.sockets) == 3
            for pane in (people.customer, people.provider, people.admin):
                await pane.is_("online")
                await expect(pane["conn-reconnects"]).to_have_text("0 reconnects")


async def test_a_phone_shows_one_person_at_a_time(shared_demo: FixnadoServer, browser: Browser) -> None:
    async with ThreePeople.opened(browser, shared_demo.url) as people:
        await people.page.set_viewport_size({"width": 390, "height": 844})
        await expect(people.customer.root).to_be_visible()
        await expect(people.provider.root).to_be_hidden()
        await people.page.get_by_test_id("tab-customer").focus()
        await people.page.keyboard.press("ArrowRight")
        await expect(people.provider.root).to_be_visible()
        await expect(people.customer.root).to_be_hidden()
        width = await people.page.evaluate("document.documentElement.scrollWidth")
        assert width == 390


async def test_the_theme_follows_the_system_and_can_be_chosen(shared_demo: FixnadoServer, browser: Browser) -> None:
    async with ThreePeople.opened(browser, shared_demo.url, color_scheme="dark") as people:
        lightness = "getComputedStyle(document.body).backgroundColor"
        dark = await people.page.evaluate(lightness)
        await people.page.get_by_test_id("theme-toggle").click()
        assert await people.page.evaluate(lightness) != dark
        await people.page.reload()
        assert await people.page.evaluate(lightness) != dark


async def test_a_network_without_sockets_is_live_over_http_and_says_so(
    shared_demo: FixnadoServer, browser: Browser
) -> None:
    async with blocking_proxy(shared_demo.port) as proxy, ThreePeople.opened(browser, proxy.url) as people:
        await people.all_live()
        for pane in (people.customer, people.provider, people.admin):
            await expect(pane["conn-state"]).to_have_attribute("data-transport", "sse")
            await expect(pane["conn-state"]).to_have_text("Live over HTTP")
        await people.book_and_accept()
