import { DEMO_ACCOUNTS } from './accounts.js';
import { adminView } from './admin.js';
import { customerView } from './customer.js';
import { createPane } from './pane.js';
import { providerView } from './provider.js';
import { mountTabs } from './tabs.js';
import { themeToggle } from './theme.js';

const panes = [
  createPane({
    role: 'customer',
    title: 'Customer',
    kind: 'a customer account',
    roles: ['customer'],
    accounts: DEMO_ACCOUNTS.customer,
    view: customerView,
  }),
  createPane({
    role: 'provider',
    title: 'Provider',
    kind: 'a provider account',
    roles: ['provider'],
    accounts: DEMO_ACCOUNTS.provider,
    view: providerView,
  }),
  createPane({
    role: 'admin',
    title: 'Operations',
    kind: 'an operations account',
    roles: ['admin', 'operations'],
    accounts: DEMO_ACCOUNTS.admin,
    view: adminView,
  }),
];

/** @param {string} selector @returns {HTMLElement} */
const find = (selector) => /** @type {HTMLElement} */ (document.querySelector(selector));

find('.panes').append(...panes.map((pane) => pane.element));
find('.topbar-end').append(themeToggle());
mountTabs(find('.tabs'), panes);

/** One account tells whether this is a demo server: the others are not tried in vain, nor counted as failed logins. */
async function signInEverybody() {
  const [first, ...others] = panes;
  const demo = await first.signInDemo(DEMO_ACCOUNTS[first.role][0].email);
  await Promise.all(
    others.map((pane) => (demo ? pane.signInDemo(DEMO_ACCOUNTS[pane.role][0].email) : pane.showSignIn())),
  );
}

void signInEverybody();
