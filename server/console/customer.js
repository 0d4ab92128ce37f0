import { EntityStore } from '/client/index.js';
import { createBookingCard } from './booking-card.js';
import { h, icon, setText, show } from './dom.js';
import { createMap } from './map.js';
import { isActive, money, nameOf, problem } from './words.js';

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

  const form = bookingForm({ client, onbooked: (booking) => bookings.put(booking) });
  const list = h('div', { class: 'stack', 'data-testid': 'customer-bookings' });
  const empty = h('p', { class: 'empty' }, 'No bookings yet. Choose a service above; professionals nearby are asked at once.');
  const past = h('div', { class: 'stack' });
  const pastTitle = h('summary', {}, 'Earlier bookings');
  const pastBox = h('details', { class: 'more', hidden: true }, pastTitle, past);
  const error = h('p', { class: 'error', role: 'alert', hidden: true });
  const announcer = h('p', { class: 'visually-hidden', role: 'status' });
  const element = h(
    'div',
    { class: 'stack' },
    form.element,
    h('section', { class: 'stack', 'aria-label': 'Your bookings' }, h('h3', { class: 'section-title' }, 'Your bookings'), error, empty, list, pastBox),
    announcer,
  );
  const serviceName = (id) => nameOf(services, id);

  bookings.on('change', (booking) => {
    let card = cards.get(booking.id);
    const fresh = !card;
    if (card) card.update(booking);
    else {
      card = createBookingCard({ booking, person, serviceName, zones, onbooking: (newer) => bookings.put(newer) });
      cards.set(booking.id, card);
    }
    arrange(card, fresh);
  });

  /** Newest first. One that ends under the eyes of the person stays where it is. */
  function arrange(card, fresh) {
    if (fresh) {
      const home = isActive(card.booking) ? list : past;
      const next = [...home.children].find((other) => (/** @type {any} */ (other).dataset.bookingId ?? '') < card.booking.id);
      home.insertBefore(card.element, next ?? null);
    }
    show(empty, list.children.length === 0);
    show(pastBox, past.children.length > 0);
    setText(pastTitle, `Earlier bookings (${past.children.length})`);
    form.fold([...bookings.values()].some(isActive));
  }

  const channel = client.channel(`user:${user.id}`);
  channel.on('*', (event) => {
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
        client.call('booking.list', { limit: 30 }),
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
      for (const card of cards.values()) card.dispose();
    },
  };
}

/**
 * @param {object} options
 * @param {import('/client/index.js').RealtimeClient} options.client
 * @param {(booking: any) => void} options.onbooked
 */
function bookingForm({ client, onbooked }) {
  /** @type {{ lat: number, lon: number } | null} */
  let place = null;
  let folded = false;

  const services = h('div', { class: 'tiles', role: 'radiogroup', 'aria-label': 'Service', onchange: renderButton });
  const when = h(
    'div',
    { class: 'segments', role: 'radiogroup', 'aria-label': 'When', onchange: renderWhen },
    segment('kind', 'on_demand', 'As soon as possible', true),
    segment('kind', 'scheduled', 'At a time', false),
  );
  const start = h('input', { type: 'datetime-local', id: 'customer-start', 'data-testid': 'customer-start' });
  const startField = h('div', { class: 'field', hidden: true }, h('label', { for: 'customer-start' }, 'Start'), start);
  const map = createMap({
    label: 'Place of the job. Click, or move the pin with the arrow keys.',
    width: 360,
    height: 190,
    testid: 'customer-map',
    onpick: (point) => {
      place = point;
      map.setMarkers([{ id: 'pin', kind: 'pin', at: point, tone: 'work', label: 'The job' }]);
      renderPlace();
    },
  });
  const where = h('p', { class: 'hint', role: 'status', 'data-testid': 'customer-place' });
  const notes = h('textarea', {
    id: 'customer-notes',
    rows: 2,
    maxlength: 1000,
    'data-testid': 'customer-notes',
    placeholder: 'What is broken, where to ring, where to park…',
  });
  const error = h('p', { class: 'error', role: 'alert', 'data-testid': 'customer-error', hidden: true });
  const button = h('button', { type: 'submit', class: 'button primary wide', 'data-testid': 'customer-book' }, 'Book');
  const body = h(
    'div',
    { class: 'form', id: 'booking-form-body' },
    services,
    when,
    startField,
    h('div', { class: 'map-frame' }, map.element),
    where,
    h('label', { for: 'customer-notes' }, 'Notes ', h('span', { class: 'optional' }, 'optional')),
    notes,
    error,
    button,
  );
  const unfold = h(
    'button',
    {
      type: 'button',
      class: 'button wide',
      'data-testid': 'customer-new',
      'aria-controls': 'booking-form-body',
      'aria-expanded': 'false',
      hidden: true,
      onclick: () => {
        folded = false;
        renderFold();
        services.querySelector('input')?.focus();
      },
    },
    icon('plus'),
    h('span', {}, 'Book another job'),
  );
  const element = h('form', { class: 'card', 'aria-label': 'New booking', onsubmit: book }, h('h3', { class: 'card-title' }, 'What do you need?'), body);
  const box = h('div', { class: 'stack' }, unfold, element);
  let hadActive = false;
  /** @type {any[]} */
  let known = [];

  const chosen = (name) => /** @type {HTMLInputElement | null} */ (element.querySelector(`input[name="${name}"]:checked`))?.value;

  function renderFold() {
    show(element, !folded);
    show(unfold, folded);
    unfold.setAttribute('aria-expanded', String(!folded));
  }

  function renderWhen() {
    const scheduled = chosen('kind') === 'scheduled';
    show(startField, scheduled);
    start.required = scheduled;
    if (scheduled && !start.value) start.value = localMoment(new Date(Date.now() + 24 * 3_600_000));
    renderButton();
  }

  function renderButton() {
    const service = known.find(({ id }) => id === chosen('service'));
    const verb = chosen('kind') === 'scheduled' ? 'Schedule' : 'Book';
    setText(button, service ? `${verb} ${service.name.toLowerCase()} · ${money(service.price)}` : 'Book');
  }

  function renderPlace() {
    if (!place) return;
    const covered = map.covers(place);
    where.dataset.tone = covered ? '' : 'bad';
    setText(where, covered ? `Job at ${place.lat.toFixed(4)}, ${place.lon.toFixed(4)}. Click the map to move it.` : 'Outside the area we serve. Choose a place inside it.');
  }

  async function book(event) {
    event.preventDefault();
    const kind = chosen('kind');
    show(error, false);
    button.disabled = true;
    try {
      const { booking } = await client.call('booking.create', {
        service_id: chosen('service'),
        kind,
        location: place,
        ...(kind === 'scheduled' && { start: new Date(start.value).toISOString() }),
        ...(notes.value.trim() && { notes: notes.value.trim() }),
      });
      notes.value = '';
      onbooked(booking);
      const next = map.somewhere();
      if (next) map.pick(next);
    } catch (failure) {
      setText(error, problem(failure));
      show(error, true);
    } finally {
      button.disabled = false;
    }
  }

  return {
    element: box,
    /** Gives way to a booking that just became active; a form opened by hand stays. @param {boolean} active */
    fold(active) {
      if (active !== hadActive) folded = active;
      hadActive = active;
      renderFold();
    },
    /** @param {any[]} list @param {any[]} zones */
    offer(list, zones) {
      if (known.length) return;
      known = list;
      services.replaceChildren(
        ...list.map((service, index) =>
          h(
            'label',
            { class: 'tile' },
            h('input', { type: 'radio', name: 'service', value: service.id, checked: index === 0, 'data-testid': `customer-service-${service.id}` }),
            h('span', { class: 'tile-name' }, service.name),
            h('span', { class: 'tile-price' }, money(service.price)),
          ),
        ),
      );
      map.setZones(zones);
      const somewhere = map.somewhere();
      if (somewhere) map.pick(somewhere);
      renderButton();
    },
  };
}

/** @param {string} name @param {string} value @param {string} label @param {boolean} checked */
function segment(name, value, label, checked) {
  return h('label', {}, h('input', { type: 'radio', name, value, checked, 'data-testid': `customer-${name}-${value}` }), h('span', {}, label));
}

/** The form that `datetime-local` wants, in the zone of the browser. @param {Date} date */
function localMoment(date) {
  return new Date(date.getTime() - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
}
