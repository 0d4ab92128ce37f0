import assert from 'node:assert/strict';
import { test } from 'node:test';

import { eventOn, online, reconnecting, scripted, settle, subscription } from './fakes.js';

const offsetsOn = (channel) => {
  const offsets = [];
  channel.on('*', (event) => offsets.push(event.offset));
  return offsets;
};

test('own channels resume in session.connect and missed events come in order, before live ones', async () => {
  const { client, world, socket } = await online({ 'user:42': subscription(7) });
  const offsets = offsetsOn(client.channel('user:42'));
  const recoveries = [];
  client.on('resumed', (recovery) => recoveries.push(recovery));
  socket.event('user:42', 8);

  const next = await reconnecting(world);
  assert.deepEqual(next.request('session.connect').params.resume, { 'user:42': { epoch: 'e1', offset: 8 } });
  next.welcome({
    'user:42': subscription(10, { recovered: true, events: [eventOn('user:42', 9), eventOn('user:42', 10)] }),
  });
  // In the same turn as the reply, as sockets do that hand over several messages at once.
  next.event('user:42', 11);

  assert.deepEqual(offsets, [8, 9, 10, 11]);
  assert.deepEqual(recoveries.map(({ missed, reset }) => [missed, reset]), [[2, []]]);
  assert.equal(client.reconnects, 1);
});

test('one fact missed on two channels counts as one', async () => {
  const { client, world } = await online({ 'user:42': subscription(0), 'admin:bookings': subscription(0) });
  const missed = [];
  client.on('resumed', (recovery) => missed.push(recovery.missed));
  const next = await reconnecting(world);
  const same = (channel) => subscription(1, { recovered: true, events: [eventOn(channel, 1, undefined, {}, 'same')] });
  next.welcome({ 'user:42': same('user:42'), 'admin:bookings': same('admin:bookings') });
  assert.deepEqual(missed, [1]);
});

test('recovered events are marked, live ones are not', async () => {
  const { client, world } = await online({ 'user:42': subscription(0) });
  const marks = [];
  client.channel('user:42').on('*', (event) => marks.push(event.recovered ?? false));
  const next = await reconnecting(world);
  next.welcome({ 'user:42': subscription(1, { recovered: true, events: [eventOn('user:42', 1)] }) });
  next.event('user:42', 2);
  assert.deepEqual(marks, [true, false]);
});

test('an offset that was handled is not handled again', async () => {
  const { client, socket, world } = await online({ 'user:42': subscription(3) });
  const offsets = offsetsOn(client.channel('user:42'));
  for (const offset of [3, 4, 4, 2, 5]) socket.event('user:42', offset);
  const next = await reconnecting(world);
  next.welcome({
    'user:42': subscription(6, { recovered: true, events: [eventOn('user:42', 5), eventOn('user:42', 6)] }),
  });
  assert.deepEqual(offsets, [4, 5, 6]);
  assert.equal(client.channel('user:42').duplicates, 4);
});

test('ephemeral events pass without moving the place', async () => {
  const { client, socket } = await online({ 'user:42': subscription(3) });
  const types = [];
  client.channel('user:42').on('*', (event) => types.push(event.type));
  socket.event('user:42', null, 'typing.started');
  socket.event('user:42', null, 'typing.started');
  assert.deepEqual(types, ['typing.started', 'typing.started']);
  assert.deepEqual(client.channel('user:42').position, { epoch: 'e1', offset: 3 });
});

test('an offset may be left out, because values of class latest give way to newer ones', async () => {
  const { client, socket } = await online({ 'user:42': subscription(0) });
  const offsets = offsetsOn(client.channel('user:42'));
  socket.event('user:42', 1);
  socket.event('user:42', 4);
  assert.deepEqual(offsets, [1, 4]);
});

test('a listener attached on `channel` sees the first snapshot', async () => {
  const { client, world } = scripted();
  const snapshots = [];
  client.on('channel', (channel) => channel.on('snapshot', (snapshot) => snapshots.push(snapshot)));
  client.connect();
  await settle();
  world.socket.open();
  world.socket.welcome({ 'provider:7': subscription(12, { state: { offers: [] } }) });
  assert.deepEqual(snapshots, [
    { channel: 'provider:7', state: { offers: [] }, epoch: 'e1', offset: 12, gap: false },
  ]);
});

test('what cannot be recovered starts anew from a snapshot in the new epoch', async () => {
  const { client, world } = await online({ 'provider:7': subscription(50) });
  const channel = client.channel('provider:7');
  const offsets = offsetsOn(channel);
  const snapshots = [];
  channel.on('snapshot', (snapshot) => snapshots.push([snapshot.gap, snapshot.state]));
  const recoveries = [];
  client.on('resumed', (recovery) => recoveries.push(recovery.reset));

  const next = await reconnecting(world);
  next.welcome({ 'provider:7': subscription(2, { epoch: 'e2', state: { offers: ['o'] } }) });
  // Smaller than the offsets of the old epoch, and still new.
  next.event('provider:7', 3);

  assert.deepEqual(snapshots, [[true, { offers: ['o'] }]]);
  assert.deepEqual(offsets, [3]);
  assert.deepEqual(channel.position, { epoch: 'e2', offset: 3 });
  assert.deepEqual(recoveries, [['provider:7']]);
});

test('channels that were asked for are asked for again from their place', async () => {
  const { client, world, socket } = await online();
  const channel = client.channel('booking:b');
  const offsets = offsetsOn(channel);
  const subscribed = channel.subscribe();
  assert.deepEqual(socket.request('channel.subscribe').params, { channel: 'booking:b' });
  socket.reply('channel.subscribe', { channel: 'booking:b', ...subscription(4, { state: { booking: {} } }) });
  assert.equal((await subscribed).offset, 4);
  socket.event('booking:b', 5);

  const recoveries = [];
  client.on('resumed', (recovery) => recoveries.push(recovery.missed));
  const next = await reconnecting(world);
  next.welcome({ 'user:42': subscription(0, { recovered: true }) });
  assert.deepEqual(next.request('channel.subscribe').params, {
    channel: 'booking:b',
    resume: { epoch: 'e1', offset: 5 },
  });
  assert.deepEqual(recoveries, [], 'told only when every channel is back');
  next.reply('channel.subscribe', {
    channel: 'booking:b',
    ...subscription(6, { recovered: true, events: [eventOn('booking:b', 6)] }),
  });
  assert.deepEqual(offsets, [5, 6]);
  assert.deepEqual(recoveries, [1]);
});

test('live events that come ahead of the reply wait for it', async () => {
  const { client, socket } = await online();
  const channel = client.channel('booking:b');
  const offsets = offsetsOn(channel);
  channel.subscribe();
  socket.event('booking:b', 5);
  socket.event('booking:b', 6);
  assert.deepEqual(offsets, []);
  socket.reply('channel.subscribe', { channel: 'booking:b', ...subscription(5) });
  assert.deepEqual(offsets, [6]);
});

test('a flood ahead of the reply is bounded and asked for again from the last event kept', async () => {
  const { client, socket } = await online();
  const channel = client.channel('booking:b');
  const offsets = offsetsOn(channel);
  channel.subscribe();
  for (let offset = 1; offset <= 1030; offset += 1) socket.event('booking:b', offset);
  socket.reply('channel.subscribe', { channel: 'booking:b', ...subscription(0) });
  assert.equal(offsets.length, 1024);
  assert.deepEqual(socket.request('channel.subscribe').params.resume, { epoch: 'e1', offset: 1024 });
});

test('a channel asked for while offline is subscribed by the next session', async () => {
  const { client, world } = await online();
  client.suspend();
  const subscribed = client.channel('booking:b').subscribe();
  client.resume();
  await settle();
  world.socket.open();
  world.socket.welcome({ 'user:42': subscription(0, { recovered: true }) });
  world.socket.reply('channel.subscribe', { channel: 'booking:b', ...subscription(9) });
  assert.equal((await subscribed).offset, 9);
});

test('a refused channel rejects and is not asked for again', async () => {
  const { client, world, socket } = await online();
  const channel = client.channel('booking:x');
  const lost = [];
  channel.on('lost', ({ error }) => lost.push(error.type));
  const refused = assert.rejects(channel.subscribe(), { type: 'not_found' });
  socket.refuse('channel.subscribe', 'not_found', { code: -32003, status: 404 });
  await refused;
  assert.deepEqual(lost, ['not_found']);
  const next = await reconnecting(world);
  next.welcome({});
  assert.deepEqual(next.requests('channel.subscribe'), []);
});

test('a subscription over the rate limit is repeated when the server says', async () => {
  const { client, world, socket } = await online();
  client.channel('booking:b').subscribe();
  socket.refuse('channel.subscribe', 'too_many_requests', {
    code: -32029,
    status: 429,
    retryable: true,
    retry_after_seconds: 2,
  });
  await world.clock.advance(1999);
  assert.equal(socket.requests('channel.subscribe').length, 1);
  await world.clock.advance(2001);
  assert.equal(socket.requests('channel.subscribe').length, 2);
});

test('an unsubscribed channel is silent and stays so after a reconnect', async () => {
  const { client, world, socket } = await online();
  const channel = client.channel('booking:b');
  const offsets = offsetsOn(channel);
  channel.subscribe();
  socket.reply('channel.subscribe', { channel: 'booking:b', ...subscription(0) });
  channel.unsubscribe();
  assert.deepEqual(socket.request('channel.unsubscribe').params, { channel: 'booking:b' });
  socket.event('booking:b', 1);
  const next = await reconnecting(world);
  next.welcome({});
  assert.deepEqual(next.requests('channel.subscribe'), []);
  assert.deepEqual(offsets, []);
});

test('an own channel that is no longer given is lost', async () => {
  const { client, world } = await online({ 'provider:7': subscription(1) });
  const lost = [];
  client.channel('provider:7').on('lost', ({ error }) => lost.push(error.type));
  const next = await reconnecting(world);
  next.welcome({});
  assert.deepEqual(lost, ['not_found']);
  assert.equal(client.channel('provider:7').position, null);
});

test('suspending is an abnormal loss that lasts, and resuming brings everything back at once', async () => {
  const { client, world, socket } = await online({ 'user:42': subscription(1) });
  client.suspend();
  assert.equal(client.state, 'offline');
  assert.equal(socket.closedWith, 1000);
  await world.clock.advance(120_000);
  assert.equal(world.sockets.length, 1);
  client.resume();
  await settle();
  world.socket.open();
  assert.deepEqual(world.socket.request('session.connect').params.resume, { 'user:42': { epoch: 'e1', offset: 1 } });
});
