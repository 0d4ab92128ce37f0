/** Client for Fixnado Realtime; README.md shows its use. @module */

export { Auth, MemoryTokenStore } from './auth.js';
export { Channel } from './channel.js';
export { meaningOf } from './close-codes.js';
export { RealtimeClient } from './client.js';
export { EntityStore } from './entities.js';
export {
  CallTimeout,
  ConnectionLost,
  FixnadoError,
  needsSignIn,
  NotSignedIn,
  RemoteError,
  Stopped,
  Unreachable,
} from './errors.js';
