import { RealtimeClient } from '../src/index.js';

/** Time that moves only when told to. */
export class FakeClock {
  #timers = new Map();
  #lastHandle = 0;
  time = 1_800_000_000_000;

  setTimeout = (callback, delayMs) => {
    this.#timers.set(++this.#lastHandle, { at: this.time + delayMs, callback });
    return this.#lastHandle;
  };

  clearTimeout = (handle) => this.#timers.delete(handle);

  now = () => this.time;

  get pending() {
    return this.#timers.size;
  }

  /** Runs what falls due, in order, and lets promises settle in between. */
  async advance(ms) {
    const end = this.time + ms;
    for (;;) {
      await settle();
      const due = [...this.#timers].filter(([, timer]) => timer.at <= end).sort(([, a], [, b]) => a.at - b.at)[0];
      if (!due) break;
      const [handle, timer] = due;
      this.#timers.delete(handle);
      this.time = Math.max(this.time, timer.at);
      timer.callback();
    }
    this.time = end;
    await settle();
  }
}

/** Lets every promise that can settle do so. */
export const settle = () => new Promise((resolve) => setImmediate(resolve));

/** The server's end of one socket, driven by the test. */
export class FakeSocket {
  onopen = null;
  onmessage = null;
  onclose = null;
  onerror = null;
  /** Frames from the client, parsed. */
  sent = [];
  /** What the client closed with, or null. */
  closedWith = null;

  constructor(url, protocols) {
    this.url = url;
    this.protocols = protocols;
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close(code) {
    this.closedWith = code;
  }

  open() {
    this.onopen?.({});
  }

  say(frame) {
    this.onmessage?.({ data: JSON.stringify({ jsonrpc: '2.0', ...frame }) });
  }

  end(code, reason = '') {
    this.onclose?.({ code, reason });
  }

  /** Requests of one method, oldest first. */
  requests(method) {
    return this.sent.filter((frame) => frame.method === method);
  }

  /** The newest request of a method. */
  request(method) {
    const found = this.requests(method).at(-1);
    if (!found) throw new Error(`no ${method} among ${this.sent.map((frame) => frame.method).join(', ')}`);
    return found;
  }

  reply(method, result) {
    this.say({ id: this.request(method).id, result });
  }

  refuse(method, type, { code = -32000, status = 409, retryable = false, ...data } = {}) {
    this.say({ id: this.request(method).id, error: { code, message: type, data: { type, status, retryable, ...data } } });
  }

  event(channel, offset, type = 'booking.created', data = {}) {
    this.say({ method: 'event', params: eventOn(channel, offset, type, data) });
  }

  /** Answers `session.connect`. */
  welcome(channels = {}, clock = 0) {
    this.reply('session.connect', {
      session: 's1',
      user: { id: '42', roles: ['provider'] },
      heartbeat_seconds: 25,
      expires_in_seconds: 900,
      server_time: new Date(clock).toISOString(),
      channels,
    });
  }
}

export const eventOn = (channel, offset, type = 'booking.created', data = {}, id = `${channel}-${offset}`) => ({
  channel,
  ...(offset !== null && { offset }),
  id,
  type,
  time: '2026-11-24T02:00:00.000Z',
  source: 'booking/1',
  data,
});

export const subscription = (offset, { epoch = 'e1', recovered = false, events = [], state } = {}) => ({
  epoch,
  offset,
  recovered,
  events,
  ...(state && { state }),
});

/** A client whose sockets, clock, dice and tokens are the test's. */
export function scripted(options = {}, platform = {}) {
  const clock = new FakeClock();
  const sockets = [];
  const tokenRequests = [];
  let keys = 0;
  const world = {
    clock,
    sockets,
    tokenRequests,
    /** What the next dice show. */
    random: 0.5,
    states: [],
    /** The newest socket. */
    get socket() {
      return sockets.at(-1);
    },
  };
  const client = new RealtimeClient({
    url: 'wss://example.test/socket',
    getToken: async (request) => {
      tokenRequests.push(request);
      return request.rejected ? `${request.rejected}+` : 'token';
    },
    latencyIntervalMs: 1e9,
    transports: ['socket'],
    platform: {
      WebSocket: class extends FakeSocket {
        constructor(...args) {
          super(...args);
          sockets.push(this);
        }
      },
      setTimeout: clock.setTimeout,
      clearTimeout: clock.clearTimeout,
      now: clock.now,
      random: () => world.random,
      uuid: () => `key-${++keys}`,
      network: null,
      ...platform,
    },
    ...options,
  });
  client.on('state', ({ state }) => world.states.push(state));
  return { client, world };
}

/** A scripted client with an open session. */
export async function online(channels = { 'user:42': subscription(0) }, options = {}, platform = {}) {
  const { client, world } = scripted(options, platform);
  const connected = client.connect();
  await settle();
  world.socket.open();
  world.socket.welcome(channels, world.clock.now());
  await connected;
  return { client, world, socket: world.socket };
}

/** Loses the socket and opens the next one up to `session.connect`, unanswered. */
export async function reconnecting(world, code = 1006) {
  world.socket.end(code);
  await world.clock.advance(1000);
  world.socket.open();
  return world.socket;
}
