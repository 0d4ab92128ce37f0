import { h, setText, show } from './dom.js';

/**
 * Bookings that are not at hand wait folded: what is far ahead, since a series makes many at once, and what is over. None
 * of them has a card, or is followed live, before somebody looks.
 *
 * @param {object} options
 * @param {string} options.title
 * @param {string} options.testid
 * @param {(booking: any) => boolean} options.holds Whether one belongs in here.
 * @param {() => any[]} options.cardless Bookings that have no card yet.
 * @param {(booking: any) => void} options.look Makes the card of one and puts it into the list.
 */
export function createFold({ title, testid, holds, cardless, look }) {
  const summary = h('summary', {}, title);
  const list = h('div', { class: 'stack' });
  const element = h('details', { class: 'more', hidden: true, 'data-testid': testid, ontoggle: () => element.open && waiting().forEach(look) }, summary, list);
  const waiting = () => cardless().filter(holds);
  return {
    element,
    list,
    holds,
    /** Whether one stays in here without a card for now. @param {any} booking */
    hides: (booking) => !element.open && holds(booking),
    /** @returns {number} How many there are. */
    render() {
      const count = list.children.length + waiting().length;
      setText(summary, `${title} (${count})`);
      show(element, count > 0);
      return count;
    },
  };
}
