import { h, icon, setText, show } from './dom.js';
import { addDays, clockOf, countdown, dayLong, dayMonth, HOUR, settled, span, startOfDay, weekday } from './moments.js';
import { plural, problem, workTime } from './words.js';

const DAYS = 7;
const MOST_SLOTS = 500;
/** How long changes settle before the free times are asked for again; spread, so that not all who look ask at once. */
const QUIET_MS = 350;
/** Rules change without a word on this channel, and time goes by. */
const REFRESH_MS = 60_000;
/** The last of a hold's time. */
const HURRY_MS = 60_000;

/**
 * Free times by day, changing under one's eyes, and the one that is held.
 *
 * A time that was shown and is free no longer stays where it was, struck out: what moves under a pointer is pressed by
 * mistake.
 *
 * @param {object} options
 * @param {import('/client/index.js').RealtimeClient} options.client
 * @param {() => void} options.onchange Something was found, held, or is held no longer.
 */
export function createSlotPicker({ client, onchange }) {
  /** @type {{ service: string, zone: string } | null} */
  let about = null;
  /** @type {import('/client/index.js').Channel | null} */
  let channel = null;
  /** @type {(() => void)[]} */
  let off = [];
  let firstDay = startOfDay(Date.now());
  let chosenDay = 0;
  /** Everything shown since the week was opened, by start: free or not. @type {Map<string, { start: string, end: string, providers: Set<string> }>} */
  let seen = new Map();
  let answered = false;
  let asked = 0;
  /** @type {{ hold: any, lifeMs: number } | null} */
  let held = null;
  let busy = false;
  /** The start that is being asked for: what is heard of it before the answer is one's own doing. */
  let wanted = '';

  const title = h('p', { class: 'week-title', 'aria-live': 'polite' });
  const length = h('span', { class: 'muted slot-length', 'data-testid': 'slots-length' });
  const back = h('button', { type: 'button', class: 'button small quiet round', 'aria-label': 'Earlier days', 'data-testid': 'slots-back', onclick: () => go(-DAYS) }, icon('back'));
  const on = h('button', { type: 'button', class: 'button small quiet round', 'aria-label': 'Later days', 'data-testid': 'slots-on', onclick: () => go(DAYS) }, icon('on'));
  const days = h('div', { class: 'slot-days', role: 'radiogroup', 'aria-label': 'Day', onchange: (event) => look(Number(event.target.value)) });
  const times = h('div', { class: 'slot-times', role: 'group', 'aria-label': 'Free times', 'data-testid': 'slot-times' });
  const empty = h('p', { class: 'hint', 'data-testid': 'slots-empty', hidden: true });
  const said = h('p', { class: 'hint', role: 'status', 'data-testid': 'slots-said', hidden: true });
  const error = h('p', { class: 'error', role: 'alert', 'data-testid': 'slots-error', hidden: true });

  const bar = h('span', { class: 'countdown-bar' });
  const left = h('span', { class: 'countdown-text', 'data-testid': 'hold-countdown' });
  const what = h('strong', {});
  const giveBack = h('button', { type: 'button', class: 'button small quiet', 'data-testid': 'hold-release', onclick: () => void release() }, 'Choose another');
  const box = h(
    'div',
    { class: 'held', 'data-testid': 'hold', hidden: true },
    h('div', { class: 'held-head' }, icon('clock'), what, giveBack),
    h('div', { class: 'countdown' }, h('span', { class: 'countdown-track', 'aria-hidden': 'true' }, bar), left),
  );
  const element = h('div', { class: 'slots', hidden: true, 'data-testid': 'slots' }, h('div', { class: 'slot-bar' }, title, length, back, on), days, times, empty, said, box, error);

  const refresh = settled(() => void ask(), QUIET_MS * (1 + Math.random()));
  const ticking = setInterval(tick, 1000);
  const refreshing = setInterval(() => shown() && refresh(), REFRESH_MS);
  const shown = () => about !== null && !element.hidden;

  // --- what is free

  async function ask() {
    if (!about) return;
    const turn = ++asked;
    try {
      const { slots } = await client.call('availability.slots', {
        service_id: about.service,
        zone_id: about.zone,
        from: firstDay.toISOString(),
        to: addDays(firstDay, DAYS).toISOString(),
        limit: MOST_SLOTS,
      });
      if (turn !== asked) return;
      for (const slot of seen.values()) slot.providers.clear();
      for (const { start, end, provider_ids: ids } of slots) seen.set(start, { start, end, providers: new Set(ids) });
      if (!answered) chosenDay = Math.max(0, perDay().findIndex((list) => list.some(isFree)));
      answered = true;
      show(error, false);
    } catch (failure) {
      if (turn !== asked || failure.type === 'stopped') return;
      refuse(failure);
    }
    render();
    onchange();
  }

  /** Somebody took or gave back a provider's time: shown at once, and asked for, as travel may take more of it. */
  function heard({ type, data }) {
    if (type !== 'slot.opened') {
      const own = data.start === wanted || data.start === held?.hold.start;
      const looking = addDays(firstDay, chosenDay).getTime();
      /** @type {Date[]} */
      const gone = [];
      for (const slot of seen.values()) {
        if (slot.start >= data.end || slot.end <= data.start || !slot.providers.delete(data.provider_id)) continue;
        const start = new Date(slot.start);
        if (slot.providers.size === 0 && startOfDay(start).getTime() === looking) gone.push(start);
      }
      gone.sort((one, other) => one.getTime() - other.getTime());
      if (gone.length > 0 && !own) say(`Just taken: ${gone.map(clockOf).join(', ')}.`);
      render();
      onchange();
    }
    refresh();
  }

  const isFree = (slot) => slot.providers.size > 0 && Date.parse(slot.start) > client.serverNow();
  const isMine = (slot) => held?.hold.start === slot.start;

  function perDay() {
    const soon = client.serverNow();
    const lists = Array.from({ length: DAYS }, () => /** @type {any[]} */ ([]));
    for (const slot of seen.values()) {
      const index = Math.round((startOfDay(new Date(slot.start)).getTime() - firstDay.getTime()) / (24 * HOUR));
      if (Date.parse(slot.start) > soon) lists[index]?.push(slot);
    }
    for (const list of lists) list.sort((one, other) => one.start.localeCompare(other.start));
    return lists;
  }

  // --- what is shown

  function render() {
    if (element.hidden) return;
    setText(title, `${dayMonth(firstDay)} – ${dayMonth(addDays(firstDay, DAYS - 1))}`);
    back.disabled = firstDay.getTime() <= startOfDay(Date.now()).getTime();
    const lists = perDay();
    renderDays(lists);
    const list = lists[chosenDay] ?? [];
    const any = [...seen.values()].some((slot) => isFree(slot) || isMine(slot));
    show(days, any);
    show(empty, answered && list.every((slot) => !isFree(slot) && !isMine(slot)));
    setText(empty, any ? 'Nothing is free on this day any more.' : 'No professional shows free times in these days.');
    const known = new Map([...times.children].map((button) => [/** @type {HTMLElement} */ (button).dataset.start, button]));
    const buttons = list.map((slot) => {
      const button = /** @type {HTMLButtonElement} */ (known.get(slot.start) ?? slotButton(slot));
      button.disabled = busy || (!isFree(slot) && !isMine(slot));
      button.setAttribute('aria-pressed', String(isMine(slot)));
      button.dataset.free = String(isFree(slot));
      button.title = isMine(slot) ? 'Held for you' : isFree(slot) ? plural(slot.providers.size, 'professional') : 'No longer free';
      return button;
    });
    // Only what changed is moved, so that focus stays where it is.
    buttons.forEach((button, index) => times.children[index] !== button && times.insertBefore(button, times.children[index] ?? null));
    while (times.children.length > buttons.length) times.lastElementChild?.remove();
    renderHold();
  }

  function renderDays(lists) {
    const shape = `${firstDay.getTime()}`;
    if (days.dataset.shape !== shape) {
      days.dataset.shape = shape;
      days.replaceChildren(
        ...lists.map((_, index) => {
          const day = addDays(firstDay, index);
          return h(
            'label',
            { class: 'slot-day' },
            h('input', { type: 'radio', name: 'slot-day', value: index, 'data-testid': `slot-day-${index}`, 'aria-label': dayLong(day) }),
            h('span', {}, weekday(day)),
            h('strong', {}, String(day.getDate())),
            h('span', { class: 'muted' }),
          );
        }),
      );
    }
    lists.forEach((list, index) => {
      const label = days.children[index];
      const input = /** @type {HTMLInputElement} */ (label.querySelector('input'));
      const free = list.filter((slot) => isFree(slot) || isMine(slot)).length;
      input.disabled = free === 0 && index !== chosenDay;
      input.checked = index === chosenDay;
      setText(/** @type {Element} */ (label.querySelector('.muted')), free ? `${free} free` : '–');
    });
  }

  function slotButton(slot) {
    return h(
      'button',
      { type: 'button', class: 'slot', 'data-testid': 'slot', 'data-start': slot.start, onclick: () => void take(slot.start) },
      clockOf(new Date(slot.start)),
    );
  }

  function renderHold() {
    show(box, held !== null);
    if (!held) return;
    const { hold, lifeMs } = held;
    const leftMs = Math.max(0, Date.parse(hold.expires_at) - client.serverNow());
    const start = new Date(hold.start);
    setText(what, `${weekday(start)} ${dayMonth(start)}, ${span(start, new Date(hold.end))}`);
    setText(left, `${countdown(leftMs)} left`);
    bar.style.transform = `scaleX(${Math.min(1, leftMs / lifeMs)})`;
    box.classList.toggle('hurry', leftMs < HURRY_MS);
  }

  function tick() {
    if (!held) return;
    if (Date.parse(held.hold.expires_at) > client.serverNow()) return renderHold();
    lose('The time you held ran out. Choose one again.');
  }

  function say(text) {
    setText(said, text);
    show(said, Boolean(text));
  }

  function refuse(failure) {
    setText(error, problem(failure));
    show(error, true);
  }

  function look(index) {
    chosenDay = index;
    say('');
    render();
  }

  function go(by) {
    firstDay = addDays(firstDay, by);
    restart();
  }

  function restart() {
    seen = new Map();
    answered = false;
    chosenDay = 0;
    times.replaceChildren();
    say('');
    show(error, false);
    render();
    void ask();
  }

  // --- holding one

  async function take(start) {
    if (!about || busy || held?.hold.start === start) return;
    busy = true;
    wanted = start;
    say('');
    show(error, false);
    const before = held;
    const asked = about;
    try {
      const { hold } = await client.call('slot.hold', { service_id: asked.service, zone_id: asked.zone, start });
      // Meanwhile something else is wanted: nobody would see this hold, nor give it back.
      if (about !== asked) return void giveUp(hold);
      held = { hold, lifeMs: Math.max(1, Date.parse(hold.expires_at) - Date.parse(hold.server_time)) };
      // Only now: whoever changes their mind must not end up with nothing.
      if (before) void giveUp(before.hold);
    } catch (failure) {
      if (about !== asked) return;
      if (failure.type === 'slot_taken' || failure.type === 'slot_closed') {
        seen.get(start)?.providers.clear();
        say(`${clockOf(new Date(start))} is not free any more: somebody was faster. Choose another time.`);
      } else refuse(failure);
      refresh();
    } finally {
      busy = false;
      wanted = '';
      render();
      onchange();
    }
  }

  async function release() {
    const before = held;
    held = null;
    if (before) await giveUp(before.hold);
    refresh();
    render();
    onchange();
  }

  /** Gives a hold back; one that is gone already is as good as given back. */
  const giveUp = (hold) => client.call('slot.release', { hold_id: hold.id }).catch(() => undefined);

  function lose(why) {
    held = null;
    say(why);
    refresh();
    render();
    onchange();
  }

  function listen() {
    off.forEach((stop) => stop());
    off = [];
    channel?.unsubscribe();
    channel = null;
    if (!about) return;
    channel = client.channel(`availability:${about.service}:${about.zone}`);
    off = [channel.on('*', heard), channel.on('resumed', refresh), channel.on('snapshot', ({ gap }) => gap && refresh())];
    channel.subscribe().catch(() => undefined);
  }

  return {
    element,
    get hold() {
      return held?.hold ?? null;
    },
    /** Whether there is anything to choose; null while nobody knows. */
    get found() {
      return answered ? seen.size > 0 || firstDay.getTime() > startOfDay(Date.now()).getTime() : null;
    },
    /**
     * What the times are for. A hold for something else is given back.
     *
     * @param {string | undefined} service
     * @param {string | undefined} zone
     * @param {number} [minutes] How long the work takes, where that is known.
     */
    about(service, zone, minutes) {
      setText(length, minutes ? `${workTime(minutes)} each` : '');
      if (about?.service === service && about?.zone === zone) return;
      about = service && zone ? { service, zone } : null;
      if (held) void release();
      show(element, about !== null);
      firstDay = startOfDay(Date.now());
      listen();
      restart();
    },
    /** The hold was used. */
    booked() {
      held = null;
      refresh();
      render();
    },
    lose,
    dispose() {
      clearInterval(ticking);
      clearInterval(refreshing);
      refresh.cancel();
      off.forEach((stop) => stop());
    },
  };
}
