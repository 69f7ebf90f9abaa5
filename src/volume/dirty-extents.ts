/**
 * The overlay: which blocks were written since the map knows better, and where their newest version stands in the
 * journal. Extents never overlap and are kept sorted by block in chunks of 32: no object per extent or chunk, because
 * each of them would be a line more that a search has to fetch from memory (a search took 0.3 µs with chunks of 256 in
 * arrays of their own, 5 % of a random read).
 *
 * The value of an extent is a journal position: positive = data, the position of the first block's raw frame, the
 * following blocks at RAW_FRAME_BYTES each; negative = zeroes, minus the position of the record that wrote them.
 * Positions grow with time, so "older than position p" can be told from the value alone.
 *
 * insert is O(log n) plus a move within one chunk; memory is about 28 bytes an extent at three quarters fill,
 * up to twice that after it has grown, until nothing is held any more.
 */
import { assert } from "../base/assert.ts";
import { RAW_FRAME_BYTES } from "./format/frame.ts";

const CHUNK_EXTENTS = 32;
/** Of a chunk that is split at the end of all: so many go on, for writers who move forwards leave full chunks behind. */
const TAIL_EXTENTS = 4;
const FIRST_CHUNKS = 16;

export class DirtyExtents {
  /** Result of locate(): blocks until the answer changes, and the value at the block asked for (0 = not here). */
  foundBlocks = 0;
  foundValue = 0;
  /* Extents: a chunk has CHUNK_EXTENTS places side by side, the first #used of them taken. */
  #start = new Float64Array(FIRST_CHUNKS * CHUNK_EXTENTS);
  #blocks = new Uint32Array(FIRST_CHUNKS * CHUNK_EXTENTS);
  #value = new Float64Array(FIRST_CHUNKS * CHUNK_EXTENTS);
  #used = new Uint8Array(FIRST_CHUNKS);
  /* Chunks in the order of their blocks: number, and start of the first extent (of the first chunk: anything). */
  #chunks = new Uint32Array(FIRST_CHUNKS);
  #firsts = new Float64Array(FIRST_CHUNKS);
  #chunkCount = 1;
  /** Numbers of chunks that were given up; those from #freshChunk on have never been used. */
  readonly #freeChunks: number[] = [];
  #freshChunk = 1;
  #count = 0;

  /** Number of extents held. */
  get count(): number {
    return this.#count;
  }

  /** Looks at `lba`: sets foundValue (0 where no extent covers it) and foundBlocks (at most `limit`). */
  locate(lba: number, limit: number): void {
    const order = this.#orderOf(lba);
    const chunk = this.#chunks[order];
    const from = chunk * CHUNK_EXTENTS;
    const to = from + this.#used[chunk];
    const at = this.#upperBound(from, to, lba);
    if (at > from) {
      const start = this.#start[at - 1];
      const rest = start + this.#blocks[at - 1] - lba;
      if (rest > 0) {
        this.foundValue = advance(this.#value[at - 1], lba - start);
        this.foundBlocks = rest < limit ? rest : limit;
        return;
      }
    }
    let next = Number.POSITIVE_INFINITY;
    if (at < to) next = this.#start[at];
    else if (order + 1 < this.#chunkCount) next = this.#firsts[order + 1];
    this.foundValue = 0;
    this.foundBlocks = next - lba < limit ? next - lba : limit;
  }

  /** Sets [lba, lba + blocks) to `value`, over whatever was there. */
  insert(lba: number, blocks: number, value: number): void {
    assert(blocks > 0 && value !== 0, "an extent has blocks and a position");
    this.#clear(lba, blocks, Number.POSITIVE_INFINITY);
    this.#add(lba, blocks, value);
  }

  /** Drops the parts of [lba, lba + blocks) whose position is below `position`: the map holds them now. */
  removeBefore(lba: number, blocks: number, position: number): void {
    this.#clear(lba, blocks, position);
  }

  /** Calls `visit` for every extent in block order. */
  forEach(visit: (lba: number, blocks: number, value: number) => void): void {
    for (let order = 0; order < this.#chunkCount; order += 1) {
      const from = this.#chunks[order] * CHUNK_EXTENTS;
      const to = from + this.#used[this.#chunks[order]];
      for (let at = from; at < to; at += 1) visit(this.#start[at], this.#blocks[at], this.#value[at]);
    }
  }

  /** The place in #chunks of the one that holds the last extent starting at or before `lba` (0 where there is none). */
  #orderOf(lba: number): number {
    const firsts = this.#firsts;
    let low = 1;
    let high = this.#chunkCount;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (firsts[middle] <= lba) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  /** The first of the extents [low, high) that starts after `lba`. */
  #upperBound(low: number, high: number, lba: number): number {
    const starts = this.#start;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (starts[middle] <= lba) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #add(lba: number, blocks: number, value: number): void {
    let order = this.#orderOf(lba);
    if (this.#used[this.#chunks[order]] === CHUNK_EXTENTS) {
      this.#split(order);
      if (lba >= this.#firsts[order + 1]) order += 1;
    }
    const chunk = this.#chunks[order];
    const end = chunk * CHUNK_EXTENTS + this.#used[chunk];
    const at = this.#upperBound(chunk * CHUNK_EXTENTS, end, lba);
    this.#move(at + 1, at, end);
    this.#start[at] = lba;
    this.#blocks[at] = blocks;
    this.#value[at] = value;
    this.#used[chunk] += 1;
    this.#count += 1;
  }

  /** Moves the extents [from, end) so that they begin at `to`. */
  #move(to: number, from: number, end: number): void {
    if (from === end) return;
    this.#start.copyWithin(to, from, end);
    this.#blocks.copyWithin(to, from, end);
    this.#value.copyWithin(to, from, end);
  }

  /** Halves a full chunk; where it is the last one and grows at its end, leaves it full and opens a new one's worth. */
  #split(order: number): void {
    const isLast = order === this.#chunkCount - 1;
    const keep = isLast ? CHUNK_EXTENTS - TAIL_EXTENTS : CHUNK_EXTENTS / 2;
    const upper = this.#takeChunk();
    const lower = this.#chunks[order];
    this.#move(upper * CHUNK_EXTENTS, lower * CHUNK_EXTENTS + keep, (lower + 1) * CHUNK_EXTENTS);
    this.#used[upper] = CHUNK_EXTENTS - keep;
    this.#used[lower] = keep;
    this.#chunks.copyWithin(order + 2, order + 1, this.#chunkCount);
    this.#firsts.copyWithin(order + 2, order + 1, this.#chunkCount);
    this.#chunks[order + 1] = upper;
    this.#firsts[order + 1] = this.#start[upper * CHUNK_EXTENTS];
    this.#chunkCount += 1;
  }

  /** The number of an unused chunk; there is room for one more in the order too. */
  #takeChunk(): number {
    const free = this.#freeChunks.pop();
    if (free !== undefined) return free;
    if (this.#freshChunk === this.#used.length) this.#resize(this.#freshChunk * 2);
    this.#freshChunk += 1;
    return this.#freshChunk - 1;
  }

  /** Memory for so many chunks; what stands in the first ones stays. */
  #resize(chunks: number): void {
    this.#start = resized(new Float64Array(chunks * CHUNK_EXTENTS), this.#start);
    this.#blocks = resized(new Uint32Array(chunks * CHUNK_EXTENTS), this.#blocks);
    this.#value = resized(new Float64Array(chunks * CHUNK_EXTENTS), this.#value);
    this.#used = resized(new Uint8Array(chunks), this.#used);
    this.#chunks = resized(new Uint32Array(chunks), this.#chunks);
    this.#firsts = resized(new Float64Array(chunks), this.#firsts);
  }

  /** Takes the chunk, which is empty, out of the order; the only one stays. */
  #drop(order: number): void {
    this.#freeChunks.push(this.#chunks[order]);
    this.#chunks.copyWithin(order, order + 1, this.#chunkCount);
    this.#firsts.copyWithin(order, order + 1, this.#chunkCount);
    this.#chunkCount -= 1;
  }

  /** Gives the memory of a burst back: nothing is held any more. */
  #shrink(): void {
    if (this.#used.length === FIRST_CHUNKS) return;
    this.#resize(FIRST_CHUNKS);
    this.#chunks[0] = 0;
    this.#freeChunks.length = 0;
    this.#freshChunk = 1;
  }

  /** Removes the parts of [lba, end) whose position is below `before`, cutting extents at the range's ends. */
  #clear(lba: number, blocks: number, before: number): void {
    const end = lba + blocks;
    let order = this.#orderOf(lba);
    let chunk = this.#chunks[order];
    let from = chunk * CHUNK_EXTENTS;
    let at = this.#upperBound(from, from + this.#used[chunk], lba);
    if (at > from) at -= 1;
    for (;;) {
      if (at >= from + this.#used[chunk]) {
        if (order + 1 >= this.#chunkCount) return;
        order += 1;
        chunk = this.#chunks[order];
        from = chunk * CHUNK_EXTENTS;
        at = from;
        continue;
      }
      const start = this.#start[at];
      if (start >= end) return;
      const stop = start + this.#blocks[at];
      const value = this.#value[at];
      if (stop <= lba || Math.abs(value) >= before) {
        at += 1;
      } else if (start >= lba && stop <= end) {
        this.#removeWhole(order, at, end, before);
        if (this.#count === 0) return this.#shrink();
        if (this.#used[chunk] > 0) continue;
        this.#drop(order);
        if (order >= this.#chunkCount) return;
        chunk = this.#chunks[order];
        from = chunk * CHUNK_EXTENTS;
        at = from;
      } else if (start < lba) {
        this.#blocks[at] = lba - start;
        if (stop > end) {
          this.#add(end, stop - end, advance(value, end - start));
          return;
        }
        at += 1;
      } else {
        this.#start[at] = end;
        if (at === from) this.#firsts[order] = end;
        this.#blocks[at] = stop - end;
        this.#value[at] = advance(value, end - start);
        return;
      }
    }
  }

  /** Removes the extent at `at`, and those of its chunk behind it that go whole as well, in one move. */
  #removeWhole(order: number, at: number, end: number, before: number): void {
    const chunk = this.#chunks[order];
    const from = chunk * CHUNK_EXTENTS;
    const to = from + this.#used[chunk];
    let last = at + 1;
    while (last < to && this.#start[last] + this.#blocks[last] <= end && Math.abs(this.#value[last]) < before)
      last += 1;
    this.#move(at, last, to);
    this.#used[chunk] -= last - at;
    this.#count -= last - at;
    this.#firsts[order] = this.#start[from];
  }
}

function resized<T extends Float64Array | Uint32Array | Uint8Array>(to: T, from: T): T {
  to.set(from.subarray(0, to.length));
  return to;
}

/** The value of the block `blocks` after the one that has `value`. */
function advance(value: number, blocks: number): number {
  return value > 0 ? value + blocks * RAW_FRAME_BYTES : value;
}
