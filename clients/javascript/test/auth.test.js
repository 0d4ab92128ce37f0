import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Auth, MemoryTokenStore, NotSignedIn, RemoteError, Unreachable } from '../src/index.js';
import { FakeClock } from './fakes.js';

const tokens = (number) => ({
  access_token: `access-${number}`,
  token_type: 'Bearer',
  expires_in: 900,
  refresh_token: `refresh-${number}`,
  user: { id: '42', roles: ['customer'] },
});

/** An `Auth` whose server answers by path from `answers`: a body, `[status, body]`, or an Error to throw. */
function authWith(answers) {
  const clock = new FakeClock();
  const requests = [];
  const store = new MemoryTokenStore();
  const auth = new Auth({
    store,
    platform: {
      ...{ setTimeout: clock.setTimeout, clearTimeout: clock.clearTimeout, now: clock.now },
      fetch: async (path, init) => {
        requests.push({ path, body: init.body && JSON.parse(init.body), authorization: init.headers.authorization });
        const answer = answers[path].length > 1 ? answers[path].shift() : answers[path][0];
        if (answer instanceof Error) throw answer;
        const [status, body] = Array.isArray(answer) ? answer : [200, answer];
        return new Response(typeof body === 'string' ? body : JSON.stringify(body), { status });
      },
    },
  });
  return { auth, clock, requests, store };
}

test('a login gives an access token until it is nearly spent, then a renewed one', async () => {
  const { auth, clock, requests } = authWith({ '/auth/login': [tokens(1)], '/auth/refresh': [tokens(2)] });
  assert.deepEqual(await auth.login('a@b.test', 'secret'), { id: '42', roles: ['customer'] });
  assert.equal(await auth.accessToken(), 'access-1');
  clock.time += 869_000;
  assert.equal(await auth.accessToken(), 'access-1');
  clock.time += 2000;
  assert.equal(await auth.accessToken(), 'access-2');
  assert.deepEqual(requests[1].body, { refresh_token: 'refresh-1' });
});

test('whoever needs a token at the same time shares one refresh', async () => {
  const { auth, requests } = authWith({ '/auth/login': [tokens(1)], '/auth/refresh': [tokens(2), tokens(3)] });
  await auth.login('a@b.test', 'secret');
  const got = await Promise.all([1, 2, 3].map(() => auth.accessToken({ rejected: 'access-1' })));
  assert.deepEqual(got, ['access-2', 'access-2', 'access-2']);
  assert.equal(requests.filter(({ path }) => path === '/auth/refresh').length, 1);
});

test('a rejected token that was replaced meanwhile needs no refresh', async () => {
  const { auth, requests } = authWith({ '/auth/login': [tokens(1)] });
  await auth.login('a@b.test', 'secret');
  assert.equal(await auth.accessToken({ rejected: 'access-0' }), 'access-1');
  assert.equal(requests.length, 1);
});

test('a refused refresh signs out, an unreachable server does not', async () => {
  const { auth } = authWith({
    '/auth/login': [tokens(1)],
    '/auth/refresh': [new TypeError('network'), [401, { type: 'invalid_token', title: 'no', status: 401 }]],
  });
  await auth.login('a@b.test', 'secret');
  await assert.rejects(auth.refresh(), Unreachable);
  assert.equal(await auth.accessToken(), 'access-1');
  await assert.rejects(auth.refresh(), { type: 'invalid_token', status: 401 });
  await assert.rejects(auth.accessToken(), NotSignedIn);
});

test('a refresh that was under way at sign-out does not bring the person back', async () => {
  const { auth } = authWith({ '/auth/login': [tokens(1)], '/auth/refresh': [tokens(2)], '/auth/logout': [{}] });
  await auth.login('a@b.test', 'secret');
  const refused = assert.rejects(auth.refresh(), NotSignedIn);
  await Promise.all([auth.logout(), refused]);
  await assert.rejects(auth.accessToken(), NotSignedIn);
});

test('logging out forgets the tokens even when the server is away', async () => {
  const { auth, requests, store } = authWith({ '/auth/login': [tokens(1)], '/auth/logout': [new TypeError('network')] });
  await auth.login('a@b.test', 'secret');
  await auth.logout();
  assert.equal(store.load(), null);
  assert.equal(requests.at(-1).authorization, 'Bearer access-1');
});

test('a login that asks for a second factor gives the challenge and no tokens', async () => {
  const challenge = { mfa_required: true, challenge: 'c', methods: ['totp'] };
  const { auth } = authWith({ '/auth/login': [challenge], '/auth/mfa/verify': [tokens(1)] });
  assert.deepEqual(await auth.login('a@b.test', 'secret'), challenge);
  await assert.rejects(auth.accessToken(), NotSignedIn);
  await auth.verifyMfa('c', '123456');
  assert.equal(await auth.accessToken(), 'access-1');
});

test('a problem document becomes an error with its code, a page of a proxy one with its status', async () => {
  const { auth } = authWith({
    '/auth/login': [
      [401, { type: 'invalid_credentials', title: 'Unauthorized', detail: 'Not right.', status: 401, correlation_id: 'x' }],
      [502, '<html>bad gateway</html>'],
    ],
  });
  await assert.rejects(auth.login('a@b.test', 'wrong'), (error) => {
    assert.ok(error instanceof RemoteError);
    assert.deepEqual([error.type, error.message, error.correlationId], ['invalid_credentials', 'Not right.', 'x']);
    return true;
  });
  await assert.rejects(auth.login('a@b.test', 'wrong'), { status: 502, type: 'internal' });
});

test('me asks with the access token', async () => {
  const { auth, requests } = authWith({ '/auth/login': [tokens(1)], '/auth/me': [{ user: { id: '42' } }] });
  await auth.login('a@b.test', 'secret');
  assert.deepEqual(await auth.me(), { id: '42' });
  assert.equal(requests.at(-1).authorization, 'Bearer access-1');
});

test('a second factor is asked for, sent and answered; other operations carry the token', async () => {
  const asked = { mfa_required: true, challenge: 'fxm_1', methods: ['totp', 'email'] };
  const { auth, requests } = authWith({
    '/auth/login': [asked],
    '/auth/mfa/send': [{ challenge: 'fxm_1', sent_to: 'a•••@b.test' }],
    '/auth/mfa/verify': [tokens(1)],
    '/auth/sessions': [{ sessions: [] }],
    '/auth/mfa/disable': [''],
  });
  assert.deepEqual(await auth.login('a@b.test', 'secret'), asked);
  assert.equal(await auth.sendCode('fxm_1', 'email'), 'a•••@b.test');
  assert.equal((await auth.verifyMfa('fxm_1', '123456')).id, '42');
  assert.deepEqual(await auth.call('GET', '/auth/sessions'), { sessions: [] });
  assert.deepEqual(await auth.call('POST', '/auth/mfa/disable', { password: 'p', code: '1' }), {});
  assert.deepEqual(
    requests.slice(1).map(({ body, authorization }) => [body, authorization]),
    [
      [{ challenge: 'fxm_1', method: 'email' }, undefined],
      [{ challenge: 'fxm_1', code: '123456' }, undefined],
      [undefined, 'Bearer access-1'],
      [{ password: 'p', code: '1' }, 'Bearer access-1'],
    ],
  );
});
