/** Days and times on the wall clock of this browser. Days are dates at midnight; spans are in minutes since then. */

export const MINUTE = 60_000;
export const HOUR = 60 * MINUTE;
/** Minutes of a day on the wall clock, also where a clock change makes it longer or shorter. */
export const DAY_MINUTES = 24 * 60;

const WEEKDAY = new Intl.DateTimeFormat(undefined, { weekday: 'short' });
const WEEKDAY_LONG = new Intl.DateTimeFormat(undefined, { weekday: 'long' });
const DAY_LONG = new Intl.DateTimeFormat(undefined, { weekday: 'long', day: 'numeric', month: 'long' });
const DAY_MONTH = new Intl.DateTimeFormat(undefined, { day: 'numeric', month: 'short' });
const CLOCK = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit' });

/** @param {Date} day */
export const weekday = (day) => WEEKDAY.format(day);
/** @param {Date} day */
export const weekdayLong = (day) => WEEKDAY_LONG.format(day);
/** @param {Date} day */
export const dayLong = (day) => DAY_LONG.format(day);
/** @param {Date} day */
export const dayMonth = (day) => DAY_MONTH.format(day);
/** @param {Date} moment */
export const clockOf = (moment) => CLOCK.format(moment);

/** @param {Date} from @param {Date} to */
export const span = (from, to) => `${clockOf(from)}–${clockOf(to)}`;

/** The time zone of this browser, of the IANA database. */
export const ownZone = () => new Intl.DateTimeFormat().resolvedOptions().timeZone || 'UTC';

/** @param {Date | number} moment */
export function startOfDay(moment) {
  const day = new Date(moment);
  day.setHours(0, 0, 0, 0);
  return day;
}

/** The Monday on or before a day. @param {Date | number} moment */
export function startOfWeek(moment) {
  const day = startOfDay(moment);
  return addDays(day, -((day.getDay() + 6) % 7));
}

/** Calendar days, not multiples of 24 hours. @param {Date} day @param {number} count */
export function addDays(day, count) {
  const other = new Date(day);
  other.setDate(other.getDate() + count);
  return other;
}

/** @param {Date} day Midnight. @param {number} minutes Since then, on the wall clock. */
export function atMinutes(day, minutes) {
  const moment = new Date(day);
  moment.setMinutes(minutes);
  return moment;
}

/**
 * The part of a time that lies on a day, in minutes of the wall clock.
 *
 * @param {Date} day
 * @param {Date} start
 * @param {Date} end
 * @returns {{ from: number, to: number } | null} Null when it does not touch the day.
 */
export function onDay(day, start, end) {
  const next = addDays(day, 1);
  if (end <= day || start >= next) return null;
  const minutes = (/** @type {Date} */ moment) => moment.getHours() * 60 + moment.getMinutes();
  const from = start <= day ? 0 : minutes(start);
  const to = end >= next ? DAY_MINUTES : minutes(end);
  return to > from ? { from, to } : null;
}

/** A date and time as `datetime-local` and the server's local times want it. @param {Date} moment */
export function localMoment(moment) {
  const two = (/** @type {number} */ number) => String(number).padStart(2, '0');
  const date = `${moment.getFullYear()}-${two(moment.getMonth() + 1)}-${two(moment.getDate())}`;
  return `${date}T${two(moment.getHours())}:${two(moment.getMinutes())}`;
}

/** Time that is left, as `4:59` or `2 h 10 min`. @param {number} milliseconds */
export function countdown(milliseconds) {
  const seconds = Math.max(0, Math.ceil(milliseconds / 1000));
  const hours = Math.floor(seconds / 3600);
  if (hours > 47) return `${Math.round(hours / 24)} days`;
  if (hours > 0) return `${hours} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, '0')}`;
}

/**
 * Lets a burst of reasons be one action: it runs when nothing was asked for this long, and at least once in four times as
 * long.
 *
 * @param {() => void} action
 * @param {number} quietMs
 */
export function settled(action, quietMs) {
  /** @type {any} */
  let timer = null;
  let since = 0;
  const run = () => {
    timer = null;
    since = 0;
    action();
  };
  const ask = () => {
    const now = Date.now();
    since ||= now;
    if (timer !== null) clearTimeout(timer);
    timer = setTimeout(run, Math.max(0, Math.min(quietMs, since + 4 * quietMs - now)));
  };
  ask.cancel = () => {
    clearTimeout(timer);
    timer = null;
    since = 0;
  };
  return ask;
}
