/**
 * @typedef {object} SocketLike The part of the browser's WebSocket that is used.
 * @property {number} readyState
 * @property {((event: any) => void) | null} onopen
 * @property {((event: any) => void) | null} onmessage
 * @property {((event: any) => void) | null} onclose
 * @property {((event: any) => void) | null} onerror
 * @property {(data: string) => void} send
 * @property {(code?: number, reason?: string) => void} close
 *
 * @typedef {object} Platform What the client takes from its surroundings. Tests replace all of it.
 * @property {new (url: string, protocols?: string | string[]) => SocketLike} WebSocket
 * @property {(input: string, init?: any) => Promise<Response>} fetch
 * @property {(callback: () => void, delayMs: number) => any} setTimeout
 * @property {(handle: any) => void} clearTimeout
 * @property {() => number} now Milliseconds since the Unix epoch.
 * @property {() => number} random Uniform in [0, 1).
 * @property {() => string} uuid
 * @property {{ addEventListener(type: string, listener: () => void): void,
 *   removeEventListener(type: string, listener: () => void): void } | null} network Says `online` when the machine
 *   has a network again, as browsers' `window` does.
 */

/**
 * A version 4 UUID (RFC 9562). `crypto.randomUUID` exists only in secure contexts, so a page on plain http needs the
 * long way.
 *
 * @returns {string}
 */
function uuid() {
  if (typeof crypto.randomUUID === 'function') return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (/** @type {number} */ (bytes[6]) & 0x0f) | 0x40;
  bytes[8] = (/** @type {number} */ (bytes[8]) & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-');
}

/**
 * The platform of a browser or of Node, with some parts replaced.
 *
 * @param {Partial<Platform>} [replaced]
 * @returns {Platform}
 */
export function platformWith(replaced = {}) {
  return {
    // Node before 22 has no WebSocket of its own; there the caller passes one in.
    WebSocket: /** @type {any} */ (globalThis).WebSocket,
    // Wrapped, because browsers refuse these functions when they are called as methods of another object.
    fetch: (input, init) => globalThis.fetch(input, init),
    setTimeout: (callback, delayMs) => globalThis.setTimeout(callback, delayMs),
    clearTimeout: (handle) => globalThis.clearTimeout(handle),
    now: () => Date.now(),
    random: () => Math.random(),
    uuid,
    network: typeof globalThis.addEventListener === 'function' ? /** @type {any} */ (globalThis) : null,
    ...replaced,
  };
}
