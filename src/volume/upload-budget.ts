/**
 * Memory for segments on their way to S3, shared by all volumes of a thread. Large buffers are kept and used again,
 * since a fresh one of 32 MiB costs thousands of page faults; small ones come from the allocator.
 */
import { assert } from "../base/assert.ts";

/** Segments above this size use a buffer of the pool. */
const SMALL_BYTES = 1024 * 1024;

export class UploadBudget {
  readonly #limitBytes: number;
  readonly #largeBytes: number;
  readonly #pool: Buffer[] = [];
  #usedBytes = 0;
  #waiters: (() => void)[] = [];

  /** `largeBytes`: the largest segment; at least one fits whatever the limit says. */
  constructor(limitBytes: number, largeBytes: number) {
    this.#limitBytes = Math.max(limitBytes, largeBytes);
    this.#largeBytes = largeBytes;
  }

  /** Bytes lent out at the moment. */
  get usedBytes(): number {
    return this.#usedBytes;
  }

  /** True while a segment waits for memory. */
  get contended(): boolean {
    return this.#waiters.length > 0;
  }

  /** A buffer of at least `bytes`, or undefined where the budget is used up: `retry` is called once when that changes. */
  acquire(bytes: number, retry: () => void): Buffer | undefined {
    assert(bytes <= this.#largeBytes, "a segment is no larger than the largest");
    const size = bytes > SMALL_BYTES ? this.#largeBytes : bytes;
    if (this.#usedBytes > 0 && this.#usedBytes + size > this.#limitBytes) {
      this.#waiters.push(retry);
      return undefined;
    }
    this.#usedBytes += size;
    if (size !== this.#largeBytes) return Buffer.allocUnsafeSlow(bytes);
    return this.#pool.pop() ?? Buffer.allocUnsafeSlow(this.#largeBytes);
  }

  release(buffer: Buffer): void {
    this.#usedBytes -= buffer.length;
    if (buffer.length === this.#largeBytes && this.#pool.length * this.#largeBytes < this.#limitBytes)
      this.#pool.push(buffer);
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const retry of waiters) retry();
  }
}
