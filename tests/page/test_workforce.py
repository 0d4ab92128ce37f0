"""A provider's week, a customer's free times, and what operations work with."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio
from playwright.async_api import Browser, FilePayload, Locator, expect

from tests.acceptance.client import JSON, PROVIDERS, Rest, new_key
from tests.page.conftest import FixnadoServer
from tests.page.three_people import Pane, ThreePeople

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="session")]

HOUR = timedelta(hours=1)
ALL_WEEK: JSON = {
    "rrule": "FREQ=WEEKLY;BYDAY=MO,TU,WE,TH,FR,SA,SU",
    "tzid": "UTC",
    "dtstart": "2026-01-05T00:00",
    "duration_minutes": 24 * 60,
}


class Planner:
    """The first provider's calendar, by REST."""

    def __init__(self, rest: Rest, token: str, provider_id: str) -> None:
        self._rest, self._token, self._provider_id = rest, token, provider_id

    @classmethod
    async def of(cls, rest: Rest) -> Planner:
        token = str((await rest.login(PROVIDERS[0]))["access_token"])
        organisations = (await rest.command("organisation.list", {}, token)).body["organisations"]
        return cls(rest, token, organisations[0]["provider_id"])

    async def call(self, method: str, **params: object) -> JSON:
        answer = await self._rest.command(method, params, self._token)
        assert answer.status == 200, answer
        return answer.body

    async def set_rules(self, *rules: JSON) -> None:
        version = (await self.call("availability.get", provider_id=self._provider_id))["calendar"]["version"]
        params = {"provider_id": self._provider_id, "rules": list(rules), "version": version, "key": new_key()}
        await self.call("availability.set_rules", **params)


@pytest_asyncio.fixture(loop_scope="session")
async def planner(shared_demo: FixnadoServer) -> AsyncIterator[Planner]:
    """Changes the calendar of a provider that is without one again afterwards."""
    async with Rest(shared_demo.url.rstrip("/")) as rest:
        made = await Planner.of(rest)
        yield made
        await made.set_rules()


async def look_for_times(customer: Pane) -> Locator:
    """Chooses a time tomorrow; the free times."""
    await customer["customer-kind-scheduled"].check(force=True)
    await expect(customer["slot"].first).to_be_visible()
    await customer["slot-day-1"].check(force=True)
    return customer["slot"]


async def test_a_provider_sets_its_hours_and_closes_a_time_with_the_mouse_and_with_keys(
    people: ThreePeople, planner: Planner
) -> None:
    page, provider = people.page, people.provider
    await provider["provider-week-part"].check(force=True)
    await provider["week-set"].click()
    await page.get_by_test_id("hours-buffer").select_option("30")
    await page.get_by_test_id("hours-save").click()
    await provider["week-on"].click()
    await expect(provider["week-open"]).to_have_count(5)
    await expect(provider["week-summary"]).to_contain_text("30 min of travel")

    await provider["week-days"].focus()
    for press in ("ArrowDown", "ArrowRight", "Shift+ArrowDown", "Enter"):
        await page.keyboard.press(press)
    await page.get_by_test_id("exception-note").fill("Dentist")
    await page.get_by_test_id("exception-save").click()
    closed = provider["week-closed"]
    await expect(closed).to_have_attribute("aria-label", re.compile(r"^Dentist, Tuesday .*, 10:00–11:00$"))
    await expect(provider["week-open"]).to_have_count(6)
    await closed.click()
    await page.get_by_test_id("exception-shown-save").click()
    await expect(closed).to_have_count(0)

    await provider["week-days"].scroll_into_view_if_needed()
    box = await provider["week-days"].bounding_box()
    assert box is not None
    sunday, hour = box["x"] + box["width"] * 6.5 / 7, box["height"] / 13
    await page.mouse.move(sunday, box["y"] + 1.2 * hour)
    await page.mouse.down()
    await page.mouse.move(sunday, box["y"] + 2.8 * hour)
    await page.mouse.up()
    await page.get_by_test_id("exception-open").check(force=True)
    await page.get_by_test_id("exception-save").click()
    extra = provider["week-extra"]
    await expect(extra).to_have_attribute("aria-label", re.compile(r"^Extra, Sunday .*, 08:00–10:00$"))
    await extra.click()
    await page.get_by_test_id("exception-shown-save").click()
    await expect(extra).to_have_count(0)


def calendar_file(name: str, text: str) -> FilePayload:
    """What a person would choose on their disk."""
    return {"name": name, "mimeType": "text/calendar", "buffer": text.encode()}


async def test_a_provider_brings_busy_times_along_from_a_file_and_takes_them_out_again(people: ThreePeople) -> None:
    provider = people.provider
    await provider["provider-week-part"].check(force=True)
    sources = provider["calendar-sources"]
    await sources.locator("summary").click()
    await provider["source-add"].click()
    await expect(provider["source-error"]).to_contain_text("Paste the address")
    await provider["source-kind-file"].check(force=True)
    await provider["source-file"].set_input_files(calendar_file("Family.ics", "a shopping list"))
    await provider["source-add"].click()
    await expect(provider["source-error"]).to_contain_text("cannot be read as a calendar")
    await provider["source-file"].set_input_files(calendar_file("Family.ics", "x" * 60_001))
    await provider["source-add"].click()
    await expect(provider["source-error"]).to_contain_text("larger than 60 kB")

    now = datetime.now(UTC)
    around = [f"{edge}:{now + hour:%Y%m%dT%H%M%SZ}" for edge, hour in (("DTSTART", -HOUR), ("DTEND", HOUR))]
    event = ["BEGIN:VEVENT", "UID:1", *around, "END:VEVENT"]
    text = "\r\n".join(["BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:-//T//EN", *event, "END:VCALENDAR", ""])
    await provider["source-file"].set_input_files(calendar_file("Family.ics", text))
    await expect(provider["source-name"]).to_have_value("Family")
    await provider["source-add"].click()
    await expect(provider["source-row"]).to_contain_text("File · 1 busy time · read today")
    await expect(sources.locator("summary")).to_contain_text("(1)")
    await expect(provider["week-busy"].first).to_have_attribute("aria-label", re.compile("^Busy elsewhere"))

    await provider["source-remove"].click()
    await provider["source-remove-sure"].click()
    await expect(provider["source-row"]).to_have_count(0)
    await expect(provider["week-busy"]).to_have_count(0)


async def test_a_time_that_somebody_holds_greys_out_and_is_booked_with_its_provider_at_once(
    people: ThreePeople, planner: Planner, shared_demo: FixnadoServer, browser: Browser
) -> None:
    await planner.set_rules(ALL_WEEK)
    async with ThreePeople.opened(browser, shared_demo.url) as others:
        await others.all_live()
        customer, rival = people.customer, others.customer
        watched, wanted = (await look_for_times(customer)).nth(20), (await look_for_times(rival)).nth(20)
        await expect(watched).to_have_attribute("data-free", "true")
        await wanted.click()
        await expect(rival["hold-countdown"]).to_have_text(re.compile(r"^(5:00|4:5\d) left$"))
        await expect(watched).to_be_disabled()
        await expect(customer["slots-said"]).to_contain_text("Just taken")
        await people.provider["provider-week-part"].check(force=True)
        await expect(people.provider["week-holds"]).to_contain_text("a customer decides")

        await rival["hold-release"].click()
        await expect(watched).to_be_enabled()
        await wanted.click()
        await rival["customer-repeat"].check()
        await expect(rival["customer-repeat-note"]).to_contain_text("The same provider every week")
        await expect(rival["customer-book"]).to_contain_text("Book ")
        await rival["customer-book"].click()
        await rival.sees("scheduled")
        await people.provider["provider-jobs-part"].check(force=True)
        await people.provider.sees("scheduled")
        await expect(people.provider["week-holds"]).to_have_text("")

        # The first at once, the same a week later and so on in the background; and all of it called off again.
        await expect(customer["customer-later"]).to_contain_text(re.compile(r"^Later \([789]\)"), timeout=10_000)
        await rival["series-stop"].click()
        await rival["series-stop-all"].click()
        await expect(rival["series-row"]).to_have_count(0)
        await expect(customer["series-row"]).to_have_count(0)


async def test_a_job_that_nobody_takes_waits_for_operations_to_give_it_away(people: ThreePeople) -> None:
    await people.book()
    await people.provider["provider-decline"].click()
    rescue = people.admin["rescue"]
    await expect(rescue).to_contain_text("Nobody is asked right now")
    await expect(rescue).to_contain_text(re.compile(r"4:\d\d left"))
    await rescue.get_by_test_id("rescue-provider").select_option(label="Shah & Sons · Online")
    await rescue.get_by_test_id("rescue-assign").click()
    await expect(rescue).to_have_count(0)
    await people.provider.sees("assigned")
    await people.admin["lane-assigned"].click()
    given = people.admin.root.locator('[data-testid="lane-card"][data-tone="set"]')
    await expect(given).to_contain_text("Shah & Sons")
    await expect(given).to_be_visible()


async def test_scheduled_work_that_operations_assign_appears_with_its_provider(people: ThreePeople) -> None:
    customer, provider, admin = people.customer, people.provider, people.admin
    # One without a calendar, of which nothing else is told than what its organisation hears.
    await provider["provider-select-2"].check(force=True)
    await expect(provider.root).to_contain_text("Marek Nowak")
    await provider.is_("online")
    await customer["customer-kind-scheduled"].check(force=True)
    # Nobody has hours here, so any time can be asked for.
    await expect(customer["customer-start"]).to_be_visible()
    await customer["customer-book"].click()
    await admin["admin-risks"].get_by_role("button").first.click()
    await admin["admin-assign-provider"].select_option(label="Nowak Repairs")
    await admin["admin-assign"].click()
    await customer.sees("scheduled")
    await provider.sees("scheduled")


async def test_operations_see_a_zone_in_figures_and_step_from_a_deadline_to_its_booking(people: ThreePeople) -> None:
    await people.book()
    row = people.admin["zone-row"].filter(has_text="Camden")
    await expect(row.locator('[data-figure="open_demand"]')).to_have_text("1", timeout=10_000)
    await expect(row.locator('[data-figure="providers_online"]')).to_have_text("1")
    due = people.admin["admin-risks"].get_by_role("button")
    await expect(due).to_contain_text("left")
    await due.click()
    await expect(people.admin["admin-detail"].get_by_test_id("booking-card")).to_be_visible()


async def test_a_driver_that_stands_still_is_shown_until_it_moves_and_its_job_offered_anew(people: ThreePeople) -> None:
    """What three minutes of standing bring is fed to the module, as no test should take them."""
    calls = await people.page.evaluate(
        """async () => {
          const { createAttention } = await import('/console/attention.js');
          const calls = [];
          const part = createAttention({
            client: { serverNow: Date.now, call: async (...call) => (calls.push(call), { booking: {} }) },
            serviceName: () => 'Plumbing',
            providers: () => [{ id: 'p', name: 'Shah' }],
            open() {},
            onbooking() {},
          });
          const since = '2026-01-01T00:00:00Z';
          const booking = { id: 'b1', version: 7, status: 'en_route', service_id: 'plumbing', updated_at: since };
          const params = { booking_id: 'b1', to: 'awaiting_assignment', version: 5 };
          part.heard({
            type: 'booking.stalled',
            data: {
              booking_id: 'b1',
              provider_id: 'p',
              stalled_since: since,
              location: { lat: 51.54, lon: -0.14 },
              reassign: { method: 'booking.transition', params },
            },
          });
          part.render([booking]);
          calls.push(part.element.textContent.includes('Shah stands still since'));
          part.element.querySelector('[data-testid=stall-reassign]').click();
          part.moved('b1', { lat: 51.5405, lon: -0.14 });
          part.render([booking]);
          calls.push(part.element.hidden);
          part.moved('b1', { lat: 51.542, lon: -0.14 });
          part.render([booking]);
          calls.push(part.element.hidden);
          // A page that is loaded later learns it from the snapshot.
          const stall = { booking_id: 'b1', provider_id: 'p', stalled_since: since, reassign: { method: 'm', params } };
          part.start({ offers: [], rescues: ['b2'], stalls: [stall] });
          part.render([booking, { ...booking, id: 'b2', status: 'awaiting_assignment' }]);
          calls.push(part.element.textContent.includes('Shah stands still since'));
          calls.push(part.element.textContent.includes('Dispatch found nobody'));
          return calls;
        }"""
    )
    step = {"booking_id": "b1", "to": "awaiting_assignment", "version": 7}
    assert calls == [True, ["booking.transition", step], False, True, True, True]


async def test_one_person_can_have_the_whole_page(people: ThreePeople) -> None:
    provider = people.provider
    await provider["pane-widen"].click()
    await expect(people.customer.root).to_be_hidden()
    await expect(provider["provider-presence"]).to_be_attached()
    await expect(provider["week-grid"]).to_be_visible()
    await provider["pane-widen"].click()
    await expect(people.customer.root).to_be_visible()
    await expect(provider["week-grid"]).to_be_hidden()


async def test_one_live_job_behind_many_others_stays_and_what_is_over_waits_folded(people: ThreePeople) -> None:
    """More bookings than a page of the list holds are fed to the views, as no test should make them."""
    seen = await people.page.evaluate(
        """async () => {
          const { customerView } = await import('/console/customer.js');
          const { providerView } = await import('/console/provider.js');
          const booking = (number) => ({
            id: `b${1000 + number}`, version: 1, status: number ? 'completed' : 'assigned', service_id: 'plumbing',
            provider_id: 'p', price: { amount_minor: 100, currency: 'GBP' }, location: { lat: 51.5, lon: -0.1 },
            created_at: '2026-01-01T00:00:00Z',
          });
          let all = Array.from({ length: 250 }, (_, number) => booking(number)).reverse();
          let pages = 0;
          function list({ limit, cursor = 'c' }) {
            pages += 1;
            const older = all.filter(({ id }) => id < cursor);
            const bookings = older.slice(0, limit);
            return { bookings, ...(older.length > limit && { next_cursor: bookings.at(-1).id }) };
          }
          const ANSWERS = { 'booking.list': list };
          const NOTHING = { services: [], zones: [], series: [], organisations: [], sources: [] };
          async function open(view, name, state) {
            const snapshots = {};
            const channel = (name) => ({
              name,
              on: (type, listener) => ((snapshots[`${name} ${type}`] = listener), () => undefined),
              subscribe: async () => undefined,
              unsubscribe() {},
            });
            let heard;
            const shown = view({
              user: { id: 'u' },
              client: {
                serverNow: Date.now, channel, on: (_, listener) => (heard = listener),
                call: async (method, params) => ANSWERS[method]?.(params) ?? NOTHING,
              },
            });
            if (state) heard(channel(name));
            const snapshot = snapshots[`${name} snapshot`];
            return { shown, again: () => (snapshot({ state }), new Promise((done) => setTimeout(done, 50))) };
          }
          const found = [];
          const provider = { id: 'p', name: 'Shah', status: 'online' };
          for (const [view, name, state] of [
            [customerView, 'user:u', null],
            [providerView, 'provider:p', { provider, offers: [], bookings: [booking(0)] }],
          ]) {
            pages = 0;
            const { shown, again } = await open(view, name, state);
            await again();
            const cards = () => shown.element.querySelectorAll('[data-testid=booking-card]').length;
            const past = shown.element.querySelector('[data-testid$=past]');
            found.push([pages, cards(), past.textContent]);
            past.open = true;
            await new Promise((done) => past.addEventListener('toggle', done, { once: true }));
            found.push(cards());
            if (state) {
              all = all.slice(0, -1);
              state.bookings = [];
              await again();
              found.push(cards(), shown.element.querySelector('[data-testid=offer-note]').textContent);
            }
            shown.dispose();
          }
          return found;
        }"""
    )
    folded = [3, 1]
    assert seen == [
        [*folded, "Earlier bookings (249)"],
        250,
        [*folded, "Earlier jobs (249)"],
        250,
        249,
        "A job was taken off you.",
    ]


async def test_a_hold_that_comes_after_another_service_was_chosen_is_given_back(people: ThreePeople) -> None:
    """An answer that is late at just this moment is fed to the module."""
    calls = await people.page.evaluate(
        """async () => {
          const { createSlotPicker } = await import('/console/slot-picker.js');
          const start = new Date(Date.now() + 3_600_000).toISOString();
          const end = new Date(Date.now() + 7_200_000).toISOString();
          const released = [];
          const settle = () => new Promise((done) => setTimeout(done, 0));
          let hold;
          const picker = createSlotPicker({
            onchange() {},
            client: {
              serverNow: Date.now,
              channel: () => ({ on: () => () => undefined, subscribe: async () => undefined, unsubscribe() {} }),
              async call(method, params) {
                if (method === 'slot.hold') return new Promise((answer) => (hold = answer));
                if (method === 'slot.release') released.push(params.hold_id);
                return { slots: [{ start, end, provider_ids: ['p'] }] };
              },
            },
          });
          picker.about('plumbing', 'camden');
          await settle();
          picker.element.querySelector('[data-testid=slot]').click();
          picker.about('electrical', 'camden');
          hold({ hold: { id: 'h', start, end, expires_at: end, server_time: start } });
          await settle();
          const held = picker.hold;
          picker.dispose();
          return [released, held];
        }"""
    )
    assert calls == [["h"], None]


async def test_a_service_says_how_long_it_takes_where_the_server_does(people: ThreePeople) -> None:
    texts = await people.page.evaluate(
        """async () => {
          const { bookingForm } = await import('/console/booking-form.js');
          const channel = () => ({ on: () => () => undefined, subscribe: async () => undefined, unsubscribe() {} });
          const client = { serverNow: Date.now, channel, call: async () => ({ slots: [] }) };
          const form = bookingForm({ client, onbooked() {}, onseries() {} });
          const price = { amount_minor: 8000, currency: 'GBP' };
          const services = [
            { id: 'a', name: 'Plumbing', price, duration_minutes: 90 },
            { id: 'b', name: 'Garden', price, duration_minutes: 120 },
            { id: 'c', name: 'Locks', price },
          ];
          document.body.append(form.element);
          form.offer(services, []);
          const tiles = [...form.element.querySelectorAll('.tile-price')].map((tile) => tile.textContent);
          form.element.querySelector('[data-testid=customer-kind-scheduled]').click();
          const each = [...form.element.querySelectorAll('.tile input')].map((tile) => {
            tile.click();
            return form.element.querySelector('[data-testid=slots-length]').textContent;
          });
          form.element.remove();
          form.dispose();
          return [tiles, each];
        }"""
    )
    assert texts == [["£80.00 · 1 h 30 min", "£80.00 · 2 h", "£80.00"], ["1 h 30 min each", "2 h each", ""]]
