import { h, setText, show } from './dom.js';
import { clockSeconds, code, eventLabel, reasonText, statusOf } from './words.js';

/** Older entries go: a feed is for now, the log is for ever. */
const KEPT = 200;

/** @type {Record<string, string>} */
const OFFER_TONES = {
  'offer.made': 'wait',
  'offer.accepted': 'done',
  'offer.declined': 'off',
  'offer.expired': 'off',
  'offer.withdrawn': 'off',
};

/**
 * Every event that operations hear, newest on top.
 *
 * @param {object} options
 * @param {(id: string) => string} options.providerName
 * @param {(id: string) => string} options.serviceName
 * @param {(bookingId: string) => void} options.open
 */
export function createFeed({ providerName, serviceName, open }) {
  const empty = h('p', { class: 'empty' }, 'Watching. Every booking and offer event appears here as it happens.');
  const list = h('ol', { class: 'feed', 'data-testid': 'admin-feed', role: 'log', 'aria-live': 'polite', 'aria-label': 'Events' });
  const count = h('span', { class: 'muted', 'data-testid': 'admin-feed-count' });
  const filter = h(
    'select',
    { 'aria-label': 'Which events', 'data-testid': 'admin-feed-filter', onchange: () => (list.dataset.only = filter.value) },
    h('option', { value: '' }, 'All events'),
    h('option', { value: 'booking' }, 'Bookings'),
    h('option', { value: 'offer' }, 'Offers'),
  );
  const element = h(
    'section',
    { class: 'stack', 'aria-label': 'Live feed' },
    h('div', { class: 'section-head' }, h('h3', { class: 'section-title' }, 'Live feed'), count, filter),
    empty,
    list,
  );
  let heard = 0;

  function details({ type, data }) {
    const provider = data.provider_id && providerName(data.provider_id);
    switch (type) {
      case 'booking.created':
        return serviceName(data.booking.service_id);
      case 'booking.assigned':
        return providerName(data.booking.provider_id);
      case 'offer.withdrawn':
      case 'offer.declined':
        return [provider, reasonText(data.reason)].filter(Boolean).join(' · ');
      default:
        return type.startsWith('offer.') ? provider : reasonText(data.reason);
    }
  }

  function entry(event) {
    const { type, data } = event;
    const tone = OFFER_TONES[type] ?? (data.booking ? statusOf(data.booking.status).tone : 'off');
    const label = type === 'feed.restarted' ? 'Too much was missed: everything was loaded anew' : eventLabel(type);
    const content = [
      h('span', { class: 'dot', 'data-tone': tone, 'aria-hidden': 'true' }),
      h('span', { class: 'feed-what' }, h('strong', {}, label), ' ', h('span', { class: 'muted' }, details(event) ?? '')),
      event.recovered && h('span', { class: 'tag', title: 'This happened while the network was cut' }, 'missed'),
      data.booking_id && h('span', { class: 'code' }, `#${code(data.booking_id)}`),
      h('time', { datetime: event.time }, clockSeconds(event.time)),
    ];
    return h(
      'li',
      { 'data-testid': 'admin-feed-item', 'data-type': type, 'data-subject': type.split('.')[0], 'data-offset': event.offset, 'data-recovered': event.recovered },
      data.booking_id
        ? h('button', { type: 'button', class: 'feed-row', onclick: () => open(data.booking_id) }, ...content)
        : h('div', { class: 'feed-row' }, ...content),
    );
  }

  return {
    element,
    /** @param {any} event */
    add(event) {
      heard += 1;
      list.prepend(entry(event));
      while (list.children.length > KEPT) list.lastElementChild?.remove();
      setText(count, `${heard} event${heard === 1 ? '' : 's'}`);
      show(empty, false);
    },
    dispose() {
      list.replaceChildren();
    },
  };
}
