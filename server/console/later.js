import { h, setText, show } from './dom.js';

/**
 * Work so far ahead that it waits folded: a series makes many bookings at once. None of them is followed live before
 * somebody looks.
 *
 * @param {object} options
 * @param {string} options.testid
 * @param {() => any[]} options.waiting Bookings that have no card yet.
 * @param {(booking: any) => void} options.look Makes the card of one and puts it into the list.
 */
export function createLater({ testid, waiting, look }) {
  const title = h('summary', {}, 'Later');
  const list = h('div', { class: 'stack' });
  const element = h('details', { class: 'more', hidden: true, 'data-testid': testid, ontoggle: () => element.open && waiting().forEach(look) }, title, list);
  return {
    element,
    list,
    get open() {
      return element.open;
    },
    /** @returns {number} How many there are. */
    render() {
      const count = list.children.length + waiting().length;
      setText(title, `Later (${count})`);
      show(element, count > 0);
      return count;
    },
  };
}
