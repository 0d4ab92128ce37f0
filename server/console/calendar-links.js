import { h, setText, show } from './dom.js';
import { problem } from './words.js';

/**
 * A provider's jobs in a calendar program: the link is shown once, a new one replaces it.
 *
 * @param {import('/client/index.js').RealtimeClient} client
 */
export function calendarLinks(client) {
  const address = h('input', { type: 'text', readonly: true, 'aria-label': 'Calendar link', 'data-testid': 'feed-address', onfocus: () => address.select() });
  const copy = h('button', { type: 'button', class: 'button small', 'data-testid': 'feed-copy', onclick: copied }, 'Copy');
  const row = h('div', { class: 'sheet-row', hidden: true }, address, copy);
  const said = h('p', { class: 'hint', role: 'status', 'data-testid': 'feed-said' });
  const error = h('p', { class: 'error', role: 'alert', hidden: true });
  const element = h(
    'details',
    { class: 'more', 'data-testid': 'calendar-links' },
    h('summary', {}, 'Your jobs in another calendar'),
    h(
      'div',
      { class: 'card' },
      h('p', { class: 'hint' }, 'A private link that calendar programs subscribe to. Whoever has it sees your jobs; a new link replaces the one before.'),
      row,
      said,
      error,
      h(
        'div',
        { class: 'steps' },
        h('button', { type: 'button', class: 'button small', 'data-testid': 'feed-issue', onclick: issue }, 'Make a link'),
        h('button', { type: 'button', class: 'button small quiet', 'data-testid': 'feed-revoke', onclick: revoke }, 'Close the link'),
      ),
    ),
  );

  async function attempt(command) {
    show(error, false);
    try {
      return await client.call(command);
    } catch (failure) {
      setText(error, problem(failure));
      show(error, true);
      return null;
    }
  }

  async function issue() {
    const feed = await attempt('calendar.issue_feed');
    if (!feed) return;
    address.value = new URL(feed.path, location.href).href;
    show(row, true);
    setText(said, 'Copy it now: it is not shown again.');
    address.focus();
  }

  async function revoke() {
    if (!(await attempt('calendar.revoke_feed'))) return;
    address.value = '';
    show(row, false);
    setText(said, 'Closed: the link opens nothing any more.');
  }

  async function copied() {
    address.select();
    try {
      await navigator.clipboard.writeText(address.value);
      setText(said, 'Copied. It is not shown again.');
    } catch {
      // Pages without TLS have no clipboard; the link is selected for the keyboard.
      setText(said, 'Selected. Press Ctrl+C (⌘C on a Mac) to copy.');
    }
  }

  return { element };
}
