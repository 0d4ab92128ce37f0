const VERSION = '0.1.0';

/**
 * @typedef {object} ClientOptions
 * @property {string} [url] Of the socket, `wss://…/socket`; default: on the page's own server.
 * @property {{ accessToken(request: import('./types.js').TokenRequest): Promise<string> }} [auth] An `Auth`, usually.
 * @property {import('./types.js').GetToken} [getToken] In place of `auth`.
 * @property {string} [name] Name and version of the application, for the server's records.
 * @property {number} [callTimeoutMs] Time a command may take, reconnects included. Default 30 s.
 * @property {number} [connectTimeoutMs] Time from opening a socket to an open session. Default 10 s.
 * @property {number} [latencyIntervalMs] Time between measurements. Default 25 s.
 * @property {import('./fallback.js').Transport[]} [transports] Those that may be used. Default: both; `sse`, a stream over
 *   plain HTTP, while no socket gets through.
 * @property {number} [socketProbeMs] Pause between looks for a socket while there is a stream; it grows. Default 60 s.
 * @property {(error: unknown) => void} [onListenerError] Default: the console.
 * @property {Partial<import('./platform.js').Platform>} [platform]
 *
 * @typedef {object} Settled What was left out is filled in.
 * @property {string} url
 * @property {import('./types.js').GetToken} getToken
 * @property {string} name
 * @property {number} callTimeoutMs
 * @property {number} connectTimeoutMs
 * @property {number} latencyIntervalMs
 * @property {import('./fallback.js').Transport[]} transports
 * @property {number} socketProbeMs
 * @property {(error: unknown) => void} onListenerError
 */

/**
 * @param {ClientOptions} options
 * @returns {Settled}
 * @throws {TypeError} Nobody would know where tokens come from.
 */
export function settled({ auth, getToken, ...options }) {
  if (!auth && !getToken) throw new TypeError('RealtimeClient needs auth or getToken');
  return {
    url: options.url ?? ownSocket(),
    getToken: getToken ?? ((request) => /** @type {NonNullable<typeof auth>} */ (auth).accessToken(request)),
    name: options.name ?? `fixnado-js/${VERSION}`,
    callTimeoutMs: options.callTimeoutMs ?? 30_000,
    connectTimeoutMs: options.connectTimeoutMs ?? 10_000,
    latencyIntervalMs: options.latencyIntervalMs ?? 25_000,
    transports: options.transports ?? ['socket', 'sse'],
    socketProbeMs: options.socketProbeMs ?? 60_000,
    onListenerError: options.onListenerError ?? ((error) => console.error(error)),
  };
}

/** @returns {string} The socket of the server that the page came from. */
function ownSocket() {
  const { protocol, host } = globalThis.location;
  return `${protocol === 'https:' ? 'wss:' : 'ws:'}//${host}/socket`;
}
