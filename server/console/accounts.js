/**
 * The accounts of `fixnado demo`. A production server does not have them; there the panes ask for a sign-in.
 *
 * @typedef {{ email: string, label: string }} DemoAccount
 */

export const DEMO_PASSWORD = 'demo-Fixnado-2026';

/** @type {Record<'customer' | 'provider' | 'admin', DemoAccount[]>} */
export const DEMO_ACCOUNTS = {
  customer: [{ email: 'customer@demo.test', label: 'Customer' }],
  provider: [
    { email: 'provider1@demo.test', label: 'Provider 1' },
    { email: 'provider2@demo.test', label: 'Provider 2' },
    { email: 'provider3@demo.test', label: 'Provider 3' },
  ],
  admin: [{ email: 'admin@demo.test', label: 'Admin' }],
};
