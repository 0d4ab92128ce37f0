import { h } from './dom.js';
import { addDays, atMinutes, dayLong, dayMonth, DAY_MINUTES, onDay, span, startOfDay, weekday } from './moments.js';

/** The grid's mesh, in minutes. */
const STEP = 30;
/** Shown at least, in hours; what is earlier or later widens it. */
const EARLIEST = 7;
const LATEST = 20;

/**
 * Something in a provider's week.
 *
 * @typedef {object} Block
 * @property {'open' | 'extra' | 'closed' | 'busy' | 'hold' | 'job'} kind
 * @property {Date} start
 * @property {Date} end
 * @property {string} label
 * @property {string} [tone] A colour of the palette.
 * @property {string} [id]
 * @property {() => void} [onclick] Makes it a button.
 */

/** Painted in this order, each over the ones before. @type {Block['kind'][]} */
const LAYERS = ['open', 'extra', 'closed', 'busy', 'hold', 'job'];

/**
 * Seven days as columns, hours downwards. A time is chosen by dragging with a mouse or pen, by a tap, or with the arrow
 * keys, and handed to `onchoose`.
 *
 * @param {object} options
 * @param {(start: Date, end: Date) => void} options.onchoose
 */
export function createWeekGrid({ onchoose }) {
  const heads = h('div', { class: 'week-heads' });
  const hours = h('div', { class: 'week-hours', 'aria-hidden': 'true' });
  const columns = h('div', {
    class: 'week-days',
    role: 'application',
    tabindex: 0,
    'data-testid': 'week-days',
    'aria-label': 'Choose a time: arrow keys move, Shift with up or down makes it longer, Enter goes on',
    onpointerdown: pressed,
    onpointermove: dragged,
    onpointerup: released,
    onpointercancel: clear,
    onkeydown: typed,
    onblur: () => dragging || clear(),
  });
  const said = h('p', { class: 'visually-hidden', role: 'status', 'data-testid': 'week-said' });
  const element = h('div', { class: 'week-grid', 'data-testid': 'week-grid' }, heads, hours, columns, said);

  /** @type {Date[]} */
  let days = [];
  let first = EARLIEST;
  let last = LATEST;
  /** What is being chosen: minutes of a day; `anchor` is where it began. @type {{ day: number, anchor: number, at: number } | null} */
  let choice = null;
  let dragging = false;

  const range = () => ({ from: Math.min(choice.anchor, choice.at), to: Math.max(choice.anchor, choice.at) + STEP });

  /** @param {Date} monday @param {Block[]} blocks */
  function draw(monday, blocks) {
    days = Array.from({ length: 7 }, (_, index) => addDays(monday, index));
    const parts = days.map((day) =>
      LAYERS.flatMap((kind) => blocks.filter((block) => block.kind === kind)).flatMap((block) => {
        const part = onDay(day, block.start, block.end);
        return part ? [{ ...part, block }] : [];
      }),
    );
    const noted = parts.flat().filter(({ block, from, to }) => block.kind !== 'closed' || to - from < DAY_MINUTES);
    first = Math.min(EARLIEST, ...noted.map(({ from }) => Math.floor(from / 60)));
    last = Math.max(LATEST, ...noted.map(({ to }) => Math.ceil(to / 60)));
    element.style.setProperty('--rows', String(last - first));
    const today = startOfDay(Date.now()).getTime();
    heads.replaceChildren(
      ...days.map((day) =>
        h(
          'div',
          { class: 'week-head', ...(day.getTime() === today && { 'aria-current': 'date' }) },
          h('span', {}, weekday(day)),
          h('strong', {}, String(day.getDate())),
        ),
      ),
    );
    hours.replaceChildren(
      ...Array.from({ length: last - first }, (_, index) => h('span', {}, `${String(first + index).padStart(2, '0')}:00`)),
    );
    // Whoever stands on a block keeps standing on it.
    const active = /** @type {HTMLElement | null} */ (columns.contains(document.activeElement) ? document.activeElement : null);
    const kept = active?.dataset.blockId;
    columns.replaceChildren(...days.map((day, index) => column(day, parts[index], day.getTime() < today)));
    if (kept) /** @type {HTMLElement | null} */ (columns.querySelector(`[data-block-id="${kept}"]`) ?? columns).focus({ preventScroll: true });
    renderNow();
    renderChoice();
  }

  function column(day, parts, past) {
    return h(
      'div',
      { class: 'week-day', 'data-past': past, 'data-day': dayMonth(day) },
      ...parts.map(({ block, from, to }) => {
        const name = `${block.label}, ${dayLong(day)}, ${span(block.start, block.end)}`;
        const short = to - from < 60;
        const item = h(
          block.onclick ? 'button' : 'div',
          {
            class: `week-block ${block.kind}`,
            'data-testid': `week-${block.kind}`,
            'data-tone': block.tone,
            'data-block-id': block.id,
            title: name,
            ...(block.onclick ? { type: 'button', 'aria-label': name, onclick: block.onclick } : { role: 'img', 'aria-label': name }),
          },
          block.kind === 'open' ? null : h('span', { class: short ? 'week-label short' : 'week-label' }, block.label),
        );
        position(item, from, to);
        return item;
      }),
    );
  }

  function position(item, from, to) {
    item.style.setProperty('--from', String(from / 60 - first));
    item.style.setProperty('--length', String((to - from) / 60));
  }

  /** A line where the day stands now. */
  function renderNow() {
    columns.querySelector('.week-now')?.remove();
    const now = new Date();
    const index = days.findIndex((day) => day.getTime() === startOfDay(now).getTime());
    const minutes = now.getHours() * 60 + now.getMinutes();
    if (index < 0 || minutes < first * 60 || minutes > last * 60) return;
    const line = h('div', { class: 'week-now', 'aria-hidden': 'true' });
    position(line, minutes, minutes);
    columns.children[index].append(line);
  }

  // --- choosing

  function renderChoice() {
    columns.querySelector('.week-choice')?.remove();
    if (!choice || !days[choice.day]) return;
    const { from, to } = range();
    const start = atMinutes(days[choice.day], from);
    const end = atMinutes(days[choice.day], to);
    const shade = h('div', { class: 'week-choice', 'aria-hidden': 'true' }, h('span', { class: 'week-label' }, span(start, end)));
    position(shade, from, to);
    columns.children[choice.day].append(shade);
    said.textContent = `${dayLong(start)}, ${span(start, end)}`;
  }

  function clear() {
    dragging = false;
    choice = null;
    renderChoice();
  }

  function choose() {
    if (!choice) return;
    const day = days[choice.day];
    const { from, to } = range();
    clear();
    onchoose(atMinutes(day, from), atMinutes(day, to));
  }

  /** Where a pointer is, or null beside the days. */
  function spot(event, day) {
    const box = columns.getBoundingClientRect();
    const index = day ?? Math.floor(((event.clientX - box.left) / box.width) * 7);
    if (index < 0 || index > 6) return null;
    const hour = first + ((event.clientY - box.top) / box.height) * (last - first);
    const at = Math.floor((hour * 60) / STEP) * STEP;
    return { day: index, at: Math.max(first * 60, Math.min(last * 60 - STEP, at)) };
  }

  function pressed(event) {
    if (event.button !== 0 || event.target.closest('button')) return;
    const found = spot(event);
    if (!found) return;
    choice = { day: found.day, anchor: found.at, at: found.at };
    // A finger scrolls the page when it moves, so only its tap counts; it takes an hour.
    dragging = event.pointerType !== 'touch';
    if (!dragging) {
      choice.at = Math.min(found.at + STEP, last * 60 - STEP);
      return;
    }
    columns.setPointerCapture(event.pointerId);
    renderChoice();
  }

  function dragged(event) {
    if (!dragging || !choice) return;
    const found = spot(event, choice.day);
    if (!found || found.at === choice.at) return;
    choice.at = found.at;
    renderChoice();
  }

  function released(event) {
    if (!choice || (event.pointerType !== 'touch' && !dragging)) return;
    choose();
  }

  function typed(event) {
    if (event.target !== columns) return;
    if (event.key === 'Enter' || event.key === ' ') {
      event.preventDefault();
      return choice ? choose() : begin();
    }
    if (event.key === 'Escape' && choice) {
      event.stopPropagation();
      return clear();
    }
    const move = { ArrowUp: -STEP, ArrowDown: STEP, ArrowLeft: 0, ArrowRight: 0 }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    if (!choice) return begin();
    const bound = (minutes) => Math.max(first * 60, Math.min(last * 60 - STEP, minutes));
    if (move === 0) choice.day = Math.max(0, Math.min(6, choice.day + (event.key === 'ArrowLeft' ? -1 : 1)));
    else if (event.shiftKey) choice.at = bound(choice.at + move);
    else choice.anchor = choice.at = bound(choice.at + move);
    renderChoice();
  }

  /** Keys begin at ten today, or on the first day that is shown. */
  function begin() {
    const index = days.findIndex((day) => day.getTime() === startOfDay(Date.now()).getTime());
    choice = { day: Math.max(0, index), anchor: 10 * 60, at: 10 * 60 };
    renderChoice();
  }

  return { element, draw, renderNow, focus: () => columns.focus() };
}
