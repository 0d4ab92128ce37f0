import assert from 'node:assert/strict';
import { test } from 'node:test';

import { EntityStore } from '../src/index.js';

test('a version that is held already, or an older one, is no news', () => {
  const store = new EntityStore();
  const changes = [];
  store.on('change', (entity) => changes.push(entity.version));
  const news = [1, 3, 2, 3, 4].map((version) => store.put({ id: 'b', version }));
  assert.deepEqual(news, [true, true, false, false, true]);
  assert.deepEqual(changes, [1, 3, 4]);
  assert.equal(store.get('b').version, 4);
});

test('a snapshot removes what it does not contain and never goes back in time', () => {
  const store = new EntityStore();
  const removed = [];
  store.on('remove', (id) => removed.push(id));
  store.put({ id: 'a', version: 1 });
  store.put({ id: 'b', version: 5 });
  store.replaceAll([
    { id: 'b', version: 4 },
    { id: 'c', version: 1 },
  ]);
  assert.deepEqual(removed, ['a']);
  assert.deepEqual(store.values().map(({ id, version }) => [id, version]), [
    ['b', 5],
    ['c', 1],
  ]);
});
