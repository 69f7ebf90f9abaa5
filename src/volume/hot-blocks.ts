/**
 * Blocks that are read often, in memory: the verified payloads of single blocks that the block cache's file has
 * answered, so that the next read of one costs neither a system call nor a checksum (decision 0106 has the figures).
 *
 * Its memory is what uploads do not use at the moment (upload-budget.ts): regions come and go, and with one all blocks
 * in it. In every region a block has one place, so that as many blocks that meet in a place are kept as there are
 * regions. An empty place takes the first block that is offered for it. Where all are taken, who gets in has been offered
 * before, and since then no more others than there is room for: a block that comes back later would be gone by then. One
 * such offer of four displaces another block, and what was read since the last look at it is spared once. Long reads are
 * not offered, so that they flush nothing.
 *
 * Nothing here goes stale: a block is known by its place in an immutable object, never by its address on the disk.
 */
import { BLOCK_BYTES } from "./identity.ts";
import type { Borrower, UploadBudget } from "./upload-budget.ts";

const MAX_REGIONS = 8;
/** One second offer of so many displaces another block: a power of two. */
const OFFERS = 4;
/** So many offers pass before memory is asked for again. */
const BORROW_OFFERS = 64;
/** Frames begin at one of so many places of an object. */
const UNITS = 2 ** 22;

export class HotBlocks implements Borrower {
  /** Reads answered. */
  hits = 0;
  readonly #budget: UploadBudget;
  readonly #places: number;
  readonly #regions: Buffer[] = [];
  /** Regions that there can be at most. */
  readonly #width: number;
  /**
   * What stands in each place of the regions: object number × UNITS + unit; 0 = nothing. The keys of one place stand
   * together, `width` of them, so that a search costs one line of the processor's cache.
   */
  #keys = new Float64Array(0);
  /** 1 where it was read since the last look. */
  #reads = new Uint8Array(0);
  /** Marks of those that were offered for a place, `width` of them; 0 = nobody. */
  #seen = new Uint16Array(0);
  #offers = 0;
  /** The number of offers from which on memory is asked for. */
  #borrowFrom = BORROW_OFFERS;
  #secondOffers = 0;
  #next = 0;

  constructor(budget: UploadBudget) {
    this.#budget = budget;
    this.#places = Math.floor(budget.largeBytes / BLOCK_BYTES);
    this.#width = Math.min(MAX_REGIONS, budget.largeCount);
  }

  /** Copies the block at `unit` of object number `object` to `target`; false where it is not here. */
  read(object: number, unit: number, target: Buffer, at: number): boolean {
    const regions = this.#regions;
    if (regions.length === 0) return false;
    const key = object * UNITS + unit;
    const place = mixed(object, unit) % this.#places;
    const first = place * this.#width;
    const keys = this.#keys;
    for (let index = 0; index < regions.length; index += 1) {
      if (keys[first + index] !== key) continue;
      this.#reads[first + index] = 1;
      regions[index].copy(target, at, place * BLOCK_BYTES, (place + 1) * BLOCK_BYTES);
      this.hits += 1;
      return true;
    }
    return false;
  }

  /** Offers a block that was read from the disk and verified; it stands at `at` of `source`. */
  offer(object: number, unit: number, source: Buffer, at: number): void {
    this.#offers += 1;
    if (this.#offers >= this.#borrowFrom && this.#regions.length < this.#width) this.#grow();
    if (this.#regions.length === 0) return;
    const bits = mixed(object, unit);
    const place = bits % this.#places;
    const first = place * this.#width;
    let index = this.#empty(first);
    if (index < 0) {
      if (!this.#isSeen(first, bits)) return;
      this.#secondOffers += 1;
      if (this.#secondOffers % OFFERS === 0) index = this.#victim(first);
      if (index < 0) return;
    }
    source.copy(this.#regions[index], place * BLOCK_BYTES, at, at + BLOCK_BYTES);
    this.#keys[first + index] = object * UNITS + unit;
    this.#reads[first + index] = 0;
  }

  giveBack(): Buffer | undefined {
    this.#borrowFrom = this.#offers + BORROW_OFFERS;
    return this.#regions.pop();
  }

  #grow(): void {
    this.#borrowFrom = this.#offers + BORROW_OFFERS;
    const buffer = this.#budget.borrow(this);
    if (buffer === undefined) return;
    if (this.#keys.length === 0) {
      this.#keys = new Float64Array(this.#places * this.#width);
      this.#reads = new Uint8Array(this.#places * this.#width);
      this.#seen = new Uint16Array(this.#places * this.#width);
    }
    const keys = this.#keys;
    for (let at = this.#regions.length; at < keys.length; at += this.#width) keys[at] = 0;
    this.#regions.push(buffer);
  }

  /** The region whose place, its keys from `first` on, is empty; -1 where none is. */
  #empty(first: number): number {
    for (let index = 0; index < this.#regions.length; index += 1) if (this.#keys[first + index] === 0) return index;
    return -1;
  }

  /** The region whose block in the place goes: in turn, sparing once who was read. */
  #victim(first: number): number {
    const count = this.#regions.length;
    for (let left = count; left > 0; left -= 1) {
      this.#next = this.#next + 1 < count ? this.#next + 1 : 0;
      if (this.#reads[first + this.#next] === 0) return this.#next;
      this.#reads[first + this.#next] = 0;
    }
    return -1;
  }

  /** Whether the block is among the last that were offered for its place, as many as it has regions; now it is. */
  #isSeen(first: number, bits: number): boolean {
    const count = this.#regions.length;
    const mark = (Math.imul(bits ^ (bits >>> 16), 0x9e3779b1) >>> 16) | 1;
    for (let index = 0; index < count; index += 1) if (this.#seen[first + index] === mark) return true;
    this.#seen[first + (this.#offers % count)] = mark;
    return false;
  }
}

/** Bits that are spread evenly over blocks. */
function mixed(object: number, unit: number): number {
  let bits = Math.imul(object, 0x9e3779b1) ^ Math.imul(unit, 0x85ebca6b);
  bits = Math.imul(bits ^ (bits >>> 15), 0xc2b2ae35);
  return (bits ^ (bits >>> 13)) >>> 0;
}
