import { openForm } from './dialog.js';
import { h, icon, show } from './dom.js';
import { DAYS, hoursOf, overnight, ruleOf, usualHours } from './hours.js';
import { dayLong, localMoment, span } from './moments.js';

const BUFFERS = [0, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240];
const NAMES = { MO: 'Mon', TU: 'Tue', WE: 'Wed', TH: 'Thu', FR: 'Fri', SA: 'Sat', SU: 'Sun' };

/**
 * Asks for a time that differs from the weekly hours.
 *
 * @param {object} options
 * @param {Date} options.start
 * @param {Date} options.end
 * @param {boolean} options.planned Whether there are weekly hours; without, nothing can be opened in addition.
 * @param {(exception: { kind: string, start: string, end: string, note?: string }) => Promise<unknown>} options.add
 */
export function askException({ start, end, planned, add }) {
  const from = h('input', { type: 'datetime-local', required: true, value: localMoment(start), 'data-testid': 'exception-from', 'aria-label': 'From' });
  const to = h('input', { type: 'datetime-local', required: true, value: localMoment(end), 'data-testid': 'exception-to', 'aria-label': 'To' });
  const note = h('input', { type: 'text', maxlength: 200, 'data-testid': 'exception-note', id: 'exception-note', placeholder: 'Dentist, holiday…' });
  const kind = h(
    'div',
    { class: 'segments', role: 'radiogroup', 'aria-label': 'What is different' },
    choice('closed', 'Closed', true),
    planned && choice('open', 'Extra hours', false),
  );
  return openForm({
    title: 'Change this time',
    testid: 'exception',
    body: [
      kind,
      h('div', { class: 'sheet-row' }, from, h('span', { class: 'muted', 'aria-hidden': 'true' }, 'to'), to),
      h('label', { for: note.id }, 'Note ', h('span', { class: 'optional' }, 'optional, for your own people')),
      note,
      h('p', { class: 'hint' }, 'What is booked already stays booked.'),
    ],
    action: 'Save',
    submit: () =>
      add({
        kind: /** @type {HTMLInputElement} */ (kind.querySelector(':checked')).value,
        start: new Date(from.value).toISOString(),
        end: new Date(to.value).toISOString(),
        ...(note.value.trim() && { note: note.value.trim() }),
      }),
  });
}

function choice(value, label, checked) {
  return h('label', {}, h('input', { type: 'radio', name: 'exception-kind', value, checked, 'data-testid': `exception-${value}` }), h('span', {}, label));
}

/**
 * Shows an exception, to be taken back.
 *
 * @param {object} options
 * @param {{ kind: string, start: string, end: string, note?: string }} options.exception
 * @param {() => Promise<unknown>} options.remove
 */
export function showException({ exception, remove }) {
  const start = new Date(exception.start);
  const end = new Date(exception.end);
  const sameDay = start.toDateString() === end.toDateString();
  return openForm({
    title: exception.kind === 'closed' ? 'Closed' : 'Extra hours',
    testid: 'exception-shown',
    body: [
      h('p', {}, sameDay ? `${dayLong(start)}, ${span(start, end)}` : `${dayLong(start)} to ${dayLong(end)}`),
      exception.note ? h('p', { class: 'quote' }, exception.note) : null,
      h('p', { class: 'hint' }, 'Without it, your weekly hours apply again.'),
    ],
    action: 'Remove it',
    submit: remove,
  });
}

/**
 * Edits the weekly hours and the travel buffer, all at once.
 *
 * @param {object} options
 * @param {{ rules: import('./hours.js').Rule[], travel_buffer_minutes: number }} options.calendar
 * @param {(rules: import('./hours.js').Rule[], bufferMinutes: number) => Promise<unknown>} options.save
 */
export function editHours({ calendar, save }) {
  /** @type {{ element: HTMLElement, rule: () => import('./hours.js').Rule }[]} */
  const rows = [];
  const list = h('div', { class: 'hours-rows', 'data-testid': 'hours-rows' });
  const none = h('p', { class: 'hint' }, 'No hours: scheduled work is offered to you at any time you have not closed.');
  const buffers = [...new Set([...BUFFERS, calendar.travel_buffer_minutes])].sort((one, other) => one - other);
  const buffer = h(
    'select',
    { id: 'hours-buffer', 'data-testid': 'hours-buffer' },
    ...buffers.map((minutes) =>
      h('option', { value: minutes, selected: minutes === calendar.travel_buffer_minutes }, minutes ? `${minutes} minutes` : 'None'),
    ),
  );

  function add(element, rule) {
    const remove = h(
      'button',
      { type: 'button', class: 'button small quiet round', 'aria-label': 'Remove these hours', 'data-testid': 'hours-remove', onclick: dropped },
      icon('close'),
    );
    const row = { element: h('div', { class: 'hours-row', 'data-testid': 'hours-row' }, element, remove), rule };
    rows.push(row);
    list.append(row.element);
    show(none, false);

    function dropped() {
      rows.splice(rows.indexOf(row), 1);
      row.element.remove();
      show(none, rows.length === 0);
      more.focus();
    }
  }

  const addHours = (hours) => {
    const row = hoursRow(hours);
    add(row.element, row.rule);
    return row;
  };
  const more = h(
    'button',
    { type: 'button', class: 'button small', 'data-testid': 'hours-add', onclick: () => addHours({ ...usualHours(), days: [] }).focus() },
    icon('plus'),
    'Add hours',
  );
  for (const rule of calendar.rules) {
    const hours = hoursOf(rule);
    if (hours) addHours(hours);
    else add(h('p', { class: 'hours-other' }, h('code', {}, rule.rrule), ` from ${rule.dtstart.slice(11, 16)}, ${rule.duration_minutes} min`), () => rule);
  }
  if (calendar.rules.length === 0) addHours(usualHours());
  const zones = [...new Set(calendar.rules.map(({ tzid }) => tzid))];
  return openForm({
    title: 'Weekly hours',
    testid: 'hours',
    body: [
      list,
      none,
      more,
      h('div', { class: 'sheet-row' }, h('label', { for: buffer.id }, 'Travel time between jobs'), buffer),
      h('p', { class: 'hint' }, `Times of day in ${(zones.length ? zones : [usualHours().tzid]).join(', ')}, summer and winter.`),
    ],
    action: 'Save hours',
    submit: () => save(rows.map(({ rule }) => rule()), Number(buffer.value)),
  });
}

/** @param {import('./hours.js').Hours} hours */
function hoursRow(hours) {
  const days = DAYS.map((day) =>
    h('label', { class: 'day-chip' }, h('input', { type: 'checkbox', value: day, checked: hours.days.includes(day), 'data-testid': `hours-${day}` }), h('span', {}, NAMES[day])),
  );
  const from = h('input', { type: 'time', required: true, value: hours.from, 'aria-label': 'From', 'data-testid': 'hours-from', oninput: render });
  const to = h('input', { type: 'time', required: true, value: hours.to, 'aria-label': 'To', 'data-testid': 'hours-to', oninput: render });
  const next = h('span', { class: 'hint' }, 'next day');
  const element = h(
    'div',
    { class: 'hours-fields' },
    h('div', { class: 'day-chips', role: 'group', 'aria-label': 'Days' }, ...days),
    h('div', { class: 'sheet-row' }, from, h('span', { class: 'muted', 'aria-hidden': 'true' }, 'to'), to, next),
  );

  function current() {
    const chosen = /** @type {HTMLInputElement[]} */ ([...element.querySelectorAll('.day-chip :checked')]).map(({ value }) => value);
    return { ...hours, days: chosen, from: from.value, to: to.value };
  }

  function render() {
    show(next, Boolean(from.value && to.value) && overnight(current()));
  }

  render();
  return {
    element,
    focus: () => element.querySelector('input')?.focus(),
    rule() {
      const now = current();
      if (now.days.length === 0) throw new Error('Choose the days that these hours are for, or remove them.');
      return ruleOf(now);
    },
  };
}
