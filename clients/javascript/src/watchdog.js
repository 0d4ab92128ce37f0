/** Tells when a server has been silent for too long. It looks when the silence would be complete, instead of moving a timer
 * at each sign of life. */
export class Watchdog {
  /** @type {import('./platform.js').Platform} */
  #platform;
  /** @type {() => void} */
  #silent;
  /** @type {any} */
  #timer = null;
  #silenceMs = 0;
  /** Time of the newest sign of life. */
  heardAt = 0;

  /**
   * @param {import('./platform.js').Platform} platform
   * @param {() => void} silent
   */
  constructor(platform, silent) {
    this.#platform = platform;
    this.#silent = silent;
  }

  heard() {
    this.heardAt = this.#platform.now();
  }

  /** @param {number} silenceMs From now on, this much is too long. */
  watch(silenceMs) {
    this.#silenceMs = silenceMs;
    this.#arm();
  }

  stop() {
    this.#platform.clearTimeout(this.#timer);
  }

  #arm() {
    const left = this.heardAt + this.#silenceMs - this.#platform.now();
    if (left <= 0) return this.#silent();
    this.#platform.clearTimeout(this.#timer);
    this.#timer = this.#platform.setTimeout(() => this.#arm(), left);
  }
}
