import { h, icon, setText, show } from './dom.js';
import { createMap } from './map.js';
import { clockOf, localMoment, MINUTE, ownZone, weekday, weekdayLong } from './moments.js';
import { createSlotPicker } from './slot-picker.js';
import { money, problem, workTime } from './words.js';

const BYDAY = ['SU', 'MO', 'TU', 'WE', 'TH', 'FR', 'SA'];
/** Of a wish for any time when the service does not say; a free time brings its own length. */
const USUAL_MINUTES = 60;
/** The hold is no more; another time has to be chosen. */
const HOLD_GONE = new Set(['hold_expired', 'slot_taken', 'slot_closed']);

/**
 * What is needed, when and where: as soon as possible, at a free time that is held meanwhile, or at any time that
 * professionals are then asked about.
 *
 * @param {object} options
 * @param {import('/client/index.js').RealtimeClient} options.client
 * @param {(booking: any) => void} options.onbooked
 * @param {(series: any) => void} options.onseries
 */
export function bookingForm({ client, onbooked, onseries }) {
  /** @type {{ lat: number, lon: number } | null} */
  let place = null;
  let folded = false;
  let busy = false;

  const services = h('div', { class: 'tiles', role: 'radiogroup', 'aria-label': 'Service', onchange: renderWhen });
  const when = h(
    'div',
    { class: 'segments', role: 'radiogroup', 'aria-label': 'When', onchange: renderWhen },
    segment('kind', 'on_demand', 'As soon as possible', true),
    segment('kind', 'scheduled', 'At a time', false),
  );
  const picker = createSlotPicker({ client, onchange: renderChoice });
  const start = h('input', { type: 'datetime-local', id: 'customer-start', 'data-testid': 'customer-start', onchange: renderChoice });
  const startField = h('div', { class: 'field', hidden: true }, h('label', { for: 'customer-start' }, 'Start'), start);
  const anyTime = h(
    'button',
    {
      type: 'button',
      class: 'button small quiet',
      'data-testid': 'customer-any-time',
      'aria-pressed': 'false',
      onclick: () => anyTime.setAttribute('aria-pressed', String(anyTime.getAttribute('aria-pressed') !== 'true')) ?? renderChoice(),
    },
    'None fits? Ask for another time',
  );
  const repeat = h('input', { type: 'checkbox', 'data-testid': 'customer-repeat', onchange: renderChoice });
  const repeatLabel = h('span', {});
  const repeatRow = h('label', { class: 'check', hidden: true }, repeat, repeatLabel);
  const repeatNote = h(
    'p',
    { class: 'hint', role: 'status', 'data-testid': 'customer-repeat-note', hidden: true },
    'The same provider every week. A week that is not free is left out, and you are told.',
  );
  const map = createMap({
    label: 'Place of the job. Click, or move the pin with the arrow keys.',
    width: 360,
    height: 190,
    testid: 'customer-map',
    onpick: (point) => {
      place = point;
      map.setMarkers([{ id: 'pin', kind: 'pin', at: point, tone: 'work', label: 'The job' }]);
      renderPlace();
      renderWhen();
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
    picker.element,
    anyTime,
    startField,
    repeatRow,
    repeatNote,
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

  const chosenService = () => known.find(({ id }) => id === chosen('service'));
  const scheduled = () => chosen('kind') === 'scheduled';
  /** Whether a time is asked for that nobody has shown as free. */
  const asksAnyTime = () => scheduled() && (picker.found === false || anyTime.getAttribute('aria-pressed') === 'true');

  function renderWhen() {
    const zone = place ? map.zoneAt(place) : undefined;
    picker.about(scheduled() ? chosen('service') : undefined, zone, chosenService()?.duration_minutes);
    renderChoice();
  }

  function renderChoice() {
    const any = asksAnyTime();
    show(picker.element, scheduled() && !any);
    show(anyTime, scheduled() && picker.found === true);
    setText(anyTime, any ? 'Back to free times' : 'None fits? Ask for another time');
    show(startField, any);
    start.required = any;
    if (any && !start.value) start.value = localMoment(new Date(Date.now() + 24 * 60 * MINUTE));
    const moment = chosenStart();
    show(repeatRow, moment !== null);
    if (moment) setText(repeatLabel, `Repeat every ${weekdayLong(moment)} at ${clockOf(moment)}`);
    show(repeatNote, moment !== null && repeat.checked && !any);
    renderButton();
  }

  /** The moment that is asked for; null for as soon as possible, or while none is chosen. */
  function chosenStart() {
    if (asksAnyTime()) return start.value ? new Date(start.value) : null;
    return scheduled() && picker.hold ? new Date(picker.hold.start) : null;
  }

  function renderButton() {
    const service = chosenService();
    const choosing = scheduled() && !asksAnyTime() && !picker.hold;
    button.disabled = busy || choosing;
    if (!service) return setText(button, 'Book');
    if (choosing) return setText(button, 'Choose a time');
    const price = money(service.price);
    if (!scheduled()) return setText(button, `Book ${service.name.toLowerCase()} · ${price}`);
    if (asksAnyTime()) return setText(button, `Schedule ${service.name.toLowerCase()} · ${price}`);
    const moment = /** @type {Date} */ (chosenStart());
    setText(button, `Book ${weekday(moment)} ${clockOf(moment)} · ${price}`);
  }

  function renderPlace() {
    if (!place) return;
    const covered = map.covers(place);
    where.dataset.tone = covered ? '' : 'bad';
    setText(where, covered ? `Job at ${place.lat.toFixed(4)}, ${place.lon.toFixed(4)}. Click the map to move it.` : 'Outside the area we serve. Choose a place inside it.');
  }

  async function book(event) {
    event.preventDefault();
    show(error, false);
    busy = true;
    renderButton();
    const hold = scheduled() && !asksAnyTime() ? picker.hold : null;
    const moment = chosenStart();
    const wish = { service_id: chosen('service'), location: place, ...(notes.value.trim() && { notes: notes.value.trim() }) };
    const again = moment !== null && repeat.checked;
    try {
      if (hold) await bookHold(wish, hold, again);
      else if (again) onseries((await client.call('series.create', { ...wish, recurrence: weekly(moment, chosenService()?.duration_minutes ?? USUAL_MINUTES) })).series);
      else {
        const result = await client.call('booking.create', { ...wish, kind: chosen('kind'), ...(moment && { start: moment.toISOString() }) });
        onbooked(result.booking);
      }
      notes.value = '';
      repeat.checked = false;
      anyTime.setAttribute('aria-pressed', 'false');
      const next = map.somewhere();
      if (next) map.pick(next);
    } catch (failure) {
      if (hold && HOLD_GONE.has(failure.type)) picker.lose(failure.message);
      setText(error, problem(failure));
      show(error, true);
    } finally {
      busy = false;
      renderChoice();
    }
  }

  /** What is held becomes a booking, or the first of many: in one step, so that there is never only a part of it. */
  async function bookHold(wish, hold, again) {
    if (again) {
      const minutes = (Date.parse(hold.end) - Date.parse(hold.start)) / MINUTE;
      const recurrence = weekly(new Date(hold.start), minutes);
      const { series } = await client.call('series.create', { ...wish, recurrence, hold_id: hold.id });
      picker.booked();
      return onseries(series);
    }
    const { booking } = await client.call('booking.create', { ...wish, kind: 'scheduled', hold_id: hold.id });
    picker.booked();
    onbooked(booking);
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
            h('span', { class: 'tile-price' }, priceAndTime(service)),
          ),
        ),
      );
      map.setZones(zones);
      const somewhere = map.somewhere();
      if (somewhere) map.pick(somewhere);
      renderChoice();
    },
    dispose: () => picker.dispose(),
  };
}

/** @param {string} name @param {string} value @param {string} label @param {boolean} checked */
function segment(name, value, label, checked) {
  return h('label', {}, h('input', { type: 'radio', name, value, checked, 'data-testid': `customer-${name}-${value}` }), h('span', {}, label));
}

/** @param {any} service Older servers do not say how long it takes. */
const priceAndTime = ({ price, duration_minutes: minutes }) => (minutes ? `${money(price)} · ${workTime(minutes)}` : money(price));

/** A rule of RFC 5545 on the wall clock of this browser. @param {Date} first @param {number} minutes */
function weekly(first, minutes) {
  return { rrule: `FREQ=WEEKLY;BYDAY=${BYDAY[first.getDay()]}`, tzid: ownZone(), dtstart: localMoment(first), duration_minutes: minutes };
}
