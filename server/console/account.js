import { h, setText, show } from './dom.js';
import { codeField, proof } from './proof.js';
import { dayAndTime, plural, problem } from './words.js';

/**
 * A person's account in a dialog: the second factor, sign-ins, devices and the password.
 *
 * @param {import('/client/index.js').Auth} auth
 * @returns {HTMLDialogElement} Opened; it removes itself when it is closed.
 */
export function openAccount(auth) {
  const error = h('p', { class: 'error', role: 'alert', 'data-testid': 'account-error', hidden: true });
  const said = h('p', { class: 'note', role: 'status', 'data-testid': 'account-said', hidden: true });
  const factor = h('section', { class: 'account-part' });
  const sessions = h('section', { class: 'account-part' });
  const devices = h('section', { class: 'account-part' });
  const dialog = h(
    'dialog',
    { class: 'account', 'aria-label': 'Account', 'data-testid': 'account', onclose: () => dialog.remove() },
    h(
      'header',
      { class: 'section-head' },
      h('h2', {}, 'Account'),
      h('button', { type: 'button', class: 'button small quiet', 'data-testid': 'account-close', onclick: () => dialog.close() }, 'Close'),
    ),
    error,
    said,
    factor,
    passwordForm(),
    sessions,
    devices,
  );

  /**
   * Does something the server may refuse; when it asks for a fresh proof, gets one and does it again.
   *
   * @template T
   * @param {() => Promise<T>} action
   * @returns {Promise<T | undefined>}
   */
  async function attempt(action) {
    show(error, false);
    show(said, false);
    try {
      try {
        return await action();
      } catch (refusal) {
        if (/** @type {any} */ (refusal).type !== 'step_up_required') throw refusal;
        if (!(await proof(auth, dialog))) return undefined;
        return await action();
      }
    } catch (refusal) {
      setText(error, problem(refusal));
      show(error, true);
      error.scrollIntoView({ block: 'nearest' });
      return undefined;
    }
  }

  function say(text) {
    setText(said, text);
    show(said, true);
    said.scrollIntoView({ block: 'nearest' });
  }

  async function showFactor() {
    const state = await attempt(() => auth.call('GET', '/auth/mfa'));
    if (!state) return;
    const on = state.factors.length > 0;
    const names = { totp: 'authenticator app', email: 'e-mail', sms: 'text message' };
    const what = state.factors.map(({ method, hint }) => (hint ? `${names[method]} (${hint})` : names[method])).join(', ');
    factor.replaceChildren(
      h('h3', {}, 'Two-step sign-in'),
      h(
        'p',
        { class: 'hint', 'data-testid': 'mfa-state', 'data-on': String(on) },
        on ? `On: ${what}. ${plural(state.recovery_codes_left, 'recovery code')} left.` : 'Off. A code from an app on your phone keeps others out.',
      ),
      on ? disableForm() : h('button', { type: 'button', class: 'button', 'data-testid': 'mfa-enrol', onclick: enrol }, 'Set it up'),
    );
  }

  async function enrol() {
    const begun = await attempt(() => auth.call('POST', '/auth/mfa/enrol'));
    if (!begun) return;
    const { label, input } = codeField('mfa-code', 'Code that the app shows');
    const form = h(
      'form',
      { class: 'form', onsubmit: activate },
      h('p', { class: 'hint' }, 'Scan this with an authenticator app, or type the key. Then enter the code it shows.'),
      // As a picture and not as markup: nothing in it can run.
      h('img', {
        class: 'qr',
        alt: 'QR code for an authenticator app',
        'data-testid': 'mfa-qr',
        src: `data:image/svg+xml,${encodeURIComponent(standalone(begun.qr_svg))}`,
      }),
      h('code', { class: 'key', 'data-testid': 'mfa-secret' }, begun.secret.replace(/(.{4})(?=.)/g, '$1 ')),
      label,
      input,
      h('button', { type: 'submit', class: 'button primary', 'data-testid': 'mfa-activate' }, 'Turn it on'),
    );
    factor.replaceChildren(h('h3', {}, 'Two-step sign-in'), form);
    input.focus();

    async function activate(event) {
      event.preventDefault();
      const given = await attempt(() => auth.call('POST', '/auth/mfa/activate', { code: input.value }));
      if (given) showRecoveryCodes(given.recovery_codes);
    }
  }

  function showRecoveryCodes(codes) {
    factor.replaceChildren(
      h('h3', {}, 'Recovery codes'),
      h('p', { class: 'hint' }, 'Each lets you in once when your phone is not there. Keep them; they are not shown again.'),
      h('ol', { class: 'codes', 'data-testid': 'mfa-recovery-codes' }, ...codes.map((code) => h('li', {}, h('code', {}, code)))),
      h('button', { type: 'button', class: 'button primary', 'data-testid': 'mfa-done', onclick: refresh }, 'I have kept them'),
    );
    say('Two-step sign-in is on. Other devices were signed out.');
  }

  function disableForm() {
    const password = h('input', { type: 'password', id: 'off-password', autocomplete: 'current-password', required: true, 'data-testid': 'mfa-off-password' });
    const { label, input } = codeField('mfa-off-code');
    return h(
      'form',
      { class: 'form', onsubmit },
      h('label', { for: password.id }, 'Password'),
      password,
      label,
      input,
      h('button', { type: 'submit', class: 'button danger', 'data-testid': 'mfa-off' }, 'Turn it off'),
    );

    async function onsubmit(event) {
      event.preventDefault();
      const done = await attempt(() => auth.call('POST', '/auth/mfa/disable', { password: password.value, code: input.value }));
      if (!done) return;
      await refresh();
      say('Two-step sign-in is off. Other devices were signed out.');
    }
  }

  function passwordForm() {
    const present = h('input', { type: 'password', id: 'password-present', autocomplete: 'current-password', required: true, 'data-testid': 'password-present' });
    const next = h('input', { type: 'password', id: 'password-next', autocomplete: 'new-password', required: true, minlength: 12, maxlength: 128, 'data-testid': 'password-next' });
    const form = h(
      'form',
      { class: 'form account-part', onsubmit },
      h('h3', {}, 'Password'),
      h('label', { for: present.id }, 'Present password'),
      present,
      h('label', { for: next.id }, 'New password, 12 characters or more'),
      next,
      h('button', { type: 'submit', class: 'button', 'data-testid': 'password-change' }, 'Change it'),
    );
    return form;

    async function onsubmit(event) {
      event.preventDefault();
      const wish = { password: present.value, new_password: next.value };
      if (!(await attempt(() => auth.call('POST', '/auth/password/change', wish)))) return;
      form.reset();
      await refresh();
      say('The password is changed. Other devices were signed out.');
    }
  }

  async function showSessions() {
    const answer = await attempt(() => auth.call('GET', '/auth/sessions'));
    if (!answer) return;
    const rows = answer.sessions.map((one) =>
      row({
        testId: 'session',
        title: one.device.name || 'Unnamed device',
        current: one.current,
        about: [`since ${dayAndTime(one.created_at)}`, one.network, trustWords(one.trust)],
        parts: one.trust_parts,
        act: 'End',
        onact: () => auth.call('DELETE', `/auth/sessions/${encodeURIComponent(one.id)}`),
      }),
    );
    sessions.replaceChildren(h('h3', {}, 'Where you are signed in'), h('ul', { class: 'rows' }, ...rows));
  }

  async function showDevices() {
    const answer = await attempt(() => auth.call('GET', '/auth/devices'));
    if (!answer) return;
    const rows = answer.devices.map((one) =>
      row({
        testId: 'device',
        title: one.name || 'Unnamed device',
        current: one.current,
        about: [one.platform, `last used ${dayAndTime(one.last_seen_at)}`, trustWords(one.trust)],
        parts: one.trust_parts,
        explanations: answer.explanations,
        act: 'Forget',
        onact: () => auth.call('DELETE', `/auth/devices/${encodeURIComponent(one.id)}`),
      }),
    );
    devices.replaceChildren(
      h('h3', {}, 'Devices'),
      h('p', { class: 'hint' }, 'Forgetting a device signs it out, and its next sign-in is looked at as a stranger’s.'),
      h('ul', { class: 'rows' }, ...rows),
    );
  }

  /** One sign-in or device; the one in use is left by signing out, not here. */
  function row({ testId, title, current, about, parts, explanations = {}, act, onact }) {
    const explained = Object.entries(parts ?? {}).map(([name, points]) => `${name.replaceAll('_', ' ')} ${points}${explanations[name] ? `: ${explanations[name]}` : ''}`);
    return h(
      'li',
      { 'data-testid': testId, 'data-current': String(current) },
      h('div', { title: explained.join('\n') }, h('strong', {}, current ? `${title} (this one)` : title), h('p', { class: 'hint' }, about.filter(Boolean).join(' · '))),
      !current && h('button', { type: 'button', class: 'button small', 'data-testid': `${testId}-end`, onclick: async () => (await attempt(onact)) && refresh() }, act),
    );
  }

  async function refresh() {
    await Promise.all([showFactor(), showSessions(), showDevices()]);
  }

  document.body.append(dialog);
  dialog.showModal();
  void refresh();
  return dialog;
}

/** @param {number | null} trust */
const trustWords = (trust) => (trust === null ? '' : `trust ${trust} of 100`);

/** The namespace that SVG inside a page may leave out, and SVG by itself may not. @param {string} svg */
function standalone(svg) {
  return svg.includes('xmlns=') ? svg : svg.replace('<svg', '<svg xmlns="http://www.w3.org/2000/svg"');
}
