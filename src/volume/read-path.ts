/**
 * Reading blocks: overlay (the journal holds the newest version) → map → hot blocks → block cache → S3. Everything that is at hand
 * is copied at once on the calling thread, without a promise; only what must be fetched is waited for.
 *
 * Every block served was verified by the checksum of its frame, which is bound to block number and place. A frame that
 * does not hold is fetched from S3 twice more; if it still does not, that range, and nothing else, fails as "corrupt".
 */
import type { MaybePromise } from "../block/device.ts";
import { asOperationError, OperationError } from "../base/errors.ts";
import type { BlockMap } from "./block-map.ts";
import type { DirtyExtents } from "./dirty-extents.ts";
import {
  FRAME_ALIGN_BYTES,
  FRAME_HEADER_BYTES,
  isIntactRawFrame,
  RAW_FRAME_BYTES,
  sealedPart,
} from "./format/frame.ts";
import { ENCODED_FLAG, SHARD_BLOCKS } from "./format/map-page.ts";
import { BLOCK_BYTES, type VolumeUid } from "./identity.ts";
import type { HotBlocks } from "./hot-blocks.ts";
import type { Journal } from "./journal.ts";
import type { MapShard } from "./map-shard.ts";
import { Readahead } from "./readahead.ts";
import type { SegmentReader } from "./segment-reader.ts";
import { type StoredSegment, storedSegment } from "./stored-segment.ts";

const BATCH_FRAMES = 64;
/** For frames on their way to a reader: used within one call, so that all volumes of a thread share it. */
const scratch = Buffer.allocUnsafeSlow(BATCH_FRAMES * RAW_FRAME_BYTES);
const oneFrame = scratch.subarray(0, RAW_FRAME_BYTES);
const oneSealed = sealedPart(oneFrame, 0);
/** The frame offset in an entry's word1. */
const OFFSET_MASK = 2 ** 22 - 1;

export interface ReadPathOptions {
  uid: VolumeUid;
  overlay: DirtyExtents;
  journal: Journal;
  map: BlockMap;
  reader: SegmentReader;
  hot: HotBlocks;
  sizeBytes: number;
}

export class ReadPath {
  readonly #uid: VolumeUid;
  readonly #overlay: DirtyExtents;
  readonly #journal: Journal;
  readonly #map: BlockMap;
  readonly #reader: SegmentReader;
  readonly #hot: HotBlocks;
  readonly #readahead: Readahead;

  constructor(options: ReadPathOptions) {
    this.#uid = options.uid;
    this.#overlay = options.overlay;
    this.#journal = options.journal;
    this.#map = options.map;
    this.#reader = options.reader;
    this.#hot = options.hot;
    this.#readahead = new Readahead(options.sizeBytes);
  }

  /**
   * Fills `target` from `at` with `blocks` blocks from `lba`. `isWarm` says that the journal's disk was waited for already,
   * so that the rest of it, if any, is read on this thread.
   */
  read(lba: number, blocks: number, target: Buffer, at: number, isWarm = false): MaybePromise<void> {
    const overlay = this.#overlay;
    let pending: Promise<void>[] | undefined;
    while (blocks > 0) {
      overlay.locate(lba, blocks);
      const { foundBlocks, foundValue } = overlay;
      if (foundValue > 0) {
        const waiting = this.#readJournal(foundValue, lba, foundBlocks, target, at, isWarm);
        if (waiting !== undefined) (pending ??= []).push(waiting);
      } else if (foundValue < 0) target.fill(0, at, at + foundBlocks * BLOCK_BYTES);
      else {
        pending = this.#readMapped(lba, foundBlocks, target, at, pending);
        const ahead = this.#readahead.observe(lba * BLOCK_BYTES, foundBlocks * BLOCK_BYTES);
        if (ahead !== undefined) this.#prefetch(ahead.offset / BLOCK_BYTES, Math.ceil(ahead.length / BLOCK_BYTES));
      }
      lba += foundBlocks;
      blocks -= foundBlocks;
      at += foundBlocks * BLOCK_BYTES;
    }
    if (pending === undefined) return undefined;
    return pending.length === 1 ? pending[0] : allSettled(pending);
  }

  /** Undefined where it is done; an error is a promise, so that what is fetched for other blocks is waited for. */
  #readJournal(
    value: number,
    lba: number,
    blocks: number,
    target: Buffer,
    at: number,
    isWarm: boolean,
  ): Promise<void> | undefined {
    try {
      for (let done = 0; done < blocks;) {
        const count = Math.min(BATCH_FRAMES, blocks - done);
        if (!this.#journal.readFrames(value + done * RAW_FRAME_BYTES, lba + done, count, scratch, 0, isWarm)) {
          return this.#warmThenRead(value + done * RAW_FRAME_BYTES, lba + done, blocks - done, target, at);
        }
        copyPayloads(scratch, count, target, at);
        done += count;
        at += count * BLOCK_BYTES;
      }
      return undefined;
    } catch (error) {
      return Promise.reject(asOperationError(error, "unavailable", "cannot read the local journal"));
    }
  }

  /** Looks at the overlay anew when the disk has answered: the journal may have given these blocks to S3 by then. */
  async #warmThenRead(value: number, lba: number, blocks: number, target: Buffer, at: number): Promise<void> {
    await this.#journal.warm(value, blocks);
    await this.read(lba, blocks, target, at, true);
  }

  /** Blocks that the overlay does not know. Returns `pending` with what must be waited for. */
  #readMapped(
    lba: number,
    blocks: number,
    target: Buffer,
    at: number,
    pending: Promise<void>[] | undefined,
  ): Promise<void>[] | undefined {
    while (blocks > 0) {
      const index = Math.floor(lba / SHARD_BLOCKS);
      const block = lba - index * SHARD_BLOCKS;
      const count = Math.min(blocks, SHARD_BLOCKS - block);
      const shard = this.#map.getLoaded(index);
      if (shard !== undefined) pending = this.#readShard(shard, block, count, target, at, pending);
      else if (this.#map.isHole(index)) target.fill(0, at, at + count * BLOCK_BYTES);
      else (pending ??= []).push(this.#loadThenRead(index, lba, count, target, at));
      lba += count;
      blocks -= count;
      at += count * BLOCK_BYTES;
    }
    return pending;
  }

  /** Begins to fetch what the map says about the blocks, as far as their shards are in memory. */
  #prefetch(lba: number, blocks: number): void {
    while (blocks > 0) {
      const index = Math.floor(lba / SHARD_BLOCKS);
      const block = lba - index * SHARD_BLOCKS;
      const limit = Math.min(blocks, SHARD_BLOCKS - block);
      const shard = this.#map.getLoaded(index);
      let found = limit;
      if (shard !== undefined) {
        shard.locate(block, limit);
        found = shard.foundBlocks;
        if (shard.foundWord0 !== 0) {
          const segment = this.#segmentOf(shard, (shard.foundWord0 >>> 16) - 1);
          const offset = (shard.foundWord1 & OFFSET_MASK) * FRAME_ALIGN_BYTES;
          this.#reader.prefetch(segment, offset, found * RAW_FRAME_BYTES);
        }
      }
      lba += found;
      blocks -= found;
    }
  }

  /** Looks at the overlay anew when the shard is there: what was dirty may be in the map by then, or the reverse. */
  async #loadThenRead(index: number, lba: number, blocks: number, target: Buffer, at: number): Promise<void> {
    await this.#map.whileLoaded(index, () => this.read(lba, blocks, target, at));
  }

  #readShard(
    shard: MapShard,
    block: number,
    blocks: number,
    target: Buffer,
    at: number,
    pending: Promise<void>[] | undefined,
  ): Promise<void>[] | undefined {
    const base = shard.index * SHARD_BLOCKS;
    while (blocks > 0) {
      shard.locate(block, blocks);
      const { foundBlocks, foundWord0, foundWord1 } = shard;
      if (foundWord0 === 0) target.fill(0, at, at + foundBlocks * BLOCK_BYTES);
      else {
        const waiting = this.#readRun(shard, base + block, foundBlocks, target, at, foundWord0, foundWord1);
        if (waiting !== undefined) (pending ??= []).push(waiting);
      }
      block += foundBlocks;
      blocks -= foundBlocks;
      at += foundBlocks * BLOCK_BYTES;
    }
    return pending;
  }

  /** One run of raw frames of one segment. */
  #readRun(
    shard: MapShard,
    lba: number,
    blocks: number,
    target: Buffer,
    at: number,
    word0: number,
    word1: number,
  ): Promise<void> | undefined {
    if ((word0 & ENCODED_FLAG) !== 0) {
      const message = "the block is stored compressed, which this version cannot read: upgrade s3block";
      return Promise.reject(new OperationError("corrupt", message, { context: { lba } }));
    }
    const segment = this.#segmentOf(shard, (word0 >>> 16) - 1);
    const unit = word1 & OFFSET_MASK;
    if (blocks === 1 && this.#hot.read(segment.number, unit, target, at)) return undefined;
    const offset = unit * FRAME_ALIGN_BYTES;
    for (let done = 0; done < blocks;) {
      const count = blocks - done < BATCH_FRAMES ? blocks - done : BATCH_FRAMES;
      const frames = count === 1 ? oneFrame : scratch.subarray(0, count * RAW_FRAME_BYTES);
      const frameOffset = offset + done * RAW_FRAME_BYTES;
      if (!this.#reader.readFrameSync(segment, frameOffset, frames)) {
        return this.#fetch(segment, frameOffset, lba + done, blocks - done, target, at + done * BLOCK_BYTES);
      }
      const intact =
        count === 1
          ? copyOne(segment.seed, lba + done, target, at + done * BLOCK_BYTES)
          : copyFrames(frames, segment.seed, lba + done, count, target, at + done * BLOCK_BYTES);
      if (!intact) {
        return this.#refetch(segment, frameOffset, lba + done, blocks - done, target, at + done * BLOCK_BYTES);
      }
      done += count;
    }
    if (blocks === 1) this.#hot.offer(segment.number, unit, target, at);
    return undefined;
  }

  async #fetch(
    segment: StoredSegment,
    offset: number,
    lba: number,
    blocks: number,
    target: Buffer,
    at: number,
  ): Promise<void> {
    const frames = await this.#reader.fetch(segment, offset, blocks * RAW_FRAME_BYTES);
    if (copyFrames(frames, segment.seed, lba, blocks, target, at)) {
      if (blocks === 1) this.#hot.offer(segment.number, offset / FRAME_ALIGN_BYTES, target, at);
      return;
    }
    await this.#refetch(segment, offset, lba, blocks, target, at);
  }

  async #refetch(
    segment: StoredSegment,
    offset: number,
    lba: number,
    blocks: number,
    target: Buffer,
    at: number,
  ): Promise<void> {
    const isRight = (frames: Buffer): boolean => copyFrames(frames, segment.seed, lba, blocks, target, at);
    const frames = await this.#reader.refetch(segment, offset, blocks * RAW_FRAME_BYTES, isRight);
    if (isRight(frames)) return;
    throw new OperationError(
      "corrupt",
      "a stored block fails its checksum: restore the object, or the volume from a snapshot",
      {
        context: { key: segment.key, offset, lba, blocks },
      },
    );
  }

  #segmentOf(shard: MapShard, source: number): StoredSegment {
    const known = shard.segments[source];
    if (known !== undefined) return known;
    const segment = storedSegment(this.#uid, shard.sources.epoch[source], shard.sources.sequence[source]);
    shard.segments[source] = segment;
    return segment;
  }
}

/** copyFrames for the one frame that random reads of one block have: it stands in `oneFrame`. */
function copyOne(seed: number, lba: number, target: Buffer, at: number): boolean {
  if (!isIntactRawFrame(oneFrame, 0, lba, seed, oneSealed)) return false;
  oneFrame.copy(target, at, FRAME_HEADER_BYTES, RAW_FRAME_BYTES);
  return true;
}

/** Copies the payloads of raw frames to `target`; false where one of them is not the intact frame of its block. */
function copyFrames(frames: Buffer, seed: number, lba: number, blocks: number, target: Buffer, at: number): boolean {
  for (let index = 0; index < blocks; index += 1) {
    const from = index * RAW_FRAME_BYTES;
    if (!isIntactRawFrame(frames, from, lba + index, seed)) return false;
    frames.copy(target, at + index * BLOCK_BYTES, from + FRAME_HEADER_BYTES, from + RAW_FRAME_BYTES);
  }
  return true;
}

function copyPayloads(frames: Buffer, blocks: number, target: Buffer, at: number): void {
  for (let index = 0; index < blocks; index += 1) {
    const from = index * RAW_FRAME_BYTES + FRAME_HEADER_BYTES;
    frames.copy(target, at + index * BLOCK_BYTES, from, from + BLOCK_BYTES);
  }
}

/** Waits for all, also after one has failed: nothing may still write into the target when the caller hears of it. */
async function allSettled(pending: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(pending)) if (result.status === "rejected") throw result.reason;
}
