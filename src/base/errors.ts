/**
 * The one error of the project. Everything that is not a bug is an OperationError with one of nine kinds;
 * a bug is an AssertionError (assert.ts) and ends the process, because recovery must be right anyway.
 * Kinds are translated at exactly two edges: gRPC (csi/status.ts) and NBD (nbd/errno.ts).
 * Messages are lower case, values last as key=value, and never hold a secret.
 */

/** What the caller can do about an error; the table with the translations stands in docs/architecture.md. */
export type ErrorKind =
  | "invalid"
  | "not-found"
  | "conflict"
  | "busy"
  | "in-use"
  | "exhausted"
  | "unavailable"
  | "fenced"
  | "corrupt";

export type ErrorContext = Readonly<Record<string, string | number | boolean>>;

export class OperationError extends Error {
  readonly kind: ErrorKind;
  readonly context: ErrorContext;

  constructor(kind: ErrorKind, message: string, details: { cause?: unknown; context?: ErrorContext } = {}) {
    const context = details.context ?? {};
    let text = message;
    for (const key of Object.keys(context)) text += ` ${key}=${context[key]}`;
    super(text, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = "OperationError";
    this.kind = kind;
    this.context = context;
  }
}

/** True when `error` is an OperationError of one of `kinds`. */
export function isKind(error: unknown, ...kinds: ErrorKind[]): error is OperationError {
  return error instanceof OperationError && kinds.includes(error.kind);
}

/** The error itself when it is ours, else an OperationError of `kind` around it. */
export function asOperationError(error: unknown, kind: ErrorKind, message: string): OperationError {
  if (error instanceof OperationError) return error;
  return new OperationError(kind, `${message}: ${describe(error)}`, { cause: error });
}

/** One line for a log: the message of an error and of its causes, without stacks. */
export function describe(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const code = (error as NodeJS.ErrnoException).code;
  const own = error.message === "" ? (code ?? error.name) : error.message;
  if (error.cause === undefined || own.includes(describe(error.cause))) return own;
  return `${own}: ${describe(error.cause)}`;
}
