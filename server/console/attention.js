import { h, icon, setText, show } from './dom.js';
import { pressing } from './risk.js';
import { clock, code, plural, PRESENCE, problem } from './words.js';

/** A driver that got this far from where it stood goes on. */
const MOVED_METRES = 150;
/** A booking this new is about to be offered: no cause for alarm. */
const FRESH_MS = 3000;
const METRES_PER_DEGREE = 111_320;

/**
 * What needs a person now: bookings that nobody is found for, each to be given to somebody, and drivers that stand still,
 * whose jobs can be given to somebody else.
 *
 * @param {object} options
 * @param {import('/client/index.js').RealtimeClient} options.client
 * @param {(id: string) => string} options.serviceName
 * @param {() => any[]} options.providers
 * @param {(bookingId: string) => void} options.open
 * @param {(booking: any) => void} options.onbooking
 */
export function createAttention({ client, serviceName, providers, open, onbooking }) {
  /** Bookings without an offer that lives, from the snapshot and from what was heard since. @type {Map<string, Set<string>>} */
  const offers = new Map();
  /** Dispatch gave up on them. @type {Set<string>} */
  const called = new Set();
  /** @type {Map<string, any>} */
  const stalls = new Map();
  /** @type {Map<string, ReturnType<typeof rescueRow> | ReturnType<typeof stallRow>>} */
  const rows = new Map();

  const count = h('span', { class: 'badge', 'data-testid': 'attention-count' });
  const list = h('ul', { class: 'attention-list', 'data-testid': 'attention' });
  const element = h(
    'section',
    { class: 'card attention', 'aria-label': 'Needs you', hidden: true },
    h('div', { class: 'section-head' }, icon('warning'), h('h3', {}, 'Needs you'), count),
    list,
  );

  const asked = (id) => offers.get(id)?.size ?? 0;

  /** @param {any[]} bookings All there are. */
  function render(bookings) {
    const settled = client.serverNow() - FRESH_MS;
    const waiting = bookings.filter(
      ({ id, status, updated_at: at }) => status === 'awaiting_assignment' && (called.has(id) || (asked(id) === 0 && Date.parse(at) < settled)),
    );
    const standing = bookings.filter(({ id, status }) => stalls.has(id) && status === 'en_route');
    const urgency = (booking) => (called.has(booking.id) ? 0 : 1e15) + (pressing(booking, client.serverNow())?.at ?? 1e14);
    waiting.sort((one, other) => urgency(one) - urgency(other));
    const wanted = [...waiting.map((booking) => ({ key: `rescue ${booking.id}`, booking, make: rescueRow })), ...standing.map((booking) => ({ key: `stall ${booking.id}`, booking, make: stallRow }))];
    const keys = new Set(wanted.map(({ key }) => key));
    for (const [key, row] of rows) {
      if (keys.has(key)) continue;
      row.element.remove();
      rows.delete(key);
    }
    wanted.forEach(({ key, booking, make }, index) => {
      let row = rows.get(key);
      if (!row) rows.set(key, (row = make(booking)));
      row.render(booking);
      if (list.children[index] !== row.element) list.insertBefore(row.element, list.children[index] ?? null);
    });
    setText(count, String(wanted.length));
    count.title = plural(wanted.length, 'booking');
    show(element, wanted.length > 0);
  }

  /** What both kinds of row share: a name that opens the booking, why it is here, and where refusals are said. */
  function frame(booking, testid, tone, ...controls) {
    const why = h('span', { class: 'muted' });
    const due = h('span', { class: 'due', hidden: true }, icon('clock'), h('span', {}));
    const error = h('p', { class: 'error', role: 'alert', hidden: true });
    const name = h('button', { type: 'button', class: 'link', onclick: () => open(booking.id) }, h('strong', {}), ` #${code(booking.id)}`);
    const element = h('li', { 'data-testid': testid, 'data-booking-id': booking.id, 'data-tone': tone }, h('div', { class: 'attention-what' }, name, why, due), h('div', { class: 'confirm' }, ...controls), error);

    async function attempt(method, params, button) {
      show(error, false);
      button.disabled = true;
      try {
        onbooking((await client.call(method, params)).booking);
      } catch (failure) {
        setText(error, problem(failure));
        show(error, true);
      } finally {
        button.disabled = false;
      }
    }

    function renderFrame(now, reason) {
      setText(name.firstElementChild, serviceName(now.service_id));
      setText(why, reason);
      const clock = pressing(now, client.serverNow());
      show(due, clock !== null);
      if (!clock) return;
      due.dataset.tone = clock.tone;
      if (due.dataset.icon !== clock.icon) {
        due.dataset.icon = clock.icon;
        due.firstElementChild?.replaceWith(icon(clock.icon));
      }
      setText(due.lastElementChild, clock.text);
    }
    return { element, attempt, renderFrame };
  }

  function rescueRow(booking) {
    const choice = h('select', { 'aria-label': 'Provider', 'data-testid': 'rescue-provider' });
    const give = h('button', { type: 'button', class: 'button small', 'data-testid': 'rescue-assign', onclick: () => row.attempt('booking.assign', { booking_id: booking.id, provider_id: choice.value }, give) }, 'Assign');
    const row = frame(booking, 'rescue', 'wait', choice, give);

    function renderChoice() {
      // Who is free comes first; a list that is being read is left alone.
      const rank = { online: 0, away: 1, busy: 2, offline: 3 };
      const sorted = [...providers()].sort((one, other) => (rank[one.status] ?? 4) - (rank[other.status] ?? 4) || one.name.localeCompare(other.name));
      const shape = sorted.map(({ id, status }) => `${id} ${status}`).join();
      if (choice.dataset.shape === shape || document.activeElement === choice) return;
      const kept = choice.value;
      choice.dataset.shape = shape;
      choice.replaceChildren(...sorted.map(({ id, name, status }) => h('option', { value: id }, `${name} · ${(PRESENCE[status] ?? PRESENCE.offline).label}`)));
      if (kept && sorted.some(({ id }) => id === kept)) choice.value = kept;
    }

    return {
      element: row.element,
      render(now) {
        row.element.dataset.tone = called.has(now.id) ? 'bad' : 'wait';
        row.renderFrame(now, called.has(now.id) ? 'Dispatch found nobody' : 'Nobody is asked right now');
        renderChoice();
      },
    };
  }

  function stallRow(booking) {
    const again = h('button', { type: 'button', class: 'button small', 'data-testid': 'stall-reassign', onclick: reassign }, 'Find somebody else');
    const row = frame(booking, 'stall', 'move', again);
    let now = booking;

    function reassign() {
      const { method, params } = stalls.get(booking.id).reassign;
      // The booking may have moved on since; the step is meant for what is seen now.
      void row.attempt(method, { ...params, version: now.version }, again);
    }

    return {
      element: row.element,
      render(newer) {
        now = newer;
        const { stalled_since: since, provider_id: id } = stalls.get(booking.id);
        const name = providers().find((provider) => provider.id === id)?.name ?? 'The driver';
        row.renderFrame(now, `${name} stands still since ${clock(since)}`);
      },
    };
  }

  return {
    element,
    render,
    /** Begins anew, from the snapshot of the feed. @param {{ offers: any[], rescues: string[], stalls: any[] }} state */
    start(state) {
      offers.clear();
      called.clear();
      stalls.clear();
      for (const offer of state.offers) note(offer.booking_id, offer.id, true);
      for (const id of state.rescues) called.add(id);
      for (const stall of state.stalls) stalls.set(stall.booking_id, stall);
    },
    /** @param {{ type: string, data: any }} event */
    heard({ type, data }) {
      if (type === 'offer.made') note(data.booking_id, data.offer_id ?? data.offer?.id, true);
      else if (type.startsWith('offer.')) note(data.booking_id, data.offer_id, false);
      else if (type === 'booking.rescue_needed') called.add(data.booking_id);
      else if (type === 'booking.stalled') stalls.set(data.booking_id, data);
      else if (type.startsWith('booking.')) {
        if (data.booking?.status !== 'awaiting_assignment' || type === 'booking.reassignment_started') called.delete(data.booking_id);
        if (data.booking?.status !== 'en_route') stalls.delete(data.booking_id);
      }
    },
    /** A driver that stood still may have got on. @param {string} bookingId @param {{ lat: number, lon: number }} to */
    moved(bookingId, to) {
      const from = stalls.get(bookingId)?.location;
      if (!from) return false;
      const north = (to.lat - from.lat) * METRES_PER_DEGREE;
      const east = (to.lon - from.lon) * METRES_PER_DEGREE * Math.cos((to.lat * Math.PI) / 180);
      return Math.hypot(north, east) >= MOVED_METRES && stalls.delete(bookingId);
    },
  };

  function note(bookingId, offerId, lives) {
    const live = offers.get(bookingId) ?? new Set();
    if (lives) live.add(offerId);
    else live.delete(offerId);
    if (live.size > 0) offers.set(bookingId, live);
    else offers.delete(bookingId);
  }
}
