/**
 * How many bytes of object bodies may be on their way from S3 at a time; shared by all volumes of a thread, so that
 * reads cannot fill the memory. First come, first served; a request larger than the whole budget waits until nothing
 * else is under way and then has it alone. What was acquired must be released, whatever became of the request.
 */
import { assert } from "../base/assert.ts";
import { OperationError } from "../base/errors.ts";

export class ReadBudget {
  readonly totalBytes: number;
  #usedBytes = 0;
  #waiting: { bytes: number; enter: () => void }[] = [];

  constructor(totalBytes: number) {
    assert(totalBytes > 0, "a budget has bytes");
    this.totalBytes = totalBytes;
  }

  usedBytes(): number {
    return this.#usedBytes;
  }

  /** Takes `bytes` where nobody waits and at least `sparedBytes` stay free besides. */
  tryAcquire(bytes: number, sparedBytes = 0): boolean {
    if (this.#waiting.length > 0 || !this.#fits(bytes + sparedBytes)) return false;
    this.#usedBytes += bytes;
    return true;
  }

  /** Resolves when `bytes` are taken; rejects with "unavailable", and takes nothing, when the signal aborts first. */
  async acquire(bytes: number, signal?: AbortSignal): Promise<void> {
    if (this.tryAcquire(bytes)) return;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const entry = { bytes, enter: resolve };
    const giveUp = (): void => {
      this.#waiting = this.#waiting.filter((waiting) => waiting !== entry);
      this.#admit();
      reject(new OperationError("unavailable", "the read was given up, its volume is closing"));
    };
    this.#waiting.push(entry);
    signal?.addEventListener("abort", giveUp, { once: true });
    if (signal?.aborted === true) giveUp();
    try {
      await promise;
    } finally {
      signal?.removeEventListener("abort", giveUp);
    }
  }

  release(bytes: number): void {
    this.#usedBytes -= bytes;
    assert(this.#usedBytes >= 0, "no more is released than was acquired");
    this.#admit();
  }

  #admit(): void {
    for (let next = this.#waiting[0]; next !== undefined && this.#fits(next.bytes); next = this.#waiting[0]) {
      this.#waiting.shift();
      this.#usedBytes += next.bytes;
      next.enter();
    }
  }

  #fits(bytes: number): boolean {
    return this.#usedBytes === 0 || this.#usedBytes + bytes <= this.totalBytes;
  }
}
