/**
 * A generation: the writes that become one segment, from the moment the first of them is journaled until the segment
 * is in the map. It is a list of (block, count, journal position) in the order of writing, in typed arrays; overwritten
 * blocks are left out when the segment is built, which keeps the segment one atomic step of history.
 */
import type { Clock } from "../base/clock.ts";
import { DirtyExtents } from "./dirty-extents.ts";
import { journalFrameSeed, RAW_FRAME_BYTES, resealRawFrame } from "./format/frame.ts";
import { EXTENT_RAW, EXTENT_ZERO, SegmentExtents, segmentHeadBytes } from "./format/segment.ts";
import { BLOCK_BYTES } from "./identity.ts";
import type { Journal } from "./journal.ts";

/** Data blocks of one segment at most: with head and frames below 32 MiB. */
export const MAX_SEGMENT_BLOCKS = 7936;
/** Writes of one generation at most, so that an index stays below 256 KiB. */
export const MAX_GENERATION_WRITES = 8192;
/** The largest segment: every block an extent of its own. */
export const MAX_SEGMENT_BYTES = segmentHeadBytes(MAX_GENERATION_WRITES) + MAX_SEGMENT_BLOCKS * RAW_FRAME_BYTES;
/** Blocks of one extent at most: trims next to each other can be larger than the index's 32 bits. */
const MAX_EXTENT_BLOCKS = 2 ** 31;
/** Frames copied before other work of the thread may run. */
const YIELD_FRAMES = 256;

export class Generation {
  /** Sequence of its log object; set when it is sealed. */
  sequence = 0;
  /** Monotonic time of its first write. */
  readonly openedMs: number;
  /** Journal position behind its last record, and that record's sequence. */
  endPosition = 0;
  journalEnd = 0;
  /** Blocks of data written, overwritten ones included. */
  dataBlocks = 0;
  writes = 0;
  /** Its object is in S3. */
  durable = false;
  /** What its object holds; set when it was built. */
  extents: SegmentExtents | undefined;
  #lba = new Float64Array(64);
  #blocks = new Uint32Array(64);
  #value = new Float64Array(64);

  constructor(openedMs: number) {
    this.openedMs = openedMs;
  }

  /** Adds a write: `value` is what Journal.append returned. */
  add(lba: number, blocks: number, value: number): void {
    if (this.writes === this.#lba.length) this.#grow();
    this.#lba[this.writes] = lba;
    this.#blocks[this.writes] = blocks;
    this.#value[this.writes] = value;
    this.writes += 1;
    if (value > 0) this.dataBlocks += blocks;
  }

  /** True where `blocks` more blocks of data would make the segment too large. */
  isFullFor(blocks: number): boolean {
    return this.writes >= MAX_GENERATION_WRITES / 2 || this.dataBlocks + blocks > MAX_SEGMENT_BLOCKS;
  }

  /** Works out what the object will hold: sorted by block, newest version of each, offsets final. */
  plan(): SegmentPlan {
    const newest = new DirtyExtents();
    for (let index = 0; index < this.writes; index += 1) {
      newest.insert(this.#lba[index], this.#blocks[index], this.#value[index]);
    }
    const plan = new SegmentPlan();
    newest.forEach((lba, blocks, value) => plan.add(lba, blocks, value));
    plan.finish();
    this.extents = plan.extents;
    return plan;
  }

  /** The list of writes is not needed once the segment was built. */
  dropWrites(): void {
    this.#lba = new Float64Array(0);
    this.#blocks = new Uint32Array(0);
    this.#value = new Float64Array(0);
  }

  #grow(): void {
    const size = this.writes * 2;
    const [lba, blocks, value] = [this.#lba, this.#blocks, this.#value];
    this.#lba = new Float64Array(size);
    this.#lba.set(lba);
    this.#blocks = new Uint32Array(size);
    this.#blocks.set(blocks);
    this.#value = new Float64Array(size);
    this.#value.set(value);
  }
}

/** A segment about to be built: its extents, and where in the journal each piece of data comes from. */
export class SegmentPlan {
  readonly extents = new SegmentExtents();
  /** Bytes of frames. */
  dataBytes = 0;
  headBytes = 0;
  #pieceLba: number[] = [];
  #pieceBlocks: number[] = [];
  #piecePosition: number[] = [];

  /** Called in block order. Neighbours of the same kind become one extent. */
  add(lba: number, blocks: number, value: number): void {
    const { extents } = this;
    const kind = value > 0 ? EXTENT_RAW : EXTENT_ZERO;
    const stored = value > 0 ? blocks * RAW_FRAME_BYTES : 0;
    const last = extents.count - 1;
    const isNext = last >= 0 && extents.kind[last] === kind && extents.lba[last] + extents.blockCount[last] === lba;
    if (isNext && extents.blockCount[last] + blocks <= MAX_EXTENT_BLOCKS) {
      extents.blockCount[last] += blocks;
      extents.storedLength[last] += stored;
    } else {
      extents.push(lba, blocks, kind, 0, kind === EXTENT_RAW ? this.dataBytes : 0, stored);
    }
    this.dataBytes += stored;
    if (value < 0) return;
    this.#pieceLba.push(lba);
    this.#pieceBlocks.push(blocks);
    this.#piecePosition.push(value);
  }

  /** All pieces are in: offsets count from the start of the object from now on. */
  finish(): void {
    this.headBytes = segmentHeadBytes(this.extents.count);
    for (let index = 0; index < this.extents.count; index += 1) {
      if (this.extents.kind[index] === EXTENT_RAW) this.extents.offset[index] += this.headBytes;
    }
  }

  /** Copies the frames from the journal to `target` from `headBytes` on, verified and sealed for the segment. */
  async copyFrames(journal: Journal, clock: Clock, target: Buffer, seed: number): Promise<void> {
    let at = this.headBytes;
    let sinceYield = 0;
    for (let piece = 0; piece < this.#pieceLba.length; piece += 1) {
      for (let done = 0; done < this.#pieceBlocks[piece];) {
        const count = Math.min(this.#pieceBlocks[piece] - done, YIELD_FRAMES);
        const position = this.#piecePosition[piece] + done * RAW_FRAME_BYTES;
        const lba = this.#pieceLba[piece] + done;
        if (!journal.readFrames(position, lba, count, target, at, false)) {
          // What was written next stands next, and is mostly needed next.
          await journal.warm(position, YIELD_FRAMES);
          journal.readFrames(position, lba, count, target, at);
        }
        for (let frame = 0; frame < count; frame += 1) {
          const oldSeed = journalFrameSeed(journal.frameSeed, position + frame * RAW_FRAME_BYTES);
          resealRawFrame(target, at + frame * RAW_FRAME_BYTES, oldSeed, seed);
        }
        at += count * RAW_FRAME_BYTES;
        done += count;
        sinceYield += count;
        if (sinceYield < YIELD_FRAMES) continue;
        sinceYield = 0;
        await clock.yield();
      }
    }
  }

  /** Bytes of data as users count them. */
  get blockBytes(): number {
    return (this.dataBytes / RAW_FRAME_BYTES) * BLOCK_BYTES;
  }
}
