import assert from 'node:assert/strict';
import { test } from 'node:test';

import { ConnectionLost } from '../src/index.js';
import { online, reconnecting, settle, subscription } from './fakes.js';

const resumed = { 'user:42': subscription(0, { recovered: true }) };

test('a command in flight when the socket dies is sent again with the same key', async () => {
  const { client, world, socket } = await online();
  const booked = client.call('booking.create', { service_id: 'plumbing' });
  const first = socket.request('booking.create').params;
  assert.deepEqual(first, { key: 'key-1', service_id: 'plumbing' });

  const next = await reconnecting(world);
  assert.deepEqual(next.requests('booking.create'), [], 'nothing before the session is open');
  next.welcome(resumed);
  assert.deepEqual(next.request('booking.create').params, first);
  next.reply('booking.create', { booking: { id: 'b' } });
  assert.deepEqual(await booked, { booking: { id: 'b' } });
});

test('a key of the caller is kept', async () => {
  const { client, socket } = await online();
  client.call('message.send', { text: 'hi', key: 'mine' });
  assert.equal(socket.request('message.send').params.key, 'mine');
});

test('commands made while offline are sent in order, behind those that were in flight', async () => {
  const { client, world, socket } = await online();
  for (const text of ['a', 'b', 'c']) client.call('message.send', { text }, { timeoutMs: 60_000 });
  const [, b] = socket.requests('message.send');
  socket.say({ id: b.id, result: {} });
  socket.end(1006);
  for (const text of ['d', 'e']) client.call('message.send', { text }, { timeoutMs: 60_000 });
  await world.clock.advance(500);
  world.socket.open();
  world.socket.welcome(resumed);
  assert.deepEqual(
    world.socket.requests('message.send').map((frame) => frame.params.text),
    ['a', 'c', 'd', 'e'],
  );
});

test('channels are restored ahead of the commands that were kept', async () => {
  const { client, world, socket } = await online();
  client.channel('booking:b').subscribe();
  socket.reply('channel.subscribe', { channel: 'booking:b', ...subscription(0) });
  client.call('message.send', { text: 'a' });
  const next = await reconnecting(world);
  next.welcome(resumed);
  const methods = next.sent.map((frame) => frame.method);
  assert.ok(methods.indexOf('channel.subscribe') < methods.indexOf('message.send'));
});

test('a command that must not be repeated fails when its socket dies', async () => {
  const { client, socket } = await online();
  const unknown = assert.rejects(client.call('wallet.charge', {}), ConnectionLost);
  socket.end(1006);
  await unknown;
});

test('what is worth nothing later is not kept for later', async () => {
  const { client } = await online();
  client.suspend();
  await assert.rejects(client.call('typing.set', { conversation_id: 'c', typing: true }), ConnectionLost);
  assert.equal(client.pendingCalls, 0);
});

test('the time a command may take runs on through an outage', async () => {
  const { client, world } = await online();
  client.suspend();
  const late = assert.rejects(client.call('booking.create', {}, { timeoutMs: 8000 }), { type: 'timeout', key: 'key-1' });
  await world.clock.advance(8000);
  await late;
  client.resume();
  await settle();
  world.socket.open();
  world.socket.welcome(resumed);
  assert.deepEqual(world.socket.requests('booking.create'), []);
});

test('a pile of commands goes out in a window and not as a flood', async () => {
  const { client, socket } = await online();
  // Two requests of the client itself are open: an acknowledgement and the measurement of the latency.
  for (const { id } of socket.requests('session.ack')) socket.say({ id, result: {} });
  for (let number = 0; number < 40; number += 1) client.call('booking.get', { number });
  assert.equal(socket.requests('booking.get').length, 16);
  socket.say({ id: socket.requests('booking.get')[0].id, result: {} });
  assert.deepEqual(socket.requests('booking.get').map((frame) => frame.params.number), [...Array(17).keys()]);
});

test('a command the server has no room for is repeated when it says, before those behind it', async () => {
  const { client, world, socket } = await online();
  const first = client.call('message.send', { text: 'a' });
  socket.refuse('message.send', 'too_many_requests', {
    code: -32029,
    status: 429,
    retryable: true,
    retry_after_seconds: 2,
  });
  client.call('message.send', { text: 'b' });
  await world.clock.advance(1999);
  assert.equal(socket.requests('message.send').length, 1);
  await world.clock.advance(501);
  assert.deepEqual(
    socket.requests('message.send').map((frame) => [frame.params.text, frame.params.key]),
    [
      ['a', 'key-1'],
      ['a', 'key-1'],
      ['b', 'key-2'],
    ],
  );
  socket.say({ id: socket.requests('message.send')[1].id, result: 'sent' });
  assert.equal(await first, 'sent');
});

test('no more than 256 commands wait', async () => {
  const { client } = await online();
  client.suspend();
  for (let number = 0; number < 256; number += 1) client.call('booking.get', { number }).catch(() => undefined);
  await assert.rejects(client.call('booking.get', {}), { type: 'too_many_waiting', retryable: true });
});
