import { EntityStore } from '/client/index.js';
import { h, setText, show } from './dom.js';
import { minutes } from './words.js';

/** Zones are followed one by one; this many at once. */
const FOLLOWED = 20;
const COLUMNS = [
  { name: 'open_demand', label: 'Waiting', title: 'Bookings that look for a provider' },
  { name: 'providers_online', label: 'Free', title: 'Providers online' },
  { name: 'providers_busy', label: 'Busy', title: 'Providers on a job' },
  { name: 'ratio', label: 'Per provider', title: 'Waiting bookings per provider that is free' },
  { name: 'median_accept_seconds', label: 'Taken in', title: 'Median time from the search to the assignment, newest fifty' },
  { name: 'sla_breaches', label: 'Late', title: 'Bookings under way that missed a deadline' },
];

/**
 * The live figures of zones, the most wanted first.
 *
 * @param {import('/client/index.js').RealtimeClient} client
 */
export function createZoneFigures(client) {
  /** @type {EntityStore<any>} */
  const figures = new EntityStore((each) => each.zone_id);
  /** @type {Map<string, () => void>} */
  const followed = new Map();
  /** @type {Map<string, string>} */
  const names = new Map();
  const body = h('tbody', {});
  const rest = h('p', { class: 'hint', hidden: true });
  const element = h(
    'section',
    { class: 'stack tight', 'aria-label': 'Zones', hidden: true },
    h('h3', { class: 'section-title' }, 'Zones'),
    h(
      'div',
      { class: 'table-frame' },
      h(
        'table',
        { class: 'figures', 'data-testid': 'zone-figures' },
        h('thead', {}, h('tr', {}, h('th', { scope: 'col' }, 'Zone'), ...COLUMNS.map(({ label, title }) => h('th', { scope: 'col', title }, label)))),
        body,
      ),
    ),
    rest,
  );

  function render() {
    const rows = figures.values().sort((one, other) => pressure(other) - pressure(one) || (names.get(one.zone_id) ?? '').localeCompare(names.get(other.zone_id) ?? ''));
    body.replaceChildren(
      ...rows.map(({ zone_id: id, metrics }) =>
        h(
          'tr',
          { 'data-testid': 'zone-row', 'data-zone': id },
          h('th', { scope: 'row' }, names.get(id) ?? id),
          ...COLUMNS.map(({ name }) => h('td', { 'data-figure': name, 'data-tone': toneOf(name, metrics) }, textOf(name, metrics[name]))),
        ),
      ),
    );
    show(element, rows.length > 0);
  }

  /** Subscribed first and asked then, so that no change falls between; the higher version wins. */
  function follow(id) {
    const channel = client.channel(`zone:${id}`);
    const ask = () => {
      client
        .call('zone.metrics', { zone_id: id })
        .then((answer) => figures.put(answer))
        .catch(() => undefined);
    };
    const off = [channel.on('zone.metrics_updated', ({ data }) => figures.put(data)), channel.on('snapshot', ask)];
    channel.subscribe().catch(() => undefined);
    followed.set(id, () => {
      off.forEach((stop) => stop());
      channel.unsubscribe();
    });
  }

  figures.on('change', render);
  figures.on('remove', render);
  return {
    element,
    /** @param {{ id: string, name: string }[]} zones All there are. */
    of(zones) {
      names.clear();
      for (const { id, name } of zones) names.set(id, name);
      const wanted = zones.slice(0, FOLLOWED).map(({ id }) => id);
      for (const [id, stop] of followed) {
        if (wanted.includes(id)) continue;
        stop();
        followed.delete(id);
        figures.remove(id);
      }
      for (const id of wanted) if (!followed.has(id)) follow(id);
      const more = zones.length - wanted.length;
      setText(rest, more > 0 ? `and ${more} more zones` : '');
      show(rest, more > 0);
      render();
    },
  };
}

/** Bookings that wait, most of all where nobody is free. */
const pressure = ({ metrics }) => metrics.ratio ?? metrics.open_demand * 1000;

function toneOf(name, metrics) {
  if (name === 'sla_breaches') return metrics.sla_breaches > 0 ? 'bad' : null;
  if (name === 'open_demand' || name === 'ratio') return metrics.open_demand > metrics.providers_online ? 'bad' : metrics.open_demand > 0 ? 'wait' : null;
  return null;
}

function textOf(name, value) {
  if (value === null || value === undefined) return '–';
  if (name === 'median_accept_seconds') return value < 60 ? `${value} s` : minutes(value);
  return name === 'ratio' && value > 0 ? value.toFixed(1) : String(value);
}
