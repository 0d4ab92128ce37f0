import assert from 'node:assert/strict';
import { test } from 'node:test';

import { CallTimeout, RemoteError, Stopped } from '../src/index.js';
import { online, scripted, settle, subscription } from './fakes.js';

test('the token travels in the first frame and never in the URL', async () => {
  const { client, world } = scripted();
  const connected = client.connect();
  await settle();
  assert.equal(world.socket.url, 'wss://example.test/socket');
  assert.deepEqual(world.socket.protocols, ['fixnado.v1']);
  assert.deepEqual(world.socket.sent, []);
  world.socket.open();
  assert.deepEqual(
    world.socket.sent.map(({ method, params }) => [method, params.token, params.resume]),
    [['session.connect', 'token', undefined]],
  );
  world.socket.welcome();
  assert.equal((await connected).user.id, '42');
  assert.deepEqual(world.states, ['connecting', 'online']);
});

test('connecting twice opens one socket and both callers get the session', async () => {
  const { client, world } = scripted();
  const both = [client.connect(), client.connect()];
  await settle();
  world.socket.open();
  world.socket.welcome();
  assert.deepEqual((await Promise.all(both)).map((info) => info.session), ['s1', 's1']);
  assert.equal(world.sockets.length, 1);
});

test('a ping is answered with a pong', async () => {
  const { socket } = await online();
  socket.say({ method: 'ping' });
  assert.deepEqual(socket.sent.at(-1), { jsonrpc: '2.0', method: 'pong' });
});

test('a server that falls silent is left for a new socket, one that pings is not', async () => {
  const { client, world, socket } = await online();
  socket.reply('session.ack', {});
  for (let pings = 0; pings < 4; pings += 1) {
    await world.clock.advance(30_000);
    socket.say({ method: 'ping' });
  }
  assert.equal(client.state, 'online');
  await world.clock.advance(42_000);
  assert.notEqual(client.state, 'online');
  assert.equal(socket.closedWith, 1000);
  assert.equal(world.sockets.length, 2);
});

test('a session that is not opened in time is tried again', async () => {
  const { client, world } = scripted();
  client.connect();
  await settle();
  world.socket.open();
  await world.clock.advance(10_000);
  assert.equal(client.state, 'waiting');
  await world.clock.advance(500);
  assert.equal(world.sockets.length, 2);
});

test('an unreadable frame ends the connection, since the next one may be incomplete too', async () => {
  const { client, socket } = await online();
  socket.onmessage({ data: '{"jsonrpc"' });
  assert.equal(client.state, 'waiting');
});

test('a command resolves with its result and a refusal rejects with the stable code', async () => {
  const { client, socket } = await online();
  const good = client.call('booking.get', { booking_id: 'b' });
  socket.reply('booking.get', { booking: { id: 'b' } });
  assert.deepEqual(await good, { booking: { id: 'b' } });

  const refused = client.call('offer.accept', { offer_id: 'o' });
  socket.refuse('offer.accept', 'offer_taken', { correlation_id: 'c-1' });
  await assert.rejects(refused, (error) => {
    assert.ok(error instanceof RemoteError);
    assert.deepEqual([error.type, error.status, error.correlationId, error.key], ['offer_taken', 409, 'c-1', 'key-1']);
    return true;
  });
});

test('answers may come in any order', async () => {
  const { client, socket } = await online();
  const first = client.call('booking.get', { booking_id: 'a' });
  const second = client.call('booking.get', { booking_id: 'b' });
  const [one, two] = socket.requests('booking.get');
  socket.say({ id: two.id, result: 'second' });
  socket.say({ id: one.id, result: 'first' });
  assert.deepEqual(await Promise.all([first, second]), ['first', 'second']);
});

test('a command without an answer times out, and its error names the key to retry with', async () => {
  const { client, world, socket } = await online();
  const call = assert.rejects(client.call('message.send', { text: 'hi' }, { timeoutMs: 5000 }), (error) => {
    assert.ok(error instanceof CallTimeout);
    assert.equal(error.key, 'key-1');
    return true;
  });
  await world.clock.advance(5000);
  await call;
  socket.reply('message.send', { message: {} });
  assert.equal(client.pendingCalls, 0);
});

test('a frame over 64 KiB fails alone and leaves the connection alive', async () => {
  const { client, socket } = await online();
  await assert.rejects(client.call('booking.get', { text: 'ä'.repeat(40_000) }), { type: 'frame_too_long' });
  const fits = client.call('booking.get', { text: 'ä'.repeat(30_000) });
  socket.reply('booking.get', 'ok');
  assert.equal(await fits, 'ok');
});

test('the latency is the measured round trip, taken again and again', async () => {
  const { client, world, socket } = await online(undefined, { latencyIntervalMs: 5000 });
  const measurements = () => socket.requests('session.ack').filter((frame) => !Object.keys(frame.params).length);
  await world.clock.advance(42);
  socket.say({ id: measurements()[0].id, result: {} });
  assert.equal(client.latencyMs, 42);
  await world.clock.advance(5000);
  assert.equal(measurements().length, 2);
});

test('a measurement without any frame from the server shows a dead connection', async () => {
  const { client, world } = await online();
  await world.clock.advance(10_000);
  assert.notEqual(client.state, 'online');
});

test('the clock of the server is known to half a round trip', async () => {
  const { client, world } = scripted();
  client.connect();
  await settle();
  world.socket.open();
  await world.clock.advance(100);
  world.socket.welcome({}, world.clock.now() + 60_000);
  assert.equal(client.serverNow() - world.clock.now(), 60_050);
});

test('disconnecting rejects what waits and leaves no timer behind', async () => {
  const { client, world, socket } = await online();
  const waiting = assert.rejects(client.call('booking.create', {}), Stopped);
  client.disconnect();
  await waiting;
  assert.equal(client.state, 'stopped');
  assert.equal(socket.closedWith, 1000);
  assert.equal(world.clock.pending, 0);
  await assert.rejects(client.call('booking.get', {}), Stopped);
});

test('a listener that throws does not keep others from hearing', async () => {
  const errors = [];
  const { client, socket } = await online({ 'user:42': subscription(0) }, { onListenerError: (error) => errors.push(error) });
  const heard = [];
  client.channel('user:42').on('*', () => {
    throw new Error('broken listener');
  });
  client.channel('user:42').on('*', (event) => heard.push(event.offset));
  socket.event('user:42', 1);
  assert.deepEqual(heard, [1]);
  assert.equal(errors[0].message, 'broken listener');
});
