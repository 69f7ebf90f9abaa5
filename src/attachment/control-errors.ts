/**
 * OperationErrors across the control API. The gRPC code is for other clients; our own reads the exact kind from the
 * trailing metadata, since two kinds may share a code. What is no OperationError reaches the client as "unavailable"
 * without its text: its place is the server's log.
 * Secrets of a request never come back in an answer.
 */
import { Metadata, status as code } from "@grpc/grpc-js";
import type { ServiceError } from "@grpc/grpc-js";
import { OperationError } from "../base/errors.ts";
import type { ErrorKind } from "../base/errors.ts";

const kindKey = "s3block-error-kind";
const maxDetails = 2048;

/** Error kinds as gRPC codes, for both APIs: one of the two places where errors are translated (nbd/errno.ts). */
export const codeOfKind: Readonly<Record<ErrorKind, code>> = {
  invalid: code.INVALID_ARGUMENT,
  "not-found": code.NOT_FOUND,
  conflict: code.ALREADY_EXISTS,
  busy: code.ABORTED,
  "in-use": code.FAILED_PRECONDITION,
  exhausted: code.RESOURCE_EXHAUSTED,
  unavailable: code.UNAVAILABLE,
  fenced: code.FAILED_PRECONDITION,
  corrupt: code.DATA_LOSS,
};

/** What the server answers. */
export function encodeError(
  error: unknown,
  secrets: readonly string[],
): { code: code; details: string; metadata: Metadata } {
  const known = error instanceof OperationError;
  const kind = known ? error.kind : "unavailable";
  let details = known ? error.message : "the server failed in a way that it did not expect: see its log";
  for (const secret of secrets) if (secret !== "") details = details.replaceAll(secret, "[redacted]");
  const metadata = new Metadata();
  metadata.set(kindKey, kind);
  return { code: codeOfKind[kind], details: details.slice(0, maxDetails), metadata };
}

/** What the client throws. */
export function decodeError(error: ServiceError, socketPath: string): OperationError {
  const kind = error.metadata?.get(kindKey)[0];
  if (typeof kind === "string" && Object.hasOwn(codeOfKind, kind)) {
    return new OperationError(kind as ErrorKind, error.details, { cause: error });
  }
  const context = { controlSocket: socketPath, code: code[error.code] ?? error.code };
  switch (error.code) {
    case code.DEADLINE_EXCEEDED:
    case code.CANCELLED:
      return new OperationError("unavailable", "the server has not answered in time: it goes on, ask again", {
        cause: error,
        context,
      });
    case code.UNAVAILABLE:
      return new OperationError("unavailable", "the server cannot be reached: check that s3block server runs here", {
        cause: error,
        context,
      });
    default:
      return new OperationError("unavailable", `the server answered nonsense (${error.details}): check its version`, {
        cause: error,
        context,
      });
  }
}
