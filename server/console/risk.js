import { h, icon, setText, show } from './dom.js';
import { countdown, HOUR } from './moments.js';
import { code } from './words.js';

/** More than these are too many to act on at a glance. */
const SHOWN = 8;
/** A clock matters while its booking stands in one of these: a late arrival is history once the provider is there. */
const CLOCKS = {
  response: { label: 'Somebody takes it', statuses: ['pending', 'awaiting_assignment'] },
  arrival: { label: 'Arrival', statuses: ['assigned', 'scheduled', 'en_route', 'awaiting_assignment'] },
  completion: { label: 'Completion', statuses: ['in_progress'] },
};
/** What is due after this needs nobody yet. */
const AHEAD_MS = 24 * HOUR;
const LOOKS = {
  running: { tone: 'off', icon: 'clock' },
  warned: { tone: 'wait', icon: 'warning' },
  breached: { tone: 'bad', icon: 'late' },
};

/**
 * The clock of a booking that has to be watched: what was missed already, else what is due first.
 *
 * @param {any} booking
 * @param {number} now The server's time in milliseconds.
 * @returns {{ label: string, status: string, at: number, tone: string, icon: string, text: string } | null}
 */
export function pressing(booking, now) {
  let found = null;
  for (const [name, { label, statuses }] of Object.entries(CLOCKS)) {
    const clock = booking.sla?.[name];
    if (!clock?.due_at || !LOOKS[clock.status] || !statuses.includes(booking.status)) continue;
    const at = Date.parse(clock.due_at);
    if (!found || at < found.at) found = { label, status: clock.status, at };
  }
  if (!found || found.at > now + AHEAD_MS) return null;
  const late = found.status === 'breached';
  const left = found.at - now;
  const text = late ? `late by ${countdown(-left)}` : left > 0 ? `${countdown(left)} left` : 'due now';
  return { ...found, ...LOOKS[found.status], text };
}

/**
 * Deadlines, soonest first, each with the time that is left; what was missed and still waits is on top.
 *
 * @param {object} options
 * @param {() => number} options.now The server's time in milliseconds.
 * @param {() => any[]} options.bookings With their newest clocks.
 * @param {(bookingId: string) => void} options.open
 */
export function createRisks({ now, bookings, open }) {
  const list = h('ol', { class: 'risks', 'data-testid': 'admin-risks', 'aria-label': 'Deadlines' });
  const count = h('span', { class: 'muted' });
  const element = h('section', { class: 'stack tight', hidden: true }, h('div', { class: 'section-head' }, h('h3', { class: 'section-title' }, 'Due next'), count), list);

  function render() {
    const at = now();
    const due = bookings()
      .map((booking) => ({ id: booking.id, ...pressing(booking, at) }))
      .filter((clock) => clock.at !== undefined)
      .sort((one, other) => one.at - other.at);
    const shown = due.slice(0, SHOWN);
    show(element, due.length > 0);
    const late = due.filter(({ status }) => status === 'breached').length;
    const warned = due.filter(({ status }) => status === 'warned').length;
    setText(count, [late && `${late} late`, warned && `${warned} near`, `${due.length} in all`].filter(Boolean).join(' · '));
    while (list.children.length > shown.length) list.lastElementChild?.remove();
    while (list.children.length < shown.length) list.append(row());
    shown.forEach((clock, index) => {
      const item = /** @type {HTMLElement} */ (list.children[index]);
      const [mark, what, left] = item.children[0].children;
      item.dataset.id = clock.id;
      item.dataset.tone = clock.tone;
      item.dataset.status = clock.status;
      if (item.dataset.icon !== clock.icon) {
        item.dataset.icon = clock.icon;
        mark.replaceWith(icon(clock.icon));
      }
      setText(what, `${clock.label} #${code(clock.id)}`);
      setText(left, clock.text);
    });
  }

  /** A row names its booking when it is pressed: what it shows changes under the pointer. */
  function row() {
    const button = h('button', { type: 'button', class: 'feed-row', onclick: pressed }, icon('clock'), h('span', {}), h('strong', {}));
    return h('li', {}, button);
  }

  function pressed(event) {
    open(event.currentTarget.parentElement.dataset.id);
  }

  return { element, render };
}
