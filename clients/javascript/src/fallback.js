/** @typedef {'socket' | 'sse'} Transport */

/** Sockets that did not come to a session, in a row, before the stream is tried. */
const PATIENCE = 2;
const FIRST_PROBE_MS = 3000;
/** Times the usual pause, for a network that never lets a socket through. */
const LONGEST_PROBE = 10;

/**
 * Which transport to try next.
 *
 * The socket is always preferred. A network that blocks it cannot be told from a server that is away, so the stream gets
 * one try after two sockets that failed, and sockets have their turn again when it fails as well. Whoever is on a stream
 * looks for a socket soon, in case the server was only away for a moment, and then ever more seldom.
 */
export class Fallback {
  /** @type {ReadonlyArray<Transport>} */
  #transports;
  /** @type {() => number} */
  #random;
  /** @type {number} */
  #probeMs;
  #failures = 0;
  #probes = 0;

  /**
   * @param {ReadonlyArray<Transport>} transports Those that may be used.
   * @param {number} probeMs Between looks for a socket, at first.
   * @param {() => number} random Uniform in [0, 1).
   */
  constructor(transports, probeMs, random) {
    this.#transports = transports;
    this.#probeMs = probeMs;
    this.#random = random;
  }

  /** @returns {Transport} */
  next() {
    if (!this.#transports.includes('sse')) return 'socket';
    if (!this.#transports.includes('socket')) return 'sse';
    return this.#failures >= PATIENCE ? 'sse' : 'socket';
  }

  /** Whether a session on this transport should look for a better one. @param {Transport} transport */
  probes(transport) {
    return transport === 'sse' && this.#transports.includes('socket');
  }

  /** A session was opened. @param {Transport} transport */
  worked(transport) {
    if (transport === 'socket') this.reset();
  }

  /** The connection never came to a session, and the server did not say why. @param {Transport} transport */
  failed(transport) {
    if (transport === 'socket') this.#failures += 1;
    // One more failed socket, and it is the stream's turn again.
    else this.#failures = PATIENCE - 1;
  }

  /** @returns {number} Milliseconds until the next look for a socket. */
  nextProbe() {
    const usual = this.#probeMs * Math.min(LONGEST_PROBE, 2 ** (this.#probes - 1));
    const bound = this.#probes === 0 ? Math.min(FIRST_PROBE_MS, this.#probeMs) : usual;
    this.#probes = Math.min(this.#probes + 1, 8);
    // Half of it is dice, so that clients that fell back together do not come back together.
    return bound * (0.5 + this.#random() / 2);
  }

  /** Another network: what was true of the last one counts no more. */
  reset() {
    this.#failures = 0;
    this.#probes = 0;
  }
}
