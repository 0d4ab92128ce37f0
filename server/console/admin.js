import { EntityStore } from '/client/index.js';
import { createAttention } from './attention.js';
import { createBoard, LANES } from './board.js';
import { bookingDetail } from './booking-detail.js';
import { h, once } from './dom.js';
import { createFeed } from './feed.js';
import { createMap, mapLegend } from './map.js';
import { createRisks } from './risk.js';
import { code, isActive, isTracked, nameOf, PRESENCE, statusOf } from './words.js';
import { createZoneFigures } from './zone-figures.js';

/** Heat is asked for in so many zones; the others show it once it moves. */
const HEATED = 20;
/** Positions come on each booking's own channel; this many are followed at once. */
const FOLLOWED = 40;

/**
 * What operations watch: what needs a person, bookings by state and by deadline, zones and their map, every event, and one
 * booking to step into.
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
  /** @type {ReturnType<typeof bookingDetail> | null} */
  let detail = null;

  const now = () => client.serverNow();
  const board = createBoard({ serviceName, providerName: (id) => providers.get(id)?.name, open: select, now });
  const attention = createAttention({
    client,
    serviceName,
    providers: () => [...providers.values()],
    open: select,
    onbooking: (newer) => bookings.put(newer),
  });
  const figures = createZoneFigures(client);
  const map = createMap({ label: 'The zone with bookings and providers', height: 300, testid: 'admin-map' });
  const crew = h('ul', { class: 'crew', 'aria-label': 'Providers', 'data-testid': 'admin-providers' });
  const risks = createRisks({ now, bookings: () => bookings.values().map(withClocks), open: select });
  const detailPlace = h('div', { 'data-testid': 'admin-detail' });
  const feed = createFeed({
    providerName: (id) => providers.get(id)?.name ?? 'a provider',
    serviceName,
    open: select,
  });
  const element = h(
    'div',
    { class: 'operations' },
    board.element,
    h('div', { class: 'stack operations-now' }, attention.element, detailPlace),
    h(
      'div',
      { class: 'stack operations-map' },
      h(
        'div',
        { class: 'map-frame' },
        map.element,
        mapLegend([
          ...LANES.slice(0, 4).map(({ label, tone }) => ({ label, tone })),
          { label: 'Provider', tone: 'done', kind: 'provider' },
          { label: 'More wanted', tone: 'bad', kind: 'heat' },
          { label: 'More free', tone: 'done', kind: 'heat' },
        ]),
      ),
      crew,
      figures.element,
    ),
    h('div', { class: 'stack operations-feed' }, risks.element, feed.element),
  );

  /** Clocks have a version of their own, and may be newer than the booking that brought the others. @type {Map<string, any>} */
  const clocks = new Map();

  function takeClocks(id, sla) {
    if (sla && (clocks.get(id)?.version ?? -1) < sla.version) clocks.set(id, sla);
  }

  const withClocks = (booking) => ({ ...booking, sla: clocks.get(booking.id) ?? booking.sla });

  function serviceName(id) {
    return nameOf(services, id);
  }

  const render = once(() => {
    const all = bookings.values();
    const timed = all.map(withClocks);
    board.render(timed);
    attention.render(timed);
    risks.render();
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

  const ticking = setInterval(() => {
    board.tick((id) => {
      const booking = bookings.get(id);
      return booking && withClocks(booking);
    });
    attention.render(bookings.values().map(withClocks));
    risks.render();
  }, 1000);

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
      attention.moved(booking.id, data);
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
    clocks.delete(id);
    followed.get(id)?.();
    render();
  });

  // --- the booking that is looked into

  function select(id) {
    const booking = bookings.get(id);
    if (!booking) return;
    closeDetail();
    const mine = bookingDetail({
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
    figures.of(state.zones);
    attention.start(state);
    clocks.clear();
    for (const booking of state.bookings) takeClocks(booking.id, booking.sla);
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
    attention.heard(event);
    takeClocks(event.data.booking_id, event.data.sla ?? event.data.booking?.sla);
    if (event.data.booking) bookings.put(event.data.booking);
    render();
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
      clearInterval(ticking);
      feed.dispose();
    },
  };
}
