/**
 * The index of the block cache: which slot of the cache file holds which part of which object, and which slot is given
 * up next. Pure memory, no I/O. Columns of typed arrays and one open-addressing table, no JavaScript object per part:
 * 37 to 51 bytes a slot, that is 0.6 to 0.8 MiB per GiB of cache (INDEX_BYTES_PER_SLOT is the upper bound).
 *
 * Eviction is S3-FIFO (Yang et al., SOSP 2023): new parts enter a small queue (a tenth), parts used there go on to the
 * main queue, parts not used leave a fingerprint and enter the main queue when they come back soon. What counts as
 * use is a second read of the same 4 KiB of a part: a sequential reader touches a part sixteen times, and would
 * otherwise look like sixteen users and flush everything else.
 *
 * The index never says that a slot's bytes are right: their reader knows by checksums of his own.
 */
import { assert } from "../base/assert.ts";
import { CacheGhosts } from "./cache-ghosts.ts";
import type { VolumeUid } from "./identity.ts";

export const PART_BYTES = 64 * 1024;
/** The unit in which reads of a part are told apart. */
export const SUB_BLOCK_BYTES = 4096;
export const INDEX_BYTES_PER_SLOT = 51;
/** "No slot". */
export const NO_SLOT = 0xffff_ffff;

/** What makes an immutable object: no two objects ever share all four. */
export interface ObjectIdentity {
  readonly uid: VolumeUid;
  readonly epoch: number;
  readonly sequence: number;
  readonly kind: "segment" | "map";
}

/** A slot as it is kept over restarts. */
export interface CacheRow {
  slot: number;
  /** uid ordinal × 2 + 1 for a map. */
  owner: number;
  epoch: number;
  sequence: number;
  part: number;
  length: number;
  main: boolean;
  uses: number;
}

const USES = 3;
const IN_MAIN = 4;
const LIVE = 8;
const BUSY = 16;
const RECOVERED = 32;
const MAX_OWNERS = 0x8000;
const MAX_EVICTION_STEPS = 1024;

/** A first-in first-out chain of slots through the `next` column. */
interface Queue {
  head: number;
  tail: number;
  count: number;
}

export class CacheIndex {
  readonly slotCount: number;
  liveCount = 0;
  evictions = 0;
  readonly #owner: Uint16Array;
  readonly #part: Uint16Array;
  readonly #epoch: Uint32Array;
  readonly #sequenceLow: Uint32Array;
  readonly #sequenceHigh: Uint16Array;
  readonly #lastByte: Uint16Array;
  readonly #touched: Uint16Array;
  readonly #state: Uint8Array;
  readonly #next: Uint32Array;
  readonly #table: Uint32Array;
  readonly #mask: number;
  readonly #ghosts: CacheGhosts;
  readonly #small: Queue = { head: NO_SLOT, tail: NO_SLOT, count: 0 };
  readonly #main: Queue = { head: NO_SLOT, tail: NO_SLOT, count: 0 };
  readonly #free: Queue = { head: NO_SLOT, tail: NO_SLOT, count: 0 };
  readonly #smallTarget: number;
  /** Slots at and above this one were never used. */
  #fresh = 0;
  #freshLimit: number;
  readonly #ordinals = new Map<VolumeUid, number>();
  readonly #uids: (VolumeUid | undefined)[] = [];
  readonly #freeOrdinals: number[] = [];

  constructor(slotCount: number) {
    assert(slotCount > 0 && slotCount < NO_SLOT, "a cache index has slots");
    this.slotCount = slotCount;
    this.#freshLimit = slotCount;
    this.#smallTarget = Math.max(1, Math.floor(slotCount / 10));
    this.#owner = new Uint16Array(slotCount);
    this.#part = new Uint16Array(slotCount);
    this.#epoch = new Uint32Array(slotCount);
    this.#sequenceLow = new Uint32Array(slotCount);
    this.#sequenceHigh = new Uint16Array(slotCount);
    this.#lastByte = new Uint16Array(slotCount);
    this.#touched = new Uint16Array(slotCount);
    this.#state = new Uint8Array(slotCount);
    this.#next = new Uint32Array(slotCount);
    const tableSize = 2 ** Math.ceil(Math.log2(slotCount * 1.5));
    this.#table = new Uint32Array(tableSize);
    this.#mask = tableSize - 1;
    this.#ghosts = new CacheGhosts(slotCount);
  }

  /** Bytes of memory of all columns and tables. */
  memoryBytes(): number {
    const perSlot = 23;
    return perSlot * this.slotCount + this.#table.byteLength + this.#ghosts.memoryBytes();
  }

  /**
   * The number by which the other methods know `object`'s volume and kind; undefined where the volume has none (and
   * `add` is not set), there are too many volumes, or the object's numbers do not fit the columns: it is not cached.
   */
  getOwner(object: ObjectIdentity, add = false): number | undefined {
    if (object.epoch > 0xffff_ffff || object.sequence >= 2 ** 48) return undefined;
    let ordinal = this.#ordinals.get(object.uid);
    if (ordinal === undefined) {
      if (!add) return undefined;
      ordinal = this.#addUid(object.uid);
      if (ordinal === undefined) return undefined;
    }
    return ordinal * 2 + (object.kind === "map" ? 1 : 0);
  }

  /** The slot of a part, or NO_SLOT. */
  find(owner: number, epoch: number, sequence: number, part: number): number {
    if (part > 0xffff) return NO_SLOT;
    const low = sequence >>> 0;
    const high = Math.floor(sequence / 0x1_0000_0000);
    let at = hash(owner, epoch, low, high, part) & this.#mask;
    for (;;) {
      const entry = this.#table[at];
      if (entry === 0) return NO_SLOT;
      const slot = entry - 1;
      if (
        this.#sequenceLow[slot] === low &&
        this.#part[slot] === part &&
        this.#owner[slot] === owner &&
        this.#epoch[slot] === epoch &&
        this.#sequenceHigh[slot] === high
      ) {
        return slot;
      }
      at = (at + 1) & this.#mask;
    }
  }

  /** A slot for a part that is not in the index, marked busy; NO_SLOT where nothing can be given up at the moment. */
  insert(owner: number, epoch: number, sequence: number, part: number, length: number): number {
    assert(length > 0 && length <= PART_BYTES, "a part has 1 to 65536 bytes");
    if (part > 0xffff) return NO_SLOT;
    const slot = this.#take();
    if (slot === NO_SLOT) return NO_SLOT;
    this.#fill(slot, { slot, owner, epoch, sequence, part, length });
    const known = this.#ghosts.take(this.#hashOf(slot));
    this.#state[slot] = LIVE | BUSY | (known ? IN_MAIN : 0);
    this.#push(known ? this.#main : this.#small, slot);
    return slot;
  }

  /** Bytes of the part in `slot`. */
  length(slot: number): number {
    return this.#lastByte[slot] + 1;
  }

  /** Notes a read that began in the 4 KiB number `subBlock` of the part. */
  touch(slot: number, subBlock: number): void {
    const bit = 1 << subBlock;
    const touched = this.#touched[slot];
    if ((touched & bit) === 0) {
      this.#touched[slot] = touched | bit;
      return;
    }
    this.#touched[slot] = bit;
    const state = this.#state[slot];
    if ((state & USES) < USES) this.#state[slot] = state + 1;
  }

  isBusy(slot: number): boolean {
    return (this.#state[slot] & BUSY) !== 0;
  }

  /** Ends what insert began: from now on the slot may be given up. */
  setIdle(slot: number): void {
    this.#state[slot] &= ~BUSY;
  }

  /** True where the slot's part was taken over from an earlier process. */
  isRecovered(slot: number): boolean {
    return (this.#state[slot] & RECOVERED) !== 0;
  }

  isLive(slot: number): boolean {
    return (this.#state[slot] & LIVE) !== 0;
  }

  /** Forgets the part in `slot`; the slot itself comes back when its turn in the queue comes. */
  drop(slot: number): void {
    if (!this.isLive(slot)) return;
    this.#unhash(slot);
    this.#state[slot] &= ~(LIVE | USES | RECOVERED);
    this.liveCount -= 1;
  }

  /** Forgets all parts of a volume; answers how many. */
  forget(uid: VolumeUid): number {
    const ordinal = this.#ordinals.get(uid);
    if (ordinal === undefined) return 0;
    let dropped = 0;
    for (let slot = 0; slot < this.#fresh; slot += 1) {
      if (!this.isLive(slot) || this.#owner[slot] >>> 1 !== ordinal) continue;
      this.drop(slot);
      dropped += 1;
    }
    this.#reclaim(this.#small);
    this.#reclaim(this.#main);
    this.#ordinals.delete(uid);
    this.#uids[ordinal] = undefined;
    this.#freeOrdinals.push(ordinal);
    return dropped;
  }

  /** No slot that was never used is handed out any more: the disk is full. */
  stopGrowing(): void {
    this.#freshLimit = this.#fresh;
  }

  /** The slot is dead for good: takes it out of the queues. For slots that cannot be written. */
  retire(slot: number): void {
    this.drop(slot);
    this.setIdle(slot);
    this.#unlink((this.#state[slot] & IN_MAIN) === 0 ? this.#small : this.#main, slot);
  }

  uids(): (VolumeUid | undefined)[] {
    return [...this.#uids];
  }

  /** All slots in the order in which their queue gives them up, the small queue first. */
  order(): Uint32Array {
    const order = new Uint32Array(this.#small.count + this.#main.count);
    let at = 0;
    for (const queue of [this.#small, this.#main]) {
      for (let slot = queue.head; slot !== NO_SLOT; slot = this.#next[slot]) order[at++] = slot;
    }
    return order;
  }

  /** What is to be kept of a slot; undefined where it holds nothing that is on the disk. */
  row(slot: number): CacheRow | undefined {
    const state = this.#state[slot];
    if ((state & (LIVE | BUSY)) !== LIVE) return undefined;
    return {
      slot,
      owner: this.#owner[slot],
      epoch: this.#epoch[slot],
      sequence: this.#sequenceHigh[slot] * 0x1_0000_0000 + this.#sequenceLow[slot],
      part: this.#part[slot],
      length: this.length(slot),
      main: (state & IN_MAIN) !== 0,
      uses: state & USES,
    };
  }

  /**
   * Takes over a row of an earlier process, in the order of order(), except where the slot or the part is taken already;
   * `uid` is whom row.owner meant there. Call endAdoption() after the last.
   */
  adopt(row: CacheRow, uid: VolumeUid): void {
    if (row.slot >= this.slotCount || this.#state[row.slot] !== 0) return;
    const kind = row.owner % 2 === 1 ? "map" : "segment";
    const owner = this.getOwner({ uid, epoch: row.epoch, sequence: row.sequence, kind }, true);
    if (owner === undefined || this.find(owner, row.epoch, row.sequence, row.part) !== NO_SLOT) return;
    this.#fill(row.slot, { ...row, owner });
    this.#state[row.slot] = LIVE | RECOVERED | (row.main ? IN_MAIN : 0) | row.uses;
    this.#push(row.main ? this.#main : this.#small, row.slot);
    this.#fresh = Math.max(this.#fresh, row.slot + 1);
  }

  /** Frees the slots below the highest adopted one that no row claimed. */
  endAdoption(): void {
    for (let slot = 0; slot < this.#fresh; slot += 1) {
      if (this.#state[slot] === 0) this.#push(this.#free, slot);
    }
  }

  #addUid(uid: VolumeUid): number | undefined {
    const ordinal = this.#freeOrdinals.pop() ?? this.#uids.length;
    if (ordinal >= MAX_OWNERS) return undefined;
    this.#uids[ordinal] = uid;
    this.#ordinals.set(uid, ordinal);
    return ordinal;
  }

  #fill(slot: number, row: Omit<CacheRow, "main" | "uses">): void {
    this.#owner[slot] = row.owner;
    this.#epoch[slot] = row.epoch;
    this.#sequenceLow[slot] = row.sequence >>> 0;
    this.#sequenceHigh[slot] = Math.floor(row.sequence / 0x1_0000_0000);
    this.#part[slot] = row.part;
    this.#lastByte[slot] = row.length - 1;
    this.#touched[slot] = 0;
    let at = this.#hashOf(slot) & this.#mask;
    while (this.#table[at] !== 0) at = (at + 1) & this.#mask;
    this.#table[at] = slot + 1;
    this.liveCount += 1;
  }

  #hashOf(slot: number): number {
    return hash(
      this.#owner[slot],
      this.#epoch[slot],
      this.#sequenceLow[slot],
      this.#sequenceHigh[slot],
      this.#part[slot],
    );
  }

  /** Linear probing without tombstones: later entries of the run move up into the gap. */
  #unhash(slot: number): void {
    const table = this.#table;
    let gap = this.#hashOf(slot) & this.#mask;
    while (table[gap] !== slot + 1) gap = (gap + 1) & this.#mask;
    for (let at = (gap + 1) & this.#mask; table[at] !== 0; at = (at + 1) & this.#mask) {
      const home = this.#hashOf(table[at] - 1) & this.#mask;
      if (((at - home) & this.#mask) < ((at - gap) & this.#mask)) continue;
      table[gap] = table[at];
      gap = at;
    }
    table[gap] = 0;
  }

  #take(): number {
    if (this.#free.count > 0) return this.#pop(this.#free);
    if (this.#fresh < this.#freshLimit) return this.#fresh++;
    // Behind a busy slot of the small queue there are only newer ones: then the main queue has to give.
    let smallIsBusy = false;
    for (let step = 0; step < MAX_EVICTION_STEPS; step += 1) {
      const fromSmall: boolean = (this.#small.count > this.#smallTarget && !smallIsBusy) || this.#main.count === 0;
      const queue = fromSmall ? this.#small : this.#main;
      if (queue.count === 0) return NO_SLOT;
      const slot = this.#pop(queue);
      const state = this.#state[slot];
      if ((state & BUSY) !== 0) {
        this.#push(queue, slot);
        smallIsBusy ||= fromSmall;
      } else if ((state & LIVE) === 0) {
        return slot;
      } else if ((state & USES) !== 0 && step < MAX_EVICTION_STEPS / 2) {
        this.#state[slot] = fromSmall ? (state & ~USES) | IN_MAIN : state - 1;
        this.#push(this.#main, slot);
      } else {
        if (fromSmall) this.#ghosts.add(this.#hashOf(slot));
        this.drop(slot);
        this.evictions += 1;
        return slot;
      }
    }
    return NO_SLOT;
  }

  #push(queue: Queue, slot: number): void {
    this.#next[slot] = NO_SLOT;
    if (queue.tail === NO_SLOT) queue.head = slot;
    else this.#next[queue.tail] = slot;
    queue.tail = slot;
    queue.count += 1;
  }

  #pop(queue: Queue): number {
    const slot = queue.head;
    queue.head = this.#next[slot];
    if (queue.head === NO_SLOT) queue.tail = NO_SLOT;
    queue.count -= 1;
    return slot;
  }

  /** Moves the dead slots of a queue to the free ones. */
  #reclaim(queue: Queue): void {
    for (let left = queue.count; left > 0; left -= 1) {
      const slot = this.#pop(queue);
      const dead = (this.#state[slot] & (LIVE | BUSY)) === 0;
      this.#push(dead ? this.#free : queue, slot);
    }
  }

  #unlink(queue: Queue, slot: number): void {
    for (let left = queue.count; left > 0; left -= 1) {
      const candidate = this.#pop(queue);
      if (candidate !== slot) this.#push(queue, candidate);
    }
  }
}

/** Mixes a part's key into 32 bits, with the finalizer of MurmurHash3. */
function hash(owner: number, epoch: number, low: number, high: number, part: number): number {
  let mixed = Math.imul(low, 0x9e3779b1) ^ Math.imul(part + 1, 0x85ebca77);
  mixed ^= Math.imul(epoch + 1, 0xc2b2ae3d) ^ Math.imul(owner + 1, 0x27d4eb2f) ^ Math.imul(high, 0x165667b1);
  mixed = Math.imul(mixed ^ (mixed >>> 16), 0x85ebca6b);
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
  return (mixed ^ (mixed >>> 16)) >>> 0;
}
