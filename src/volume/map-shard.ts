/**
 * One shard of the map: where the newest stored version of each of its 32,768 blocks (128 MiB) stands in S3.
 *
 * An entry is two 32-bit words (docs/format.md, map page): word0 = source index + 1 (bits 16 … 31, 0 = hole), encoded
 * flag (bit 13), stored length in 16-byte units (bits 0 … 12); word1 = frame offset in 16-byte units (bits 0 … 21),
 * block in frame (bits 22 … 25). A source is a segment: (lineage, epoch, sequence).
 *
 * Two forms, both without an object per block: sorted runs (12 bytes each) while they are few, else a flat array
 * (8 bytes a block, 256 KiB). Runs never overlap and never hold holes.
 */
import { assert } from "../base/assert.ts";
import { RAW_FRAME_BYTES, FRAME_ALIGN_BYTES } from "./format/frame.ts";

export const SHARD_BLOCKS = 32_768;
export const RAW_FRAME_UNITS = RAW_FRAME_BYTES / FRAME_ALIGN_BYTES;
export const ENCODED_FLAG = 1 << 13;
const MAX_RUNS = 4096;
const MAX_SOURCES = 65_000;

/** The segments that a shard's entries name. */
export class MapSources {
  count = 0;
  lineage = new Uint16Array(4);
  epoch = new Float64Array(4);
  sequence = new Float64Array(4);
  /** The block cache's number for the object, -1 until it was asked for. */
  handle = new Int32Array(4).fill(-1);

  push(lineage: number, epoch: number, sequence: number): number {
    if (this.count === this.lineage.length) this.#grow();
    this.lineage[this.count] = lineage;
    this.epoch[this.count] = epoch;
    this.sequence[this.count] = sequence;
    this.handle[this.count] = -1;
    return this.count++;
  }

  /** Index of the source, added where it is new; looks at the newest first. */
  indexOf(lineage: number, epoch: number, sequence: number): number {
    for (let index = this.count - 1; index >= 0 && index >= this.count - 4; index -= 1) {
      if (this.sequence[index] === sequence && this.epoch[index] === epoch && this.lineage[index] === lineage) return index;
    }
    return this.push(lineage, epoch, sequence);
  }

  #grow(): void {
    const size = this.count * 2;
    this.lineage = copyOf(new Uint16Array(size), this.lineage);
    this.epoch = copyOf(new Float64Array(size), this.epoch);
    this.sequence = copyOf(new Float64Array(size), this.sequence);
    this.handle = copyOf(new Int32Array(size), this.handle);
  }
}

export class MapShard {
  readonly index: number;
  sources = new MapSources();
  /** Changed since it was last written to a map object. */
  dirty = false;
  /** Turn of the last use, for eviction. */
  lastUsed = 0;
  /** Result of locate(): the entry (word0 = 0 for a hole) and the number of blocks it holds for. */
  foundWord0 = 0;
  foundWord1 = 0;
  foundBlocks = 0;

  #runs = 0;
  #start = new Uint16Array(8);
  #last = new Uint16Array(8);
  #word0 = new Uint32Array(8);
  #word1 = new Uint32Array(8);
  /** 2 words a block; once there, the run arrays are empty. */
  #flat: Uint32Array | undefined;

  constructor(index: number) {
    this.index = index;
  }

  /** Bytes this shard takes in memory. */
  memoryBytes(): number {
    const body = this.#flat === undefined ? this.#start.length * 12 : SHARD_BLOCKS * 8;
    return 200 + body + this.sources.lineage.length * 22;
  }

  /** True where no block is mapped. A flat shard is not searched: it answers false. */
  isEmpty(): boolean {
    return this.#flat === undefined && this.#runs === 0;
  }

  /** Looks at `block` (0 … SHARD_BLOCKS − 1): sets foundWord0, foundWord1 and foundBlocks (at most `limit`). */
  locate(block: number, limit: number): void {
    if (this.#flat !== undefined) {
      this.#locateFlat(this.#flat, block, limit);
      return;
    }
    const index = this.#upperBound(block);
    if (index > 0 && this.#last[index - 1] >= block) {
      const start = this.#start[index - 1];
      this.foundWord0 = this.#word0[index - 1];
      this.foundWord1 = advanceWord1(this.foundWord0, this.#word1[index - 1], block - start);
      const rest = this.#last[index - 1] + 1 - block;
      this.foundBlocks = rest < limit ? rest : limit;
      return;
    }
    const next = index < this.#runs ? this.#start[index] : SHARD_BLOCKS;
    this.foundWord0 = 0;
    this.foundWord1 = 0;
    this.foundBlocks = next - block < limit ? next - block : limit;
  }

  /** Maps `blocks` blocks from `block` to a run that begins with the entry (word0, word1); word0 = 0 makes a hole. */
  set(block: number, blocks: number, word0: number, word1: number): void {
    assert(block >= 0 && blocks > 0 && block + blocks <= SHARD_BLOCKS, "a run lies inside its shard");
    this.dirty = true;
    if (blocks === SHARD_BLOCKS) {
      this.#flat = undefined;
      this.#runs = 0;
      this.#start = new Uint16Array(8);
      this.#last = new Uint16Array(8);
      this.#word0 = new Uint32Array(8);
      this.#word1 = new Uint32Array(8);
    }
    if (this.#flat !== undefined) {
      fillFlat(this.#flat, block, blocks, word0, word1);
      return;
    }
    this.#clearRuns(block, block + blocks - 1);
    if (word0 === 0) return;
    this.#insertRun(this.#upperBound(block), block, block + blocks - 1, word0, word1);
    if (this.#runs > MAX_RUNS) this.#flatten();
  }

  /** Source index for new entries; tidies the table first when it has grown full of dead sources. */
  sourceIndex(lineage: number, epoch: number, sequence: number): number {
    if (this.sources.count >= MAX_SOURCES) this.tidySources();
    return this.sources.indexOf(lineage, epoch, sequence);
  }

  /** Calls `visit` for every run in block order. */
  forEachRun(visit: (block: number, blocks: number, word0: number, word1: number) => void): void {
    if (this.#flat === undefined) {
      for (let index = 0; index < this.#runs; index += 1) {
        visit(this.#start[index], this.#last[index] - this.#start[index] + 1, this.#word0[index], this.#word1[index]);
      }
      return;
    }
    for (let block = 0; block < SHARD_BLOCKS; block += this.foundBlocks) {
      this.#locateFlat(this.#flat, block, SHARD_BLOCKS - block);
      if (this.foundWord0 !== 0) visit(block, this.foundBlocks, this.foundWord0, this.foundWord1);
    }
  }

  /** Drops the sources that no entry names any more and renumbers the rest. */
  tidySources(): void {
    const old = this.sources;
    const renumbered = new Uint32Array(old.count);
    const kept = new MapSources();
    const renumber = (words: Uint32Array, count: number, stride: number): void => {
      for (let index = 0; index < count; index += 1) {
        const word0 = words[index * stride];
        if (word0 === 0) continue;
        const source = (word0 >>> 16) - 1;
        if (renumbered[source] === 0) {
          const added = kept.push(old.lineage[source], old.epoch[source], old.sequence[source]);
          kept.handle[added] = old.handle[source];
          renumbered[source] = added + 1;
        }
        words[index * stride] = ((renumbered[source] << 16) | (word0 & 0xffff)) >>> 0;
      }
    };
    if (this.#flat === undefined) renumber(this.#word0, this.#runs, 1);
    else renumber(this.#flat, SHARD_BLOCKS, 2);
    this.sources = kept;
  }

  #locateFlat(flat: Uint32Array, block: number, limit: number): void {
    const word0 = flat[block * 2];
    const word1 = flat[block * 2 + 1];
    const end = block + limit < SHARD_BLOCKS ? block + limit : SHARD_BLOCKS;
    const step = word0 === 0 ? 0 : stepOf(word0);
    let next = block + 1;
    let expected = word1 + step;
    while (next < end && flat[next * 2] === word0 && flat[next * 2 + 1] === expected && isSameFrame(word0, word1, expected)) {
      next += 1;
      expected += step;
    }
    this.foundWord0 = word0;
    this.foundWord1 = word1;
    this.foundBlocks = next - block;
  }

  #upperBound(block: number): number {
    let low = 0;
    let high = this.#runs;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#start[middle] <= block) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #insertRun(index: number, start: number, last: number, word0: number, word1: number): void {
    if (this.#runs === this.#start.length) {
      const size = this.#runs * 2;
      this.#start = copyOf(new Uint16Array(size), this.#start);
      this.#last = copyOf(new Uint16Array(size), this.#last);
      this.#word0 = copyOf(new Uint32Array(size), this.#word0);
      this.#word1 = copyOf(new Uint32Array(size), this.#word1);
    }
    this.#move(index + 1, index);
    this.#start[index] = start;
    this.#last[index] = last;
    this.#word0[index] = word0;
    this.#word1[index] = word1;
    this.#runs += 1;
  }

  #move(to: number, from: number): void {
    this.#start.copyWithin(to, from, this.#runs);
    this.#last.copyWithin(to, from, this.#runs);
    this.#word0.copyWithin(to, from, this.#runs);
    this.#word1.copyWithin(to, from, this.#runs);
  }

  #clearRuns(first: number, last: number): void {
    let index = this.#upperBound(first);
    if (index > 0 && this.#last[index - 1] >= first) index -= 1;
    if (index >= this.#runs || this.#start[index] > last) return;
    if (this.#start[index] < first) {
      const oldLast = this.#last[index];
      this.#last[index] = first - 1;
      if (oldLast > last) {
        const cut = last + 1 - this.#start[index];
        const word0 = this.#word0[index];
        this.#insertRun(index + 1, last + 1, oldLast, word0, advanceWord1(word0, this.#word1[index], cut));
        return;
      }
      index += 1;
    }
    let stop = index;
    while (stop < this.#runs && this.#last[stop] <= last) stop += 1;
    if (stop < this.#runs && this.#start[stop] <= last) {
      const cut = last + 1 - this.#start[stop];
      this.#word1[stop] = advanceWord1(this.#word0[stop], this.#word1[stop], cut);
      this.#start[stop] = last + 1;
    }
    if (stop > index) {
      this.#move(index, stop);
      this.#runs -= stop - index;
    }
  }

  #flatten(): void {
    const flat = new Uint32Array(SHARD_BLOCKS * 2);
    this.forEachRun((block, blocks, word0, word1) => fillFlat(flat, block, blocks, word0, word1));
    this.#flat = flat;
    this.#runs = 0;
    this.#start = new Uint16Array(8);
    this.#last = new Uint16Array(8);
    this.#word0 = new Uint32Array(8);
    this.#word1 = new Uint32Array(8);
  }
}

/** word1 of the block `blocks` after one whose entry is (word0, word1). */
export function advanceWord1(word0: number, word1: number, blocks: number): number {
  return word1 + stepOf(word0) * blocks;
}

/** What word1 grows by from one block of a run to the next: the next raw frame, or the next block of one encoded frame. */
function stepOf(word0: number): number {
  return (word0 & ENCODED_FLAG) === 0 ? RAW_FRAME_UNITS : 1 << 22;
}

/** An encoded frame's block number must not overflow into the next frame's entries. */
function isSameFrame(word0: number, first: number, next: number): boolean {
  return (word0 & ENCODED_FLAG) === 0 || first >>> 26 === next >>> 26;
}

function fillFlat(flat: Uint32Array, block: number, blocks: number, word0: number, word1: number): void {
  const step = word0 === 0 ? 0 : stepOf(word0);
  let entry = word1;
  for (let at = block * 2; at < (block + blocks) * 2; at += 2) {
    flat[at] = word0;
    flat[at + 1] = entry;
    entry += step;
  }
}

function copyOf<T extends { set(from: T): void }>(to: T, from: T): T {
  to.set(from);
  return to;
}
