import { EntityStore } from '/client/index.js';
import { createBookingCard } from './booking-card.js';
import { h, icon, once, setText, show } from './dom.js';
import { createFeed } from './feed.js';
import { createMap, mapLegend } from './map.js';
import { createRisks } from './risk.js';
import { code, isActive, isTracked, nameOf, PRESENCE, problem, statusOf } from './words.js';

const COUNTERS = [
  { id: 'finding', label: 'Finding', tone: 'wait', statuses: ['pending', 'awaiting_assignment'] },
  { id: 'assigned', label: 'Assigned', tone: 'set', statuses: ['assigned', 'scheduled'] },
  { id: 'moving', label: 'On the way', tone: 'move', statuses: ['en_route', 'arrived'] },
  { id: 'working', label: 'Working', tone: 'work', statuses: ['in_progress', 'paused'] },
  { id: 'completed', label: 'Completed', tone: 'done', statuses: ['completed'] },
  { id: 'trouble', label: 'Stopped', tone: 'bad', statuses: ['unfulfilled', 'cancelled', 'no_show', 'disputed'] },
];
/** Heat is asked for in so many zones; the others show it once it moves. */
const HEATED = 20;
/** Positions come on each booking's own channel; this many are followed at once. */
const FOLLOWED = 40;

/**
 * What operations watch: counters, the map, every event, and one booking to step into.
 *
 * @param {import('./pane.js').Person} person
 * @returns {import('./pane.js').View}
 */
export function adminView(person) {
  const { client } = person;
  /** @type {EntityStore<any>} */
  const bookings = new EntityStore();
  /** @type {Map<string, any>} */
  const providers = new Map();
  /** @type {any[]} */
  let services = [];
  /** @type {ReturnType<typeof detailOf> | null} */
  let detail = null;

  const counters = h(
    'ul',
    { class: 'counters', 'aria-label': 'Bookings by state' },
    ...COUNTERS.map(({ id, label, tone }) =>
      h('li', { 'data-tone': tone }, h('strong', { 'data-testid': `admin-count-${id}` }, '0'), h('span', {}, label)),
    ),
  );
  const map = createMap({ label: 'The zone with bookings and providers', height: 300, testid: 'admin-map' });
  const crew = h('ul', { class: 'crew', 'aria-label': 'Providers', 'data-testid': 'admin-providers' });
  const risks = createRisks({ now: () => client.serverNow(), open: select });
  const detailPlace = h('div', { 'data-testid': 'admin-detail' });
  const feed = createFeed({
    providerName: (id) => providers.get(id)?.name ?? 'a provider',
    serviceName,
    open: select,
  });
  const element = h(
    'div',
    { class: 'stack' },
    counters,
    h(
      'div',
      { class: 'map-frame' },
      map.element,
      mapLegend([
        ...COUNTERS.slice(0, 4).map(({ label, tone }) => ({ label, tone })),
        { label: 'Provider', tone: 'done', kind: 'provider' },
      ]),
    ),
    crew,
    risks.element,
    detailPlace,
    feed.element,
  );

  function serviceName(id) {
    return nameOf(services, id);
  }

  const render = once(() => {
    const all = bookings.values();
    for (const { id, statuses } of COUNTERS) {
      const count = all.filter((booking) => statuses.includes(booking.status)).length;
      setText(/** @type {Element} */ (counters.querySelector(`[data-testid="admin-count-${id}"]`)), String(count));
    }
    map.setMarkers([
      ...all.filter(isActive).map((booking) => ({
        id: booking.id,
        kind: /** @type {const} */ ('booking'),
        at: booking.location,
        tone: statusOf(booking.status).tone,
        label: `${serviceName(booking.service_id)} #${code(booking.id)}: ${statusOf(booking.status).label}`,
        onclick: () => select(booking.id),
      })),
      ...[...providers.values()]
        .filter((provider) => provider.location && provider.status !== 'offline')
        .map((provider) => ({
          id: provider.id,
          kind: /** @type {const} */ ('provider'),
          at: provider.location,
          tone: PRESENCE[provider.status]?.tone ?? 'off',
          label: `${provider.name}: ${PRESENCE[provider.status]?.label ?? provider.status}`,
          letter: provider.name.slice(0, 1),
        })),
    ]);
    crew.replaceChildren(
      ...[...providers.values()].map((provider) =>
        h(
          'li',
          {},
          h('span', { class: 'dot', 'data-tone': PRESENCE[provider.status]?.tone ?? 'off', 'aria-hidden': 'true' }),
          provider.name,
          h('span', { class: 'muted' }, PRESENCE[provider.status]?.label ?? provider.status),
        ),
      ),
    );
    detail?.renderProviders();
  });

  // --- positions of providers on the way

  /** @type {Map<string, () => void>} */
  const followed = new Map();

  function follow(booking) {
    const wanted = isTracked(booking);
    if (wanted === followed.has(booking.id) || (wanted && followed.size >= FOLLOWED)) return;
    if (!wanted) return followed.get(booking.id)?.();
    const channel = client.channel(`booking:${booking.id}`);
    const off = channel.on('location.moved', ({ data }) => {
      const provider = providers.get(data.provider_id);
      if (provider) provider.location = { lat: data.lat, lon: data.lon };
      render();
    });
    channel.subscribe().catch(() => undefined);
    followed.set(booking.id, () => {
      off();
      followed.delete(booking.id);
      if (detail?.id !== booking.id) channel.unsubscribe();
    });
  }

  bookings.on('change', (booking) => {
    follow(booking);
    if (detail?.id === booking.id) detail?.update(booking);
    render();
  });
  bookings.on('remove', (id) => {
    followed.get(id)?.();
    render();
  });

  // --- the booking that is looked into

  function select(id) {
    const booking = bookings.get(id);
    if (!booking) return;
    closeDetail();
    const mine = detailOf({
      booking,
      person,
      serviceName,
      providers,
      onbooking: (newer) => bookings.put(newer),
      onclose: closeDetail,
    });
    detail = mine;
    detailPlace.replaceChildren(mine.element);
    mine.element.scrollIntoView({ block: 'nearest' });
    /** @type {HTMLElement} */ (mine.element.querySelector('button'))?.focus({ preventScroll: true });
  }

  function closeDetail() {
    const closed = detail;
    detail = null;
    detailPlace.replaceChildren();
    closed?.dispose();
    // The card let go of the booking's channel; the map may still want it.
    const booking = closed && bookings.get(closed.id);
    if (!booking || !followed.has(booking.id)) return;
    followed.get(booking.id)?.();
    follow(booking);
  }

  // --- where demand and supply are

  /** @type {Map<string, { version: number, cells: any[] }>} */
  const cells = new Map();

  function heat({ zone_id: id, version = 0, cells: found }) {
    if ((cells.get(id)?.version ?? -1) > version) return;
    cells.set(id, { version, cells: found });
    map.setCells([...cells.values()].flatMap((zone) => zone.cells));
  }

  function askForHeat(zones) {
    cells.clear();
    for (const { id } of zones) {
      client
        .call('zone.heat', { zone_id: id })
        .then(heat)
        .catch(() => undefined);
    }
  }

  const heatChannel = client.channel('admin:zones');
  heatChannel.on('zone.heat_updated', ({ data }) => heat(data));
  heatChannel.subscribe().catch(() => undefined);

  // --- what is heard

  const channel = client.channel('admin:bookings');
  channel.on('snapshot', ({ state, gap }) => {
    if (!state) return;
    map.setZones(state.zones);
    askForHeat(state.zones.slice(0, HEATED));
    risks.clear();
    for (const booking of state.bookings) risks.put(booking.id, booking.sla);
    providers.clear();
    for (const provider of state.providers) providers.set(provider.id, provider);
    bookings.replaceAll(state.bookings);
    if (gap) feed.add({ type: 'feed.restarted', time: new Date(client.serverNow()).toISOString(), data: {} });
    render();
  });
  channel.on('presence.changed', ({ data }) => {
    const { provider_id: id, ...rest } = data;
    providers.set(id, { ...providers.get(id), id, ...rest });
    render();
  });
  channel.on('*', (event) => {
    if (event.data.booking) bookings.put(event.data.booking);
    const sla = event.data.sla ?? event.data.booking?.sla;
    if (sla) risks.put(event.data.booking_id, sla);
    if (/^(booking|offer|dispute|sla)\./.test(event.type)) feed.add(event);
  });

  // Presence is not kept for whoever is away, so it is asked for again.
  client.on('resumed', () => {
    client
      .call('provider.list')
      .then((answer) => {
        for (const provider of answer.providers) providers.set(provider.id, provider);
        render();
      })
      .catch(() => undefined);
  });
  client
    .call('service.list')
    .then((answer) => {
      services = answer.services;
      render();
    })
    .catch(() => undefined);

  return {
    element,
    dispose() {
      detail?.dispose();
      risks.dispose();
      feed.dispose();
    },
  };
}

/**
 * One booking with everything operations can do to it.
 *
 * @param {object} options
 * @param {any} options.booking
 * @param {import('./pane.js').Person} options.person
 * @param {(id: string) => string} options.serviceName
 * @param {Map<string, any>} options.providers
 * @param {(booking: any) => void} options.onbooking
 * @param {() => void} options.onclose
 */
function detailOf({ booking, person, serviceName, providers, onbooking, onclose }) {
  const choice = h('select', { 'aria-label': 'Provider', 'data-testid': 'admin-assign-provider' });
  const assign = h('button', { type: 'button', class: 'button small', 'data-testid': 'admin-assign', onclick: give }, 'Assign');
  const assignRow = h('div', { class: 'confirm' }, choice, assign);
  const holder = h('p', { class: 'facts' });
  const error = h('p', { class: 'error', role: 'alert', hidden: true });
  const card = createBookingCard({
    booking,
    person,
    serviceName,
    onbooking,
    actions: h('div', { class: 'stack tight' }, holder, assignRow, error),
  });
  const close = h(
    'button',
    { type: 'button', class: 'button small quiet round', 'data-testid': 'admin-detail-close', 'aria-label': 'Close', onclick: onclose },
    icon('close'),
  );
  const element = h('div', { class: 'detail' }, close, card.element);
  element.addEventListener('keydown', (event) => {
    if (/** @type {KeyboardEvent} */ (event).key === 'Escape') onclose();
  });

  function renderProviders() {
    const now = card.booking;
    const name = providers.get(now.provider_id)?.name;
    setText(holder, name ? `With ${name}` : '');
    show(holder, Boolean(name));
    show(assignRow, now.status === 'awaiting_assignment');
    const options = [...providers.values()];
    const ids = options.map(({ id }) => id).join();
    if (choice.dataset.ids === ids) return;
    choice.dataset.ids = ids;
    choice.replaceChildren(...options.map(({ id, name: label }) => h('option', { value: id }, label)));
  }

  async function give() {
    show(error, false);
    try {
      const result = await person.client.call('booking.assign', { booking_id: booking.id, provider_id: choice.value });
      onbooking(result.booking);
    } catch (failure) {
      setText(error, problem(failure));
      show(error, true);
    }
  }

  renderProviders();
  return {
    id: booking.id,
    element,
    renderProviders,
    update(newer) {
      card.update(newer);
      renderProviders();
    },
    dispose: () => card.dispose(),
  };
}
