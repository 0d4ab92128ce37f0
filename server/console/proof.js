import { h, setText, show } from './dom.js';
import { problem } from './words.js';

let fields = 0;

/**
 * A field for a code, with its label.
 *
 * @param {string} testId
 * @param {string} [text]
 */
export function codeField(testId, text = 'Code from the app, or a recovery code') {
  const input = h('input', {
    type: 'text',
    id: `code-${(fields += 1)}`,
    autocomplete: 'one-time-code',
    required: true,
    maxlength: 64,
    'data-testid': testId,
  });
  return { label: h('label', { for: input.id }, text), input };
}

/**
 * Asks a signed-in person to prove once more that it is them.
 *
 * @param {import('/client/index.js').Auth} auth
 * @param {Element} within
 * @returns {Promise<boolean>} Whether they did; false when they thought better of it.
 */
export function proof(auth, within) {
  return new Promise((settle) => {
    const password = h('input', { type: 'password', id: 'proof-password', autocomplete: 'current-password', required: true, 'data-testid': 'proof-password' });
    const { label, input } = codeField('proof-code');
    input.required = false;
    const error = h('p', { class: 'error', role: 'alert', hidden: true });
    const dialog = h(
      'dialog',
      { class: 'account', 'aria-label': 'Confirm that it is you', 'data-testid': 'proof', onclose: () => end(false) },
      h(
        'form',
        { class: 'form', onsubmit },
        h('h3', {}, 'Confirm that it is you'),
        h('label', { for: password.id }, 'Password'),
        password,
        label,
        input,
        error,
        h('button', { type: 'submit', class: 'button primary', 'data-testid': 'proof-submit' }, 'Go on'),
        h('button', { type: 'button', class: 'button quiet', onclick: () => dialog.close() }, 'Never mind'),
      ),
    );

    function end(done) {
      settle(done);
      dialog.remove();
    }

    async function onsubmit(event) {
      event.preventDefault();
      try {
        await auth.call('POST', '/auth/step-up', { password: password.value, ...(input.value && { code: input.value }) });
        end(true);
      } catch (refusal) {
        setText(error, problem(refusal));
        show(error, true);
      }
    }
    within.append(dialog);
    dialog.showModal();
  });
}

/**
 * The second step of a sign-in, in place of the form that began it.
 *
 * @param {import('/client/index.js').Auth} auth
 * @param {import('/client/index.js').MfaChallenge} asked
 * @param {(user: any) => void} done
 * @param {() => void} giveUp
 */
export function secondStep(auth, asked, done, giveUp) {
  const { label, input } = codeField('login-code');
  const error = h('p', { class: 'error', role: 'alert', 'data-testid': 'login-error', hidden: true });
  const sendable = asked.methods.filter((method) => method === 'email' || method === 'sms');
  const words = { email: 'Send a code by e-mail', sms: 'Send a code by text message' };

  async function attempt(action) {
    show(error, false);
    try {
      return await action();
    } catch (refusal) {
      setText(error, problem(refusal));
      show(error, true);
      input.focus();
      return undefined;
    }
  }

  async function onsubmit(event) {
    event.preventDefault();
    const user = await attempt(() => auth.verifyMfa(asked.challenge, input.value));
    if (user) done(user);
  }

  const form = h(
    'form',
    { class: 'card form', 'data-testid': 'login-second-step', onsubmit },
    h('h3', {}, 'One more step'),
    label,
    input,
    error,
    h('button', { type: 'submit', class: 'button primary wide', 'data-testid': 'login-code-submit' }, 'Sign in'),
    ...sendable.map((method) =>
      h('button', { type: 'button', class: 'button wide', 'data-testid': `login-send-${method}`, onclick: () => attempt(() => auth.sendCode(asked.challenge, method)) }, words[method]),
    ),
    h('button', { type: 'button', class: 'button quiet wide', onclick: giveUp }, 'Back'),
  );
  queueMicrotask(() => input.focus());
  return form;
}
