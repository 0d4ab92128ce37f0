/** Timers by purpose. Each purpose has at most one. */
export class Timers {
  /** @type {Map<string, any>} */
  #timers = new Map();
  /** @type {import('./platform.js').Platform} */
  #platform;

  /** @param {import('./platform.js').Platform} platform */
  constructor(platform) {
    this.#platform = platform;
  }

  /**
   * Replaces the one that runs for this purpose.
   *
   * @param {string} purpose
   * @param {number} delayMs
   * @param {() => void} action
   */
  after(purpose, delayMs, action) {
    this.cancel(purpose);
    const timer = this.#platform.setTimeout(() => {
      this.#timers.delete(purpose);
      action();
    }, delayMs);
    this.#timers.set(purpose, timer);
  }

  /** @param {string} purpose */
  cancel(purpose) {
    this.#platform.clearTimeout(this.#timers.get(purpose));
    this.#timers.delete(purpose);
  }

  cancelAll() {
    for (const purpose of [...this.#timers.keys()]) this.cancel(purpose);
  }
}
