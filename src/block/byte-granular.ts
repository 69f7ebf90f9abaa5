/**
 * Serves any byte range over a device of blocks, by read-modify-write of the blocks at the edges. Clients of the NBD
 * server may ask for anything; the kernel and file systems never do.
 *
 * A read-modify-write must not lose what others write into the same blocks in the meantime, so changes wait for each
 * other where they touch the same blocks and one of them is a read-modify-write. Each waits only for earlier ones,
 * so nothing can wait in a circle. Aligned requests pass through untouched while no read-modify-write is at work.
 * It holds only if every request to the inner device comes through one and the same decorator.
 */
import { assert } from "../base/assert.ts";
import type { BlockDevice, MaybePromise } from "./device.ts";

interface Change {
  /** Bytes of whole blocks. */
  start: number;
  end: number;
  /** A read-modify-write: nothing else may change these blocks meanwhile. */
  exclusive: boolean;
  /** Resolves, never rejects, when the change is over. */
  over: Promise<void>;
}

export class ByteGranularDevice implements BlockDevice {
  readonly blockSizeBytes = 1;
  readonly readOnly: boolean;
  readonly #inner: BlockDevice;
  readonly #innerBlockBytes: number;
  /** Changes in flight that did not complete at once, oldest first. */
  #changes: Change[] = [];
  #exclusiveCount = 0;

  constructor(inner: BlockDevice) {
    this.#inner = inner;
    this.#innerBlockBytes = inner.blockSizeBytes;
    this.readOnly = inner.readOnly;
  }

  /** The inner device's, which may grow. */
  get sizeBytes(): number {
    return this.#inner.sizeBytes;
  }

  read(offset: number, target: Buffer): MaybePromise<void> {
    if (this.#aligned(offset, target.length)) return this.#inner.read(offset, target);
    this.#checkRange(offset, target.length);
    const start = this.#floor(offset);
    const blocks = Buffer.allocUnsafe(this.#ceil(offset + target.length) - start);
    const copy = () => {
      blocks.copy(target, 0, offset - start, offset - start + target.length);
    };
    const result = this.#inner.read(start, blocks);
    return result === undefined ? copy() : result.then(copy);
  }

  write(offset: number, source: Buffer, fua: boolean): MaybePromise<void> {
    if (this.#aligned(offset, source.length)) {
      if (this.#exclusiveCount === 0) {
        const result = this.#inner.write(offset, source, fua);
        return result === undefined ? undefined : this.#enter(plainRange(offset, source.length), result);
      }
      return this.#pass(offset, source.length, () => this.#inner.write(offset, source, fua));
    }
    return this.#exclusive(offset, source.length, () => this.#merge(offset, source, fua));
  }

  writeZeroes(offset: number, length: number, fua: boolean): MaybePromise<void> {
    const clear = (start: number, size: number) => this.#inner.writeZeroes(start, size, fua);
    return this.#clear({ offset, length }, fua, clear);
  }

  trim(offset: number, length: number, fua: boolean): MaybePromise<void> {
    const clear = (start: number, size: number) => this.#inner.trim(start, size, fua);
    return this.#clear({ offset, length }, fua, clear);
  }

  flush(): MaybePromise<void> {
    return this.#inner.flush();
  }

  beginBatch(): void {
    this.#inner.beginBatch?.();
  }

  commitBatch(): void {
    this.#inner.commitBatch?.();
  }

  async close(): Promise<void> {
    await this.#inner.close();
  }

  #aligned(offset: number, length: number): boolean {
    return offset % this.#innerBlockBytes === 0 && length % this.#innerBlockBytes === 0;
  }

  #checkRange(offset: number, length: number): void {
    assert(offset >= 0 && offset + length <= this.sizeBytes, "a request outside the contract");
  }

  #floor(position: number): number {
    return position - (position % this.#innerBlockBytes);
  }

  #ceil(position: number): number {
    return this.#floor(position + this.#innerBlockBytes - 1);
  }

  #clear(
    range: { offset: number; length: number },
    fua: boolean,
    clear: (start: number, size: number) => MaybePromise<void>,
  ): MaybePromise<void> {
    const { offset, length } = range;
    if (this.#aligned(offset, length)) return this.#pass(offset, length, () => clear(offset, length));
    return this.#exclusive(offset, length, async () => {
      const from = this.#ceil(offset);
      const to = this.#floor(offset + length);
      if (from >= to) {
        await this.#merge(offset, Buffer.alloc(length), fua);
        return;
      }
      if (offset < from) await this.#merge(offset, Buffer.alloc(from - offset), fua);
      await clear(from, to - from);
      if (to < offset + length) await this.#merge(to, Buffer.alloc(offset + length - to), fua);
    });
  }

  /** Writes `source` together with what its edge blocks hold besides; the caller has the blocks to itself. */
  async #merge(offset: number, source: Buffer, fua: boolean): Promise<void> {
    const blockBytes = this.#innerBlockBytes;
    const start = this.#floor(offset);
    const end = this.#ceil(offset + source.length);
    const blocks = Buffer.allocUnsafe(end - start);
    await this.#inner.read(start, blocks.subarray(0, blockBytes));
    if (end - start > blockBytes) await this.#inner.read(end - blockBytes, blocks.subarray(end - start - blockBytes));
    source.copy(blocks, offset - start);
    await this.#inner.write(start, blocks, fua);
  }

  /** A change of whole blocks: straight through, unless a read-modify-write has its blocks. */
  #pass(start: number, length: number, run: () => MaybePromise<void>): MaybePromise<void> {
    const range = plainRange(start, length);
    if (this.#exclusiveCount > 0) {
      const earlier = this.#conflicts(range);
      if (earlier.length > 0) return this.#enter(range, afterAll(earlier, run));
    }
    const result = run();
    return result === undefined ? undefined : this.#enter(range, result);
  }

  #exclusive(offset: number, length: number, run: () => Promise<void>): MaybePromise<void> {
    this.#checkRange(offset, length);
    if (length === 0) return undefined;
    const range = { start: this.#floor(offset), end: this.#ceil(offset + length), exclusive: true };
    const earlier = this.#conflicts(range);
    return this.#enter(range, earlier.length === 0 ? run() : afterAll(earlier, run));
  }

  #conflicts(range: { start: number; end: number; exclusive: boolean }): Promise<void>[] {
    return this.#changes
      .filter((change) => change.exclusive || range.exclusive)
      .filter((change) => change.start < range.end && range.start < change.end)
      .map((change) => change.over);
  }

  /** Makes the change known until `result` settles. */
  #enter(range: { start: number; end: number; exclusive: boolean }, result: Promise<void>): Promise<void> {
    const leave = () => {
      this.#changes = this.#changes.filter((other) => other !== change);
      if (range.exclusive) this.#exclusiveCount -= 1;
    };
    const change: Change = { ...range, over: result.then(leave, leave) };
    this.#changes.push(change);
    if (range.exclusive) this.#exclusiveCount += 1;
    return result;
  }
}

function plainRange(start: number, length: number): { start: number; end: number; exclusive: boolean } {
  return { start, end: start + length, exclusive: false };
}

async function afterAll(earlier: Promise<void>[], run: () => MaybePromise<void>): Promise<void> {
  await Promise.all(earlier);
  await run();
}
