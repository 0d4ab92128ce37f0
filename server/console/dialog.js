import { h, setText, show } from './dom.js';
import { problem } from './words.js';

/**
 * A form in a dialog of its own. It closes once `submit` went through; what the server refuses is said in it.
 *
 * @param {object} options
 * @param {string} options.title
 * @param {string} options.testid
 * @param {(HTMLElement | null)[]} options.body
 * @param {string} options.action What the button that submits is called.
 * @param {() => Promise<unknown>} options.submit
 * @param {HTMLElement} [options.extra] Beside the buttons.
 * @returns {HTMLDialogElement} Opened; it removes itself when it is closed.
 */
export function openForm({ title, testid, body, action, submit, extra }) {
  const error = h('p', { class: 'error', role: 'alert', 'data-testid': `${testid}-error`, hidden: true });
  const go = h('button', { type: 'submit', class: 'button primary', 'data-testid': `${testid}-save` }, action);
  const cancel = h('button', { type: 'button', class: 'button', onclick: () => dialog.close() }, 'Cancel');
  const dialog = h(
    'dialog',
    { class: 'account sheet', 'aria-label': title, 'data-testid': testid, onclose: () => dialog.remove() },
    h(
      'form',
      { class: 'form', onsubmit },
      h('h2', {}, title),
      ...body,
      error,
      h('div', { class: 'sheet-foot' }, extra ?? null, cancel, go),
    ),
  );

  async function onsubmit(event) {
    event.preventDefault();
    show(error, false);
    go.disabled = true;
    try {
      await submit();
      dialog.close();
    } catch (refusal) {
      setText(error, problem(refusal));
      show(error, true);
    } finally {
      go.disabled = false;
    }
  }

  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}
