/**
 * The index of the block cache: which slot of the cache file holds which part of which object, and which slot is given
 * up next. Pure memory, no I/O. One record a slot and one open-addressing table, no JavaScript object per part: 38 to 52
 * bytes a slot, that is 0.6 to 0.8 MiB per GiB of cache (INDEX_BYTES_PER_SLOT is the upper bound). What a lookup
 * compares and a read notes stands side by side: random reads find neither in a processor's cache, and each line that
 * has to be fetched costs them 0.05 to 0.1 µs.
 *
 * Eviction is S3-FIFO (Yang et al., SOSP 2023): new parts enter a small queue, parts used there go on to the main queue,
 * parts not used leave a fingerprint and enter the main queue when they come back soon. What counts as use is a second
 * read of the same 4 KiB of a part: a sequential reader touches a part sixteen times, and would otherwise look like
 * sixteen users and flush everything else.
 *
 * The index never says that a slot's bytes are right: their reader knows by checksums of his own.
 */
import { assert } from "../base/assert.ts";
import { CacheGhosts } from "./cache-ghosts.ts";
import type { VolumeUid } from "./identity.ts";

export const PART_BYTES = 64 * 1024;
/** The unit in which reads of a part are told apart. */
export const SUB_BLOCK_BYTES = 4096;
export const INDEX_BYTES_PER_SLOT = 52;
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

/**
 * Of the slots, what the small queue may keep: half, not the tenth of caches of which nothing is overwritten. Parts of
 * which all blocks were written anew are never read again, and would fill nine tenths while what was just written goes
 * (decision 0116).
 */
const SMALL_SHARE = 0.5;
const USES = 3;
const IN_MAIN = 4;
const LIVE = 8;
const BUSY = 16;
const RECOVERED = 32;
const MAX_OWNERS = 0x8000;
const MAX_EVICTION_STEPS = 1024;
/** From one place of the table to the next that a search looks at: another line, another place in it. Odd: it meets all. */
const STEP = 17;
/** The inverse of STEP modulo 2^32. */
const STEPS_PER_PLACE = 0xf0f0_f0f1;

/* A slot's record is 24 bytes. In words of 4: */
const WORDS = 6;
const SEQUENCE_LOW = 0;
const EPOCH = 1;
const NEXT = 5;
/* In words of 2: */
const HALVES = 12;
const SEQUENCE_HIGH = 4;
const PART = 5;
const OWNER = 6;
const LAST_BYTE = 7;
const TOUCHED = 8;
/* In bytes: */
const BYTES = 24;
const STATE = 18;

/** A first-in first-out chain of slots through the `next` field. */
interface Queue {
  head: number;
  tail: number;
  count: number;
}

export class CacheIndex {
  readonly slotCount: number;
  liveCount = 0;
  evictions = 0;
  /** The records, as words of three sizes. */
  readonly #words: Uint32Array;
  readonly #halves: Uint16Array;
  readonly #bytes: Uint8Array;
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
    this.#smallTarget = Math.max(1, Math.floor(slotCount * SMALL_SHARE));
    this.#words = new Uint32Array(slotCount * WORDS);
    this.#halves = new Uint16Array(this.#words.buffer);
    this.#bytes = new Uint8Array(this.#words.buffer);
    const tableSize = 2 ** Math.ceil(Math.log2(slotCount * 1.5));
    this.#table = new Uint32Array(tableSize);
    this.#mask = tableSize - 1;
    this.#ghosts = new CacheGhosts(slotCount);
  }

  /** Bytes of memory of all records and tables. */
  memoryBytes(): number {
    return this.#words.byteLength + this.#table.byteLength + this.#ghosts.memoryBytes();
  }

  /**
   * The number by which the other methods know `object`'s volume and kind; undefined where the volume has none (and
   * `add` is not set), there are too many volumes, or the object's numbers do not fit its record: it is not cached.
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
    let at = home(owner, epoch, low, high, part) & this.#mask;
    for (;;) {
      const entry = this.#table[at];
      if (entry === 0) return NO_SLOT;
      const slot = entry - 1;
      if (
        this.#words[slot * WORDS + SEQUENCE_LOW] === low &&
        this.#halves[slot * HALVES + PART] === part &&
        this.#halves[slot * HALVES + OWNER] === owner &&
        this.#words[slot * WORDS + EPOCH] === epoch &&
        this.#halves[slot * HALVES + SEQUENCE_HIGH] === high
      ) {
        return slot;
      }
      at = (at + STEP) & this.#mask;
    }
  }

  /** A slot for a part that is not in the index, marked busy; NO_SLOT where nothing can be given up at the moment. */
  insert(owner: number, epoch: number, sequence: number, part: number, length: number): number {
    assert(length > 0 && length <= PART_BYTES, "a part has 1 to 65536 bytes");
    if (part > 0xffff) return NO_SLOT;
    const slot = this.#take();
    if (slot === NO_SLOT) return NO_SLOT;
    this.#fill(slot, { slot, owner, epoch, sequence, part, length });
    const known = this.#ghosts.take(this.#fingerprintOf(slot));
    this.#bytes[slot * BYTES + STATE] = LIVE | BUSY | (known ? IN_MAIN : 0);
    this.#push(known ? this.#main : this.#small, slot);
    return slot;
  }

  /** Bytes of the part in `slot`. */
  length(slot: number): number {
    return this.#halves[slot * HALVES + LAST_BYTE] + 1;
  }

  /** Notes a read that began in the 4 KiB number `subBlock` of the part. */
  touch(slot: number, subBlock: number): void {
    const bit = 1 << subBlock;
    const touched = this.#halves[slot * HALVES + TOUCHED];
    if ((touched & bit) === 0) {
      this.#halves[slot * HALVES + TOUCHED] = touched | bit;
      return;
    }
    this.#halves[slot * HALVES + TOUCHED] = bit;
    const state = this.#bytes[slot * BYTES + STATE];
    if ((state & USES) < USES) this.#bytes[slot * BYTES + STATE] = state + 1;
  }

  isBusy(slot: number): boolean {
    return (this.#bytes[slot * BYTES + STATE] & BUSY) !== 0;
  }

  /** Ends what insert began: from now on the slot may be given up. */
  setIdle(slot: number): void {
    this.#bytes[slot * BYTES + STATE] &= ~BUSY;
  }

  /** True where the slot's part was taken over from an earlier process. */
  isRecovered(slot: number): boolean {
    return (this.#bytes[slot * BYTES + STATE] & RECOVERED) !== 0;
  }

  isLive(slot: number): boolean {
    return (this.#bytes[slot * BYTES + STATE] & LIVE) !== 0;
  }

  /** Forgets the part in `slot`; the slot itself comes back when its turn in the queue comes. */
  drop(slot: number): void {
    if (!this.isLive(slot)) return;
    this.#unhash(slot);
    this.#bytes[slot * BYTES + STATE] &= ~(LIVE | USES | RECOVERED);
    this.liveCount -= 1;
  }

  /** Forgets all parts of a volume; answers how many. */
  forget(uid: VolumeUid): number {
    const ordinal = this.#ordinals.get(uid);
    if (ordinal === undefined) return 0;
    let dropped = 0;
    for (let slot = 0; slot < this.#fresh; slot += 1) {
      if (!this.isLive(slot) || this.#halves[slot * HALVES + OWNER] >>> 1 !== ordinal) continue;
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
    this.#unlink((this.#bytes[slot * BYTES + STATE] & IN_MAIN) === 0 ? this.#small : this.#main, slot);
  }

  uids(): (VolumeUid | undefined)[] {
    return [...this.#uids];
  }

  /** All slots in the order in which their queue gives them up, the small queue first. */
  order(): Uint32Array {
    const order = new Uint32Array(this.#small.count + this.#main.count);
    let at = 0;
    for (const queue of [this.#small, this.#main]) {
      for (let slot = queue.head; slot !== NO_SLOT; slot = this.#words[slot * WORDS + NEXT]) order[at++] = slot;
    }
    return order;
  }

  /** What is to be kept of a slot; undefined where it holds nothing that is on the disk. */
  row(slot: number): CacheRow | undefined {
    const state = this.#bytes[slot * BYTES + STATE];
    if ((state & (LIVE | BUSY)) !== LIVE) return undefined;
    return {
      slot,
      owner: this.#halves[slot * HALVES + OWNER],
      epoch: this.#words[slot * WORDS + EPOCH],
      sequence: this.#halves[slot * HALVES + SEQUENCE_HIGH] * 0x1_0000_0000 + this.#words[slot * WORDS + SEQUENCE_LOW],
      part: this.#halves[slot * HALVES + PART],
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
    if (row.slot >= this.slotCount || this.#bytes[row.slot * BYTES + STATE] !== 0) return;
    const kind = row.owner % 2 === 1 ? "map" : "segment";
    const owner = this.getOwner({ uid, epoch: row.epoch, sequence: row.sequence, kind }, true);
    if (owner === undefined || this.find(owner, row.epoch, row.sequence, row.part) !== NO_SLOT) return;
    this.#fill(row.slot, { ...row, owner });
    this.#bytes[row.slot * BYTES + STATE] = LIVE | RECOVERED | (row.main ? IN_MAIN : 0) | row.uses;
    this.#push(row.main ? this.#main : this.#small, row.slot);
    this.#fresh = Math.max(this.#fresh, row.slot + 1);
  }

  /** Frees the slots below the highest adopted one that no row claimed. */
  endAdoption(): void {
    for (let slot = 0; slot < this.#fresh; slot += 1) {
      if (this.#bytes[slot * BYTES + STATE] === 0) this.#push(this.#free, slot);
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
    this.#halves[slot * HALVES + OWNER] = row.owner;
    this.#words[slot * WORDS + EPOCH] = row.epoch;
    this.#words[slot * WORDS + SEQUENCE_LOW] = row.sequence >>> 0;
    this.#halves[slot * HALVES + SEQUENCE_HIGH] = Math.floor(row.sequence / 0x1_0000_0000);
    this.#halves[slot * HALVES + PART] = row.part;
    this.#halves[slot * HALVES + LAST_BYTE] = row.length - 1;
    this.#halves[slot * HALVES + TOUCHED] = 0;
    let at = this.#homeOf(slot);
    while (this.#table[at] !== 0) at = (at + STEP) & this.#mask;
    this.#table[at] = slot + 1;
    this.liveCount += 1;
  }

  /** Where a search for the slot's part begins. */
  #homeOf(slot: number): number {
    const words = slot * WORDS;
    const halves = slot * HALVES;
    return (
      home(
        this.#halves[halves + OWNER],
        this.#words[words + EPOCH],
        this.#words[words + SEQUENCE_LOW],
        this.#halves[halves + SEQUENCE_HIGH],
        this.#halves[halves + PART],
      ) & this.#mask
    );
  }

  /** By which the slot's part is known when it is gone. */
  #fingerprintOf(slot: number): number {
    const words = slot * WORDS;
    const halves = slot * HALVES;
    return hash(
      this.#halves[halves + OWNER],
      this.#words[words + EPOCH],
      this.#words[words + SEQUENCE_LOW],
      this.#halves[halves + SEQUENCE_HIGH],
      this.#halves[halves + PART],
    );
  }

  /** Without tombstones: later entries of the run move up into the gap. */
  #unhash(slot: number): void {
    const table = this.#table;
    let gap = this.#homeOf(slot);
    while (table[gap] !== slot + 1) gap = (gap + STEP) & this.#mask;
    for (let at = (gap + STEP) & this.#mask; table[at] !== 0; at = (at + STEP) & this.#mask) {
      const first = this.#homeOf(table[at] - 1);
      if (this.#steps(first, at) < this.#steps(gap, at)) continue;
      table[gap] = table[at];
      gap = at;
    }
    table[gap] = 0;
  }

  /** How many steps a search takes from one place of the table to another. */
  #steps(from: number, to: number): number {
    return Math.imul(to - from, STEPS_PER_PLACE) & this.#mask;
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
      const state = this.#bytes[slot * BYTES + STATE];
      if ((state & BUSY) !== 0) {
        this.#push(queue, slot);
        smallIsBusy ||= fromSmall;
      } else if ((state & LIVE) === 0) {
        return slot;
      } else if ((state & USES) !== 0 && step < MAX_EVICTION_STEPS / 2) {
        this.#bytes[slot * BYTES + STATE] = fromSmall ? (state & ~USES) | IN_MAIN : state - 1;
        this.#push(this.#main, slot);
      } else {
        if (fromSmall) this.#ghosts.add(this.#fingerprintOf(slot));
        this.drop(slot);
        this.evictions += 1;
        return slot;
      }
    }
    return NO_SLOT;
  }

  #push(queue: Queue, slot: number): void {
    this.#words[slot * WORDS + NEXT] = NO_SLOT;
    if (queue.tail === NO_SLOT) queue.head = slot;
    else this.#words[queue.tail * WORDS + NEXT] = slot;
    queue.tail = slot;
    queue.count += 1;
  }

  #pop(queue: Queue): number {
    const slot = queue.head;
    queue.head = this.#words[slot * WORDS + NEXT];
    if (queue.head === NO_SLOT) queue.tail = NO_SLOT;
    queue.count -= 1;
    return slot;
  }

  /** Moves the dead slots of a queue to the free ones. */
  #reclaim(queue: Queue): void {
    for (let left = queue.count; left > 0; left -= 1) {
      const slot = this.#pop(queue);
      const dead = (this.#bytes[slot * BYTES + STATE] & (LIVE | BUSY)) === 0;
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

/**
 * Where a search for a part begins, before it is cut to the table's size: 16 neighbours of one object share a line of the
 * processor's cache, so that the lines which all random reads of a volume need are few enough to stay in it. Where in
 * its line an object's first part stands is as good as random: many objects have one part only.
 */
function home(owner: number, epoch: number, low: number, high: number, part: number): number {
  const group = hash(owner, epoch, low, high, part >>> 4);
  return (group << 4) | ((part + (group >>> 28)) & 15);
}

/** Mixes a part's key into 32 bits, with the finalizer of MurmurHash3. */
function hash(owner: number, epoch: number, low: number, high: number, part: number): number {
  let mixed = Math.imul(low, 0x9e3779b1) ^ Math.imul(part + 1, 0x85ebca77);
  mixed ^= Math.imul(epoch + 1, 0xc2b2ae3d) ^ Math.imul(owner + 1, 0x27d4eb2f) ^ Math.imul(high, 0x165667b1);
  mixed = Math.imul(mixed ^ (mixed >>> 16), 0x85ebca6b);
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
  return (mixed ^ (mixed >>> 16)) >>> 0;
}
