/**
 * The map of one volume: shards (map-shard.ts) that are loaded when they are first needed, and the directory that says
 * where the page of each one stands. What the map says is always in S3: only durable segments are applied to it.
 *
 * Memory: loaded shards count against a budget that all volumes of the thread share; clean ones that were not used for
 * long are dropped. Dirty ones stay until a checkpoint has written them: needsCheckpoint() asks for one in time. One
 * that somebody waits for stays until it was used, whatever the budget says.
 */
import { assert } from "../base/assert.ts";
import type { CheckpointShards, DecodedCheckpoint } from "./format/checkpoint.ts";
import { corrupt } from "./format/fields.ts";
import { SHARD_BLOCKS } from "./format/map-page.ts";
import { ObjectReferences } from "./format/object-references.ts";
import { BLOCK_BYTES } from "./identity.ts";
import { MapShard } from "./map-shard.ts";

/** Bytes that the loaded shards of all volumes of a thread may take. */
export class MapBudget {
  readonly limitBytes: number;
  usedBytes = 0;
  /** Turns of use, for "least recently used". */
  turn = 0;

  constructor(limitBytes: number) {
    this.limitBytes = limitBytes;
  }
}

/** Where a page stands: row of mapObjects, offset and length in the object. */
export interface PageLocation {
  lineage: number;
  epoch: number;
  number: number;
  offset: number;
  length: number;
}

/** Reads and decodes a page; the shard comes back clean. */
export type LoadPage = (shard: number, location: PageLocation) => Promise<MapShard>;

export class BlockMap {
  readonly shardCount: number;
  readonly #budget: MapBudget;
  readonly #loadPage: LoadPage;
  readonly #shards = new Map<number, MapShard>();
  readonly #accounted = new Map<number, number>();
  readonly #loading = new Map<number, Promise<MapShard>>();
  /** Shards that are waited for, and by how many. */
  readonly #awaited = new Map<number, number>();
  /** Objects that hold pages; rows that nothing points to any more are dropped when a checkpoint is made. */
  #objects = new ObjectReferences();
  /** Per shard: row of #objects plus one (0 = no page), offset and length of the page. */
  readonly #pageObject: Uint32Array;
  readonly #pageOffset: Uint32Array;
  readonly #pageLength: Uint32Array;
  #dirtyBytes = 0;

  constructor(sizeBytes: number, budget: MapBudget, loadPage: LoadPage) {
    this.shardCount = Math.ceil(sizeBytes / (SHARD_BLOCKS * BLOCK_BYTES));
    this.#budget = budget;
    this.#loadPage = loadPage;
    this.#pageObject = new Uint32Array(this.shardCount);
    this.#pageOffset = new Uint32Array(this.shardCount);
    this.#pageLength = new Uint32Array(this.shardCount);
  }

  /** Takes over the directory of a checkpoint; before anything else is applied. "corrupt" where it is of another size. */
  adopt(checkpoint: DecodedCheckpoint): void {
    assert(this.#shards.size === 0, "a checkpoint is adopted by an empty map");
    this.#objects = checkpoint.mapObjects;
    const { shards } = checkpoint;
    for (let row = 0; row < shards.count; row += 1) {
      const shard = shards.shard[row];
      if (shard >= this.shardCount) throw corrupt("a checkpoint names a shard outside the volume", { shard });
      this.#pageObject[shard] = shards.mapObject[row] + 1;
      this.#pageOffset[shard] = shards.offset[row];
      this.#pageLength[shard] = shards.length[row];
    }
  }

  /** The shard where it is in memory; undefined where it must be loaded first, or was never written (isHole). */
  getLoaded(index: number): MapShard | undefined {
    const shard = this.#shards.get(index);
    if (shard !== undefined) shard.lastUsed = this.#budget.turn += 1;
    return shard;
  }

  /** True where no block of the shard is mapped, as can be told without loading it. */
  isHole(index: number): boolean {
    return this.#pageObject[index] === 0 && !this.#shards.has(index);
  }

  /** The shard, loaded from its page or empty where it has none. Concurrent calls share one load. */
  load(index: number): MapShard | Promise<MapShard> {
    const loaded = this.getLoaded(index);
    if (loaded !== undefined) return loaded;
    if (this.#pageObject[index] === 0) return this.#keep(new MapShard(index));
    const pending = this.#loading.get(index);
    if (pending !== undefined) return pending;
    const row = this.#pageObject[index] - 1;
    const location = {
      lineage: this.#objects.lineage[row],
      epoch: this.#objects.epoch[row],
      number: this.#objects.sequence[row],
      offset: this.#pageOffset[index],
      length: this.#pageLength[index],
    };
    const load = this.#loadPage(index, location)
      .then((shard) => this.#shards.get(index) ?? this.#keep(shard))
      .finally(() => this.#loading.delete(index));
    this.#loading.set(index, load);
    return load;
  }

  /**
   * Loads the shard, calls `use` with it and answers what that does. The shard is not dropped before `use` has returned:
   * two who wait for one shard each, where there is room for one, would else load them in turn for ever, and where the
   * pages come from memory nothing else of the thread would run.
   */
  async whileLoaded<T>(index: number, use: (shard: MapShard) => T): Promise<T> {
    this.#awaited.set(index, (this.#awaited.get(index) ?? 0) + 1);
    try {
      await this.load(index);
      // Not what load() answered: the map may have been closed, or the shard replaced, while its page was on its way.
      return use(this.getLoaded(index) ?? (await this.load(index)));
    } finally {
      const others = this.#awaited.get(index)! - 1;
      if (others > 0) this.#awaited.set(index, others);
      else this.#awaited.delete(index);
    }
  }

  /** Makes the whole shard a hole without reading its page. */
  clearShard(index: number): void {
    if (this.isHole(index)) return;
    const shard = this.#shards.get(index) ?? this.#keep(new MapShard(index));
    shard.set(0, SHARD_BLOCKS, 0, 0);
    this.account(shard);
  }

  /** Counts the memory of a shard anew, after it was changed; drops others where the budget is used up. */
  account(shard: MapShard): void {
    const before = this.#accounted.get(shard.index) ?? 0;
    const after = shard.memoryBytes();
    this.#accounted.set(shard.index, after);
    this.#budget.usedBytes += after - before;
    if (this.#budget.usedBytes > this.#budget.limitBytes) this.#evict(shard.index);
  }

  /** True where dirty shards take more than half of the budget: only a checkpoint makes them droppable. */
  needsCheckpoint(): boolean {
    return this.#dirtyBytes * 2 > this.#budget.limitBytes;
  }

  /**
   * Every shard changed since it was last written, in order; each is marked clean and as being written: give it
   * back by written() whether that succeeded or not.
   */
  takeDirty(): MapShard[] {
    const dirty = [...this.#shards.values()].filter((shard) => shard.dirty);
    for (const shard of dirty) {
      shard.dirty = false;
      shard.writing = true;
    }
    this.#dirtyBytes = 0;
    return dirty.toSorted((left, right) => left.index - right.index);
  }

  /** The pages of these shards are in S3 and in the directory (`failed` false), or are not. */
  written(shards: readonly MapShard[], failed: boolean): void {
    for (const shard of shards) {
      shard.writing = false;
      if (failed) shard.dirty = true;
    }
  }

  /** A page of `shard` is in S3 now; undefined = the shard is empty and has none. */
  setPage(shard: number, location: PageLocation | undefined): void {
    if (location === undefined) {
      this.#pageObject[shard] = 0;
      return;
    }
    const { lineage, epoch, number } = location;
    const last = this.#objects.count - 1;
    const isLast =
      last >= 0 &&
      this.#objects.sequence[last] === number &&
      this.#objects.epoch[last] === epoch &&
      this.#objects.lineage[last] === lineage;
    const row = isLast ? last : this.#objects.push({ lineage, epoch, sequence: number });
    this.#pageObject[shard] = row + 1;
    this.#pageOffset[shard] = location.offset;
    this.#pageLength[shard] = location.length;
  }

  /** The directory as a checkpoint stores it; objects that hold no page any more are left out. */
  directory(makeShards: (count: number) => CheckpointShards): {
    mapObjects: ObjectReferences;
    shards: CheckpointShards;
  } {
    const used = new Uint32Array(this.#objects.count + 1);
    const mapObjects = new ObjectReferences();
    let count = 0;
    for (let shard = 0; shard < this.shardCount; shard += 1) {
      const row = this.#pageObject[shard];
      if (row === 0) continue;
      count += 1;
      if (used[row] !== 0) continue;
      const { lineage, epoch, sequence } = this.#objects;
      mapObjects.push({ lineage: lineage[row - 1], epoch: epoch[row - 1], sequence: sequence[row - 1] });
      used[row] = mapObjects.count;
    }
    const shards = makeShards(count);
    let index = 0;
    for (let shard = 0; shard < this.shardCount; shard += 1) {
      const row = this.#pageObject[shard];
      if (row === 0) continue;
      this.#pageObject[shard] = used[row];
      const page = {
        shard,
        mapObject: used[row] - 1,
        offset: this.#pageOffset[shard],
        length: this.#pageLength[shard],
      };
      shards.set(index, page);
      index += 1;
    }
    this.#objects = mapObjects;
    return { mapObjects: copyReferences(mapObjects), shards };
  }

  /** Gives all memory back to the budget. */
  close(): void {
    for (const bytes of this.#accounted.values()) this.#budget.usedBytes -= bytes;
    this.#accounted.clear();
    this.#shards.clear();
  }

  #keep(shard: MapShard): MapShard {
    this.#shards.set(shard.index, shard);
    shard.lastUsed = this.#budget.turn += 1;
    this.account(shard);
    return shard;
  }

  /** Drops clean shards, longest unused first, until an eighth of the budget is free; `keep` stays. */
  #evict(keep: number): void {
    let dirtyBytes = 0;
    const clean: MapShard[] = [];
    for (const shard of this.#shards.values()) {
      if (shard.dirty) dirtyBytes += this.#accounted.get(shard.index) ?? 0;
      else if (shard.index !== keep && !shard.writing && !this.#awaited.has(shard.index)) clean.push(shard);
    }
    this.#dirtyBytes = dirtyBytes;
    clean.sort((left, right) => left.lastUsed - right.lastUsed);
    for (const shard of clean) {
      if (this.#budget.usedBytes <= this.#budget.limitBytes * 0.875) return;
      this.#budget.usedBytes -= this.#accounted.get(shard.index) ?? 0;
      this.#accounted.delete(shard.index);
      this.#shards.delete(shard.index);
    }
  }
}

function copyReferences(from: ObjectReferences): ObjectReferences {
  const copy = new ObjectReferences(Math.max(1, from.count));
  for (let row = 0; row < from.count; row += 1) {
    copy.push({ lineage: from.lineage[row], epoch: from.epoch[row], sequence: from.sequence[row] });
  }
  return copy;
}
