import { h, icon, setText, show } from './dom.js';
import { pressing } from './risk.js';
import { code, dayAndTime, statusOf } from './words.js';

/** Where bookings stand, as lanes. */
export const LANES = [
  { id: 'finding', label: 'Finding', tone: 'wait', statuses: ['pending', 'awaiting_assignment'] },
  { id: 'assigned', label: 'Assigned', tone: 'set', statuses: ['assigned', 'scheduled'] },
  { id: 'moving', label: 'On the way', tone: 'move', statuses: ['en_route', 'arrived'] },
  { id: 'working', label: 'Working', tone: 'work', statuses: ['in_progress', 'paused'] },
  { id: 'completed', label: 'Done', tone: 'done', statuses: ['completed'] },
  { id: 'trouble', label: 'Stopped', tone: 'bad', statuses: ['unfulfilled', 'cancelled', 'no_show', 'disputed'] },
];
/** More of a lane are counted and not shown. */
const SHOWN = 30;

/**
 * Bookings by state: lanes side by side where there is room, otherwise counters of which one opens its lane.
 *
 * @param {object} options
 * @param {(id: string) => string} options.serviceName
 * @param {(id: string) => string | undefined} options.providerName
 * @param {(bookingId: string) => void} options.open
 * @param {() => number} options.now The server's time in milliseconds.
 */
export function createBoard({ serviceName, providerName, open, now }) {
  /** @type {string | null} */
  let chosen = null;
  const lanes = LANES.map(({ id, label, tone, statuses }) => {
    const count = h('strong', { 'data-testid': `admin-count-${id}` }, '0');
    const head = h(
      'button',
      { type: 'button', class: 'lane-head', 'aria-expanded': 'false', 'aria-controls': `lane-${id}`, 'data-testid': `lane-${id}`, onclick: () => choose(chosen === id ? null : id) },
      count,
      h('span', {}, label),
    );
    const list = h('ol', { class: 'lane-list', id: `lane-${id}`, 'aria-label': label });
    const more = h('p', { class: 'hint', hidden: true });
    const element = h('section', { class: 'lane', 'data-tone': tone, 'aria-label': label }, head, h('div', { class: 'lane-body' }, list, more));
    /** @type {Map<string, HTMLElement>} */
    const cards = new Map();
    return { id, statuses, count, head, list, more, element, cards };
  });
  const element = h('div', { class: 'board', 'data-testid': 'admin-board' }, ...lanes.map((lane) => lane.element));

  function choose(id) {
    chosen = id;
    for (const lane of lanes) {
      lane.element.classList.toggle('open', lane.id === id);
      lane.head.setAttribute('aria-expanded', String(lane.id === id));
    }
  }

  function cardOf(lane, id) {
    let card = lane.cards.get(id);
    if (!card) {
      const button = h(
        'button',
        { type: 'button', class: 'lane-card', onclick: () => open(id) },
        h('span', { class: 'lane-title' }, h('strong', {}), h('span', { class: 'code' }, `#${code(id)}`)),
        h('span', { class: 'muted lane-who' }),
        h('span', { class: 'due', hidden: true }, icon('clock'), h('span', {})),
      );
      card = h('li', { 'data-testid': 'lane-card', 'data-booking-id': id }, button);
      lane.cards.set(id, card);
    }
    return card;
  }

  function renderCard(card, booking) {
    const [title, who] = card.firstElementChild.children;
    const { label, tone } = statusOf(booking.status);
    card.dataset.tone = tone;
    setText(title.firstElementChild, serviceName(booking.service_id));
    const by = booking.provider_id && providerName(booking.provider_id);
    setText(who, [by, booking.start ? dayAndTime(booking.start) : label].filter(Boolean).join(' · '));
    renderDue(card, booking);
  }

  function renderDue(card, booking) {
    const due = card.firstElementChild.children[2];
    const clock = pressing(booking, now());
    show(due, clock !== null);
    if (!clock) return;
    due.dataset.tone = clock.tone;
    if (due.dataset.icon !== clock.icon) {
      due.dataset.icon = clock.icon;
      due.firstElementChild.replaceWith(icon(clock.icon));
    }
    setText(due.lastElementChild, clock.text);
  }

  return {
    element,
    /** @param {any[]} bookings Newest first within each lane, those with a deadline by that. */
    render(bookings) {
      const at = now();
      for (const lane of lanes) {
        const all = bookings.filter(({ status }) => lane.statuses.includes(status));
        setText(lane.count, String(all.length));
        const urgency = (booking) => pressing(booking, at)?.at ?? Infinity;
        all.sort((one, other) => urgency(one) - urgency(other) || other.id.localeCompare(one.id));
        const shown = all.slice(0, SHOWN);
        const ids = new Set(shown.map(({ id }) => id));
        for (const [id, card] of lane.cards) {
          if (ids.has(id)) continue;
          card.remove();
          lane.cards.delete(id);
        }
        shown.forEach((booking, index) => {
          const card = cardOf(lane, booking.id);
          renderCard(card, booking);
          // Only what is elsewhere is moved, so that focus stays.
          if (lane.list.children[index] !== card) lane.list.insertBefore(card, lane.list.children[index] ?? null);
        });
        const rest = all.length - shown.length;
        setText(lane.more, rest > 0 ? `and ${rest} more` : '');
        show(lane.more, rest > 0);
      }
    },
    /** Time goes by. @param {(id: string) => any} bookingOf */
    tick(bookingOf) {
      for (const lane of lanes) {
        for (const [id, card] of lane.cards) {
          const booking = bookingOf(id);
          if (booking) renderDue(card, booking);
        }
      }
    },
  };
}
