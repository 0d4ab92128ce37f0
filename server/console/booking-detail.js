import { createBookingCard } from './booking-card.js';
import { h, icon, setText, show } from './dom.js';
import { problem } from './words.js';

/**
 * One booking with everything operations can do to it.
 *
 * @param {object} options
 * @param {any} options.booking
 * @param {import('./pane.js').Person} options.person
 * @param {(id: string) => string} options.serviceName
 * @param {Map<string, any>} options.providers
 * @param {(booking: any) => void} options.onbooking
 * @param {() => void} options.onclose
 */
export function bookingDetail({ booking, person, serviceName, providers, onbooking, onclose }) {
  const choice = h('select', { 'aria-label': 'Provider', 'data-testid': 'admin-assign-provider' });
  const assign = h('button', { type: 'button', class: 'button small', 'data-testid': 'admin-assign', onclick: give }, 'Assign');
  const assignRow = h('div', { class: 'confirm' }, choice, assign);
  const holder = h('p', { class: 'facts' });
  const error = h('p', { class: 'error', role: 'alert', hidden: true });
  const card = createBookingCard({
    booking,
    person,
    serviceName,
    onbooking,
    actions: h('div', { class: 'stack tight' }, holder, assignRow, error),
  });
  const close = h(
    'button',
    { type: 'button', class: 'button small quiet round', 'data-testid': 'admin-detail-close', 'aria-label': 'Close', onclick: onclose },
    icon('close'),
  );
  const element = h('div', { class: 'detail' }, close, card.element);
  element.addEventListener('keydown', (event) => {
    if (/** @type {KeyboardEvent} */ (event).key === 'Escape') onclose();
  });

  function renderProviders() {
    const now = card.booking;
    const name = providers.get(now.provider_id)?.name;
    setText(holder, name ? `With ${name}` : '');
    show(holder, Boolean(name));
    show(assignRow, now.status === 'awaiting_assignment');
    const options = [...providers.values()];
    const ids = options.map(({ id }) => id).join();
    if (choice.dataset.ids === ids) return;
    choice.dataset.ids = ids;
    choice.replaceChildren(...options.map(({ id, name: label }) => h('option', { value: id }, label)));
  }

  async function give() {
    show(error, false);
    try {
      const result = await person.client.call('booking.assign', { booking_id: booking.id, provider_id: choice.value });
      onbooking(result.booking);
    } catch (failure) {
      setText(error, problem(failure));
      show(error, true);
    }
  }

  renderProviders();
  return {
    id: booking.id,
    element,
    renderProviders,
    update(newer) {
      card.update(newer);
      renderProviders();
    },
    dispose: () => card.dispose(),
  };
}
