import { Auth, RealtimeClient } from '/client/index.js';
import { openAccount } from './account.js';
import { DEMO_PASSWORD } from './accounts.js';
import { connectionStrip } from './connection.js';
import { deviceId } from './device.js';
import { h, icon, setText, show } from './dom.js';
import { secondStep } from './proof.js';
import { problem } from './words.js';

/**
 * One person on the page: a sign-in, a client with a live socket of its own, and what that person works with.
 *
 * @typedef {object} Person What a view gets to work with.
 * @property {RealtimeClient} client Not connected yet, so that no event is missed by listeners of the view.
 * @property {import('/client/index.js').Auth} auth
 * @property {{ id: string, roles: string[], name?: string }} user
 *
 * @typedef {object} View
 * @property {Element} element
 * @property {() => void} [dispose]
 *
 * @param {object} options
 * @param {'customer' | 'provider' | 'admin'} options.role
 * @param {string} options.title
 * @param {string} options.kind Which account is wanted, in words.
 * @param {string[]} options.roles Account roles that may use this pane.
 * @param {import('./accounts.js').DemoAccount[]} options.accounts Offered for switching.
 * @param {(person: Person) => View} options.view
 */
export function createPane({ role, title, kind, roles, accounts, view }) {
  const name = h('p', { class: 'pane-name' });
  const account = h(
    'button',
    { type: 'button', class: 'button small quiet', 'data-testid': 'account-switch', 'aria-label': 'Switch account', onclick: () => signOut() },
    'Switch',
  );
  const settings = h(
    'button',
    { type: 'button', class: 'button small quiet', 'data-testid': 'account-open', hidden: true, onclick: () => current && openAccount(current.auth) },
    'Account',
  );
  const widen = h(
    'button',
    { type: 'button', class: 'button small quiet round widen', 'data-testid': 'pane-widen', 'aria-pressed': 'false', 'aria-label': `${title} alone`, title: 'Show this one alone', onclick: toggleWide },
    icon('wide'),
  );
  const top = h('div', { class: 'pane-top' });
  const body = h('div', { class: 'pane-body' });
  const picker = accounts.length > 1 ? accountPicker(role, accounts, (email) => signInDemo(email)) : null;
  const element = h(
    'section',
    { class: 'pane', id: `pane-${role}`, 'data-testid': `pane-${role}`, 'data-role': role, 'aria-labelledby': `title-${role}` },
    h(
      'header',
      { class: 'pane-head' },
      h(
        'div',
        { class: 'pane-who' },
        h('span', { class: 'avatar', 'aria-hidden': 'true' }, icon(role)),
        h('div', { class: 'pane-titles' }, h('h2', { id: `title-${role}` }, title), name),
        settings,
        account,
        widen,
      ),
      picker?.element,
      top,
    ),
    body,
  );
  /** @type {{ auth: Auth, dispose: () => void } | null} */
  let current = null;
  // A sign-in that was overtaken by another must not take the pane.
  let turn = 0;

  /** One person on the whole page; the others stay live meanwhile. */
  function toggleWide() {
    const wide = element.classList.toggle('wide');
    element.parentElement?.classList.toggle('one', wide);
    widen.setAttribute('aria-pressed', String(wide));
    widen.replaceChildren(icon(wide ? 'narrow' : 'wide'));
  }

  function leave() {
    turn += 1;
    current?.dispose();
    current = null;
    top.replaceChildren();
    return turn;
  }

  function showSignIn(message = '') {
    leave();
    setText(name, 'Not signed in');
    show(account, false);
    show(settings, false);
    picker?.choose(null);
    body.replaceChildren(signInForm({ role, kind, accounts, message, submit: signIn }));
  }

  async function signOut() {
    const auth = current?.auth;
    showSignIn();
    body.querySelector('input')?.focus();
    await auth?.logout();
  }

  /** @param {string} email @param {string} password @returns {Promise<void>} */
  async function signIn(email, password) {
    const mine = leave();
    const auth = new Auth({ device: { id: deviceId(role), name: 'Console', platform: 'web' } });
    const user = await auth.login(email, password);
    if (mine !== turn) return void auth.logout();
    if (!('mfa_required' in user)) return enter(mine, auth, email, user);
    const refuse = (/** @type {unknown} */ error) => showSignIn(problem(error));
    const step = secondStep(auth, user, (person) => void enter(mine, auth, email, person).catch(refuse), () => showSignIn());
    body.replaceChildren(step);
  }

  /** @param {number} mine @param {Auth} auth @param {string} email @param {any} user @returns {Promise<void>} */
  async function enter(mine, auth, email, user) {
    if (mine !== turn) return void auth.logout();
    if (!user.roles.some((held) => roles.includes(held))) {
      void auth.logout();
      throw new Error(`This account is not for this pane. Use ${kind}.`);
    }
    const client = new RealtimeClient({ auth, name: `console-${role}/1`, latencyIntervalMs: 5000, callTimeoutMs: 120_000 });
    const link = connectionStrip(client);
    const shown = view({ client, auth, user });
    const stopWatching = client.on('state', ({ state, error }) => {
      // Disposed panes stop their client as well; those have nobody to tell.
      if (state === 'stopped' && mine === turn) showSignIn(error?.message ?? 'You were signed out.');
    });
    setText(name, user.name ?? email);
    show(account, true);
    show(settings, true);
    picker?.choose(email);
    top.replaceChildren(link.strip, link.note);
    body.replaceChildren(shown.element);
    current = {
      auth,
      dispose() {
        stopWatching();
        link.dispose();
        shown.dispose?.();
        client.disconnect();
      },
    };
    // A client that stops says why in its state.
    client.connect().catch(() => undefined);
  }

  /** @param {string} email @returns {Promise<boolean>} Whether the account exists and the pane is live. */
  async function signInDemo(email) {
    const previous = current?.auth;
    body.replaceChildren(h('p', { class: 'empty', role: 'status' }, 'Signing in…'));
    try {
      await signIn(email, DEMO_PASSWORD);
      void previous?.logout();
      return true;
    } catch (error) {
      const unknown = /** @type {any} */ (error).status === 401;
      showSignIn(unknown ? '' : problem(error));
      return false;
    }
  }

  return { element, role, title, signInDemo, showSignIn };
}

/**
 * @param {string} role
 * @param {import('./accounts.js').DemoAccount[]} accounts
 * @param {(email: string) => void} pick
 */
function accountPicker(role, accounts, pick) {
  const radios = accounts.map(({ email, label }, index) => {
    const radio = h('input', {
      type: 'radio',
      name: `account-${role}`,
      value: email,
      'data-testid': `${role}-select-${index + 1}`,
      onchange: () => pick(email),
    });
    return h('label', {}, radio, h('span', {}, label));
  });
  const element = h('div', { class: 'segments', role: 'radiogroup', 'aria-label': 'Which account', hidden: true }, ...radios);
  return {
    element,
    /** @param {string | null} email Null hides the choice; an account of no demo shows none as chosen. */
    choose(email) {
      const known = accounts.some((account) => account.email === email);
      show(element, known);
      for (const radio of element.querySelectorAll('input')) radio.checked = radio.value === email;
    },
  };
}

/**
 * @param {object} options
 * @param {string} options.role
 * @param {string} options.kind
 * @param {import('./accounts.js').DemoAccount[]} options.accounts
 * @param {string} options.message
 * @param {(email: string, password: string) => Promise<void>} options.submit
 */
function signInForm({ role, kind, accounts, message, submit }) {
  const email = h('input', { id: `email-${role}`, type: 'email', autocomplete: 'username', required: true, 'data-testid': 'login-email' });
  const password = h('input', {
    id: `password-${role}`,
    type: 'password',
    autocomplete: 'current-password',
    required: true,
    'data-testid': 'login-password',
  });
  const error = h('p', { class: 'error', role: 'alert', 'data-testid': 'login-error', hidden: !message }, message);
  const button = h('button', { type: 'submit', class: 'button primary wide', 'data-testid': 'login-submit' }, 'Sign in');
  const form = h(
    'form',
    { class: 'card form', 'data-testid': 'login-form', onsubmit },
    h('h3', {}, 'Sign in'),
    h('p', { class: 'hint' }, `Use ${kind}. A demo server has ${accounts[0].email}.`),
    h('label', { for: email.id }, 'E-mail'),
    email,
    h('label', { for: password.id }, 'Password'),
    password,
    error,
    button,
  );

  async function onsubmit(event) {
    event.preventDefault();
    button.disabled = true;
    show(error, false);
    try {
      await submit(email.value.trim(), password.value);
    } catch (failure) {
      setText(error, problem(failure));
      show(error, true);
      password.focus();
    } finally {
      button.disabled = false;
    }
  }
  return form;
}
