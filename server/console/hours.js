import { localMoment, ownZone, startOfWeek } from './moments.js';

/**
 * Weekly working hours, as people write them down, and as the rules of RFC 5545 that the server keeps.
 *
 * @typedef {object} Hours
 * @property {string[]} days Of `DAYS`.
 * @property {string} from `09:00`
 * @property {string} to Not after `from` means: on the next day.
 * @property {string} tzid
 * @property {string} [since] The date before which they do not apply; kept of a rule that is there already.
 *
 * @typedef {{ rrule: string, tzid: string, dtstart: string, duration_minutes: number }} Rule
 */

export const DAYS = ['MO', 'TU', 'WE', 'TH', 'FR', 'SA', 'SU'];
const LONGEST = 24 * 60;

const minutesOf = (/** @type {string} */ time) => Number(time.slice(0, 2)) * 60 + Number(time.slice(3, 5));
const timeOf = (/** @type {number} */ minutes) =>
  `${String(Math.floor(minutes / 60) % 24).padStart(2, '0')}:${String(minutes % 60).padStart(2, '0')}`;

/** @returns {Hours} What most begin with. */
export const usualHours = () => ({ days: DAYS.slice(0, 5), from: '09:00', to: '17:00', tzid: ownZone() });

/** @param {Hours} hours @returns {boolean} Whether they end on the day after. */
export const overnight = ({ from, to }) => minutesOf(to) <= minutesOf(from);

/** @param {Hours} hours @returns {Rule} */
export function ruleOf({ days, from, to, tzid, since }) {
  const length = (minutesOf(to) - minutesOf(from) + LONGEST) % LONGEST || LONGEST;
  const date = since ?? localMoment(startOfWeek(Date.now())).slice(0, 10);
  const byday = DAYS.filter((day) => days.includes(day)).join(',');
  return { rrule: `FREQ=WEEKLY;BYDAY=${byday}`, tzid, dtstart: `${date}T${from}`, duration_minutes: length };
}

/**
 * @param {Rule} rule
 * @returns {Hours | null} Null when the rule says more than hours by weekday; such a rule is kept as it is.
 */
export function hoursOf({ rrule, tzid, dtstart, duration_minutes: length }) {
  const parts = new Map(rrule.split(';').map((part) => /** @type {[string, string]} */ (part.split('='))));
  const days = parts.get('BYDAY')?.split(',') ?? [];
  const plain = [...parts.keys()].every((name) => ['FREQ', 'BYDAY', 'WKST'].includes(name));
  if (!plain || parts.get('FREQ') !== 'WEEKLY' || days.length === 0 || !days.every((day) => DAYS.includes(day))) return null;
  const from = dtstart.slice(11, 16);
  return { days, from, to: timeOf(minutesOf(from) + length), tzid, since: dtstart.slice(0, 10) };
}
