import { h, setText, show } from './dom.js';
import { dayAndTime, minutes, money, problem } from './words.js';

const DECLINED = 'Not available right now';
/** Refusals that mean the offer is gone, whoever has the job now. */
const GONE = new Set(['offer_taken', 'offer_expired', 'offer_withdrawn', 'not_found']);

/**
 * An offer with the time that is left of it, by the server's clock: a device whose own clock is wrong counts right.
 *
 * @param {object} options
 * @param {any} options.offer
 * @param {import('/client/index.js').RealtimeClient} options.client
 * @param {(id: string) => string} options.serviceName
 * @param {boolean} options.recovered
 * @param {(booking: any) => void} options.onaccepted
 * @param {(text: string) => void} options.onclosed It is over, and why.
 */
export function createOfferCard({ offer, client, serviceName, recovered, onaccepted, onclosed }) {
  const expiresAt = Date.parse(offer.expires_at);
  const lifeMs = Math.max(1, expiresAt - Date.parse(offer.server_time));
  const { booking } = offer;
  const when = booking.kind === 'scheduled' && booking.start ? dayAndTime(booking.start) : 'as soon as possible';
  const away = offer.eta_seconds === undefined ? null : `${minutes(offer.eta_seconds)} away`;
  const summary = [when, booking.area?.name, away].filter(Boolean).join(' · ');

  const bar = h('span', { class: 'countdown-bar' });
  const left = h('span', { class: 'countdown-text', 'data-testid': 'provider-countdown' });
  const error = h('p', { class: 'error', role: 'alert', hidden: true });
  const accept = h('button', { type: 'button', class: 'button primary', 'data-testid': 'provider-accept', onclick: take }, 'Accept');
  const decline = h('button', { type: 'button', class: 'button', 'data-testid': 'provider-decline', onclick: refuse }, 'Decline');
  const element = h(
    'article',
    { class: 'card offer', 'data-testid': 'provider-offer', 'data-offer-id': offer.id, 'aria-label': 'New offer' },
    h(
      'header',
      { class: 'card-head' },
      h('h4', { class: 'card-title' }, serviceName(booking.service_id)),
      recovered && h('span', { class: 'tag', title: 'This happened while the network was cut' }, 'caught up'),
      h('strong', { class: 'payout', title: 'What you are paid' }, money(offer.payout)),
    ),
    h('p', { class: 'facts' }, summary),
    h('div', { class: 'countdown' }, h('span', { class: 'countdown-track', 'aria-hidden': 'true' }, bar), left),
    error,
    h('div', { class: 'steps' }, accept, decline),
  );
  const ticking = setInterval(tick, 250);

  function tick() {
    const leftMs = Math.max(0, expiresAt - client.serverNow());
    setText(left, `${Math.ceil(leftMs / 1000)} s left`);
    bar.style.transform = `scaleX(${Math.min(1, leftMs / lifeMs)})`;
    element.classList.toggle('hurry', leftMs < 8000);
    if (leftMs > 0) return;
    // The server's word is `offer.expired`; until it comes the offer can only be looked at.
    clearInterval(ticking);
    accept.disabled = decline.disabled = true;
  }

  function busy(now) {
    accept.disabled = decline.disabled = now;
  }

  function failed(failure) {
    busy(false);
    if (GONE.has(failure.type)) return onclosed(failure.message);
    setText(error, problem(failure));
    show(error, true);
  }

  async function take() {
    busy(true);
    show(error, false);
    try {
      const result = await client.call('offer.accept', { offer_id: offer.id });
      onaccepted(result.booking);
    } catch (failure) {
      failed(failure);
    }
  }

  async function refuse() {
    busy(true);
    try {
      await client.call('offer.decline', { offer_id: offer.id, reason: DECLINED });
      onclosed('You declined the offer.');
    } catch (failure) {
      failed(failure);
    }
  }

  tick();
  return { element, summary, dispose: () => (clearInterval(ticking), element.remove()) };
}
