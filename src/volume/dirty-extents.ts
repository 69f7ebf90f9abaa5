/**
 * The overlay: which blocks were written since the map knows better, and where their newest version stands in the
 * journal. Extents never overlap and are kept sorted by block in chunks of typed arrays: no object per extent.
 *
 * The value of an extent is a journal position: positive = data, the position of the first block's raw frame, the
 * following blocks at RAW_FRAME_BYTES each; negative = zeroes, minus the position of the record that wrote them.
 * Positions grow with time, so "older than position p" can be told from the value alone.
 *
 * insert is O(log n) plus a move within one chunk; memory is about 20 bytes an extent at three quarters fill.
 */
import { assert } from "../base/assert.ts";
import { RAW_FRAME_BYTES } from "./format/frame.ts";

const CHUNK_EXTENTS = 256;

class Chunk {
  count = 0;
  readonly start = new Float64Array(CHUNK_EXTENTS);
  readonly blocks = new Uint32Array(CHUNK_EXTENTS);
  readonly value = new Float64Array(CHUNK_EXTENTS);

  /** Index of the first extent that starts after `lba`. */
  upperBound(lba: number): number {
    let low = 0;
    let high = this.count;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.start[middle] <= lba) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  insertAt(index: number, start: number, blocks: number, value: number): void {
    if (index < this.count) {
      this.start.copyWithin(index + 1, index, this.count);
      this.blocks.copyWithin(index + 1, index, this.count);
      this.value.copyWithin(index + 1, index, this.count);
    }
    this.start[index] = start;
    this.blocks[index] = blocks;
    this.value[index] = value;
    this.count += 1;
  }

  removeAt(index: number, howMany: number): void {
    this.start.copyWithin(index, index + howMany, this.count);
    this.blocks.copyWithin(index, index + howMany, this.count);
    this.value.copyWithin(index, index + howMany, this.count);
    this.count -= howMany;
  }
}

export class DirtyExtents {
  /** Result of locate(): blocks until the answer changes, and the value at the block asked for (0 = not here). */
  foundBlocks = 0;
  foundValue = 0;
  #chunks: Chunk[] = [new Chunk()];
  /** start[0] of each chunk but the first, side by side: a search from chunk to chunk took 5 % of a random read. */
  #firsts = new Float64Array(64);
  #count = 0;

  /** Number of extents held. */
  get count(): number {
    return this.#count;
  }

  /** Looks at `lba`: sets foundValue (0 where no extent covers it) and foundBlocks (at most `limit`). */
  locate(lba: number, limit: number): void {
    let chunkIndex = this.#chunkOf(lba);
    const chunk = this.#chunks[chunkIndex];
    const index = chunk.upperBound(lba);
    if (index > 0) {
      const start = chunk.start[index - 1];
      const rest = start + chunk.blocks[index - 1] - lba;
      if (rest > 0) {
        this.foundValue = advance(chunk.value[index - 1], lba - start);
        this.foundBlocks = rest < limit ? rest : limit;
        return;
      }
    }
    let next = Number.POSITIVE_INFINITY;
    if (index < chunk.count) next = chunk.start[index];
    else if (chunkIndex + 1 < this.#chunks.length) next = this.#chunks[(chunkIndex += 1)].start[0];
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
    for (const chunk of this.#chunks) {
      for (let index = 0; index < chunk.count; index += 1) {
        visit(chunk.start[index], chunk.blocks[index], chunk.value[index]);
      }
    }
  }

  /** Index of the chunk that holds the last extent starting at or before `lba` (0 where there is none). */
  #chunkOf(lba: number): number {
    const firsts = this.#firsts;
    let low = 1;
    let high = this.#chunks.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (firsts[middle] <= lba) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  #add(lba: number, blocks: number, value: number): void {
    let chunkIndex = this.#chunkOf(lba);
    if (this.#chunks[chunkIndex].count === CHUNK_EXTENTS) {
      this.#split(chunkIndex);
      if (lba >= this.#firsts[chunkIndex + 1]) chunkIndex += 1;
    }
    const chunk = this.#chunks[chunkIndex];
    chunk.insertAt(chunk.upperBound(lba), lba, blocks, value);
    this.#count += 1;
  }

  /** Halves a full chunk; where it is the last one and grows at its end, leaves it full and opens a new one's worth. */
  #split(chunkIndex: number): void {
    const chunk = this.#chunks[chunkIndex];
    const keep = chunkIndex === this.#chunks.length - 1 ? CHUNK_EXTENTS - 16 : CHUNK_EXTENTS / 2;
    const upper = new Chunk();
    upper.start.set(chunk.start.subarray(keep));
    upper.blocks.set(chunk.blocks.subarray(keep));
    upper.value.set(chunk.value.subarray(keep));
    upper.count = CHUNK_EXTENTS - keep;
    chunk.count = keep;
    const chunks = this.#chunks.length;
    if (chunks === this.#firsts.length) {
      const firsts = new Float64Array(chunks * 2);
      firsts.set(this.#firsts);
      this.#firsts = firsts;
    }
    this.#firsts.copyWithin(chunkIndex + 2, chunkIndex + 1, chunks);
    this.#firsts[chunkIndex + 1] = upper.start[0];
    this.#chunks.splice(chunkIndex + 1, 0, upper);
  }

  /** Removes the parts of [lba, end) whose position is below `before`, cutting extents at the range's ends. */
  #clear(lba: number, blocks: number, before: number): void {
    const end = lba + blocks;
    let chunkIndex = this.#chunkOf(lba);
    let index = this.#chunks[chunkIndex].upperBound(lba);
    if (index > 0) index -= 1;
    for (;;) {
      const chunk = this.#chunks[chunkIndex];
      if (index >= chunk.count) {
        if (chunkIndex + 1 >= this.#chunks.length) return;
        chunkIndex += 1;
        index = 0;
        continue;
      }
      const start = chunk.start[index];
      if (start >= end) return;
      const stop = start + chunk.blocks[index];
      const value = chunk.value[index];
      if (stop <= lba || Math.abs(value) >= before) {
        index += 1;
        continue;
      }
      if (start >= lba && stop <= end) {
        // Whole extents go in one move.
        let last = index + 1;
        while (
          last < chunk.count &&
          chunk.start[last] + chunk.blocks[last] <= end &&
          Math.abs(chunk.value[last]) < before
        ) {
          last += 1;
        }
        this.#count -= last - index;
        chunk.removeAt(index, last - index);
        this.#firsts[chunkIndex] = chunk.start[0];
        if (chunk.count === 0 && this.#chunks.length > 1) {
          this.#firsts.copyWithin(chunkIndex, chunkIndex + 1, this.#chunks.length);
          this.#chunks.splice(chunkIndex, 1);
          if (chunkIndex >= this.#chunks.length) return;
          index = 0;
        }
        continue;
      }
      if (start < lba) {
        chunk.blocks[index] = lba - start;
        if (stop > end) {
          this.#add(end, stop - end, advance(value, end - start));
          return;
        }
        index += 1;
        continue;
      }
      chunk.start[index] = end;
      if (index === 0) this.#firsts[chunkIndex] = end;
      chunk.blocks[index] = stop - end;
      chunk.value[index] = advance(value, end - start);
      return;
    }
  }
}

/** The value of the block `blocks` after the one that has `value`. */
function advance(value: number, blocks: number): number {
  return value > 0 ? value + blocks * RAW_FRAME_BYTES : value;
}
