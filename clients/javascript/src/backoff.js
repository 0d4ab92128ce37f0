/** Contract: full jitter, 0.5 s growing to 20 s. */
const FIRST_MS = 500;
const LONGEST_MS = 20_000;

/**
 * Delays between attempts with full jitter: uniform between nothing and a bound that doubles. Spreading over the whole
 * interval is what keeps a crowd that lost its server at one instant from coming back at one instant
 * (aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter).
 */
export class Backoff {
  #attempts = 0;
  /** @type {() => number} */
  #random;

  /** @param {() => number} random Uniform in [0, 1). */
  constructor(random) {
    this.#random = random;
  }

  /** @returns {number} Milliseconds to wait before the next attempt. */
  next() {
    const bound = Math.min(LONGEST_MS, FIRST_MS * 2 ** this.#attempts);
    // Far above the longest bound there is nothing left to double.
    this.#attempts = Math.min(this.#attempts + 1, 16);
    return this.#random() * bound;
  }

  reset() {
    this.#attempts = 0;
  }
}
