import { Emitter } from './emitter.js';

/**
 * @typedef {import('./types.js').ChannelEvent} ChannelEvent
 * @typedef {import('./types.js').Position} Position
 * @typedef {import('./types.js').Subscription} Subscription
 * @typedef {import('./types.js').Snapshot} Snapshot
 *
 * @typedef {object} ChannelOwner What a channel needs from its client.
 * @property {(channel: Channel) => void} wanted
 * @property {(channel: Channel) => void} unwanted
 * @property {(channel: string, offset: number, urgent: boolean) => void} handled
 * @property {(error: unknown) => void} report
 *
 * @typedef {object} Restored
 * @property {string[]} missed Ids of the events that were missed and are delivered now.
 * @property {boolean} reset Whether the channel had to start anew.
 *
 * @typedef {{ resolve: (subscription: Subscription) => void, reject: (error: Error) => void }} Waiter
 */

/** Live events kept while a reply is awaited. Later ones are let go, and asked for again from the last one kept. */
const BUFFER_BOUND = 1024;

/**
 * One channel and this client's place in it.
 *
 * Emits each event under its type and under `*`, in offset order, each once; and besides
 * `snapshot` ({@link Snapshot}) when it starts anew, `resumed` (`{missed}`) when it went on without a gap, and `lost`
 * (`{error}`) when it is no longer this person's.
 *
 * An offset may be left out: values of class `latest` give way to newer ones while they wait. So a jump is no error;
 * only the server can know whether something is missing, and it heals that before it sends on.
 */
export class Channel extends Emitter {
  /** @type {Position | null} */
  #position = null;
  /** @type {ChannelEvent[] | null} Events that came ahead of the reply that says where the channel stands. */
  #early = null;
  #overflowed = false;
  /** @type {Waiter[]} */
  #waiters = [];
  /** @type {ChannelOwner} */
  #owner;

  /**
   * @param {string} name
   * @param {ChannelOwner} owner
   */
  constructor(name, owner) {
    super(owner.report);
    this.name = name;
    this.#owner = owner;
    /** Given by the server without asking. */
    this.own = false;
    /** Asked for with `subscribe`. */
    this.desired = false;
    /** Whether events arrive now. */
    this.live = false;
    /** Events dropped because they had been handled before. */
    this.duplicates = 0;
  }

  /** @returns {Position | null} */
  get position() {
    return this.#position && { ...this.#position };
  }

  /**
   * Asks for the channel, now and after every reconnect.
   *
   * @returns {Promise<Subscription>} Settles with the first answer; rejects when the server refuses.
   */
  subscribe() {
    const already = this.live && this.#position;
    const wasDesired = this.desired;
    this.desired = true;
    if (already) {
      return Promise.resolve({ ...already, recovered: true, events: [] });
    }
    return new Promise((resolve, reject) => {
      this.#waiters.push({ resolve, reject });
      if (!wasDesired) this.#owner.wanted(this);
    });
  }

  unsubscribe() {
    if (!this.desired) return;
    this.desired = false;
    this.#owner.unwanted(this);
  }

  /** A subscription is under way; what arrives before its answer has to wait. @internal */
  awaitReply() {
    this.#early = [];
    this.#overflowed = false;
  }

  /** The connection is gone; the place is kept. @internal */
  suspend() {
    this.live = false;
    this.#early = null;
  }

  /**
   * Nobody will answer.
   *
   * @internal
   * @param {Error} reason
   */
  giveUpWaiting(reason) {
    for (const waiter of this.#waiters.splice(0)) waiter.reject(reason);
  }

  /**
   * Takes the server's answer.
   *
   * @internal
   * @param {Subscription} subscription
   * @returns {Restored}
   */
  restored(subscription) {
    const { epoch, offset, recovered, events = [], state } = subscription;
    const known = this.#position;
    const early = this.#early ?? [];
    this.#early = null;
    this.live = true;
    /** @type {string[]} */
    const missed = [];
    if (recovered && known) {
      this.#position = { epoch, offset: known.offset };
      for (const event of events) if (this.#deliver({ ...event, recovered: true })) missed.push(event.id);
      // The newest events may be of a class that is not kept. A listener may have left the channel meanwhile.
      if (this.#position) this.#position.offset = Math.max(this.#position.offset, offset);
      this.emit('resumed', { missed: missed.length });
    } else {
      this.#position = { epoch, offset };
      /** @type {Snapshot} */
      const snapshot = { channel: this.name, state: state ?? null, epoch, offset, gap: known !== null };
      this.emit('snapshot', snapshot);
      this.#owner.handled(this.name, offset, Array.isArray(state?.offers) && state.offers.length > 0);
    }
    for (const event of early) this.#deliver(event);
    for (const waiter of this.#waiters.splice(0)) waiter.resolve(subscription);
    if (this.#overflowed && this.#position) this.#owner.wanted(this);
    return { missed, reset: !recovered && known !== null };
  }

  /**
   * @internal
   * @param {ChannelEvent} event
   */
  received(event) {
    if (this.#early) {
      if (this.#early.length < BUFFER_BOUND) this.#early.push(event);
      else this.#overflowed = true;
    } else if (this.live) this.#deliver(event);
  }

  /**
   * It is not this person's, or no longer.
   *
   * @internal
   * @param {Error} error
   */
  refused(error) {
    this.forget(error);
    this.emit('lost', { error });
  }

  /**
   * @internal
   * @param {Error} reason For whoever still waits for the subscription.
   */
  forget(reason) {
    this.suspend();
    this.own = false;
    this.desired = false;
    this.#position = null;
    this.giveUpWaiting(reason);
  }

  /**
   * @param {ChannelEvent} event
   * @returns {boolean} Whether it was new.
   */
  #deliver(event) {
    const position = this.#position;
    if (!position) return false;
    if (event.offset !== undefined) {
      if (event.offset <= position.offset) {
        this.duplicates += 1;
        return false;
      }
      position.offset = event.offset;
    }
    this.emit(event.type, event);
    this.emit('*', event);
    if (event.offset !== undefined) this.#owner.handled(this.name, event.offset, event.type === 'offer.made');
    return true;
  }
}
