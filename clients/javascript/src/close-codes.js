/**
 * What to do about a close code (contract, table of close codes).
 *
 * `retry`: come back with backoff. `drain`: come back, backoff kept. `renew`: come back with a fresh token.
 * `renew-once`: the token may merely have run out on the way; try one fresh token, then stop. `stop`: stay away.
 *
 * @typedef {'retry' | 'drain' | 'renew' | 'renew-once' | 'stop'} CloseAction
 */

export const DRAIN = 4000;
export const SERVER_ERROR = 4001;
export const TOKEN_EXPIRED = 4002;
export const INVALID_TOKEN = 4500;
export const NO_CONNECT_IN_TIME = 4502;

/** @type {Record<number, string>} */
const MEANINGS = {
  4000: 'The server is being replaced.',
  4001: 'The server had an error.',
  4002: 'The token expired.',
  4003: 'This client was too slow.',
  4005: 'The server saw no sign of life.',
  4006: 'Too many messages.',
  4500: 'The token is not valid.',
  4501: 'The server did not understand a frame.',
  4502: 'The session was not opened in time.',
  4503: 'You were signed out.',
  4504: 'Too many connections are open for this account.',
  4506: 'The server does not speak this protocol version.',
};

/**
 * @param {number} code
 * @returns {CloseAction}
 */
export function actionOn(code) {
  if (code === DRAIN) return 'drain';
  if (code === TOKEN_EXPIRED) return 'renew';
  if (code === INVALID_TOKEN || code === NO_CONNECT_IN_TIME) return 'renew-once';
  // The whole upper half of the private range says "stay away", so that codes added later are safe with old clients.
  if (code >= 4500 && code <= 4999) return 'stop';
  return 'retry';
}

/**
 * @param {number} code
 * @returns {string} A sentence for people.
 */
export function meaningOf(code) {
  return MEANINGS[code] ?? 'The connection was lost.';
}
