import { createChat, unreadLabel } from './chat.js';
import { h, icon, setText, show } from './dom.js';
import { createMap } from './map.js';
import { code, dayAndTime, distance, isActive, isTracked, minutes, money, problem, reasonText, statusOf, STEPS } from './words.js';

const CANCEL_REASONS = ['No longer needed', 'Booked by mistake', 'Takes too long', 'Something else'];
const CANCELLABLE = new Set(['pending', 'awaiting_assignment', 'assigned', 'scheduled', 'en_route', 'arrived']);

/**
 * One booking: where it stands, what is known of the arrival, its conversation, and what this person can do.
 *
 * The card follows `booking:` and `conversation:` while the booking is active. It changes in place, so that focus and
 * half-written messages survive every event.
 *
 * @param {object} options
 * @param {any} options.booking
 * @param {import('./pane.js').Person} options.person
 * @param {(id: string) => string} options.serviceName
 * @param {(booking: any) => void} options.onbooking Newer versions, from wherever they come.
 * @param {() => void} [options.onlost] The booking is no longer this person's.
 * @param {HTMLElement} [options.actions] What the role adds.
 * @param {{ id: string, name: string, geometry: any }[]} [options.zones] For the map of a provider on the way.
 */
export function createBookingCard({ booking: first, person, serviceName, onbooking, onlost, actions, zones }) {
  const { client, user } = person;
  const id = first.id;
  let booking = first;
  /** @type {ReturnType<typeof createChat> | null} */
  let chat = null;
  let eta = null;
  /** @type {{ lat: number, lon: number } | null} */
  let position = null;
  /** @type {ReturnType<typeof createMap> | null} */
  let map = null;

  const title = h('h4', { class: 'card-title' });
  const status = h('span', { class: 'pill', 'data-testid': 'booking-status' });
  const caughtUp = h('span', { class: 'tag', hidden: true, title: 'This happened while the network was cut' }, 'caught up');
  const facts = h('p', { class: 'facts' });
  const notes = h('p', { class: 'quote', hidden: true });
  const steps = h('ol', { class: 'stepper', 'aria-label': 'Progress' }, ...STEPS.map((step) => h('li', {}, h('span', {}, step))));
  const arrival = h('p', { class: 'arrival', 'data-testid': 'booking-eta', hidden: true });
  const mapPlace = h('div', { class: 'card-map', hidden: true });
  const error = h('p', { class: 'error', role: 'alert', hidden: true });
  const badge = h('span', { class: 'badge', 'data-testid': 'chat-unread', hidden: true });
  const chatButton = h(
    'button',
    { type: 'button', class: 'button small', 'data-testid': 'booking-chat', 'aria-expanded': 'false', onclick: toggleChat },
    icon('chat'),
    h('span', {}, 'Chat'),
    badge,
  );
  const cancelButton = h(
    'button',
    { type: 'button', class: 'button small quiet', 'data-testid': 'booking-cancel', onclick: () => askCancel(true) },
    'Cancel',
  );
  const reason = h(
    'select',
    { 'aria-label': 'Reason for cancelling', 'data-testid': 'cancel-reason' },
    ...CANCEL_REASONS.map((text) => h('option', {}, text)),
  );
  const confirm = h(
    'div',
    { class: 'confirm', hidden: true },
    reason,
    h('button', { type: 'button', class: 'button small danger', 'data-testid': 'cancel-confirm', onclick: cancel }, 'Cancel booking'),
    h('button', { type: 'button', class: 'button small quiet', onclick: () => askCancel(false) }, 'Keep'),
  );
  const element = h(
    'article',
    { class: 'card booking', 'data-testid': 'booking-card', 'data-booking-id': id, 'aria-label': `Booking ${code(id)}` },
    h('header', { class: 'card-head' }, title, caughtUp, status),
    facts,
    notes,
    steps,
    arrival,
    mapPlace,
    actions ?? null,
    error,
    h('footer', { class: 'card-foot' }, chatButton, cancelButton),
    confirm,
  );

  function render() {
    const { label, tone, step } = statusOf(booking.status);
    element.dataset.status = booking.status;
    element.classList.toggle('ended', !isActive(booking));
    setText(title, serviceName(booking.service_id));
    setText(status, label);
    status.dataset.tone = tone;
    setText(facts, factsOf(booking));
    setText(notes, booking.notes ?? '');
    show(notes, Boolean(booking.notes) && isActive(booking));
    show(steps, isActive(booking) && step >= 0);
    [...steps.children].forEach((item, index) => {
      item.className = index < step ? 'past' : index === step ? 'now' : '';
      if (index === step) item.setAttribute('aria-current', 'step');
      else item.removeAttribute('aria-current');
    });
    const expected = booking.status === 'en_route' && eta;
    setText(arrival, expected ? `Arriving in ${minutes(eta.eta_seconds)} · ${distance(eta.distance_m)} away` : '');
    show(arrival, Boolean(expected));
    show(cancelButton, CANCELLABLE.has(booking.status));
    if (!CANCELLABLE.has(booking.status)) show(confirm, false);
    renderMap();
  }

  function renderMap() {
    const wanted = Boolean(zones && position && isTracked(booking) && booking.status === 'en_route');
    show(mapPlace, wanted);
    if (!wanted || !position) return;
    if (!map) {
      map = createMap({ label: 'Where the professional is', width: 360, height: 150, testid: 'booking-map' });
      mapPlace.append(map.element);
      map.setZones(zones ?? []);
      map.frame([position, booking.location]);
    }
    map.setRoute([position, booking.location]);
    map.setMarkers([
      { id: 'job', kind: 'pin', at: booking.location, tone: 'work', label: 'The job' },
      { id: 'provider', kind: 'provider', at: position, tone: 'move', label: 'The professional' },
    ]);
  }

  function follow() {
    const channel = client.channel(`booking:${id}`);
    const off = [
      channel.on('snapshot', ({ state }) => state && onbooking(state.booking)),
      channel.on('*', (event) => {
        if (event.data.booking) onbooking(event.data.booking);
        if (event.recovered) show(caughtUp, true);
      }),
      channel.on('eta.updated', ({ data }) => {
        eta = data;
        render();
      }),
      channel.on('location.moved', ({ data }) => {
        position = { lat: data.lat, lon: data.lon };
        render();
      }),
      // Refused for lack of room is no loss: the card then lives on what the other channels say.
      channel.on('lost', ({ error: why }) => why.type === 'not_found' && onlost?.()),
    ];
    channel.subscribe().catch(() => undefined);
    return () => {
      for (const stop of off) stop();
      channel.unsubscribe();
    };
  }

  function openChat() {
    chat ??= createChat({
      client,
      conversationId: booking.conversation_id ?? id,
      userId: user.id,
      onunread: (unread) => {
        setText(badge, unread ? String(unread) : '');
        badge.title = unreadLabel(unread);
        show(badge, unread > 0);
      },
    });
    if (!chat.element.parentNode) element.append(chat.element);
    return chat;
  }

  function toggleChat() {
    const opened = openChat();
    opened.toggle(!opened.open);
    chatButton.setAttribute('aria-expanded', String(opened.open));
  }

  /** @param {boolean} asking */
  function askCancel(asking) {
    show(confirm, asking);
    show(cancelButton, !asking);
    (asking ? reason : cancelButton).focus();
  }

  async function cancel() {
    const done = await attempt(() => client.call('booking.cancel', { booking_id: id, reason: reason.value }));
    if (done) show(confirm, false);
  }

  /** Runs a command that returns the booking; shows what went wrong. @param {() => Promise<any>} command */
  async function attempt(command) {
    show(error, false);
    element.toggleAttribute('aria-busy', true);
    try {
      const { booking: newer } = await command();
      onbooking(newer);
      return true;
    } catch (failure) {
      setText(error, problem(failure));
      show(error, true);
      return false;
    } finally {
      element.toggleAttribute('aria-busy', false);
    }
  }

  let unfollow = isActive(booking) ? follow() : null;
  if (isActive(booking)) openChat();
  render();

  return {
    element,
    attempt,
    get booking() {
      return booking;
    },
    /** @param {any} newer */
    update(newer) {
      booking = newer;
      if (!isActive(booking)) {
        unfollow?.();
        unfollow = null;
      }
      render();
    },
    /** @param {string | undefined} why */
    explain(why) {
      if (why) setText(facts, `${factsOf(booking)} · ${reasonText(why)}`);
    },
    markCaughtUp: () => show(caughtUp, true),
    dispose() {
      unfollow?.();
      chat?.dispose();
      element.remove();
    },
  };
}

/** @param {any} booking */
function factsOf(booking) {
  const when = booking.start ? dayAndTime(booking.start) : `booked ${dayAndTime(booking.created_at)}`;
  return [`#${code(booking.id)}`, money(booking.price), when, booking.location.address].filter(Boolean).join(' · ');
}
