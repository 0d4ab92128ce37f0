/** @typedef {(payload: any) => void} Listener */

/**
 * Named listeners. One that throws does not keep the others from hearing; its error goes to `report`.
 */
export class Emitter {
  /** @type {Map<string, Set<Listener>>} */
  #listeners = new Map();
  /** @type {(error: unknown) => void} */
  #report;

  /** @param {(error: unknown) => void} [report] */
  constructor(report = (error) => console.error(error)) {
    this.#report = report;
  }

  /**
   * @param {string} name
   * @param {Listener} listener
   * @returns {() => void} Takes the listener off again.
   */
  on(name, listener) {
    let listeners = this.#listeners.get(name);
    if (!listeners) this.#listeners.set(name, (listeners = new Set()));
    listeners.add(listener);
    return () => this.off(name, listener);
  }

  /**
   * @param {string} name
   * @param {Listener} listener
   */
  off(name, listener) {
    this.#listeners.get(name)?.delete(listener);
  }

  /**
   * @param {string} name
   * @param {unknown} payload
   */
  emit(name, payload) {
    for (const listener of [...(this.#listeners.get(name) ?? [])]) {
      try {
        listener(payload);
      } catch (error) {
        this.#report(error);
      }
    }
  }
}
