/**
 * The block device: the one interface between whoever serves blocks (nbd, attachment) and whoever holds them (volume,
 * memory device, decorators). Small enough to implement in thirty lines.
 *
 * Contract
 * - Offsets and lengths are bytes, multiples of `blockSizeBytes`, inside [0, sizeBytes): callers check, devices assert.
 * - A method that completes at once returns undefined; otherwise a promise. Hot paths look at the value and never
 *   await needlessly. A method may also throw at once instead of rejecting. Errors are OperationErrors.
 * - read fills `target` completely before it completes. `target` belongs to the device until then.
 * - write borrows `source` until it completes: the caller must not change it before, the device not keep it after.
 * - A completed write survives the death of the serving process, and is seen by every read that starts later.
 *   Overlapping requests in flight at the same time may take effect in any order, each block whole.
 * - flush completes when every write, trim and writeZeroes that had completed before it was called is durable
 *   (survives what the device promises to survive). `fua` true: that one request is durable when it completes.
 * - writeZeroes: the range reads as zeroes afterwards. trim: the range reads as zeroes afterwards too (stronger than
 *   NBD asks), and its space is given back in time. Both cost by extents, not bytes.
 * - Between beginBatch and commitBatch, which its caller calls without waiting for anything between them, a write, trim
 *   or writeZeroes that completes at once need not survive the death of the process yet: commitBatch makes all of them
 *   do so, or throws. The caller acknowledges none of them before. Optional: what need not be made safe has neither.
 * - After close no other method may be called. close flushes; it is idempotent.
 */
export type MaybePromise<T> = T | Promise<T>;

export interface BlockDevice {
  readonly sizeBytes: number;
  /** Smallest unit of a request: 512 or 4096. */
  readonly blockSizeBytes: number;
  readonly readOnly: boolean;
  read(offset: number, target: Buffer): MaybePromise<void>;
  write(offset: number, source: Buffer, fua: boolean): MaybePromise<void>;
  writeZeroes(offset: number, length: number, fua: boolean): MaybePromise<void>;
  trim(offset: number, length: number, fua: boolean): MaybePromise<void>;
  flush(): MaybePromise<void>;
  beginBatch?(): void;
  commitBatch?(): void;
  close(): Promise<void>;
}
