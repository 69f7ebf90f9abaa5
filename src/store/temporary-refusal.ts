/**
 * "unavailable" said by a store that is well: it wants fewer requests, or another request for the same key is under way.
 * Told apart from a store that is away, because what helps is different (request-gate.ts).
 */
import { type ErrorContext, OperationError } from "../base/errors.ts";

export class TemporaryRefusal extends OperationError {
  readonly reason: "slow-down" | "conflict";

  constructor(reason: "slow-down" | "conflict", message: string, context: ErrorContext = {}) {
    super("unavailable", message, { context });
    this.reason = reason;
  }
}
