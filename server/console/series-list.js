import { EntityStore } from '/client/index.js';
import { h, icon, setText, show } from './dom.js';
import { hoursOf } from './hours.js';
import { problem } from './words.js';

const DAY_NAMES = { MO: 'Monday', TU: 'Tuesday', WE: 'Wednesday', TH: 'Thursday', FR: 'Friday', SA: 'Saturday', SU: 'Sunday' };
/** Why one of a series was not booked. */
const SKIPPED = { slot_taken: 'the professional has another job then', slot_closed: 'the professional does not work then' };

/**
 * What a customer has again and again, and how to stop it.
 *
 * @param {object} options
 * @param {import('/client/index.js').RealtimeClient} options.client
 * @param {(id: string) => string} options.serviceName
 */
export function createSeriesList({ client, serviceName }) {
  /** @type {EntityStore<any>} */
  const series = new EntityStore();
  /** @type {string | null} */
  let asking = null;
  const list = h('ul', { class: 'stack tight', 'data-testid': 'series' });
  const said = h('p', { class: 'hint', role: 'status', 'data-testid': 'series-said', hidden: true });
  const error = h('p', { class: 'error', role: 'alert', hidden: true });
  const element = h('section', { class: 'stack tight', 'aria-label': 'What repeats', hidden: true }, list, said, error);

  function render() {
    const active = series.values().filter(({ status }) => status === 'active');
    show(element, active.length > 0);
    list.replaceChildren(...active.map(row));
  }

  function row(each) {
    const hours = hoursOf(each.recurrence);
    const days = hours ? hours.days.map((day) => DAY_NAMES[day]).join(', ') : 'so often';
    const stop = asking === each.id;
    return h(
      'li',
      { class: 'repeat-row', 'data-testid': 'series-row' },
      icon('repeat'),
      h('span', {}, h('strong', {}, serviceName(each.service_id)), ` every ${days}, ${each.recurrence.dtstart.slice(11, 16)}`),
      stop
        ? h('button', { type: 'button', class: 'button small danger', 'data-testid': 'series-stop-all', onclick: () => void end(each) }, 'Call all off')
        : h('button', { type: 'button', class: 'button small quiet', 'data-testid': 'series-stop', onclick: () => ask(each.id) }, 'Stop'),
      stop && h('button', { type: 'button', class: 'button small quiet', onclick: () => ask(null) }, 'Keep'),
    );
  }

  function ask(id) {
    asking = id;
    render();
    /** @type {HTMLElement | null} */ (list.querySelector(id ? '[data-testid="series-stop-all"]' : 'button'))?.focus();
  }

  async function end({ id }) {
    show(error, false);
    try {
      series.put((await client.call('series.cancel', { series_id: id, scope: 'all' })).series);
    } catch (failure) {
      setText(error, problem(failure));
      show(error, true);
    }
    asking = null;
    render();
  }

  series.on('change', render);
  return {
    element,
    /** @param {any} each */
    put: (each) => series.put(each),
    /** @param {{ type: string, data: any }} event Of the person's own channel. */
    heard({ type, data }) {
      if (data.series) series.put(data.series);
      if (type !== 'series.instance_skipped') return;
      const when = new Date(data.recurrence_id).toLocaleDateString(undefined, { weekday: 'long', day: 'numeric', month: 'long' });
      setText(said, `Not booked on ${when}: ${SKIPPED[data.reason] ?? data.reason ?? 'it did not work out'}.`);
      show(said, true);
    },
    async load() {
      const answer = await client.call('series.list');
      for (const each of answer.series) series.put(each);
      render();
    },
  };
}
