/**
 * Assertions: what must hold if the code is right. A failed one is a bug, never a state of the outside world,
 * so it is no OperationError and nobody catches it to go on.
 */
export class AssertionError extends Error {
  override readonly name = "AssertionError";
}

export function assert(condition: boolean, message: string): asserts condition {
  if (!condition) throw new AssertionError(`bug: ${message}`);
}
