/**
 * Blocks that are read often, in memory: the verified payloads of single blocks that the block cache's file has
 * answered, so that the next read of one costs neither a system call nor a checksum (decision 0106 has the figures).
 *
 * Its memory is what uploads do not use at the moment (upload-budget.ts): regions come and go, and with one all blocks
 * in it. In every region a block has one place, so that as many blocks that meet in a place are kept as there are
 * regions. An empty place takes whoever comes. Where all are taken, who is offered again and again gets in: one offer of
 * four displaces another block, and what was read since the last look at it is spared once. Long reads are not offered,
 * so that they flush nothing.
 *
 * Nothing here goes stale: a block is known by its place in an immutable object, never by its address on the disk.
 */
import { BLOCK_BYTES } from "./identity.ts";
import type { Borrower, UploadBudget } from "./upload-budget.ts";

const MAX_REGIONS = 8;
/** One offer of so many displaces another block: a power of two. */
const OFFERS = 4;
/** So many offers pass before memory is asked for again. */
const BORROW_OFFERS = 64;
/** Frames begin at one of so many places of an object. */
const UNITS = 2 ** 22;

interface Region {
  readonly buffer: Buffer;
  /** What stands in each place: object number × UNITS + unit; 0 = nothing. */
  readonly keys: Float64Array;
  /** 1 where it was read since the last look. */
  readonly reads: Uint8Array;
}

export class HotBlocks implements Borrower {
  /** Reads answered. */
  hits = 0;
  readonly #budget: UploadBudget;
  readonly #places: number;
  readonly #regions: Region[] = [];
  #offers = 0;
  #next = 0;

  constructor(budget: UploadBudget) {
    this.#budget = budget;
    this.#places = Math.floor(budget.largeBytes / BLOCK_BYTES);
  }

  /** Copies the block at `unit` of object number `object` to `target`; false where it is not here. */
  read(object: number, unit: number, target: Buffer, at: number): boolean {
    const regions = this.#regions;
    if (regions.length === 0) return false;
    const key = object * UNITS + unit;
    const place = this.#placeOf(object, unit);
    for (let index = 0; index < regions.length; index += 1) {
      const region = regions[index];
      if (region.keys[place] !== key) continue;
      region.reads[place] = 1;
      region.buffer.copy(target, at, place * BLOCK_BYTES, (place + 1) * BLOCK_BYTES);
      this.hits += 1;
      return true;
    }
    return false;
  }

  /** Offers a block that was read from the disk and verified; it stands at `at` of `source`. */
  offer(object: number, unit: number, source: Buffer, at: number): void {
    const offers = (this.#offers += 1);
    if (offers % BORROW_OFFERS === 0 && this.#regions.length < MAX_REGIONS) this.#grow();
    const place = this.#placeOf(object, unit);
    const region = this.#empty(place) ?? (offers % OFFERS === 0 ? this.#victim(place) : undefined);
    if (region === undefined) return;
    source.copy(region.buffer, place * BLOCK_BYTES, at, at + BLOCK_BYTES);
    region.keys[place] = object * UNITS + unit;
    region.reads[place] = 0;
  }

  giveBack(): Buffer | undefined {
    return this.#regions.pop()?.buffer;
  }

  #grow(): void {
    const buffer = this.#budget.borrow(this);
    if (buffer === undefined) return;
    this.#regions.push({ buffer, keys: new Float64Array(this.#places), reads: new Uint8Array(this.#places) });
  }

  #empty(place: number): Region | undefined {
    const regions = this.#regions;
    for (let index = 0; index < regions.length; index += 1) if (regions[index].keys[place] === 0) return regions[index];
    return undefined;
  }

  /** The region whose block in `place` goes: in turn, sparing once who was read. */
  #victim(place: number): Region | undefined {
    const regions = this.#regions;
    for (let left = regions.length; left > 0; left -= 1) {
      this.#next = this.#next + 1 < regions.length ? this.#next + 1 : 0;
      const region = regions[this.#next];
      if (region.reads[place] === 0) return region;
      region.reads[place] = 0;
    }
    return undefined;
  }

  #placeOf(object: number, unit: number): number {
    let mixed = Math.imul(object, 0x9e3779b1) ^ Math.imul(unit, 0x85ebca6b);
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0xc2b2ae35);
    return ((mixed ^ (mixed >>> 13)) >>> 0) % this.#places;
  }
}
