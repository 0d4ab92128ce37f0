import assert from 'node:assert/strict';
import { test } from 'node:test';

import { NotSignedIn, Stopped } from '../src/index.js';
import { online, reconnecting, scripted, settle, subscription } from './fakes.js';

const delays = (client) => {
  const list = [];
  client.on('state', ({ state, retryInMs }) => state === 'waiting' && list.push(retryInMs));
  return list;
};

test('attempts back off with full jitter from 0.5 s to 20 s', async () => {
  const { client, world } = scripted();
  const waited = delays(client);
  world.random = 0.999999;
  client.connect();
  for (let attempt = 0; attempt < 8; attempt += 1) {
    await settle();
    world.socket.end(1006);
    await world.clock.advance(Math.ceil(waited.at(-1)));
  }
  assert.deepEqual(waited.map(Math.round), [500, 1000, 2000, 4000, 8000, 16_000, 20_000, 20_000]);
  world.random = 0;
  world.socket.end(1006);
  assert.equal(waited.at(-1), 0, 'full jitter goes down to nothing');
});

test('a session that held starts the backoff anew, one that died young does not', async () => {
  const { client, world } = scripted();
  const waited = delays(client);
  world.random = 0.999999;
  client.connect();
  const session = async (lifeMs) => {
    await settle();
    world.socket.open();
    world.socket.welcome({ 'user:42': subscription(0) }, world.clock.now());
    world.socket.reply('session.ack', {});
    await world.clock.advance(lifeMs);
    world.socket.end(1006);
    await world.clock.advance(Math.ceil(waited.at(-1)));
  };
  for (const lifeMs of [100, 100, 100, 15_000, 100]) await session(lifeMs);
  assert.deepEqual(waited.map(Math.round), [500, 1000, 2000, 500, 1000]);
});

test('a drained client works on until the close, waits as told, and keeps its backoff', async () => {
  const { client, world } = scripted();
  const waited = delays(client);
  world.random = 0.999999;
  client.connect();
  for (let drains = 0; drains < 3; drains += 1) {
    await settle();
    world.socket.open();
    world.socket.welcome({ 'user:42': subscription(0) }, world.clock.now());
    world.socket.reply('session.ack', {});
    world.socket.say({ method: 'drain', params: { reconnect_after_ms: 12_000 } });
    await world.clock.advance(11_000);
    assert.equal(client.state, 'online');
    world.socket.end(4000);
    await world.clock.advance(waited.at(-1) + 1);
  }
  // Each time 1 s is left of the drain, and the jitter on top grows although the sessions held for more than 10 s.
  assert.deepEqual(waited.map(Math.round), [1500, 2000, 3000]);
});

test('a server that drains and does not close is left after its time', async () => {
  const { client, world, socket } = await online();
  socket.reply('session.ack', {});
  socket.say({ method: 'drain', params: { reconnect_after_ms: 3000 } });
  await world.clock.advance(3999);
  assert.equal(client.state, 'online');
  await world.clock.advance(1);
  assert.equal(client.state, 'waiting');
});

for (const code of [1001, 1006, 1012, 4000, 4001, 4003, 4005, 4006]) {
  test(`close ${code} means come back`, async () => {
    const { client, world } = await online();
    const next = await reconnecting(world, code);
    next.welcome({}, world.clock.now());
    assert.equal(client.state, 'online');
    assert.deepEqual(world.tokenRequests, [{}, {}]);
  });
}

for (const code of [4501, 4503, 4504, 4505, 4506]) {
  test(`close ${code} means stay away`, async () => {
    const { client, world } = await online();
    const reasons = [];
    client.on('state', ({ state, closeCode }) => reasons.push([state, closeCode]));
    const waiting = assert.rejects(client.call('booking.create', {}), Stopped);
    world.socket.end(code);
    await waiting;
    await world.clock.advance(120_000);
    assert.deepEqual(reasons, [['stopped', code]]);
    assert.equal(world.sockets.length, 1);
  });
}

test('close 4002 comes back with a renewed token', async () => {
  const { world } = await online();
  const next = await reconnecting(world, 4002);
  assert.deepEqual(world.tokenRequests.at(-1), { rejected: 'token' });
  assert.equal(next.request('session.connect').params.token, 'token+');
});

for (const code of [4500, 4502]) {
  test(`close ${code} is given one renewed token, and then stops`, async () => {
    const { client, world } = await online();
    world.socket.end(code);
    await settle();
    assert.equal(world.sockets.length, 2);
    world.socket.open();
    assert.equal(world.socket.request('session.connect').params.token, 'token+');
    world.socket.end(code);
    await world.clock.advance(60_000);
    assert.equal(client.state, 'stopped');
    assert.equal(world.sockets.length, 2);
  });
}

for (const closes of [true, false]) {
  test(`a token that session.connect refuses is renewed once, ${closes ? 'at' : 'without'} the close`, async () => {
    const { client, world } = scripted();
    const connected = client.connect();
    await settle();
    world.socket.open();
    world.socket.refuse('session.connect', 'invalid_token', { code: -32001, status: 401 });
    if (closes) world.socket.end(4500);
    else await world.clock.advance(1000);
    await settle();
    world.socket.open();
    world.socket.welcome({});
    await connected;
    assert.equal(client.state, 'online');
    assert.deepEqual(world.tokenRequests, [{}, { rejected: 'token' }]);
  });
}

test('a session.connect over the rate limit waits as told', async () => {
  const { client, world } = scripted();
  const waited = delays(client);
  client.connect();
  await settle();
  world.socket.open();
  world.socket.refuse('session.connect', 'too_many_requests', {
    code: -32029,
    status: 429,
    retryable: true,
    retry_after_seconds: 7,
  });
  await world.clock.advance(1000);
  assert.deepEqual(waited, [6250]);
});

test('a close that follows a refused session.connect has the last word', async () => {
  const { client, world } = scripted();
  const refused = assert.rejects(client.connect(), { type: 'stopped', closeCode: 4504 });
  await settle();
  world.socket.open();
  world.socket.refuse('session.connect', 'too_many_requests', {
    code: -32029,
    status: 429,
    retryable: true,
    retry_after_seconds: 60,
  });
  world.socket.end(4504);
  await refused;
  assert.equal(client.state, 'stopped');
});

test('without tokens the client stops and says so', async () => {
  const { client } = scripted({
    getToken: () => {
      throw new NotSignedIn();
    },
  });
  await assert.rejects(client.connect(), Stopped);
  assert.equal(client.state, 'stopped');
});

test('a token that cannot be had for lack of a network is asked for again', async () => {
  let tries = 0;
  const { client, world } = scripted({
    getToken: () => {
      tries += 1;
      if (tries < 3) throw new TypeError('fetch failed');
      return 'late';
    },
  });
  client.connect();
  await world.clock.advance(2000);
  world.socket.open();
  assert.equal(world.socket.request('session.connect').params.token, 'late');
});

test('a network that is back is tried at once', async () => {
  const network = new EventTarget();
  const { client, world } = await online(undefined, {}, { network });
  world.random = 1;
  world.socket.end(1006);
  await settle();
  assert.equal(world.sockets.length, 1);
  network.dispatchEvent(new Event('online'));
  await settle();
  assert.equal(world.sockets.length, 2);
  client.disconnect();
  network.dispatchEvent(new Event('online'));
  await settle();
  assert.equal(world.sockets.length, 2);
});

test('session.expiring renews the token on the live socket', async () => {
  const { client, world, socket } = await online();
  socket.say({ method: 'session.expiring', params: { expires_in_seconds: 60 } });
  await settle();
  assert.deepEqual(socket.request('session.refresh').params, { token: 'token+' });
  socket.reply('session.refresh', { expires_in_seconds: 900 });
  await settle();
  assert.equal(client.state, 'online');
  assert.equal(world.sockets.length, 1);
  socket.say({ method: 'session.expiring', params: { expires_in_seconds: 60 } });
  await settle();
  assert.deepEqual(socket.request('session.refresh').params, { token: 'token++' });
});

test('a renewal that fails for lack of a network is repeated while the session lives', async () => {
  let down = false;
  const { world, socket } = await online(undefined, {
    getToken: ({ rejected }) => {
      if (down) throw new TypeError('fetch failed');
      return rejected ? 'renewed' : 'token';
    },
  });
  socket.reply('session.ack', {});
  down = true;
  socket.say({ method: 'session.expiring', params: { expires_in_seconds: 60 } });
  await world.clock.advance(2000);
  assert.equal(socket.requests('session.refresh').length, 0);
  down = false;
  await world.clock.advance(10_000);
  assert.deepEqual(socket.request('session.refresh').params, { token: 'renewed' });
});
