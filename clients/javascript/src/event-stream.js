import { TOKEN_EXPIRED } from './close-codes.js';
import { CallTimeout, ConnectionLost, RemoteError } from './errors.js';
import { Watchdog } from './watchdog.js';

/**
 * @typedef {import('./types.js').Json} Json
 * @typedef {import('./connection.js').Settle} Settle
 *
 * @typedef {object} Waiting
 * @property {string} method
 * @property {Json} params
 * @property {Settle} settle
 * @property {any} timer
 * @property {boolean} settled
 */

/** RFC 6455's code for an end without words; it serves here as well. */
const ABNORMAL = 1006;
/** What a header may carry through every proxy; a longer state goes into a body. */
const LONGEST_HEADER = 4096;
/** Longer than the server lets any command run. */
const POST_TIMEOUT_MS = 30_000;

/**
 * The same conversation as a {@link import('./connection.js').Connection}, where no WebSocket gets through: the server
 * speaks on one response that does not end, and each request is one of its own.
 *
 * Requests go out one after the other, since nothing else keeps the order of two of them. An answer that did not come from
 * the server, or none, ends the whole stream: what may be repeated is then repeated on the next one, with its key.
 */
export class EventStream {
  /** Channels that were asked for are resumed with the session, since asking again costs a request each. */
  asksForAll = true;
  /** @type {string} */
  #base;
  /** @type {import('./platform.js').Platform} */
  #platform;
  /** @type {() => string} */
  #token;
  /** @type {import('./connection.js').ConnectionEvents} */
  #events;
  /** @type {Watchdog} */
  #watchdog;
  #abort = new AbortController();
  /** @type {Waiting | null} `session.connect`, until the stream's first message. */
  #connecting = null;
  /** @type {Waiting[]} */
  #waiting = [];
  /** @type {Waiting | null} */
  #asked = null;
  #session = '';
  #closed = false;

  /**
   * @param {string} url Of the socket that does not open.
   * @param {import('./platform.js').Platform} platform
   * @param {() => string} token The newest access token.
   * @param {import('./connection.js').ConnectionEvents} events
   */
  constructor(url, platform, token, events) {
    this.#base = url.replace(/^ws/, 'http').replace(/\/socket$/, '');
    this.#platform = platform;
    this.#token = token;
    this.#events = events;
    this.#watchdog = new Watchdog(platform, () => this.abandon(ABNORMAL, 'the server fell silent'));
    queueMicrotask(() => this.#closed || events.opened());
  }

  get closed() {
    return this.#closed;
  }

  get heardAt() {
    return this.#watchdog.heardAt;
  }

  /**
   * @param {string} method
   * @param {Json} params
   * @param {number} timeoutMs
   * @param {Settle} settle Called exactly once: with the result, a `RemoteError`, `CallTimeout` or `ConnectionLost`.
   */
  request(method, params, timeoutMs, settle) {
    if (this.#closed) return settle(new ConnectionLost());
    /** @type {Waiting} */
    const waiting = { method, params, settle, settled: false, timer: null };
    waiting.timer = this.#platform.setTimeout(() => {
      this.#waiting = this.#waiting.filter((other) => other !== waiting);
      this.#settle(waiting, new CallTimeout());
    }, timeoutMs);
    if (method === 'session.connect') {
      this.#connecting = waiting;
      void this.#open(params);
    } else {
      this.#waiting.push(waiting);
      void this.#pump();
    }
  }

  /** @param {number} silenceMs Silence of the server for this long ends the stream as lost. */
  watch(silenceMs) {
    this.#watchdog.watch(silenceMs);
  }

  /**
   * @param {number} [code] What the owner is told.
   * @param {string} [reason]
   */
  abandon(code = ABNORMAL, reason = '') {
    this.#ended(code, reason);
  }

  // The stream

  /** @param {Json} params */
  async #open({ resume = {}, client }) {
    const headers = { accept: 'text/event-stream', authorization: `Bearer ${this.#token()}` };
    const places = placesOf(resume);
    try {
      const response =
        places === null
          ? await this.#fetch('/events', {
              method: 'POST',
              headers: { ...headers, 'content-type': 'application/json' },
              body: JSON.stringify({ client, resume }),
            })
          : await this.#fetch('/events', { headers: { ...headers, ...(places && { 'last-event-id': places }) } });
      if (this.#closed) return;
      const isStream = response.headers.get('content-type')?.startsWith('text/event-stream');
      if (response.ok && isStream && response.body) await this.#read(response.body);
      else this.#refused(RemoteError.fromHttp(response.status, parsed(await response.text())));
    } catch {
      // What a broken stream had to say is said by its end.
    }
    this.#ended(ABNORMAL, '');
  }

  /** @param {RemoteError} error */
  #refused(error) {
    if (this.#connecting) this.#settle(this.#connecting, error);
    this.#ended(error.details.close?.code ?? ABNORMAL, error.message);
  }

  /** @param {ReadableStream<Uint8Array>} body */
  async #read(body) {
    const reader = body.getReader();
    const decoder = new TextDecoder();
    let rest = '';
    let name = '';
    /** @type {string[]} */
    let data = [];
    for (;;) {
      const { done, value } = await reader.read();
      if (done || this.#closed) return;
      this.#watchdog.heard();
      const lines = (rest + decoder.decode(value, { stream: true })).split('\n');
      rest = lines.pop() ?? '';
      for (const raw of lines) {
        const line = raw.endsWith('\r') ? raw.slice(0, -1) : raw;
        if (line.startsWith('data:')) data.push(line.slice(line[5] === ' ' ? 6 : 5));
        else if (line.startsWith('event:')) name = line.slice(6).trim();
        else if (line === '') {
          if (data.length > 0) this.#received(name, data.join('\n'));
          if (this.#closed) return;
          name = '';
          data = [];
        }
      }
    }
  }

  /**
   * @param {string} name
   * @param {string} data
   */
  #received(name, data) {
    const message = parsed(data);
    if (name === 'close') this.#ended(message.code ?? ABNORMAL, message.reason ?? '');
    else if (typeof message.method === 'string') this.#events.notified(message.method, message.params ?? {});
    else if (message.id === 'session.connect' && this.#connecting) {
      this.#session = message.result.session;
      this.#settle(this.#connecting, null, message.result);
    }
  }

  // Requests

  async #pump() {
    if (this.#asked || this.#closed) return;
    const next = this.#waiting.shift();
    if (!next) return;
    this.#asked = next;
    const answer = await this.#ask(next);
    this.#asked = null;
    if (this.#closed) return;
    if (answer === null) {
      this.#waiting.unshift(next);
      return this.abandon();
    }
    if (answer instanceof RemoteError) this.#settle(next, answer);
    else this.#settle(next, null, answer);
    void this.#pump();
  }

  /**
   * @param {Waiting} waiting
   * @returns {Promise<Json | RemoteError | null>} Null: the server did not answer, or has no such stream any more.
   */
  async #ask({ method, params }) {
    const { key, ...body } = params;
    // A renewed token vouches for itself: the old one may have run out already.
    const token = method === 'session.refresh' ? params.token : this.#token();
    const headers = {
      accept: 'application/json, application/problem+json',
      authorization: `Bearer ${token}`,
      'content-type': 'application/json',
      'x-session': this.#session,
      ...(key !== undefined && { 'idempotency-key': key }),
    };
    const timer = this.#platform.setTimeout(() => this.abandon(), POST_TIMEOUT_MS);
    try {
      const init = { method: 'POST', headers, body: JSON.stringify(body) };
      const response = await this.#fetch(`/commands/${encodeURIComponent(method)}`, init);
      const answer = parsed(await response.text());
      this.#watchdog.heard();
      if (response.ok) return answer;
      const error = RemoteError.fromHttp(response.status, answer);
      if (response.status === 401 && method !== 'session.refresh' && answer.type === 'invalid_token') {
        this.abandon(TOKEN_EXPIRED);
        return null;
      }
      // Not a word of the server's, but of something in between.
      if (typeof answer.type !== 'string') return null;
      if (answer.type === 'no_such_session') return null;
      // Another node has the stream and cannot be asked; a new stream takes along what is wanted.
      return method === 'channel.subscribe' && answer.type === 'unavailable' ? null : error;
    } catch {
      return null;
    } finally {
      this.#platform.clearTimeout(timer);
    }
  }

  /**
   * @param {string} path
   * @param {any} init
   */
  #fetch(path, init) {
    return this.#platform.fetch(this.#base + path, {
      ...init,
      credentials: 'omit',
      cache: 'no-store',
      signal: this.#abort.signal,
    });
  }

  /**
   * @param {Waiting} waiting
   * @param {Error | null} error
   * @param {any} [result]
   */
  #settle(waiting, error, result) {
    if (waiting === this.#connecting) this.#connecting = null;
    if (waiting.settled) return;
    waiting.settled = true;
    this.#platform.clearTimeout(waiting.timer);
    waiting.settle(error, result);
  }

  /**
   * @param {number} code
   * @param {string} reason
   */
  #ended(code, reason) {
    if (this.#closed) return;
    this.#closed = true;
    this.#watchdog.stop();
    this.#abort.abort();
    const left = [this.#connecting, this.#asked, ...this.#waiting];
    for (const waiting of left) if (waiting) this.#settle(waiting, new ConnectionLost());
    this.#events.closed(code, reason);
  }
}

/**
 * The `Last-Event-ID` that says the same as `resume`.
 *
 * @param {Record<string, import('./types.js').Position | null>} resume
 * @returns {string | null} Null when a header cannot say it.
 */
function placesOf(resume) {
  let places = '';
  for (const [channel, position] of Object.entries(resume)) {
    if (!position) return null;
    places += `${channel}@${position.epoch}.${position.offset};`;
  }
  return places.length > LONGEST_HEADER ? null : places;
}

/**
 * @param {string} text
 * @returns {Json} An empty object for what is none.
 */
function parsed(text) {
  try {
    const value = JSON.parse(text);
    return value !== null && typeof value === 'object' ? value : {};
  } catch {
    return {};
  }
}
