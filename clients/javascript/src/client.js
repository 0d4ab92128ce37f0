import { Acks } from './acks.js';
import { Backoff } from './backoff.js';
import { Channel } from './channel.js';
import { actionOn, DRAIN, INVALID_TOKEN, meaningOf, SERVER_ERROR } from './close-codes.js';
import { KEYED, MOMENTARY, REPEATABLE } from './commands.js';
import { Connection } from './connection.js';
import { Emitter } from './emitter.js';
import { EventStream } from './event-stream.js';
import { CallTimeout, ConnectionLost, FixnadoError, needsSignIn, RemoteError, Stopped } from './errors.js';
import { Fallback } from './fallback.js';
import { settled } from './options.js';
import { Outbox } from './outbox.js';
import { platformWith } from './platform.js';
import { Renewal } from './renewal.js';
import { Timers } from './timers.js';

/**
 * @typedef {import('./types.js').Json} Json
 * @typedef {import('./types.js').State} State
 * @typedef {import('./types.js').StateChange} StateChange
 * @typedef {import('./types.js').SessionInfo} SessionInfo
 * @typedef {import('./types.js').Subscription} Subscription
 * @typedef {import('./types.js').Position} Position
 * @typedef {import('./options.js').ClientOptions} ClientOptions
 */

/** A close that explains a refused session follows on its heels. */
const VERDICT_MS = 1000;
/** JSON-RPC error code of the contract. */
const NOT_AUTHENTICATED = -32001;
const REPLY_TIMEOUT_MS = 10_000;
/** A session that held this long was a good one; a shorter one must not make the next attempts faster. */
const STABLE_MS = 10_000;
/** Contract: a live session has this long after `session.expiring` runs out to bring a new token. */
const RENEWAL_GRACE_MS = 25_000;
/** Contract: the server allows heartbeat + 10 s of silence; its own pings may be late by their jitter. */
const SILENCE_SLACK_MS = 10_000;
const PING_JITTER = 1.25;
/** A server that drains closes by itself; this much later the client no longer waits for it. */
const DRAIN_SLACK_MS = 1000;

/**
 * One live session that outlives its sockets.
 *
 * It keeps: the channels asked for and the place in each, the commands without an answer, and the time of the next
 * attempt. Each socket starts with `session.connect`, which resumes the session's own channels; the others are asked for
 * again right after it, and then the unanswered commands are sent once more, in order and with their keys.
 *
 * Emits `state` ({@link StateChange}), `session` ({@link SessionInfo}, at each new session, before its events),
 * `channel` ({@link Channel}, the first time the server gives one, before its events: the place to attach listeners),
 * `resumed` ({@link import('./types.js').Recovery}, after a reconnect, when every channel is restored), `latency`
 * (milliseconds), `drain` (`{reconnectAfterMs}`) and `renewed` (a new token was taken on the live connection).
 *
 * Where no socket gets through, a session runs on an event stream and requests of their own; see `transport`. It looks for
 * a socket from time to time and moves over as after any other loss: with its places, and with the keys of its commands.
 */
export class RealtimeClient extends Emitter {
  /** @type {import('./platform.js').Platform} */
  #platform;
  /** @type {import('./options.js').Settled} */
  #options;
  /** @type {State} */
  #state = 'offline';
  /** @type {Connection | EventStream | null} */
  #connection = null;
  /** @type {Connection | null} A socket that is being looked for, while there is a stream. */
  #probe = null;
  /** @type {import('./fallback.js').Transport} */
  #transport = 'socket';
  /** @type {Fallback} */
  #fallback;
  /** @type {Set<string>} Channels that were named to resume without being the session's own. */
  #named = new Set();
  /** Raised whenever what is under way for an older attempt no longer matters. */
  #attempt = 0;
  /** @type {Map<string, Channel>} */
  #channels = new Map();
  /** @type {Backoff} */
  #backoff;
  /** @type {Outbox} */
  #outbox;
  /** @type {Acks} */
  #acks;
  #token = '';
  /** @type {string | undefined} */
  #rejectedToken;
  #triedRenewal = false;
  /** @type {Renewal} */
  #renewal;
  /** The server asked not to be asked again before this time. */
  #notBefore = 0;
  #lostAt = 0;
  #clockOffsetMs = 0;
  /** @type {Timers} */
  #timers;
  /** @type {{ resolve: (info: SessionInfo) => void, reject: (error: Error) => void }[]} */
  #connecting = [];
  #networkBack = () => {
    this.#fallback.reset();
    if (this.#state === 'online' && this.#fallback.probes(this.#transport)) this.#lookForSocket();
    if (this.#state === 'waiting' && this.#platform.now() >= this.#notBefore) this.#open();
  };

  /** @param {ClientOptions} options */
  constructor(options) {
    super(options.onListenerError);
    this.#options = settled(options);
    this.#platform = platformWith(options.platform);
    this.#backoff = new Backoff(this.#platform.random);
    const { transports, socketProbeMs } = this.#options;
    this.#fallback = new Fallback(transports, socketProbeMs, this.#platform.random);
    this.#transport = this.#fallback.next();
    this.#renewal = new Renewal(this.#platform, this.#options.getToken);
    this.#timers = new Timers(this.#platform);
    this.#outbox = new Outbox(this.#platform);
    this.#acks = new Acks(this.#platform, (offsets) => this.#sendAck(offsets));
    /** @type {SessionInfo | null} The newest session, also while it is away. */
    this.session = null;
    /** @type {number | null} Newest measured round trip. */
    this.latencyMs = null;
    /** Sessions after the first. */
    this.reconnects = 0;
  }

  get state() {
    return this.#state;
  }

  get user() {
    return this.session?.user ?? null;
  }

  /** What the session runs on, or is tried on. @returns {import('./fallback.js').Transport} */
  get transport() {
    return this.#transport;
  }

  /** Commands without an answer. */
  get pendingCalls() {
    return this.#outbox.size;
  }

  /** The server's clock as far as it is known; for countdowns. @returns {number} Milliseconds since the Unix epoch. */
  serverNow() {
    return this.#platform.now() + this.#clockOffsetMs;
  }

  /**
   * Goes online and stays there. Calling it again does no harm; after `stopped` it starts anew.
   *
   * @returns {Promise<SessionInfo>} The session, when the first one is open.
   * @throws {Stopped} The server or `disconnect` said to stay away, or nobody is signed in.
   */
  connect() {
    if (this.#state === 'online' && this.session) return Promise.resolve(this.session);
    const opened = new Promise((resolve, reject) => this.#connecting.push({ resolve, reject }));
    if (this.#state === 'offline' || this.#state === 'stopped') {
      this.#platform.network?.addEventListener('online', this.#networkBack);
      this.#triedRenewal = false;
      this.#open();
    }
    return opened;
  }

  /** Ends the session and everything that waits for it. */
  disconnect() {
    this.#stop(new Stopped('The client was disconnected.'));
  }

  /** Drops the socket as a dying network would, and stays offline until `resume`. Nothing is forgotten. */
  suspend() {
    if (this.#state === 'stopped' || this.#state === 'offline') return;
    this.#drop();
    this.#enter('offline');
  }

  /** Takes up what `suspend` dropped, at once. */
  resume() {
    if (this.#state === 'offline') this.#open();
  }

  /**
   * Sends a command. One that takes an idempotency key gets one; it is kept on every repetition and is found as `key` on
   * the error, so that a caller can repeat it safely as well.
   *
   * @param {string} method
   * @param {Json} [params]
   * @param {{ timeoutMs?: number }} [options]
   * @returns {Promise<any>} The result.
   * @throws {RemoteError} The server refused.
   * @throws {ConnectionLost} The socket died and this command is not one that may be repeated.
   * @throws {import('./errors.js').CallTimeout} No answer in time.
   * @throws {Stopped} The client is stopped.
   */
  call(method, params = {}, { timeoutMs = this.#options.callTimeoutMs } = {}) {
    if (this.#state === 'stopped') return Promise.reject(new Stopped('The client is stopped.'));
    const keyed = KEYED.has(method);
    return this.#outbox.call(method, keyed ? { key: this.#platform.uuid(), ...params } : params, {
      timeoutMs,
      repeatable: keyed || REPEATABLE.has(method),
      momentary: MOMENTARY.has(method),
    });
  }

  /**
   * The channel of a name. Listening does not subscribe; own channels need no subscription.
   *
   * @param {string} name
   * @returns {Channel}
   */
  channel(name) {
    let channel = this.#channels.get(name);
    if (!channel) {
      channel = new Channel(name, {
        wanted: (wanted) => this.#subscribe(wanted, () => undefined),
        unwanted: (unwanted) => this.#unsubscribe(unwanted),
        handled: (of, offset, urgent) => this.#acks.note(of, offset, urgent),
        report: this.#options.onListenerError,
      });
      this.#channels.set(name, channel);
    }
    return channel;
  }

  /** Channels the server gave without asking. */
  get ownChannels() {
    return [...this.#channels.values()].filter((channel) => channel.own);
  }

  async #open() {
    this.#timers.cancelAll();
    const attempt = ++this.#attempt;
    this.#enter('connecting');
    this.#timers.after('connect', this.#options.connectTimeoutMs, () => this.#failed());
    try {
      const token = await this.#options.getToken(this.#rejectedToken ? { rejected: this.#rejectedToken } : {});
      if (attempt !== this.#attempt) return;
      this.#token = token;
      this.#transport = this.#fallback.next();
      /** @type {Connection | EventStream} */
      const connection = this.#transport === 'socket' ? this.#socket() : this.#stream();
      this.#connection = connection;
    } catch (error) {
      if (attempt !== this.#attempt) return;
      if (needsSignIn(error)) this.#stop(new Stopped('Sign in again.'));
      else this.#failed(/** @type {Error} */ (error));
    }
  }

  /** @returns {Connection} */
  #socket() {
    /** @type {Connection} */
    const connection = new Connection(this.#options.url, this.#platform, {
      opened: () => (connection === this.#probe ? this.#moveTo(connection) : this.#introduce(connection)),
      notified: (method, params) => this.#notified(connection, method, params),
      closed: (code) => (connection === this.#probe ? this.#probed() : this.#closed(connection, code)),
    });
    return connection;
  }

  /** @returns {EventStream} */
  #stream() {
    /** @type {EventStream} */
    const stream = new EventStream(this.#options.url, this.#platform, () => this.#token, {
      opened: () => this.#introduce(stream),
      notified: (method, params) => this.#notified(stream, method, params),
      closed: (code) => this.#closed(stream, code),
    });
    return stream;
  }

  #lookForSocket() {
    this.#timers.cancel('probe');
    this.#probe?.abandon();
    this.#timers.after('probe', this.#options.connectTimeoutMs, () => this.#probe?.abandon());
    this.#probe = this.#socket();
  }

  /** No socket yet. */
  #probed() {
    this.#probe = null;
    if (this.#state === 'online') this.#timers.after('probe', this.#fallback.nextProbe(), () => this.#lookForSocket());
  }

  /** There is a socket: the session goes on there. @param {Connection} connection */
  #moveTo(connection) {
    this.#probe = null;
    this.#drop();
    this.#transport = 'socket';
    this.#connection = connection;
    this.#enter('connecting');
    this.#timers.after('connect', this.#options.connectTimeoutMs, () => this.#failed());
    this.#introduce(connection);
  }

  /** @param {Connection | EventStream} connection */
  #introduce(connection) {
    /** @type {Record<string, Position | null>} */
    const resume = {};
    this.#named.clear();
    for (const { own, desired, name, position } of this.#channels.values()) {
      if (own && position) resume[name] = position;
      else if (desired && connection.asksForAll) {
        resume[name] = position;
        this.#named.add(name);
      }
    }
    const params = {
      token: this.#token,
      client: this.#options.name,
      ...(Object.keys(resume).length > 0 && { resume }),
    };
    const sentAt = this.#platform.now();
    connection.request('session.connect', params, this.#options.connectTimeoutMs, (error, info) => {
      if (connection !== this.#connection || connection.closed) return;
      if (error) this.#rejected(connection, error);
      else this.#established(connection, info, sentAt);
    });
  }

  /**
   * The server did not open the session. Its close code says what to do; if it does not close, the error has to.
   *
   * @param {Connection | EventStream} connection
   * @param {Error} error
   */
  #rejected(connection, error) {
    if (!(error instanceof RemoteError)) return connection.abandon();
    if (error.retryAfterSeconds) this.#notBefore = this.#platform.now() + error.retryAfterSeconds * 1000;
    this.#timers.after('connect', VERDICT_MS, () => {
      if (error.code === NOT_AUTHENTICATED) connection.abandon(INVALID_TOKEN);
      else if (error.retryable || error.status >= 500) connection.abandon(SERVER_ERROR);
      else this.#stop(error);
    });
  }

  /**
   * @param {Connection | EventStream} connection
   * @param {SessionInfo} info
   * @param {number} sentAt
   */
  #established(connection, info, sentAt) {
    const again = this.session !== null;
    const now = this.#platform.now();
    this.#timers.cancel('connect');
    this.#triedRenewal = false;
    this.#rejectedToken = undefined;
    // The server read its clock about halfway through the round trip.
    this.#clockOffsetMs = Date.parse(info.server_time) - (sentAt + now) / 2;
    this.#fallback.worked(this.#transport);
    this.session = info;
    if (again) this.reconnects += 1;
    connection.watch(info.heartbeat_seconds * 1000 * PING_JITTER + SILENCE_SLACK_MS);
    this.#timers.after('stable', STABLE_MS, () => this.#backoff.reset());
    this.#enter('online');
    this.emit('session', info);
    this.#restore(connection, info, again ? now - this.#lostAt : null);
    if (connection !== this.#connection) return;
    this.#outbox.attach(connection);
    this.#acks.flush();
    this.#measure(connection);
    if (this.#fallback.probes(this.#transport)) this.#probed();
    for (const waiter of this.#connecting.splice(0)) waiter.resolve(info);
  }

  /**
   * @param {Connection | EventStream} connection
   * @param {SessionInfo} info
   * @param {number | null} awayMs Null in the first session.
   */
  #restore(connection, info, awayMs) {
    /** @type {Set<string>} */
    const missed = new Set();
    /** @type {string[]} */
    const reset = [];
    let open = 1;
    /** @param {string} name @param {import('./channel.js').Restored | null} outcome */
    const done = (name, outcome) => {
      for (const id of outcome?.missed ?? []) missed.add(id);
      if (outcome?.reset) reset.push(name);
      open -= 1;
      if (open === 0 && awayMs !== null) this.emit('resumed', { missed: missed.size, reset, awayMs });
    };
    for (const [name, subscription] of Object.entries(info.channels)) {
      if (connection !== this.#connection) return;
      const channel = this.channel(name);
      const named = this.#named.has(name);
      const first = !channel.own && !named;
      channel.own = !named;
      if (first) this.emit('channel', channel);
      open += 1;
      if (channel.own || channel.desired) done(name, channel.restored(subscription));
      else {
        // It was let go while the session opened.
        done(name, null);
        this.#unsubscribe(channel);
      }
    }
    for (const channel of [...this.#channels.values()]) {
      if (connection !== this.#connection) return;
      if (channel.name in info.channels) continue;
      const taken = channel.own;
      channel.own = false;
      if (channel.desired) {
        open += 1;
        this.#subscribe(channel, (outcome) => done(channel.name, outcome));
      } else if (taken) {
        channel.refused(new FixnadoError('not_found', 'This channel is no longer yours.'));
      }
    }
    done('', null);
  }

  /**
   * @param {Channel} channel
   * @param {(outcome: import('./channel.js').Restored | null) => void} done
   */
  #subscribe(channel, done) {
    const connection = this.#connection;
    // Without a session there is nothing to do now: the next one asks for everything that is desired.
    if (!connection || this.#state !== 'online') return;
    const resume = channel.position;
    channel.awaitReply();
    const params = { channel: channel.name, ...(resume && { resume }) };
    connection.request('channel.subscribe', params, REPLY_TIMEOUT_MS, (error, subscription) => {
      if (connection !== this.#connection || error instanceof ConnectionLost) return;
      if (!channel.desired && !channel.own) return done(null);
      if (!error) return done(channel.restored(subscription));
      if (error instanceof CallTimeout || (error instanceof RemoteError && error.retryable)) {
        const seconds = (error instanceof RemoteError && error.retryAfterSeconds) || 1;
        const delayMs = seconds * 1000 * (1 + this.#platform.random());
        this.#timers.after(`subscribe ${channel.name}`, delayMs, () => this.#subscribe(channel, done));
      } else {
        channel.refused(error);
        done(null);
      }
    });
  }

  /** @param {Channel} channel */
  #unsubscribe(channel) {
    if (channel.own) return;
    channel.forget(new FixnadoError('unsubscribed', 'The channel was unsubscribed.'));
    this.#acks.forget(channel.name);
    this.#timers.cancel(`subscribe ${channel.name}`);
    if (this.#state !== 'online') return;
    this.#connection?.request('channel.unsubscribe', { channel: channel.name }, REPLY_TIMEOUT_MS, () => undefined);
  }

  /**
   * @param {Connection | EventStream} connection
   * @param {string} method
   * @param {Json} params
   */
  #notified(connection, method, params) {
    if (connection !== this.#connection) return;
    if (method === 'event') {
      this.#channels.get(params.channel)?.received(/** @type {any} */ (params));
    } else if (method === 'session.expiring') {
      void this.#renew(connection, (params.expires_in_seconds ?? 0) * 1000 + RENEWAL_GRACE_MS);
    } else if (method === 'drain') {
      const delayMs = params.reconnect_after_ms ?? 0;
      this.#notBefore = this.#platform.now() + delayMs;
      this.#timers.cancel('stable');
      this.#timers.after('drain', delayMs + DRAIN_SLACK_MS, () => connection.abandon(DRAIN));
      this.emit('drain', { reconnectAfterMs: delayMs });
    }
  }

  /**
   * @param {Connection | EventStream} connection
   * @param {number} withinMs
   */
  async #renew(connection, withinMs) {
    const token = await this.#renewal.renew(connection, this.#token, withinMs);
    if (token === null || connection !== this.#connection) return;
    this.#token = token;
    this.emit('renewed', undefined);
  }

  /**
   * Takes the time of the cheapest request there is. One that stays without any frame from the server shows a dead
   * connection sooner than its missing pings do.
   *
   * @param {Connection | EventStream} connection
   */
  #measure(connection) {
    const sentAt = this.#platform.now();
    connection.request('session.ack', {}, REPLY_TIMEOUT_MS, (error) => {
      if (connection !== this.#connection || connection.closed) return;
      if (error instanceof CallTimeout) {
        if (connection.heardAt <= sentAt) return connection.abandon();
      } else {
        this.latencyMs = this.#platform.now() - sentAt;
        this.emit('latency', this.latencyMs);
      }
      this.#timers.after('latency', this.#options.latencyIntervalMs, () => this.#measure(connection));
    });
  }

  /**
   * @param {Record<string, number>} offsets
   * @returns {boolean}
   */
  #sendAck(offsets) {
    if (this.#state !== 'online' || !this.#connection || this.#connection.closed) return false;
    this.#connection.request('session.ack', offsets, REPLY_TIMEOUT_MS, () => undefined);
    return true;
  }

  /**
   * @param {Connection | EventStream} connection
   * @param {number} code
   */
  #closed(connection, code) {
    if (connection !== this.#connection) return;
    if (this.#state === 'connecting' && code < DRAIN) this.#fallback.failed(this.#transport);
    const action = actionOn(code);
    if (action === 'stop' || (action === 'renew-once' && this.#triedRenewal)) {
      return this.#stop(new Stopped(meaningOf(code), code), code);
    }
    if (action === 'renew' || action === 'renew-once') this.#rejectedToken = this.#token;
    this.#drop();
    if (action === 'renew-once') {
      this.#triedRenewal = true;
      this.#open();
    } else this.#wait(code);
  }

  /** @param {Error} [error] */
  #failed(error) {
    if (this.#connection) this.#fallback.failed(this.#transport);
    this.#drop();
    this.#wait(undefined, error);
  }

  /**
   * @param {number} [closeCode]
   * @param {Error} [error]
   */
  #wait(closeCode, error) {
    const retryInMs = Math.max(0, this.#notBefore - this.#platform.now()) + this.#backoff.next();
    this.#enter('waiting', { retryInMs, closeCode, error });
    this.#timers.after('retry', retryInMs, () => this.#open());
  }

  /**
   * @param {Error} error
   * @param {number} [closeCode]
   */
  #stop(error, closeCode) {
    this.#drop();
    this.#platform.network?.removeEventListener('online', this.#networkBack);
    this.#outbox.rejectAll(error);
    for (const channel of this.#channels.values()) channel.giveUpWaiting(error);
    if (this.#state !== 'stopped') this.#enter('stopped', { closeCode, error });
    for (const waiter of this.#connecting.splice(0)) waiter.reject(error);
  }

  /** Lets go of the connection, if there is one, and of everything that was timed for it. */
  #drop() {
    const connection = this.#connection;
    const probe = this.#probe;
    this.#attempt += 1;
    this.#connection = null;
    this.#probe = null;
    this.#timers.cancelAll();
    this.#outbox.detach();
    if (this.#state === 'online') this.#lostAt = this.#platform.now();
    for (const channel of this.#channels.values()) channel.suspend();
    connection?.abandon();
    probe?.abandon();
  }

  /**
   * @param {State} state
   * @param {Partial<StateChange>} [details]
   */
  #enter(state, details = {}) {
    const previous = this.#state;
    this.#state = state;
    this.emit('state', { state, previous, ...details });
  }
}
