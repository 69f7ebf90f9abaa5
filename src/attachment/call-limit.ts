/**
 * How many calls of an API run at the same time, over all its connections. One more is told "busy" (ABORTED: ask again
 * later) at once instead of waiting: nothing of it was begun, and callers of both APIs repeat their calls with pauses.
 */
import { OperationError } from "../base/errors.ts";

export class CallLimit {
  readonly #limit: number;
  #running = 0;

  constructor(limit: number) {
    this.#limit = limit;
  }

  /** Runs `work`, or throws "busy" without having begun it. */
  async run<T>(work: () => Promise<T>): Promise<T> {
    if (this.#running >= this.#limit) {
      throw new OperationError("busy", "too many calls are at work: retry later", {
        context: { calls: this.#running },
      });
    }
    this.#running += 1;
    try {
      return await work();
    } finally {
      this.#running -= 1;
    }
  }
}
