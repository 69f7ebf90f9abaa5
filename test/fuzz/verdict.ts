/** What came of an input: a value that holds, or an OperationError of a kind that the doorway may answer with. */
import assert from "node:assert/strict";
import { type ErrorKind, OperationError } from "../../src/base/errors.ts";

/** "value" where `take` accepts the input and `holds`; the kind of error where it refuses it with one of `kinds`. */
export function verdict<T>(kinds: readonly ErrorKind[], take: () => T, holds: (value: T) => void): string {
  let value: T;
  try {
    value = take();
  } catch (error) {
    return refusal(kinds, error);
  }
  holds(value);
  return "value";
}

/** The same for what takes time. */
export async function lateVerdict<T>(
  kinds: readonly ErrorKind[],
  take: () => Promise<T>,
  holds: (value: T) => void,
): Promise<string> {
  let value: T;
  try {
    value = await take();
  } catch (error) {
    return refusal(kinds, error);
  }
  holds(value);
  return "value";
}

function refusal(kinds: readonly ErrorKind[], error: unknown): string {
  assert.ok(error instanceof OperationError, `no typed error: ${error instanceof Error ? error.stack : String(error)}`);
  assert.ok(kinds.includes(error.kind), `refused as ${error.kind}: ${error.message}`);
  return error.kind;
}
