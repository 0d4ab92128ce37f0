import { Emitter } from './emitter.js';

/**
 * Entities by id, newest version only.
 *
 * The same change may arrive by several channels, in a snapshot and as a command's result. Versions rise by one with each
 * change, so whatever is not newer than what is held is ignored. Emits `change` with the entity, `remove` with its id.
 *
 * @template {{ version: number }} T
 */
export class EntityStore extends Emitter {
  /** @type {Map<string, T>} */
  #entities = new Map();
  /** @type {(entity: T) => string} */
  #idOf;

  /** @param {(entity: T) => string} [idOf] */
  constructor(idOf = (entity) => /** @type {any} */ (entity).id) {
    super();
    this.#idOf = idOf;
  }

  get size() {
    return this.#entities.size;
  }

  /**
   * @param {T} entity
   * @returns {boolean} Whether it was news.
   */
  put(entity) {
    const id = this.#idOf(entity);
    const held = this.#entities.get(id);
    if (held && held.version >= entity.version) return false;
    this.#entities.set(id, entity);
    this.emit('change', entity);
    return true;
  }

  /**
   * Takes a snapshot: what it does not contain is gone.
   *
   * @param {Iterable<T>} entities
   */
  replaceAll(entities) {
    const present = new Set();
    for (const entity of entities) {
      present.add(this.#idOf(entity));
      this.put(entity);
    }
    for (const id of [...this.#entities.keys()]) if (!present.has(id)) this.remove(id);
  }

  /**
   * @param {string} id
   * @returns {boolean} Whether it was there.
   */
  remove(id) {
    const removed = this.#entities.delete(id);
    if (removed) this.emit('remove', id);
    return removed;
  }

  /**
   * @param {string} id
   * @returns {T | undefined}
   */
  get(id) {
    return this.#entities.get(id);
  }

  /** @returns {T[]} */
  values() {
    return [...this.#entities.values()];
  }
}
