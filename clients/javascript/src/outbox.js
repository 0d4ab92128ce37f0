import { CallTimeout, ConnectionLost, FixnadoError, RemoteError } from './errors.js';

/**
 * The commands that were asked for and are not answered yet. It outlives connections.
 *
 * Invariants:
 * - commands are handed to the connection in the order they were made;
 * - a command whose connection died, or that the server had no room for, goes back to its place in the order, unchanged,
 *   key included, if it may be repeated;
 * - at most {@link BOUND} are without an answer; one more is refused at once.
 *
 * @typedef {object} Entry
 * @property {number} number Order of making.
 * @property {string} method
 * @property {import('./types.js').Json} params
 * @property {boolean} repeatable
 * @property {any} timer
 * @property {boolean} settled
 * @property {(result: any) => void} resolve
 * @property {(error: Error) => void} reject
 */

const BOUND = 256;
/** The entry's own timer decides; the connection's is only the latest time to forget the id. */
const FORGET_MS = 24 * 3_600_000;

export class Outbox {
  /** @type {Entry[]} Waiting, in order. */
  #waiting = [];
  /** @type {Set<Entry>} */
  #open = new Set();
  #made = 0;
  /** @type {import('./connection.js').Connection | null} */
  #connection = null;
  /** @type {any} Set while the server wants a pause. */
  #pause = null;
  /** @type {import('./platform.js').Platform} */
  #platform;

  /** @param {import('./platform.js').Platform} platform */
  constructor(platform) {
    this.#platform = platform;
  }

  /** Commands without an answer, sent or not. */
  get size() {
    return this.#open.size;
  }

  /**
   * @param {string} method
   * @param {import('./types.js').Json} params
   * @param {{ timeoutMs: number, repeatable: boolean, momentary: boolean }} how `timeoutMs` counts from now, over as many
   *   connections as it takes. `momentary`: refuse rather than wait for a connection.
   * @returns {Promise<any>}
   */
  call(method, params, { timeoutMs, repeatable, momentary }) {
    return new Promise((resolve, reject) => {
      /** @type {Entry} */
      const entry = {
        number: ++this.#made,
        method,
        params,
        repeatable,
        settled: false,
        timer: null,
        resolve: (result) => {
          this.#close(entry);
          resolve(result);
        },
        reject: (error) => {
          this.#close(entry);
          if (error instanceof FixnadoError) error.key = params.key;
          reject(error);
        },
      };
      if (momentary && !this.#connection) return entry.reject(new ConnectionLost('There is no connection now.'));
      if (this.#open.size >= BOUND) {
        return entry.reject(new FixnadoError('too_many_waiting', 'Too many commands wait for an answer.', true));
      }
      entry.timer = this.#platform.setTimeout(() => entry.reject(new CallTimeout()), timeoutMs);
      this.#open.add(entry);
      this.#waiting.push(entry);
      this.#pump();
    });
  }

  /** @param {import('./connection.js').Connection} connection A session is open on it. */
  attach(connection) {
    this.#connection = connection;
    this.#pump();
  }

  detach() {
    this.#connection = null;
    this.#platform.clearTimeout(this.#pause);
    this.#pause = null;
  }

  /** @param {Error} error */
  rejectAll(error) {
    for (const entry of [...this.#open]) entry.reject(error);
  }

  /** @param {Entry} entry */
  #close(entry) {
    entry.settled = true;
    this.#platform.clearTimeout(entry.timer);
    this.#open.delete(entry);
    this.#waiting = this.#waiting.filter((other) => other !== entry);
  }

  #pump() {
    while (this.#connection && !this.#connection.closed && !this.#pause) {
      const entry = this.#waiting.shift();
      if (!entry) return;
      this.#send(this.#connection, entry);
    }
  }

  /**
   * @param {import('./connection.js').Connection} connection
   * @param {Entry} entry
   */
  #send(connection, entry) {
    connection.request(entry.method, entry.params, FORGET_MS, (error, result) => {
      if (entry.settled) return;
      if (!error) return entry.resolve(result);
      const crowded = error instanceof RemoteError && error.retryAfterSeconds !== undefined;
      if (!entry.repeatable || !(crowded || error instanceof ConnectionLost)) return entry.reject(error);
      this.#putBack(entry);
      if (crowded && connection === this.#connection) this.#pauseFor(error.retryAfterSeconds ?? 1);
    });
  }

  /** @param {Entry} entry */
  #putBack(entry) {
    const place = this.#waiting.findIndex((other) => other.number > entry.number);
    this.#waiting.splice(place < 0 ? this.#waiting.length : place, 0, entry);
  }

  /** Nothing overtakes a command that has to wait. @param {number} seconds */
  #pauseFor(seconds) {
    this.#platform.clearTimeout(this.#pause);
    // Up to a quarter later, so that clients that were refused together do not come back together.
    const delayMs = seconds * 1000 * (1 + this.#platform.random() / 4);
    this.#pause = this.#platform.setTimeout(() => {
      this.#pause = null;
      this.#pump();
    }, delayMs);
  }
}
