/**
 * Shapes of the contract, for editors and `tsc --checkJs`. There is no code in this file.
 *
 * @typedef {Record<string, any>} Json A JSON object.
 *
 * @typedef {object} User
 * @property {string} id
 * @property {string[]} roles
 * @property {string} [name]
 * @property {string} [email]
 * @property {{ organisation_id: string, provider_id: string, role: string }[]} [memberships]
 *
 * @typedef {object} Position Where a reader is in a channel. Offsets of different epochs cannot be compared.
 * @property {string} epoch
 * @property {number} offset Newest offset handled, from 0.
 *
 * @typedef {object} ChannelEvent One fact, with CloudEvents attribute names.
 * @property {string} channel
 * @property {number} [offset] Absent on ephemeral events (typing, positions, presence).
 * @property {string} id
 * @property {string} type For example `booking.assigned`.
 * @property {string} time RFC 3339, UTC.
 * @property {string} source For example `booking/01J…`.
 * @property {Json} data
 * @property {boolean} [recovered] True when it happened while this client was away.
 * @property {string} [correlationid]
 * @property {string} [traceparent]
 *
 * @typedef {object} Subscription What the server answers for one channel.
 * @property {string} epoch
 * @property {number} offset
 * @property {boolean} recovered
 * @property {ChannelEvent[]} events
 * @property {Json} [state]
 *
 * @typedef {object} Snapshot The channel starts anew from here: forget what you knew, take `state`.
 * @property {string} channel
 * @property {Json | null} state Null for channels that have no snapshot (`user:`): fetch what you need.
 * @property {string} epoch
 * @property {number} offset
 * @property {boolean} gap False on the first subscription; true when events were missed that cannot be had any more.
 *
 * @typedef {object} SessionInfo Result of `session.connect`.
 * @property {string} session
 * @property {User} user
 * @property {number} heartbeat_seconds
 * @property {number} expires_in_seconds
 * @property {string} server_time
 * @property {Record<string, Subscription>} channels
 *
 * @typedef {object} Recovery What a reconnect brought back, once every channel is restored.
 * @property {number} missed Events that happened meanwhile and were delivered, in order; one heard on several channels
 *   counts once.
 * @property {string[]} reset Channels that had to start anew from a snapshot.
 * @property {number} awayMs Time between the loss and this session.
 *
 * @typedef {'connecting' | 'online' | 'waiting' | 'offline' | 'stopped'} State
 * `connecting`: a socket is being opened. `waiting`: between two attempts. `offline`: not trying, until `connect` or
 * `resume`. `stopped`: not trying, because the server said to stay away or the user is signed out.
 *
 * @typedef {object} StateChange
 * @property {State} state
 * @property {State} previous
 * @property {number} [retryInMs] With `waiting`: time to the next attempt.
 * @property {number} [closeCode] Code of the close that led here, if one did.
 * @property {Error} [error] Why, if there was an error.
 *
 * @typedef {object} TokenRequest
 * @property {string} [rejected] An access token that the server no longer takes; anything but this one is wanted.
 *
 * @typedef {(request: TokenRequest) => Promise<string> | string} GetToken
 */

export {};
