import { CallTimeout, ConnectionLost, FixnadoError, RemoteError } from './errors.js';
import { Watchdog } from './watchdog.js';

/**
 * @typedef {import('./types.js').Json} Json
 * @typedef {(error: Error | null, result?: any) => void} Settle
 *
 * @typedef {object} ConnectionEvents
 * @property {() => void} opened
 * @property {(method: string, params: Json) => void} notified
 * @property {(code: number, reason: string) => void} closed Called exactly once.
 */

export const SUBPROTOCOL = 'fixnado.v1';

/** Contract: a client's frame is at most 64 KiB; a longer one would cost the whole connection. */
const LONGEST_FRAME_BYTES = 65_536;

/** Requests without an answer at a time. A pile kept through an outage must not look like a flood when it is sent. */
const WINDOW = 16;

/** RFC 6455: no close frame was seen. */
const ABNORMAL = 1006;

/**
 * One socket from open to close: JSON-RPC over it, and nothing that outlives it.
 *
 * Replies settle synchronously inside the message that brought them, not in a later microtask: a socket may hand over
 * several messages in one turn, and an event must never be handled before the reply that came ahead of it.
 */
export class Connection {
  /** Other channels than the session's own are asked for after it is open. */
  asksForAll = false;
  /** @type {import('./platform.js').SocketLike} */
  #socket;
  /** @type {import('./platform.js').Platform} */
  #platform;
  /** @type {ConnectionEvents} */
  #events;
  /** @type {Map<number, { settle: Settle, timer: any }>} Without an answer, oldest first; the frames of some wait. */
  #pending = new Map();
  /** @type {{ id: number, frame: string }[]} */
  #waiting = [];
  /** @type {Set<number>} */
  #unanswered = new Set();
  #lastId = 0;
  #closed = false;
  /** @type {Watchdog} */
  #watchdog;

  /**
   * @param {string} url
   * @param {import('./platform.js').Platform} platform
   * @param {ConnectionEvents} events
   */
  constructor(url, platform, events) {
    this.#platform = platform;
    this.#events = events;
    this.#watchdog = new Watchdog(platform, () => this.abandon(ABNORMAL, 'the server fell silent'));
    const socket = new platform.WebSocket(url, [SUBPROTOCOL]);
    this.#socket = socket;
    let opened = false;
    socket.onopen = () => {
      opened = true;
      events.opened();
    };
    socket.onmessage = (message) => this.#received(message.data);
    socket.onclose = (close) => this.#ended(close.code ?? ABNORMAL, close.reason ?? '');
    // It says nothing that the close event after it does not say; but some of Node's versions have none after a handshake
    // that failed.
    socket.onerror = () => opened || this.#ended(ABNORMAL, '');
  }

  get closed() {
    return this.#closed;
  }

  /** Time of the newest frame from the server. */
  get heardAt() {
    return this.#watchdog.heardAt;
  }

  /**
   * Requests are sent in the order they are made.
   *
   * @param {string} method
   * @param {Json} params
   * @param {number} timeoutMs
   * @param {Settle} settle Called exactly once: with the result, a `RemoteError`, `CallTimeout` or `ConnectionLost`.
   */
  request(method, params, timeoutMs, settle) {
    if (this.#closed) return settle(new ConnectionLost());
    const id = ++this.#lastId;
    const frame = JSON.stringify({ jsonrpc: '2.0', id, method, params });
    if (tooLong(frame)) return settle(new FixnadoError('frame_too_long', 'This is too long to send.'));
    const timer = this.#platform.setTimeout(() => this.#expired(id), timeoutMs);
    this.#pending.set(id, { settle, timer });
    this.#waiting.push({ id, frame });
    this.#pump();
  }

  #pump() {
    while (!this.#closed && this.#unanswered.size < WINDOW) {
      const next = this.#waiting.shift();
      if (!next) return;
      this.#unanswered.add(next.id);
      this.#socket.send(next.frame);
    }
  }

  /**
   * @param {string} method
   * @param {Json} [params]
   */
  notify(method, params) {
    if (!this.#closed) this.#socket.send(JSON.stringify({ jsonrpc: '2.0', method, ...(params && { params }) }));
  }

  /**
   * From now on, silence of the server for this long ends the connection as lost.
   *
   * @param {number} silenceMs
   */
  watch(silenceMs) {
    this.#watchdog.watch(silenceMs);
  }

  /**
   * Ends the connection now, without waiting for the other side: on a dead network a closing handshake takes minutes.
   *
   * @param {number} [code] What the owner is told.
   * @param {string} [reason]
   */
  abandon(code = ABNORMAL, reason = '') {
    if (this.#closed) return;
    const socket = this.#socket;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close(1000);
    this.#ended(code, reason);
  }

  /** @param {unknown} data */
  #received(data) {
    if (this.#closed) return;
    this.#watchdog.heard();
    let frame;
    try {
      frame = JSON.parse(/** @type {string} */ (data));
    } catch {
      // Nothing after a frame that cannot be read is sure to be complete, so start over and resume.
      return this.abandon(ABNORMAL, 'unreadable frame');
    }
    if (frame.method === 'ping') this.notify('pong');
    else if (typeof frame.method === 'string') this.#events.notified(frame.method, frame.params ?? {});
    else if (frame.error) this.#settle(frame.id, RemoteError.fromRpc(frame.error));
    else this.#settle(frame.id, null, frame.result);
  }

  /**
   * @param {number} id
   * @param {Error | null} error
   * @param {any} [result]
   */
  #settle(id, error, result) {
    // An answer whose time was up makes room all the same.
    this.#unanswered.delete(id);
    const pending = this.#pending.get(id);
    if (pending) {
      this.#pending.delete(id);
      this.#platform.clearTimeout(pending.timer);
      pending.settle(error, result);
    }
    this.#pump();
  }

  /**
   * Its place in the window stays taken if it was sent: the server is still at it.
   *
   * @param {number} id
   */
  #expired(id) {
    const pending = this.#pending.get(id);
    this.#pending.delete(id);
    this.#waiting = this.#waiting.filter((waiting) => waiting.id !== id);
    pending?.settle(new CallTimeout());
  }

  /**
   * @param {number} code
   * @param {string} reason
   */
  #ended(code, reason) {
    if (this.#closed) return;
    this.#closed = true;
    this.#watchdog.stop();
    for (const id of [...this.#pending.keys()]) this.#settle(id, new ConnectionLost());
    this.#events.closed(code, reason);
  }
}

/**
 * @param {string} frame
 * @returns {boolean}
 */
function tooLong(frame) {
  // A UTF-16 unit is at most three bytes of UTF-8, so short frames need no counting.
  return frame.length * 3 > LONGEST_FRAME_BYTES && new TextEncoder().encode(frame).length > LONGEST_FRAME_BYTES;
}
