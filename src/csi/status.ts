/**
 * Errors as CSI answers: the codes of attachment/control-errors.ts, unless the specification wants another for one call.
 * A client takes CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE and ABORTED to mean "perhaps still at work, ask
 * again" and every other code as final; a final answer to a call that had an effect leaks a volume. So whatever
 * nobody expected is UNAVAILABLE, never INTERNAL or UNKNOWN.
 */
import { status as code } from "@grpc/grpc-js";
import { codeOfKind } from "../attachment/control-errors.ts";
import { describe, type ErrorContext, type ErrorKind, OperationError } from "../base/errors.ts";

/** Where the specification wants another code for one call than the kind has: it wins. */
export class CsiError extends OperationError {
  readonly code: code;

  constructor(errorCode: code, kind: ErrorKind, message: string, context: ErrorContext = {}) {
    super(kind, message, { context });
    this.code = errorCode;
  }
}

export function outOfRange(message: string, context: ErrorContext): CsiError {
  return new CsiError(code.OUT_OF_RANGE, "invalid", message, context);
}

export interface CallStatus {
  code: code;
  /** One printable line of at most 1024 characters, without secrets. */
  details: string;
}

const maxDetails = 1024;

/** What the client is told. `secrets` are the values of the request's secrets: none of them is repeated. */
export function statusOfError(error: unknown, secrets: readonly string[] = []): CallStatus {
  if (!(error instanceof OperationError)) {
    return {
      code: code.UNAVAILABLE,
      details: "the driver failed in a way that it did not expect: see its log, then retry",
    };
  }
  return {
    code: error instanceof CsiError ? error.code : codeOfKind[error.kind],
    details: withoutSecrets(error.message, secrets),
  };
}

/** `text` on one printable line and without any of `secrets`. */
export function withoutSecrets(text: string, secrets: readonly string[]): string {
  const longestFirst = secrets.filter((secret) => secret !== "").toSorted((a, b) => b.length - a.length);
  const redacted = longestFirst.reduce((rest, secret) => rest.replaceAll(secret, "[redacted]"), text);
  return redacted.replace(/\p{Cc}+/gu, " ").slice(0, maxDetails);
}

/** For a log line: like withoutSecrets, with the causes. */
export function describeWithoutSecrets(error: unknown, secrets: readonly string[]): string {
  return withoutSecrets(describe(error), secrets);
}
