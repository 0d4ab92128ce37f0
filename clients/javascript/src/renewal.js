import { Backoff } from './backoff.js';
import { needsSignIn, RemoteError } from './errors.js';

/** @typedef {import('./connection.js').Connection | import('./event-stream.js').EventStream} AnyConnection */

const REPLY_TIMEOUT_MS = 10_000;

/**
 * Brings new tokens to live connections, one at a time for each. When that does not work out, nothing is lost yet: the
 * server closes with 4002 and the next session is opened with whatever token there is by then.
 */
export class Renewal {
  /** @type {AnyConnection | null} Where a new token is being brought. */
  #on = null;
  /** @type {import('./platform.js').Platform} */
  #platform;
  /** @type {import('./types.js').GetToken} */
  #getToken;

  /**
   * @param {import('./platform.js').Platform} platform
   * @param {import('./types.js').GetToken} getToken
   */
  constructor(platform, getToken) {
    this.#platform = platform;
    this.#getToken = getToken;
  }

  /**
   * @param {AnyConnection} connection
   * @param {string} old The token that is about to run out.
   * @param {number} withinMs
   * @returns {Promise<string | null>} The new one, when the server has taken it.
   */
  async renew(connection, old, withinMs) {
    if (this.#on === connection) return null;
    this.#on = connection;
    const deadline = this.#platform.now() + withinMs;
    const backoff = new Backoff(this.#platform.random);
    try {
      while (!connection.closed && this.#platform.now() < deadline) {
        try {
          const token = await this.#getToken({ rejected: old });
          if (connection.closed) return null;
          await new Promise((resolve, reject) => {
            connection.request('session.refresh', { token }, REPLY_TIMEOUT_MS, (error, result) =>
              error ? reject(error) : resolve(result),
            );
          });
          return token;
        } catch (error) {
          if (needsSignIn(error) || (error instanceof RemoteError && !error.retryable)) return null;
          await new Promise((resolve) => this.#platform.setTimeout(() => resolve(undefined), backoff.next()));
        }
      }
      return null;
    } finally {
      if (this.#on === connection) this.#on = null;
    }
  }
}
