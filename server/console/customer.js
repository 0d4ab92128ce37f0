import { EntityStore } from '/client/index.js';
import { createBookingCard } from './booking-card.js';
import { bookingForm } from './booking-form.js';
import { h, once, setText, show } from './dom.js';
import { createFold } from './fold.js';
import { listBookings } from './listing.js';
import { createSeriesList } from './series-list.js';
import { isActive, isLater, nameOf, problem } from './words.js';

/**
 * What a customer works with: a form to book, and the bookings moving along.
 *
 * @param {import('./pane.js').Person} person
 * @returns {import('./pane.js').View}
 */
export function customerView(person) {
  const { client, user } = person;
  /** @type {EntityStore<any>} */
  const bookings = new EntityStore();
  /** @type {Map<string, ReturnType<typeof createBookingCard>>} */
  const cards = new Map();
  /** @type {any[]} */
  let services = [];
  /** @type {any[]} */
  let zones = [];

  const serviceName = (id) => nameOf(services, id);
  const repeats = createSeriesList({ client, serviceName });
  const form = bookingForm({ client, onbooked: (booking) => bookings.put(booking), onseries: repeats.put });
  const list = h('div', { class: 'stack', 'data-testid': 'customer-bookings' });
  const empty = h('p', { class: 'empty' }, 'No bookings yet. Choose a service above; professionals nearby are asked at once.');
  /** @param {string} title @param {string} testid @param {(booking: any) => boolean} holds */
  const fold = (title, testid, holds) =>
    createFold({ title, testid, holds, cardless: () => bookings.values().filter(({ id }) => !cards.has(id)), look: take });
  const later = fold('Later', 'customer-later', (booking) => isActive(booking) && isLater(booking, client.serverNow()));
  const past = fold('Earlier bookings', 'customer-past', (booking) => !isActive(booking));
  const folds = [later, past];
  const error = h('p', { class: 'error', role: 'alert', hidden: true });
  const announcer = h('p', { class: 'visually-hidden', role: 'status' });
  const element = h(
    'div',
    { class: 'stack' },
    form.element,
    h('section', { class: 'stack', 'aria-label': 'Your bookings' }, h('h3', { class: 'section-title' }, 'Your bookings'), error, empty, list, repeats.element, later.element, past.element),
    announcer,
  );

  bookings.on('change', (booking) => {
    if (!cards.has(booking.id) && folds.some((each) => each.hides(booking))) renderEmpty();
    else take(booking);
  });

  function take(booking) {
    let card = cards.get(booking.id);
    const fresh = !card;
    if (card) card.update(booking);
    else {
      card = createBookingCard({ booking, person, serviceName, zones, onbooking: (newer) => bookings.put(newer) });
      cards.set(booking.id, card);
    }
    arrange(card, fresh);
  }

  /** Newest first, and what is later by its time. One that ends under the eyes of the person stays where it is. */
  function arrange(card, fresh) {
    if (fresh) {
      const home = folds.find((each) => each.holds(card.booking))?.list ?? list;
      const isBehind = (other) => (home === later.list ? other.start > card.booking.start : other.id < card.booking.id);
      const next = [...home.children].find((other) => isBehind(bookings.get(/** @type {any} */ (other).dataset.bookingId) ?? card.booking));
      home.insertBefore(card.element, next ?? null);
    }
    renderEmpty();
  }

  const renderEmpty = once(() => {
    const ahead = later.render();
    show(empty, list.children.length === 0 && ahead === 0);
    past.render();
    form.fold(bookings.values().some(isActive));
  });

  const channel = client.channel(`user:${user.id}`);
  channel.on('*', (event) => {
    repeats.heard(event);
    const { booking } = event.data;
    if (!booking) return;
    bookings.put(booking);
    const card = cards.get(booking.id);
    card?.explain(event.data.reason);
    if (event.recovered) card?.markCaughtUp();
    setText(announcer, `${serviceName(booking.service_id)}: ${booking.status.replaceAll('_', ' ')}`);
  });
  // The channel has no snapshot of its own, so a start without a place asks for the list.
  channel.on('snapshot', async () => {
    try {
      const [serviceList, zoneList, page] = await Promise.all([
        client.call('service.list'),
        client.call('zone.list'),
        listBookings(client),
        repeats.load(),
      ]);
      services = serviceList.services;
      zones = zoneList.zones;
      form.offer(services, zones);
      for (const booking of page.bookings) bookings.put(booking);
      show(error, false);
    } catch (failure) {
      setText(error, problem(failure));
      show(error, true);
    }
  });

  return {
    element,
    dispose() {
      form.dispose();
      for (const card of cards.values()) card.dispose();
    },
  };
}
