/** How a command that fails ends: one line on standard error and exit code 1, or 2 for a mistake in the command line. */
import { describe, isKind } from "../base/errors.ts";

export function endWithError(error: unknown): never {
  process.stderr.write(`s3block: ${describe(error)}\n`);
  // Threads and sockets of a start that failed half way must not keep the process alive.
  process.exit(isKind(error, "invalid") ? 2 : 1);
}
