const NAME = 'fixnado-device';

/**
 * What this browser calls itself in front of the server: random, kept for as long as the browser keeps it, and not to be
 * guessed, because a sign-in from a device that was used before is trusted more.
 *
 * @param {string} role Each pane is a device of its own.
 */
export function deviceId(role) {
  // Not randomUUID: pages without TLS do not have it.
  let own = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('');
  try {
    own = localStorage.getItem(NAME) ?? own;
    localStorage.setItem(NAME, own);
  } catch {
    // Storage may be off; then each visit is a new device.
  }
  return `${own}-${role}`;
}
