import assert from 'node:assert/strict';
import { test } from 'node:test';

import { eventOn, online, scripted, settle, subscription } from './fakes.js';

/** The server's end of HTTP: streams and requests, answered by the test. */
class FakeHttp {
  /** Requests for a stream, oldest first. */
  streams = [];
  /** Other requests without an answer. */
  requests = [];
  encoder = new TextEncoder();

  fetch = (url, init) =>
    new Promise((resolve, reject) => {
      // Acknowledgements come at times of their own.
      if (url.endsWith('/session.ack')) return resolve(Response.json({}));
      const call = { url, ...init, body: init.body && JSON.parse(init.body), resolve, reject };
      init.signal.addEventListener('abort', () => {
        reject(new Error('aborted'));
        call.controller?.error(new Error('aborted'));
      });
      (url.endsWith('/events') ? this.streams : this.requests).push(call);
    });

  get stream() {
    return this.streams.at(-1);
  }

  /** Opens the newest stream with what `session.connect` answers. */
  async welcome(clock, channels) {
    const call = this.stream;
    const body = new ReadableStream({ start: (controller) => (call.controller = controller) });
    call.resolve(new Response(body, { headers: { 'content-type': 'text/event-stream' } }));
    const result = {
      session: 's1-abcd',
      user: { id: '42', roles: ['provider'] },
      heartbeat_seconds: 25,
      expires_in_seconds: 900,
      server_time: new Date(clock).toISOString(),
      channels,
    };
    await this.write(`data: ${JSON.stringify({ jsonrpc: '2.0', id: 'session.connect', result })}\n\n`);
  }

  async write(text) {
    this.stream.controller.enqueue(this.encoder.encode(text));
    await settle();
    await settle();
  }

  event(channel, offset, type) {
    const message = { jsonrpc: '2.0', method: 'event', params: eventOn(channel, offset, type) };
    return this.write(`id: ${channel}@e1.${offset};\ndata: ${JSON.stringify(message)}\n\n`);
  }

  /** Answers the oldest request. */
  async answer(result, status = 200) {
    const call = this.requests.shift();
    call.resolve(new Response(typeof result === 'string' ? result : JSON.stringify(result), { status }));
    await settle();
    await settle();
    return call;
  }
}

const both = { transports: ['socket', 'sse'] };

/** A client whose network lets no socket through, on its stream. */
async function streaming(channels = { 'user:42': subscription(0) }, options = {}) {
  const http = new FakeHttp();
  const { client, world } = scripted({ ...both, ...options }, { fetch: http.fetch });
  const connected = client.connect();
  for (let attempt = 0; attempt < 2; attempt += 1) {
    await settle();
    world.socket.end(1006);
    await world.clock.advance(1000);
  }
  await http.welcome(world.clock.now(), channels);
  await connected;
  await settle();
  return { client, world, http };
}

const heardBy = (client, name) => {
  const offsets = [];
  client.channel(name).on('*', (event) => offsets.push(event.offset));
  return offsets;
};

test('two sockets that do not open lead to a stream, and the token is in its header only', async () => {
  const { client, world, http } = await streaming();
  assert.equal(world.sockets.length, 2);
  assert.equal(client.transport, 'sse');
  assert.equal(client.state, 'online');
  assert.equal(http.stream.url, 'https://example.test/events');
  assert.equal(http.stream.headers.authorization, 'Bearer token');
});

test('a handshake that hangs counts as one that fails', async () => {
  const http = new FakeHttp();
  const { client, world } = scripted(both, { fetch: http.fetch });
  client.connect().catch(() => undefined);
  await world.clock.advance(25_000);
  assert.equal(world.sockets.length, 2);
  assert.equal(client.transport, 'sse');
  client.disconnect();
});

test('while neither works, they take turns', async () => {
  const http = new FakeHttp();
  const { client, world } = scripted(both, { fetch: http.fetch });
  const tried = [];
  world.random = 0;
  client.on('state', ({ state }) => state === 'waiting' && tried.push(client.transport));
  client.connect().catch(() => undefined);
  for (let attempt = 0; attempt < 6; attempt += 1) {
    await settle();
    if (client.transport === 'sse') http.stream.reject(new TypeError('network'));
    else world.socket.end(1006);
    await world.clock.advance(1);
  }
  assert.deepEqual(tried, ['socket', 'socket', 'sse', 'socket', 'sse', 'socket']);
  client.disconnect();
});

test('a server that says why it closes is no blocked network', async () => {
  const { client, world } = scripted(both);
  world.random = 0;
  client.connect().catch(() => undefined);
  for (let attempt = 0; attempt < 4; attempt += 1) {
    await settle();
    world.socket.open();
    world.socket.end(4001);
    await world.clock.advance(1);
  }
  assert.equal(client.transport, 'socket');
  client.disconnect();
});

test('events arrive in pieces and in order, and a cut stream resumes from the newest places', async () => {
  const { client, world, http } = await streaming({ 'user:42': subscription(3) });
  const offsets = heardBy(client, 'user:42');
  await http.event('user:42', 4);
  const message = JSON.stringify({ jsonrpc: '2.0', method: 'event', params: eventOn('user:42', 5) });
  await http.write(`: ping\n\nda`);
  await http.write(`ta: ${message.slice(0, 20)}`);
  assert.deepEqual(offsets, [4]);
  await http.write(`${message.slice(20)}\r\n\r\n`);
  assert.deepEqual(offsets, [4, 5]);
  http.stream.controller.close();
  await world.clock.advance(1000);
  assert.equal(http.stream.headers['last-event-id'], 'user:42@e1.5;');
  const missed = subscription(6, { recovered: true, events: [eventOn('user:42', 6)] });
  await http.welcome(world.clock.now(), { 'user:42': missed });
  assert.deepEqual(offsets, [4, 5, 6]);
});

test('commands go out one by one with their keys, and once more with the same key when the stream breaks', async () => {
  const { client, world, http } = await streaming();
  const first = client.call('booking.create', { service_id: 'plumbing' });
  const second = client.call('booking.list');
  await settle();
  assert.equal(http.requests.length, 1, 'the second waits for the first');
  const [sent] = http.requests.splice(0);
  assert.equal(sent.url, 'https://example.test/commands/booking.create');
  assert.deepEqual(sent.body, { service_id: 'plumbing' });
  assert.equal(sent.headers['x-session'], 's1-abcd');
  const key = sent.headers['idempotency-key'];
  sent.reject(new TypeError('network'));
  await world.clock.advance(1000);
  await http.welcome(world.clock.now(), { 'user:42': subscription(0) });
  const again = await http.answer({ booking: { id: 'b1' } });
  assert.equal(again.headers['idempotency-key'], key);
  await http.answer({ bookings: [] });
  assert.deepEqual(await first, { booking: { id: 'b1' } });
  assert.deepEqual(await second, { bookings: [] });
});

test('a page of a proxy is no answer: the command is repeated, not refused', async () => {
  const { client, world, http } = await streaming();
  const call = client.call('booking.create', {});
  await settle();
  await http.answer('<h1>Bad gateway</h1>', 502);
  await world.clock.advance(1000);
  await http.welcome(world.clock.now(), { 'user:42': subscription(0) });
  await http.answer({ booking: { id: 'b1' } });
  assert.deepEqual(await call, { booking: { id: 'b1' } });
});

test('a refusal of the server is the answer of the command', async () => {
  const { client, http } = await streaming();
  const call = assert.rejects(client.call('offer.accept', { offer_id: 'o1' }), { type: 'offer_taken', status: 409 });
  await settle();
  await http.answer({ type: 'offer_taken', title: 'Conflict', detail: 'Taken.', status: 409 }, 409);
  await call;
});

test('subscribed channels come along to the next stream without asking each', async () => {
  const { client, world, http } = await streaming();
  const subscribed = client.channel('booking:b1').subscribe();
  await settle();
  const asked = await http.answer({ channel: 'booking:b1', ...subscription(7) });
  assert.deepEqual([asked.url, asked.body], ['https://example.test/commands/channel.subscribe', { channel: 'booking:b1' }]);
  await subscribed;
  const offsets = heardBy(client, 'booking:b1');
  http.stream.controller.close();
  await world.clock.advance(1000);
  assert.equal(http.stream.headers['last-event-id'], 'user:42@e1.0;booking:b1@e1.7;');
  const booking = subscription(8, { recovered: true, events: [eventOn('booking:b1', 8)] });
  await http.welcome(world.clock.now(), { 'user:42': subscription(0), 'booking:b1': booking });
  assert.deepEqual(offsets, [8]);
  assert.equal(client.channel('booking:b1').own, false);
  assert.deepEqual(client.ownChannels.map(({ name }) => name), ['user:42']);
});

test('a state without a place or too long for a header goes into a body', async () => {
  const { client, world, http } = await streaming();
  client.channel('booking:b1').subscribe().catch(() => undefined);
  await settle();
  http.requests.splice(0)[0].reject(new TypeError('network'));
  await world.clock.advance(1000);
  assert.equal(http.stream.method, 'POST');
  assert.deepEqual(http.stream.body.resume, { 'user:42': { epoch: 'e1', offset: 0 }, 'booking:b1': null });
  client.disconnect();
});

for (const [code, state] of [
  [4503, 'stopped'],
  [4000, 'waiting'],
  [4003, 'waiting'],
]) {
  test(`close ${code} on a stream means what it means on a socket`, async () => {
    const { client, http } = await streaming();
    await http.write(`event: close\ndata: {"code":${code},"reason":"…"}\n\n`);
    assert.equal(client.state, state);
    client.disconnect();
  });
}

test('a refused stream with a close code obeys it', async () => {
  const http = new FakeHttp();
  const { client } = scripted({ transports: ['sse'] }, { fetch: http.fetch });
  const connected = assert.rejects(client.connect(), { closeCode: 4504 });
  await settle();
  const problem = { type: 'too_many_requests', status: 429, detail: 'Too many.', close: { code: 4504, reason: '…' } };
  http.stream.resolve(new Response(JSON.stringify(problem), { status: 429 }));
  await connected;
  assert.equal(client.state, 'stopped');
});

test('a token is renewed while streaming, and vouches for itself', async () => {
  const { client, http } = await streaming();
  const renewed = new Promise((resolve) => client.on('renewed', resolve));
  await http.write('data: {"jsonrpc":"2.0","method":"session.expiring","params":{"expires_in_seconds":60}}\n\n');
  const asked = await http.answer({ expires_in_seconds: 900 });
  assert.equal(asked.url, 'https://example.test/commands/session.refresh');
  assert.equal(asked.headers.authorization, 'Bearer token+');
  await renewed;
});

test('a silent stream is given up; a comment is a sign of life', async () => {
  const { client, world, http } = await streaming();
  await world.clock.advance(40_000);
  await http.write(': ping\n\n');
  await world.clock.advance(40_000);
  assert.equal(client.state, 'online');
  await world.clock.advance(2000);
  assert.notEqual(client.state, 'online');
  client.disconnect();
});

test('a stream looks for a socket soon, then seldom, and moves over with its places', async () => {
  const { client, world, http } = await streaming({ 'user:42': subscription(3) });
  const offsets = heardBy(client, 'user:42');
  await http.event('user:42', 4);
  await world.clock.advance(3000);
  assert.equal(world.sockets.length, 3);
  world.socket.end(1006);
  await world.clock.advance(30_000);
  await http.write(': ping\n\n');
  assert.equal(world.sockets.length, 3);
  await world.clock.advance(16_000);
  assert.equal(world.sockets.length, 4);
  assert.equal(client.transport, 'sse');
  const pending = client.call('booking.create', {});
  await settle();
  const key = http.requests[0].headers['idempotency-key'];
  world.socket.open();
  assert.equal(client.transport, 'socket');
  assert.deepEqual(world.socket.request('session.connect').params.resume, { 'user:42': { epoch: 'e1', offset: 4 } });
  const missed = subscription(5, { recovered: true, events: [eventOn('user:42', 5)] });
  world.socket.welcome({ 'user:42': missed }, world.clock.now());
  assert.deepEqual(offsets, [4, 5]);
  assert.equal(world.socket.request('booking.create').params.key, key);
  world.socket.reply('booking.create', { booking: { id: 'b1' } });
  assert.deepEqual(await pending, { booking: { id: 'b1' } });
  assert.ok(http.stream.signal.aborted, 'the stream is let go');
});

test('another network is a reason to look at once', async () => {
  const network = new EventTarget();
  const http = new FakeHttp();
  const { client, world } = scripted(both, { fetch: http.fetch, network });
  client.connect().catch(() => undefined);
  for (let attempt = 0; attempt < 2; attempt += 1) {
    await settle();
    world.socket.end(1006);
    await world.clock.advance(1000);
  }
  await http.welcome(world.clock.now(), { 'user:42': subscription(0) });
  network.dispatchEvent(new Event('online'));
  assert.equal(world.sockets.length, 3);
  client.disconnect();
  assert.equal(world.clock.pending, 0);
});

test('a socket that works is not left for anything', async () => {
  const { client, world } = await online({ 'user:42': subscription(0) }, both);
  await world.clock.advance(20_000);
  world.socket.end(1006);
  await world.clock.advance(1000);
  assert.equal(client.transport, 'socket');
  client.disconnect();
});
