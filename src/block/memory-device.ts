/**
 * A block device in memory: sparse by chunks, so that a device of terabytes costs what was written. For tests, the
 * simulator and benchmarks of what stands above a device. Every request completes at once; nothing outlives the process.
 */
import { assert } from "../base/assert.ts";
import { OperationError } from "../base/errors.ts";
import type { BlockDevice } from "./device.ts";

const CHUNK_BYTES = 1024 * 1024;

export interface MemoryDeviceOptions {
  sizeBytes: number;
  blockSizeBytes?: number;
  readOnly?: boolean;
}

export class MemoryDevice implements BlockDevice {
  readonly sizeBytes: number;
  readonly blockSizeBytes: number;
  readonly readOnly: boolean;
  readonly #chunks = new Map<number, Buffer>();
  #closed = false;

  /** Block size 4096 and writable unless said otherwise. */
  constructor(options: MemoryDeviceOptions) {
    this.sizeBytes = options.sizeBytes;
    this.blockSizeBytes = options.blockSizeBytes ?? 4096;
    this.readOnly = options.readOnly ?? false;
    assert(this.sizeBytes % this.blockSizeBytes === 0, "a device holds whole blocks");
  }

  /** Memory taken by chunks that were written and not trimmed whole. */
  get allocatedBytes(): number {
    return this.#chunks.size * CHUNK_BYTES;
  }

  read(offset: number, target: Buffer): undefined {
    this.#check(offset, target.length);
    for (let done = 0; done < target.length;) {
      const position = offset + done;
      const inside = position % CHUNK_BYTES;
      const length = Math.min(CHUNK_BYTES - inside, target.length - done);
      const chunk = this.#chunks.get((position - inside) / CHUNK_BYTES);
      if (chunk === undefined) target.fill(0, done, done + length);
      else chunk.copy(target, done, inside, inside + length);
      done += length;
    }
  }

  write(offset: number, source: Buffer, _fua: boolean): undefined {
    this.#checkChange(offset, source.length);
    for (let done = 0; done < source.length;) {
      const position = offset + done;
      const inside = position % CHUNK_BYTES;
      const length = Math.min(CHUNK_BYTES - inside, source.length - done);
      const index = (position - inside) / CHUNK_BYTES;
      let chunk = this.#chunks.get(index);
      if (chunk === undefined) {
        chunk = Buffer.alloc(CHUNK_BYTES);
        this.#chunks.set(index, chunk);
      }
      source.copy(chunk, inside, done, done + length);
      done += length;
    }
  }

  writeZeroes(offset: number, length: number, _fua: boolean): undefined {
    this.#checkChange(offset, length);
    this.#clear(offset, length);
  }

  trim(offset: number, length: number, _fua: boolean): undefined {
    this.#checkChange(offset, length);
    this.#clear(offset, length);
  }

  flush(): undefined {
    assert(!this.#closed, "a closed device was used");
  }

  async close(): Promise<void> {
    this.#closed = true;
  }

  #clear(offset: number, length: number): void {
    const end = offset + length;
    if (length / CHUNK_BYTES > this.#chunks.size + 2) {
      for (const index of this.#chunks.keys()) this.#clearInside(index, offset, end);
      return;
    }
    for (let index = Math.floor(offset / CHUNK_BYTES); index * CHUNK_BYTES < end; index += 1) {
      this.#clearInside(index, offset, end);
    }
  }

  #clearInside(index: number, offset: number, end: number): void {
    const base = index * CHUNK_BYTES;
    const from = Math.max(offset - base, 0);
    const to = Math.min(end - base, CHUNK_BYTES);
    if (from >= to) return;
    if (from === 0 && to === CHUNK_BYTES) this.#chunks.delete(index);
    else this.#chunks.get(index)?.fill(0, from, to);
  }

  #checkChange(offset: number, length: number): void {
    if (this.readOnly) throw new OperationError("in-use", "the device is read-only");
    this.#check(offset, length);
  }

  #check(offset: number, length: number): void {
    assert(!this.#closed, "a closed device was used");
    const aligned = offset % this.blockSizeBytes === 0 && length % this.blockSizeBytes === 0;
    assert(
      aligned && offset >= 0 && length >= 0 && offset + length <= this.sizeBytes,
      "a request outside the contract",
    );
  }
}
