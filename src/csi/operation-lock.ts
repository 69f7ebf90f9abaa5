/**
 * One operation a volume at a time, in this process. The lock is taken before the first await and given back when the
 * work ends, however it ends; a second call on the same key is told "busy" (ABORTED: ask again) instead of waiting,
 * so that retries of an impatient client never queue up. Replicas of the controller are kept apart by the store.
 */
import { OperationError } from "../base/errors.ts";

export class OperationLock {
  readonly #held = new Map<string, string>();

  /** Runs `work` with `key` taken. The client may be gone long before it ends: the key stays taken until then. */
  async run<T>(key: string, operation: string, work: () => Promise<T>): Promise<T> {
    const running = this.#held.get(key);
    if (running !== undefined) {
      throw new OperationError("busy", "another call on this volume is at work: retry later", {
        context: { volumeId: key, running },
      });
    }
    this.#held.set(key, operation);
    try {
      return await work();
    } finally {
      this.#held.delete(key);
    }
  }
}
