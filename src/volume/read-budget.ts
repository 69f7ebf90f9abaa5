/**
 * How many bytes of object bodies may be on their way from S3 at a time; shared by all volumes of a thread, so that
 * reads cannot fill the memory. First come, first served; a request larger than the whole budget waits until nothing
 * else is under way and then has it alone. What was acquired must be released, whatever became of the request.
 */
import { assert } from "../base/assert.ts";

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

  /** Resolves when `bytes` are taken. */
  async acquire(bytes: number): Promise<void> {
    if (this.tryAcquire(bytes)) return;
    await new Promise<void>((resolve) => this.#waiting.push({ bytes, enter: resolve }));
  }

  release(bytes: number): void {
    this.#usedBytes -= bytes;
    assert(this.#usedBytes >= 0, "no more is released than was acquired");
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
