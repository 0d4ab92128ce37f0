/** At most one acknowledgement a second: it is a courtesy to the server, and must not become traffic. */
const EVERY_MS = 1000;

/**
 * Tells the server how far this client has handled each channel. Offers cannot wait, since an offer that nobody
 * acknowledges within seconds is handed over to push messages: those are told as soon as their handlers have run.
 */
export class Acks {
  /** @type {Map<string, number>} */
  #offsets = new Map();
  /** @type {any} */
  #timer = null;
  #urgent = false;
  /** @type {import('./platform.js').Platform} */
  #platform;
  /** @type {(offsets: Record<string, number>) => boolean} */
  #send;

  /**
   * @param {import('./platform.js').Platform} platform
   * @param {(offsets: Record<string, number>) => boolean} send Says whether there was a connection to send on; if not,
   *   the offsets are kept.
   */
  constructor(platform, send) {
    this.#platform = platform;
    this.#send = send;
  }

  /**
   * @param {string} channel
   * @param {number} offset Replaces what was noted before, also by a smaller one: a new epoch starts anew.
   * @param {boolean} urgent
   */
  note(channel, offset, urgent) {
    this.#offsets.set(channel, offset);
    if (urgent) {
      if (this.#urgent) return;
      this.#urgent = true;
      // One acknowledgement for a whole batch of recovered offers.
      queueMicrotask(() => {
        this.#urgent = false;
        this.flush();
      });
    } else {
      this.#timer ??= this.#platform.setTimeout(() => this.flush(), EVERY_MS);
    }
  }

  /** @param {string} channel */
  forget(channel) {
    this.#offsets.delete(channel);
  }

  flush() {
    this.#platform.clearTimeout(this.#timer);
    this.#timer = null;
    if (this.#offsets.size && this.#send(Object.fromEntries(this.#offsets))) this.#offsets.clear();
  }
}
