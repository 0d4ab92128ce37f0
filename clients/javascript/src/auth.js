import { NotSignedIn, RemoteError, Unreachable } from './errors.js';
import { platformWith } from './platform.js';

/**
 * @typedef {import('./types.js').User} User
 * @typedef {import('./types.js').Json} Json
 *
 * @typedef {object} Tokens
 * @property {string} accessToken
 * @property {string} refreshToken Works once; each refresh brings the next one.
 * @property {number} expiresAt Milliseconds since the Unix epoch, by this machine's clock.
 * @property {User} user
 *
 * @typedef {object} TokenStore Where tokens are kept. Each method may be asynchronous.
 * @property {() => Tokens | null | Promise<Tokens | null>} load
 * @property {(tokens: Tokens) => void | Promise<void>} save
 * @property {() => void | Promise<void>} clear
 *
 * @typedef {object} MfaChallenge The password was right; a code is wanted too.
 * @property {true} mfa_required
 * @property {string} challenge
 * @property {string[]} methods
 *
 * @typedef {object} AuthOptions
 * @property {string} [baseUrl] Origin of the server, without a slash at the end; default: the page's own.
 * @property {TokenStore} [store]
 * @property {{ id: string, name: string, platform: string }} [device]
 * @property {number} [timeoutMs] Per request.
 * @property {Partial<import('./platform.js').Platform>} [platform]
 */

/** Renew a token that has less than this left, so that it does not run out on the way to the server. */
const RENEW_BEFORE_MS = 30_000;

/** Keeps tokens for the life of the page and nowhere else: nothing on disk to steal. @implements {TokenStore} */
export class MemoryTokenStore {
  /** @type {Tokens | null} */
  #tokens = null;

  load() {
    return this.#tokens;
  }

  /** @param {Tokens} tokens */
  save(tokens) {
    this.#tokens = tokens;
  }

  clear() {
    this.#tokens = null;
  }
}

/**
 * Signs a person in over REST and hands out access tokens that are still good.
 *
 * Refresh tokens rotate and work once, so at most one refresh is under way; whoever asks meanwhile waits for the same one.
 */
export class Auth {
  /** @type {TokenStore} */
  #store;
  /** @type {import('./platform.js').Platform} */
  #platform;
  /** @type {Promise<Tokens> | null} */
  #refreshing = null;
  /** Raised by each sign-in and sign-out, so that a refresh that was under way cannot bring the old person back. */
  #generation = 0;

  /** @param {AuthOptions} [options] */
  constructor({ baseUrl = '', store = new MemoryTokenStore(), device, timeoutMs = 15_000, platform } = {}) {
    this.baseUrl = baseUrl;
    this.device = device;
    this.timeoutMs = timeoutMs;
    this.#store = store;
    this.#platform = platformWith(platform);
  }

  /**
   * @param {string} email
   * @param {string} password
   * @returns {Promise<User | MfaChallenge>}
   */
  async login(email, password) {
    const answer = await this.#post('/auth/login', { email, password, ...(this.device && { device: this.device }) });
    if (answer.mfa_required) return /** @type {MfaChallenge} */ (answer);
    return this.#signedIn(answer);
  }

  /**
   * Second step of a login that answered with a challenge.
   *
   * @param {string} challenge
   * @param {string} code
   * @returns {Promise<User>}
   */
  async verifyMfa(challenge, code) {
    return this.#signedIn(await this.#post('/auth/mfa/verify', { challenge, code }));
  }

  /**
   * Has a code sent for a challenge, by one of its methods.
   *
   * @param {string} challenge
   * @param {'email' | 'sms'} method
   * @returns {Promise<string>} Where it went, shortened so that only its owner recognises it.
   */
  async sendCode(challenge, method) {
    return (await this.#post('/auth/mfa/send', { challenge, method })).sent_to;
  }

  /**
   * Any other operation under `/auth` for whoever is signed in, such as `call('GET', '/auth/sessions')`.
   *
   * @param {'GET' | 'POST' | 'DELETE'} method
   * @param {string} path
   * @param {Json} [body]
   * @returns {Promise<Json>} `{}` when the answer has no body.
   */
  async call(method, path, body) {
    return this.#request(method, path, body, await this.accessToken());
  }

  /**
   * Makes an account; signing in is a step of its own.
   *
   * @param {{ email: string, password: string, name: string, role: 'customer' | 'provider' }} account
   * @returns {Promise<User>}
   */
  async register(account) {
    return (await this.#post('/auth/register', account)).user;
  }

  /** @returns {Promise<User>} With `memberships` for people of a provider. */
  async me() {
    return (await this.#request('GET', '/auth/me', undefined, await this.accessToken())).user;
  }

  /** Ends this sign-in here, and on the server as well if it can be reached. */
  async logout() {
    // A spent access token would leave the sign-in open on the server, so it is renewed for this last request.
    const token = await this.accessToken().catch(() => null);
    this.#changeOfPerson();
    await this.#store.clear();
    // What cannot be told to the server expires there; here the person is signed out either way.
    if (token) await this.#request('POST', '/auth/logout', undefined, token).catch(() => undefined);
  }

  #changeOfPerson() {
    this.#generation += 1;
    this.#refreshing = null;
  }

  /**
   * An access token that should still be good, renewed first if need be.
   *
   * @param {import('./types.js').TokenRequest} [request]
   * @returns {Promise<string>}
   * @throws {NotSignedIn} There are no tokens.
   * @throws {RemoteError} The refresh was refused; with status 401 the tokens are gone.
   * @throws {Unreachable} The refresh could not be asked for.
   */
  async accessToken({ rejected } = {}) {
    const tokens = await this.#store.load();
    if (!tokens) throw new NotSignedIn();
    const good = tokens.accessToken !== rejected && tokens.expiresAt - this.#platform.now() > RENEW_BEFORE_MS;
    return good ? tokens.accessToken : (await this.refresh()).accessToken;
  }

  /**
   * Trades the refresh token for new tokens; callers at the same time share one trade.
   *
   * @returns {Promise<Tokens>}
   */
  refresh() {
    if (this.#refreshing) return this.#refreshing;
    const trade = this.#refresh().finally(() => {
      // A sign-in meanwhile may have made room for a trade of its own.
      if (this.#refreshing === trade) this.#refreshing = null;
    });
    this.#refreshing = trade;
    return trade;
  }

  async #refresh() {
    const generation = this.#generation;
    const held = await this.#store.load();
    if (!held) throw new NotSignedIn();
    let answer;
    try {
      answer = await this.#post('/auth/refresh', { refresh_token: held.refreshToken });
    } catch (error) {
      const refused = error instanceof RemoteError && error.status === 401;
      if (refused && generation === this.#generation) await this.#store.clear();
      throw error;
    }
    if (generation !== this.#generation) throw new NotSignedIn('Signed out meanwhile.');
    const tokens = this.#tokensFrom(answer, held.user);
    await this.#store.save(tokens);
    return tokens;
  }

  /**
   * @param {Json} answer
   * @returns {Promise<User>}
   */
  async #signedIn(answer) {
    this.#changeOfPerson();
    const tokens = this.#tokensFrom(answer, answer.user);
    await this.#store.save(tokens);
    return tokens.user;
  }

  /**
   * @param {Json} answer
   * @param {User} user
   * @returns {Tokens}
   */
  #tokensFrom(answer, user) {
    return {
      accessToken: answer.access_token,
      refreshToken: answer.refresh_token,
      expiresAt: this.#platform.now() + answer.expires_in * 1000,
      user: answer.user ?? user,
    };
  }

  /**
   * @param {string} path
   * @param {Json} body
   */
  #post(path, body) {
    return this.#request('POST', path, body);
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {Json} [body]
   * @param {string} [token]
   * @returns {Promise<Json>}
   */
  async #request(method, path, body, token) {
    const abort = new AbortController();
    const timer = this.#platform.setTimeout(() => abort.abort(), this.timeoutMs);
    try {
      const response = await this.#platform.fetch(this.baseUrl + path, {
        method,
        headers: {
          accept: 'application/json, application/problem+json',
          ...(body && { 'content-type': 'application/json' }),
          ...(token && { authorization: `Bearer ${token}` }),
        },
        ...(body && { body: JSON.stringify(body) }),
        // Cookies never authenticate anything here, so none are sent.
        credentials: 'omit',
        cache: 'no-store',
        signal: abort.signal,
      });
      const text = await response.text();
      const answer = parseObject(text);
      if (!response.ok) throw RemoteError.fromHttp(response.status, answer);
      return answer;
    } catch (error) {
      throw error instanceof RemoteError ? error : new Unreachable(error);
    } finally {
      this.#platform.clearTimeout(timer);
    }
  }
}

/**
 * @param {string} text A body; a proxy's error page is no JSON.
 * @returns {Json}
 */
function parseObject(text) {
  try {
    const value = JSON.parse(text);
    return value !== null && typeof value === 'object' ? value : {};
  } catch {
    return {};
  }
}
