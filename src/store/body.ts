/**
 * The body of a put: parts that belong to the caller until the put settles. Its length is known at once, and it is
 * never empty, because its first bytes are the identity of the write (IDENTITY_BYTES in object-store.ts).
 */
import { assert } from "../base/assert.ts";

/** All bytes of the parts together. */
export function bodyLength(parts: readonly Uint8Array[]): number {
  let length = 0;
  for (const part of parts) length += part.length;
  assert(length > 0, "an object's body is never empty: it begins with its identity");
  return length;
}

/** The first `length` bytes of the body, or all of it where it is shorter; copied. */
export function bodyStart(parts: readonly Uint8Array[], length: number): Buffer {
  const start: Uint8Array[] = [];
  let missing = length;
  for (const part of parts) {
    if (missing === 0) break;
    start.push(part.subarray(0, missing));
    missing -= Math.min(missing, part.length);
  }
  return Buffer.concat(start);
}
