/**
 * Every way a call can fail, in one tree.
 *
 *     FixnadoError
 *     ├── RemoteError       the server answered no; `type` is its stable code (`offer_taken`, `conflict`, …)
 *     ├── ConnectionLost    the socket died and this command must not be repeated blindly; its outcome is unknown
 *     ├── CallTimeout       no answer in time; the outcome is unknown; retry with the same `key`
 *     ├── Unreachable       REST: no response came
 *     ├── NotSignedIn       there are no tokens, or they are spent
 *     └── Stopped           the client is stopped and will not send
 */

/** Root of the tree. `type` is for machines, `message` for people. */
export class FixnadoError extends Error {
  /**
   * @param {string} type
   * @param {string} message
   * @param {boolean} [retryable] Whether the same request may succeed later without a change.
   * @param {ErrorOptions} [options]
   */
  constructor(type, message, retryable = false, options) {
    super(message, options);
    this.name = new.target.name;
    this.type = type;
    this.retryable = retryable;
    /** @type {string | undefined} The idempotency key of the command, to retry it safely. */
    this.key = undefined;
  }
}

/** The server's refusal: a JSON-RPC error on the socket, a problem document (RFC 9457) on REST. */
export class RemoteError extends FixnadoError {
  /**
   * @param {object} problem
   * @param {string} problem.type
   * @param {string} problem.message
   * @param {number} problem.status
   * @param {number} [problem.code] JSON-RPC code; absent on REST.
   * @param {boolean} [problem.retryable]
   * @param {import('./types.js').Json} [problem.details]
   */
  constructor({ type, message, status, code, retryable = false, details = {} }) {
    super(type, message, retryable);
    this.status = status;
    this.code = code;
    this.details = details;
    /** @type {string | undefined} Finds the log line on the server. */
    this.correlationId = details.correlation_id;
    /** @type {number | undefined} With `too_many_requests`. */
    this.retryAfterSeconds = details.retry_after_seconds;
    /** @type {{ where: string, why: string }[]} With `invalid_params`. */
    this.errors = Array.isArray(details.errors) ? details.errors : [];
  }

  /**
   * @param {import('./types.js').Json} error The `error` member of a JSON-RPC reply.
   * @returns {RemoteError}
   */
  static fromRpc(error) {
    const details = error.data ?? {};
    return new RemoteError({
      type: details.type ?? 'internal',
      message: error.message ?? 'The server refused.',
      status: details.status ?? 500,
      code: error.code,
      retryable: details.retryable ?? false,
      details,
    });
  }

  /**
   * @param {number} status
   * @param {import('./types.js').Json} problem The body, or {} when there was none to read.
   * @returns {RemoteError}
   */
  static fromHttp(status, problem) {
    return new RemoteError({
      type: problem.type ?? 'internal',
      message: problem.detail ?? problem.title ?? `The server answered ${status}.`,
      status,
      retryable: problem.retryable ?? (status === 429 || status === 503),
      details: problem,
    });
  }
}

export class ConnectionLost extends FixnadoError {
  constructor(message = 'The connection was lost before the answer came.') {
    super('connection_lost', message, true);
  }
}

export class CallTimeout extends FixnadoError {
  constructor(message = 'The server did not answer in time.') {
    super('timeout', message, true);
  }
}

export class Unreachable extends FixnadoError {
  /** @param {unknown} cause */
  constructor(cause) {
    super('unreachable', 'The server cannot be reached.', true, { cause });
  }
}

export class NotSignedIn extends FixnadoError {
  constructor(message = 'Sign in first.') {
    super('not_authenticated', message);
  }
}

export class Stopped extends FixnadoError {
  /**
   * @param {string} message
   * @param {number} [closeCode]
   */
  constructor(message, closeCode) {
    super('stopped', message);
    this.closeCode = closeCode;
  }
}

/**
 * Whether an error means that the person has to sign in again, rather than that the network is bad.
 *
 * @param {unknown} error
 * @returns {boolean}
 */
export function needsSignIn(error) {
  return error instanceof NotSignedIn || (error instanceof RemoteError && error.status === 401);
}
