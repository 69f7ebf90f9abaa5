/**
 * The block cache: parts of 64 KiB of the volumes' immutable objects in one file on the node's disk. One cache serves
 * all volumes of a thread. Content never goes stale, because an object's identity is never used twice.
 *
 * - Nothing served was compared with anything: who reads holds a checksum of these bytes that is bound to the object's
 *   identity (frames of a segment, pages of a map), finds rot, swapped and rolled-back content by it, and calls drop().
 * - Nothing here may fail a read of a volume: errors of the disk turn into misses, and into a cache that is off.
 * - Filling never waits: parts are copied into a ring of buffers, written behind by one write at a time (the thread pool
 *   also serves the journal's syncs), served from there meanwhile, and left out while the ring is full.
 * - The file is never synced: after a loss of power its readers sort out what is left.
 */
import { assert } from "../base/assert.ts";
import type { Clock } from "../base/clock.ts";
import type { Disk, DiskFile } from "../base/disk.ts";
import { describe, isKind, OperationError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { loadCacheIndex, ROW_BYTES, saveCacheIndex } from "./cache-index-file.ts";
import {
  CacheIndex,
  INDEX_BYTES_PER_SLOT,
  NO_SLOT,
  type ObjectIdentity,
  PART_BYTES,
  SUB_BLOCK_BYTES,
} from "./cache-index.ts";
import type { VolumeUid } from "./identity.ts";

const FILE_NAME = "cache-blocks";
const MIN_SLOTS = 64;
/** So much of the file system the cache leaves free when it opens: journals live there too. */
const SPARED_FRACTION = 0.1;
/**
 * What one write takes along at most, and where in the file it ends: 2 MiB. Linux keeps what one write brings in pieces
 * of memory as large as that, as far as they are aligned, and finds a block in a large piece quicker (measured: 4112 bytes
 * at random in 0.98 µs from 2 MiB, 1.17 from 64 KiB, 1.3 from 4 KiB).
 */
const RUN_PARTS = 32;
/** The index is saved when what came in since the last time weighs this many times the index. */
const SAVE_RATIO = 16;
const MIN_SAVE_PARTS = 256;
const MIN_SAVE_INTERVAL_MS = 10_000;
/**
 * Where the disk cannot tell what is in memory: synchronous reads that took longer, two in a row, were not in the page
 * cache (one alone may have lost its processor for a while); then this many reads go off the thread.
 */
const SLOW_READ_MS = 0.25;
/** So many reads are not timed after one that was quick: asking the clock twice is 2 % of a random read. */
const UNTIMED_READS = 3;
const SLOW_READ_CREDIT = 32;
/**
 * While at least three of four reads find their bytes in memory, one that does not brings the whole part into it: what
 * the page cache has lost of what is read all the time stands together. Where most reads wait for the disk, more than
 * they want would only make them wait longer. Counted from 0 to WARMTH_LIMIT.
 */
const WARMTH_LIMIT = 1024;
const COLD_READ_WEIGHT = 3;
/** Where bytes go that are only to be in memory: shared, since nobody looks at it. */
const nowhere = Buffer.allocUnsafeSlow(PART_BYTES);
/** What a look at one part finds without waiting. */
const MISSING = 0;
const FOUND = 1;
const ON_DISK = 2;
type Found = typeof MISSING | typeof FOUND | typeof ON_DISK;
/** So many disk errors turn the cache off. */
const MAX_DISK_ERRORS = 8;

export interface BlockCacheOptions {
  /** Undefined, or a capacity under 4 MiB: no cache, every read is a miss. */
  disk: Disk | undefined;
  capacityBytes: number;
  clock: Clock;
  log: Log;
  /** Memory for parts on their way to the disk; default 16 MiB. */
  writeBufferBytes?: number;
  /** Limit of the index's memory, and so of the cache: default 128 MiB, which is enough for 157 GiB. */
  maxIndexBytes?: number;
}

export interface BlockCacheStats {
  state: "on" | "off";
  hits: number;
  hitBytes: number;
  misses: number;
  inserts: number;
  /** Parts not taken because the disk was too slow for them. */
  refused: number;
  evictions: number;
  /** Parts that a reader found wrong: their bytes have changed on the disk. */
  rotten: number;
  /** The same for parts of an earlier process: mostly no damage, but slots used again after its index was saved. */
  outdated: number;
  diskErrors: number;
  parts: number;
  capacityParts: number;
  indexBytes: number;
}

export class BlockCache {
  readonly #disk: Disk | undefined;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #file: DiskFile | undefined;
  readonly #index: CacheIndex | undefined;
  #on: boolean;
  /**
   * Parts on their way to the disk, in the order in which they came: neighbours in an object mostly are so in this
   * memory and on the disk too, and are written together.
   */
  readonly #ring: Buffer;
  readonly #ringParts: number;
  readonly #ringSlots: Uint32Array;
  #ringHead = 0;
  #ringUsed = 0;
  /** Places in the ring, by slot. */
  readonly #pending = new Map<number, number>();
  readonly #roomWaiters: (() => void)[] = [];
  #writing: Promise<void> | undefined;
  #saving: Promise<void> | undefined;
  #savedAtMs: number;
  #unsavedParts = 0;
  #slowCredit = 0;
  #lastWasSlow = false;
  #untimedReads = 0;
  #warmth = 0;
  #failedWrites = 0;
  readonly #counts = { hits: 0, hitBytes: 0, misses: 0, inserts: 0, refused: 0, rotten: 0, outdated: 0, diskErrors: 0 };

  /** Opens the cache in `disk`, warm where an earlier process left one there. Never fails: see stats().state. */
  static async open(options: BlockCacheOptions): Promise<BlockCache> {
    const { disk, log } = options;
    if (disk === undefined || Math.floor(options.capacityBytes / PART_BYTES) < MIN_SLOTS) {
      return new BlockCache(options, undefined, undefined);
    }
    try {
      const { file, slots } = await openBlocks(disk, options);
      const index = await openIndex(disk, file, { slots, options });
      return new BlockCache(options, file, index);
    } catch (error) {
      log.error("the block cache is off: its disk cannot be used", { error: describe(error) });
      return new BlockCache(options, undefined, undefined);
    }
  }

  private constructor(options: BlockCacheOptions, file: DiskFile | undefined, index: CacheIndex | undefined) {
    this.#disk = options.disk;
    this.#clock = options.clock;
    this.#log = options.log;
    this.#file = file;
    this.#index = index;
    this.#on = file !== undefined;
    const buffers = Math.floor((options.writeBufferBytes ?? 16 * 1024 * 1024) / PART_BYTES);
    this.#ringParts = Math.max(1, Math.min(buffers, Math.floor((index?.slotCount ?? 0) / 8)));
    this.#ring = Buffer.allocUnsafeSlow(this.#ringParts * PART_BYTES);
    this.#ringSlots = new Uint32Array(this.#ringParts);
    this.#savedAtMs = options.clock.monotonicMs();
  }

  /**
   * Fills `target` with the cached bytes of `object` from `offset`; false where not all of them are here, or where the
   * disk would have to be waited for (see has() and read()): nothing is known about `target`'s content then. They were
   * compared with nothing: see above. On a disk that cannot tell it blocks the thread: see readsAreSlow().
   */
  readSync(object: ObjectIdentity, offset: number, target: Buffer): boolean {
    const within = offset % PART_BYTES;
    const part = (offset - within) / PART_BYTES;
    if (within + target.length <= PART_BYTES) {
      const found = this.#readPartSync(object, part, within, target);
      return found === FOUND ? this.#hit(target.length) : this.#notNow(found);
    }
    let done = 0;
    for (let next = part; done < target.length; next += 1) {
      const start = next === part ? within : 0;
      const step = Math.min(PART_BYTES - start, target.length - done);
      const found = this.#readPartSync(object, next, start, target.subarray(done, done + step));
      if (found !== FOUND) return this.#notNow(found);
      done += step;
    }
    return this.#hit(target.length);
  }

  /** Like readSync, off the thread. */
  async read(object: ObjectIdentity, offset: number, target: Buffer): Promise<boolean> {
    for (let done = 0; done < target.length;) {
      const within = (offset + done) % PART_BYTES;
      const step = Math.min(PART_BYTES - within, target.length - done);
      const part = Math.floor((offset + done) / PART_BYTES);
      if (!(await this.#readPart(object, part, within, target.subarray(done, done + step)))) return this.#miss();
      done += step;
    }
    return this.#hit(target.length);
  }

  /**
   * True while a disk that cannot tell what is in memory answers slower than that: then read() is the better call. Found
   * by timing readSync; every read() brings the next trial of readSync closer.
   */
  readsAreSlow(): boolean {
    return this.#slowCredit > 0;
  }

  /** True where the part is cached; whether it is intact is its reader's to find. */
  has(object: ObjectIdentity, part: number): boolean {
    return this.#find(object, part) !== NO_SLOT;
  }

  /**
   * Takes a copy of a part: 65536 bytes from part × 65536, or fewer where the object ends. True where the part is
   * cached now, false where it was left out (cache off, buffers full).
   */
  insert(object: ObjectIdentity, part: number, bytes: Buffer): boolean {
    const index = this.#index;
    if (!this.#on || index === undefined || bytes.length === 0) return false;
    assert(bytes.length <= PART_BYTES, "a part has at most 65536 bytes");
    const owner = index.getOwner(object, true);
    if (owner === undefined) return false;
    if (index.find(owner, object.epoch, object.sequence, part) !== NO_SLOT) return true;
    if (this.#ringUsed === this.#ringParts) return this.#refuse();
    const slot = index.insert(owner, object.epoch, object.sequence, part, bytes.length);
    if (slot === NO_SLOT) return this.#refuse();
    const place = (this.#ringHead + this.#ringUsed) % this.#ringParts;
    this.#ringUsed += 1;
    this.#ringSlots[place] = slot;
    bytes.copy(this.#ring, place * PART_BYTES);
    this.#pending.set(slot, place);
    this.#counts.inserts += 1;
    this.#unsavedParts += 1;
    this.#writing ??= this.#writeBehind();
    return true;
  }

  /** Drops the parts that [offset, offset + length) touches: their reader found the bytes wrong. */
  drop(object: ObjectIdentity, offset: number, length: number): void {
    for (let part = Math.floor(offset / PART_BYTES); part * PART_BYTES < offset + length; part += 1) {
      const slot = this.#find(object, part);
      if (slot !== NO_SLOT) this.#dropDamaged(slot);
    }
  }

  /** Drops all of a volume's parts: it was deleted. */
  forget(uid: VolumeUid): void {
    this.#index?.forget(uid);
  }

  stats(): BlockCacheStats {
    const index = this.#index;
    return {
      state: this.#on ? "on" : "off",
      ...this.#counts,
      evictions: index?.evictions ?? 0,
      parts: this.#on ? (index?.liveCount ?? 0) : 0,
      capacityParts: this.#on ? (index?.slotCount ?? 0) : 0,
      indexBytes: index?.memoryBytes() ?? 0,
    };
  }

  /** Undefined where insert() has a buffer at the moment, and where the cache is off; else resolves at the next one's return. */
  room(): Promise<void> | undefined {
    if (!this.#on || this.#ringUsed < this.#ringParts) return undefined;
    return new Promise((resolve) => this.#roomWaiters.push(resolve));
  }

  /** Resolves when every part taken so far is on the disk, or given up. */
  async settled(): Promise<void> {
    while (this.#writing !== undefined) await this.#writing;
  }

  /** Writes what is pending and the index. No other method may be called afterwards; idempotent. */
  async close(): Promise<void> {
    await this.settled();
    await this.#saving;
    if (this.#on) {
      await this.#save();
      this.#on = false;
    }
    await this.#file?.close().catch((error: unknown) => {
      this.#log.warn("the block cache did not close well", { error: describe(error) });
    });
  }

  #readPartSync(object: ObjectIdentity, part: number, within: number, target: Buffer): Found {
    const slot = this.#find(object, part);
    const index = this.#index;
    const file = this.#file;
    if (slot === NO_SLOT || index === undefined || file === undefined) return MISSING;
    if (within + target.length > index.length(slot)) return MISSING;
    index.touch(slot, Math.floor(within / SUB_BLOCK_BYTES));
    if (index.isBusy(slot)) {
      this.#copyPending(slot, within, target);
      return FOUND;
    }
    const position = slot * PART_BYTES + within;
    try {
      const isThere = file.readNow(target, position);
      if (isThere === undefined) this.#readTimed(file, target, position);
      else if (isThere && this.#warmth < WARMTH_LIMIT) this.#warmth += 1;
      return isThere === false ? ON_DISK : FOUND;
    } catch (error) {
      this.#readFailed(slot, error);
      return MISSING;
    }
  }

  #readTimed(file: DiskFile, target: Buffer, position: number): void {
    const timed = this.#untimedReads === 0;
    const started = timed ? this.#clock.monotonicMs() : 0;
    file.readSync(target, position);
    if (timed) this.#judge(this.#clock.monotonicMs() - started > SLOW_READ_MS);
    else this.#untimedReads -= 1;
  }

  #judge(isSlow: boolean): void {
    if (isSlow && this.#lastWasSlow) this.#slowCredit = SLOW_READ_CREDIT;
    this.#lastWasSlow = isSlow;
    this.#untimedReads = isSlow ? 0 : UNTIMED_READS;
  }

  async #readPart(object: ObjectIdentity, part: number, within: number, target: Buffer): Promise<boolean> {
    const slot = this.#find(object, part);
    const index = this.#index;
    const file = this.#file;
    if (slot === NO_SLOT || index === undefined || file === undefined) return false;
    if (within + target.length > index.length(slot)) return false;
    index.touch(slot, Math.floor(within / SUB_BLOCK_BYTES));
    if (index.isBusy(slot)) return this.#copyPending(slot, within, target);
    this.#slowCredit = Math.max(0, this.#slowCredit - 1);
    const position = slot * PART_BYTES;
    try {
      const isMostlyWarm = this.#warmth >= WARMTH_LIMIT / 2;
      this.#warmth = Math.max(0, this.#warmth - COLD_READ_WEIGHT);
      if (isMostlyWarm) {
        await file.read(nowhere.subarray(0, index.length(slot)), position);
        if (!this.#holds(slot, object, part)) return false;
        if (file.readNow(target, position + within) === true) return true;
      }
      await file.read(target, position + within);
    } catch (error) {
      return this.#find(object, part) === slot ? this.#readFailed(slot, error) : false;
    }
    return this.#holds(slot, object, part);
  }

  /** Whether the slot's bytes on the disk are the part's: it may have been given to another one while a read waited. */
  #holds(slot: number, object: ObjectIdentity, part: number): boolean {
    return this.#find(object, part) === slot && this.#index?.isBusy(slot) === false;
  }

  #copyPending(slot: number, within: number, target: Buffer): boolean {
    const place = this.#pending.get(slot);
    assert(place !== undefined, "a busy slot has a place in the ring");
    const start = place * PART_BYTES + within;
    this.#ring.copy(target, 0, start, start + target.length);
    return true;
  }

  #find(object: ObjectIdentity, part: number): number {
    const index = this.#index;
    if (!this.#on || index === undefined) return NO_SLOT;
    const owner = index.getOwner(object);
    return owner === undefined ? NO_SLOT : index.find(owner, object.epoch, object.sequence, part);
  }

  #hit(bytes: number): true {
    this.#counts.hits += 1;
    this.#counts.hitBytes += bytes;
    return true;
  }

  /** A part that has to be waited for is no miss: read() counts it. */
  #notNow(found: Found): false {
    return found === MISSING ? this.#miss() : false;
  }

  #miss(): false {
    this.#counts.misses += 1;
    return false;
  }

  #refuse(): false {
    this.#counts.refused += 1;
    return false;
  }

  #dropDamaged(slot: number): false {
    const index = this.#index;
    if (index === undefined) return false;
    if (index.isRecovered(slot)) {
      this.#counts.outdated += 1;
    } else {
      this.#counts.rotten += 1;
      if (this.#counts.rotten === 1) {
        this.#log.warn("the block cache holds bytes that changed on the disk: dropped, S3 serves them", { slot });
      }
    }
    index.drop(slot);
    return false;
  }

  #readFailed(slot: number, error: unknown): false {
    // A file that ends early was cut by somebody else: the same as rot.
    if (isKind(error, "corrupt")) return this.#dropDamaged(slot);
    this.#diskFailed(error);
    if (this.#index?.isBusy(slot) === false) this.#index.retire(slot);
    return false;
  }

  #diskFailed(error: unknown): void {
    this.#counts.diskErrors += 1;
    if (this.#counts.diskErrors < MAX_DISK_ERRORS || !this.#on) return;
    this.#on = false;
    this.#log.error("the block cache is off until the server restarts: its disk fails", { error: describe(error) });
  }

  async #writeBehind(): Promise<void> {
    while (this.#ringUsed > 0) {
      // Who inserts many parts inserts the next ones in his next turn.
      if ((this.#ringSlots[this.#ringHead] + this.#runLength()) % RUN_PARTS !== 0) await this.#clock.yield();
      await this.#writeRun(this.#runLength());
    }
    this.#writing = undefined;
    this.#saveWhenDue();
  }

  /** How many parts from the head of the ring are neighbours on the disk too, up to where a run ends. */
  #runLength(): number {
    const toEnd = RUN_PARTS - (this.#ringSlots[this.#ringHead] % RUN_PARTS);
    const limit = Math.min(this.#ringUsed, toEnd, this.#ringParts - this.#ringHead);
    let count = 1;
    while (count < limit) {
      const last = this.#ringSlots[this.#ringHead + count - 1];
      if (this.#ringSlots[this.#ringHead + count] !== last + 1 || this.#index?.length(last) !== PART_BYTES) break;
      count += 1;
    }
    return count;
  }

  async #writeRun(count: number): Promise<void> {
    const index = this.#index;
    assert(index !== undefined && this.#file !== undefined, "what is in the ring has a file");
    const slots = this.#ringSlots.slice(this.#ringHead, this.#ringHead + count);
    const start = this.#ringHead * PART_BYTES;
    let failure: unknown;
    try {
      const lengthBytes = (count - 1) * PART_BYTES + index.length(slots[count - 1]);
      if (this.#on && slots.some((slot) => index.isLive(slot))) {
        await this.#file.write(this.#ring.subarray(start, start + lengthBytes), slots[0] * PART_BYTES);
      }
    } catch (error) {
      failure = error;
    }
    this.#ringHead = (this.#ringHead + count) % this.#ringParts;
    this.#ringUsed -= count;
    for (const slot of slots) {
      this.#pending.delete(slot);
      index.setIdle(slot);
      if (failure !== undefined) index.retire(slot);
    }
    if (failure !== undefined) this.#writeFailed(index, failure);
    for (const wake of this.#roomWaiters.splice(0)) wake();
  }

  #writeFailed(index: CacheIndex, error: unknown): void {
    this.#failedWrites += 1;
    if (!isKind(error, "exhausted")) {
      this.#diskFailed(error);
      return;
    }
    index.stopGrowing();
    if (this.#failedWrites > 1) return;
    this.#log.warn("the disk of the block cache is full: the cache stays as large as it is", {
      parts: index.liveCount,
    });
  }

  #saveWhenDue(): void {
    const index = this.#index;
    if (index === undefined || !this.#on || this.#saving !== undefined) return;
    const dueParts = Math.max(MIN_SAVE_PARTS, (index.liveCount * ROW_BYTES * SAVE_RATIO) / PART_BYTES);
    if (this.#unsavedParts < dueParts) return;
    if (this.#clock.monotonicMs() - this.#savedAtMs < MIN_SAVE_INTERVAL_MS) return;
    this.#saving = this.#save().finally(() => (this.#saving = undefined));
  }

  async #save(): Promise<void> {
    if (this.#disk === undefined || this.#index === undefined) return;
    this.#unsavedParts = 0;
    this.#savedAtMs = this.#clock.monotonicMs();
    try {
      await saveCacheIndex(this.#disk, this.#index, this.#clock);
    } catch (error) {
      this.#log.warn("the index of the block cache was not saved: a restart finds it older", {
        error: describe(error),
      });
    }
  }
}

/** The cache file, and how many parts it may hold; a file larger than that is begun anew. */
async function openBlocks(disk: Disk, options: BlockCacheOptions): Promise<{ file: DiskFile; slots: number }> {
  const file = await disk.open(FILE_NAME, { create: true });
  const { freeBytes, totalBytes } = await disk.space();
  const sizeBytes = file.sizeBytes();
  const roomBytes = sizeBytes + Math.max(0, freeBytes - totalBytes * SPARED_FRACTION);
  const indexBytes = options.maxIndexBytes ?? 128 * 1024 * 1024;
  const wanted = Math.floor(options.capacityBytes / PART_BYTES);
  const slots = Math.min(wanted, Math.floor(roomBytes / PART_BYTES), Math.floor(indexBytes / INDEX_BYTES_PER_SLOT));
  if (slots < wanted) {
    const context = { capacityBytes: slots * PART_BYTES, wantedBytes: options.capacityBytes };
    options.log.warn("the block cache is smaller than configured: disk or index memory are short", context);
  }
  if (slots < MIN_SLOTS) {
    await file.close();
    throw new OperationError("exhausted", "there is no room for a block cache", { context: { slots } });
  }
  if (sizeBytes <= slots * PART_BYTES) return { file, slots };
  await file.close();
  await disk.remove(FILE_NAME);
  return { file: await disk.open(FILE_NAME, { create: true }), slots };
}

async function openIndex(
  disk: Disk,
  file: DiskFile,
  { slots, options }: { slots: number; options: BlockCacheOptions },
): Promise<CacheIndex> {
  const index = new CacheIndex(slots);
  const cacheSlots = Math.ceil(file.sizeBytes() / PART_BYTES);
  try {
    const { damagedGroups } = await loadCacheIndex(disk, index, { cacheSlots, clock: options.clock });
    if (damagedGroups > 0) options.log.warn("parts of the block cache's index are damaged", { damagedGroups });
    return index;
  } catch (error) {
    if (!isKind(error, "corrupt")) throw error;
    options.log.warn("the block cache starts empty", { error: describe(error) });
    return new CacheIndex(slots);
  }
}
