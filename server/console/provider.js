import { EntityStore } from '/client/index.js';
import { createBookingCard } from './booking-card.js';
import { h, icon, once, setText, show } from './dom.js';
import { startDrive } from './drive.js';
import { createFold } from './fold.js';
import { listBookings } from './listing.js';
import { settled } from './moments.js';
import { createOfferCard } from './offer-card.js';
import { createWeek } from './week.js';
import { isActive, isLater, nameOf, PRESENCE, problem, reasonText } from './words.js';

const QUIET_MS = 200;
/** Members who plan, and hear everything about their organisation's jobs. */
const MANAGERS = ['owner', 'dispatcher'];
/** Reasons of a change that came from a calendar elsewhere. */
const CALENDARS_READ = new Set(['busy_times_changed', 'calendar_not_read']);

/** Steps a provider can take from each status: the first is the usual one. @type {Record<string, { to: string, label: string }[]>} */
const NEXT = {
  assigned: [{ to: 'en_route', label: 'Set out' }],
  scheduled: [{ to: 'en_route', label: 'Set out' }],
  en_route: [{ to: 'arrived', label: 'I have arrived' }],
  arrived: [{ to: 'in_progress', label: 'Start work' }],
  in_progress: [
    { to: 'completed', label: 'Complete job' },
    { to: 'paused', label: 'Pause' },
  ],
  paused: [{ to: 'in_progress', label: 'Resume work' }],
};

/**
 * What a provider works with: presence, offers that pop up, the jobs taken, and the week they fall into.
 *
 * @param {import('./pane.js').Person} person
 * @returns {import('./pane.js').View}
 */
export function providerView(person) {
  const { client } = person;
  /** @type {EntityStore<any>} */
  const jobs = new EntityStore();
  /** @type {Map<string, { card: ReturnType<typeof createBookingCard>, dispose: () => void, render: () => void }>} */
  const cards = new Map();
  /** @type {Map<string, ReturnType<typeof createOfferCard>>} */
  const offers = new Map();
  /** @type {any[]} */
  let services = [];
  /** @type {{ id: string, name: string, status: string, location?: { lat: number, lon: number } | null } | null} */
  let provider = null;

  const presence = presenceSwitch(client);
  const offerList = h('div', { class: 'stack', 'data-testid': 'provider-offers' });
  const noOffers = h('p', { class: 'empty' });
  const offerNote = h('p', { class: 'note', 'data-testid': 'offer-note', role: 'status', hidden: true });
  const alert = h('p', { class: 'visually-hidden', role: 'alert', 'data-testid': 'offer-alert' });
  const jobList = h('div', { class: 'stack', 'data-testid': 'provider-jobs' });
  const noJobs = h('p', { class: 'empty' }, 'No job yet. One you accept is worked from here.');
  /** @param {string} title @param {string} testid @param {(booking: any) => boolean} holds */
  const fold = (title, testid, holds) =>
    createFold({ title, testid, holds, cardless: () => jobs.values().filter(({ id }) => !cards.has(id)), look: addJob });
  const later = fold('Later', 'provider-later', (booking) => isActive(booking) && isLater(booking, client.serverNow()));
  const past = fold('Earlier jobs', 'provider-past', (booking) => !isActive(booking));
  const folds = [later, past];
  const error = h('p', { class: 'error', role: 'alert', hidden: true });
  const week = createWeek({ client, services: () => services });
  const shown = h(
    'div',
    { class: 'segments parts', role: 'radiogroup', 'aria-label': 'What to show', onchange: () => (element.dataset.part = chosenPart()) },
    part('jobs', 'Jobs', true),
    part('week', 'Week', false),
  );
  const element = h(
    'div',
    { class: 'stack halves', 'data-part': 'jobs' },
    shown,
    h(
      'div',
      { class: 'stack half-jobs' },
      presence.element,
      h('section', { class: 'stack', 'aria-label': 'Offers' }, h('h3', { class: 'section-title' }, 'Offers'), alert, offerNote, noOffers, offerList),
      h('section', { class: 'stack', 'aria-label': 'Jobs' }, h('h3', { class: 'section-title' }, 'Jobs'), error, noJobs, jobList, later.element, past.element),
    ),
    h('div', { class: 'half-week' }, week.element),
  );
  const chosenPart = () => /** @type {HTMLInputElement} */ (shown.querySelector(':checked')).value;
  const serviceName = (id) => nameOf(services, id);
  let noteTimer = null;

  const renderEmpty = once(() => {
    const status = provider?.status ?? 'offline';
    const waiting = {
      online: 'You are online. A job appears here the moment it is dispatched.',
      busy: 'You are on a job. New offers come when it is done.',
      away: 'You are away and get no offers. Switch on “Taking jobs” to be asked.',
      offline: 'You are offline and get no offers.',
    };
    setText(noOffers, waiting[status] ?? '');
    show(noOffers, offers.size === 0);
    noOffers.classList.toggle('slim', jobs.values().some(isActive));
    const ahead = later.render();
    show(noJobs, jobList.children.length === 0 && ahead === 0);
    past.render();
  });

  function note(text, tone = 'off') {
    clearTimeout(noteTimer);
    setText(offerNote, text);
    offerNote.dataset.tone = tone;
    show(offerNote, true);
    noteTimer = setTimeout(() => show(offerNote, false), 10_000);
  }

  // --- offers

  function addOffer(offer, recovered = false) {
    if (offers.has(offer.id) || Date.parse(offer.expires_at) <= client.serverNow()) return;
    const card = createOfferCard({
      offer,
      client,
      serviceName,
      recovered,
      onaccepted: (booking) => {
        removeOffer(offer.id);
        jobs.put(booking);
        note('The job is yours.', 'done');
      },
      onclosed: (text) => {
        removeOffer(offer.id);
        note(text);
      },
    });
    offers.set(offer.id, card);
    offerList.prepend(card.element);
    setText(alert, `New offer: ${serviceName(offer.booking.service_id)}. ${card.summary}`);
    renderEmpty();
  }

  function removeOffer(id) {
    const card = offers.get(id);
    if (!card) return false;
    card.dispose();
    offers.delete(id);
    renderEmpty();
    return true;
  }

  // --- jobs

  const isMine = (booking) => booking.provider_id === provider?.id;

  /** Technicians do not hear of jobs that operations gave or took; a change of status hints at them. */
  async function reload() {
    const before = jobs.values().filter(isActive);
    try {
      const { bookings, since } = await listBookings(client);
      // Oldest first, since each newer one goes on top.
      for (const booking of bookings.toReversed()) jobs.put(booking);
      const listed = new Set(bookings.map(({ id }) => id));
      for (const { id } of before) if (id >= since && !listed.has(id) && jobs.remove(id)) note('A job was taken off you.');
      show(error, false);
    } catch (failure) {
      if (failure.type === 'stopped') return;
      setText(error, problem(failure));
      show(error, true);
    }
  }

  /** Many changes at once, such as those of a series, are one look. */
  const reloadSoon = settled(() => void reload(), QUIET_MS);

  function removeJob(id) {
    cards.get(id)?.dispose();
    cards.delete(id);
    renderEmpty();
  }

  function takeNews(booking) {
    if (isMine(booking)) jobs.put(booking);
    else if (jobs.remove(booking.id)) note('A job was taken off you.');
  }

  jobs.on('remove', removeJob);
  jobs.on('change', (booking) => {
    const known = cards.get(booking.id);
    if (known) {
      known.card.update(booking);
      known.render();
    } else if (!folds.some((each) => each.hides(booking))) addJob(booking);
    renderEmpty();
  });

  function addJob(booking) {
    const job = createJob(booking);
    cards.set(booking.id, job);
    const home = folds.find((each) => each.holds(booking))?.list ?? jobList;
    const next = [...home.children].find((other) => comesAfter(cards.get(/** @type {HTMLElement} */ (other).dataset.bookingId ?? '')?.card.booking, booking));
    home.insertBefore(job.card.element, next ?? null);
  }

  /** Work on demand first, newest on top; then by the agreed time. */
  function comesAfter(other, booking) {
    if (!other || Boolean(other.start) !== Boolean(booking.start)) return Boolean(other?.start);
    return booking.start ? other.start > booking.start : other.id < booking.id;
  }

  function createJob(booking) {
    const steps = h('div', { class: 'steps' });
    const driving = h('p', { class: 'hint', role: 'status', hidden: true });
    const card = createBookingCard({
      booking,
      person,
      serviceName,
      actions: h('div', { class: 'stack tight' }, steps, driving),
      onbooking: takeNews,
      onlost: () => jobs.remove(booking.id),
    });
    /** @type {ReturnType<typeof startDrive> | null} */
    let drive = null;

    const transition = (to) => () =>
      card.attempt(() =>
        client.call('booking.transition', { booking_id: booking.id, to, version: card.booking.version }),
      );

    function toggleDrive() {
      if (drive) stopDrive();
      else {
        drive = startDrive({
          client,
          from: provider?.location ?? null,
          to: card.booking.location,
          ontick: (text) => setText(driving, text),
          onend: stopDrive,
        });
        show(driving, true);
      }
      render();
    }

    function stopDrive() {
      drive?.stop();
      drive = null;
      show(driving, false);
      render();
    }

    function render() {
      const { status } = card.booking;
      if (drive && status !== 'en_route') return stopDrive();
      const focused = /** @type {HTMLElement | null} */ (steps.contains(document.activeElement) ? document.activeElement : null);
      const buttons = (NEXT[status] ?? []).map(({ to, label }, index) =>
        h(
          'button',
          {
            type: 'button',
            class: index === 0 ? 'button primary' : 'button',
            'data-testid': 'provider-step',
            'data-to': to,
            onclick: transition(to),
          },
          label,
        ),
      );
      if (status === 'en_route') {
        buttons.push(
          h(
            'button',
            { type: 'button', class: 'button', 'data-testid': 'provider-drive', 'aria-pressed': String(Boolean(drive)), onclick: toggleDrive },
            icon('car'),
            h('span', {}, drive ? 'Stop driving' : 'Simulate the drive'),
          ),
        );
      }
      steps.replaceChildren(...buttons);
      show(steps, buttons.length > 0);
      // The step just taken gave way to the next one: keyboards go on from there.
      if (focused) buttons[0]?.focus();
    }

    render();
    return {
      card,
      render,
      dispose() {
        drive?.stop();
        card.dispose();
      },
    };
  }

  // --- what is heard

  /** @type {string | null} */
  let organisation = null;

  /** Managers hear of every job of their organisation, also of those that operations give and take. */
  async function learnRole() {
    try {
      const { organisations } = await client.call('organisation.list');
      const own = organisations.find((each) => each.provider_id === provider?.id);
      if (!provider || !own) return;
      const manages = MANAGERS.includes(own.role);
      week.of(provider.id, manages);
      if (manages && organisation !== own.id) hearOrganisation(own.id);
    } catch {
      // Whoever cannot be told what they may do sees what everybody sees.
      if (provider) week.of(provider.id, false);
    }
  }

  function hearOrganisation(id) {
    organisation = id;
    const channel = client.channel(`organisation:${id}`);
    channel.on('snapshot', () => void reload());
    channel.on('*', ({ data }) => {
      if (!data.booking) return;
      takeNews(data.booking);
      week.reload();
    });
    channel.on('lost', () => {
      organisation = null;
      void learnRole();
    });
    channel.subscribe().catch(() => undefined);
  }

  function listenTo(channel) {
    if (!channel.name.startsWith('provider:')) return;
    channel.on('snapshot', ({ state }) => {
      if (!state) return;
      provider = state.provider;
      presence.render(provider?.status ?? 'offline');
      for (const id of [...offers.keys()]) if (!state.offers.some((offer) => offer.id === id)) removeOffer(id);
      for (const offer of state.offers) addOffer(offer);
      for (const booking of state.bookings) jobs.put(booking);
      renderEmpty();
      void reload();
      void learnRole();
    });
    channel.on('resumed', () => week.reload());
    channel.on('offer.made', ({ data, recovered }) => addOffer(data.offer, recovered));
    channel.on('offer.withdrawn', ({ data }) => {
      if (removeOffer(data.offer_id)) note(`An offer was withdrawn: ${reasonText(data.reason)}.`);
    });
    channel.on('offer.expired', ({ data }) => {
      if (removeOffer(data.offer_id)) note('An offer ran out without an answer.');
    });
    channel.on('offer.declined', ({ data }) => removeOffer(data.offer_id));
    channel.on('offer.accepted', ({ data }) => removeOffer(data.offer_id));
    channel.on('availability.changed', ({ data }) => {
      if (provider) provider.status = data.status;
      presence.render(data.status);
      renderEmpty();
      week.reload();
      if (CALENDARS_READ.has(data.reason)) week.reloadSources();
      // A change of hours alone, or of what is read elsewhere, moves no job.
      else if (!/^(rules|exception)_/.test(data.reason)) reloadSoon();
    });
  }
  client.on('channel', listenTo);

  client
    .call('service.list')
    .then((answer) => {
      services = answer.services;
      for (const { card } of cards.values()) card.update(card.booking);
      week.renamed();
    })
    .catch(() => undefined);
  renderEmpty();

  return {
    element,
    dispose() {
      clearTimeout(noteTimer);
      week.dispose();
      reloadSoon.cancel();
      for (const card of offers.values()) card.dispose();
      for (const job of cards.values()) job.dispose();
    },
  };
}

/** @param {string} value @param {string} label @param {boolean} checked */
function part(value, label, checked) {
  return h('label', {}, h('input', { type: 'radio', name: 'provider-part', value, checked, 'data-testid': `provider-${value}-part` }), h('span', {}, label));
}

/** @param {import('/client/index.js').RealtimeClient} client */
function presenceSwitch(client) {
  const status = h('span', { class: 'pill', 'data-testid': 'provider-status' });
  const toggle = h('input', { type: 'checkbox', role: 'switch', 'data-testid': 'provider-presence', onchange: choose });
  const error = h('p', { class: 'error', role: 'alert', hidden: true });
  const element = h(
    'div',
    { class: 'card presence' },
    h('label', { class: 'switch' }, toggle, h('span', { class: 'track', 'aria-hidden': 'true' }), h('span', {}, 'Taking jobs')),
    status,
    error,
  );
  let shown = 'offline';
  let toggled = false;

  function render(now) {
    shown = now;
    const { label, tone } = PRESENCE[now] ?? PRESENCE.offline;
    setText(status, label);
    status.dataset.tone = tone;
    // Busy follows from a job; whoever has one was taking jobs, until they choose otherwise.
    if (now !== 'busy' || !toggled) toggle.checked = now === 'online' || now === 'busy';
  }

  async function choose() {
    toggled = true;
    show(error, false);
    try {
      const result = await client.call('presence.set', { status: toggle.checked ? 'online' : 'away' });
      render(result.status);
    } catch (failure) {
      render(shown);
      setText(error, problem(failure));
      show(error, true);
    }
  }

  render('offline');
  return { element, render };
}
