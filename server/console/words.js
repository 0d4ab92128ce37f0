/** How states, events and amounts are put for people. */

/**
 * Statuses of a booking: label, tone (a colour of the palette) and step in the life of a job (-1: off the path).
 *
 * @type {Record<string, { label: string, tone: string, step: number }>}
 */
export const STATUS = {
  pending: { label: 'Requested', tone: 'wait', step: 0 },
  awaiting_assignment: { label: 'Finding a professional', tone: 'wait', step: 0 },
  assigned: { label: 'Assigned', tone: 'set', step: 1 },
  scheduled: { label: 'Scheduled', tone: 'set', step: 1 },
  en_route: { label: 'On the way', tone: 'move', step: 2 },
  arrived: { label: 'Arrived', tone: 'move', step: 3 },
  in_progress: { label: 'Work in progress', tone: 'work', step: 4 },
  paused: { label: 'Paused', tone: 'wait', step: 4 },
  completed: { label: 'Completed', tone: 'done', step: 5 },
  unfulfilled: { label: 'Nobody available', tone: 'bad', step: -1 },
  cancelled: { label: 'Cancelled', tone: 'off', step: -1 },
  no_show: { label: 'No-show', tone: 'bad', step: -1 },
  disputed: { label: 'In dispute', tone: 'bad', step: -1 },
};

export const STEPS = ['Finding', 'Assigned', 'En route', 'Arrived', 'Working', 'Done'];

const ENDED = new Set(['completed', 'cancelled', 'unfulfilled', 'no_show']);

/** @param {{ status: string }} booking */
export const isActive = (booking) => !ENDED.has(booking.status);

const LATER_MS = 8 * 24 * 3_600_000;

/** So far ahead that it waits folded: a series makes many at once. @param {{ start?: string }} booking @param {number} now */
export const isLater = (booking, now) => Boolean(booking.start) && Date.parse(/** @type {string} */ (booking.start)) > now + LATER_MS;

/** A provider shares its position with the booking's people in these. */
export const isTracked = (booking) => ['en_route', 'arrived', 'in_progress', 'paused'].includes(booking.status);

/** @param {string} status */
export const statusOf = (status) => STATUS[status] ?? { label: status.replaceAll('_', ' '), tone: 'off', step: -1 };

/** @type {Record<string, string>} */
const EVENT_LABELS = {
  'booking.created': 'Booked',
  'booking.dispatch_started': 'Looking for a professional',
  'booking.assigned': 'Assigned',
  'booking.unfulfilled': 'Nobody available',
  'booking.en_route': 'On the way',
  'booking.arrived': 'Arrived',
  'booking.started': 'Work started',
  'booking.paused': 'Work paused',
  'booking.resumed': 'Work resumed',
  'booking.completed': 'Completed',
  'booking.cancelled': 'Cancelled',
  'booking.rescheduled': 'Rescheduled',
  'booking.reassignment_started': 'Looking again',
  'booking.rescue_needed': 'Needs operations',
  'sla.warned': 'Deadline near',
  'sla.breached': 'Deadline missed',
  'booking.stalled': 'Driver stands still',
  'booking.no_show_recorded': 'No-show',
  'offer.made': 'Offer sent',
  'offer.accepted': 'Offer accepted',
  'offer.declined': 'Offer declined',
  'offer.expired': 'Offer expired',
  'offer.withdrawn': 'Offer withdrawn',
  'dispute.opened': 'Dispute opened',
  'dispute.resolved': 'Dispute resolved',
};

/** @param {string} type */
export const eventLabel = (type) => EVENT_LABELS[type] ?? type.replace(/[._]/g, ' ');

/** @type {Record<string, string>} */
const REASONS = {
  taken: 'another provider was faster',
  cancelled: 'the customer cancelled',
  reassigned: 'operations reassigned the job',
  rescheduled: 'the job was rescheduled',
};

/** @param {string | undefined} reason */
export const reasonText = (reason) => (reason ? (REASONS[reason] ?? reason.replaceAll('_', ' ')) : '');

/** @type {Record<string, { label: string, tone: string }>} */
export const PRESENCE = {
  online: { label: 'Online', tone: 'done' },
  away: { label: 'Away', tone: 'wait' },
  busy: { label: 'On a job', tone: 'move' },
  offline: { label: 'Offline', tone: 'off' },
};

/** @param {{ amount_minor: number, currency: string }} money */
export function money({ amount_minor: minor, currency }) {
  const format = new Intl.NumberFormat(undefined, { style: 'currency', currency });
  const digits = format.resolvedOptions().maximumFractionDigits ?? 2;
  return format.format(minor / 10 ** digits);
}

const CLOCK = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit' });
const CLOCK_SECONDS = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit' });
const DAY = new Intl.DateTimeFormat(undefined, { weekday: 'short', day: 'numeric', month: 'short' });

/** @param {string} moment RFC 3339. */
export const clock = (moment) => CLOCK.format(new Date(moment));

/** @param {string} moment RFC 3339. */
export const clockSeconds = (moment) => CLOCK_SECONDS.format(new Date(moment));

/** @param {string} moment RFC 3339. */
export function dayAndTime(moment) {
  const date = new Date(moment);
  const today = date.toDateString() === new Date().toDateString();
  return today ? `today, ${CLOCK.format(date)}` : `${DAY.format(date)}, ${CLOCK.format(date)}`;
}

/** @param {number} seconds */
export function minutes(seconds) {
  return seconds < 60 ? 'under a minute' : `${Math.round(seconds / 60)} min`;
}

/** How long work takes. @param {number} count Of minutes. */
export function workTime(count) {
  const parts = [[Math.floor(count / 60), 'h'], [count % 60, 'min']];
  return parts.flatMap(([number, unit]) => (number ? `${number} ${unit}` : [])).join(' ');
}

/** @param {number} metres */
export function distance(metres) {
  return metres < 950 ? `${Math.round(metres / 10) * 10} m` : `${(metres / 1000).toFixed(1)} km`;
}

/** @param {number} ms */
export function duration(ms) {
  const seconds = Math.round(ms / 1000);
  return seconds < 60 ? `${Math.max(1, seconds)} s` : `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}

/**
 * The name of a service; until the list is there, its id made presentable.
 *
 * @param {{ id: string, name: string }[]} services
 * @param {string} id
 */
export function nameOf(services, id) {
  return services.find((service) => service.id === id)?.name ?? id.slice(0, 1).toUpperCase() + id.slice(1);
}

/** The part of a long id that tells two of them apart at a glance. @param {string} id */
export const code = (id) => id.slice(-5).toUpperCase();

/** @param {number} count @param {string} noun */
export const plural = (count, noun) => `${count} ${noun}${count === 1 ? '' : 's'}`;

/** What to show for an error of the client. @param {any} error */
export function problem(error) {
  const details = error.errors?.length ? ` ${error.errors.map(({ where, why }) => `${where}: ${why}`).join('; ')}.` : '';
  if (error.type === 'timeout') return 'No answer came in time. Check the connection and try again.';
  return `${error.message}${details}`;
}
