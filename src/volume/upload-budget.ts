/**
 * Memory for segments on their way to S3, shared by all volumes of a thread. Large buffers are kept and used again,
 * since a fresh one of 32 MiB costs thousands of page faults; small ones come from the allocator. While no upload needs
 * them, large buffers are lent to a borrower, who gives them back at once when one does.
 *
 * Invariant: what is used, lent and kept is never more than the limit, or one large buffer where that is more.
 */
import { assert } from "../base/assert.ts";

/** Segments above this size use a large buffer. */
const SMALL_BYTES = 1024 * 1024;

/** Has buffers that nobody else needs at the moment. */
export interface Borrower {
  /** Gives one of its buffers back, whatever it holds; undefined where it has none. */
  giveBack(): Buffer | undefined;
}

export class UploadBudget {
  /** The size of a large buffer. */
  readonly largeBytes: number;
  readonly #limitBytes: number;
  readonly #allocate: (bytes: number) => Buffer;
  readonly #kept: Buffer[] = [];
  #lentCount = 0;
  #borrower: Borrower | undefined;
  #usedBytes = 0;
  #waiters: (() => void)[] = [];

  /**
   * `largeBytes`: the largest segment; at least one fits whatever the limit says. `allocate` makes the large buffers,
   * with anything in them.
   */
  constructor(
    limitBytes: number,
    largeBytes: number,
    allocate = (bytes: number): Buffer => Buffer.allocUnsafeSlow(bytes),
  ) {
    this.#allocate = allocate;
    this.#limitBytes = Math.max(limitBytes, largeBytes);
    this.largeBytes = largeBytes;
  }

  /** So many large buffers there are at most. */
  get largeCount(): number {
    return Math.floor(this.#limitBytes / this.largeBytes);
  }

  /** Bytes that segments use at the moment. */
  get usedBytes(): number {
    return this.#usedBytes;
  }

  /** True while a segment waits for memory. */
  get contended(): boolean {
    return this.#waiters.length > 0;
  }

  /** A buffer of at least `bytes`, or undefined where the budget is used up: `retry` is called once when that changes. */
  acquire(bytes: number, retry: () => void): Buffer | undefined {
    assert(bytes <= this.largeBytes, "a segment is no larger than the largest");
    const isLarge = bytes > SMALL_BYTES;
    const size = isLarge ? this.largeBytes : bytes;
    if (this.#usedBytes > 0 && this.#usedBytes + size > this.#limitBytes) {
      this.#waiters.push(retry);
      return undefined;
    }
    const kept = isLarge ? this.#kept.pop() : undefined;
    const buffer = kept ?? this.#make(size);
    this.#usedBytes += size;
    return buffer;
  }

  release(buffer: Buffer): void {
    this.#usedBytes -= buffer.length;
    if (buffer.length === this.largeBytes && this.#fits(this.largeBytes)) this.#kept.push(buffer);
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const retry of waiters) retry();
  }

  /**
   * A large buffer for the one borrower there is, until giveBack() is called; undefined where uploads would soon miss
   * it. A fresh one is made only where yet another would fit.
   */
  borrow(borrower: Borrower): Buffer | undefined {
    this.#borrower = borrower;
    const buffer = this.#kept.pop() ?? (this.#fits(2 * this.largeBytes) ? this.#allocate(this.largeBytes) : undefined);
    if (buffer !== undefined) this.#lentCount += 1;
    return buffer;
  }

  #fits(bytes: number): boolean {
    const idleBytes = (this.#kept.length + this.#lentCount) * this.largeBytes;
    return this.#usedBytes + idleBytes + bytes <= this.#limitBytes;
  }

  /** Makes room among what is kept, then among what is lent: whoever calls has seen that the segments leave enough. */
  #make(size: number): Buffer {
    while (!this.#fits(size)) {
      const freed = this.#kept.pop() ?? this.#reclaim();
      if (freed === undefined) break;
      if (size === this.largeBytes) return freed;
    }
    return size === this.largeBytes ? this.#allocate(size) : Buffer.allocUnsafeSlow(size);
  }

  #reclaim(): Buffer | undefined {
    if (this.#lentCount === 0) return undefined;
    const buffer = this.#borrower?.giveBack();
    assert(buffer !== undefined, "who has borrowed a buffer gives it back");
    this.#lentCount -= 1;
    return buffer;
  }
}
