import { h, setText, show } from './dom.js';
import { code } from './words.js';

/** More than these are too many to act on at a glance. */
const SHOWN = 5;
const CLOCKS = { response: 'Somebody takes it', arrival: 'Arrival', completion: 'Completion' };
const TICKING = ['running', 'warned'];

/**
 * Deadlines to come, soonest first, each with the time that is left.
 *
 * Clocks come with bookings and with `sla.*` events; their own `version` says which are newer.
 *
 * @param {object} options
 * @param {() => number} options.now The server's time in milliseconds.
 * @param {(bookingId: string) => void} options.open
 */
export function createRisks({ now, open }) {
  const list = h('ol', { class: 'risks', 'data-testid': 'admin-risks', 'aria-label': 'Deadlines to come' });
  const element = h('section', { class: 'stack tight', hidden: true }, h('h3', { class: 'section-title' }, 'Due next'), list);
  /** @type {Map<string, any>} */
  const clocks = new Map();
  const timer = setInterval(render, 1000);

  function soonest() {
    const due = [];
    for (const [id, sla] of clocks) {
      for (const [name, label] of Object.entries(CLOCKS)) {
        const clock = sla[name];
        if (clock && TICKING.includes(clock.status)) due.push({ id, label, status: clock.status, at: Date.parse(clock.due_at) });
      }
    }
    return due.sort((one, other) => one.at - other.at).slice(0, SHOWN);
  }

  function render() {
    const due = soonest();
    show(element, due.length > 0);
    while (list.children.length > due.length) list.lastElementChild?.remove();
    while (list.children.length < due.length) list.append(row());
    due.forEach(({ id, label, status, at }, index) => {
      const item = /** @type {HTMLElement} */ (list.children[index]);
      const [button] = item.children;
      const [what, left] = button.children;
      item.dataset.id = id;
      item.dataset.tone = status === 'warned' ? 'bad' : 'wait';
      setText(what, `${label} #${code(id)}`);
      setText(left, countdown(at - now()));
    });
  }

  /** A row names its booking when it is pressed: what it shows changes under the pointer. */
  function row() {
    const button = h('button', { type: 'button', class: 'feed-row', onclick: pressed }, h('span', {}), h('strong', {}));
    return h('li', {}, button);
  }

  function pressed(event) {
    open(event.currentTarget.parentElement.dataset.id);
  }

  return {
    element,
    /** @param {string} id @param {any} sla */
    put(id, sla) {
      if (!sla || (clocks.get(id)?.version ?? -1) >= sla.version) return;
      if (Object.values(sla).some((clock) => TICKING.includes(clock.status))) clocks.set(id, sla);
      else clocks.delete(id);
      render();
    },
    /** Begins anew, with what a snapshot brings. */
    clear() {
      clocks.clear();
      render();
    },
    dispose: () => clearInterval(timer),
  };
}

/** @param {number} milliseconds */
function countdown(milliseconds) {
  const seconds = Math.max(0, Math.round(milliseconds / 1000));
  const hours = Math.floor(seconds / 3600);
  if (hours > 0) return `${hours} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, '0')}`;
}
