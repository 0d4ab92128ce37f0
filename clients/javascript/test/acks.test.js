import assert from 'node:assert/strict';
import { test } from 'node:test';

import { eventOn, online, reconnecting, settle, subscription } from './fakes.js';

/** Acknowledgements, without the empty ones that measure the latency. */
const acks = (socket) => socket.requests('session.ack').map((frame) => frame.params).filter((params) => Object.keys(params).length);

test('a second of events is one acknowledgement with the newest offset of each channel', async () => {
  const { world, socket } = await online({ 'user:42': subscription(0), 'admin:bookings': subscription(0) });
  await world.clock.advance(1000);
  const before = acks(socket).length;
  for (let offset = 1; offset <= 50; offset += 1) socket.event('user:42', offset);
  socket.event('admin:bookings', 1);
  await world.clock.advance(999);
  assert.equal(acks(socket).length, before);
  await world.clock.advance(1);
  assert.deepEqual(acks(socket).slice(before), [{ 'user:42': 50, 'admin:bookings': 1 }]);
});

test('an offer is acknowledged at once, after its listeners', async () => {
  const { client, world, socket } = await online({ 'provider:7': subscription(0) });
  await world.clock.advance(1000);
  const before = acks(socket).length;
  const order = [];
  client.channel('provider:7').on('offer.made', () => order.push(acks(socket).length - before));
  socket.event('provider:7', 1, 'offer.made');
  await settle();
  assert.deepEqual(order, [0]);
  assert.deepEqual(acks(socket).slice(before), [{ 'provider:7': 1 }]);
});

test('offers in a snapshot count as delivered at once', async () => {
  const { socket } = await online({ 'provider:7': subscription(12, { state: { offers: [{ id: 'o' }] } }) });
  await settle();
  assert.deepEqual(acks(socket), [{ 'provider:7': 12 }]);
});

test('recovered offers are acknowledged together', async () => {
  const { world } = await online({ 'provider:7': subscription(0) });
  const next = await reconnecting(world);
  const events = [1, 2, 3].map((offset) => eventOn('provider:7', offset, 'offer.made'));
  next.welcome({ 'provider:7': subscription(3, { recovered: true, events }) });
  await settle();
  assert.deepEqual(acks(next), [{ 'provider:7': 3 }]);
});

test('what could not be acknowledged is acknowledged in the next session', async () => {
  const { world, socket } = await online({ 'user:42': subscription(0) });
  await world.clock.advance(1000);
  socket.event('user:42', 1);
  const next = await reconnecting(world);
  next.welcome({ 'user:42': subscription(1, { recovered: true }) });
  assert.deepEqual(acks(next), [{ 'user:42': 1 }]);
});
