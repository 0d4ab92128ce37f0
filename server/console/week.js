import { h, icon, setText, show } from './dom.js';
import { addDays, countdown, dayMonth, settled, startOfWeek } from './moments.js';
import { askException, editHours, showException } from './week-dialogs.js';
import { createWeekGrid } from './week-grid.js';
import { calendarLinks } from './calendar-links.js';
import { calendarSources } from './calendar-sources.js';
import { nameOf, plural, problem, statusOf } from './words.js';

/** Several changes in a row are one look at the week. */
const QUIET_MS = 250;

/**
 * A provider's week: hours, exceptions, holds, jobs and busy times, always as they are now.
 *
 * @param {object} options
 * @param {import('/client/index.js').RealtimeClient} options.client
 * @param {() => any[]} options.services
 */
export function createWeek({ client, services }) {
  /** @type {string | null} */
  let providerId = null;
  let mayPlan = false;
  let monday = startOfWeek(Date.now());
  /** @type {any} */
  let week = null;
  let asked = 0;

  const grid = createWeekGrid({ onchoose: (start, end) => mayPlan && ask(start, end) });
  const title = h('h3', { class: 'week-title', 'aria-live': 'polite', 'data-testid': 'week-title' });
  const move = (label, name, days, testid) =>
    h('button', { type: 'button', class: 'button small quiet round', 'aria-label': label, 'data-testid': testid, onclick: () => go(addDays(monday, days)) }, icon(name));
  const today = h('button', { type: 'button', class: 'button small', 'data-testid': 'week-today', onclick: () => go(startOfWeek(Date.now())) }, 'Today');
  const hours = h('button', { type: 'button', class: 'button small', 'data-testid': 'week-hours', onclick: edit }, 'Weekly hours');
  const close = h(
    'button',
    { type: 'button', class: 'button small', 'data-testid': 'week-add', onclick: () => ask(nextHour(0), nextHour(1)) },
    icon('plus'),
    'Exception',
  );
  const invite = h(
    'div',
    { class: 'card invite', hidden: true, 'data-testid': 'week-invite' },
    h('div', {}, h('strong', {}, 'Set your week'), h('p', { class: 'hint' }, 'Customers then see your free times and book them at once. Until then you are asked about any time.')),
    h('button', { type: 'button', class: 'button primary', 'data-testid': 'week-set', onclick: edit }, 'Set hours'),
  );
  const holds = h('ul', { class: 'week-holds', 'data-testid': 'week-holds' });
  const error = h('p', { class: 'error', role: 'alert', hidden: true });
  const summary = h('p', { class: 'hint', 'data-testid': 'week-summary' });
  const links = calendarLinks(client);
  const sources = calendarSources({ client, onchange: () => reload() });
  const element = h(
    'section',
    { class: 'stack week', 'aria-label': 'Your week', 'data-testid': 'provider-week' },
    h('div', { class: 'week-bar' }, move('Week before', 'back', -7, 'week-back'), move('Week after', 'on', 7, 'week-on'), title, today, h('div', { class: 'week-tools' }, close, hours)),
    invite,
    error,
    h('div', { class: 'card week-card' }, grid.element),
    legend(),
    summary,
    holds,
    links.element,
    sources.element,
  );
  const reload = settled(() => void load(), QUIET_MS);
  const ticking = setInterval(tick, 1000);

  async function load() {
    if (!providerId) return;
    const turn = ++asked;
    try {
      const answer = await client.call('availability.get', {
        provider_id: providerId,
        from: monday.toISOString(),
        to: addDays(monday, 7).toISOString(),
      });
      // An answer that another question overtook is about another week, or older.
      if (turn !== asked) return;
      week = answer;
      show(error, false);
      render();
    } catch (failure) {
      if (turn !== asked || failure.type === 'stopped') return;
      setText(error, problem(failure));
      show(error, true);
    }
  }

  function go(to) {
    monday = to;
    week = null;
    render();
    void load();
  }

  function render() {
    const sunday = addDays(monday, 6);
    setText(title, `${dayMonth(monday)} – ${dayMonth(sunday)}`);
    today.disabled = monday.getTime() === startOfWeek(Date.now()).getTime();
    const planned = Boolean(week?.calendar.rules.length);
    show(invite, Boolean(week) && !planned && mayPlan);
    show(hours, mayPlan);
    show(close, mayPlan);
    grid.draw(monday, week ? blocks() : []);
    renderHolds();
    if (!week) return setText(summary, 'Looking…');
    const buffer = week.calendar.travel_buffer_minutes;
    setText(
      summary,
      [
        plural(week.bookings.length, 'job'),
        planned ? (buffer ? `${buffer} min of travel between jobs` : 'no travel time between jobs') : 'no weekly hours yet',
        mayPlan && 'drag over the grid to close or open a time',
      ]
        .filter(Boolean)
        .join(' · '),
    );
  }

  /** @returns {import('./week-grid.js').Block[]} */
  function blocks() {
    const planned = week.calendar.rules.length > 0;
    const time = ({ start, end }) => ({ start: new Date(start), end: new Date(end) });
    return [
      // Without rules everything that is not closed counts as open: nothing worth painting.
      ...(planned ? week.openings : []).map((each) => ({ kind: 'open', ...time(each), label: 'Open' })),
      ...week.exceptions.map((each) => ({
        kind: each.kind === 'closed' ? 'closed' : 'extra',
        ...time(each),
        id: each.id,
        label: each.note ?? (each.kind === 'closed' ? 'Closed' : 'Extra'),
        onclick: mayPlan ? () => showException({ exception: each, remove: () => remove(each) }) : undefined,
      })),
      ...week.busy.map((each) => ({ kind: 'busy', ...time(each), label: 'Busy elsewhere' })),
      ...week.holds.map((each) => ({ kind: 'hold', ...time(each), id: each.id, label: 'Held' })),
      ...week.bookings.map((each) => ({
        kind: 'job',
        ...time(each),
        id: each.id,
        tone: statusOf(each.status).tone,
        label: nameOf(services(), each.service_id),
      })),
    ];
  }

  /** Holds with the time that is left: who holds one may book it any moment. */
  function renderHolds() {
    const now = client.serverNow();
    const live = (week?.holds ?? []).filter(({ expires_at: until }) => Date.parse(until) > now);
    while (holds.children.length > live.length) holds.lastElementChild?.remove();
    while (holds.children.length < live.length) holds.append(h('li', {}));
    live.forEach(({ start, service_id: service, expires_at: until }, index) => {
      const when = new Date(start).toLocaleString(undefined, { weekday: 'short', hour: '2-digit', minute: '2-digit' });
      setText(holds.children[index], `${nameOf(services(), service)}, ${when}: a customer decides, ${countdown(Date.parse(until) - now)} left`);
    });
    show(holds, live.length > 0);
  }

  function tick() {
    if (week?.holds.length) renderHolds();
    if (new Date().getSeconds() === 0) grid.renderNow();
  }

  // --- changing

  function nextHour(ahead) {
    const base = monday.getTime() > Date.now() ? addDays(monday, 0) : new Date();
    if (base.getHours() < 8) base.setHours(8);
    base.setHours(base.getHours() + 1 + ahead, 0, 0, 0);
    return base;
  }

  function ask(start, end) {
    askException({ start, end, planned: Boolean(week?.calendar.rules.length), add: (exception) => changed(client.call('availability.add_exception', { provider_id: providerId, ...exception })) });
  }

  const remove = (exception) => changed(client.call('availability.remove_exception', { exception_id: exception.id }));

  /** Shows what a command did without waiting to hear of it. @template T @param {Promise<T>} command @returns {Promise<T>} */
  async function changed(command) {
    const result = await command;
    await load();
    return result;
  }

  function edit() {
    if (!week) return;
    const { calendar } = week;
    editHours({
      calendar,
      async save(rules, buffer) {
        try {
          await changed(client.call('availability.set_rules', { provider_id: providerId, rules, travel_buffer_minutes: buffer, version: calendar.version }));
        } catch (failure) {
          if (failure.type !== 'conflict') throw failure;
          reload();
          throw new Error('Somebody else changed the calendar meanwhile. Close this and begin again with what is there now.');
        }
      },
    });
  }

  return {
    element,
    reload,
    /** Calendars elsewhere were read. */
    reloadSources: sources.reload,
    /**
     * Whose week it is, and whether this person may change it.
     *
     * @param {string} id
     * @param {boolean} plans
     */
    of(id, plans) {
      sources.of(id, plans);
      if (id === providerId && plans === mayPlan) return reload();
      providerId = id;
      mayPlan = plans;
      element.classList.toggle('fixed', !plans);
      void load();
    },
    /** Names of services came later than the week. */
    renamed: () => week && render(),
    dispose() {
      clearInterval(ticking);
      reload.cancel();
      sources.dispose();
    },
  };
}

function legend() {
  const entries = [
    ['open', 'Open'],
    ['extra', 'Extra hours'],
    ['closed', 'Closed'],
    ['busy', 'Busy elsewhere'],
    ['hold', 'Held'],
    ['job', 'Job'],
  ];
  return h('ul', { class: 'legend week-legend' }, ...entries.map(([kind, label]) => h('li', {}, h('span', { class: `week-key ${kind}`, 'aria-hidden': 'true' }), label)));
}
