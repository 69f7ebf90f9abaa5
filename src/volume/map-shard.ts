/**
 * One shard of the map: where the newest stored version of each of its 32,768 blocks (128 MiB) stands in S3.
 *
 * An entry is the two 32-bit words of a map page (format/map-page.ts); word0 = 0 is a hole. A source is a segment:
 * (lineage, epoch, sequence).
 *
 * Two forms, both without an object per block: sorted runs (12 bytes each) while they are few, else a flat array
 * (8 bytes a block, 256 KiB). Runs never overlap and never hold holes.
 */
import { assert } from "../base/assert.ts";
import { MapPageRuns, SHARD_BLOCKS, word1Step } from "./format/map-page.ts";
import { ObjectReferences } from "./format/object-references.ts";
import type { StoredSegment } from "./stored-segment.ts";

const MAX_RUNS = 4096;
const MAX_SOURCES = 65_000;

export class MapShard {
  readonly index: number;
  sources = new ObjectReferences();
  /** Per source: the segment as readers need it, made when it is first read. */
  segments: (StoredSegment | undefined)[] = [];
  /** Changed since it was last written to a map object. */
  dirty = false;
  /** Its page is on the way to S3: it must not be dropped, because the directory still names the old page. */
  writing = false;
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
    const { sources } = this;
    for (let index = sources.count - 1; index >= 0 && index >= sources.count - 4; index -= 1) {
      if (
        sources.sequence[index] === sequence &&
        sources.epoch[index] === epoch &&
        sources.lineage[index] === lineage
      ) {
        return index;
      }
    }
    return sources.push({ lineage, epoch, sequence });
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
    const oldSegments = this.segments;
    const renumbered = new Uint32Array(old.count);
    const kept = new ObjectReferences();
    const segments: (StoredSegment | undefined)[] = [];
    const renumber = (words: Uint32Array, count: number, stride: number): void => {
      for (let index = 0; index < count; index += 1) {
        const word0 = words[index * stride];
        if (word0 === 0) continue;
        const source = (word0 >>> 16) - 1;
        if (renumbered[source] === 0) {
          const row = { lineage: old.lineage[source], epoch: old.epoch[source], sequence: old.sequence[source] };
          const added = kept.push(row);
          segments[added] = oldSegments[source];
          renumbered[source] = added + 1;
        }
        words[index * stride] = ((renumbered[source] << 16) | (word0 & 0xffff)) >>> 0;
      }
    };
    if (this.#flat === undefined) renumber(this.#word0, this.#runs, 1);
    else renumber(this.#flat, SHARD_BLOCKS, 2);
    this.sources = kept;
    this.segments = segments;
  }

  /** Everything that the shard's page holds, with dead sources dropped. */
  toPage(): { sources: ObjectReferences; runs: MapPageRuns } {
    this.tidySources();
    const runs = new MapPageRuns(Math.max(16, this.#runs));
    this.forEachRun((block, blocks, word0, word1) => runs.push(block, blocks, word0, word1));
    return { sources: this.sources, runs };
  }

  /** A shard as its page describes it, clean. */
  static fromPage(index: number, page: { sources: ObjectReferences; runs: MapPageRuns }): MapShard {
    const shard = new MapShard(index);
    shard.sources = page.sources;
    const { runs } = page;
    for (let run = 0; run < runs.count; run += 1) {
      shard.set(runs.start[run], runs.blockCount[run], runs.word0[run], runs.word1[run]);
    }
    shard.dirty = false;
    return shard;
  }

  #locateFlat(flat: Uint32Array, block: number, limit: number): void {
    const word0 = flat[block * 2];
    const word1 = flat[block * 2 + 1];
    const end = block + limit < SHARD_BLOCKS ? block + limit : SHARD_BLOCKS;
    const step = word0 === 0 ? 0 : word1Step(word0);
    let next = block + 1;
    let expected = word1 + step;
    while (next < end && flat[next * 2] === word0 && flat[next * 2 + 1] === expected && isSameFrame(word1, expected)) {
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
  return word1 + word1Step(word0) * blocks;
}

/** Whether two entries of an encoded frame's run can belong together: its block number must not have overflowed. */
function isSameFrame(first: number, next: number): boolean {
  return next >>> 26 === first >>> 26;
}

function fillFlat(flat: Uint32Array, block: number, blocks: number, word0: number, word1: number): void {
  const step = word0 === 0 ? 0 : word1Step(word0);
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
